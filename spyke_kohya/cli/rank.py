"""`rank`: rank checkpoints by the minimum of the loss curve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from spyke_kohya.cli.group import FILE, JSON, cli
from spyke_kohya.cli.terminal import print_json, say, terminal_width

if TYPE_CHECKING:
    from spyke_kohya.rank.directory import HeldoutResult, TrainingResult
    from spyke_kohya.rank.result import Evidence


@cli.command(epilog="Example: spyke-kohya rank output/loras/spyke")
@click.argument("directory", type=click.Path(path_type=Path, exists=True), metavar="DIR")
@click.option(
    "--by",
    type=click.Choice(["avr_loss", "loss", "heldout"]),
    help="What to rank by.  [default: the best evidence there is]",
)
@click.option(
    "--losses", type=click.Path(path_type=Path), help="A CSV file, console log or TensorBoard folder of losses."
)
@click.option("--window", type=click.IntRange(min=1), help="Batches in an epoch, where no file says it.")
@click.option("--name", help="The output_name to rank, where a directory holds several.")
@click.option("--every", type=click.IntRange(min=1), help="Rank only every N-th step, and the last.", metavar="N")
@click.option("--png", type=FILE, help="Where to write the picture.  [default: ranking.png beside the losses]")
@JSON
def rank(
    directory: Path,
    by: Evidence | None,
    losses: Path | None,
    window: int | None,
    name: str | None,
    every: int | None,
    png: Path | None,
    as_json: bool,
) -> None:
    """Rank checkpoints by the minimum of the loss curve.

    The ranking says how uncertain it is. DIR is an output directory, a run directory, or what holds losses: a
    TensorBoard folder, a console log, a CSV file. The best evidence is `heldout`, the loss that `evaluate` measured;
    else it is `avr_loss`. `loss` is the mean of the losses of the steps around each checkpoint.
    """
    from spyke_kohya.rank.directory import rank_best

    result = rank_best(directory, by=by, losses=losses, window=window, name=name, every=every)
    if as_json:
        print_json(result.to_dict())
        if png:
            _write_png(result, png)
    else:
        show_ranking(result, png)


def show_ranking(result: TrainingResult | HeldoutResult, png: Path | None) -> None:
    from spyke_kohya.rank.directory import HeldoutResult
    from spyke_kohya.report.ranking_text import ranking_table, terminal_chart

    for problem in result.problems:
        say(f"not read: {problem}")
    width = terminal_width()
    if not isinstance(result, HeldoutResult):
        click.echo(terminal_chart(result.curve, result.ranking, width))
    click.echo(ranking_table(result.ranking, width, result.title))
    name = "evaluation.png" if isinstance(result, HeldoutResult) else "ranking.png"
    picture = png or (result.run_dir or result.directory) / name
    _write_png(result, picture)
    click.echo(f"checkpoints: {result.directory}\npicture: {picture}")


def _write_png(result: TrainingResult | HeldoutResult, picture: Path) -> None:
    from spyke_kohya.rank.directory import HeldoutResult
    from spyke_kohya.report.drawings import write_heldout_png, write_ranking_png

    if isinstance(result, HeldoutResult):
        write_heldout_png(picture, result.ranking, result.title)
    else:
        write_ranking_png(picture, result.curve, result.ranking, result.title)
