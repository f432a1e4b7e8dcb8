"""Commands for after a training: rank, evaluate, samples, report, runs."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spyke_kohya.cli.asking import examine_preset, find_engine
from spyke_kohya.cli.group import DIRECTORY, ENGINE, FILE, JSON, ROOT, RUN_OR_OUTPUT, cli
from spyke_kohya.cli.terminal import blocked, print_json, say, say_findings, terminal_width
from spyke_kohya.errors import (
    UsageError,
)

if TYPE_CHECKING:
    from spyke_kohya.presets.training import Samples
    from spyke_kohya.rank.directory import HeldoutResult, TrainingResult
    from spyke_kohya.rank.result import Evidence


@cli.command(short_help="Rank checkpoints by the minimum of the loss curve.")
@click.argument("directory", type=click.Path(path_type=Path, exists=True), metavar="DIR")
@click.option("--by", type=click.Choice(["avr_loss", "loss", "heldout"]), help="[default: the best evidence there is]")
@click.option(
    "--losses", type=click.Path(path_type=Path), help="Losses from this CSV, console log or TensorBoard folder."
)
@click.option("--window", type=click.IntRange(min=1), help="Batches in an epoch, where nothing says it.")
@click.option("--name", help="The output_name to rank, where a directory holds several.")
@click.option("--every", type=click.IntRange(min=1), help="Rank only steps that are multiples of this, and the last.")
@click.option("--png", type=FILE, help="Where to write the picture.  [default: ranking.png beside the losses]")
@JSON
def rank(
    directory: Path,
    by: Evidence | None,
    losses: Path | None,
    window: int | None,
    name: str | None,
    every: int | None,
    png: Path | None,
    as_json: bool,
) -> None:
    """Rank checkpoints by the minimum of the loss curve, with the uncertainty said.

    DIR is an output directory or a run directory, or what holds losses: a TensorBoard folder, a console log, a CSV
    file. The best evidence is the loss on held-out pictures where `evaluate` measured it, else avr_loss; `loss` is the
    mean of the per-step losses around each checkpoint.
    """
    from spyke_kohya.rank.directory import rank_best

    result = rank_best(directory, by=by, losses=losses, window=window, name=name, every=every)
    if as_json:
        print_json(result.to_dict())
        if png:
            _write_png(result, png)
    else:
        show_ranking(result, png)


@cli.command(short_help="Measure every checkpoint on pictures it never saw.")
@click.argument("run", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="RUN")
@click.option("--heldout", type=DIRECTORY, help="Held-out pictures, in the place of those that the preset named.")
@click.option("--quick", is_flag=True, help="8 pictures at 4 timesteps: a third of the time, and less certain.")
@click.option("--name", help="The output_name to evaluate, where a directory holds several.")
@ENGINE
@JSON
def evaluate(
    run: Path, heldout: Path | None, quick: bool, name: str | None, engine: Path | None, as_json: bool
) -> None:
    """Measure the loss of every checkpoint on pictures that were not trained on, and rank by it.

    RUN is a run directory, or an output directory, whose newest run is taken. What is measured already is not measured
    again, so an interrupted evaluation goes on where it stopped.
    """
    from spyke_kohya.evaluate.evaluation import forecast, measure, prepare
    from spyke_kohya.evaluate.recorded_run import read_recorded_run
    from spyke_kohya.rank.checkpoints import OVERWRITTEN
    from spyke_kohya.rank.directory import rank_heldout
    from spyke_kohya.report.heldout_table import cost_text, forecast_text, progress_text
    from spyke_kohya.report.live import ProgressLine

    subject = read_recorded_run(run, name)
    found = find_engine(None, engine or subject.engine_dir, subject.root)
    for file in subject.overwritten:
        say(f"not measured: {file.name}, {OVERWRITTEN}")
    request = prepare(subject, found, heldout_dir=heldout.absolute() if heldout else None, quick=quick)
    say(forecast_text(forecast(subject, request)))
    with ProgressLine(sys.stderr) as line:
        cost = measure(
            subject, request, found, inherited=os.environ, listen=lambda progress: line.show(progress_text(progress))
        )
    if cost:
        say(cost_text(cost))
    result = rank_heldout(subject.run.path, subject.run.output_dir)
    print_json(result.to_dict()) if as_json else _show_heldout(result, None)


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
    from spyke_kohya.evaluate.recorded_run import read_recorded_run
    from spyke_kohya.evaluate.samples import lay_out, render, samples_of
    from spyke_kohya.rank.directory import rank_best
    from spyke_kohya.report.contact_sheet import write_contact_sheet
    from spyke_kohya.report.live import ProgressLine

    subject = read_recorded_run(run, name)
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


@cli.command("runs", short_help="All runs under a directory, or two compared.")
@click.argument("paths", nargs=-1, type=RUN_OR_OUTPUT, metavar="[DIR | RUN RUN]")
@click.option("--png", type=FILE, help="Where two runs' curves are drawn.  [default: beside the second run's record]")
@click.option("--gc", is_flag=True, help="List what nothing needs any more: old states, scratch.")
@click.option("--yes", is_flag=True, help="With --gc: delete it.")
@JSON
def runs_command(paths: Sequence[Path], png: Path | None, gc: bool, yes: bool, as_json: bool) -> None:
    """All runs under DIR (default: output), newest first; or two runs, and in what they differ."""
    from spyke_kohya.report.overview import find_runs, summarize
    from spyke_kohya.report.runs_text import runs_table

    if len(paths) > 2:
        raise UsageError("name a directory, or two runs to compare")
    directory = paths[0] if paths else Path("output")
    if gc:
        _collect_garbage(directory, yes, as_json)
    elif len(paths) == 2:
        _compare(paths[0], paths[1], png, as_json)
    else:
        found = [summarize(run) for run in find_runs(directory)]
        print_json([run.to_dict() for run in found]) if as_json else click.echo(
            runs_table(found, terminal_width()), nl=False
        )


def _compare(first: Path, second: Path, png: Path | None, as_json: bool) -> None:
    from spyke_kohya.record.rundir import RunDirectory
    from spyke_kohya.report.overview import differences, ranked, summarize
    from spyke_kohya.report.runs_text import comparison_text, write_comparison_png

    pair = [RunDirectory(path) for path in (first, second)]
    found, told = differences(*pair), [summarize(run) for run in pair]
    picture = png or second / f"against-{first.resolve().name}.png"
    results = [result for run in pair if (result := ranked(run))]
    if results:
        write_comparison_png(picture, results)
    if as_json:
        changed = [asdict(one) for one in found]
        print_json({"runs": [run.to_dict() for run in told], "differences": changed, "picture": str(picture)})
        return
    click.echo(comparison_text(told, found, terminal_width()))
    if results:
        click.echo(f"picture: {picture}")


def _collect_garbage(directory: Path, yes: bool, as_json: bool) -> None:
    from spyke_kohya.report.overview import deletable, delete
    from spyke_kohya.report.runs_text import deletable_text

    found = deletable(directory, Path(tempfile.gettempdir()))
    if as_json:
        print_json([{**asdict(item), "path": str(item.path)} for item in found])
    else:
        click.echo(deletable_text(found))
    if yes:
        delete(found)
        say(f"deleted {len(found)}")
    elif found:
        say("nothing was deleted: say --yes")


@cli.command("report", short_help="A page to look at, and a summary to keep.")
@click.argument("directory", type=RUN_OR_OUTPUT, metavar="RUN")
@click.option("--losses", type=FILE, help="Losses from this file, where no run recorded them.")
@click.option("--preset", help="Where no run recorded it: the preset that was trained.")
@click.option("--planned", type=click.IntRange(min=1), metavar="STEPS", help="The steps you had planned.")
@ROOT
def report_command(directory: Path, losses: Path | None, preset: str | None, planned: int | None, root: Path) -> None:
    """Write report.html, one page that needs no network, and summary.md into the run's directory."""
    from spyke_kohya.report.data import read_story
    from spyke_kohya.report.html import report_html
    from spyke_kohya.report.markdown import summary_markdown

    examined = examine_preset(preset, root, ()) if preset else None
    if examined and examined.plan is None:
        say_findings(examined.findings)
        raise blocked(examined.findings, "the preset has no plan to compare with")
    story = read_story(directory, losses=losses, planned=planned, preset=examined)
    for name, text in (("report.html", report_html(story)), ("summary.md", summary_markdown(story))):
        (story.folder / name).write_text(text, encoding="utf-8")
        click.echo(story.folder / name)


