"""`doctor`: can this machine train at all?"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spyke_kohya.cli.asking import find_engine
from spyke_kohya.cli.group import (
    ENGINE,
    JSON,
    ROOT,
    cli,
    preset_names,
)
from spyke_kohya.cli.terminal import blocked, print_json, say_findings
from spyke_kohya.errors import (
    EngineError,
)

if TYPE_CHECKING:
    pass


@cli.command(short_help="Can this machine train at all?")
@click.argument("preset", required=False, shell_complete=preset_names)
@ENGINE
@ROOT
@JSON
def doctor(preset: str | None, engine: Path | None, root: Path, as_json: bool) -> None:
    """Can this machine, this Python and this sd-scripts train at all?"""
    from spyke_kohya.audit.doctor import Patient, examine
    from spyke_kohya.presets.loading import load

    loaded = load(preset, root.absolute()) if preset else None
    if loaded and loaded.training is None:
        say_findings(loaded.findings)
        raise blocked(loaded.findings, "not a training preset without faults")
    patient = Patient(
        find_engine=lambda: find_engine(loaded, engine, root.absolute()),
        preset=loaded.training if loaded else None,
        root=root.absolute(),
        environment=os.environ,
        home=Path.home(),
        reaches=_reaches,
    )
    checks = []
    for check in examine(patient):
        checks.append(check)
        if not as_json:
            click.echo(f"{check.status:<8} {check.subject}: {check.message}")
            if check.remedy:
                click.echo(f"         do: {check.remedy}")
    if as_json:
        print_json([check.to_dict() for check in checks])
    sys.exit(EngineError.exit_code if any(check.status == "fault" for check in checks) else 0)


def _reaches(host: str) -> bool:
    import socket

    try:
        with socket.create_connection((host, 443), timeout=3.0):
            return True
    except OSError:
        return False
