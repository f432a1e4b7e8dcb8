"""`list`: what is deployed, and from which run."""

from __future__ import annotations

from pathlib import Path

import click

from spyke_kohya.cli.group import DIRECTORY, JSON, cli
from spyke_kohya.cli.terminal import print_json


@cli.command("list", epilog="Example: spyke-kohya list ~/tools/ComfyUI")
@click.argument("place", type=DIRECTORY, metavar="UI")
@JSON
def list_command(place: Path, as_json: bool) -> None:
    """List the deployed LoRAs, and the run of each.

    UI is the directory of ComfyUI, A1111 or Forge.
    """
    from spyke_kohya.api import deployed

    found = deployed(place)
    if as_json:
        print_json([one.to_dict() for one in found])
        return
    for one in found:
        run = one.provenance.get("run") or "a training without a record"
        about = one.problem or f"step {one.provenance['step']} of {run}"
        click.echo(f"{one.name}  {one.state}  {about}")
