"""What a command says and how it ends: results to stdout, all else to stderr, findings to exit codes."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spyke_kohya.errors import (
    DatasetError,
    EngineError,
    PresetError,
    SpykeError,
)
from spyke_kohya.findings import Finding, errors_in
from spyke_kohya.report.plain_text import count_text, findings_text

if TYPE_CHECKING:
    from spyke_kohya.record.redact import Redactor
    from spyke_kohya.report.live import PlainDisplay, TerminalDisplay


def terminal_width() -> int:
    return shutil.get_terminal_size((100, 24)).columns


def live_display() -> PlainDisplay | TerminalDisplay:
    import time

    from spyke_kohya.report.live import PlainDisplay, TerminalDisplay

    return TerminalDisplay() if sys.stderr.isatty() else PlainDisplay(sys.stderr, time.monotonic)


def exit_code(findings: Sequence[Finding], strict: bool) -> int:
    blocking = list(findings) if strict else errors_in(findings)
    return min((_blame(finding).exit_code for finding in blocking), default=0)


def _blame(finding: Finding) -> type[SpykeError]:
    room = finding.code.partition(".")[0]
    if room in ("dataset", "images", "captions"):
        return DatasetError
    return EngineError if room == "engine" else PresetError


def blocked(findings: Sequence[Finding], what: str) -> SpykeError:
    errors = errors_in(findings) or list(findings)
    kind = min((_blame(finding) for finding in errors), key=lambda error: error.exit_code, default=PresetError)
    return kind(f"{what}: {count_text(findings)}")


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def say_findings(findings: Sequence[Finding]) -> None:
    if findings:
        say(findings_text(findings))


def say(text: str) -> None:
    """To stderr, without secrets; who reads along may have left."""
    with suppress(OSError):
        click.echo(redactor().text(text), err=True)


def redactor() -> Redactor:
    from spyke_kohya.record.redact import Redactor

    return Redactor(os.environ, Path.home())
