"""A ranking on a terminal: tables and sentences for rich, and a chart of characters. It prints nothing itself."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from spyke_kohya.rank.losses import LossCurve
from spyke_kohya.rank.result import Block, HeldoutRanking, HeldoutRow, Row, TrainingRanking, TrainingRow, Trial
from spyke_kohya.report.curves import Drawing, Kind, thinned, training_drawing

_MARKS: dict[Kind, tuple[str, str]] = {
    "lowest": ("▼", "▼ lowest, step {}"), "tied": ("●", "● tied with it"), "other": ("○", "○ outside the noise"),
}  # fmt: skip
_CHART_LINES = 19
_TRAINING_EXPLAINED = "p: how often noise alone puts it this far above its best rival (tied: > 0.1)"
_HELDOUT_EXPLAINED = (
    "base: this much below (-) or above (+) the base model's loss; lowest: above the lowest, with the standard error "
    "of that difference; alike: base, with the same weight for every timestep"
)


def ranking_view(ranking: TrainingRanking | HeldoutRanking, title: str = "") -> RenderableType:
    """Return the whole ranking for ``Console.print``: checkpoints, what to try, the verdict and its notes."""
    if isinstance(ranking, HeldoutRanking):
        head, tables, explained = _heldout_head(ranking), [_heldout_rows(ranking)], _HELDOUT_EXPLAINED
        title = title or "Evaluation"
    else:
        head, tables, explained = _training_head(ranking), _training_tables(ranking), _TRAINING_EXPLAINED
    count = len(ranking.rows)
    return Group(
        Text(f"{title or 'Checkpoints'}: {count} checkpoint{'s' * (count > 1)} {head}", style="bold"),
        Padding(tables[0], (1, 0, 0, 2)),
        Padding(Text(explained, style="dim"), (0, 0, 1, 2)),
        *(Padding(table, (0, 0, 1, 2)) for table in tables[1:]),
        *_to_look_at(ranking.test_order),
        Text(ranking.verdict, style="bold"),
        _bullets(ranking.notes),
    )


def ranking_table(ranking: TrainingRanking | HeldoutRanking, width: int = 80, title: str = "") -> str:
    """Return the same as plain text of at most ``width`` columns, without colour."""
    return plain(ranking_view(ranking, title), width)


def plain(shown: RenderableType, width: int) -> str:
    """Return what rich would print, as text of at most ``width`` columns without colour."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(shown, markup=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


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


def _to_look_at(trials: Sequence[Trial]) -> list[RenderableType]:
    if not trials:
        return []
    table = Table.grid(padding=(0, 2, 0, 0))
    digits = max(len(str(trial.candidate.step)) for trial in trials)
    for place, trial in enumerate(trials, start=1):
        file = trial.candidate.file
        step = Text(f"step {trial.candidate.step:>{digits}}", no_wrap=True)
        table.add_row(str(place), trial.role, step, Text(file.name if file else "", overflow="fold"))
    return [Text("Look at these, in this order", style="bold"), Padding(table, (0, 0, 1, 2))]


def _bullets(sentences: Sequence[str]) -> Padding:
    table = Table.grid(padding=(0, 1, 0, 0))
    for sentence in sentences:
        table.add_row("-", Text(sentence))
    return Padding(table, (1, 0, 0, 2))


def _training_head(ranking: TrainingRanking) -> str:
    covers = f"{ranking.regime}, {ranking.window} batches" if ranking.window else "of an unknown window"
    return (
        f"by avr_loss ({covers})" if ranking.by == "avr_loss" else f"by the loss around them ({ranking.width} batches)"
    )


def _heldout_head(ranking: HeldoutRanking) -> str:
    different = f" ({ranking.groups} different ones)" if ranking.groups != ranking.pictures else ""
    return f"on {ranking.pictures} {'trained' if ranking.ranks_nothing else 'held-out'} pictures{different}"


def _training_tables(ranking: TrainingRanking) -> list[Table]:
    """Return the checkpoints, best first, and the mean losses between them where they are known."""
    blocks = [_table(_BLOCK_CELLS, ranking.blocks)] if ranking.blocks else []
    return [_table(_TRAINING_CELLS, ranking.rows, ranking.minimum), *blocks]


