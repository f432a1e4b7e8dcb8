"""A finding: one thing that is wrong, or worth knowing, before a launch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePath
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """``code`` is dotted and never renamed; an ``error`` blocks a launch, a ``warning`` does not."""

    code: str
    severity: Severity
    where: str
    message: str
    remedy: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def error(code: str, where: str, message: str, remedy: str) -> Finding:
    return Finding(code, "error", where, message, remedy)


def warning(code: str, where: str, message: str, remedy: str) -> Finding:
    return Finding(code, "warning", where, message, remedy)


def errors_in(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == "error"]


def count_text(findings: Sequence[Finding]) -> str:
    """Return ``2 errors, 1 warning``, or ``no faults``."""
    errors = len(errors_in(findings))
    counts = {"error": errors, "warning": len(findings) - errors}
    parts = [f"{count} {noun}{'' if count == 1 else 's'}" for noun, count in counts.items() if count]
    return ", ".join(parts) or "no faults"


_PER_FILE = ("images.", "captions.")
_NAMED = 5


def grouped(findings: Iterable[Finding]) -> list[Finding]:
    """Return one finding for all files of a folder with the same fault: the first, with some more file names."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for index, finding in enumerate(findings):
        alike = (finding.code, finding.severity, str(PurePath(finding.where).parent))
        groups.setdefault(alike if finding.code.startswith(_PER_FILE) else (str(index),), []).append(finding)
    return [_as_one(group) for group in groups.values()]


def _as_one(group: list[Finding]) -> Finding:
    first, *others = group
    if not others:
        return first
    names = ", ".join(PurePath(other.where).name for other in others[:_NAMED])
    etc = ", ..." if len(others) > _NAMED else ""
    return replace(first, message=f"{first.message} (and {len(others)} more: {names}{etc})")
