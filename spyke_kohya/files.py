"""Hash a file, and write a file so that a reader sees the old one or the new one, whole."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from spyke_kohya.errors import UsageError


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal; of a link's target. Raises OSError."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_result(file: Path, content: str | bytes, what: str, remedy: str) -> Path:
    """Write what a person asked for, and return the file. Raises UsageError, with ``what`` it is, where that fails."""
    try:
        write_whole(file, content)
    except OSError as fault:
        raise UsageError(f"{what} can't be written: {fault.strerror}", where=str(file), remedy=remedy) from fault
    return file


def write_whole(file: Path, content: str | bytes) -> None:
    """Write ``content`` (text as UTF-8) to a new file beside ``file``, sync it, and move it into place.

    However this ends, ``file`` holds the old content or the new content, and nothing else is left. Raises OSError.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    beside = file.with_name(f".{secrets.token_hex(8)}.new")
    try:
        with beside.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
