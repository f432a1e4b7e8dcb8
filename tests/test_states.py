"""States to resume from: the options that ask for them, what they bring along, their disk."""

from pathlib import Path

import pytest

from spyke_kohya.engine.checkpoint_size import state_bytes
from spyke_kohya.engine.states import epoch_of_state, state_saving


def saving(total=24, per_epoch=8, **options):
    return state_saving(options, total_steps=total, steps_per_epoch=per_epoch)


def test_a_preset_that_saves_by_steps_gets_epoch_states_and_what_comes_along_is_known():
    states = saving(save_every_n_steps=5)
    assert states.options == {
        "save_state": True,
        "save_every_n_epochs": 1,
        "save_last_n_epochs_state": 2,
        "save_last_n_steps_state": 1,
    }
    assert (states.epoch_files_unasked, states.other_states_unasked) == (True, True)


@pytest.mark.parametrize("own", [{"save_every_n_epochs": 2}, {"save_n_epoch_ratio": 2}])
def test_epoch_checkpoints_of_the_preset_stay_its_own(own):
    states = saving(**own)
    assert states.options == {"save_state": True, "save_last_n_epochs_state": 2}
    assert not states.epoch_files_unasked


def test_states_of_the_preset_stay_its_own():
    states = saving(save_state=True, save_every_n_steps=5, save_every_n_epochs=1, save_last_n_epochs_state=4)
    assert not states.is_on
    assert not states.epoch_files_unasked
    assert not states.other_states_unasked


@pytest.mark.parametrize(("total", "per_epoch"), [(8, 8), (5, 8), (20, 8), (0, 0)])
def test_a_run_that_could_not_be_continued_saves_none(total, per_epoch):
    assert not saving(total, per_epoch).is_on


@pytest.mark.parametrize(
    ("name", "epoch"),
    [
        ("spyke-000002-state", 2),
        ("spyke-step00000200-state", None),
        ("spyke-state", None),
        ("other-000002-state", None),
        ("spyke-000002", None),
        ("spyke-2-state", None),
    ],
)
def test_a_state_is_known_by_its_name(name, epoch):
    assert epoch_of_state(Path("out") / name, "spyke") == epoch


def test_a_state_takes_three_numbers_a_weight():
    options = {"network_module": "networks.lora", "network_dim": 4, "save_precision": "fp16"}
    assert state_bytes(options) == pytest.approx(28_600_000, rel=0.01)
    assert state_bytes(options | {"network_module": "lycoris.kohya"}) is None
