"""Images decoded in full, as sd-scripts will: on all cores, for Pillow decodes outside Python's lock."""

from __future__ import annotations

import hashlib
import os
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

from PIL import Image, ImageStat

from spyke_kohya.dataset.copies import look_of
from spyke_kohya.dataset.pictures import Listen, Picture
from spyke_kohya.dataset.scan import BROKEN, header_size
from spyke_kohya.engine.batching import Size

# What Pillow raises on a damaged file; sd-scripts catches none of it (train_util.py:2959 raises it again).
_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    EOFError,
    RuntimeError,
    AssertionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_ORIENTATION = 0x0112
_OPAQUE_FROM = 128


def decode_all(paths: Iterable[str], listen: Listen = lambda _: None) -> Iterator[tuple[str, Picture]]:
    """Every path with its picture, decoded in full on all cores, in the paths' order. Never raises for a file."""
    workers = os.cpu_count() or 1
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # Pillow's, on files that are reported anyway
        todo = iter(paths)
        try:
            queue = [(path, pool.submit(decode, path)) for path in islice(todo, 4 * workers)]
            yield from _answers(queue, todo, pool, listen)
        finally:
            pool.shutdown(cancel_futures=True)


def _answers(
    queue: list[tuple[str, Future[Picture]]], todo: Iterator[str], pool: ThreadPoolExecutor, listen: Listen
) -> Iterator[tuple[str, Picture]]:
    """Keep the queue short, so that an interruption ends at once and memory stays small."""
    done = 0
    while queue:
        path, future = queue.pop(0)
        yield path, future.result()
        done += 1
        listen(done)
        queue += [(following, pool.submit(decode, following)) for following in islice(todo, 1)]


def decode(path: str) -> Picture:
    """Decode one image as sd-scripts will (sd-scripts v0.10.1 train_util.py:2948)."""
    try:
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "blake2b").hexdigest()[:32]
            with Image.open(stream) as image:
                return replace(_seen(image, digest), size=_header_size(path))
    except _BROKEN as fault:
        return Picture(problem=(str(fault) or type(fault).__name__).split("\n")[0])


def _header_size(path: str) -> Size | None:
    try:
        return header_size(path)
    except BROKEN:
        return None


def _seen(image: Image.Image, digest: str) -> Picture:
    animated = bool(getattr(image, "is_animated", False))
    orientation = image.getexif().get(_ORIENTATION, 1)
    image.load()
    transparent, beneath = _beneath(image)
    return Picture(
        digest=digest,
        mode=image.mode,
        orientation=orientation if isinstance(orientation, int) else 1,
        animated=animated,
        transparent=transparent,
        beneath=beneath,
        look=look_of(image).hex(),
    )


def _beneath(image: Image.Image) -> tuple[float, tuple[int, int, int]]:
    if not image.has_transparency_data:
        return 0.0, (255, 255, 255)
    clear = image.convert("RGBA").getchannel("A").point([255] * _OPAQUE_FROM + [0] * (256 - _OPAQUE_FROM))
    count = clear.histogram()[255]
    if not count:
        return 0.0, (255, 255, 255)
    red, green, blue = ImageStat.Stat(image.convert("RGB"), clear).mean
    return count / (image.width * image.height), (int(red), int(green), int(blue))
