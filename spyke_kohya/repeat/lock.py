"""A lock: everything that decides how a training runs, as hashes and values, so that a later one can be the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from spyke_kohya.dataset.scan import Scan, read_captions
from spyke_kohya.engine.command import path_option
from spyke_kohya.engine.options import option_arguments
from spyke_kohya.engine.packages import recorded_versions
from spyke_kohya.engine.release import Engine
from spyke_kohya.errors import EngineError, PresetError
from spyke_kohya.files import sha256_of, write_whole
from spyke_kohya.findings import Finding, error
from spyke_kohya.plan.plan import Plan
from spyke_kohya.presets.loading import Loaded
from spyke_kohya.process.engine_process import ask
from spyke_kohya.repeat.inputs import Difference, changed, engine_parts, files_of

LOCK_VERSION = 1
_SHOWN = 10
_THREADS = 8
_NOT_TRAINING = {"dataset", "deploy", "evaluate", "samples"}  # the dataset preset stands beside, whole

Tree = Literal["clean", "changed", "unknown"]
Document = dict[str, Any]


class _Engine(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    commit: str | None
    tree: str
    packages: dict[str, str]


class _Lock(BaseModel):
    """The shape of a lock, which a person or a merge may have changed."""

    model_config = ConfigDict(strict=True, frozen=True)

    lock_version: Literal[1]
    preset: dict[str, Any]
    dataset: dict[str, Any]
    options: list[str]
    engine: _Engine
    base_model: dict[str, str]
    images: dict[str, str]
    captions: dict[str, str]
    plan: dict[str, Any]


@dataclass(frozen=True)
class LockContext:
    """Where a lock is made: ``inherited`` is the environment, ``home`` is written as ``~``."""

    root: Path
    home: Path
    inherited: Mapping[str, str]


def lock_path(loaded: Loaded) -> Path:
    """Return ``presets/NAME.lock`` of ``presets/NAME.toml``."""
    return loaded.path.with_suffix(".lock")


def make_lock(loaded: Loaded, plan: Plan, found: Scan, engine: Engine, around: LockContext) -> Document:
    """Return the lock of a training preset without faults. It holds no paths but those that the presets name."""
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
        "base_model": _base_hash(preset.options, around.root),
        "images": _hashes((image.path for _, image in found.images()), around),
        "captions": _hashes((caption.file for caption in read_captions(found) if caption.file), around),
        "plan": plan.to_dict(),
    }


def lock_text(lock: Document) -> str:
    """Return the lock in its one form: the same lock is the same text. Names that are no UTF-8 are escaped."""
    text = json.dumps(lock, indent=2, sort_keys=True, ensure_ascii=False, default=str) + "\n"
    return text.encode(errors="backslashreplace").decode()


def write_lock(path: Path, lock: Document) -> None:
    """Write the lock, all of it or nothing. Raises PresetError."""
    try:
        write_whole(path, lock_text(lock))
    except OSError as fault:
        remedy = "make room, or give yourself the right to write there"
        raise PresetError(f"the lock can't be written: {fault.strerror}", where=str(path), remedy=remedy) from fault


def read_lock(path: Path) -> Document:
    """Read a lock that was written before. Raises PresetError where a part of it is missing or of another type."""
    remedy = "lock the preset: spyke-kohya lock PRESET"
    try:
        lock: Document = json.loads(path.read_bytes())
        _Lock.model_validate(lock)
    except FileNotFoundError as fault:
        raise PresetError("there is no lock", where=str(path), remedy=remedy) from fault
    except ValidationError as fault:
        faults = (f"{'.'.join(map(str, one['loc'])) or 'all of it'}: {one['msg']}" for one in fault.errors())
        raise PresetError(f"this lock is not complete: {'; '.join(faults)}", where=str(path), remedy=remedy) from fault
    except (OSError, ValueError, RecursionError) as fault:
        raise PresetError(f"the lock can't be read: {fault}", where=str(path), remedy=remedy) from fault
    return lock


def drift(locked: Document, now: Document, where: str) -> list[Finding]:
    """Return each difference from the lock as an error; none where a training would be the same."""
    now = json.loads(lock_text(now))  # as it would be read back
    remedy = "undo the change, or lock the preset again"
    parts = (("preset", ""), ("dataset", "dataset preset: "), ("base_model", "base model: "), ("plan", "plan: "))
    values = [f"{prefix}{one}" for part, prefix in parts for one in changed(locked[part], now[part])]
    engine = changed(engine_parts(locked["engine"]), engine_parts(now["engine"]))
    # the preset's values become the options: one of them alone differs where the lock itself was changed
    options = [] if values else changed(_by_name(locked["options"]), _by_name(now["options"]))
    return [
        *(error("preset.drifted", where, words, remedy) for words in (*values, *map(str, options))),
        *(error("engine.drifted", where, str(one), remedy) for one in engine),
        *_file_drift("images.drifted", "image", changed(locked["images"], now["images"]), remedy),
        *_file_drift("captions.drifted", "caption", changed(locked["captions"], now["captions"]), remedy),
    ]


def tree_of(engine: Engine, inherited: Mapping[str, str]) -> Tree:
    """Return whether the engine's files are those of its commit; "unknown" where git can't be asked."""
    argv = ["git", "-C", str(engine.directory), "status", "--porcelain", "--untracked-files=no"]
    with suppress(EngineError):  # there is no git
        if engine.commit and not (answer := ask(argv, env=inherited, cwd=engine.directory, timeout_s=30.0)).returncode:
            return "changed" if answer.stdout.strip() else "clean"
    return "unknown"


def _hashes(paths: Iterator[str], around: LockContext) -> dict[str, str]:
    listed = sorted(set(paths))
    hashes = _hash_all(around.root / path for path in listed)
    return dict(zip((_portable(path, around) for path in listed), hashes, strict=True))


def _hash_all(files: Iterable[Path]) -> list[str]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_hash, files))


def _hash(file: Path) -> str:
    try:
        return sha256_of(file)
    except OSError as fault:
        return f"unreadable: {fault.strerror}"


def _portable(path: str, around: LockContext) -> str:
    """Return a path as a preset would name it, on any machine."""
    for base, shown in ((around.root, ""), (around.home, "~/")):
        if Path(path).is_relative_to(base):
            return f"{shown}{Path(path).relative_to(base)}"
    return path


def _base_hash(options: Mapping[str, Any], root: Path) -> dict[str, str]:
    """Return the hash of a file, or of the names and hashes of a diffusers folder's files."""
    base = path_option(options, "pretrained_model_name_or_path", root)
    files = files_of(base)
    hashes = _hash_all(files)
    if base.is_dir():
        lines = [f"{file.relative_to(base)} {digest}\n" for file, digest in zip(files, hashes, strict=True)]
        hashes = [hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()]
    name = str(options["pretrained_model_name_or_path"])
    return {"name": name, "sha256": hashes[0] if hashes else "not a local file"}


def _by_name(options: list[str]) -> Document:
    return dict(option.partition("=")[::2] for option in options)


def _file_drift(code: str, noun: str, found: list[Difference], remedy: str) -> Iterator[Finding]:
    by_kind: dict[str, list[str]] = {"changed": [], "is gone": [], "is new": []}
    for one in found:
        by_kind["is new" if one.first is None else "is gone" if one.second is None else "changed"].append(one.key)
    for kind, paths in by_kind.items():
        more = len(paths) - _SHOWN - 1
        for place, path in enumerate(paths[: _SHOWN + 1]):
            others = f", as are {more} more" if place == _SHOWN and more else ""
            yield error(code, path, f"this {noun} {kind} since the lock{others}", remedy)
