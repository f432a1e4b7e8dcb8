"""The true steps and names of what a resumed run saves."""

import pytest

from spyke_kohya.engine.events import CheckpointAnnounced, CheckpointRemoved, EpochStarted, Step
from spyke_kohya.run.numbering import Numbering

RESUMED = Numbering("x", steps_per_epoch=8, total_steps=24, steps_before=8)


@pytest.mark.parametrize(
    ("file", "step", "name"),
    [
        ("x-step00000005.safetensors", 13, "x-step00000013.safetensors"),
        ("x-step00000005.ckpt", 13, "x-step00000013.ckpt"),
        ("x-000002.safetensors", 16, "x-000002.safetensors"),
        ("x.safetensors", 24, "x.safetensors"),
        ("no-checkpoint", 15, "no-checkpoint"),
    ],
)
def test_a_file_has_its_true_step_and_name(file, step, name):
    assert (RESUMED.true_step(file, after_step=7), RESUMED.true_name(file)) == (step, name)


def test_an_output_name_that_ends_like_an_epoch_is_no_epoch():
    assert Numbering("x-000001", 8, 24).true_step("x-000001.safetensors", 0) == 24


def test_the_events_of_a_resumed_run_are_shifted():
    """after_step too: it is what counts where a name tells no step."""
    step = Step(1, 24, 0.5, 1, 1.0)
    own, true = "out/runs/r/segment/x-step00000005.safetensors", "x-step00000013.safetensors"
    assert RESUMED.true_event(step).step == 9
    assert RESUMED.true_event(CheckpointAnnounced(own, 5)) == CheckpointAnnounced(true, 13)
    assert RESUMED.true_event(CheckpointRemoved(own)) == CheckpointRemoved(true)
    assert RESUMED.true_event(EpochStarted(2, 3)) == EpochStarted(2, 3)


def test_a_run_that_began_anew_is_left_as_it_is():
    event = CheckpointAnnounced("out/x-step00000005.safetensors", 5)
    assert Numbering("x", 8, 24).true_event(event) is event
