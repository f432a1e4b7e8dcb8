"""How a command speaks: results to stdout, all else to stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spyke_kohya.findings import Finding
from spyke_kohya.report.plain_text import findings_text

if TYPE_CHECKING:
    from spyke_kohya.record.redact import Redactor
    from spyke_kohya.report.live import Display
    from spyke_kohya.session import Session


def terminal_width() -> int:
    """Return the columns of the terminal, at most 120; in a pipe those of stderr's terminal, and 100 without any."""
    fallback = (100, 24)
    with suppress(OSError, ValueError):
        fallback = os.get_terminal_size(sys.stderr.fileno())
    return min(shutil.get_terminal_size(fallback).columns, 120)


def live_display() -> Display:
    from spyke_kohya.report.live import STARTING, Display

    return Display(sys.stderr, begin=STARTING)


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def open_session(root: Path) -> Session:
    """Return the session of a command: this environment, this terminal."""
    from spyke_kohya.report.live import decoding_display
    from spyke_kohya.session import Session

    return Session(
        root.absolute(),
        os.environ,
        Path.home(),
        say=say,
        confirm=lambda question: sys.stdin.isatty() and sys.stderr.isatty() and click.confirm(question, err=True),
        decoding=partial(decoding_display, sys.stderr),
    )


def say_findings(findings: Sequence[Finding]) -> None:
    if findings:
        say(findings_text(findings))


def say(text: str) -> None:
    """Print to stderr without secrets; the reader may have closed it."""
    with suppress(OSError):
        click.echo(redactor().text(text), err=True)


def redactor() -> Redactor:
    from spyke_kohya.record.redact import Redactor

    return Redactor(os.environ, Path.home())
