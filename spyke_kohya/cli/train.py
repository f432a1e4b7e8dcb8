"""`train`: run the locked command, watch it, rank its checkpoints."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spyke_kohya.cli.group import ENGINE, JSON, PICKLE, ROOT, RUN_OR_OUTPUT, SET, STRICT, cli, preset_names
from spyke_kohya.cli.rank import show_ranking
from spyke_kohya.cli.terminal import live_display, open_session, print_json, say, say_findings
from spyke_kohya.errors import Interrupted, SpykeError, TrainingFailed

if TYPE_CHECKING:
    from spyke_kohya.run.launch import Launch
    from spyke_kohya.run.train import Outcome


@cli.command(epilog="Example: spyke-kohya train spyke_plasma_v1 --smoke")
@click.argument("preset", required=False, shell_complete=preset_names)
@click.option("--from", "recorded", type=RUN_OR_OUTPUT, metavar="RUN", help="Repeat this run from its own record.")
@click.option("--locked", is_flag=True, help="Refuse to start if anything changed since `lock`.")
@click.option("--dry-run", is_flag=True, help="Print the locked command and start nothing.")
@click.option("--smoke", is_flag=True, help="Run 5 real steps into a scratch directory.")
@click.option("--resume", is_flag=True, help="Continue this preset's last run from its newest whole state.")
@click.option(
    "--nan-patience",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Stop after this many steps with a NaN loss.",
)
@click.option(
    "--stall-timeout", type=click.FloatRange(min=1), metavar="SECONDS", help="Stop after so long without output."
)
@click.option("--end-stale", is_flag=True, help="End what an earlier run left running here.")
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
    """Run the locked command, watch it, rank its checkpoints.

    The locked command is `accelerate launch train_network.py` with the options of PRESET. A run directory records it
    all. Ctrl-C stops the run; what was saved is kept.
    """
    from spyke_kohya.run.supervision import Patience
    from spyke_kohya.session import smoke_settings

    session = open_session(root)
    scratch = Path(tempfile.mkdtemp(prefix="spyke-smoke-")) if smoke else None
    settings = [*settings, *(smoke_settings(scratch) if scratch else ())]
    request = session.request(preset, recorded, settings, locked=locked, engine=engine, allow_pickle=allow_pickle)
    launch = session.prepare(request, resume=resume, needs_engine=not dry_run)
    if dry_run:
        say_findings(launch.findings)
        print_json(launch.to_dict()) if as_json else click.echo(launch.command.as_shell(), nl=False)
        return
    session.check(launch, strict=strict)
    say_findings(launch.findings)
    launch, outcome = session.train(
        request, launch, display=live_display, patience=Patience(nan_patience, stall_timeout), end_stale=end_stale
    )
    if fault := _fault_of(launch, outcome, as_json):
        raise fault
    if as_json:
        print_json(outcome.to_dict())
    count = len(outcome.checkpoints)
    say(f"finished: {_steps_text(outcome)}, {count} {'checkpoint' if count == 1 else 'checkpoints'}, whole on the disk")
    if scratch:
        shutil.rmtree(scratch)
        say("smoke run: everything works; its files are removed")
    elif not as_json and (result := session.rank_run(launch)):
        show_ranking(result, None)


def _fault_of(launch: Launch, outcome: Outcome, as_json: bool) -> SpykeError | None:
    done = outcome.to_dict() if as_json else None
    steps, where = _steps_text(outcome), str(launch.run.path)
    if outcome.status == "interrupted":
        remedy = f"go on with `spyke-kohya train {launch.preset.name} --resume`" if outcome.states else ""
        what = f"{outcome.reason} after {steps}; what was saved is kept"
        return Interrupted(what, where=where, remedy=remedy, done=done)
    if outcome.status == "failed":
        remedy = outcome.remedy or f"see {launch.run.console}: the engine's whole console"
        what = f"training failed after {steps}: {outcome.reason}"
        return TrainingFailed(what, where=where, remedy=remedy, done=done)
    return None


def _steps_text(outcome: Outcome) -> str:
    from spyke_kohya.report.plain_text import duration

    return f"{outcome.steps} steps in {duration(outcome.duration_s)}"
