"""A lock: everything that decides how a training runs, as hashes and values, so that a later one can be the same.

It compares; what a preset means, what is on the disk and which engine there is are left to their own rooms.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spyke_kohya.dataset.scan import Scan, read_captions
from spyke_kohya.engine.command import expand_home
from spyke_kohya.engine.options import option_arguments
from spyke_kohya.engine.packages import recorded_versions
from spyke_kohya.engine.release import Engine
from spyke_kohya.errors import EngineError, PresetError
from spyke_kohya.findings import Finding, error
from spyke_kohya.plan.plan import Plan
from spyke_kohya.presets.loading import Loaded
from spyke_kohya.process.engine_process import ask

LOCK_VERSION = 1
_SHOWN = 10
_THREADS = 8
_NOT_TRAINING = {"dataset", "deploy", "evaluate", "samples"}  # the dataset preset stands beside, whole

Tree = Literal["clean", "changed", "unknown"]
Document = dict[str, Any]


@dataclass(frozen=True)
class Surroundings:
    """What a lock is made in: ``inherited`` is the environment, ``home`` is written as ``~``."""

    root: Path
    home: Path
    inherited: Mapping[str, str]


def lock_path(loaded: Loaded) -> Path:
    """``presets/NAME.lock`` beside ``presets/NAME.toml``."""
    return loaded.path.with_suffix(".lock")


def make_lock(loaded: Loaded, plan: Plan, found: Scan, engine: Engine, around: Surroundings) -> Document:
    """The lock of a training preset without faults: no path in it but those that the presets name."""
    preset = loaded.training
    assert preset is not None
    return {
        "lock_version": LOCK_VERSION,
        "preset": preset.model_dump(exclude_none=True, exclude=_NOT_TRAINING),
        "dataset": loaded.dataset_document,
        "options": option_arguments(preset.options),
        "engine": {
            "commit": engine.commit,
            "tree": tree_of(engine, around.inherited),
            "packages": recorded_versions(engine.python),
        },
        "base_model": _base_hash(str(preset.options["pretrained_model_name_or_path"]), around.root),
        "images": _hashes(_image_paths(found), around),
        "captions": _hashes(_caption_paths(found), around),
        "plan": plan.to_dict(),
    }


def lock_text(lock: Document) -> str:
    """The lock in its one form: the same lock is the same text."""
    return json.dumps(lock, indent=2, sort_keys=True, ensure_ascii=False, default=str) + "\n"


def read_lock(path: Path) -> Document:
    """A lock that was written before. Raises PresetError."""
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as fault:
        remedy = "lock the preset: spyke-kohya lock PRESET"
        raise PresetError("there is no lock", where=str(path), remedy=remedy) from fault
    except ValueError as fault:
        raise PresetError(
            f"the lock can't be read: {fault}", where=str(path), remedy="lock the preset again"
        ) from fault
    if not isinstance(lock, dict) or lock.get("lock_version") != LOCK_VERSION:
        raise PresetError("this is no lock of this version", where=str(path), remedy="lock the preset again")
    return lock


def drift(locked: Document, now: Document, where: str) -> list[Finding]:
    """All that differs from the lock, each an error; empty where a training would be the same."""
    now = json.loads(lock_text(now))  # as it would be read back
    remedy = "undo the change, or lock the preset again"
    return [
        *(error("preset.drifted", where, told, remedy) for told in _value_drift(locked, now)),
        *(error("engine.drifted", where, told, remedy) for told in _engine_drift(locked["engine"], now["engine"])),
        *_file_drift("images.drifted", "image", locked["images"], now["images"], remedy),
        *_file_drift("captions.drifted", "caption", locked["captions"], now["captions"], remedy),
    ]


def tree_of(engine: Engine, inherited: Mapping[str, str]) -> Tree:
    """Whether the engine's files are those of its commit; "unknown" where git can't tell."""
    if engine.commit is None:
        return "unknown"
    argv = ["git", "-C", str(engine.directory), "status", "--porcelain", "--untracked-files=no"]
    try:
        answer = ask(argv, env=inherited, cwd=engine.directory, timeout_s=30.0)
    except EngineError:  # there is no git
        return "unknown"
    if answer.returncode:
        return "unknown"
    return "changed" if answer.stdout.strip() else "clean"


def sha256_of(path: Path) -> str:
    """The hash of a file, or why there is none."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as fault:
        return f"unreadable: {fault.strerror}"


