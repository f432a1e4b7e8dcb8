"""`deploy`: put the chosen checkpoint where it is used."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from spyke_kohya.cli.group import DIRECTORY, JSON, RUN_OR_OUTPUT, cli
from spyke_kohya.cli.terminal import print_json


@cli.command("deploy", epilog="Example: spyke-kohya deploy output/loras/spyke --to ~/tools/ComfyUI")
@click.argument("directory", type=RUN_OR_OUTPUT, metavar="DIR")
@click.option("--to", type=DIRECTORY, help="The directory of the UI.  [default: the preset's [deploy] to]")
@click.option("--step", type=click.IntRange(min=1), help="Deploy the checkpoint of this step.")
@click.option("--name", help="The name of the LoRA there.  [default: the preset's [deploy] name, or output_name]")
@click.option("--replace", is_flag=True, help="Replace a different file of this name; that file is kept beside it.")
@click.option("--metadata", is_flag=True, help="Write the trigger and the run into the file's header too.")
@click.option("--link", is_flag=True, help="Make a symbolic link, not a copy.")
@click.option("--undo", is_flag=True, help="Remove what was deployed, and put back what was there before.")
@JSON
def deploy_command(
    directory: Path,
    to: Path | None,
    step: int | None,
    name: str | None,
    replace: bool,
    metadata: bool,
    link: bool,
    undo: bool,
    as_json: bool,
) -> None:
    """Put the chosen checkpoint into ComfyUI, A1111 or Forge.

    It is the first one that `rank` says to look at, or that of --step. It is checked, copied, and checked again. A file
    beside it, NAME.spyke.json, says which run it comes from.
    """
    from spyke_kohya.ship import deploy as shipping
    from spyke_kohya.ship.choose import choose

    if undo:
        click.echo(shipping.undo_from(directory, to, name))
        return
    place = shipping.place_of(directory, to)
    shipment = choose(directory, step=step, name=name)
    done = shipping.deploy(shipment, place, now=datetime.now(), replace=replace, link=link, metadata=metadata)
    if as_json:
        print_json(done.to_dict())
        return
    click.echo(f"deployed {shipment.checkpoint.name} to {place.ui}: {done.file}")
    click.echo(f"history: {place.provenance(shipment.name)}\n{shipment.verdict}")
