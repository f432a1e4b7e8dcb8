"""`samples`: render the tied checkpoints with the same prompts and seeds."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spyke_kohya.cli.asking import find_engine
from spyke_kohya.cli.group import ENGINE, FILE, ROOT, cli
from spyke_kohya.cli.terminal import blocked, say

if TYPE_CHECKING:
    from spyke_kohya.presets.training import Samples


@cli.command(short_help="Render the tied checkpoints with the same prompts and seeds.")
@click.argument("run", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="RUN")
@click.option("--preset", help="Take [samples] from this preset, not from the one that was trained.")
@click.option("--name", help="The output_name to render, where a directory holds several.")
@click.option("--png", type=FILE, help="Where to write the contact sheet.  [default: samples.png in the run directory]")
@ENGINE
@ROOT
def samples(run: Path, preset: str | None, name: str | None, png: Path | None, engine: Path | None, root: Path) -> None:
    """Render checkpoints x prompts with one seed, by sd-scripts' gen_img.py, and lay them out on a contact sheet.

    RUN is a run directory, or an output directory, whose newest run is taken. Rendered are the checkpoints that `rank`
    says to look at, and the base without a LoRA.
    """
    from spyke_kohya.evaluate.recorded_run import read_subject
    from spyke_kohya.evaluate.samples import lay_out, render, samples_of
    from spyke_kohya.rank.directory import rank_best
    from spyke_kohya.report.drawings import write_contact_sheet
    from spyke_kohya.report.live import ProgressLine

    subject = read_subject(run, name)
    found = find_engine(None, engine or subject.engine_dir, subject.root)
    settings = _samples_in(preset, root.absolute()) if preset else samples_of(subject.record)
    trials = rank_best(subject.run.path, name=name).ranking.test_order
    grid = lay_out(settings, [trial.candidate for trial in trials if trial.candidate.file], subject.base)
    say(f"{len(grid.pictures)} pictures: {len(grid.rows)} x {', '.join(grid.columns)}")
    if subject.target == "mps":
        say("sd-scripts' gen_img.py knows no MPS: on a Mac it renders on the CPU, minutes a picture")
    with ProgressLine(sys.stderr) as line:
        folder = render(
            subject,
            grid,
            found,
            inherited=os.environ,
            listen=lambda done, of: line.show(f"{done}/{of} pictures rendered"),
        )
    sheet = png or subject.run.contact_sheet
    pictures = [[folder / cell.file for cell in row] for row in grid.cells]
    write_contact_sheet(sheet, grid.columns, grid.rows, pictures, subject.run.path.name)
    click.echo(f"pictures: {folder}\ncontact sheet: {sheet}")


def _samples_in(preset: str, root: Path) -> Samples:
    from spyke_kohya.presets.loading import load

    loaded = load(preset, root)
    if loaded.training is None:
        raise blocked(loaded.findings, "not a training preset without faults")
    return loaded.training.samples
