"""`samples`: render the tied checkpoints with the same prompts and seeds."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from spyke_kohya.cli.group import ENGINE, FILE, ROOT, cli
from spyke_kohya.cli.terminal import open_session


@cli.command(short_help="Render the tied checkpoints with the same prompts and seeds.")
@click.argument("run", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="RUN")
@click.option("--preset", help="Take [samples] from this preset, not from the one that was trained.")
@click.option("--name", help="The output_name to render, where a directory holds several.")
@click.option("--png", type=FILE, help="Where to write the contact sheet.  [default: samples.png in the run directory]")
@ENGINE
@ROOT
def samples(run: Path, preset: str | None, name: str | None, png: Path | None, engine: Path | None, root: Path) -> None:
    """Render checkpoints x prompts with one seed, by sd-scripts' gen_img.py, and lay them out on a contact sheet.

    RUN is a run directory, or an output directory, whose newest run is taken. Rendered are the checkpoints that `rank`
    says to look at, and the base without a LoRA.
    """
    from spyke_kohya.report.live import ProgressLine

    with ProgressLine(sys.stderr) as line:
        folder, sheet = open_session(root).samples(
            run,
            preset=preset,
            name=name,
            png=png,
            engine=engine,
            listen=lambda done, of: line.show(f"{done}/{of} pictures rendered"),
        )
    click.echo(f"pictures: {folder}\ncontact sheet: {sheet}")
