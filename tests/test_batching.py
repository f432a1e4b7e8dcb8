"""Buckets, balance, split, steps and checkpoints follow sd-scripts' rules."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyke_kohya.engine.batching import (
    BatchingError,
    adjust_bucket_limits,
    balance_regularisation,
    batches_of,
    bucket_resolutions,
    nearest_bucket,
    shrunk_bucket,
    shuffled,
    training_part,
    validation_part,
)
from spyke_kohya.engine.checkpoint_size import checkpoint_bytes
from spyke_kohya.engine.filenames import epoch_file, last_file, step_file
from spyke_kohya.engine.schedule import Saving, checkpoints, epochs_of, steps_per_epoch

SIDES = st.integers(64, 2048)


@given(SIDES, SIDES, st.sampled_from([32, 64, 128]))
def test_no_bucket_has_more_pixels_than_the_resolution_and_every_side_is_a_multiple(width, height, steps):
    smallest = min(width, height) // steps * steps
    largest = -(-max(width, height) // steps) * steps
    if smallest == 0:
        return
    buckets = bucket_resolutions((width, height), smallest, largest, steps)
    assert buckets == sorted(set(buckets))
    assert {(h, w) for w, h in buckets} == set(buckets)
    for bucket in buckets:
        assert bucket[0] * bucket[1] <= width * height
        assert all(side % steps == 0 and smallest <= side <= largest for side in bucket)


def test_sd_scripts_own_buckets_at_512():
    buckets = bucket_resolutions((512, 512), 256, 1024, 64)
    assert (len(buckets), buckets[0], buckets[-1]) == (17, (256, 832), (1024, 256))


def test_bucket_limits_move_outwards_to_multiples_and_enclose_the_resolution():
    assert adjust_bucket_limits((512, 512), 300, 1000, 64) == (256, 1024)
    for resolution, smallest, largest in (((512, 512), 576, 1024), ((512, 1100), 256, 1024)):
        with pytest.raises(BatchingError):
            adjust_bucket_limits(resolution, smallest, largest, 64)


def test_an_image_of_a_bucket_s_size_gets_that_bucket_even_if_another_has_its_aspect_ratio():
    buckets = [(256, 256), (512, 512)]
    assert nearest_bucket((512, 512), buckets) == (512, 512)
    assert nearest_bucket((800, 800), buckets) == (256, 256)


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_no_bucket_is_nearer_to_an_image_than_the_one_it_gets(width, height):
    buckets = bucket_resolutions((512, 512), 256, 1024, 64)
    chosen = nearest_bucket((width, height), buckets)
    distance = [abs(w / h - width / height) for w, h in buckets]
    assert chosen == (width, height) or buckets.index(chosen) == distance.index(min(distance))


def test_a_small_image_that_is_not_enlarged_is_cropped_to_its_own_bucket():
    assert shrunk_bucket((300, 200), 512 * 512, 64) == (256, 192)
    assert shrunk_bucket((1024, 1024), 512 * 512, 64) == (512, 512)
    assert shrunk_bucket((40, 200), 512 * 512, 64) == (0, 192)


@pytest.mark.parametrize("size", [(200, 40), (20, 20), (8000, 40), (0, 64)])
def test_an_image_that_sd_scripts_would_divide_by_zero_for_is_refused(size):
    with pytest.raises(BatchingError):
        shrunk_bucket(size, 512 * 512, 64)


@given(st.integers(0, 500), st.lists(st.integers(1, 12), max_size=40))
def test_regularisation_images_reach_the_training_images_as_sd_scripts_loop_does(train, repeats):
    used = balance_regularisation(train, repeats)
    assert used == by_the_loop(train, repeats)
    if repeats:
        assert train <= sum(used) <= train + max(repeats) - 1 or sum(used) == 0 == train


def by_the_loop(train, repeats):
    used, reached, first = [0] * len(repeats), 0, True
    while reached < train and repeats:
        for index, count in enumerate(repeats):
            used[index] += count if first else 1
            reached += count if first else 1
            if reached >= train:
                break
        first = False
    return used


def test_a_hundred_million_repeats_are_balanced_at_once():
    assert sum(balance_regularisation(100_000_000, [1] * 100)) == 100_000_000


@given(st.integers(1, 60), st.floats(0, 1))
def test_a_split_loses_no_image(count, split):
    train, validation = training_part(range(count), split), validation_part(range(count), split)
    assert len(train) == math.ceil(count * (1 - split))
    assert len(validation) == round(count * split)
    if len(train) + len(validation) >= count:
        assert set(train) | set(validation) == set(range(count))


def test_one_image_can_be_in_both_parts_of_a_split():
    train, validation = training_part(range(5), 0.3), validation_part(range(5), 0.3)
    assert (len(train), len(validation), len(set(train) & set(validation))) == (4, 2, 1)


def test_a_batch_holds_images_of_one_bucket_only():
    assert batches_of([5, 1, 4], 4) == 4


def test_the_run_of_record_takes_460_steps_an_epoch():
    assert steps_per_epoch(460) == 460
    assert steps_per_epoch(460, 2, 4) == 58
    assert epochs_of(1840, 460) == 4


def files(saving, total, an_epoch):
    return [(saved.step, saved.file) for saved in checkpoints(saving, total, an_epoch)]


def test_a_checkpoint_every_200_steps_and_the_last_one():
    saved = files(Saving("s", every_n_steps=200), 1840, 460)
    assert [step for step, _ in saved] == [200, 400, 600, 800, 1000, 1200, 1400, 1600, 1800, 1840]
    assert saved[0][1] == "s-step00000200.safetensors"
    assert saved[-1][1] == "s.safetensors"


def test_the_last_epoch_is_saved_only_as_the_final_file():
    assert files(Saving("s", every_n_epochs=1), 6, 2) == [
        (2, "s-000001.safetensors"),
        (4, "s-000002.safetensors"),
        (6, "s.safetensors"),
    ]


def test_a_ratio_of_epochs_wins_over_every_n_epochs():
    saved = files(Saving("s", every_n_epochs=1, n_epoch_ratio=2), 10, 1)
    assert [step for step, _ in saved] == [5, 10]


def test_old_checkpoints_are_removed():
    by_steps = files(Saving("s", every_n_steps=10, last_n_steps=20), 100, 100)
    assert [step for step, _ in by_steps] == [80, 90, 100, 100]
    by_epochs = files(Saving("s", every_n_epochs=1, last_n_epochs=2), 6, 1)
    assert [step for step, _ in by_epochs] == [4, 5, 6]


@given(
    st.builds(Saving, st.none(), st.just(".pt"), *[st.none() | st.integers(1, 30)] * 5),
    st.integers(1, 200),
    st.integers(1, 40),
)
def test_the_checkpoints_are_those_that_the_training_loop_leaves(saving, total, an_epoch):
    assert files(saving, total, an_epoch) == left_by_the_loop(saving, total, an_epoch)


def left_by_the_loop(saving, total, an_epoch):
    left, epochs = {}, math.ceil(total / an_epoch)
    every = saving.every_n_epochs
    if saving.n_epoch_ratio:
        every = epochs // saving.n_epoch_ratio or 1
    for step in range(1, total + 1):
        if saving.every_n_steps and step % saving.every_n_steps == 0:
            left[step_file(None, step, ".pt")] = step
            if saving.last_n_steps:
                old = step - saving.last_n_steps - 1
                left.pop(step_file(None, old - old % saving.every_n_steps, ".pt") if old >= 0 else "", None)
        epoch, rest = divmod(step, an_epoch)
        if every and not rest and epoch % every == 0 and epoch < epochs:
            left[epoch_file(None, epoch, ".pt")] = step
            if saving.last_n_epochs and epoch >= every * saving.last_n_epochs:
                left.pop(epoch_file(None, epoch - every * saving.last_n_epochs, ".pt"), None)
    left[last_file(None, ".pt")] = total
    return [(step, file) for file, step in left.items()]


def test_the_shuffle_of_a_seed_is_python_s_own():
    order = list(range(9))
    random.Random(5).shuffle(order)
    assert shuffled(9, random.Random(5)) == order


LORA = {"network_module": "networks.lora", "network_dim": 32}


def test_a_rank_32_checkpoint_has_the_size_it_had_in_the_run_of_record():
    assert checkpoint_bytes(LORA | {"save_precision": "float"}) == 75_614_824


def test_a_checkpoint_s_size_grows_with_its_rank_and_halves_with_its_precision():
    assert checkpoint_bytes(LORA | {"network_dim": 1}) == pytest.approx(2_360_352 + 116_296, rel=0.001)
    assert checkpoint_bytes(LORA | {"save_precision": "fp16"}) == pytest.approx(75_614_824 / 2, rel=0.002)
    parts = [checkpoint_bytes(LORA | {f"network_train_{part}_only": True}) for part in ("unet", "text_encoder")]
    assert sum(parts) == pytest.approx(75_614_824, rel=0.001)


@pytest.mark.parametrize("options", [{}, {"network_module": "lycoris.kohya"}, LORA | {"network_args": ["conv_dim=4"]}])
def test_the_size_of_an_unknown_network_is_unknown(options):
    assert checkpoint_bytes(options) is None
