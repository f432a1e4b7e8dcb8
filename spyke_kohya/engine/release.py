"""Which sd-scripts this project is built for, and where one is found on this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from spyke_kohya.errors import EngineError

REPOSITORY = "https://github.com/kohya-ss/sd-scripts"
RELEASE = "v0.10.1"
COMMIT = "ae72efb92babe89ff8e70f057e42db68440e8d61"
SUBMODULE = Path("third_party/sd-scripts")
SCRIPT = "train_network.py"

_CHECKOUT = Path(__file__).resolve().parents[2]
_SHA = re.compile(r"[0-9a-f]{40}")


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
        """Whether this is sd-scripts itself; the miniature, which only has its face, is not."""
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
    engine. ``SPYKE_ENGINE_PYTHON`` names its Python, else it is our own. Raises EngineError. One that
    need not exist (``must_exist``) is returned by the place where it would be.
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
    return Engine(directory.resolve(), python.absolute(), commit_of(directory))


def commit_of(directory: Path) -> str | None:
    """The commit that a git checkout is at, read from its files; None when ``directory`` is no checkout."""
    git_dir = _git_dir(directory)
    if git_dir is None:
        return None
    try:
        head = (git_dir / "HEAD").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return _resolve_ref(git_dir, head.removeprefix("ref: ")) if head.startswith("ref: ") else _sha_in(head)


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


def _git_dir(directory: Path) -> Path | None:
    dot_git = directory / ".git"
    if dot_git.is_dir():
        return dot_git
    try:  # a submodule or a worktree has a file that points at its directory
        pointer = dot_git.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return directory / pointer.removeprefix("gitdir: ") if pointer.startswith("gitdir: ") else None


def _resolve_ref(git_dir: Path, ref: str) -> str | None:
    common = git_dir / "commondir"
    homes = [git_dir, git_dir / common.read_text(encoding="utf-8").strip()] if common.is_file() else [git_dir]
    for home in homes:
        if (home / ref).is_file():
            return _sha_in((home / ref).read_text(encoding="utf-8"))
        packed = home / "packed-refs"
        if packed.is_file():
            for line in packed.read_text(encoding="utf-8").splitlines():
                if line.endswith(f" {ref}"):
                    return _sha_in(line)
    return None


def _sha_in(text: str) -> str | None:
    match = _SHA.search(text)
    return match.group() if match else None
