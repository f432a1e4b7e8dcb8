"""The page and the summary of a training: whole, offline, escaped; the page is opened in a real browser."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spyke_kohya.findings import warning
from spyke_kohya.rank.losses import LossCurve
from spyke_kohya.rank.ranking import rank
from spyke_kohya.rank.result import Candidate
from spyke_kohya.record.record import parse_record
from spyke_kohya.report.chart import loss_figure
from spyke_kohya.report.curves import MOST_POINTS, thinned
from spyke_kohya.report.data import TagTable, read_report_data
from spyke_kohya.report.deviations import deviations
from spyke_kohya.report.html import report_html
from spyke_kohya.report.markdown import summary_markdown
from tests.browser import browser  # noqa: F401 - a fixture
from tests.commands import PROJECT, spyke
from tests.recorded import STEPS, record_run

CURVE = Path(__file__).parent / "data" / "curves" / "seed_spyke_plasma_v1.csv"
HOSTILE = "</script><script>window.hurt = 1</script><img src=x onerror='window.hurt = 2'>"


@pytest.fixture
def run(tmp_path) -> Path:
    return record_run(tmp_path)


@pytest.fixture
def page(run) -> Path:
    assert spyke("report", run).returncode == 0
    return run / "report.html"


class Loads(HTMLParser):
    """Every address in a page that a browser would fetch, and how many elements may run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.scripts = 0
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.addresses += [given[name] or "" for name in ("src", "href", "srcset", "data", "poster") if name in given]
        self.scripts += tag == "script" and given.get("type") != "application/json"
        self.handlers += [name for name in given if name.startswith("on")]


def test_nothing_is_loaded_from_anywhere(page):
    loads = Loads(page.read_text())
    assert [address for address in loads.addresses if not address.startswith("data:")] == []
    assert (loads.scripts, loads.handlers) == (2, [])
    assert "@import" not in page.read_text()
    assert "default-src &#39;none&#39;" in page.read_text()


def test_the_page_tells_all_there_is(run, page):
    text = page.read_text()
    data = read_report_data(run)
    for told in (
        data.title, "finished", data.result.ranking.verdict, "80", "64 x 128", "standing", "train/1_spyke",
        "a warning of the engine", "exec accelerate launch train_network.py", "2.14.1",
        "2 images x 10 repeats = 20, + 1 regularisation image repeated to 20 = 40 batches an epoch",
    ):  # fmt: skip
        assert told in text, told


def hostile_data(run: Path):
    data = read_report_data(run)
    finding = warning("x", HOSTILE, HOSTILE, HOSTILE)
    record = data.record.changed(reason=HOSTILE, findings=[finding], machine={"system": HOSTILE})
    named = run / f"{HOSTILE.replace('/', '')}.safetensors"
    named.touch()
    rows = tuple(replace(row, candidate=Candidate(row.step, named)) for row in data.result.ranking.rows)
    result = replace(data.result, ranking=replace(data.result.ranking, rows=rows))
    tags = (TagTable(HOSTILE, ((HOSTILE, 3),)),)
    return replace(data, title=HOSTILE, record=record, result=result, tags=tags, command=HOSTILE)


def test_names_and_captions_are_text_and_never_markup(run):
    text = report_html(hostile_data(run))
    assert HOSTILE not in text
    assert (Loads(text).scripts, Loads(text).handlers) == (2, [])
    summary = summary_markdown(hostile_data(run))
    assert not re.search(r"(?<!\\)<(script|img)", re.sub(r"`[^`]*`", "", summary))


def test_a_million_steps_become_a_page_that_stays_small():
    losses = np.random.default_rng(0).gamma(0.65, 0.12, 1_000_000)
    steps = np.arange(1, len(losses) + 1)
    curve = LossCurve(steps, np.convolve(losses, np.ones(460) / 460)[: len(losses)], losses, 460)
    started = time.perf_counter()
    item = json.dumps(loss_figure(curve, rank(curve, [Candidate(step) for step in range(50_000, 1_000_001, 50_000)])))
    assert time.perf_counter() - started < 5
    assert len(item) < 500_000


