"""What is on the disk: the images of every subset, their sizes and captions. The one reader of the dataset.

Nothing here judges; a file that can't be read is recorded with the reason.
"""

# Paths are strings here, for sd-scripts knows an image by that: "a/x.png" and "./a/x.png" are two images to it.
# ruff: noqa: PTH110, PTH111, PTH112, PTH113, PTH118, PTH122
from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import imagesize

from spyke_kohya.engine.batching import Size
from spyke_kohya.presets.resolved import ResolvedDataset, ResolvedSubset

# sd-scripts v0.10.1 train_util.py:104; avif and jxl only with plugins that aren't among its requirements
_EXTENSIONS = tuple(form for name in ("png", "jpg", "jpeg", "webp", "bmp") for form in (f".{name}", f".{name.upper()}"))
_OTHER_PICTURES = (".gif", ".tif", ".tiff", ".avif", ".jxl", ".heic", ".heif", ".jfif", ".jpe", ".psd")
_LATENTS_SUFFIX = "_sd.npz"
_INFO_CACHE = "metadata_cache.json"
_CHUNK = 1 << 16
# What imagesize and Pillow raise on a file that isn't the image its head promises
BROKEN = (OSError, ValueError, struct.error, IndexError, OverflowError, NameError, SyntaxError, TypeError)

CaptionProblem: TypeAlias = Literal["", "missing", "empty", "not-utf8", "unreadable"]
SizeOf: TypeAlias = Callable[[str], Size]


@dataclass(frozen=True)
class ScannedImage:
    """One image. ``size`` is in pixels from the file's header, EXIF orientation not applied; None with a ``problem``.

    ``cached_size`` is the size in the name of its cached latents, which sd-scripts believes instead.
    """

    path: str
    size: Size | None
    problem: str = ""
    cached_size: Size | None = None

    @property
    def trained_size(self) -> Size | None:
        """The size that sd-scripts makes its buckets from (sd-scripts v0.10.1 train_util.py:2002)."""
        return self.cached_size or self.size


@dataclass(frozen=True)
class ScannedSubset:
    """The images of a subset in sd-scripts' order; ``problem`` where ``folder`` isn't one.

    ``has_info_cache``: the folder holds a metadata_cache.json, which sd-scripts believes if ``cache_info`` is set.
    ``unseen`` names the pictures in the folder that sd-scripts doesn't list, ``deeper`` its folders that hold images.
    """

    subset: ResolvedSubset
    folder: str
    images: tuple[ScannedImage, ...]
    problem: str = ""
    has_info_cache: bool = False
    unseen: tuple[str, ...] = ()
    deeper: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScannedDataset:
    """A dataset and its subsets' images."""

    dataset: ResolvedDataset
    subsets: tuple[ScannedSubset, ...]


@dataclass(frozen=True)
class Scan:
    """All that is on the disk for a run."""

    datasets: tuple[ScannedDataset, ...]

    def images(self) -> Iterator[tuple[ScannedSubset, ScannedImage]]:
        """Every image with its subset."""
        for dataset in self.datasets:
            for subset in dataset.subsets:
                for image in subset.images:
                    yield subset, image


@dataclass(frozen=True)
class Caption:
    """The caption of an image as sd-scripts reads it, before it adds, shuffles or drops anything.

    ``file`` is empty where there is none; then ``text`` is the subset's class_tokens, or empty with the problem
    ``missing``. sd-scripts stops at the other problems. ``lines`` counts the file's lines that say something.
    """

    image: str
    file: str
    text: str
    problem: CaptionProblem = ""
    lines: int = 1


def header_size(path: str) -> Size:
    """Width and height in pixels as sd-scripts reads them (sd-scripts v0.10.1 train_util.py:1478).

    Raises one of BROKEN where the file isn't the image its head promises.
    """
    width, height = imagesize.get(path)
    if width <= 0:
        width, height = size_by_pillow(path)
    if not (isinstance(width, int) and isinstance(height, int) and height > 0):
        raise ValueError(f"its size is {width}x{height}")
    return width, height


