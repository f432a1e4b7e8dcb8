"""What a run depends on, as hashes: a resumed run must go on with the same images, captions, engine and base model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spyke_kohya.dataset.scan import Scan, read_captions
from spyke_kohya.engine.command import expand_home
from spyke_kohya.engine.release import Engine
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


def identify(loaded: Loaded, found: Scan, engine: Engine, root: Path) -> dict[str, str]:
    """SHA-256 of each part. Images count by path, size in bytes and time of change, captions by their words.

    Of a base model's files, which have gigabytes, the size and the first and last megabyte count: time enough to read
    that and no more before every launch.
    """
    preset = loaded.training
    assert preset is not None
    settings = {name: value for name, value in preset.effective_options.items() if value is not None}
    base = root / str(expand_home("pretrained_model_name_or_path", settings["pretrained_model_name_or_path"]))
    return {
        "settings": _sha256([json.dumps([settings, preset.launch.target], sort_keys=True)]),
        "dataset": _sha256([json.dumps(loaded.dataset_document, sort_keys=True, default=str)]),
        "images": _sha256(_file_line(root / image.path, image.path) for _, image in found.images()),
        "captions": _sha256(json.dumps([one.image, one.text, one.problem]) for one in read_captions(found)),
        "engine": engine.commit or _sha256([_content(engine.script, whole=True)]),
        "base_model": _sha256(_content(file) for file in _files_of(base)),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    """What is not as it was, in a person's words; a part that was not recorded says nothing."""
    return [words for part, words in PARTS.items() if before.get(part) not in (None, now[part])]


def _files_of(base: Path) -> list[Path]:
    return sorted(file for file in base.rglob("*") if file.is_file()) if base.is_dir() else [base]


def _file_line(file: Path, name: str) -> str:
    try:
        stat = file.stat()
    except OSError:
        return f"{name} missing"
    return f"{name} {stat.st_size} {stat.st_mtime_ns}"


def _content(file: Path, *, whole: bool = False) -> str:
    """A file by its size and its ends, or by all of it; a name on a hub is no file, and stands for itself."""
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            digest = hashlib.sha256(stream.read() if whole else stream.read(_MB))
            if not whole and size > 2 * _MB:
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
