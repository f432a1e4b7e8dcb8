"""`deploy`: put the chosen checkpoint where it is used."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from spyke_kohya.cli.group import DIRECTORY, JSON, RUN_OR_OUTPUT, cli
from spyke_kohya.cli.terminal import print_json


@cli.command("deploy", short_help="Put the chosen checkpoint where it is used.")
@click.argument("directory", type=RUN_OR_OUTPUT, metavar="DIR")
@click.option(
    "--to", type=DIRECTORY, help="ComfyUI's, A1111's or Forge's directory.  [default: the preset's [deploy] to]"
)
@click.option("--step", type=click.IntRange(min=1), help="This checkpoint, and not the top of the test order.")
@click.option("--name", help="What to call it there.  [default: the preset's [deploy] name, or the output_name]")
@click.option("--replace", is_flag=True, help="Put it in the place of a different file, which is kept beside it.")
@click.option("--metadata", is_flag=True, help="Write the trigger and the run into the file's header.")
@click.option("--link", is_flag=True, help="Make a symbolic link.")
@click.option("--undo", is_flag=True, help="Take it away again, and put back what was there.")
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
    """Put the top of the test order, or --step N, into models/loras, checked, with its history."""
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
