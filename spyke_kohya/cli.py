"""The command line: parse, call one function, print, exit code. Commands import what they need when they run, so that
``--help`` and ``validate`` answer at once.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from spyke_kohya import __version__
from spyke_kohya.errors import (
    DatasetError,
    EngineError,
    Interrupted,
    NothingToRank,
    PresetError,
    SpykeError,
    TrainingFailed,
    UsageError,
)
from spyke_kohya.findings import Finding, errors_in
from spyke_kohya.report.findings import count_text, fault_text, findings_text

if TYPE_CHECKING:
    from spyke_kohya.audit.examine import Examination
    from spyke_kohya.engine.release import Engine
    from spyke_kohya.presets.loading import Loaded
    from spyke_kohya.presets.training import Samples
    from spyke_kohya.rank.judge import Evidence, HeldoutResult, RankResult
    from spyke_kohya.run.launch import Launch
    from spyke_kohya.run.train import Outcome

Command = TypeVar("Command", bound=Callable[..., Any])

_DIRECTORY = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_ROOT = click.option("--root", type=_DIRECTORY, default=Path(), help="Where relative paths start.  [default: here]")
_ENGINE = click.option("--engine", type=_DIRECTORY, help="A directory with sd-scripts' train_network.py.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout.")
_STRICT = click.option("--strict", is_flag=True, help="Take warnings for errors.")
_SET = click.option(
    "--set", "settings", multiple=True, metavar="TABLE.KEY=VALUE", help="Put a value over the preset's own; repeatable."
)


def main() -> NoReturn:
    """Run the command line; every ending has its exit code, and none is a traceback."""
    try:
        with cli.make_context("spyke-kohya", sys.argv[1:]) as context:  # cli.main would make a closed pipe an error
            cli.invoke(context)
        sys.exit(0)
    except click.exceptions.Exit as ending:
        sys.exit(ending.exit_code)
    except click.ClickException as fault:
        fault.show()
        sys.exit(fault.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted")
        sys.exit(Interrupted.exit_code)
    except SpykeError as fault:
        _say(fault_text(fault))
        sys.exit(fault.exit_code)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as fault:
        _say(f"error: {type(fault).__name__}: {fault}\n  This is a fault of spyke-kohya itself.")
        _say(f"  do: report it with {_crash_log()}")
        sys.exit(SpykeError.exit_code)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(__version__)
def cli() -> None:
    """Plan, train, watch and rank Stable Diffusion LoRAs with kohya's sd-scripts.

    PRESET is a file, or the bare name of one in presets/.
    """


@cli.command(short_help="Everything wrong with presets, all at once.")
@click.argument("presets", nargs=-1, required=True, metavar="PRESET...")
@_SET
@_ROOT
@_STRICT
@_JSON
def validate(presets: Sequence[str], settings: Sequence[str], root: Path, strict: bool, as_json: bool) -> None:
    """Everything wrong with dataset and training presets, all at once."""
    examined = [_examine(name, root, settings) for name in presets]
    if as_json:
        _print_json([one.to_dict() for one in examined])
    else:
        for one in examined:
            click.echo(f"{one.loaded.name}: {count_text(one.findings)}")
            if one.findings:
                click.echo(findings_text(one.findings))
    worst = [_exit_code(one.findings, strict) for one in examined]
    sys.exit(min((code for code in worst if code), default=0))


@cli.command(short_help="Exactly what sd-scripts will do.")
@click.argument("preset")
@click.option("--epochs", type=click.IntRange(min=1), help="For a dataset preset: how many epochs.")
@click.option("--gradient-accumulation-steps", type=click.IntRange(min=1), help="For a dataset preset.")
@click.option("--num-processes", type=click.IntRange(min=1), default=1, help="For a dataset preset.")
@_SET
@_ROOT
@_JSON
def plan(
    preset: str,
    epochs: int | None,
    gradient_accumulation_steps: int | None,
    num_processes: int,
    settings: Sequence[str],
    root: Path,
    as_json: bool,
) -> None:
    """Exactly what sd-scripts will do: images, buckets, batches, steps, checkpoints, disk."""
    from spyke_kohya.audit.examine import examine
    from spyke_kohya.presets.loading import load
    from spyke_kohya.report.plan import plan_text

    completed = {"max_train_epochs": epochs, "gradient_accumulation_steps": gradient_accumulation_steps}
    options = {name: value for name, value in completed.items() if value is not None}
    examined = examine(load(preset, root.absolute(), settings), root.absolute(), options, num_processes=num_processes)
    _say_findings(examined.findings)
    if examined.plan is None:
        raise _blocked(examined.findings, "sd-scripts could not start, so there is no plan")
    if as_json:
        _print_json(examined.plan.to_dict())
    else:
        click.echo(plan_text(examined.plan))


@cli.command(short_help="Run the locked command, watch it, rank its checkpoints.")
@click.argument("preset")
@click.option("--dry-run", is_flag=True, help="Print the locked command and start nothing.")
@click.option("--smoke", is_flag=True, help="Run 5 steps into a scratch directory.")
@_SET
@_ENGINE
@_ROOT
@_STRICT
@_JSON
def train(
    preset: str,
    dry_run: bool,
    smoke: bool,
    settings: Sequence[str],
    engine: Path | None,
    root: Path,
    strict: bool,
    as_json: bool,
) -> None:
    """Run the locked accelerate launch train_network.py, watch it, record it, rank its checkpoints."""
    scratch = Path(tempfile.gettempdir()) / f"spyke-smoke-{os.getpid()}"
    smoke_settings = _smoke_settings(scratch) if smoke else ()
    launch, findings = _prepare(preset, [*settings, *smoke_settings], engine, root.absolute())
    _say_findings(findings)
    if dry_run:
        _print_json(launch.to_dict()) if as_json else click.echo(launch.command.as_shell(), nl=False)
        return
    if _exit_code(findings, strict):
        raise _blocked(findings, "not started")
    outcome = _run(launch)
    if as_json:
        _print_json(outcome.to_dict())
    _tell_outcome(launch, outcome)
    if smoke:
        shutil.rmtree(scratch)
        _say("smoke run: everything works; its files are removed")
    elif not as_json:
        _rank_run(launch)


@cli.command(short_help="Rank checkpoints by the minimum of the loss curve.")
@click.argument("directory", type=click.Path(path_type=Path, exists=True), metavar="DIR")
@click.option("--by", type=click.Choice(["avr_loss", "loss", "heldout"]), help="[default: the best evidence there is]")
@click.option(
    "--losses", type=click.Path(path_type=Path), help="Losses from this CSV, console log or TensorBoard folder."
)
@click.option("--window", type=click.IntRange(min=1), help="Batches in an epoch, where nothing says it.")
@click.option("--name", help="The output_name to rank, where a directory holds several.")
@click.option("--every", type=click.IntRange(min=1), help="Rank only steps that are multiples of this, and the last.")
@click.option("--png", type=_FILE, help="Where to write the picture.  [default: ranking.png beside the losses]")
@_JSON
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
    from spyke_kohya.rank.judge import rank_best

    result = rank_best(directory, by=by, losses=losses, window=window, name=name, every=every)
    if as_json:
        _print_json(result.to_dict())
        if png:
            _write_png(result, png)
    else:
        _show_ranking(result, png)


@cli.command(short_help="Set training pictures aside, to evaluate on.")
@click.argument("folder", type=_DIRECTORY, metavar="DIR")
@click.option("--count", type=click.IntRange(min=1), default=8, show_default=True, help="How many different pictures.")
@click.option("--to", "target", type=_DIRECTORY, help="Where to.  [default: heldout-NAME beside the folder]")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed chooses other pictures.")
@click.option("--copy", is_flag=True, help="Copy them; they are then still trained on, until you remove them.")
@click.option("--undo", is_flag=True, help="Put back what was set aside.")
def holdout(folder: Path, count: int, target: Path | None, seed: int, copy: bool, undo: bool) -> None:
    """Move a seeded choice of pictures, with their captions, out of the training folder DIR.

    Copies and flips of one picture go together. Name the folder in the preset: [evaluate] heldout_dir.
    """
    from spyke_kohya.holdout import choose_heldout, default_target, put_back, set_aside
    from spyke_kohya.rank.heldout_result import FEWEST_GROUPS

    if undo:
        click.echo(f"put back: {put_back(target or default_target(folder))} files in {folder}")
        return
    choice = choose_heldout(folder, count, target=target, seed=seed)
    set_aside(choice, copy=copy)
    click.echo(
        f"{'copied' if copy else 'moved'}: {len(choice.pictures)} pictures ({choice.groups} different ones), "
        f"{len(choice.files)} files with their captions, to {choice.target}\n{choice.left} different pictures stay"
    )
    if copy:
        _say(f"they are still in {folder}: what is trained on can't be held out")
    if choice.groups < FEWEST_GROUPS:
        _say(f"fewer than {FEWEST_GROUPS} different pictures can't tell checkpoints apart: 8 can, 16 better")


@cli.command(short_help="Measure every checkpoint on pictures it never saw.")
@click.argument("run", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="RUN")
@click.option("--heldout", type=_DIRECTORY, help="Held-out pictures, in the place of those that the preset named.")
@click.option("--quick", is_flag=True, help="8 pictures at 4 timesteps: a third of the time, and less certain.")
@click.option("--name", help="The output_name to evaluate, where a directory holds several.")
@_ENGINE
@_JSON
def evaluate(
    run: Path, heldout: Path | None, quick: bool, name: str | None, engine: Path | None, as_json: bool
) -> None:
    """Measure the loss of every checkpoint on pictures that were not trained on, and rank by it.

    RUN is a run directory, or an output directory, whose newest run is taken. What is measured already is not measured
    again, so an interrupted evaluation goes on where it stopped.
    """
    from spyke_kohya.evaluate.evaluation import forecast, measure, prepare
    from spyke_kohya.evaluate.subject import read_subject
    from spyke_kohya.rank.judge import rank_heldout
    from spyke_kohya.report.heldout import cost_text, forecast_text, progress_text
    from spyke_kohya.report.live import ProgressLine

    subject = read_subject(run, name)
    found = _find_engine(None, engine or subject.engine_dir, subject.root)
    request = prepare(subject, found, heldout_dir=heldout.absolute() if heldout else None, quick=quick)
    _say(forecast_text(forecast(subject, request)))
    with ProgressLine(sys.stderr) as line:
        cost = measure(
            subject, request, found, inherited=os.environ, listen=lambda progress: line.show(progress_text(progress))
        )
    if cost:
        _say(cost_text(cost))
    result = rank_heldout(subject.run.path, subject.run.output_dir)
    _print_json(result.to_dict()) if as_json else _show_heldout(result, None)


@cli.command(short_help="Render the tied checkpoints with the same prompts and seeds.")
@click.argument("run", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="RUN")
@click.option("--preset", help="Take [samples] from this preset, not from the one that was trained.")
@click.option("--name", help="The output_name to render, where a directory holds several.")
@click.option(
    "--png", type=_FILE, help="Where to write the contact sheet.  [default: samples.png in the run directory]"
)
@_ENGINE
@_ROOT
def samples(run: Path, preset: str | None, name: str | None, png: Path | None, engine: Path | None, root: Path) -> None:
    """Render checkpoints x prompts with one seed, by sd-scripts' gen_img.py, and lay them out on a contact sheet.

    RUN is a run directory, or an output directory, whose newest run is taken. Rendered are the checkpoints that `rank`
    says to look at, and the base without a LoRA.
    """
    from spyke_kohya.evaluate.subject import read_subject
    from spyke_kohya.rank.judge import rank_best
    from spyke_kohya.report.contact_sheet import write_contact_sheet
    from spyke_kohya.report.live import ProgressLine
    from spyke_kohya.samples import lay_out, render, samples_of

    subject = read_subject(run, name)
    found = _find_engine(None, engine or subject.engine_dir, subject.root)
    settings = _samples_in(preset, root.absolute()) if preset else samples_of(subject.record)
    trials = rank_best(subject.run.path, name=name).ranking.test_order
    grid = lay_out(settings, [trial.candidate for trial in trials if trial.candidate.file], subject.base)
    _say(f"{len(grid.pictures)} pictures: {len(grid.rows)} x {', '.join(grid.columns)}")
    if subject.target == "mps":
        _say("sd-scripts' gen_img.py knows no MPS: on a Mac it renders on the CPU, minutes a picture")
    with ProgressLine(sys.stderr) as line:
        folder = render(
            subject,
            grid,
            found,
            inherited=os.environ,
            listen=lambda done, of: line.show(f"{done}/{of} pictures rendered"),
        )
    sheet = png or subject.run.path / "samples.png"
    pictures = [[folder / cell.file for cell in row] for row in grid.cells]
    write_contact_sheet(sheet, grid.columns, grid.rows, pictures, subject.run.path.name)
    click.echo(f"pictures: {folder}\ncontact sheet: {sheet}")


@cli.command(short_help="Can this machine train at all?")
@click.argument("preset", required=False)
@_ENGINE
@_ROOT
@_JSON
def doctor(preset: str | None, engine: Path | None, root: Path, as_json: bool) -> None:
    """Can this machine, this Python and this sd-scripts train at all?"""
    from spyke_kohya.doctor import Patient, examine
    from spyke_kohya.presets.loading import load

    loaded = load(preset, root.absolute()) if preset else None
    if loaded and loaded.training is None:
        _say_findings(loaded.findings)
        raise _blocked(loaded.findings, "not a training preset without faults")
    patient = Patient(
        find_engine=lambda: _find_engine(loaded, engine, root.absolute()),
        preset=loaded.training if loaded else None,
        root=root.absolute(),
        environment=os.environ,
        home=Path.home(),
        reaches=_reaches,
    )
    checks = []
    for check in examine(patient):
        checks.append(check)
        if not as_json:
            click.echo(f"{check.status:<8} {check.subject}: {check.message}")
            if check.remedy:
                click.echo(f"         do: {check.remedy}")
    if as_json:
        _print_json([check.to_dict() for check in checks])
    sys.exit(EngineError.exit_code if any(check.status == "fault" for check in checks) else 0)


def _examine(name: str, root: Path, settings: Sequence[str]) -> Examination:
    from spyke_kohya.audit.examine import examine
    from spyke_kohya.presets.loading import load

    return examine(load(name, root.absolute(), settings), root.absolute())


def _prepare(name: str, settings: Sequence[str], engine: Path | None, root: Path) -> tuple[Launch, list[Finding]]:
    from spyke_kohya.audit.engine import check_engine
    from spyke_kohya.run.launch import prepare_launch

    examined = _examine(name, root, settings)
    if examined.loaded.training is None or examined.plan is None:
        _say_findings(examined.findings)
        raise _blocked(examined.findings, "there is nothing to start")
    found = _find_engine(examined.loaded, engine, root)
    launch = prepare_launch(examined.loaded, examined.plan, found, root=root, now=datetime.now(), inherited=os.environ)
    return launch, [*examined.findings, *check_engine(found)]


def _find_engine(loaded: Loaded | None, given: Path | None, root: Path) -> Engine:
    from spyke_kohya.engine.release import find_engine

    return find_engine(
        given=given.absolute() if given else None,
        environment=os.environ,
        preset_engine=loaded.training.launch.engine if loaded and loaded.training else None,
        root=root,
        own_python=Path(sys.executable),
    )


def _run(launch: Launch) -> Outcome:
    import time

    from spyke_kohya.report.live import PlainDisplay, TerminalDisplay
    from spyke_kohya.run.train import train as run_training

    _say(f"run directory: {launch.run.path}")
    display = TerminalDisplay() if sys.stderr.isatty() else PlainDisplay(sys.stderr, time.monotonic)
    with display:
        return run_training(launch, inherited=os.environ, listen=display, now=datetime.now)


def _tell_outcome(launch: Launch, outcome: Outcome) -> None:
    from spyke_kohya.report.live import duration

    steps = f"{outcome.steps} steps in {duration(outcome.duration_s)}"
    if outcome.status == "interrupted":
        raise Interrupted(f"{outcome.reason} after {steps}; what was saved is kept", where=str(launch.run.path))
    if outcome.status == "failed":
        remedy = f"see {launch.run.console}: the engine's whole console"
        raise TrainingFailed(
            f"training failed after {steps}: {outcome.reason}", where=str(launch.run.path), remedy=remedy
        )
    count = len(outcome.checkpoints)
    _say(f"finished: {steps}, {count} {'checkpoint' if count == 1 else 'checkpoints'}, whole on the disk")


def _rank_run(launch: Launch) -> None:
    """Rank a run that ended well; that it holds nothing to rank does not make it a failure."""
    from spyke_kohya.rank.judge import rank_directory

    try:
        result = rank_directory(launch.run.under(launch.root).path)
    except NothingToRank as fault:
        _say(f"not ranked: {fault.what}")
    else:
        _show_ranking(result, None)


def _show_heldout(result: HeldoutResult, png: Path | None) -> None:
    from spyke_kohya.report.heldout import heldout_table

    click.echo(heldout_table(result.ranking, min(shutil.get_terminal_size((100, 24)).columns, 120), result.title))
    picture = png or result.run_dir / "evaluation.png"
    _write_png(result, picture)
    click.echo(f"checkpoints: {result.directory}\npicture: {picture}")


def _show_ranking(result: RankResult | HeldoutResult, png: Path | None) -> None:
    from spyke_kohya.rank.judge import HeldoutResult

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


def _write_png(result: RankResult | HeldoutResult, picture: Path) -> None:
    from spyke_kohya.rank.judge import HeldoutResult

    try:
        if isinstance(result, HeldoutResult):
            from spyke_kohya.report.heldout import write_heldout_png

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
        raise _blocked(loaded.findings, "not a training preset without faults")
    return loaded.training.samples


def _smoke_settings(scratch: Path) -> tuple[str, ...]:
    return (
        "train_network.max_train_steps=5",
        "train_network.save_every_n_steps=",
        "train_network.save_every_n_epochs=",
        f"train_network.output_dir={json.dumps(str(scratch))}",
    )


def _exit_code(findings: Sequence[Finding], strict: bool) -> int:
    blocking = list(findings) if strict else errors_in(findings)
    return min((_blame(finding).exit_code for finding in blocking), default=0)


def _blame(finding: Finding) -> type[SpykeError]:
    room = finding.code.partition(".")[0]
    if room in ("dataset", "images", "captions"):
        return DatasetError
    return EngineError if room == "engine" else PresetError


def _blocked(findings: Sequence[Finding], what: str) -> SpykeError:
    errors = errors_in(findings) or list(findings)
    kind = min((_blame(finding) for finding in errors), key=lambda error: error.exit_code, default=PresetError)
    return kind(f"{what}: {count_text(findings)}")


def _reaches(host: str) -> bool:
    import socket

    try:
        with socket.create_connection((host, 443), timeout=3.0):
            return True
    except OSError:
        return False


def _crash_log() -> str:
    with tempfile.NamedTemporaryFile("w", prefix="spyke-kohya-", suffix=".log", delete=False, encoding="utf-8") as log:
        log.write(f"spyke-kohya {__version__}, Python {sys.version}, {sys.platform}\n{' '.join(sys.argv)}\n\n")
        log.write(traceback.format_exc())
    return log.name


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _say_findings(findings: Sequence[Finding]) -> None:
    if findings:
        _say(findings_text(findings))


def _say(text: str) -> None:
    with suppress(BrokenPipeError):  # nobody listens
        click.echo(text, err=True)


if __name__ == "__main__":
    main()
