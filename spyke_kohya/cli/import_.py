"""`import`: write a preset from another front end's settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from spyke_kohya.cli.group import ROOT, TARGET, cli
from spyke_kohya.cli.terminal import say

if TYPE_CHECKING:
    from spyke_kohya.engine.targets import Target


@cli.command("import", epilog="Example: spyke-kohya import my_gui_preset.json --name spyke")
@click.argument("file", type=click.File("rb"))
@click.option("--name", help="The name of the new preset.  [default: output_name in FILE]")
@TARGET
@ROOT
def import_(file: BinaryIO, name: str | None, target: Target, root: Path) -> None:
    """Write a preset from the settings of another program.

    FILE is a kohya_ss GUI preset (JSON), an sd-scripts --config_file (TOML), or a text file with an accelerate launch
    command; - reads stdin. Settings that change or get lost are named on stderr, and in the preset.
    """
    from spyke_kohya.api import import_settings

    text = file.read().decode("utf-8-sig", errors="replace")
    imported = import_settings(text, target=target, name=name, root=root)
    click.echo("\n".join(str(path) for path in imported.files))
    for note in imported.notes:
        say(f"changed or lost: {note}")
    say(f"read the preset, then run: spyke-kohya validate {imported.name}")
