"""`runs`: all runs under a directory, or two compared."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import click

from spyke_kohya.cli.group import FILE, JSON, RUN_OR_OUTPUT, cli
from spyke_kohya.cli.terminal import print_json, say, terminal_width
from spyke_kohya.errors import UsageError


@cli.command("runs", short_help="All runs under a directory, or two compared.")
@click.argument("paths", nargs=-1, type=RUN_OR_OUTPUT, metavar="[DIR | RUN RUN]")
@click.option("--png", type=FILE, help="Where two runs' curves are drawn.  [default: beside the second run's record]")
@click.option("--gc", is_flag=True, help="List what nothing needs any more: old states, scratch.")
@click.option("--yes", is_flag=True, help="With --gc: delete it.")
@JSON
def runs_command(paths: Sequence[Path], png: Path | None, gc: bool, yes: bool, as_json: bool) -> None:
    """All runs under DIR (default: output), newest first; or two runs, and in what they differ."""
    from spyke_kohya.record.runs import find_runs
    from spyke_kohya.report.overview import summarize
    from spyke_kohya.report.runs_text import runs_table

    if len(paths) > 2:
        raise UsageError("name a directory, or two runs to compare")
    directory = paths[0] if paths else Path("output")
    if gc:
        _collect_garbage(directory, yes, as_json)
    elif len(paths) == 2:
        _compare(paths[0], paths[1], png, as_json)
    else:
        found = [summarize(run) for run in find_runs(directory)]
        print_json([run.to_dict() for run in found]) if as_json else click.echo(
            runs_table(found, terminal_width()), nl=False
        )


def _compare(first: Path, second: Path, png: Path | None, as_json: bool) -> None:
    from spyke_kohya.record.rundir import RunDirectory
    from spyke_kohya.repeat.replay import differences
    from spyke_kohya.report.drawings import write_comparison_png
    from spyke_kohya.report.overview import ranked, summarize
    from spyke_kohya.report.runs_text import comparison_text

    pair = [RunDirectory(path) for path in (first, second)]
    found, told = differences(*pair), [summarize(run) for run in pair]
    picture = png or second / f"against-{first.resolve().name}.png"
    results = [result for run in pair if (result := ranked(run))]
    if results:
        write_comparison_png(picture, results)
    if as_json:
        changed = [asdict(one) for one in found]
        print_json({"runs": [run.to_dict() for run in told], "differences": changed, "picture": str(picture)})
        return
    click.echo(comparison_text(told, found, terminal_width()))
    if results:
        click.echo(f"picture: {picture}")


def _collect_garbage(directory: Path, yes: bool, as_json: bool) -> None:
    from spyke_kohya.record.runs import deletable, delete
    from spyke_kohya.report.runs_text import deletable_text

    found = deletable(directory, Path(tempfile.gettempdir()), datetime.now())
    if as_json:
        print_json([{**asdict(item), "path": str(item.path)} for item in found])
    else:
        click.echo(deletable_text(found))
    if yes:
        delete(found)
        say(f"deleted {len(found)}")
    elif found:
        say("nothing was deleted: say --yes")
