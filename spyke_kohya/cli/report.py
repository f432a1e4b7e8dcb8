"""`report`: a page to look at, and a summary to keep."""

from __future__ import annotations

from pathlib import Path

import click

from spyke_kohya.cli.group import FILE, ROOT, RUN_OR_OUTPUT, cli
from spyke_kohya.cli.terminal import open_session


@cli.command("report", epilog="Example: spyke-kohya report output/loras/spyke")
@click.argument("directory", type=RUN_OR_OUTPUT, metavar="RUN")
@click.option("--losses", type=FILE, help="A file of losses, where no run recorded them.")
@click.option("--preset", help="The preset that was trained, where no run recorded it.")
@click.option(
    "--planned", type=click.IntRange(min=1), metavar="STEPS", help="The number of steps that you had planned."
)
@ROOT
def report_command(directory: Path, losses: Path | None, preset: str | None, planned: int | None, root: Path) -> None:
    """Write a page to look at, and a summary to keep.

    They are report.html, one file that needs no network, and summary.md. Both are written into the run directory. RUN
    may be an output directory: then its newest run is taken.
    """
    for file in open_session(root).report(directory, losses=losses, preset=preset, planned=planned):
        click.echo(file)
