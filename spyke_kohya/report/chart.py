"""Loss curves for a page, to zoom into and to ask for values: Bokeh figures as JSON, without a colour for their text.

The page paints text and grid, for it may be light or dark. Colours and markers are those of the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter, Range1d
from bokeh.models.annotations import Legend, Span, Whisker
from bokeh.plotting import figure

from spyke_kohya.rank.losses import LossCurve
from spyke_kohya.rank.result import HeldoutRanking, TrainingRanking, TrainingRow
from spyke_kohya.rank.windows import FloatArray, IntArray
from spyke_kohya.report.picture import BLUE, GREY, ORANGE, VERMILION

MOST_POINTS = 4000
_HEIGHT_PX = 440
_TOOLS = "box_zoom,pan,wheel_zoom,reset,save"


def decimated(values: FloatArray, most: int = MOST_POINTS) -> IntArray:
    """Which of the values to draw so that the curve looks the same: the lowest and highest of each of most/2 runs.

    The first and the last are among them; the indices ascend.
    """
    count = len(values)
    if count <= most:
        return np.arange(count)
    buckets = most // 2 - 1
    width = -(-count // buckets)
    padded = np.concatenate((values, np.full(buckets * width - count, values[-1]))).reshape(buckets, width)
    starts = np.arange(buckets) * width
    extremes = np.concatenate((starts + padded.argmin(axis=1), starts + padded.argmax(axis=1), [0, count - 1]))
    return np.unique(np.minimum(extremes, count - 1))


def loss_chart(curve: LossCurve, ranking: TrainingRanking, resumes: Sequence[int] = ()) -> dict[str, Any]:
    """avr_loss by step with its standard error, single losses, checkpoints, the tied ones and the lowest, resumes."""
    known = curve.before_divergence()
    plot = _figure("training step (optimizer steps)", "avr_loss")
    legend: list[tuple[str, list[Any]]] = []
    _draw_losses(plot, known, legend)
    line = _draw_average(plot, known, ranking, legend)
    points = _draw_checkpoints(plot, ranking, legend)
    for step in resumes:
        plot.add_layout(Span(location=step, dimension="height", line_color=GREY, line_dash="dashed", name="resume"))
    _frame(plot, ranking)
    _hover(plot, line, points)
    plot.add_layout(Legend(items=legend, ncols=2, click_policy="hide", border_line_alpha=0, location="left"), "below")
    return dict(json_item(plot))


def heldout_chart(ranking: HeldoutRanking) -> dict[str, Any]:
    """The loss over the base's by checkpoint, with its standard error; 1 is the base without a LoRA."""
    plot = _figure("training step (optimizer steps)", "loss / base")
    rows = ranking.by_step
    source = ColumnDataSource(
        {
            "step": [row.step for row in rows],
            "ratio": [row.ratio for row in rows],
            "low": [row.ratio - (row.standard_error or 0.0) for row in rows],
            "high": [row.ratio + (row.standard_error or 0.0) for row in rows],
            "colour": [VERMILION if row is ranking.minimum else ORANGE if row.tied else "white" for row in rows],
            "told": ["lowest" if row is ranking.minimum else "tied" if row.tied else "" for row in rows],
        }
    )
    plot.line("step", "ratio", source=source, color=BLUE, line_width=2)
    plot.add_layout(Whisker(base="step", lower="low", upper="high", source=source, line_color=GREY, level="glyph"))
    points = plot.scatter("step", "ratio", source=source, size=10, line_color=BLUE, fill_color="colour")
    plot.add_layout(Span(location=1.0, dimension="width", line_color=GREY, line_dash="dashed"))
    tooltips = [("step", "@step{0,0}"), ("loss / base", "@ratio{0.0000}"), ("", "@told")]
    plot.add_tools(HoverTool(renderers=[points], tooltips=tooltips))
    return dict(json_item(plot))


def _figure(x_label: str, y_label: str) -> figure:
    plot = figure(
        height=_HEIGHT_PX,
        sizing_mode="stretch_width",
        tools=_TOOLS,
        active_drag="box_zoom",
        toolbar_location="above",
        x_axis_label=x_label,
        y_axis_label=y_label,
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_alpha=0,
    )
    plot.toolbar.logo = None
    plot.axis.axis_label_text_font_style = "normal"
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
    plot.xgrid.visible = False
    return plot