def scan(datasets: Iterable[ResolvedDataset], root: Path, size_of: SizeOf = header_size) -> Scan:
    """Read every subset's folder; relative ones are under ``root`` and ``~`` is the home directory. Never raises.

    ``size_of`` is ``header_size``, or knows what it would say.
    """
    listed: dict[str, _Folder] = {}

    def scanned(subset: ResolvedSubset) -> ScannedSubset:
        folder = folder_of(subset.image_dir, root)
        if folder not in listed:
            listed[folder] = _read_folder(subset.image_dir, folder, size_of)
        return listed[folder].as_subset(subset, folder)

    return Scan(tuple(ScannedDataset(dataset, tuple(map(scanned, dataset.subsets))) for dataset in datasets))


def scan_folder(path: str, caption_extension: str, root: Path = Path(), size_of: SizeOf = header_size) -> ScannedSubset:
    """Read a folder of images that no preset has rules for, as ``scan`` reads a subset's. Never raises."""
    folder = folder_of(path, root)
    subset = ResolvedSubset(where=path, image_dir=path, caption_extension=caption_extension)
    return _read_folder(path, folder, size_of).as_subset(subset, folder)


@dataclass(frozen=True)
class _Folder:
    images: tuple[ScannedImage, ...] = ()
    problem: str = ""
    has_info_cache: bool = False
    unseen: tuple[str, ...] = ()
    deeper: tuple[str, ...] = ()

    def as_subset(self, subset: ResolvedSubset, folder: str) -> ScannedSubset:
        return ScannedSubset(subset, folder, self.images, self.problem, self.has_info_cache, self.unseen, self.deeper)


def folder_of(image_dir: str, root: Path) -> str:
    """Return the folder as sd-scripts spells it in the paths of its images: as written, less any slash at its end."""
    return os.path.split(os.path.join(root, os.path.expanduser(image_dir), "*"))[0]


def _read_folder(image_dir: str, folder: str, size_of: SizeOf) -> _Folder:
    if not image_dir:
        return _Folder(problem="image_dir is empty")
    if not os.path.isdir(folder):
        return _Folder(problem="it is a file" if os.path.exists(folder) else "there is no such folder")
    try:
        with os.scandir(folder) as entries:
            found = {entry.name: entry for entry in entries}
    except OSError as fault:  # glob takes such a folder for an empty one
        return _Folder(problem=f"it can't be read: {fault.strerror}")
    names = sorted(name for name in found if name.endswith(_EXTENSIONS) and not name.startswith("."))
    latents = sorted(
        (name for name in found if name.endswith(_LATENTS_SUFFIX) and not name.startswith(".")),
        key=lambda name: name.rsplit("_", maxsplit=2)[0],
    )
    cached = cached_sizes(names, latents)
    return _Folder(
        tuple(_read_image(f"{folder}/{name}", found[name], cached.get(name), size_of) for name in names),
        has_info_cache=_INFO_CACHE in found,
        unseen=tuple(sorted(name for name in found if _is_unseen(name))),
        deeper=tuple(sorted(entry.name for entry in found.values() if _holds_images(entry))),
    )


def _is_unseen(name: str) -> bool:
    """Check whether a name is that of a picture that sd-scripts' patterns don't match, like ``x.gif`` or ``x.Png``.

    ``._x.png`` is none.
    """
    looks_like_one = name.lower().endswith((*_EXTENSIONS, *_OTHER_PICTURES)) and not name.startswith(".")
    return looks_like_one and not name.endswith(_EXTENSIONS)


def _holds_images(entry: os.DirEntry[str]) -> bool:
    try:
        if entry.name.startswith(".") or not entry.is_dir():
            return False
        with os.scandir(entry) as entries:
            return any(inner.name.endswith(_EXTENSIONS) and not inner.name.startswith(".") for inner in entries)
    except OSError:
        return False


