"""What earlier audits saw of image files, kept so that an unchanged folder isn't decoded again.

An entry counts only for the same path, size and time of change to the nanosecond; anything else is looked at anew.
"""

# Paths are strings here, as in the scan.
# ruff: noqa: PTH100, PTH116, PTH119, PTH120
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from spyke_kohya.audit.duplicates import Alike, alike
from spyke_kohya.audit.pictures import Listen, Picture, Pictures

_FORMAT = 1
_ANSWERS = 16
# What reading a cache raises that isn't whole, or isn't one
_NO_CACHE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
_Stamp = tuple[int, int]


@dataclass(frozen=True)
class PictureCache:
    """One file a folder of images, under ``directory``; None keeps nothing."""

    directory: Path | None

    def look(self, paths: Iterable[str], begin: Callable[[int], Listen]) -> Pictures:
        """The picture of every path. ``begin`` is told how many must be decoded and gives what listens to it."""
        stamps = {path: stamp for path in paths if (stamp := _stamp(path)) is not None}
        folders = sorted({os.path.dirname(path) for path in stamps})
        known = {folder: self._read(folder) for folder in folders}
        seen: Pictures = {}
        for path, stamp in stamps.items():
            entry = known[os.path.dirname(path)].get(os.path.basename(path))
            if entry is not None and entry[0] == stamp:
                seen[path] = entry[1]
        missing = [path for path in stamps if path not in seen]
        if missing:
            from spyke_kohya.audit.decoding import decode_all  # Pillow, not loaded where nothing is decoded

            seen |= decode_all(missing, begin(len(missing)))
            for folder in {os.path.dirname(path) for path in missing}:
                self._write(folder, stamps, seen)
        return seen

    def compare(self, thumbnails: list[bytes]) -> list[Alike]:
        """What ``alike`` finds among the thumbnails; the last few answers are kept, by what they were found among."""
        key = hashlib.sha256(b"".join(thumbnails)).hexdigest()
        file = self.directory / "alike.json" if self.directory else None
        known = _read_answers(file)
        if key not in known:
            known[key] = [astuple(pair) for pair in alike(thumbnails)]
            if file is not None:
                _keep(file, json.dumps({"format": _format(), "answers": dict(list(known.items())[-_ANSWERS:])}))
        return [Alike(*pair) for pair in known[key]]

    def _file(self, folder: str) -> Path | None:
        name = hashlib.sha256(os.path.abspath(folder).encode(errors="surrogateescape")).hexdigest()
        return self.directory / f"{name[:32]}.json" if self.directory else None

    def _read(self, folder: str) -> dict[str, tuple[_Stamp, Picture]]:
        """What is known of a folder; a cache that isn't whole, or of another format, is as none."""
        file = self._file(folder)
        try:
            document = json.loads(file.read_bytes()) if file else {}
            if document.get("format") != _format():
                return {}
            return {
                name: ((size, changed), Picture(digest, problem, mode, turn, animated, clear, (red, green, blue), look))
                for name, entry in document["pictures"].items()
                for size, changed, digest, problem, mode, turn, animated, clear, (red, green, blue), look in [entry]
            }
        except _NO_CACHE:
            return {}

    def _write(self, folder: str, stamps: Mapping[str, _Stamp], seen: Pictures) -> None:
        file = self._file(folder)
        if file is None:
            return
        entries = {
            os.path.basename(path): [*stamps[path], *astuple(picture)]
            for path, picture in seen.items()
            if os.path.dirname(path) == folder and not picture.problem
        }
        _keep(file, json.dumps({"format": _format(), "pictures": entries}))


def cache_directory(environment: Mapping[str, str], home: Path) -> Path:
    """Where this user's caches of ours are: XDG_CACHE_HOME, ~/Library/Caches on a Mac, else ~/.cache."""
    if environment.get("XDG_CACHE_HOME"):
        return Path(environment["XDG_CACHE_HOME"]).expanduser() / "spyke-kohya"
    place = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return home / place / "spyke-kohya"


def _format() -> str:
    from PIL import __version__ as pillow

    return f"{_FORMAT}, Pillow {pillow}"  # another Pillow may read a file otherwise


def _stamp(path: str) -> _Stamp | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):  # a pipe may never end
        return None
    return status.st_size, status.st_mtime_ns


def _read_answers(file: Path | None) -> dict[str, list[tuple[Any, ...]]]:
    try:
        document = json.loads(file.read_bytes()) if file else {}
        if document.get("format") != _format():
            return {}
        return {
            key: [(first, second, how) for first, second, how in pairs] for key, pairs in document["answers"].items()
        }
    except _NO_CACHE:
        return {}


def _keep(file: Path, text: str) -> None:
    with contextlib.suppress(OSError):  # a cache that can't be kept costs time, nothing else
        file.parent.mkdir(parents=True, exist_ok=True)
        _replace(file, text)


def _replace(file: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as beside:
        beside.write(text)
    Path(beside.name).replace(file)
