"""A lock says what drifted, by name; a locked training refuses to start; a recorded one can be had again."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from spyke_kohya.engine.release import Engine
from spyke_kohya.errors import PresetError
from spyke_kohya.repeat.inputs import changed
from spyke_kohya.repeat.lock import LockContext, _hashes, drift, read_lock, tree_of
from tests.commands import spyke
from tests.small_training import write_training


@pytest.fixture
def work(tmp_path, tiny_base) -> Path:
    write_training(tmp_path, tiny_base)
    assert spyke("lock", "small", cwd=tmp_path).returncode == 0
    return tmp_path


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_an_untouched_preset_is_as_locked(work):
    done = spyke("lock", "small", "--check", cwd=work)
    assert (done.returncode, done.stdout) == (0, f"as locked: {work}/presets/small.lock\n")
    assert spyke("train", "small", "--locked", "--dry-run", cwd=work).returncode == 0


def test_the_same_preset_gives_the_same_lock_byte_by_byte(work):
    before = (work / "presets/small.lock").read_bytes()
    spyke("lock", "small", cwd=work)
    assert (work / "presets/small.lock").read_bytes() == before


def test_a_lock_names_no_path_but_those_of_the_presets(work, tiny_base):
    text = (work / "presets/small.lock").read_text()
    assert str(work) not in text.replace(str(tiny_base), "")
    assert list(json.loads(text)["captions"]) == ["reg/1_creature/0.txt", "train/1_spyke/0.txt", "train/1_spyke/1.txt"]


def test_one_changed_byte_of_a_caption_stops_a_locked_training_and_is_named(work):
    change(work / "train/1_spyke/1.txt", "standing", "standinG")
    done = spyke("train", "small", "--locked", cwd=work)
    assert done.returncode == 4
    assert "train/1_spyke/1.txt  [captions.drifted]" in done.stderr
    assert not (work / "output").exists()
    assert spyke("train", "small", "--dry-run", cwd=work).returncode == 0


def test_everything_that_drifted_is_told_at_once(work):
    change(work / "presets/small.toml", "seed = 42", "seed = 43")
    change(work / "presets/small_dataset.toml", "num_repeats = 2", "num_repeats = 1")
    (work / "train/1_spyke/2.png").write_bytes((work / "train/1_spyke/0.png").read_bytes())
    (work / "train/1_spyke/2.txt").write_text("spyke, new")
    (work / "reg/1_creature/0.txt").unlink()
    done = spyke("lock", "small", "--check", cwd=work)
    told = " ".join(done.stderr.split())
    assert done.returncode == 3
    assert "[preset.drifted] train_network.seed was 42, is 43" in told
    assert "dataset preset: datasets[0].subsets[0].num_repeats was 2, is 1" in told
    assert "plan: num_train_images was 4, is 3" in told
    assert "train/1_spyke/2.png [images.drifted] this image is new since the lock" in told
    assert "reg/1_creature/0.txt [captions.drifted] this caption is gone since the lock" in told


def test_another_base_model_is_drift(work):
    lock = work / "presets/small.lock"
    locked = json.loads(lock.read_text())
    locked["base_model"]["sha256"] = "0" * 64
    lock.write_text(json.dumps(locked))
    done = spyke("lock", "small", "--check", cwd=work)
    assert (done.returncode, "base model: sha256 was" in done.stderr) == (3, True)


def test_another_package_in_the_engine_s_python_is_drift(work):
    lock = work / "presets/small.lock"
    locked = json.loads(lock.read_text())
    locked["engine"]["packages"]["torch"] = "1.0"
    lock.write_text(json.dumps(locked))
    told = " ".join(spyke("lock", "small", "--check", cwd=work).stderr.split())
    assert "[engine.drifted] torch was 1.0, is " in told


PARTS = ("preset", "dataset", "options", "engine", "base_model", "images", "captions", "plan")
WRONG_SHAPES = [
    *((part, f"{part}: Field", lambda lock, gone=part: {k: lock[k] for k in lock if k != gone}) for part in PARTS),
    ("engine true", "engine: ", lambda lock: lock | {"engine": True}),
    ("images 0", "images: ", lambda lock: lock | {"images": 0}),
    ("packages []", "engine.packages: ", lambda lock: lock | {"engine": lock["engine"] | {"packages": []}}),
    ("a list", "not complete", lambda lock: []),
    ("another version", "lock_version: ", lambda lock: lock | {"lock_version": 2}),
]  # fmt: skip


def test_a_lock_of_the_wrong_shape_is_refused_with_its_part_by_name(work):
    path = work / "presets/small.lock"
    whole = json.loads(path.read_text())
    for name, words, change_lock in WRONG_SHAPES:
        path.write_text(json.dumps(change_lock(whole)))
        with pytest.raises(PresetError) as fault:
            read_lock(path)
        assert (name, words in fault.value.what, "spyke-kohya lock PRESET" in fault.value.remedy) == (name, True, True)
    for content in (b"", b"{", b"[" * 100_000, b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(PresetError, match="can't be read"):
            read_lock(path)
    done = spyke("train", "small", "--locked", cwd=work)
    assert (done.returncode, "spyke-kohya lock PRESET" in done.stderr) == (3, True)


def test_options_that_were_changed_in_the_lock_are_drift(work):
    lock = work / "presets/small.lock"
    locked = json.loads(lock.read_text())
    locked["options"] = [option for option in locked["options"] if "=" in option] + ["--lowram"]
    lock.write_text(json.dumps(locked))
    done = spyke("lock", "small", "--check", cwd=work)
    assert (done.returncode, "[preset.drifted] --lowram was " in " ".join(done.stderr.split())) == (3, True)


def test_a_picture_whose_name_is_no_text_can_be_locked(work):
    for suffix in (b".png", b".txt"):
        source = os.fsencode(work / "train/1_spyke/0") + suffix
        Path(os.fsdecode(os.fsencode(work / "train/1_spyke") + b"/\xff" + suffix)).write_bytes(
            Path(os.fsdecode(source)).read_bytes()
        )
    done = spyke("lock", "small", cwd=work)
    assert done.returncode == 0, done.stderr
    assert spyke("lock", "small", "--check", cwd=work).returncode == 0


def test_a_lock_on_a_full_disk_is_the_old_one_and_says_so(work):
    before = (work / "presets/small.lock").read_bytes()
    change(work / "presets/small.toml", "seed = 42", "seed = 43")
    done = spyke("lock", "small", cwd=work, most_bytes=1000)
    assert (done.returncode, "the lock can't be written" in done.stderr) == (3, True)
    assert (work / "presets/small.lock").read_bytes() == before


def test_the_words_for_a_changed_value_are_those_for_an_absent_one_too():
    found = changed({"a": {"b": 1, "c": [1, {"d": "x"}]}, "e": None}, {"a": {"b": 2, "c": [1, {"d": ""}]}, "f": True})
    assert list(map(str, found)) == ["a.b was 1, is 2", 'a.c[1].d was x, is ""', "f was not there, is true"]
    assert changed({"a": {}}, {"a": {}}) == []


def test_without_a_lock_a_locked_training_says_how_to_make_one(work):
    (work / "presets/small.lock").unlink()
    done = spyke("train", "small", "--locked", cwd=work)
    assert done.returncode == 3
    assert "spyke-kohya lock PRESET" in done.stderr


def test_many_drifted_files_are_counted_and_not_all_listed():
    engine = {"commit": None, "tree": "clean", "packages": {}}
    values = {
        "engine": engine,
        "preset": {},
        "dataset": {},
        "base_model": {},
        "plan": {},
        "captions": {},
        "options": [],
    }
    found = drift(values | {"images": {}}, values | {"images": {f"{n:05d}.png": "x" for n in range(5000)}}, "x.lock")
    assert len(found) == 11
    assert found[-1].message == "this image is new since the lock, as are 4989 more"


def test_a_changed_engine_tree_is_seen(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    (tmp_path / "train_network.py").write_text("pass\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    engine = Engine(tmp_path, Path("python"), "a" * 40)
    assert tree_of(engine, {}) == "clean"
    (tmp_path / "train_network.py").write_text("print()\n")
    assert tree_of(engine, {}) == "changed"
    assert tree_of(Engine(tmp_path, Path("python"), None), {}) == "unknown"


def test_ten_thousand_images_are_hashed_in_time(tmp_path):
    for number in range(10_000):
        (tmp_path / f"{number:05d}.png").write_bytes(number.to_bytes(4, "little") * 5000)
    started = time.perf_counter()
    hashes = _hashes((str(path) for path in tmp_path.iterdir()), LockContext(tmp_path, Path.home(), {}))
    assert len(set(hashes.values())) == 10_000
    assert time.perf_counter() - started < 10


def test_a_recorded_run_is_repeated_from_its_own_record(work):
    first = spyke("train", "small", "--locked", "--set", "train_network.max_train_steps=8", cwd=work)
    assert first.returncode == 3, "--set is drift too"
    assert spyke("train", "small", "--locked", cwd=work).returncode == 0
    (run,) = (work / "output/small/runs").iterdir()
    losses = (run / "losses.csv").read_text()
    for preset in (work / "presets").glob("*.toml"):
        preset.unlink()
    again = spyke("train", "--from", run, cwd=work)
    assert again.returncode == 0, again.stderr
    newest = max((work / "output/small/runs").iterdir())
    assert newest != run
    assert (newest / "losses.csv").read_text() == losses
    change(work / "train/1_spyke/0.txt", "spyke", "Spyke")
    refused = spyke("train", "--from", run, cwd=work)
    assert (refused.returncode, "train/1_spyke/0.txt" in refused.stderr) == (4, True)


def test_a_preset_or_a_run_is_named_and_not_both(work):
    assert spyke("train", cwd=work).returncode == 2
    assert spyke("train", "small", "--from", work, cwd=work).returncode == 2
    assert spyke("train", "--from", work, cwd=work).returncode == 3
