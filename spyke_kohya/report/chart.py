"""The curves of ``curves.py`` for a page, to zoom into and to ask for values: Bokeh figures as JSON.

Their text and grid have no colour: the page paints them, for it may be light or dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter, Range1d
from bokeh.models.annotations import Legend, Span, Whisker
from bokeh.plotting import figure

from spyke_kohya.rank.losses import LossCurve
from spyke_kohya.rank.result import HeldoutRanking, TrainingRanking
from spyke_kohya.report.curves import (
    BLUE,
    EDGES,
    FACES,
    GREY,
    STEP_AXIS,
    Drawing,
    Group,
    Kind,
    Series,
    heldout_drawing,
    training_drawing,
    value_range,
)

_HEIGHT_PX = 440
_TOOLS = "box_zoom,pan,wheel_zoom,reset,save"
_SHAPES: dict[Kind, tuple[str, int]] = {
    "other": ("circle", 8), "tied": ("square", 10), "lowest": ("inverted_triangle", 14),
}  # fmt: skip

Items = list[tuple[str, list[Any]]]


def loss_figure(curve: LossCurve, ranking: TrainingRanking, resumes: Sequence[int] = ()) -> dict[str, Any]:
    """Return avr_loss by step with its standard error, single losses, checkpoints and the steps of resumes."""
    drawing = training_drawing(curve, ranking)
    plot, legend = _figure("avr_loss"), Items()
    if drawing.dots:
        source = ColumnDataSource(_columns(drawing.dots))
        dots = plot.scatter("step", "value", source=source, size=2, color=GREY, alpha=0.45, level="underlay")
        legend.append(("loss of one step", [dots]))
    _draw_line(plot, drawing, "avr_loss", legend)
    _draw_groups(plot, drawing.groups, "avr_loss", legend)
    for step in resumes:
        plot.add_layout(Span(location=step, dimension="height", line_color=GREY, line_dash="dashed", name="resume"))
    low, high = value_range([drawing])
    plot.y_range = Range1d(start=low, end=high)
    return _item(plot, legend)


def heldout_figure(ranking: HeldoutRanking) -> dict[str, Any]:
    """Return the loss over the base's by checkpoint, with its standard error; 1 is the base without a LoRA."""
    drawing = heldout_drawing(ranking)
    plot, legend = _figure("loss / base"), Items()
    _draw_line(plot, drawing, "loss / base", legend)
    _draw_groups(plot, drawing.groups, "loss / base", legend)
    plot.add_layout(Span(location=1.0, dimension="width", line_color=GREY, line_dash="dashed"))
    return _item(plot, legend)


def _figure(value_axis: str) -> figure:
    plot = figure(
        height=_HEIGHT_PX,
        sizing_mode="stretch_width",
        tools=_TOOLS,
        active_drag="box_zoom",
        toolbar_location="above",
        x_axis_label=STEP_AXIS,
        y_axis_label=value_axis,
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_alpha=0,
    )
    plot.toolbar.logo = None
    plot.axis.axis_label_text_font_style = "normal"
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
    plot.xgrid.visible = False
    return plot


def _draw_line(plot: figure, drawing: Drawing, label: str, legend: Items) -> None:
    source = ColumnDataSource(_columns(drawing.line))
    drawn = plot.line("step", "value", source=source, color=BLUE, line_width=2)
    legend.append((label, [drawn]))
    if drawing.has_band:
        band = plot.varea("step", "low", "high", source=source, color=BLUE, alpha=0.15)
        legend.append(("± 1 standard error", [band]))
    tooltips = [("step", "@step{0,0}"), (label, "@value{0.0000} ± @error{0.0000}")]
    plot.add_tools(HoverTool(renderers=[drawn], mode="vline", tooltips=tooltips))


def _draw_groups(plot: figure, groups: Sequence[Group], label: str, legend: Items) -> None:
    for group in groups:
        files = [row.candidate.file.name if row.candidate.file else "no file" for row in group.rows]
        ranks = [row.rank for row in group.rows]
        source = ColumnDataSource({**_columns(group.points), "rank": ranks, "file": files})
        plot.add_layout(
            Whisker(base="step", lower="low", upper="high", source=source, line_color=GREY, upper_head=None,
                    lower_head=None, level="glyph")
        )  # fmt: skip
        shape, size = _SHAPES[group.kind]
        points = plot.scatter(
            "step", "value", source=source, marker=shape, size=size, fill_color=FACES[group.kind],
            line_color=EDGES[group.kind],
        )  # fmt: skip
        legend.append((group.label, [points]))
        value = (label, "@value{0.0000} ± @error{0.0000}")
        tooltips = [("step", "@step{0,0}"), ("rank", "@rank"), value, ("file", "@file")]
        plot.add_tools(HoverTool(renderers=[points], tooltips=tooltips))


def _columns(of: Series) -> dict[str, Any]:
    return {"step": of.steps, "value": of.values, "low": of.low, "high": of.high, "error": of.errors}


def _item(plot: figure, legend: Items) -> dict[str, Any]:
    plot.add_layout(Legend(items=legend, click_policy="hide", border_line_alpha=0, location="left"), "below")
    return dict(json_item(plot))
