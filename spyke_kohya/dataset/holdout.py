"""Set pictures aside before a training: a seeded choice, whole groups of copies at a time, with captions, undoable."""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spyke_kohya.dataset.copies import fingerprint, group_alike
from spyke_kohya.dataset.scan import ScannedSubset, scan_folder
from spyke_kohya.errors import DatasetError, UsageError
from spyke_kohya.files import write_whole

MANIFEST_NAME = "heldout.json"
SCHEMA_VERSION = 1
_AFTER_STEM = re.compile(r"\.|_\d{4}x\d{4}_sd\.npz$")


@dataclass(frozen=True)
class Choice:
    """What to set aside: ``files`` are the names in ``source`` of the pictures, their captions and cached latents.

    ``groups`` counts the different pictures that are taken, ``left`` those that stay.
    """

    source: Path
    target: Path
    pictures: tuple[str, ...]
    files: tuple[str, ...]
    groups: int
    left: int
    seed: int


def default_target(source: Path) -> Path:
    """Return a folder beside the training folder, whose name doesn't begin with a number as a training folder's may."""
    whole = source.absolute()
    return whole.with_name(f"heldout-{whole.name}")


def choose_heldout(source: Path, count: int, *, target: Path | None = None, seed: int = 0) -> Choice:
    """Choose ``count`` different pictures of a folder; copies and flips of one picture go together.

    The choice depends on the seed and the pictures' content alone. Raises DatasetError when a picture can't be read,
    when more than half of the different pictures would go, or when something is in the way.
    """
    target = target or default_target(source)
    found = _scanned(source)
    groups = _groups(found)
    if 2 * count > len(groups):
        raise DatasetError(
            f"{count} of {len(groups)} different pictures are too many: at least half must stay to be trained on",
            where=str(source),
            remedy=f"set aside at most {len(groups) // 2}, or find more pictures",
        )
    groups.sort(key=lambda group: hashlib.sha256(f"{seed}:{group[0][1]}".encode()).digest())
    pictures = sorted(name for group in groups[:count] for name, _ in group)
    files = _named_after({Path(name).stem for name in pictures}, found)
    _check_free(target, files)
    return Choice(source, target, tuple(pictures), tuple(files), count, len(groups) - count, seed)


def set_aside(choice: Choice, *, copy: bool = False) -> Path:
    """Move the chosen files, or copy them; gives the manifest, by which ``put_back`` undoes it even when cut short."""
    choice.target.mkdir(parents=True, exist_ok=True)
    manifest = choice.target / MANIFEST_NAME
    document = {
        "schema_version": SCHEMA_VERSION,
        "source": str(choice.source.absolute()),
        "seed": choice.seed,
        "copied": copy,
        "files": list(choice.files),
    }
    write_whole(manifest, json.dumps(document, indent=1) + "\n")  # ASCII: a name may be no text
    for name in choice.files:
        if copy:
            shutil.copy2(choice.source / name, choice.target / name)
        else:
            shutil.move(choice.source / name, choice.target / name)
    return manifest


def put_back(source: Path, target: Path) -> int:
    """Put the files that were set aside in ``target`` back into ``source``; return how many.

    The manifest may be another person's: it names files of ``target``, and where they go is not its to say. Copies are
    removed only where the original is still there, unchanged. Raises UsageError without a sound manifest and
    DatasetError where a file is in the way; nothing is done then.
    """
    document = _read_manifest(target)
    copied = document["copied"]
    there = [name for name in document["files"] if (target / name).is_file()]
    blocked = [name for name in there if not _can_go_back(source / name, target / name, copied=copied)]
    if blocked:
        raise DatasetError(
            f"{len(blocked)} files can't be put back, such as {blocked[0]}",
            where=str(source),
            remedy="a different file of that name is there, or the copied original is gone: sort it out by hand",
        )
    source.mkdir(parents=True, exist_ok=True)
    for name in there:
        (target / name).unlink() if copied else shutil.move(target / name, source / name)
    (target / MANIFEST_NAME).unlink()
    if not any(target.iterdir()):
        target.rmdir()
    return len(there)


def _scanned(source: Path) -> ScannedSubset:
    if not source.is_dir():
        raise UsageError("no such folder", where=str(source), remedy="give a folder of training pictures")
    found = scan_folder(str(source.absolute()), ".txt")
    if not found.images:
        raise DatasetError(
            "there is no picture in this folder", where=str(source), remedy="give the images' own folder"
        )
    return found


def _groups(found: ScannedSubset) -> list[list[tuple[str, str]]]:
    """Return groups of (name, hash of the content); pictures of one stem share a caption, so they go together too."""
    paths = [Path(image.path) for image in found.images]
    prints = [fingerprint(path) for path in paths]
    groups: dict[int, list[tuple[str, str]]] = {}
    by_stem: dict[str, int] = {}
    for index, path, print_ in zip(group_alike(prints), paths, prints, strict=True):
        group = by_stem.setdefault(path.stem, index)
        groups.setdefault(group, []).append((path.name, print_.sha256))
    return list(groups.values())


def _named_after(chosen: set[str], found: ScannedSubset) -> list[str]:
    """Return the files of the pictures with these stems: pictures, captions, masks, cached latents.

    ``a.1.txt`` is of ``a.1.png`` where there is one, else of ``a.png``: the longest stem of a file counts.
    """
    pictures = [Path(image.path).name for image in found.images] + list(found.unseen)
    stems = {Path(name).stem for name in pictures}
    names = sorted(file.name for file in Path(found.folder).iterdir() if file.is_file())
    return [name for name in names if _stem_of(name, stems) in chosen]


def _stem_of(name: str, stems: set[str]) -> str | None:
    heads = [name[: end.start()] for end in _AFTER_STEM.finditer(name)]
    return next((head for head in reversed(heads) if head in stems), None)


def _check_free(target: Path, files: list[str]) -> None:
    if (target / MANIFEST_NAME).exists():
        raise DatasetError(
            "pictures were set aside here already",
            where=str(target),
            remedy="keep them, undo it with --undo, or name another folder with --to",
        )
    taken = [name for name in files if os.path.lexists(target / name)]
    if taken:
        raise DatasetError(
            f"{len(taken)} files of these names are there already, such as {taken[0]}",
            where=str(target),
            remedy="name another folder with --to",
        )


def _read_manifest(target: Path) -> dict[str, Any]:
    manifest = target / MANIFEST_NAME
    try:
        document = json.loads(manifest.read_text(encoding="utf-8"))
        if document["schema_version"] != SCHEMA_VERSION or not isinstance(document["copied"], bool):
            raise ValueError("it is of another version")
        if odd := [name for name in document["files"] if not _is_plain(name)]:
            raise ValueError(f"{odd[0]!r} is no file of this folder")
    except FileNotFoundError as fault:
        raise UsageError("nothing was set aside here", where=str(target), remedy="name the folder with --to") from fault
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise UsageError(f"the manifest can't be read: {fault}", where=str(manifest)) from fault
    return dict(document)


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name and name not in ("", "..", MANIFEST_NAME)


def _can_go_back(original: Path, heldout: Path, *, copied: bool) -> bool:
    if not copied:
        return not os.path.lexists(original)
    is_another = original.is_file() and not original.samefile(heldout)
    return is_another and filecmp.cmp(original, heldout, shallow=False)
