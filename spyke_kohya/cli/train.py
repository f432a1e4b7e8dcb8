"""`train`: run the locked command, watch it, rank its checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spyke_kohya.cli.asking import Asked, asked_for, drift_from, examine_loaded, find_engine
from spyke_kohya.cli.group import ENGINE, JSON, PICKLE, ROOT, RUN_OR_OUTPUT, SET, STRICT, cli, preset_names
from spyke_kohya.cli.rank import show_ranking
from spyke_kohya.cli.terminal import blocked, exit_code, live_display, print_json, redactor, say, say_findings
from spyke_kohya.errors import (
    Interrupted,
    NothingToRank,
    PresetError,
    TrainingFailed,
)
from spyke_kohya.findings import Finding
from spyke_kohya.report.plain_text import fault_text

if TYPE_CHECKING:
    from spyke_kohya.engine.release import Engine
    from spyke_kohya.run.launch import Launch
    from spyke_kohya.run.train import Outcome


@cli.command(short_help="Run the locked command, watch it, rank its checkpoints.")
@click.argument("preset", required=False, shell_complete=preset_names)
@click.option("--from", "recorded", type=RUN_OR_OUTPUT, metavar="RUN", help="Repeat this run from its own record.")
@click.option("--locked", is_flag=True, help="Refuse unless everything is as `lock` recorded it.")
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
@PICKLE
@SET
@ENGINE
@ROOT
@STRICT
@JSON
def train(
    preset: str | None,
    recorded: Path | None,
    locked: bool,
    dry_run: bool,
    smoke: bool,
    resume: bool,
    nan_patience: int,
    stall_timeout: float | None,
    end_stale: bool,
    allow_pickle: bool,
    settings: Sequence[str],
    engine: Path | None,
    root: Path,
    strict: bool,
    as_json: bool,
) -> None:
    """Run the locked accelerate launch train_network.py, watch it, record it, rank its checkpoints."""
    scratch = Path(tempfile.gettempdir()) / f"spyke-smoke-{os.getpid()}"
    smoke_settings = _smoke_settings(scratch) if smoke else ()
    asked = asked_for(preset, recorded, [*settings, *smoke_settings], root.absolute())
    prepare = partial(_prepare, asked, engine, locked, allow_pickle)
    launch, findings = prepare(resume)
    say_findings(findings)
    if dry_run:
        print_json(launch.to_dict()) if as_json else click.echo(launch.command.as_shell(), nl=False)
        return
    if exit_code(findings, strict):
        raise blocked(findings, "not started")
    launch, outcome = _run_locked(launch, lambda: prepare(True)[0], (nan_patience, stall_timeout), end_stale)
    if as_json:
        print_json(outcome.to_dict())
    _tell_outcome(launch, outcome)
    if smoke:
        shutil.rmtree(scratch)
        say("smoke run: everything works; its files are removed")
    elif not as_json:
        _rank_run(launch)


def _prepare(
    asked: Asked, engine: Path | None, locked: bool, allow_pickle: bool, resume: bool
) -> tuple[Launch, list[Finding]]:
    from spyke_kohya.audit.engine import check_engine
    from spyke_kohya.repeat.inputs import identify
    from spyke_kohya.repeat.lock import lock_path, lock_text
    from spyke_kohya.run.launch import prepare_launch
    from spyke_kohya.run.resume import find_segment

    examined = examine_loaded(asked.loaded, asked.root, allow_pickle=allow_pickle)
    if examined.loaded.training is None or examined.plan is None or examined.scan is None:
        say_findings(examined.findings)
        raise blocked(examined.findings, "there is nothing to start")
    found = find_engine(asked.loaded, engine, asked.root, asked.engine)
    identity = identify(asked.loaded, examined.scan, found, asked.root)
    prepare = partial(
        prepare_launch, asked.loaded, examined.plan, found, root=asked.root, inherited=os.environ, identity=identity
    )
    launch = prepare(now=datetime.now())
    if resume:
        segment = find_segment(launch.output_dir, launch.output_name, examined.plan, identity)
        launch = prepare(now=datetime.now(), segment=segment)
    # who trains into the directory the lock decides, and a resumed run writes over nothing
    decided = {"output.in-use", "output.overwrites"} if resume else {"output.in-use"}
    about = [finding for finding in examined.findings if finding.code not in decided]
    findings = [*about, *check_engine(found), *_engine_drift(asked, found)]
    lock = lock_path(asked.loaded) if locked else asked.lock
    if lock:
        now, drifted = drift_from(examined, found, asked.root, lock)
        findings += drifted
        launch = replace(launch, files={**launch.files, launch.run.lock.name: lock_text(now)})
    return replace(launch, findings=tuple(findings)), findings


def _engine_drift(asked: Asked, found: Engine) -> list[Finding]:
    from spyke_kohya.repeat.replay import engine_drift

    return engine_drift(asked.engine, found) if asked.engine and not asked.lock else []


def _run_locked(
    launch: Launch, resumed: Callable[[], Launch], patience: tuple[int, float | None], end_stale: bool
) -> tuple[Launch, Outcome]:
    """Run the launch as the only one in its output directory, and go on after a crash where the preset says so."""
    from spyke_kohya.record.exclusive import output_lock
    from spyke_kohya.run.train import MOST_RESUMES

    with output_lock(launch.output_dir):
        _clear_stale(launch.output_dir, end_stale)
        outcome = _run(launch, patience)
        for time in range(1, MOST_RESUMES + 1):
            if not (outcome.crashed and launch.auto_resume):
                break
            say(f"crashed at step {outcome.steps}: {outcome.reason}\nresuming by itself, {time} of {MOST_RESUMES}")
            try:
                launch = resumed()
            except PresetError as fault:
                say(fault_text(fault))
                break
            outcome = _run(launch, patience)
    return launch, outcome


def _clear_stale(output_dir: Path, end_stale: bool) -> None:
    """Say which runs here ended without a word; what is left of them is ended only by who was told to."""
    from spyke_kohya.process.process_table import end_group
    from spyke_kohya.record.exclusive import STALE, mark_stale, stale_runs

    for stale in stale_runs(output_dir):
        if not stale.is_marked:
            mark_stale(stale, datetime.now(), redactor())
            say(f"stale: {stale.run.path.name}: {STALE}")
        if not stale.left:
            continue
        left = f"{stale.run.path.name} still trains: process {', '.join(map(str, stale.left))}"
        if not (end_stale or (sys.stdin.isatty() and sys.stderr.isatty() and click.confirm(f"{left}. End it?"))):
            remedy = "end it with --end-stale, or wait for its end"
            raise PresetError(left, where=str(stale.run.path), remedy=remedy)
        ended = [end_group(group) for group in stale.groups]
        if not all(ended):
            raise PresetError(f"{left}, and can't be ended", where=str(stale.run.path), remedy="end it yourself")
        say(f"ended what was left of {stale.run.path.name}")


def _run(launch: Launch, patience: tuple[int, float | None]) -> Outcome:
    from spyke_kohya.run.supervision import Patience
    from spyke_kohya.run.train import train as run_training

    say(f"run directory: {launch.run.path}")
    if launch.segment:
        say(launch.segment.in_words)
    with live_display() as display:
        return run_training(
            launch,
            inherited=os.environ,
            listen=display,
            now=datetime.now,
            patience=Patience(*patience),
            complain=say,
            awake=sys.platform == "darwin",
        )


def _tell_outcome(launch: Launch, outcome: Outcome) -> None:
    from spyke_kohya.report.plain_text import duration

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
    say(f"finished: {steps}, {count} {'checkpoint' if count == 1 else 'checkpoints'}, whole on the disk")


def _rank_run(launch: Launch) -> None:
    """Rank a run that ended well; that it holds nothing to rank does not make it a failure."""
    from spyke_kohya.rank.directory import rank_directory

    try:
        result = rank_directory(launch.run.under(launch.root).path)
    except NothingToRank as fault:
        say(f"not ranked: {fault.what}")
    else:
        show_ranking(result, None)


def _smoke_settings(scratch: Path) -> tuple[str, ...]:
    return (
        "train_network.max_train_steps=5",
        "train_network.save_every_n_steps=",
        "train_network.save_every_n_epochs=",
        f"train_network.output_dir={json.dumps(str(scratch))}",
    )
