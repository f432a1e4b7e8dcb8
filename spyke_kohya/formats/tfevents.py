"""Scalars out of TensorBoard event files.

Reads the TFRecord framing and the few protobuf fields of Event, Summary and TensorProto that hold a scalar, itself: the
base install has no tensorboard. Checksums are not verified (crc32c costs too much in pure Python): a record must be
complete and its fields must parse.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spyke_kohya.errors import EngineError

_HEADER_BYTES, _FOOTER_BYTES = 12, 4  # length and its checksum; checksum of the data
_MAX_RECORD_BYTES = 64 * 1024 * 1024
_SIGNATURE = b"brain.Event:"
_length_at = struct.Struct("<Q").unpack_from
_double_at = struct.Struct("<d").unpack_from
_float_at = struct.Struct("<f").unpack_from
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DT_FLOAT, _DT_DOUBLE = 1, 2


@dataclass(frozen=True, slots=True)
class Scalar:
    """One logged number; ``value`` has float32 precision, ``wall_time`` is in seconds since 1970."""

    tag: str
    step: int
    value: float
    wall_time: float


def find_event_files(logging_dir: Path) -> list[Path]:
    """Find the event files anywhere under ``logging_dir``, by name, and so by the time they were begun."""
    found = (path for path in logging_dir.rglob("events.out.tfevents.*") if path.is_file())
    return sorted(found, key=lambda path: (path.name, str(path)))


def read_scalars(path: Path, offset: int = 0) -> tuple[list[Scalar], int]:
    """Read the scalars from byte ``offset`` on; return them, and the offset after the last complete record.

    A record that is still being written is left for the next call, which starts at the returned offset. Raises
    EngineError where ``path`` can't be read, is no event file, or is damaged.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except OSError as fault:
        raise EngineError(f"can't read the event file: {fault.strerror}", where=str(path)) from fault
    try:
        scalars, end = _scalars_of(data, is_start=offset == 0)
    except (ValueError, IndexError, struct.error) as fault:
        raise EngineError(
            f"not a TensorBoard event file, or damaged: {fault}",
            where=str(path),
            remedy="move the file away; the losses on the console remain",
        ) from fault
    return scalars, offset + end


def _scalars_of(data: bytes, *, is_start: bool) -> tuple[list[Scalar], int]:
    scalars: list[Scalar] = []
    position, size = 0, len(data)
    while position + _HEADER_BYTES <= size:
        length = _length_at(data, position)[0]
        if length > _MAX_RECORD_BYTES:
            raise ValueError(f"a record of {length} bytes")
        start = position + _HEADER_BYTES
        end = start + length
        if end + _FOOTER_BYTES > size:
            break
        if is_start and position == 0 and _SIGNATURE not in data[start:end]:
            raise ValueError("the first record does not name its format")
        _read_event(data, start, end, scalars)
        position = end + _FOOTER_BYTES
    return scalars, position


def _read_event(data: bytes, start: int, end: int, scalars: list[Scalar]) -> None:
    """Read an Event: 1 wall_time, 2 step, 5 summary, with its repeated field 1, a value."""
    wall_time, step = 0.0, 0
    values: list[tuple[int, int]] = []
    for number, wire, at, stop in _fields(data, start, end):
        if number == 1 and wire == _FIXED64:
            wall_time = _double_at(data, at)[0]
        elif number == 2 and wire == _VARINT:
            step = _varint(data, at)[0]
            if step >= 1 << 63:
                raise ValueError("a step below 0")
        elif number == 5 and wire == _BYTES:
            values += [(a, b) for n, w, a, b in _fields(data, at, stop) if n == 1 and w == _BYTES]
    for at, stop in values:
        tag, value = _read_value(data, at, stop)
        if value is not None:
            scalars.append(Scalar(tag.decode(errors="replace"), step, value, wall_time))


def _read_value(data: bytes, start: int, end: int) -> tuple[bytes, float | None]:
    """Read a Summary.Value: 1 tag, 2 simple_value, 8 tensor; None for what is no scalar."""
    tag, value = b"", None
    for number, wire, at, stop in _fields(data, start, end):
        if number == 1 and wire == _BYTES:
            tag = data[at:stop]
        elif number == 2 and wire == _FIXED32:
            value = _float_at(data, at)[0]
        elif number == 8 and wire == _BYTES:
            value = _tensor_value(data, at, stop)
    return tag, value


def _tensor_value(data: bytes, start: int, end: int) -> float | None:
    """Read a TensorProto: 1 dtype, 4 tensor_content, 5 float_val, 6 double_val; None unless it holds just one float."""
    dtype, content = 0, b""
    for number, wire, at, stop in _fields(data, start, end):
        if number == 1 and wire == _VARINT:
            dtype = _varint(data, at)[0]
        elif number in (4, 5, 6):
            content = data[at:stop]
    if dtype == _DT_FLOAT and len(content) == 4:
        return float(_float_at(content)[0])
    if dtype == _DT_DOUBLE and len(content) == 8:
        return float(_double_at(content)[0])
    return None


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire type, start, end) of each protobuf field in ``data[start:end]``; ValueError if cut."""
    position = start
    while position < end:
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            stop = _varint(data, position)[1]
        elif wire == _FIXED64:
            stop = position + 8
        elif wire == _FIXED32:
            stop = position + 4
        elif wire == _BYTES:
            length, position = _varint(data, position)
            stop = position + length
        else:
            raise ValueError(f"wire type {wire}")
        if stop > end:
            raise ValueError("a field ends outside its record")
        yield number, wire, position, stop
        position = stop


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the number at ``position`` and the position after it."""
    byte = data[position]
    if byte < 0x80:
        return byte, position + 1
    value = byte & 0x7F
    for shift in range(7, 70, 7):
        position += 1
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
    raise ValueError("a number of more than 64 bits")
