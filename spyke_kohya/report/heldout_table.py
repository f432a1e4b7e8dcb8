"""An evaluation on a terminal and as a picture: the held-out curve with its intervals, what it means, what it cost."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from spyke_kohya.rank.result import HeldoutRanking, HeldoutRow
from spyke_kohya.report.durations import duration

if TYPE_CHECKING:
    from spyke_kohya.evaluate.evaluation import Cost, Forecast, Progress

EXPLAINED = (
    "base: this much below (-) or above (+) the base model's loss; lowest: above the lowest, with the standard error "
    "of that difference; alike: base, every timestep weighed alike"
)


def heldout_table(ranking: HeldoutRanking, width: int = 80, title: str = "") -> str:
    """The evaluation as plain text of at most ``width`` columns, without colour."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(_view(ranking, title))
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def forecast_text(forecast: Forecast) -> str:
    """What an evaluation will cost, in one or two lines."""
    pictures = [f"{forecast.heldout} held-out"] if forecast.heldout else []
    pictures += [f"{forecast.trained} trained"] if forecast.trained else []
    lines = [
        f"{forecast.forwards} predictions: {forecast.checkpoints} checkpoints + twice the base, on "
        f"{' + '.join(pictures)} pictures, at {forecast.timesteps} timesteps each"
    ]
    if forecast.measured:
        lines.append(f"{forecast.measured} of them are measured already")
    if forecast.seconds is not None and forecast.missing:
        lines.append(
            f"about {duration(forecast.seconds)} by the pace of the training, and half a minute to load the base"
        )
    return "\n".join(lines)


def progress_text(progress: Progress) -> str:
    """One line: how far it is, and the time left."""
    if progress.stage != "measuring":
        return {"loading": "loading the base model", "encoding": "encoding pictures"}.get(progress.stage, "measured")
    left = f", {duration(progress.seconds_left)} left" if progress.seconds_left is not None else ""
    return f"{progress.done}/{progress.total} losses ({progress.checkpoint}){left}"


def cost_text(cost: Cost) -> str:
    """What an evaluation took."""
    return (
        f"measured in {duration(cost.total_s)}: {duration(cost.loaded_s)} to load, {duration(cost.text_s)} captions, "
        f"{duration(cost.forward_s)} predictions; "
        f"at most {cost.most_memory_bytes / 1e9:.1f} GB of memory"
    )


def write_heldout_png(path: Path, ranking: HeldoutRanking, title: str = "") -> None:
    """Write the curve of the loss against the base, with a standard error at every checkpoint, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from spyke_kohya.report.picture import DPI, GREY, INK, SIZE_INCHES

    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axhline(0, color=GREY, linewidth=1, linestyle="--", label="the base model, without a LoRA")
    _draw(axes, ranking)
    kind = "trained on (a memorisation curve)" if ranking.ranks_nothing else "not trained on"
    axes.set_title(f"{title or 'Evaluation'}\n", loc="left", fontsize=13, fontweight="bold", color=INK)
    below = f"loss on {ranking.pictures} pictures {kind}, at {len(ranking.timesteps)} timesteps, with the same noise"
    axes.text(0, 1.02, below, transform=axes.transAxes, fontsize=9, color=GREY)  # fmt: skip
    axes.set_xlabel("training step (optimizer steps)")
    axes.set_ylabel("loss against the base model (%)")
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="best")
    figure.savefig(path, format="png", metadata={"Software": None})


def _draw(axes: Any, ranking: HeldoutRanking) -> None:
    from spyke_kohya.report.picture import BLUE, INK, ORANGE, VERMILION

    rows = ranking.by_step
    axes.plot([row.step for row in rows], [_change(row) for row in rows], color=BLUE, linewidth=1.5, zorder=2)
    best = [] if ranking.ranks_nothing else [ranking.minimum]
    tied = [row for row in rows if row.tied and ranking.has_set and row not in best]
    others = [row for row in rows if row not in tied and row not in best]
    groups = (
        (others, "o", "white", BLUE, 6, "checkpoint ± 1 SE over pictures"),
        (tied, "s", ORANGE, INK, 7, "tied with the lowest"),
        (best, "v", VERMILION, INK, 10, f"lowest (step {ranking.minimum.step})"),
    )
    for members, shape, face, edge, size, label in groups:
        if members:
            axes.errorbar(
                [row.step for row in members], [_change(row) for row in members],
                yerr=[100 * (row.standard_error or 0) for row in members], ecolor=INK, elinewidth=1, capsize=3,
                linestyle="none", fmt=shape, markerfacecolor=face, markeredgecolor=edge, markersize=size, label=label,
            )  # fmt: skip


def _change(row: HeldoutRow) -> float:
    return 100 * (row.ratio - 1)


def _view(ranking: HeldoutRanking, title: str) -> RenderableType:
    kind = "trained" if ranking.ranks_nothing else "held-out"
    count = len(ranking.rows)
    head = f"{title or 'Evaluation'}: {count} checkpoint{'s' * (count > 1)} on {ranking.pictures} {kind} pictures"
    if ranking.groups != ranking.pictures:
        head += f" ({ranking.groups} different ones)"
    notes = Table.grid(padding=(0, 1, 0, 0))
    for note in ranking.notes:
        notes.add_row("-", Text(note))
    return Group(
        Text(head, style="bold"),
        Padding(_table(ranking), (1, 0, 0, 2)),
        Padding(Text(EXPLAINED, style="dim"), (0, 0, 1, 2)),
        *_what_to_look_at(ranking),
        Text(ranking.verdict, style="bold"),
        Padding(notes, (1, 0, 0, 2)),
    )


def _table(ranking: HeldoutRanking) -> Table:
    """By step for a memorisation curve, which ranks nothing; else best first."""
    rows = tuple(ranking.by_step) if ranking.ranks_nothing else ranking.rows
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


def _what_to_look_at(ranking: HeldoutRanking) -> list[RenderableType]:
    if not ranking.test_order:
        return []
    table = Table.grid(padding=(0, 2, 0, 0))
    for place, trial in enumerate(ranking.test_order, start=1):
        file = trial.candidate.file
        step = Text(f"step {trial.candidate.step}", no_wrap=True)
        table.add_row(str(place), trial.role, step, Text(file.name if file else "", overflow="fold"))
    return [Text("Look at these, in this order", style="bold"), Padding(table, (0, 0, 1, 2))]
