"""What decides a training, as hashes, and what of it changed: for a resumed run, a locked and a repeated one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spyke_kohya.dataset.scan import Scan, read_captions
from spyke_kohya.engine.command import path_option
from spyke_kohya.engine.release import Engine
from spyke_kohya.files import sha256_of
from spyke_kohya.presets.loading import Loaded

_MB = 1 << 20

# Each part of an identity, and what a person calls it.
PARTS: Mapping[str, str] = {
    "settings": "the preset",
    "dataset": "the dataset preset",
    "images": "the images",
    "captions": "the captions",
    "engine": "sd-scripts",
    "base_model": "the base model",
}


@dataclass(frozen=True)
class Difference:
    """A value by its dotted key, in which two trainings differ; None where it isn't set."""

    key: str
    first: object
    second: object

    def __str__(self) -> str:
        return f"{self.key} was {_shown(self.first)}, is {_shown(self.second)}"


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Return all in which two nested documents differ, by dotted key: ``train_network.seed``."""
    first, second = dict(_flattened(before)), dict(_flattened(now))
    keys = sorted(first.keys() | second.keys())
    return [Difference(key, first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)]


def identify(loaded: Loaded, found: Scan, engine: Engine, root: Path) -> dict[str, str]:
    """Return the SHA-256 of each part, found quickly: this is done before every launch.

    Images count by path, size in bytes and time of change, captions by their words. Base models have gigabytes, so only
    the size and the first and last megabyte of their files count.
    """
    preset = loaded.training
    assert preset is not None
    settings = {name: value for name, value in preset.effective_options.items() if value is not None}
    base = path_option(settings, "pretrained_model_name_or_path", root)
    return {
        "settings": _sha256([json.dumps([settings, preset.launch.target], sort_keys=True)]),
        "dataset": _sha256([json.dumps(loaded.dataset_document, sort_keys=True, default=str)]),
        "images": _sha256(_stamp(root / image.path, image.path) for _, image in found.images()),
        "captions": _sha256(json.dumps([one.image, one.text, one.problem]) for one in read_captions(found)),
        "engine": engine.commit
        or _sha256([f"{engine.script.name} {engine.script.stat().st_size} {sha256_of(engine.script)}"]),
        "base_model": _sha256([_ends(file) for file in files_of(base)] or [str(base)]),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    """Name the parts that have changed; a part that was not recorded does not count."""
    return [words for part, words in PARTS.items() if before.get(part) not in (None, now[part])]


def engine_parts(engine: Mapping[str, Any]) -> dict[str, Any]:
    """Return an engine's parts by their names for a person; a run's record has no tree."""
    tree = {"the tree of sd-scripts": engine["tree"]} if "tree" in engine else {}
    return {"sd-scripts": engine.get("commit"), **tree, **engine.get("packages", {})}


def files_of(base: Path) -> list[Path]:
    """Return a base model's files: the file itself, or all below a diffusers folder; none for a name on a hub."""
    return sorted(file for file in (base.rglob("*") if base.is_dir() else [base]) if file.is_file())


def _flattened(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flattened(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for index, item in enumerate(value):
            yield from _flattened(item, f"{key}[{index}]")
    else:
        yield key, value


def _shown(value: object) -> str:
    if value is None:
        return "not there"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _stamp(file: Path, name: str) -> str:
    try:
        stat = file.stat()
    except OSError:
        return f"{name} missing"
    return f"{name} {stat.st_size} {stat.st_mtime_ns}"


def _ends(file: Path) -> str:
    """Return a file's name, size and the hash of its first and last megabyte; its path where it can't be read."""
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            digest = hashlib.sha256(stream.read(_MB))
            if size > 2 * _MB:
                stream.seek(-_MB, 2)
                digest.update(stream.read())
    except OSError:
        return str(file)
    return f"{file.name} {size} {digest.hexdigest()}"


def _sha256(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode(errors="surrogatepass") + b"\n")
    return digest.hexdigest()