def _show_heldout(result: HeldoutResult, png: Path | None) -> None:
    from spyke_kohya.report.heldout_table import heldout_table

    click.echo(heldout_table(result.ranking, min(shutil.get_terminal_size((100, 24)).columns, 120), result.title))
    picture = png or result.run_dir / "evaluation.png"
    _write_png(result, picture)
    click.echo(f"checkpoints: {result.directory}\npicture: {picture}")


def show_ranking(result: TrainingResult | HeldoutResult, png: Path | None) -> None:
    from spyke_kohya.rank.directory import HeldoutResult

    if isinstance(result, HeldoutResult):
        _show_heldout(result, png)
        return
    from spyke_kohya.report.text import loss_chart, ranking_table

    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    click.echo(loss_chart(result.curve, result.ranking, width))
    click.echo(ranking_table(result.ranking, width, result.title))
    picture = png or (result.run_dir or result.directory) / "ranking.png"
    _write_png(result, picture)
    click.echo(f"checkpoints: {result.directory}\npicture: {picture}")


def _write_png(result: TrainingResult | HeldoutResult, picture: Path) -> None:
    from spyke_kohya.rank.directory import HeldoutResult

    try:
        if isinstance(result, HeldoutResult):
            from spyke_kohya.report.heldout_table import write_heldout_png

            write_heldout_png(picture, result.ranking, result.title)
        else:
            from spyke_kohya.report.picture import write_ranking_png

            write_ranking_png(picture, result.curve, result.ranking, result.title)
    except OSError as fault:
        message = f"the picture can't be written: {fault.strerror}"
        raise UsageError(message, where=str(picture), remedy="name another place with --png FILE") from fault


def _samples_in(preset: str, root: Path) -> Samples:
    from spyke_kohya.presets.loading import load

    loaded = load(preset, root)
    if loaded.training is None:
        raise blocked(loaded.findings, "not a training preset without faults")
    return loaded.training.samples