def cached_sizes(names: Iterable[str], latents: list[str]) -> dict[str, Size]:
    """Return the sizes that sd-scripts takes from the names of cached latents, like ``x_0512x0768_sd.npz``.

    It compares how names begin, so ``x`` can get the size of ``xy`` (sd-scripts v0.10.1 train_util.py:2002).
    """
    sizes: dict[str, Size] = {}
    place = 0
    for name in names:
        stem = os.path.splitext(name)[0]
        while place < len(latents) and latents[place][: len(stem)] < stem:
            place += 1
        if place < len(latents) and latents[place].startswith(stem):
            width, _, height = latents[place].split("_")[-2].partition("x")
            if width.isdecimal() and height.isdecimal():
                sizes[name] = (int(width), int(height))
    return sizes


def _read_image(path: str, entry: os.DirEntry[str], cached_size: Size | None, size_of: SizeOf) -> ScannedImage:
    try:
        if not entry.is_file():
            return ScannedImage(
                path, None, "it is a folder" if entry.is_dir() else "it is no file, or a link to nowhere"
            )
        return ScannedImage(path, size_of(path), cached_size=cached_size)
    except BROKEN as fault:
        return ScannedImage(path, None, _reason(fault))


def size_by_pillow(path: str) -> Size:
    """Return the size that decoding gives.

    imagesize 1.4.1 has one pixel less for WebP files with transparency or frames.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except Image.DecompressionBombError as fault:
        raise ValueError(str(fault)) from fault


def _reason(fault: BaseException) -> str:
    words = fault.strerror if isinstance(fault, OSError) and fault.strerror else str(fault)
    return "it is not an image" if words.startswith("cannot identify image file") else words or type(fault).__name__


def read_captions(found: Scan) -> tuple[Caption, ...]:
    """Read every image's caption, in the order of ``found.images()``. Never raises; a problem is in the caption."""
    return tuple(_read_caption(image.path, subset.subset) for subset, image in found.images())


def captions_in(folder: ScannedSubset) -> tuple[Caption, ...]:
    """Read the caption of every image of a folder, in their order, as ``read_captions`` does."""
    return tuple(_read_caption(image.path, folder.subset) for image in folder.images)


def _read_caption(image: str, subset: ResolvedSubset) -> Caption:
    """As sd-scripts looks for it and reads it (sd-scripts v0.10.1 train_util.py:1946)."""
    for file in _caption_files(image, subset.caption_extension):
        if os.path.isfile(file):
            return _caption_in(file, image, subset)
    if subset.class_tokens is None:
        return Caption(image, "", "", "missing")
    return Caption(image, "", subset.class_tokens)


def _caption_files(image: str, extension: str) -> Iterator[str]:
    """Return the file named as the image; else the one without the four numbers that a face detector appends."""
    stem = os.path.splitext(image)[0]
    yield stem + extension
    words = stem.split("_")
    if len(words) >= 5:
        yield "_".join(words[:-4]) + extension


def _read_bytes(file: str) -> bytes:
    """Return a regular file's content, in half the time that a file object takes; a short read is its end."""
    handle = os.open(file, os.O_RDONLY)
    try:
        content = chunk = os.read(handle, _CHUNK)
        while len(chunk) == _CHUNK:
            chunk = os.read(handle, _CHUNK)
            content += chunk
        return content
    finally:
        os.close(handle)


def _caption_in(file: str, image: str, subset: ResolvedSubset) -> Caption:
    try:
        lines = io.StringIO(_read_bytes(file).decode("utf-8"), newline=None).readlines()
    except UnicodeDecodeError:
        return Caption(image, file, "", "not-utf8")
    except OSError:
        return Caption(image, file, "", "unreadable")
    if not lines:
        return Caption(image, file, "", "empty")
    said = [line.strip() for line in lines if line.strip()]
    text = "\n".join(said) if subset.enable_wildcard else lines[0].strip()
    return Caption(image, file, text, lines=len(said))
