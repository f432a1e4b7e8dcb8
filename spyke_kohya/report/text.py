"""A ranking on a terminal: tables and sentences for rich, and a chart of characters. It prints nothing itself."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from spyke_kohya.rank.losses import LossCurve
from spyke_kohya.rank.result import TrainingRanking, TrainingRow

MINIMUM, TIED, OTHER = "▼", "●", "○"
P_EXPLAINED = "p: how often noise alone puts it this far above its best rival (tied: > 0.1)"


def ranking_view(ranking: TrainingRanking, title: str = "") -> RenderableType:
    """The whole ranking for ``Console.print``: checkpoints, what to try, the verdict and its notes."""
    return Group(
        Text(f"{title or 'Checkpoints'}: {_counted(ranking)}", style="bold"),
        Padding(_checkpoint_table(ranking), (1, 0, 0, 2)),
        Padding(Text(P_EXPLAINED, style="dim"), (0, 0, 1, 2)),
        *([Padding(_block_table(ranking), (0, 0, 1, 2))] if ranking.blocks else []),
        Text("Look at these, in this order", style="bold"),
        Padding(_test_table(ranking), (0, 0, 1, 2)),
        Text(ranking.verdict, style="bold"),
        Padding(_bullets(ranking.notes), (1, 0, 0, 2)),
    )


def ranking_table(ranking: TrainingRanking, width: int = 80, title: str = "") -> str:
    """The same as plain text of at most ``width`` columns, without colour."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(ranking_view(ranking, title))
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def loss_chart(
    curve: LossCurve, ranking: TrainingRanking, width: int = 80, height: int = 20, *, colour: bool = False
) -> str:
    """avr_loss by step with the checkpoints on it, ``width`` columns by ``height`` lines, and a line of legend."""
    import plotext

    figure = plotext.figure.clear()
    figure.plot_size(width, height - 1)
    figure.theme("default" if colour else "colorless")
    figure.canvas("default")
    steps, averages = _drawable(curve, ranking, width)
    if len(steps):
        figure.draw(figure.signal(steps, averages, marker="braille").lines())
    for marker, rows in _marked(ranking).items():
        if rows:
            figure.draw(figure.signal([row.step for row in rows], [row.avr_loss for row in rows], marker=marker))
    ticks = _round_ticks(ranking.by_step[0].step if not steps else min(steps), ranking.by_step[-1].step)
    figure.ruler("x").ticks(ticks, [str(tick) for tick in ticks])
    return f"{figure.build().string(colorless=not colour).rstrip()}\n{_legend(ranking)}\n"


def _counted(ranking: TrainingRanking) -> str:
    count = len(ranking.rows)
    covers = f"{ranking.regime}, {ranking.window} batches" if ranking.window else "of an unknown window"
    by = f"avr_loss ({covers})" if ranking.by == "avr_loss" else f"the loss around them ({ranking.width} batches)"
    return f"{count} checkpoint{'s' * (count > 1)} by {by}"


def _checkpoint_table(ranking: TrainingRanking) -> Table:
    centred = ranking.minimum.centred_loss is not None
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("rank", "step", "avr_loss", "±SE", *(["centred"] if centred else []), "tied", "p"):
        table.add_column(name, justify="left" if name == "tied" else "right")
    for row in ranking.rows:
        middle = [] if row.centred_loss is None else [f"{row.centred_loss:.4f}"]
        numbers = [str(row.rank), str(row.step), f"{row.avr_loss:.4f}", f"{row.standard_error:.4f}", *middle]
        style = "bold green" if row is ranking.minimum else "" if row.tied else "dim"
        table.add_row(*numbers, "tied" if row.tied else "", f"{row.tied_p:.2f}", style=style)
    return table


def _block_table(ranking: TrainingRanking) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("steps", "mean loss", "±SE"):
        table.add_column(name, justify="right")
    for block in ranking.blocks:
        table.add_row(f"{block.after + 1}-{block.to}", f"{block.mean_loss:.4f}", f"{block.standard_error:.4f}")
    return table


def _test_table(ranking: TrainingRanking) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    digits = len(str(ranking.final_step))
    for place, trial in enumerate(ranking.test_order, start=1):
        file = trial.candidate.file
        step = Text(f"step {trial.candidate.step:>{digits}}", no_wrap=True)
        table.add_row(str(place), trial.role, step, Text(file.name if file else "", overflow="fold"))
    return table


def _bullets(sentences: tuple[str, ...]) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    for sentence in sentences:
        table.add_row("-", Text(sentence))
    return table


def _round_ticks(first: int, last: int) -> list[int]:
    """At most 7 round numbers from ``first`` to ``last``."""
    least = max(1, (last - first) / 6)
    power = 10 ** int(np.floor(np.log10(least)))
    size = next(round(power * factor) for factor in (1, 2, 5, 10) if power * factor >= least)
    return list(range(-(-first // size) * size, last + 1, size))


def _drawable(curve: LossCurve, ranking: TrainingRanking, width: int) -> tuple[list[int], list[float]]:
    """The curve at no more points than can be seen, without the start, whose few losses would flatten the rest."""
    known = curve.before_divergence()
    level = [row.avr_loss for row in ranking.rows]
    margin = 3 * max(row.standard_error for row in ranking.rows)
    seen = (
        np.isfinite(known.avr_loss) & (known.avr_loss >= min(level) - margin) & (known.avr_loss <= max(level) + margin)
    )
    window_steps = (ranking.window or ranking.assumed_window or 1) // ranking.micro_batches_per_step
    at = np.flatnonzero(seen & (known.steps >= min(ranking.by_step[0].step, window_steps // 4)))
    at = at[:: max(1, len(at) // (4 * width))]
    return known.steps[at].tolist(), known.avr_loss[at].tolist()


def _marked(ranking: TrainingRanking) -> dict[str, list[TrainingRow]]:
    others = ranking.rows[1:]
    return {
        OTHER: [row for row in others if not row.tied],
        TIED: [row for row in others if row.tied],
        MINIMUM: [ranking.minimum],
    }


def _legend(ranking: TrainingRanking) -> str:
    names = {MINIMUM: f"lowest, step {ranking.minimum.step}", TIED: "tied with it", OTHER: "outside the noise"}
    return "  avr_loss by step   " + "   ".join(f"{mark} {names[mark]}" for mark in names if _marked(ranking)[mark])
