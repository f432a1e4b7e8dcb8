"""Set pictures aside before a training: a seeded choice, whole groups of copies at a time, with captions, undoable."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spyke_kohya.dataset.copies import fingerprint, group_alike
from spyke_kohya.dataset.scan import scan
from spyke_kohya.errors import DatasetError, UsageError
from spyke_kohya.presets.resolved import ResolvedDataset, ResolvedSubset

MANIFEST_NAME = "heldout.json"
SCHEMA_VERSION = 1
_CACHED_LATENTS = re.compile(r"_\d{4}x\d{4}_sd\.npz")


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
    """A folder beside the training folder, whose name doesn't begin with a number as a training folder's may."""
    whole = source.absolute()
    return whole.with_name(f"heldout-{whole.name}")


def choose_heldout(source: Path, count: int, *, target: Path | None = None, seed: int = 0) -> Choice:
    """Choose ``count`` different pictures of a folder; copies and flips of one picture go together.

    The choice depends on the seed and the pictures' content alone. Raises DatasetError when a picture can't be read,
    when more than half of the different pictures would go, or when something is in the way.
    """
    target = target or default_target(source)
    groups = _groups(source)
    if 2 * count > len(groups):
        raise DatasetError(
            f"{count} of {len(groups)} different pictures are too many: at least half must stay to be trained on",
            where=str(source),
            remedy=f"set aside at most {len(groups) // 2}, or find more pictures",
        )
    groups.sort(key=lambda group: hashlib.sha256(f"{seed}:{group[0][1]}".encode()).digest())
    pictures = sorted(name for group in groups[:count] for name, _ in group)
    files = sorted({file for name in pictures for file in _belonging(source, name)})
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
    manifest.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name in choice.files:
        if copy:
            shutil.copy2(choice.source / name, choice.target / name)
        else:
            shutil.move(choice.source / name, choice.target / name)
    return manifest


def put_back(target: Path) -> int:
    """Undo what the manifest in ``target`` says, and remove what is left empty; gives the number of files put back.

    Copies are removed only where the original is still there, unchanged. Raises UsageError without a manifest and
    DatasetError where a file is in the way; nothing is done then.
    """
    document = _read_manifest(target)
    source, copied = Path(document["source"]), document["copied"]
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


def _groups(source: Path) -> list[list[tuple[str, str]]]:
    """Groups of (name, hash of the content); pictures that share a stem share a caption, so they go together too."""
    if not source.is_dir():
        raise UsageError("no such folder", where=str(source), remedy="give a folder of training pictures")
    subset = ResolvedSubset(where="", image_dir=str(source.absolute()), num_repeats_stated=False)
    found = scan([ResolvedDataset(where="", resolution=(512, 512), subsets=(subset,))], Path())
    names = [Path(image.path).name for _, image in found.images()]
    if not names:
        raise DatasetError(
            "there is no picture in this folder", where=str(source), remedy="give the images' own folder"
        )
    prints = [fingerprint(source / name) for name in names]
    first = group_alike(prints)
    groups: dict[int, list[tuple[str, str]]] = {}
    by_stem: dict[str, int] = {}
    for index, name, print_ in zip(first, names, prints, strict=True):
        group = by_stem.setdefault(Path(name).stem, index)
        groups.setdefault(group, []).append((name, print_.sha256))
    return list(groups.values())


def _belonging(source: Path, picture: str) -> list[str]:
    """The picture and every file that is named after it: caption, mask, cached latents."""
    stem = Path(picture).stem
    names = [file.name for file in source.iterdir() if file.is_file() and file.name.startswith(stem)]
    rests = {name: name.removeprefix(stem) for name in names}
    return [name for name, rest in rests.items() if rest.startswith(".") or _CACHED_LATENTS.fullmatch(rest)]


def _check_free(target: Path, files: list[str]) -> None:
    if (target / MANIFEST_NAME).exists():
        raise DatasetError(
            "pictures were set aside here already",
            where=str(target),
            remedy="keep them, undo it with --undo, or name another folder with --to",
        )
    taken = [name for name in files if (target / name).exists()]
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
        if document["schema_version"] != SCHEMA_VERSION or not isinstance(document["files"], list):
            raise ValueError("it is of another version")
    except FileNotFoundError as fault:
        raise UsageError("nothing was set aside here", where=str(target), remedy="name the folder with --to") from fault
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise UsageError(f"the manifest can't be read: {fault}", where=str(manifest)) from fault
    return dict(document)


def _can_go_back(original: Path, heldout: Path, *, copied: bool) -> bool:
    if copied:
        return original.is_file() and original.read_bytes() == heldout.read_bytes()
    return not original.exists()
