"""Faults are recognised from what is said, and from how long nothing is."""

import math

import pytest

from spyke_kohya.engine.events import EngineFault, EngineWarning, Step
from spyke_kohya.run.faults import FaultWatch, remedy_for


def step(number, loss=0.1):
    return Step(number, 1000, loss, 0, None)


def watched(durations, **options):
    """A watch that has seen steps of these durations in seconds, and the notices it gave."""
    watch, at, notices = FaultWatch(at=0.0, **options), 0.0, []
    for number, duration in enumerate(durations, start=1):
        at += duration
        watch.output_seen(at)
        notices += watch.handle(step(number), at)
    return watch, at, notices


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize("patience", [1, 2, 5])
def test_bad_losses_end_a_run_when_patience_is_out(loss, patience):
    watch = FaultWatch(at=0.0, nan_patience=patience)
    assert watch.handle(step(1), 1.0) == []
    told = [notice for number in range(2, 2 + patience) for notice in watch.handle(step(number, loss), number)]
    assert [notice.ends_run for notice in told] == ([True] if patience == 1 else [False, True])
    assert "from step 2 on" in told[-1].message
    assert watch.counts == {"nan": 1}


def test_silence_is_said_once_after_5_minutes():
    watch, at, _ = watched([2.0] * 10)
    assert watch.no_output(at + 299) == []
    (notice,) = watch.no_output(at + 301)
    assert (notice.kind, notice.ends_run) == ("silence", False)
    assert watch.no_output(at + 400) == []
    watch.output_seen(at + 401)
    assert len(watch.no_output(at + 800)) == 1
    assert watch.counts == {"silence": 2}


def test_slow_steps_may_be_silent_for_longer():
    watch, at, _ = watched([60.0] * 10)
    assert watch.patience_s == 1200.0
    assert watch.no_output(at + 1199) == []
    assert len(watch.no_output(at + 1201)) == 1


def test_silence_ends_a_run_only_where_that_was_asked_for():
    watch, at, _ = watched([2.0] * 10, stall_timeout_s=10.0)
    assert watch.no_output(at + 9.9) == []
    (notice,) = watch.no_output(at + 10.1)
    assert notice.ends_run


def test_steps_that_take_3_times_as_long_are_said_once():
    _, _, notices = watched([2.0] * 40 + [7.0] * 40)
    assert [notice.kind for notice in notices] == ["slowing"]
    assert notices[0].message == "a step takes 7.0 s now, and took 2.0 s at first"


@pytest.mark.parametrize("durations", [[2.0] * 40 + [5.0] * 40, [0.01] * 40 + [0.1] * 40, [9.0] * 3 + [2.0] * 80])
def test_less_than_that_is_no_word_worth(durations):
    assert watched(durations)[2] == []


def test_one_slow_step_now_and_then_is_no_slowing():
    assert watched(([2.0] * 9 + [60.0]) * 10)[2] == []


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (
            EngineFault("traceback", "RuntimeError: MPS backend out of memory (MPS allocated: 18.50 GiB"),
            "out-of-memory",
        ),
        (
            EngineFault(
                "traceback",
                "NotImplementedError: The operator 'aten::x' is not currently implemented for the MPS device",
            ),
            "missing-operator",
        ),
        (
            EngineWarning("UserWarning: The operator 'aten::x' is not supported and will fall back to run on the CPU"),
            "cpu-fallback",
        ),
        (EngineFault("traceback", "OSError: [Errno 28] No space left on device"), "disk-full"),
    ],
)
def test_what_torch_says_has_a_remedy(event, kind):
    watch = FaultWatch(at=0.0)
    (notice,) = watch.handle(event, 1.0)
    assert (notice.kind, notice.message, notice.ends_run) == (kind, event.text, False)
    assert notice.remedy == remedy_for(event.text) != ""
    watch.handle(event, 2.0)
    assert watch.counts == {kind: 2}


def test_other_words_are_no_fault():
    assert FaultWatch(at=0.0).handle(EngineWarning("a warning"), 1.0) == []
    assert remedy_for("a warning") == ""
