"""Which sd-scripts this project is built for, and where one is found on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from spyke_kohya.errors import EngineError
from spyke_kohya.process.engine_process import ask

RELEASE = "v0.10.1"
COMMIT = "ae72efb92babe89ff8e70f057e42db68440e8d61"
SUBMODULE = Path("third_party/sd-scripts")
SCRIPT = "train_network.py"

_CHECKOUT = Path(__file__).resolve().parents[2]
_GIT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Engine:
    """A directory with a ``train_network.py`` in it, the Python that runs it, and the commit if it is a checkout."""

    directory: Path
    python: Path
    commit: str | None

    @property
    def script(self) -> Path:
        return self.directory / SCRIPT

    @property
    def is_sd_scripts(self) -> bool:
        """Whether this is sd-scripts itself. The miniature has the same options and output, and is not."""
        return (self.directory / "library" / "train_util.py").is_file()

    @property
    def accelerate(self) -> Path:
        """The ``accelerate`` command that belongs to the engine's Python."""
        return self.python.parent / "accelerate"


def find_engine(
    *,
    given: Path | None,
    environment: Mapping[str, str],
    preset_engine: str | None,
    root: Path,
    own_python: Path,
    must_exist: bool = True,
) -> Engine:
    """Find the engine: ``--engine``, ``SPYKE_ENGINE``, the preset's ``[launch] engine``, or the submodule.

    The first place that is named is the only one tried: a wrong name is an error, never a reason to train with another
    engine. ``SPYKE_ENGINE_PYTHON`` names its Python, else it is our own. Raises EngineError where one is missing, but
    without ``must_exist``.
    """
    directory, named_by = _named_place(given, environment, preset_engine, root)
    if must_exist and not _is_file(directory / SCRIPT):
        raise EngineError(
            f"no sd-scripts here: {SCRIPT} is missing",
            where=f"{directory} ({named_by})",
            remedy=f"run `make engine` to fetch sd-scripts {RELEASE}, or set SPYKE_ENGINE to the directory of an "
            "sd-scripts or kohya_ss/sd-scripts that you have",
        )
    python = Path(environment.get("SPYKE_ENGINE_PYTHON") or own_python).expanduser()
    if must_exist and not _is_file(python):
        raise EngineError(
            "the engine's Python does not exist",
            where=f"{python} (SPYKE_ENGINE_PYTHON)",
            remedy="set SPYKE_ENGINE_PYTHON to the python inside the virtual environment of that sd-scripts",
        )
    return Engine(directory.resolve(), python.absolute(), commit_of(directory, environment))


def commit_of(directory: Path, environment: Mapping[str, str]) -> str | None:
    """Return the commit that a git checkout is at.

    None for what is no checkout, also for a folder inside another repository, and where there is no git.
    """
    argv = ["git", "-C", str(directory), "rev-parse", "--show-prefix", "HEAD"]
    try:
        answer = ask(argv, env=environment, cwd=directory, timeout_s=_GIT_TIMEOUT_S)
    except EngineError:
        return None
    prefix, *commit = answer.stdout.decode(errors="replace").splitlines() or [""]
    return commit[0] if answer.returncode == 0 and commit and not prefix else None


def _named_place(
    given: Path | None, environment: Mapping[str, str], preset_engine: str | None, root: Path
) -> tuple[Path, str]:
    if given is not None:
        return given.expanduser(), "--engine"
    if environment.get("SPYKE_ENGINE"):
        return Path(environment["SPYKE_ENGINE"]).expanduser(), "SPYKE_ENGINE"
    if preset_engine:
        return root / Path(preset_engine).expanduser(), "[launch] engine"
    beside_root = root / SUBMODULE
    submodule = beside_root if (beside_root / SCRIPT).is_file() else _CHECKOUT / SUBMODULE
    return submodule, "the submodule"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that may not be entered, a name that is too long
        return False
