"""A ranking on a terminal of 80 columns, as a chart, and as a picture."""

from __future__ import annotations

import io
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from spyke_kohya.rank.losses import LossCurve, read_losses_csv
from spyke_kohya.rank.ranking import rank
from spyke_kohya.rank.result import Candidate, TrainingRanking
from spyke_kohya.report.drawings import write_ranking_png
from spyke_kohya.report.ranking_text import ranking_table, ranking_view, terminal_chart

RECORD = Path(__file__).parent / "data" / "curves" / "seed_spyke_plasma_v1.csv"


@pytest.fixture(scope="module")
def curve() -> LossCurve:
    return read_losses_csv(RECORD)


@pytest.fixture(scope="module")
def record(curve) -> TrainingRanking:
    files = {step: Path(f"spyke_plasma_v1-step{step:08d}.safetensors") for step in curve.steps.tolist()}
    return rank(curve, [Candidate(step, file) for step, file in files.items()])


@pytest.fixture(scope="module")
def every_step() -> LossCurve:
    losses = np.random.default_rng(0).gamma(0.65, 0.12, 20_000)
    sums = np.concatenate(([0.0], np.cumsum(losses)))
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(0, ends - 460)
    return LossCurve(ends, (sums[ends] - sums[starts]) / (ends - starts), losses, 460)


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


def test_the_table_fits_80_columns_without_colour(record):
    text = ranking_table(record, 80, "spyke_plasma_v1")
    assert max(columns(line) for line in text.splitlines()) <= 80
    assert "\x1b" not in text


def test_the_table_says_what_the_ranking_says(record):
    text = ranking_table(record, 200, "spyke_plasma_v1")
    lines = [line.split() for line in text.splitlines()]
    assert text.startswith("spyke_plasma_v1: 6 checkpoints by avr_loss (rolling, 460 batches)\n")
    assert ["1", "1400", "0.0717", "0.0046", "tied", "0.94"] in lines
    assert ["4", "1600", "0.0805", "0.0046", "0.07"] in lines
    assert ["3", "baseline", "step", "1840", "spyke_plasma_v1-step00001840.safetensors"] in lines
    running = " ".join(text.split())
    assert all(sentence in running for sentence in (record.verdict, *record.notes))


def test_colour_is_for_terminals_alone(record):
    shown = {}
    for terminal, colours in ((True, "standard"), (False, "auto")):
        console = Console(file=io.StringIO(), width=80, force_terminal=terminal, color_system=colours)
        console.print(ranking_view(record, "a [b] name"))
        shown[terminal] = console.file.getvalue()
    assert "\x1b[" in shown[True]
    assert "\x1b[" not in shown[False]
    assert "a [b] name" in shown[False]


def test_cumulative_means_are_shown_with_the_means_between_checkpoints(curve):
    text = ranking_table(rank(replace(curve, window=4700), [Candidate(step) for step in curve.steps.tolist()]))
    assert "1001-1200" in text
    assert "cumulative mean" in text


def test_the_chart_marks_the_minimum_the_tied_and_the_others(curve, record):
    chart = terminal_chart(curve, record, 80)
    lines = chart.splitlines()
    assert len(lines) == 20
    assert max(columns(line) for line in lines) <= 80
    drawn, legend = "\n".join(lines[:-1]), lines[-1]
    assert [drawn.count(mark) for mark in "▼●○"] == [1, 2, 3]
    assert "lowest, step 1400" in legend
    assert "\x1b" not in chart


def test_two_charts_do_not_share_their_curves(curve, record):
    first = terminal_chart(curve, record)
    terminal_chart(curve, rank(curve, [Candidate(1800)]))
    assert terminal_chart(curve, record) == first


@pytest.mark.parametrize("steps", [[1840], [1800, 1840]])
def test_few_checkpoints_make_a_chart_and_a_picture_too(curve, steps, tmp_path):
    ranking = rank(curve, [Candidate(step) for step in steps])
    assert "▼" in terminal_chart(curve, ranking)
    write_ranking_png(tmp_path / "ranking.png", curve, ranking)
    assert (tmp_path / "ranking.png").stat().st_size > 10_000


def test_the_picture_is_a_wide_png_with_ink_on_it(curve, record, tmp_path):
    write_ranking_png(tmp_path / "ranking.png", curve, record, "spyke_plasma_v1")
    with Image.open(tmp_path / "ranking.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (1350, 750))
        pixels = np.asarray(picture.convert("RGB"), dtype=int)
    vermilion = np.abs(pixels - [0xD5, 0x5E, 0x00]).sum(axis=2) < 30
    assert vermilion.sum() > 50, "the lowest checkpoint is drawn"


def test_twenty_thousand_steps_are_drawn_with_their_losses(every_step, tmp_path):
    ranking = rank(every_step, [Candidate(step) for step in range(2000, 20_001, 2000)])
    assert "centred" in ranking_table(ranking)
    assert "▼" in terminal_chart(every_step, ranking)
    write_ranking_png(tmp_path / "ranking.png", every_step, ranking)
    assert (tmp_path / "ranking.png").is_file()
