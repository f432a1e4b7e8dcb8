"""A finding: one thing that is wrong, or worth knowing, before a launch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
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
