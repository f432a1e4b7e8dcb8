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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

from spyke_kohya.dataset.copies import Alike, alike
from spyke_kohya.dataset.pictures import Listen, Picture, Pictures
from spyke_kohya.dataset.scan import header_size
from spyke_kohya.engine.batching import Size
from spyke_kohya.files import write_whole

_FORMAT = 3
_FIELDS = [one.name for one in fields(Picture)]
_ANSWERS = 16
# What reading a cache raises that isn't whole, or isn't one
_NO_CACHE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
_Stamp = tuple[int, int]


@dataclass(frozen=True)
class PictureCache:
    """One file a folder of images, under ``directory``, read once; None keeps nothing."""

    directory: Path | None
    _folders: dict[str, dict[str, tuple[_Stamp, Picture]]] = field(default_factory=dict, init=False, repr=False)

    def size_of(self, path: str) -> Size:
        """Return what ``header_size`` says of an image, which is opened only if it isn't known."""
        known = self._known(path, _stamp(path))
        return known.size if known and known.size else header_size(path)

    def look(self, paths: Iterable[str], begin: Callable[[int], Listen]) -> Pictures:
        """Return the picture of every path.

        ``begin`` is given how many must be decoded, and returns what is called with each number done.
        """
        stamps = {path: stamp for path in paths if (stamp := _stamp(path)) is not None}
        seen = {path: picture for path, stamp in stamps.items() if (picture := self._known(path, stamp))}
        missing = [path for path in stamps if path not in seen]
        if missing:
            from spyke_kohya.dataset.decoding import decode_all  # Pillow, not loaded where nothing is decoded

            seen |= decode_all(missing, begin(len(missing)))
            for folder in {os.path.dirname(path) for path in missing}:
                self._write(folder, stamps, seen)
        return seen

    def compare(self, looks: Sequence[bytes]) -> list[Alike]:
        """Return what ``alike`` finds among the looks; the last few answers are kept, by what they were found among."""
        key = hashlib.sha256(b"".join(looks)).hexdigest()
        file = self.directory / "alike.json" if self.directory else None
        known = _read_answers(file)
        if key not in known:
            known[key] = [astuple(pair) for pair in alike(looks)]
            if file is not None:
                _keep(file, json.dumps({"format": _format(), "answers": dict(list(known.items())[-_ANSWERS:])}))
        return [Alike(*pair) for pair in known[key]]

    def _known(self, path: str, stamp: _Stamp | None) -> Picture | None:
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = self._read(folder)
        kept_for, picture = self._folders[folder].get(name, (None, None))
        return picture if kept_for == stamp else None

    def _file(self, folder: str) -> Path | None:
        name = hashlib.sha256(os.path.abspath(folder).encode(errors="surrogateescape")).hexdigest()
        return self.directory / f"{name[:32]}.json" if self.directory else None

    def _read(self, folder: str) -> dict[str, tuple[_Stamp, Picture]]:
        """Return what is known of a folder; a cache that is cut off or of another format holds nothing."""
        file = self._file(folder)
        try:
            document = json.loads(file.read_bytes()) if file else {}
            if document.get("format") != _format():
                return {}
            pictures = document["pictures"]
            return {name: ((length, changed), _picture(seen)) for name, (length, changed, *seen) in pictures.items()}
        except _NO_CACHE:
            return {}

    def _write(self, folder: str, stamps: Mapping[str, _Stamp], seen: Pictures) -> None:
        file = self._file(folder)
        if file is None:
            return
        entries = {
            os.path.basename(path): (stamps[path], picture)
            for path, picture in seen.items()
            if os.path.dirname(path) == folder and not picture.problem
        }
        self._folders[folder] = entries
        flat = {name: [*stamp, *vars(picture).values()] for name, (stamp, picture) in entries.items()}
        _keep(file, json.dumps({"format": _format(), "pictures": flat}))


def cache_directory(environment: Mapping[str, str], home: Path) -> Path:
    """Where this user's caches of ours are: XDG_CACHE_HOME, ~/Library/Caches on a Mac, else ~/.cache."""
    if environment.get("XDG_CACHE_HOME"):
        return Path(environment["XDG_CACHE_HOME"]).expanduser() / "spyke-kohya"
    place = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return home / place / "spyke-kohya"


def _format() -> str:
    from PIL import __version__ as pillow

    return f"{_FORMAT}, Pillow {pillow}, {', '.join(_FIELDS)}"  # another Pillow may read a file otherwise


def _picture(values: list[Any]) -> Picture:
    """Return a picture from its fields as JSON has them."""
    fields_of_it: list[Any] = [tuple(value) if isinstance(value, list) else value for value in values]
    return Picture(*fields_of_it)


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
        write_whole(file, text)
