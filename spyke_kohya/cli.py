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
from functools import partial
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
    from spyke_kohya.rank.judge import RankResult
    from spyke_kohya.run.launch import Launch
    from spyke_kohya.run.redact import Redactor
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
@click.option("--resume", is_flag=True, help="Go on with this preset's last run, from its newest whole state.")
@click.option(
    "--nan-patience",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="End a run after so many steps without a number for a loss.",
)
@click.option(
    "--stall-timeout", type=click.FloatRange(min=1), metavar="SECONDS", help="End a run that says nothing for so long."
)
@click.option("--end-stale", is_flag=True, help="End what an earlier run has left running here.")
@_SET
@_ENGINE
@_ROOT
@_STRICT
@_JSON
def train(
    preset: str,
    dry_run: bool,
    smoke: bool,
    resume: bool,
    nan_patience: int,
    stall_timeout: float | None,
    end_stale: bool,
    settings: Sequence[str],
    engine: Path | None,
    root: Path,
    strict: bool,
    as_json: bool,
) -> None:
    """Run the locked accelerate launch train_network.py, watch it, record it, rank its checkpoints."""
    scratch = Path(tempfile.gettempdir()) / f"spyke-smoke-{os.getpid()}"
    smoke_settings = _smoke_settings(scratch) if smoke else ()
    prepare = partial(_prepare, preset, [*settings, *smoke_settings], engine, root.absolute())
    launch, findings = prepare(resume)
    _say_findings(findings)
    if dry_run:
        _print_json(launch.to_dict()) if as_json else click.echo(launch.command.as_shell(), nl=False)
        return
    if _exit_code(findings, strict):
        raise _blocked(findings, "not started")
    launch, outcome = _run_locked(launch, lambda: prepare(True)[0], (nan_patience, stall_timeout), end_stale)
    if as_json:
        _print_json(outcome.to_dict())
    _tell_outcome(launch, outcome)
    if smoke:
        shutil.rmtree(scratch)
        _say("smoke run: everything works; its files are removed")
    elif not as_json:
        _rank_run(launch)


@cli.command(short_help="Rank checkpoints by the minimum of the loss curve.")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR")
@click.option("--losses", type=_FILE, help="Losses from this CSV or console log, not from a run's record.")
@click.option("--window", type=click.IntRange(min=1), help="Batches in an epoch, where nothing says it.")
@click.option("--name", help="The output_name to rank, where a directory holds several.")
@click.option("--every", type=click.IntRange(min=1), help="Rank only steps that are multiples of this, and the last.")
@click.option("--png", type=_FILE, help="Where to write the picture.  [default: ranking.png beside the losses]")
@_JSON
def rank(
    directory: Path,
    losses: Path | None,
    window: int | None,
    name: str | None,
    every: int | None,
    png: Path | None,
    as_json: bool,
) -> None:
    """Rank checkpoints by the minimum of the loss curve, with the uncertainty said.

    DIR is an output directory or a run directory.
    """
    from spyke_kohya.rank.judge import rank_directory

    result = rank_directory(directory, losses=losses, window=window, name=name, every=every)
    if as_json:
        _print_json(result.to_dict())
        if png:
            _write_png(result, png)
    else:
        _show_ranking(result, png)


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


def _prepare(
    name: str, settings: Sequence[str], engine: Path | None, root: Path, resume: bool
) -> tuple[Launch, list[Finding]]:
    from spyke_kohya.audit.engine import check_engine
    from spyke_kohya.run.identity import identify
    from spyke_kohya.run.launch import prepare_launch
    from spyke_kohya.run.resume import find_segment

    examined = _examine(name, root, settings)
    if examined.loaded.training is None or examined.plan is None or examined.scan is None:
        _say_findings(examined.findings)
        raise _blocked(examined.findings, "there is nothing to start")
    found = _find_engine(examined.loaded, engine, root)
    identity = identify(examined.loaded, examined.scan, found, root)
    prepare = partial(
        prepare_launch, examined.loaded, examined.plan, found, root=root, inherited=os.environ, identity=identity
    )
    launch = prepare(now=datetime.now())
    if resume:
        segment = find_segment(launch.output_dir, launch.output_name, examined.plan, identity)
        launch = prepare(now=datetime.now(), segment=segment)
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


