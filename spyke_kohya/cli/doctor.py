"""`doctor`: can this machine train at all?"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from spyke_kohya.cli.group import ENGINE, JSON, ROOT, cli, preset_names
from spyke_kohya.cli.terminal import open_session, print_json
from spyke_kohya.errors import EngineError


@cli.command(epilog="Example: spyke-kohya doctor spyke_plasma_v1")
@click.argument("preset", required=False, shell_complete=preset_names)
@ENGINE
@ROOT
@JSON
def doctor(preset: str | None, engine: Path | None, root: Path, as_json: bool) -> None:
    """Check whether this machine can train at all.

    It checks the machine, Python, sd-scripts and the packages; with PRESET, also what this preset needs.
    """
    session = open_session(root)
    checks = []
    for check in session.doctor(session.load(preset) if preset else None, engine):
        checks.append(check)
        if not as_json:
            click.echo(f"{check.status:<8} {check.subject}: {check.message}")
            if check.remedy:
                click.echo(f"         do: {check.remedy}")
    if as_json:
        print_json([check.to_dict() for check in checks])
    sys.exit(EngineError.exit_code if any(check.status == "fault" for check in checks) else 0)
