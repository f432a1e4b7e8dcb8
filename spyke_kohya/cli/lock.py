"""`lock`: record all that decides how a preset trains."""

from __future__ import annotations

from pathlib import Path

import click

from spyke_kohya.cli.group import ENGINE, ROOT, cli
from spyke_kohya.cli.terminal import open_session
from spyke_kohya.errors import refusal


@cli.command("lock", epilog="Next: spyke-kohya train PRESET --locked")
@click.argument("preset")
@click.option("--check", is_flag=True, help="Show what changed since then, and write nothing.")
@ENGINE
@ROOT
def lock_command(preset: str, check: bool, engine: Path | None, root: Path) -> None:
    """Record everything that decides how a preset trains.

    The lock is the file presets/NAME.lock. `train --locked` refuses to start when anything changed since.
    """
    from spyke_kohya.repeat.lock import lock_path, read_lock

    session = open_session(root)
    loaded = session.load(preset)
    if not check:
        path = session.write_lock(loaded, engine)
        lock = read_lock(path)
        click.echo(f"locked {len(lock['images'])} images, {len(lock['captions'])} captions: {path}")
    elif drifted := session.check_lock(loaded, engine):
        raise refusal(drifted, "not as it was locked")
    else:
        click.echo(f"as locked: {lock_path(loaded)}")
