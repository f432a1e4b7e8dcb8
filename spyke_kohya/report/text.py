"""A ranking on a terminal: tables and sentences for rich, and a chart of characters. It prints nothing itself."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from spyke_kohya.rank.losses import LossCurve
from spyke_kohya.rank.result import TrainingRanking, Trial
from spyke_kohya.report.curves import Drawing, Kind, thinned, training_drawing

_MARKS: dict[Kind, tuple[str, str]] = {
    "lowest": ("▼", "▼ lowest, step {}"), "tied": ("●", "● tied with it"), "other": ("○", "○ outside the noise"),
}  # fmt: skip
_CHART_LINES = 19
P_EXPLAINED = "p: how often noise alone puts it this far above its best rival (tied: > 0.1)"


def ranking_view(ranking: TrainingRanking, title: str = "") -> RenderableType:
    """Return the whole ranking for ``Console.print``: checkpoints, what to try, the verdict and its notes."""
    return Group(
        Text(f"{title or 'Checkpoints'}: {_counted(ranking)}", style="bold"),
        Padding(_ranked_rows(ranking), (1, 0, 0, 2)),
        Padding(Text(P_EXPLAINED, style="dim"), (0, 0, 1, 2)),
        *([Padding(_means_between(ranking), (0, 0, 1, 2))] if ranking.blocks else []),
        *to_look_at(ranking.test_order),
        Text(ranking.verdict, style="bold"),
        bullets(ranking.notes),
    )


def ranking_table(ranking: TrainingRanking, width: int = 80, title: str = "") -> str:
    """Return the same as plain text of at most ``width`` columns, without colour."""
    return plain(ranking_view(ranking, title), width)


def plain(shown: RenderableType, width: int) -> str:
    """Return what rich would print, as text of at most ``width`` columns without colour."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(shown, markup=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def to_look_at(trials: Sequence[Trial]) -> list[RenderableType]:
    """Return the test order under its heading, or nothing."""
    if not trials:
        return []
    table = Table.grid(padding=(0, 2, 0, 0))
    digits = max(len(str(trial.candidate.step)) for trial in trials)
    for place, trial in enumerate(trials, start=1):
        file = trial.candidate.file
        step = Text(f"step {trial.candidate.step:>{digits}}", no_wrap=True)
        table.add_row(str(place), trial.role, step, Text(file.name if file else "", overflow="fold"))
    return [Text("Look at these, in this order", style="bold"), Padding(table, (0, 0, 1, 2))]


def bullets(sentences: Sequence[str]) -> Padding:
    """Return the sentences as a list with dashes."""
    table = Table.grid(padding=(0, 1, 0, 0))
    for sentence in sentences:
        table.add_row("-", Text(sentence))
    return Padding(table, (1, 0, 0, 2))


def terminal_chart(curve: LossCurve, ranking: TrainingRanking, width: int = 80) -> str:
    """Return avr_loss by step with the checkpoints on it, ``width`` columns by 19 lines, and a line of legend."""
    import plotext

    drawing = training_drawing(curve, ranking)
    figure = plotext.figure.clear()
    figure.plot_size(width, _CHART_LINES)
    figure.theme("colorless")
    figure.canvas("default")
    steps, averages = _visible(drawing, ranking, width)
    if steps:
        figure.draw(figure.signal(steps, averages, marker="braille").lines())
    for group in drawing.groups:
        steps_of, values = group.points.steps.tolist(), group.points.values.tolist()
        figure.draw(figure.signal(steps_of, values, marker=_MARKS[group.kind][0]))
    ticks = _round_ticks(min(steps, default=ranking.by_step[0].step), ranking.by_step[-1].step)
    figure.ruler("x").ticks(ticks, [str(tick) for tick in ticks])
    legend = "   ".join(_MARKS[group.kind][1].format(ranking.minimum.step) for group in reversed(drawing.groups))
    return f"{figure.build().string(colorless=True).rstrip()}\n  avr_loss by step   {legend}\n"


def _counted(ranking: TrainingRanking) -> str:
    count = len(ranking.rows)
    covers = f"{ranking.regime}, {ranking.window} batches" if ranking.window else "of an unknown window"
    by = f"avr_loss ({covers})" if ranking.by == "avr_loss" else f"the loss around them ({ranking.width} batches)"
    return f"{count} checkpoint{'s' * (count > 1)} by {by}"


def _ranked_rows(ranking: TrainingRanking) -> Table:
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


def _means_between(ranking: TrainingRanking) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("steps", "mean loss", "±SE"):
        table.add_column(name, justify="right")
    for block in ranking.blocks:
        table.add_row(f"{block.after + 1}-{block.to}", f"{block.mean_loss:.4f}", f"{block.standard_error:.4f}")
    return table


def _round_ticks(first: int, last: int) -> list[int]:
    """Return at most 7 round numbers from ``first`` to ``last``."""
    least = max(1, (last - first) / 6)
    power = 10 ** int(np.floor(np.log10(least)))
    size = next(round(power * factor) for factor in (1, 2, 5, 10) if power * factor >= least)
    return list(range(-(-first // size) * size, last + 1, size))


def _visible(drawing: Drawing, ranking: TrainingRanking, width: int) -> tuple[list[int], list[float]]:
    """Return the line without its start, whose few losses would flatten the rest, and without what lies far off."""
    line, points = drawing.line, drawing.checkpoints
    margin = 3 * points.errors.max()
    low, high = points.values.min() - margin, points.values.max() + margin
    window_steps = (ranking.window or ranking.assumed_window or 1) // ranking.micro_batches_per_step
    begun = line.steps >= min(ranking.by_step[0].step, window_steps // 4)
    at = np.flatnonzero(begun & (line.values >= low) & (line.values <= high))
    at = at[thinned(line.values[at], 4 * width)] if len(at) else at
    return line.steps[at].tolist(), line.values[at].tolist()
