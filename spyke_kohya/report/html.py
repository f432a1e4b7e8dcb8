"""One page about a training: a single file that needs no network, for any browser and any width.

The facts come from ``data.py``, the curves from ``chart.py``. Jinja escapes every value. The page's own content
security policy names the hashes of its two scripts: no other script runs, and nothing is loaded from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from bokeh.resources import Resources
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from spyke_kohya.rank.result import TrainingRanking
from spyke_kohya.report.chart import heldout_figure, loss_figure
from spyke_kohya.report.data import ReportData
from spyke_kohya.report.plain_text import duration

_PAGE = files("spyke_kohya.report") / "page"
_SAMPLE_PX, _SHEET_PX = 384, 2000


def report_html(data: ReportData) -> str:
    """Return the page as one text."""
    bokeh, script = _bokeh(), _asset("page.js")
    ranking = data.result.ranking if data.result else None
    record = data.record
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # Bokeh's objects refer to earlier ones
    return environment.from_string(_asset("report.html")).render(
        data=data,
        ranking=ranking,
        record=record,
        cards=list(_cards(data, ranking)),
        charts=_charts(data),
        samples=[(path.name, _sample(path)) for path in data.samples if path.parent != data.folder],
        sheet=next((_sample(path, _SHEET_PX) for path in data.samples if path.parent == data.folder), None),
        against=list(_against(data)),
        folders=[folder for dataset in record.plan.folders for folder in dataset],
        buckets=[bucket for dataset in record.plan.buckets for bucket in dataset],
        machine=list(_machine(data)),
        policy=_policy(bokeh, script),
        style=Markup(_asset("style.css")),  # our own files, no data
        bokeh=Markup(bokeh),
        script=Markup(script),
    )


def _asset(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8")


def _bokeh() -> str:
    """Return BokehJS's base from the installed package, with nothing in its strings that ends a script element."""
    parts = Resources(mode="inline", components=["bokeh"], minified=True).js_raw
    return "\n".join(parts).replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _policy(*scripts: str) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"


def _charts(data: ReportData) -> dict[str, Any]:
    result, resumed = data.result, data.record.resumed_from
    resumes = [resumed.step] if resumed else []
    return {
        "loss": loss_figure(result.curve, result.ranking, resumes) if result else None,
        "heldout": heldout_figure(data.heldout) if data.heldout else None,
    }


def _cards(data: ReportData, ranking: TrainingRanking | None) -> Iterator[tuple[str, str]]:
    result = data.record.result
    if data.steps_run is not None:
        yield "steps", f"{data.steps_run:,}"
    if result.duration_s is not None:
        yield "duration", duration(result.duration_s)
    if result.seconds_per_step is not None:
        yield "seconds a step", f"{result.seconds_per_step:.3g}"
    if ranking:
        yield "lowest avr_loss", f"{ranking.minimum.avr_loss:.4g} at {ranking.minimum.step}"
        yield "tied checkpoints", f"{len(ranking.tied_steps)} of {len(ranking.rows)}"
    if data.test_order:
        yield "look first at", f"step {data.test_order[0].candidate.step}"


def _against(data: ReportData) -> Iterator[tuple[str, str, str]]:
    plan, result, happened = data.record.plan, data.record.result, data.steps_run
    if plan.total_steps is not None:
        yield "steps", f"{plan.total_steps:,}", "" if happened is None else f"{happened:,}"
    if plan.total_steps is not None and result.status:
        yield "checkpoints", str(len(plan.checkpoints)), str(len(result.checkpoints))


def _machine(data: ReportData) -> Iterator[tuple[str, str]]:
    engine = data.record.engine
    if engine.commit or engine.directory:
        yield "sd-scripts", engine.commit or str(engine.directory)
    yield from engine.packages.items()
    yield from ((name.replace("_", "-"), value) for name, value in data.record.machine.items())
    if data.record.target:
        yield "target", data.record.target


def _sample(path: Path, most_px: int = _SAMPLE_PX) -> str:
    """Return a picture as part of the page, small enough for many; "" for one that was cut short or is damaged."""
    small = io.BytesIO()
    try:
        with Image.open(path) as image:
            image.thumbnail((most_px, most_px))
            image.convert("RGB").save(small, "WEBP", quality=82)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    return f"data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}"
