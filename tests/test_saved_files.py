"""What a run has saved is what it wrote itself, by its true name, as long as the engine keeps it."""

from datetime import datetime

import pytest
from workplace import FAKES, make_workplace, write_base_model

from spyke_kohya.audit.examine import examine
from spyke_kohya.engine.events import CheckpointAnnounced, CheckpointRemoved, EpochStarted
from spyke_kohya.engine.release import Engine
from spyke_kohya.presets.loading import load
from spyke_kohya.record.rundir import RunDirectory
from spyke_kohya.run.launch import Segment, prepare_launch
from spyke_kohya.run.saved_files import SavedFiles


@pytest.fixture
def place(tmp_path):
    return make_workplace(tmp_path, images=1)


def launch_of(place, segment=None):
    place.output.mkdir(exist_ok=True)
    examined = examine(load("tiny", place.root), place.root)
    engine = Engine(FAKES / "engine", place.root / "venv/bin/python", None)
    now = datetime(2026, 2, 20, 10, 15, 30)
    return prepare_launch(
        examined.loaded, examined.plan, engine, root=place.root, now=now, inherited={}, segment=segment
    )


def test_what_the_engine_removes_loses_its_true_name_too(place):
    """save_last_n_steps in a resumed run: the file has two names until the end."""
    earlier = RunDirectory(place.output / "runs" / "earlier")
    launch = launch_of(place, Segment(earlier, earlier.path / "state", epoch=1, step=8, steps_lost=0))
    launch.engine_output_dir.mkdir(parents=True)
    own = write_base_model(launch.engine_output_dir / "tiny-step00000002.safetensors")
    saved = SavedFiles(launch)
    own.touch()
    assert not saved.handle(CheckpointAnnounced(str(own), 2))
    write_base_model(own, "again.lora_down.weight")
    assert saved.handle(EpochStarted(2, 2))
    true = place.output / "tiny-step00000010.safetensors"
    assert [one.file for one in saved.checkpoints] == [true.name]
    assert true.exists()
    own.unlink()
    assert saved.handle(CheckpointRemoved(str(own)))
    assert saved.checkpoints == []
    assert not true.exists()


def test_a_file_that_stood_there_before_is_none_of_the_run(place):
    launch = launch_of(place)
    file = write_base_model(place.output / "tiny-step00000005.safetensors")
    saved = SavedFiles(launch)
    saved.handle(CheckpointAnnounced(str(file), 5))  # and the engine ends before it has written it
    assert not saved.end()
    assert saved.checkpoints == []
    file.unlink()
    write_base_model(file, "another.lora_down.weight")
    assert saved.end()
    assert [(one.step, one.file) for one in saved.checkpoints] == [(5, file.name)]
