"""`watch`: follow a live run from another terminal."""

from __future__ import annotations

from pathlib import Path

import click

from spyke_kohya.cli.group import RUN_OR_OUTPUT, cli
from spyke_kohya.cli.terminal import live_display, say
from spyke_kohya.errors import Interrupted


@cli.command("watch", epilog="Example: spyke-kohya watch output/loras/spyke")
@click.argument("directory", type=RUN_OR_OUTPUT, metavar="RUN")
def watch_command(directory: Path) -> None:
    """Follow a live run from another terminal.

    Ctrl-C ends the watching. The run goes on.
    """
    import time

    from spyke_kohya.record.record import read_record
    from spyke_kohya.record.rundir import RunDirectory
    from spyke_kohya.record.runs import find_runs
    from spyke_kohya.run.watch import follow

    newest = next(iter(find_runs(directory)), None)
    run = newest if newest and not RunDirectory(directory).record.is_file() else RunDirectory(directory)
    try:
        say(f"watching {run.path}")
        with live_display() as display:
            for event, progress in follow(run, lambda: time.sleep(0.5)):
                display(event, progress)
    except KeyboardInterrupt as stop:
        raise Interrupted("no longer watching; the run goes on", where=str(run.path)) from stop
    record = read_record(run).true_now
    click.echo(f"{record.status}{': ' + record.reason if record.reason else ''}")
