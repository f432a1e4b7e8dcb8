"""`runs`: all runs under a directory, or two compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from spyke_kohya.cli.group import FILE, JSON, RUN_OR_OUTPUT, cli
from spyke_kohya.cli.terminal import print_json, say, terminal_width
from spyke_kohya.errors import UsageError


@cli.command("runs", epilog="Example: spyke-kohya runs output/loras")
@click.argument("paths", nargs=-1, type=RUN_OR_OUTPUT, metavar="[DIR | RUN RUN]")
@click.option("--png", type=FILE, help="Where to draw the curves of two runs.  [default: in the second run directory]")
@click.option("--gc", is_flag=True, help="List what no run needs any more: old states, scratch.")
@click.option("--yes", is_flag=True, help="With --gc: delete these files for good.")
@JSON
def runs_command(paths: Sequence[Path], png: Path | None, gc: bool, yes: bool, as_json: bool) -> None:
    """List the runs under a directory, or compare two runs.

    Without DIR it lists the runs under output, the newest first. For two runs it shows the settings in which they
    differ, and draws both curves in one picture.
    """
    from spyke_kohya import api
    from spyke_kohya.report.overview import runs_table

    if len(paths) > 2:
        raise UsageError("name a directory, or two runs to compare")
    directory = paths[0] if paths else Path("output")
    if gc:
        _collect_garbage(directory, yes, as_json)
    elif len(paths) == 2:
        _compare(paths[0], paths[1], png, as_json)
    else:
        found = api.runs(directory)
        if as_json:
            print_json([run.to_dict() for run in found])
        else:
            click.echo(runs_table(found, terminal_width()), nl=False)


def _compare(first: Path, second: Path, png: Path | None, as_json: bool) -> None:
    from spyke_kohya.record.rundir import RunDirectory
    from spyke_kohya.repeat.replay import differences
    from spyke_kohya.report.drawings import write_comparison_png
    from spyke_kohya.report.overview import comparison_text, ranked, summarize

    pair = [RunDirectory(path) for path in (first, second)]
    found, summaries = differences(*pair), [summarize(run) for run in pair]
    picture = png or second / f"against-{first.resolve().name}.png"
    results = [result for run in pair if (result := ranked(run))]
    if results:
        write_comparison_png(picture, results)
    if as_json:
        changed = [asdict(one) for one in found]
        print_json({"runs": [run.to_dict() for run in summaries], "differences": changed, "picture": str(picture)})
        return
    click.echo(comparison_text(summaries, found, terminal_width()))
    if results:
        click.echo(f"picture: {picture}")


def _collect_garbage(directory: Path, yes: bool, as_json: bool) -> None:
    from spyke_kohya import api
    from spyke_kohya.report.overview import deletable_text

    found = api.deletable(directory)
    if as_json:
        print_json([{**asdict(item), "path": str(item.path)} for item in found])
    else:
        click.echo(deletable_text(found))
    if yes:
        api.delete(found)
        say(f"deleted {len(found)}")
    elif found:
        say("nothing was deleted: add --yes to delete")
