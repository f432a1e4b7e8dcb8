"""`evaluate`: measure every checkpoint on pictures it never saw."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from spyke_kohya.cli.group import DIRECTORY, ENGINE, JSON, cli
from spyke_kohya.cli.rank import show_ranking
from spyke_kohya.cli.terminal import open_session, print_json


@cli.command(short_help="Measure every checkpoint on pictures it never saw.")
@click.argument("run", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="RUN")
@click.option("--heldout", type=DIRECTORY, help="Held-out pictures, in the place of those that the preset named.")
@click.option("--quick", is_flag=True, help="8 pictures at 4 timesteps: a third of the time, and less certain.")
@click.option("--name", help="The output_name to evaluate, where a directory holds several.")
@ENGINE
@JSON
def evaluate(
    run: Path, heldout: Path | None, quick: bool, name: str | None, engine: Path | None, as_json: bool
) -> None:
    """Measure the loss of every checkpoint on pictures that were not trained on, and rank by it.

    RUN is a run directory, or an output directory, whose newest run is taken. What is measured already is not measured
    again, so an interrupted evaluation goes on where it stopped.
    """
    from spyke_kohya.report.live import Display
    from spyke_kohya.report.plain_text import progress_text

    with Display(sys.stderr, at_once=True) as display:
        result = open_session(Path()).evaluate(
            run,
            heldout=heldout,
            quick=quick,
            name=name,
            engine=engine,
            listen=lambda progress: display.show(progress_text(progress)),
        )
    print_json(result.to_dict()) if as_json else show_ranking(result, None)
