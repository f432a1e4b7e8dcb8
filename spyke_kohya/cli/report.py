"""`report`: a page to look at, and a summary to keep."""

from __future__ import annotations

from pathlib import Path

import click

from spyke_kohya.cli.group import FILE, ROOT, RUN_OR_OUTPUT, cli
from spyke_kohya.cli.terminal import open_session


@cli.command("report", short_help="A page to look at, and a summary to keep.")
@click.argument("directory", type=RUN_OR_OUTPUT, metavar="RUN")
@click.option("--losses", type=FILE, help="Losses from this file, where no run recorded them.")
@click.option("--preset", help="Where no run recorded it: the preset that was trained.")
@click.option("--planned", type=click.IntRange(min=1), metavar="STEPS", help="The steps you had planned.")
@ROOT
def report_command(directory: Path, losses: Path | None, preset: str | None, planned: int | None, root: Path) -> None:
    """Write report.html, one page that needs no network, and summary.md into the run's directory."""
    for file in open_session(root).report(directory, losses=losses, preset=preset, planned=planned):
        click.echo(file)
