"""Findings for people: what, where and what to do, in at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from spyke_kohya.errors import SpykeError
from spyke_kohya.findings import Finding

_WIDTH = 80


def findings_text(findings: Sequence[Finding]) -> str:
    """One block a finding, errors first."""
    ordered = sorted(findings, key=lambda finding: finding.severity != "error")
    return "\n".join(_block(finding) for finding in ordered)


def fault_text(fault: SpykeError) -> str:
    """An error as the last words of a command."""
    lines = [_wrapped(f"error: {fault.what}", "", "  ")]
    if fault.where:
        lines.append(_wrapped(fault.where, "  where: ", "         "))
    if fault.remedy:
        lines.append(_wrapped(fault.remedy, "  do: ", "      "))
    return "\n".join(lines)


def _block(finding: Finding) -> str:
    return "\n".join(
        [
            f"{finding.severity}: {_printable(finding.where)}  [{finding.code}]",
            _wrapped(finding.message, "  ", "  "),
            _wrapped(finding.remedy, "  do: ", "      "),
        ]
    )


def _printable(text: str) -> str:
    """Control characters, which a file's name can hold, written out: they would move a terminal's cursor."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _wrapped(text: str, first: str, rest: str) -> str:
    return textwrap.fill(
        _printable(text),
        _WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