def _image_paths(found: Scan) -> Iterator[str]:
    return (image.path for _, image in found.images())


def _caption_paths(found: Scan) -> Iterator[str]:
    return (caption.file for caption in read_captions(found) if caption.file)


def _hashes(paths: Iterator[str], around: Surroundings) -> dict[str, str]:
    listed = sorted(set(paths))
    with ThreadPoolExecutor(_THREADS) as pool:
        hashes = pool.map(lambda path: sha256_of(around.root / path), listed)
    return dict(zip((_portable(path, around) for path in listed), hashes, strict=True))


def _portable(path: str, around: Surroundings) -> str:
    """A path as a preset would name it, whoever's machine it is on."""
    for base, shown in ((around.root, ""), (around.home, "~/")):
        if Path(path).is_relative_to(base):
            return f"{shown}{Path(path).relative_to(base)}"
    return path


def _base_hash(name: str, root: Path) -> dict[str, str]:
    """A file by its content, a diffusers directory by its files'; a name on a hub stands for itself."""
    path = root / str(expand_home("pretrained_model_name_or_path", name))
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        with ThreadPoolExecutor(_THREADS) as pool:
            hashes = zip(files, pool.map(sha256_of, files), strict=True)
            lines = [f"{file.relative_to(path)} {digest}\n" for file, digest in hashes]
        return {"name": name, "sha256": hashlib.sha256("".join(lines).encode()).hexdigest()}
    return {"name": name, "sha256": sha256_of(path) if path.is_file() else "not a local file"}


def _value_drift(locked: Document, now: Document) -> Iterator[str]:
    for part, told in (
        ("preset", ""),
        ("dataset", "dataset preset: "),
        ("base_model", "base model: "),
        ("plan", "plan: "),
    ):
        before, after = dict(flattened(locked[part])), dict(flattened(now[part]))
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                yield f"{told}{key} was {_shown(before, key)}, is {_shown(after, key)}"


def _engine_drift(locked: Document, now: Document) -> Iterator[str]:
    if locked["commit"] != now["commit"]:
        yield f"sd-scripts was at {locked['commit']}, is at {now['commit']}"
    if locked["tree"] != now["tree"]:
        yield f"sd-scripts' files were {locked['tree']}, are {now['tree']} against its commit"
    before, after = locked["packages"], now["packages"]
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            yield f"{name} was {before.get(name, 'not installed')}, is {after.get(name, 'not installed')}"


def _file_drift(
    code: str, noun: str, locked: Mapping[str, str], now: Mapping[str, str], remedy: str
) -> Iterator[Finding]:
    kinds: tuple[tuple[str, Callable[[str], bool]], ...] = (
        ("changed", lambda path: path in locked and path in now and locked[path] != now[path]),
        ("is gone", lambda path: path not in now),
        ("is new", lambda path: path not in locked),
    )
    for told, is_so in kinds:
        paths = [path for path in sorted(locked.keys() | now.keys()) if is_so(path)]
        for path in paths[:_SHOWN]:
            yield error(code, path, f"this {noun} {told} since the lock", remedy)
        if len(paths) > _SHOWN:
            yield error(
                code,
                paths[_SHOWN],
                f"this {noun} {told} since the lock, as are {len(paths) - _SHOWN - 1} more",
                remedy,
            )


def flattened(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """A nested value as dotted keys and plain values: ``train_network.seed`` and 42."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from flattened(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for index, item in enumerate(value):
            yield from flattened(item, f"{key}[{index}]")
    else:
        yield key, value


def _shown(values: Mapping[str, object], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "not set"
