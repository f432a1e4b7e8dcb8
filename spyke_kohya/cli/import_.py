"""`import`: write a preset from another front end's settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from spyke_kohya.cli.group import ROOT, TARGET, cli
from spyke_kohya.cli.terminal import say

if TYPE_CHECKING:
    from spyke_kohya.engine.targets import Target


@cli.command("import", short_help="Write a preset from another front end's settings.")
@click.argument("file", type=click.File("rb"))
@click.option("--name", help="The preset's name.  [default: its output_name]")
@TARGET
@ROOT
def import_(file: BinaryIO, name: str | None, target: Target, root: Path) -> None:
    """Read a kohya_ss GUI preset (JSON), an sd-scripts --config_file (TOML) or an accelerate launch command line.

    FILE may be - for stdin. What could not be carried over is said on stderr, and in the preset.
    """
    from spyke_kohya.start.importing.imported import import_settings
    from spyke_kohya.start.writing import write_new

    text = file.read().decode("utf-8-sig", errors="replace")
    imported = import_settings(text, root.absolute(), name=name, target=target)
    write_new(imported.files)
    click.echo("\n".join(str(path) for path in imported.files))
    for note in imported.notes:
        say(f"not carried over as it was: {note}")
    say(f"look at it, then: spyke-kohya validate {imported.name}")