def _run_locked(
    launch: Launch, resumed: Callable[[], Launch], patience: tuple[int, float | None], end_stale: bool
) -> tuple[Launch, Outcome]:
    """Run the launch as the only one in its output directory, and go on after a crash where the preset says so."""
    from spyke_kohya.run.lock import output_lock
    from spyke_kohya.run.train import MOST_RESUMES

    with output_lock(launch.output_dir):
        _clear_stale(launch.output_dir, end_stale)
        outcome = _run(launch, patience)
        for time in range(1, MOST_RESUMES + 1):
            if not (outcome.crashed and launch.auto_resume):
                break
            _say(f"crashed at step {outcome.steps}: {outcome.reason}\nresuming by itself, {time} of {MOST_RESUMES}")
            try:
                launch = resumed()
            except PresetError as fault:
                _say(fault_text(fault))
                break
            outcome = _run(launch, patience)
    return launch, outcome


def _clear_stale(output_dir: Path, end_stale: bool) -> None:
    """Say which runs here ended without a word; what is left of them is ended only by who was told to."""
    from spyke_kohya.run.lock import STALE, mark_stale, stale_runs
    from spyke_kohya.run.processes import end_group

    for stale in stale_runs(output_dir):
        if not stale.is_marked:
            mark_stale(stale, datetime.now(), _redactor())
            _say(f"stale: {stale.run.path.name}: {STALE}")
        if not stale.left:
            continue
        left = f"{stale.run.path.name} still trains: process {', '.join(map(str, stale.left))}"
        if not (end_stale or (sys.stdin.isatty() and sys.stderr.isatty() and click.confirm(f"{left}. End it?"))):
            remedy = "end it with --end-stale, or wait for its end"
            raise PresetError(left, where=str(stale.run.path), remedy=remedy)
        ended = [end_group(group) for group in stale.groups]
        if not all(ended):
            raise PresetError(f"{left}, and can't be ended", where=str(stale.run.path), remedy="end it yourself")
        _say(f"ended what was left of {stale.run.path.name}")


def _run(launch: Launch, patience: tuple[int, float | None]) -> Outcome:
    import time

    from spyke_kohya.report.live import PlainDisplay, TerminalDisplay
    from spyke_kohya.run.supervision import Patience
    from spyke_kohya.run.train import train as run_training

    _say(f"run directory: {launch.run.path}")
    if launch.segment:
        _say(launch.segment.in_words)
    display = TerminalDisplay() if sys.stderr.isatty() else PlainDisplay(sys.stderr, time.monotonic)
    with display:
        return run_training(
            launch,
            inherited=os.environ,
            listen=display,
            now=datetime.now,
            patience=Patience(*patience),
            complain=_say,
            awake=sys.platform == "darwin",
        )


def _tell_outcome(launch: Launch, outcome: Outcome) -> None:
    from spyke_kohya.report.live import duration

    steps = f"{outcome.steps} steps in {duration(outcome.duration_s)}"
    if outcome.status == "interrupted":
        remedy = f"go on with `spyke-kohya train {launch.preset.name} --resume`" if outcome.states else ""
        what = f"{outcome.reason} after {steps}; what was saved is kept"
        raise Interrupted(what, where=str(launch.run.path), remedy=remedy)
    if outcome.status == "failed":
        remedy = outcome.remedy or f"see {launch.run.console}: the engine's whole console"
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


def _show_ranking(result: RankResult, png: Path | None) -> None:
    from spyke_kohya.report.text import loss_chart, ranking_table

    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    click.echo(loss_chart(result.curve, result.ranking, width))
    click.echo(ranking_table(result.ranking, width, result.title))
    picture = png or (result.run_dir or result.directory) / "ranking.png"
    _write_png(result, picture)
    click.echo(f"checkpoints: {result.directory}\npicture: {picture}")


def _write_png(result: RankResult, picture: Path) -> None:
    from spyke_kohya.report.picture import write_ranking_png

    try:
        write_ranking_png(picture, result.curve, result.ranking, result.title)
    except OSError as fault:
        message = f"the picture can't be written: {fault.strerror}"
        raise UsageError(message, where=str(picture), remedy="name another place with --png FILE") from fault


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
    text = f"spyke-kohya {__version__}, Python {sys.version}, {sys.platform}\n{' '.join(sys.argv)}\n\n"
    with tempfile.NamedTemporaryFile("w", prefix="spyke-kohya-", suffix=".log", delete=False, encoding="utf-8") as log:
        log.write(_redactor().text(text + traceback.format_exc()))
    return log.name


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _say_findings(findings: Sequence[Finding]) -> None:
    if findings:
        _say(findings_text(findings))


def _say(text: str) -> None:
    """To stderr, without secrets; who reads along may have left."""
    with suppress(OSError):
        click.echo(_redactor().text(text), err=True)


def _redactor() -> Redactor:
    from spyke_kohya.run.redact import Redactor

    return Redactor(os.environ, Path.home())


if __name__ == "__main__":
    main()