def _heldout_rows(ranking: HeldoutRanking) -> Table:
    """Return the rows by step for a memorisation curve, which ranks nothing; else best first."""
    without = ("rank",) * ranking.ranks_nothing + ("tied",) * (not ranking.has_set)
    cells = {name: cell for name, cell in _HELDOUT_CELLS.items() if name not in without}
    rows = ranking.rows if ranking.kind == "heldout" else ranking.by_step
    return _table(cells, rows, ranking.minimum if ranking.test_order else None)


def _table(cells: Mapping[str, Callable[[Any], str]], rows: Sequence[Any], best: Row | None = None) -> Table:
    """Return the columns that are not empty; the ``best`` row stands out, and rows that are not tied are dim."""
    columns = {name: texts for name, cell in cells.items() if any(texts := [cell(row) for row in rows])}
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        table.add_column(name, justify="left" if name == "tied" else "right")
    for row, *texts in zip(rows, *columns.values(), strict=True):
        dim = isinstance(row, Row) and not row.tied
        table.add_row(*texts, style="bold green" if best and row is best else "dim" if dim else "")
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


_TRAINING_CELLS: Mapping[str, Callable[[TrainingRow], str]] = {
    "rank": lambda row: str(row.rank),
    "step": lambda row: str(row.step),
    "avr_loss": lambda row: f"{row.avr_loss:.4f}",
    "±SE": lambda row: f"{row.standard_error:.4f}",
    "centred": lambda row: _number(row.centred_loss, ".4f"),
    "tied": lambda row: "tied" if row.tied else "",
    "p": lambda row: f"{row.tied_p:.2f}",
}
_BLOCK_CELLS: Mapping[str, Callable[[Block], str]] = {
    "steps": lambda block: f"{block.after + 1}-{block.to}",
    "mean loss": lambda block: f"{block.mean_loss:.4f}",
    "±SE": lambda block: f"{block.standard_error:.4f}",
}
_HELDOUT_CELLS: Mapping[str, Callable[[HeldoutRow], str]] = {
    "rank": lambda row: str(row.rank),
    "step": lambda row: str(row.step),
    "loss": lambda row: f"{row.loss:.5f}",
    "base": lambda row: f"{row.ratio - 1:+.2%}",
    "±SE": lambda row: _number(row.standard_error, ".2%"),
    "lowest": lambda row: f"{row.above_best:+.2%}" if row.rank > 1 else "",
    "± SE": lambda row: _number(row.above_best_error if row.rank > 1 else None, ".2%"),
    "tied": lambda row: "tied" if row.tied else "",
    "p": lambda row: _number(row.tied_p, ".2f"),
    "alike": lambda row: f"{row.ratio_by_timestep - 1:+.2%}",
    "gap": lambda row: _number(row.gap, "+.4f"),
    "AUC": lambda row: _number(row.auc, ".2f"),
    "norm": lambda row: _number(row.norm, ".3g"),
    "avr_loss": lambda row: _number(row.avr_loss, ".4f"),
}


def _round_ticks(first: int, last: int) -> list[int]:
    """Return at most 7 round numbers from ``first`` to ``last``."""
    least = max(1, (last - first) / 6)
    power = 10 ** int(np.floor(np.log10(least)))
    size = next(round(power * factor) for factor in (1, 2, 5, 10) if power * factor >= least)
    return list(range(-(-first // size) * size, last + 1, size))


def _visible(drawing: Drawing, ranking: TrainingRanking, width: int) -> tuple[list[int], list[float]]:
    """Return the line without its start, where few losses would flatten the rest, and without what lies far off."""
    line, points = drawing.line, drawing.checkpoints
    margin = 3 * points.errors.max()
    low, high = points.values.min() - margin, points.values.max() + margin
    window_steps = (ranking.window or ranking.assumed_window or 1) // ranking.micro_batches_per_step
    begun = line.steps >= min(ranking.by_step[0].step, window_steps // 4)
    at = np.flatnonzero(begun & (line.values >= low) & (line.values <= high))
    at = at[thinned(line.values[at], 4 * width)] if len(at) else at
    return line.steps[at].tolist(), line.values[at].tolist()
