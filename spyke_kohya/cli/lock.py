"""`lock`: record all that decides how a preset trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from spyke_kohya.cli.asking import drift_from, examine_preset, find_engine, make_lock
from spyke_kohya.cli.group import (
    ENGINE,
    ROOT,
    cli,
)
from spyke_kohya.cli.terminal import blocked, say_findings

if TYPE_CHECKING:
    pass


@cli.command("lock", short_help="Record all that decides how a preset trains.")
@click.argument("preset")
@click.option("--check", is_flag=True, help="Tell what has drifted since, and write nothing.")
@ENGINE
@ROOT
def lock_command(preset: str, check: bool, engine: Path | None, root: Path) -> None:
    """Record all that decides how PRESET trains in presets/NAME.lock, for `train --locked` to hold to."""
    from spyke_kohya.repeat.lock import lock_path, write_lock

    root = root.absolute()
    examined = examine_preset(preset, root, ())
    found = find_engine(examined.loaded, engine, root)
    path = lock_path(examined.loaded)
    if check:
        _, drifted = drift_from(examined, found, root, path)
        if drifted:
            say_findings(drifted)
            raise blocked(drifted, "drifted from the lock")
        click.echo(f"as locked: {path}")
        return
    lock = make_lock(examined, found, root)
    write_lock(path, lock)
    click.echo(f"locked {len(lock['images'])} images, {len(lock['captions'])} captions: {path}")
