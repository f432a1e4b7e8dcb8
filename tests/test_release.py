"""Where the engine is found, in which order, and which commit it is at: on real git repositories."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from spyke_kohya.audit.expectations import check_engine
from spyke_kohya.engine.release import COMMIT, Engine, commit_of, find_engine
from spyke_kohya.errors import EngineError

PYTHON = Path(sys.executable)
ENVIRONMENT = dict(os.environ)
WHO = ["-c", "user.name=Spyke", "-c", "user.email=spyke@example.org", "-c", "protocol.file.allow=always"]


def git(directory: Path, *words: str) -> str:
    done = subprocess.run(["git", *WHO, *words], cwd=directory, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def engine_at(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "train_network.py").write_text("")
    return directory


@pytest.fixture
def checkout(tmp_path):
    directory = engine_at(tmp_path / "sd-scripts")
    git(directory, "init", "--quiet", "--initial-branch=main")
    git(directory, "add", ".")
    git(directory, "commit", "--quiet", "--message=One")
    return directory


def found(tmp_path, *, given=None, environment=None, preset_engine=None):
    return find_engine(
        given=given, environment=environment or {}, preset_engine=preset_engine, root=tmp_path, own_python=PYTHON
    )


def test_the_order_is_flag_environment_preset_submodule(tmp_path):
    flag, variable, preset = (engine_at(tmp_path / name) for name in ("flag", "variable", "preset"))
    submodule = engine_at(tmp_path / "third_party" / "sd-scripts")
    environment = {"SPYKE_ENGINE": str(variable)}
    assert found(tmp_path, given=flag, environment=environment, preset_engine="preset").directory == flag
    assert found(tmp_path, environment=environment, preset_engine="preset").directory == variable
    assert found(tmp_path, preset_engine="preset").directory == preset
    assert found(tmp_path).directory == submodule


def test_an_empty_variable_names_nothing(tmp_path):
    preset = engine_at(tmp_path / "preset")
    environment = {"SPYKE_ENGINE": "", "SPYKE_ENGINE_PYTHON": ""}
    engine = found(tmp_path, environment=environment, preset_engine="preset")
    assert (engine.directory, engine.python) == (preset, PYTHON)


@pytest.mark.parametrize(
    ("named", "by"),
    [
        ({"given": Path("wrong")}, "--engine"),
        ({"environment": {"SPYKE_ENGINE": "wrong"}}, "SPYKE_ENGINE"),
        ({"preset_engine": "wrong"}, "[launch] engine"),
        ({"given": Path("x" * 5000)}, "--engine"),
    ],
)
def test_a_wrong_name_is_an_error_and_never_another_engine(tmp_path, named, by):
    engine_at(tmp_path / "third_party" / "sd-scripts")
    with pytest.raises(EngineError) as caught:
        found(tmp_path, **named)
    assert caught.value.where.endswith(f"({by})")
    assert "make engine" in caught.value.remedy
    assert "SPYKE_ENGINE" in caught.value.remedy


def test_without_any_engine_the_submodule_is_missed(tmp_path, monkeypatch):
    monkeypatch.setattr("spyke_kohya.engine.release._CHECKOUT", tmp_path / "elsewhere")
    with pytest.raises(EngineError, match=r"train_network\.py is missing") as caught:
        found(tmp_path)
    assert caught.value.where.endswith("third_party/sd-scripts (the submodule)")


def test_the_python_is_ours_unless_another_is_named(tmp_path):
    engine_at(tmp_path / "e")
    other = tmp_path / "venv" / "bin" / "python"
    other.parent.mkdir(parents=True)
    other.symlink_to(PYTHON)
    assert found(tmp_path, preset_engine="e").python == PYTHON
    engine = found(tmp_path, preset_engine="e", environment={"SPYKE_ENGINE_PYTHON": str(other)})
    # a virtual environment's python is a link: followed, it would be another environment
    assert engine.python == other
    assert engine.accelerate == other.parent / "accelerate"


def test_a_python_that_is_not_there_is_an_error(tmp_path):
    engine_at(tmp_path / "e")
    with pytest.raises(EngineError, match="Python does not exist") as caught:
        found(tmp_path, preset_engine="e", environment={"SPYKE_ENGINE_PYTHON": str(tmp_path / "nope")})
    assert "SPYKE_ENGINE_PYTHON" in caught.value.remedy


def test_sd_scripts_is_told_from_what_has_its_face(tmp_path):
    directory = engine_at(tmp_path / "e")
    assert not found(tmp_path, preset_engine="e").is_sd_scripts
    (directory / "library").mkdir()
    (directory / "library" / "train_util.py").write_text("")
    assert found(tmp_path, preset_engine="e").is_sd_scripts


def test_another_commit_of_sd_scripts_is_a_warning(tmp_path):
    library = tmp_path / "library"
    library.mkdir()
    (library / "train_util.py").touch()
    engine = Engine(tmp_path, Path("python"), "b" * 40)
    (finding,) = check_engine(engine)
    assert (finding.code, finding.severity) == ("engine.other-commit", "warning")
    assert [check_engine(replace(engine, commit=commit)) for commit in (COMMIT, None)] == [[], []]
    (library / "train_util.py").unlink()
    assert check_engine(engine) == []


def test_the_pin_is_the_submodule_s():
    root = Path(__file__).parents[1]
    assert git(root, "ls-files", "--stage", "third_party/sd-scripts").split()[:2] == ["160000", COMMIT]


def test_the_commit_of_a_branch(checkout):
    assert commit_of(checkout, ENVIRONMENT) == git(checkout, "rev-parse", "HEAD")


def test_the_commit_of_a_detached_head(checkout):
    first = git(checkout, "rev-parse", "HEAD")
    git(checkout, "commit", "--quiet", "--allow-empty", "--message=Two")
    git(checkout, "checkout", "--quiet", "--detach", "HEAD~1")
    assert commit_of(checkout, ENVIRONMENT) == first


def test_the_commit_of_packed_refs(checkout):
    git(checkout, "branch", "other/main")
    git(checkout, "pack-refs", "--all")
    assert not (checkout / ".git" / "refs" / "heads" / "main").exists()
    assert commit_of(checkout, ENVIRONMENT) == git(checkout, "rev-parse", "HEAD")


def test_a_loose_ref_is_newer_than_a_packed_one(checkout):
    git(checkout, "pack-refs", "--all")
    git(checkout, "commit", "--quiet", "--allow-empty", "--message=Two")
    assert commit_of(checkout, ENVIRONMENT) == git(checkout, "rev-parse", "HEAD")


@pytest.mark.parametrize("packed", [False, True])
def test_the_commit_of_a_worktree(checkout, tmp_path, packed):
    git(checkout, "worktree", "add", "--quiet", "-b", "side", str(tmp_path / "side"))
    git(tmp_path / "side", "commit", "--quiet", "--allow-empty", "--message=Two")
    if packed:
        git(checkout, "pack-refs", "--all")
    assert (
        commit_of(tmp_path / "side", ENVIRONMENT)
        == git(tmp_path / "side", "rev-parse", "HEAD")
        != commit_of(checkout, ENVIRONMENT)
    )


def test_the_commit_of_a_submodule(checkout, tmp_path):
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "--quiet")
    git(outer, "submodule", "--quiet", "add", str(checkout), "third_party/sd-scripts")
    inner = outer / "third_party" / "sd-scripts"
    assert (inner / ".git").is_file()
    assert commit_of(inner, ENVIRONMENT) == commit_of(checkout, ENVIRONMENT) is not None


def test_without_git_there_is_no_commit(tmp_path):
    assert commit_of(tmp_path, ENVIRONMENT) is None
    (tmp_path / ".git").write_text("not a pointer")
    assert commit_of(tmp_path, ENVIRONMENT) is None


def test_a_folder_inside_another_repository_is_no_checkout_of_sd_scripts(checkout):
    inside = checkout / "kohya_ss"
    inside.mkdir()
    assert commit_of(inside, ENVIRONMENT) is None


def test_where_there_is_no_git_no_commit_is_known(checkout, tmp_path):
    assert commit_of(checkout, {"PATH": str(tmp_path)}) is None


def test_a_branch_without_a_commit_has_none(tmp_path):
    git(tmp_path, "init", "--quiet")
    assert commit_of(tmp_path, ENVIRONMENT) is None