def _draw_losses(plot: figure, curve: LossCurve, legend: list[tuple[str, list[Any]]]) -> None:
    if curve.loss is None:
        return
    finite = np.isfinite(curve.loss)
    steps, losses = curve.steps[finite], curve.loss[finite]
    kept = decimated(losses)
    source = ColumnDataSource({"step": steps[kept], "loss": losses[kept]})
    drawn = plot.scatter("step", "loss", source=source, size=2, color=GREY, alpha=0.45, level="underlay")
    legend.append(("loss of one step", [drawn]))


def _draw_average(plot: figure, curve: LossCurve, ranking: TrainingRanking, legend: list[tuple[str, list[Any]]]) -> Any:
    finite = np.isfinite(curve.avr_loss)
    steps, averages = curve.steps[finite], curve.avr_loss[finite]
    kept = decimated(averages)
    steps, averages = steps[kept], averages[kept]
    window = ranking.window or ranking.assumed_window or 1
    error = ranking.sigma / np.sqrt(np.clip(steps * ranking.micro_batches_per_step, 1, window))
    source = ColumnDataSource(
        {"step": steps, "avr_loss": averages, "low": averages - error, "high": averages + error, "error": error}
    )
    drawn = plot.line("step", "avr_loss", source=source, color=BLUE, line_width=2)
    legend.append(("avr_loss", [drawn]))
    if len(steps) > len(ranking.rows):
        band = plot.varea("step", "low", "high", source=source, color=BLUE, alpha=0.15)
        legend.append(("± 1 standard error", [band]))
    return drawn


def _draw_checkpoints(plot: figure, ranking: TrainingRanking, legend: list[tuple[str, list[Any]]]) -> list[Any]:
    rows, lowest = ranking.by_step, ranking.minimum
    groups = (
        ("checkpoint", "circle", 8, None, [row for row in rows if not row.tied]),
        ("tied with the lowest", "square", 10, ORANGE, [row for row in rows if row.tied and row is not lowest]),
        (f"lowest (step {lowest.step})", "inverted_triangle", 14, VERMILION, [lowest]),
    )
    drawn = []
    for label, marker, size, colour, members in groups:
        if members:
            source = _checkpoint_source(members)
            plot.add_layout(
                Whisker(base="step", lower="low", upper="high", source=source, line_color=GREY, upper_head=None,
                        lower_head=None, level="glyph")
            )  # fmt: skip
            points = plot.scatter(
                "step", "avr_loss", source=source, marker=marker, size=size, fill_color=colour or "white",
                line_color="#222222" if colour else BLUE,
            )  # fmt: skip
            legend.append((label, [points]))
            drawn.append(points)
    return drawn


def _checkpoint_source(rows: Sequence[TrainingRow]) -> ColumnDataSource:
    return ColumnDataSource(
        {
            "step": [row.step for row in rows],
            "avr_loss": [row.avr_loss for row in rows],
            "low": [row.avr_loss - row.standard_error for row in rows],
            "high": [row.avr_loss + row.standard_error for row in rows],
            "error": [row.standard_error for row in rows],
            "place": [str(row.rank) for row in rows],
            "file": [row.candidate.file.name if row.candidate.file else "no file" for row in rows],
        }
    )


def _frame(plot: figure, ranking: TrainingRanking) -> None:
    """Around the checkpoints, whose differences matter; the losses of single steps are far apart."""
    low = min(row.avr_loss - row.standard_error for row in ranking.rows)
    high = max(row.avr_loss + row.standard_error for row in ranking.rows)
    margin = 0.25 * (high - low) or 0.1 * high or 1.0
    plot.y_range = Range1d(start=max(0.0, low - margin), end=high + margin)


def _hover(plot: figure, line: Any, points: list[Any]) -> None:
    average = "@avr_loss{0.0000} ± @error{0.0000}"
    plot.add_tools(
        HoverTool(renderers=[line], mode="vline", tooltips=[("step", "@step{0,0}"), ("avr_loss", average)]),
        HoverTool(
            renderers=points,
            tooltips=[("step", "@step{0,0}"), ("rank", "@place"), ("avr_loss", average), ("file", "@file")],
        ),
    )
