"""An evaluation on a terminal: a table of the checkpoints with their intervals, and what it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from spyke_kohya.rank.result import HeldoutRanking, HeldoutRow
from spyke_kohya.report.text import bullets, plain, to_look_at

EXPLAINED = (
    "base: this much below (-) or above (+) the base model's loss; lowest: above the lowest, with the standard error "
    "of that difference; alike: base, every timestep weighed alike"
)


def heldout_table(ranking: HeldoutRanking, width: int = 80, title: str = "") -> str:
    """Return the evaluation as plain text of at most ``width`` columns, without colour."""
    return plain(_view(ranking, title), width)


def _view(ranking: HeldoutRanking, title: str) -> RenderableType:
    kind = "trained" if ranking.ranks_nothing else "held-out"
    count = len(ranking.rows)
    head = f"{title or 'Evaluation'}: {count} checkpoint{'s' * (count > 1)} on {ranking.pictures} {kind} pictures"
    if ranking.groups != ranking.pictures:
        head += f" ({ranking.groups} different ones)"
    return Group(
        Text(head, style="bold"),
        Padding(_measured_rows(ranking), (1, 0, 0, 2)),
        Padding(Text(EXPLAINED, style="dim"), (0, 0, 1, 2)),
        *to_look_at(ranking.test_order),
        Text(ranking.verdict, style="bold"),
        bullets(ranking.notes),
    )


def _measured_rows(ranking: HeldoutRanking) -> Table:
    """Return the rows by step for a memorisation curve, which ranks nothing; else best first."""
    rows = ranking.rows if ranking.kind == "heldout" else tuple(ranking.by_step)
    columns = [name for name in _CELLS if any(_CELLS[name](row, ranking) for row in rows)]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        table.add_column(name, justify="left" if name == "tied" else "right")
    for row in rows:
        style = "bold green" if row is ranking.minimum and ranking.test_order else "" if row.tied else "dim"
        table.add_row(*(_CELLS[name](row, ranking) for name in columns), style=style)
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


_CELLS: Mapping[str, Callable[[HeldoutRow, HeldoutRanking], str]] = {
    "rank": lambda row, ranking: "" if ranking.ranks_nothing else str(row.rank),
    "step": lambda row, _: str(row.step),
    "loss": lambda row, _: f"{row.loss:.5f}",
    "base": lambda row, _: f"{row.ratio - 1:+.2%}",
    "±SE": lambda row, _: _number(row.standard_error, ".2%"),
    "lowest": lambda row, _: f"{row.above_best:+.2%}" if row.rank > 1 else "",
    "± SE": lambda row, _: _number(row.above_best_error if row.rank > 1 else None, ".2%"),
    "tied": lambda row, ranking: "tied" if row.tied and ranking.has_set else "",
    "p": lambda row, _: _number(row.tied_p, ".2f"),
    "alike": lambda row, _: f"{row.ratio_by_timestep - 1:+.2%}",
    "gap": lambda row, _: _number(row.gap, "+.4f"),
    "AUC": lambda row, _: _number(row.auc, ".2f"),
    "norm": lambda row, _: _number(row.norm, ".3g"),
    "avr_loss": lambda row, _: _number(row.avr_loss, ".4f"),
}
