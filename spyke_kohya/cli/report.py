"""`report`: a page to look at, and a summary to keep."""

from __future__ import annotations

from pathlib import Path

import click

from spyke_kohya.cli.asking import examine_preset
from spyke_kohya.cli.group import FILE, ROOT, RUN_OR_OUTPUT, cli
from spyke_kohya.cli.terminal import blocked, say_findings
from spyke_kohya.errors import UsageError
from spyke_kohya.files import write_whole


@cli.command("report", short_help="A page to look at, and a summary to keep.")
@click.argument("directory", type=RUN_OR_OUTPUT, metavar="RUN")
@click.option("--losses", type=FILE, help="Losses from this file, where no run recorded them.")
@click.option("--preset", help="Where no run recorded it: the preset that was trained.")
@click.option("--planned", type=click.IntRange(min=1), metavar="STEPS", help="The steps you had planned.")
@ROOT
def report_command(directory: Path, losses: Path | None, preset: str | None, planned: int | None, root: Path) -> None:
    """Write report.html, one page that needs no network, and summary.md into the run's directory."""
    from spyke_kohya.report.data import read_story
    from spyke_kohya.report.html import report_html
    from spyke_kohya.report.markdown import summary_markdown

    examined = examine_preset(preset, root, ()) if preset else None
    if examined and examined.plan is None:
        say_findings(examined.findings)
        raise blocked(examined.findings, "the preset has no plan to compare with")
    story = read_story(directory, losses=losses, planned=planned, preset=examined)
    for name, text in (("report.html", report_html(story)), ("summary.md", summary_markdown(story))):
        _write(story.folder / name, text)
        click.echo(story.folder / name)


def _write(file: Path, text: str) -> None:
    try:
        write_whole(file, text.encode(errors="backslashreplace"))
    except OSError as fault:
        remedy = "move away what has this name, make room, or give yourself the right to write there"
        raise UsageError(f"{file.name} can't be written: {fault.strerror}", where=str(file), remedy=remedy) from fault
