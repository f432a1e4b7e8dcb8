"""Pictures as PNG files: the curves of ``curves.py`` by matplotlib, without a display, and grids of rendered pictures.

Every picture is written whole or not at all. One that can't be written is a UsageError.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from spyke_kohya.files import write_result
from spyke_kohya.rank.directory import TrainingResult
from spyke_kohya.rank.losses import LossCurve
from spyke_kohya.rank.result import HeldoutRanking, TrainingRanking
from spyke_kohya.rank.words import CANNOT
from spyke_kohya.report.curves import (
    BLUE,
    EDGES,
    FACES,
    GREY,
    INK,
    STEP_AXIS,
    VERMILION,
    Drawing,
    Group,
    Kind,
    heldout_drawing,
    training_drawing,
    value_range,
)

_SHAPES: dict[Kind, tuple[str, int]] = {"other": ("o", 6), "tied": ("s", 7), "lowest": ("v", 10)}
_TALLEST = 512  # pixels that a rendered picture is reduced to, so that a whole grid can be looked at
_GAP, _HEAD, _SIDE = 8, 40, 170


def write_ranking_png(path: Path, curve: LossCurve, ranking: TrainingRanking, title: str = "") -> None:
    """Write avr_loss by step with every checkpoint's standard error, the tied ones and the lowest."""
    drawing = training_drawing(curve, ranking)
    below = f"{len(ranking.tied_steps)} of {len(ranking.rows)} checkpoints tied for lowest; {CANNOT}"
    covers = f"mean of the last {ranking.window} batches" if ranking.window else "window unknown"
    figure, axes = _figure(title or "Checkpoints by training loss", below, f"avr_loss ({covers})")
    if drawing.dots:
        axes.plot(drawing.dots.steps, drawing.dots.values, ".", color=GREY, alpha=0.3, markersize=2, zorder=1)
        axes.plot([], [], ".", color=GREY, markersize=5, label="loss of one step (where in range)")
    _draw_line(axes, drawing, "avr_loss")
    _draw_groups(axes, drawing.groups)
    axes.set_ylim(*value_range([drawing]))
    _save(figure, axes, path)


def write_heldout_png(path: Path, ranking: HeldoutRanking, title: str = "") -> None:
    """Write the loss against that of the base, with a standard error at every checkpoint."""
    kind = "not trained on" if ranking.kind == "heldout" else "trained on (a memorisation curve)"
    below = f"loss on {ranking.pictures} pictures {kind}, at {len(ranking.timesteps)} timesteps, with the same noise"
    figure, axes = _figure(title or "Evaluation", below, "loss against the base model (%)")
    drawing = heldout_drawing(ranking)
    axes.axhline(1, color=GREY, linewidth=1, linestyle="--", label="the base model, without a LoRA")
    axes.plot(drawing.line.steps, drawing.line.values, color=BLUE, linewidth=1.5, zorder=2)
    _draw_groups(axes, drawing.groups)
    axes.yaxis.set_major_formatter(lambda ratio, _: f"{round(100 * (ratio - 1), 6) or 0:g}")
    _save(figure, axes, path)


def write_comparison_png(path: Path, results: Sequence[TrainingResult]) -> None:
    """Write avr_loss of several runs by step, with their checkpoints and the lowest of each."""
    figure, axes = _figure("", "", "avr_loss")
    drawings = [training_drawing(result.curve, result.ranking) for result in results]
    for result, drawing, colour in zip(results, drawings, (BLUE, VERMILION), strict=False):
        axes.plot(drawing.line.steps, drawing.line.values, color=colour, linewidth=1.5, label=result.title)
        _draw_groups(axes, drawing.groups, markeredgecolor=colour, markerfacecolor=colour, ecolor=colour, label=None)
    axes.set_ylim(*value_range(drawings))
    _save(figure, axes, path)


def write_contact_sheet(
    path: Path, columns: Sequence[str], rows: Sequence[str], pictures: Sequence[Sequence[Path]], title: str = ""
) -> None:
    """Write the pictures (rows of columns), all of one shape, with a label above each column and beside each row."""
    width, height = _reduced_size(pictures[0][0])
    size = (_SIDE + len(columns) * (width + _GAP) + _GAP, 2 * _HEAD + len(rows) * (height + _GAP) + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _HEAD // 2), title, fill=INK, font=_font(20), anchor="lm")
    for column, label in enumerate(columns):
        middle = _SIDE + column * (width + _GAP) + width // 2
        draw.text((middle, _HEAD + _HEAD // 2), label, fill=INK, font=_font(_fitting(label, width)), anchor="mm")
    for row, label in enumerate(rows):
        top = 2 * _HEAD + row * (height + _GAP)
        text = "\n".join(wrap(label, 18))
        draw.multiline_text((_GAP, top + height // 2), text, fill=INK, font=_font(16), anchor="lm")
        for column, picture in enumerate(pictures[row]):
            with Image.open(picture) as image:
                reduced = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(reduced, (_SIDE + column * (width + _GAP), top))
    png = io.BytesIO()
    sheet.save(png, format="PNG")
    _write(path, png)


def _figure(title: str, below: str, value_axis: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(9.0, 5.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if title:
        axes.set_title(f"{title}\n", loc="left", fontsize=13, fontweight="bold", color=INK)
    axes.text(0, 1.02, below, transform=axes.transAxes, fontsize=9, color=GREY)
    axes.set(xlabel=STEP_AXIS, ylabel=value_axis)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw_line(axes: Any, drawing: Drawing, label: str) -> None:
    line = drawing.line
    axes.plot(line.steps, line.values, color=BLUE, linewidth=1.5, label=label, zorder=3)
    if drawing.has_band:
        axes.fill_between(line.steps, line.low, line.high, color=BLUE, alpha=0.15, linewidth=0, zorder=2)


def _draw_groups(axes: Any, groups: Sequence[Group], **other: Any) -> None:
    for group in groups:
        shape, size = _SHAPES[group.kind]
        style = {"markerfacecolor": FACES[group.kind], "markeredgecolor": EDGES[group.kind], "ecolor": INK}
        axes.errorbar(
            group.points.steps, group.points.values, yerr=group.points.errors, fmt=shape, markersize=size,
            elinewidth=1, capsize=3, zorder=4, **{"label": group.label} | style | other,
        )  # fmt: skip


def _save(figure: Figure, axes: Any, path: Path) -> None:
    axes.legend(frameon=False, fontsize=9, loc="best")
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    _write(path, png)


def _write(path: Path, png: io.BytesIO) -> None:
    write_result(path, png.getvalue(), "the picture", "name another place with --png FILE")


def _reduced_size(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as image:
        scale = min(1.0, _TALLEST / image.height)
        return round(image.width * scale), round(image.height * scale)


def _fitting(label: str, width: int) -> int:
    """Return a font size at which the label is no wider than its column."""
    return max(8, min(18, round(1.7 * width / len(label))))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
