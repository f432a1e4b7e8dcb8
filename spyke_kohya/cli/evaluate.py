"""`evaluate`: measure every checkpoint on pictures it never saw."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from spyke_kohya.cli.group import DIRECTORY, ENGINE, JSON, RUN_OR_OUTPUT, cli
from spyke_kohya.cli.rank import show_ranking
from spyke_kohya.cli.terminal import open_session, print_json


@cli.command(epilog="Example: spyke-kohya evaluate output/loras/spyke")
@click.argument("run", type=RUN_OR_OUTPUT, metavar="RUN")
@click.option(
    "--heldout", type=DIRECTORY, help="The held-out pictures.  [default: the preset's [evaluate] heldout_dir]"
)
@click.option("--quick", is_flag=True, help="8 pictures at 4 timesteps: a third of the time, less certain.")
@click.option("--name", help="The output_name to evaluate, where a directory holds several.")
@ENGINE
@JSON
def evaluate(
    run: Path, heldout: Path | None, quick: bool, name: str | None, engine: Path | None, as_json: bool
) -> None:
    """Measure every checkpoint on pictures it never saw.

    Their loss ranks the checkpoints. RUN is a run directory, or an output directory: then its newest run is taken. An
    interrupted evaluation goes on where it stopped.
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
