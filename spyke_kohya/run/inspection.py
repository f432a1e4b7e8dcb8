"""Read a whole checkpoint before it is trusted: its header, its sizes, and that every number in it is finite."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from spyke_kohya.formats.tensor_file import TensorFileError, not_finite, parse_header

_Read = Callable[[int], bytes]

_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Inspection:
    """What reading a whole file has shown; ``sha256`` is that of the bytes that are there."""

    size_bytes: int
    sha256: str
    problem: str


def inspect(file: Path) -> Inspection:
    """Read a checkpoint once, in pieces of 4 MB; never raises. Of ``.pt`` and ``.ckpt`` only the archive is checked."""
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            digest = hashlib.sha256()
            read = _hashing(stream, digest)
            if file.suffix == ".safetensors":
                problem = _problem(read, size)
            else:
                problem = "" if zipfile.is_zipfile(file) else "it is cut off, or not a file of torch"
            while read(_CHUNK_BYTES):
                pass
    except OSError as fault:
        return Inspection(0, "", f"can't be read: {fault.strerror}")
    return Inspection(size, digest.hexdigest(), problem)


def _hashing(stream: BinaryIO, digest: hashlib._Hash) -> _Read:
    """Return a function that reads the next bytes of the stream and adds them to the digest."""

    def read(length: int) -> bytes:
        piece = stream.read(length)
        digest.update(piece)
        return piece

    return read


def _problem(read: _Read, size: int) -> str:
    try:
        header = parse_header(read, size)
    except TensorFileError as fault:
        return str(fault)
    if size != header.file_bytes:
        return f"it is cut off: {size} of {header.file_bytes} bytes" if size < header.file_bytes else "it is too long"
    spoiled, total = not_finite(read, header), len(header.tensors)
    return (
        f"{len(spoiled)} of its {total} tensors hold numbers that are not finite, {spoiled[0]} first" if spoiled else ""
    )
