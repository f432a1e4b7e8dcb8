"""`samples`: render the tied checkpoints with the same prompts and seeds."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from spyke_kohya.cli.group import ENGINE, FILE, ROOT, RUN_OR_OUTPUT, cli
from spyke_kohya.cli.terminal import open_session


@cli.command(epilog="Example: spyke-kohya samples output/loras/spyke")
@click.argument("run", type=RUN_OR_OUTPUT, metavar="RUN")
@click.option("--preset", help="Use [samples] of this preset, not of the one that was trained.")
@click.option("--name", help="The output_name to render, where a directory holds several.")
@click.option("--png", type=FILE, help="Where to write the contact sheet.  [default: samples.png in the run directory]")
@ENGINE
@ROOT
def samples(run: Path, preset: str | None, name: str | None, png: Path | None, engine: Path | None, root: Path) -> None:
    """Render the checkpoints with the same prompts and seeds.

    sd-scripts' gen_img.py renders the checkpoints that `rank` says to look at, and the base model without a LoRA. One
    contact sheet shows them side by side. RUN is a run directory, or an output directory: then its newest run is taken.
    """
    from spyke_kohya.report.live import Display

    with Display(sys.stderr, at_once=True) as display:
        folder, sheet = open_session(root).samples(
            run,
            preset=preset,
            name=name,
            png=png,
            engine=engine,
            listen=lambda done, of: display.show(f"{done}/{of} pictures rendered"),
        )
    click.echo(f"pictures: {folder}\ncontact sheet: {sheet}")
