"""The grid of pictures: what gen_img.py is asked for, once for all checkpoints, and the sheet that is made of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from spyke_kohya.engine.release import Engine
from spyke_kohya.errors import EngineError, PresetError
from spyke_kohya.evaluate.recorded_run import RecordedRun
from spyke_kohya.evaluate.samples import lay_out, render
from spyke_kohya.presets.training import Samples
from spyke_kohya.rank.result import Candidate
from spyke_kohya.record.record import Record
from spyke_kohya.record.rundir import RunDirectory
from spyke_kohya.report.drawings import write_contact_sheet

PROMPTS = {"alone in a forest": "spyke, forest", "a new pose": "spyke, jumping"}

# Draws a picture for every line of the prompt file, as sd-scripts' gen_img.py does for `--f`, and counts its starts.
GEN_IMG = """
import re, sys
from pathlib import Path
from PIL import Image
options = dict(zip(sys.argv, sys.argv[1:]))
with Path("starts").open("a") as starts:
    starts.write(" ".join(sys.argv[1:]) + chr(10))
for line in Path(options["--from_file"]).read_text().splitlines():
    name = re.search(" --f (.+)", line)[1]
    print("filename: " + name, flush=True)
    shade = int(float(max(re.search("--am ([0-9.,]+)", line)[1].split(","))) * 200)
    Image.new("RGB", (64, 96), (shade, 0, 0)).save(Path(options["--outdir"], name))
"""


@pytest.fixture
def subject(tmp_path) -> RecordedRun:
    run = RunDirectory(tmp_path / "output" / "runs" / "20260101-000000-spyke")
    run.path.mkdir(parents=True)
    files = [tmp_path / "output" / f"spyke-step{step:08d}.safetensors" for step in (1400, 1200)]
    for file in files:
        file.write_bytes(b"weights")
    candidates = tuple(Candidate(step, file) for step, file in zip((1400, 1200), files, strict=True))
    settings = {"pretrained_model_name_or_path": "base.safetensors", "clip_skip": 2}
    return RecordedRun(run, tmp_path, Record(), settings, "cpu", candidates, ())


@pytest.fixture
def engine(tmp_path) -> Engine:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "gen_img.py").write_text(GEN_IMG)
    return Engine(tmp_path / "engine", Path(sys.executable), None)


def rendered(subject: RecordedRun, engine: Engine, settings: Samples) -> tuple[list[tuple[int, int]], Path]:
    told: list[tuple[int, int]] = []
    grid = lay_out(settings, subject.candidates, subject.base)
    folder = render(subject, grid, engine, inherited=os.environ, listen=lambda done, total: told.append((done, total)))
    return told, folder


def test_the_base_stands_first_and_the_checkpoints_follow_by_step(subject):
    grid = lay_out(Samples(prompts=PROMPTS), subject.candidates, subject.base)
    assert grid.columns == ("base", "step 1200", "step 1400")
    assert grid.rows == ("alone in a forest", "a new pose")
    lines = [cell.line.partition(" --f ")[0] for cell in grid.cells[0]]
    assert lines == [
        "spyke, forest --d 1 --am 0,0",
        "spyke, forest --d 1 --am 1,0",
        "spyke, forest --d 1 --am 0,1",
    ]


def test_every_strength_has_its_row_and_the_base_is_rendered_once(subject):
    grid = lay_out(Samples(prompts=PROMPTS, strengths=[0.8, 1.0]), subject.candidates, subject.base)
    assert grid.rows[:2] == ("alone in a forest (strength 0.8)", "alone in a forest (strength 1)")
    assert "--am 0.8,0" in grid.cells[0][1].line
    assert grid.cells[0][0] == grid.cells[1][0]
    assert len(grid.pictures) == 2 * (1 + 2 * 2)


def test_all_pictures_come_from_one_process(subject, engine):
    told, folder = rendered(subject, engine, Samples(prompts=PROMPTS, negative="text"))
    assert told[-1][1] == 6
    assert len(list(folder.glob("*.png"))) == 6
    (start,) = (engine.directory / "starts").read_text().splitlines()
    assert "--network_module networks.lora networks.lora" in start
    assert f"--network_weights {subject.candidates[1].file} {subject.candidates[0].file}" in start
    assert "--clip_skip 2" in start
    assert " --n text" in (folder / "prompts.txt").read_text()


def test_what_is_there_is_not_rendered_again(subject, engine):
    rendered(subject, engine, Samples(prompts=PROMPTS))
    assert rendered(subject, engine, Samples(prompts=PROMPTS))[0] == [(0, 0)]
    told, _ = rendered(subject, engine, Samples(prompts={**PROMPTS, "full body": "spyke, full body"}))
    assert told[0] == (0, 3)
    assert rendered(subject, engine, Samples(prompts=PROMPTS, seed=2))[0][0] == (0, 6)


def test_an_engine_without_the_script_or_that_fails_is_said_to(subject, engine, tmp_path):
    (engine.directory / "gen_img.py").write_text("raise SystemExit('no such sampler')")
    with pytest.raises(EngineError, match=r"gen_img\.py failed: no such sampler"):
        rendered(subject, engine, Samples(prompts=PROMPTS))
    (engine.directory / "gen_img.py").write_text("")
    with pytest.raises(EngineError, match="ended without 6 of 6 pictures"):
        rendered(subject, engine, Samples(prompts=PROMPTS))
    (engine.directory / "gen_img.py").unlink()
    with pytest.raises(EngineError, match=r"has no gen_img\.py"):
        rendered(subject, engine, Samples(prompts=PROMPTS))


@pytest.mark.parametrize("prompt", ["spyke --am 1", "spyke\nforest", "# spyke"])
def test_a_prompt_that_would_be_read_as_options_is_refused(subject, prompt):
    with pytest.raises(PresetError, match="would read options"):
        lay_out(Samples(prompts={"a": prompt}), subject.candidates, subject.base)


def test_no_prompts_are_said_to_be_missing(subject):
    with pytest.raises(PresetError, match="no prompts"):
        lay_out(Samples(), subject.candidates, subject.base)


def test_the_sheet_shows_every_picture_at_its_place(tmp_path):
    colours = [["#ff0000", "#00ff00"], ["#0000ff", "#ffff00"], ["#00ffff", "#ff00ff"]]
    pictures = []
    for row, names in enumerate(colours):
        pictures.append([tmp_path / f"{row}{column}.png" for column in range(2)])
        for path, colour in zip(pictures[-1], names, strict=True):
            Image.new("RGB", (64, 96), colour).save(path)
    write_contact_sheet(tmp_path / "sheet.png", ["base", "step 1400"], ["a", "b", "c"], pictures, "a run")
    with Image.open(tmp_path / "sheet.png") as sheet:
        left, top = sheet.width - 2 * 72, sheet.height - 3 * 104
        seen = [[sheet.getpixel((left + 72 * c + 20, top + 104 * r + 40)) for c in range(2)] for r in range(3)]
    assert seen == [
        [(255, 0, 0), (0, 255, 0)],
        [(0, 0, 255), (255, 255, 0)],
        [(0, 255, 255), (255, 0, 255)],
    ]