@pytest.mark.parametrize("count", [1, 2, MOST_POINTS, MOST_POINTS + 1, 123_457])
def test_thinning_keeps_the_ends_the_lowest_and_the_highest(count):
    values = np.random.default_rng(count).normal(size=count)
    kept = thinned(values)
    assert len(kept) <= MOST_POINTS
    assert (np.diff(kept) > 0).all()
    assert {0, count - 1, int(values.argmin()), int(values.argmax())} <= set(kept.tolist())


def test_samples_are_part_of_the_page(run):
    (run.parents[1] / "sample").mkdir()
    Image.new("RGB", (800, 600), "red").save(run.parents[1] / "sample" / "spyke_000040_00_20260220.png")
    Image.new("RGB", (800, 600), "red").save(run.parents[1] / "sample" / "other_000040_00_20260220.png")
    text = report_html(read_report_data(run))
    assert text.count("data:image/webp;base64,") == 1
    assert "spyke_000040_00_20260220.png" in text


@pytest.mark.parametrize("rest", [0, 4, 30, 60])
def test_a_picture_that_was_cut_short_is_named_and_the_others_are_shown(run, rest):
    """A run that is killed while it samples leaves one; the contact sheet may be such a picture too."""
    samples = run.parents[1] / "sample"
    samples.mkdir()
    Image.new("RGB", (64, 64), "red").save(samples / "spyke_000040_00_20260220.png")
    whole = (samples / "spyke_000040_00_20260220.png").read_bytes()
    for cut in (samples / "spyke_000060_00_20260220.png", run / "samples.png"):
        cut.write_bytes(whole[:rest])
    done = spyke("report", run)
    assert done.returncode == 0, done.stderr
    text = (run / "report.html").read_text()
    assert text.count("data:image/webp;base64,") == 1
    assert "spyke_000060_00_20260220.png can&#39;t be read" in text
    assert "samples.png can&#39;t be read" in text


@pytest.mark.parametrize("name", ["report.html", "summary.md"])
def test_a_report_that_cannot_be_written_is_said(run, name):
    (run / name).mkdir()
    done = spyke("report", run)
    assert (done.returncode, name in done.stderr, "move" in done.stderr) == (2, True, True)


def test_a_report_on_a_full_disk_leaves_the_old_one(run):
    (run / "report.html").write_text("old")
    assert spyke("report", run, most_bytes=10_000).returncode == 2
    assert (run / "report.html").read_text() == "old"


def test_a_run_without_losses_still_has_a_page(run):
    (run / "losses.csv").unlink()
    done = spyke("report", run)
    assert done.returncode == 0, done.stderr
    assert "no losses on record here" in (run / "summary.md").read_text()


