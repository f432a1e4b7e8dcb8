"""A run that is followed from another terminal shows what the run itself showed."""

from __future__ import annotations

import pytest
from workplace import make_workplace

from spyke_kohya.engine.events import CheckpointAnnounced, CheckpointRemoved, Step
from spyke_kohya.record.rundir import RunDirectory
from spyke_kohya.run.watch import follow


@pytest.fixture
def resumed(tmp_path):
    """3 epochs of 8 steps: killed at step 12, resumed from step 8 on, which sd-scripts calls step 0."""
    place = make_workplace(tmp_path, images=1)
    place.change("tiny", train_network={"max_train_epochs": 3}, expect={"total_steps": 24})
    assert place.spyke("train", "tiny", "--json", FAKE_SCENARIO="killed", FAKE_AT="12").returncode
    done = place.spyke("train", "tiny", "--json", "--resume")
    assert done.returncode == 0, done.stderr
    return RunDirectory(max((place.output / "runs").iterdir()))


def test_a_resumed_run_is_watched_by_its_true_steps_and_names(resumed):
    """It showed sd-scripts' own numbers, which begin at 1 again, and the names in the run's own folder."""
    seen = list(follow(resumed, lambda: None))
    assert [event.step for event, _ in seen if isinstance(event, Step)] == list(range(9, 25))
    saved = {event.path: event.step for event, _ in seen if isinstance(event, CheckpointAnnounced)}
    assert saved == {
        "tiny-step00000013.safetensors": 13,
        "tiny-000002.safetensors": 16,
        "tiny-step00000018.safetensors": 18,
        "tiny-step00000023.safetensors": 23,
        "tiny.safetensors": 24,
    }
    removed = [event.path for event, _ in seen if isinstance(event, CheckpointRemoved)]
    _, progress = seen[-1]
    assert progress.step.step == 24
    assert len(progress.checkpoints) == len(saved) - len(removed)