def test_the_run_of_record_says_why_it_was_twice_as_long(tmp_path):
    for folder, count in (("train/1_spyke_plasma_v1", 23), ("reg/1_anime_character", 100)):
        for index in range(count):
            picture = tmp_path / "dataset/spyke" / folder / f"{index:03d}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (index, 90, 160)).save(picture)
            picture.with_suffix(".txt").write_text("spyke_plasma_v1, standing")
    (tmp_path / "presets").mkdir()
    for name in ("spyke.toml", "spyke_plasma_v1.toml"):
        (tmp_path / "presets" / name).write_text((PROJECT / "presets" / name).read_text())
    output = tmp_path / "output"
    output.mkdir()
    done = spyke("report", output, "--losses", CURVE, "--preset", "spyke_plasma_v1", "--planned", "920", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = (output / "summary.md").read_text()
    assert "- 920 steps planned, 1840 run, because of regularisation: " in summary
    assert "230 of the 460 images of an epoch" in summary
    assert "| 1 | 1400 | 0.0717 | 0.0046 | lowest |" in summary
    assert summary.index("candidate: step 1400") < summary.index("fallback: step 1200")
    assert [line for line in summary.splitlines() if line.startswith("## ")] == [
        "## Performance", "## Files", "## Loss table", "## Decisions", "## Deviations from the plan", "## Issues met",
        "## Next tests, in order",
    ]  # fmt: skip
    assert "baseline: step 1840" in summary


@pytest.mark.parametrize(
    ("record", "planned", "run", "told"),
    [
        ({}, None, 1840, []),
        ({}, 1840, 1840, []),
        ({"plan": {"total_steps": 100}, "status": "running"}, None, 40, []),
        ({"plan": {"total_steps": 100}, "reason": "stopped by SIGINT"}, None, 40,
         ["40 of 100 steps run: stopped by SIGINT."]),
        ({"plan": {"total_steps": 100, "checkpoints": [{"step": 9, "file": "a"}]}, "result": {"status": "failed"}},
         None, 100,
         ["1 of the planned checkpoints were not saved whole: a."]),
        ({"plan": {"total_steps": 300}}, 100, 300,
         ["100 steps planned, 300 run, for a reason that the record doesn't show."]),
    ],
)  # fmt: skip
def test_deviations_are_told_and_only_those(record, planned, run, told):
    assert deviations(parse_record(record), planned, run) == told


def complaints(opened) -> list[str]:
    """What the console says, but for Bokeh's own greeting."""
    return [line for line in opened.console() if '"[bokeh ' not in line]


DRAWN = "document.documentElement.dataset.drawn"
EVERYTHING_SHOWN = """
const texts = [];
const walk = (node) => {
  for (const child of node.children) {
    if (child.shadowRoot) { texts.push(child.shadowRoot.textContent); walk(child.shadowRoot); }
    walk(child);
  }
};
walk(document.body);
return texts.join(' ');
"""


def test_a_browser_shows_the_curve_and_its_values(browser, page):  # noqa: F811
    browser.emulate(1200, 900)
    browser.open(page)
    browser.wait_for(DRAWN)
    x, y, width, height = browser.run(
        "const box = document.getElementById('chart-loss').getBoundingClientRect();"
        "scrollTo(0, box.y); return [box.x, 0, box.width, box.height];"
    )
    assert "avr_loss:" not in browser.run(EVERYTHING_SHOWN)
    browser.point_at(x + 0.6 * width, y + 0.4 * height)
    browser.wait_for(f"(() => {{ {EVERYTHING_SHOWN} }})().includes('avr_loss:')")
    step = int(re.search(r"step:\s*(\d+)", browser.run(EVERYTHING_SHOWN))[1])
    assert 0.3 * STEPS < step < 0.9 * STEPS
    assert complaints(browser) == []
    assert browser.run("return performance.getEntriesByType('resource').length") == 0


def test_a_hostile_caption_does_nothing_in_a_browser(browser, run):  # noqa: F811
    (run / "hostile.html").write_text(report_html(hostile_data(run)))
    browser.open(run / "hostile.html")
    browser.wait_for(DRAWN)
    assert browser.run("return [typeof window.hurt, document.title]") == ["undefined", HOSTILE]
    assert complaints(browser) == []


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_follow_the_system_and_the_button(browser, page, dark):  # noqa: F811
    browser.emulate(1200, 900, dark=dark)
    browser.open(page)
    browser.wait_for(DRAWN)
    ground = "return getComputedStyle(document.body).backgroundColor"
    colours = ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]
    assert browser.run(ground) == colours[dark]
    browser.run("document.getElementById('theme').click()")
    assert browser.run(ground) == colours[not dark]
    label = "return Bokeh.documents[0].roots()[0].below[0].axis_label_text_color"
    assert browser.run(label) == ["#5b626d", "#a2aab5"][not dark]


def test_a_phone_needs_no_scrolling_sideways(browser, page):  # noqa: F811
    browser.emulate(390, 844, phone=True)
    browser.open(page)
    browser.wait_for(DRAWN)
    assert browser.run("return document.documentElement.scrollWidth") == 390


LEGENDS = """
const found = [];
const walk = (node) => {
  for (const child of node.children) {
    if (child.classList.contains('bk-Legend')) found.push(child.getBoundingClientRect().right);
    if (child.shadowRoot) walk(child.shadowRoot);
    walk(child);
  }
};
walk(document.body);
return found;
"""


def test_a_phone_shows_the_whole_legend(browser, page):  # noqa: F811
    browser.emulate(390, 844, phone=True)
    browser.open(page)
    browser.wait_for(DRAWN)
    (right,) = browser.run(LEGENDS)
    assert right <= 390
