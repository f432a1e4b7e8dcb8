"""The command line: parse, call one function, print, exit code. Commands import what they need when they run, so that
``--help`` and ``validate`` answer at once.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, TypeVar

import click
from click.shell_completion import CompletionItem, shell_complete

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
    from spyke_kohya.engine.targets import Target
    from spyke_kohya.presets.loading import Loaded
    from spyke_kohya.presets.training import Samples
    from spyke_kohya.rank.judge import Evidence, HeldoutResult, RankResult
    from spyke_kohya.report.live import PlainDisplay, TerminalDisplay
    from spyke_kohya.run.launch import Launch
    from spyke_kohya.run.redact import Redactor
    from spyke_kohya.run.train import Outcome

Command = TypeVar("Command", bound=Callable[..., Any])

_COMPLETE = "_SPYKE_KOHYA_COMPLETE"
_DIRECTORY = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_RUN_OR_OUTPUT = click.Path(path_type=Path, file_okay=False, exists=True)
_ROOT = click.option("--root", type=_DIRECTORY, default=Path(), help="Where relative paths start.  [default: here]")
_ENGINE = click.option("--engine", type=_DIRECTORY, help="A directory with sd-scripts' train_network.py.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout.")
_PICKLE = click.option("--allow-pickle", is_flag=True, help="Let the base model be a .ckpt or .pt, which can run code.")
_TARGET = click.option(
    "--target",
    type=click.Choice(["mps", "cuda", "cpu"]),
    default="mps" if sys.platform == "darwin" else "cuda",
    show_default=True,
    help="The device to train on.",
)
_PLAIN_NAME = re.compile(r"[\w-]+")
_STRICT = click.option("--strict", is_flag=True, help="Take warnings for errors.")
_SET = click.option(
    "--set", "settings", multiple=True, metavar="TABLE.KEY=VALUE", help="Put a value over the preset's own; repeatable."
)


@dataclass(frozen=True)
class Asked:
    """What is to be trained: a preset and where its paths start; for a repeated run its engine and its lock, if any."""

    loaded: Loaded
    root: Path
    engine: Mapping[str, Any] | None = None
    lock: Path | None = None


def _preset_names(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The presets there are, by bare name; and any file, for a preset may be named by its path."""
    root = context.params.get("root") or Path()
    names = sorted(file.stem for file in (root / "presets").glob("*.toml"))
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def main() -> NoReturn:
    """Run the command line; every ending has its exit code, and none is a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may be no text at all
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get(_COMPLETE):
        sys.exit(shell_complete(cli, {}, "spyke-kohya", _COMPLETE, os.environ[_COMPLETE]))
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
@click.argument("presets", nargs=-1, metavar="PRESET...", shell_complete=_preset_names)
@click.option("--quick", is_flag=True, help="Don't decode the images: their headers and captions only.")
@click.option("--hash", "with_hash", is_flag=True, help="Tell the SHA-256 of the base model.")
@click.option("-v", "--verbose", is_flag=True, help="Show how often each tag is in the captions.")
@click.option("--explain", metavar="CODE", help="Why there is this finding, and where it was seen.")
@_PICKLE
@_SET
@_ROOT
@_STRICT
@_JSON
def validate(
    presets: Sequence[str],
    quick: bool,
    with_hash: bool,
    verbose: bool,
    explain: str | None,
    allow_pickle: bool,
    settings: Sequence[str],
    root: Path,
    strict: bool,
    as_json: bool,
) -> None:
    """Everything wrong with dataset and training presets, all at once.

    Every image is decoded once; what is unchanged is not decoded again.
    """
    if explain:
        click.echo(_explanation(explain))
        return
    if not presets:
        raise click.UsageError("Missing argument 'PRESET...'.")
    examined = [_examine(name, root, settings, quick=quick, allow_pickle=allow_pickle) for name in presets]
    hashes = [_base_hash(one, root) if with_hash else {} for one in examined]
    if as_json:
        _print_json([one.to_dict() | told for one, told in zip(examined, hashes, strict=True)])
    else:
        for one, told in zip(examined, hashes, strict=True):
            click.echo(f"{one.loaded.name}: {count_text(one.findings)}")
            if one.findings:
                click.echo(findings_text(one.findings))
            for name, digest in told.items():
                click.echo(f"{name}: {digest}")
            if verbose:
                _show_tags(one)
    worst = [_exit_code(one.findings, strict) for one in examined]
    sys.exit(min((code for code in worst if code), default=0))


@cli.command(short_help="Exactly what sd-scripts will do.")
@click.argument("preset", shell_complete=_preset_names)
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
@click.argument("preset", required=False, shell_complete=_preset_names)
@click.option("--from", "recorded", type=_RUN_OR_OUTPUT, metavar="RUN", help="Repeat this run from its own record.")
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
@_PICKLE
@_SET
@_ENGINE
@_ROOT
@_STRICT
@_JSON
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
    asked = _asked(preset, recorded, [*settings, *smoke_settings], root.absolute())
    prepare = partial(_prepare, asked, engine, locked, allow_pickle)
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
    sheet = png or subject.run.contact_sheet
    pictures = [[folder / cell.file for cell in row] for row in grid.cells]
    write_contact_sheet(sheet, grid.columns, grid.rows, pictures, subject.run.path.name)
    click.echo(f"pictures: {folder}\ncontact sheet: {sheet}")


@cli.command(short_help="Write presets for a folder of images.")
@click.argument("name")
@click.option("--images", required=True, help="The folder of training images, as it is to stand in the preset.")
@click.option("--reg", help="A folder of regularisation images.")
@click.option("--base", help="The base model.  [default: that of another preset]")
@click.option("--trigger", help="The trigger word.  [default: the first tag of all captions, else NAME]")
@_TARGET
@_ROOT
def new(
    name: str, images: str, reg: str | None, base: str | None, trigger: str | None, target: Target, root: Path
) -> None:
    """Look at a folder of images and write a dataset and a training preset for it, with comments.

    Each picture is seen 40 times in the whole training, as in the run of record, but all together 400 to 1000 times.
    """
    from spyke_kohya.new import Asked, base_of_others, new_presets
    from spyke_kohya.presets.writing import write_new

    if not _PLAIN_NAME.fullmatch(name):
        raise UsageError(f"{name!r} can't name a preset", remedy="use letters, digits, - and _")
    base = base or base_of_others(root.absolute())
    if base is None:
        raise UsageError("no base model is named", remedy="say --base FILE")
    files = new_presets(Asked(name, images, base, target, reg, trigger), root.absolute())
    write_new(files)
    click.echo("\n".join(str(path) for path in files))
    _say(f"look at both, then: spyke-kohya plan {name}")


@cli.command("import", short_help="Write a preset from another front end's settings.")
@click.argument("file", type=click.File("rb"))
@click.option("--name", help="The preset's name.  [default: its output_name]")
@_TARGET
@_ROOT
def import_(file: BinaryIO, name: str | None, target: Target, root: Path) -> None:
    """Read a kohya_ss GUI preset (JSON), an sd-scripts --config_file (TOML) or an accelerate launch command line.

    FILE may be - for stdin. What could not be carried over is said on stderr, and in the preset.
    """
    from spyke_kohya.presets.importing import import_settings
    from spyke_kohya.presets.writing import write_new

    text = file.read().decode("utf-8-sig", errors="replace")
    imported = import_settings(text, root.absolute(), name=name, target=target)
    write_new(imported.files)
    click.echo("\n".join(str(path) for path in imported.files))
    for note in imported.notes:
        _say(f"not carried over as it was: {note}")
    _say(f"look at it, then: spyke-kohya validate {imported.name}")


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell: commands, options and the names of presets.

    For bash, put `eval "$(spyke-kohya completion bash)"` into ~/.bashrc.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "spyke-kohya", _COMPLETE).source())


@cli.command(short_help="Can this machine train at all?")
@click.argument("preset", required=False, shell_complete=_preset_names)
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


@cli.command("runs", short_help="All runs under a directory, or two compared.")
@click.argument("paths", nargs=-1, type=_RUN_OR_OUTPUT, metavar="[DIR | RUN RUN]")
@click.option("--png", type=_FILE, help="Where two runs' curves are drawn.  [default: beside the second run's record]")
@click.option("--gc", is_flag=True, help="List what nothing needs any more: old states, scratch.")
@click.option("--yes", is_flag=True, help="With --gc: delete it.")
@_JSON
def runs_command(paths: Sequence[Path], png: Path | None, gc: bool, yes: bool, as_json: bool) -> None:
    """All runs under DIR (default: output), newest first; or two runs, and in what they differ."""
    from spyke_kohya.report.runs import runs_table
    from spyke_kohya.runs import find_runs, summarize

    if len(paths) > 2:
        raise UsageError("name a directory, or two runs to compare")
    directory = paths[0] if paths else Path("output")
    if gc:
        _collect_garbage(directory, yes, as_json)
    elif len(paths) == 2:
        _compare(paths[0], paths[1], png, as_json)
    else:
        found = [summarize(run) for run in find_runs(directory)]
        _print_json([run.to_dict() for run in found]) if as_json else click.echo(runs_table(found, _width()), nl=False)


def _compare(first: Path, second: Path, png: Path | None, as_json: bool) -> None:
    from spyke_kohya.report.runs import comparison_text, write_comparison_png
    from spyke_kohya.run.rundir import RunDirectory
    from spyke_kohya.runs import differences, ranked, summarize

    pair = [RunDirectory(path) for path in (first, second)]
    found, told = differences(*pair), [summarize(run) for run in pair]
    picture = png or second / f"against-{first.resolve().name}.png"
    results = [result for run in pair if (result := ranked(run))]
    if results:
        write_comparison_png(picture, results)
    if as_json:
        changed = [asdict(one) for one in found]
        _print_json({"runs": [run.to_dict() for run in told], "differences": changed, "picture": str(picture)})
        return
    click.echo(comparison_text(told, found, _width()))
    if results:
        click.echo(f"picture: {picture}")


def _collect_garbage(directory: Path, yes: bool, as_json: bool) -> None:
    from spyke_kohya.report.runs import deletable_text
    from spyke_kohya.runs import deletable, delete

    found = deletable(directory, Path(tempfile.gettempdir()))
    if as_json:
        _print_json([{**asdict(item), "path": str(item.path)} for item in found])
    else:
        click.echo(deletable_text(found))
    if yes:
        delete(found)
        _say(f"deleted {len(found)}")
    elif found:
        _say("nothing was deleted: say --yes")


@cli.command("watch", short_help="Follow a live run from another terminal.")
@click.argument("directory", type=_RUN_OR_OUTPUT, metavar="RUN")
def watch_command(directory: Path) -> None:
    """Follow a live run from another terminal. Ctrl-C ends the watching, and not the run."""
    import time

    from spyke_kohya.run.follow import follow
    from spyke_kohya.run.rundir import RunDirectory
    from spyke_kohya.runs import find_runs

    newest = next(iter(find_runs(directory)), None)
    run = newest if newest and not RunDirectory(directory).record.is_file() else RunDirectory(directory)
    try:
        _say(f"watching {run.path}")
        with _display() as display:
            for event, watch in follow(run, lambda: time.sleep(0.5)):
                display(event, watch)
    except KeyboardInterrupt as stop:
        raise Interrupted("no longer watching; the run goes on", where=str(run.path)) from stop
    record = run.read_record()
    click.echo(f"{record['status']}{': ' + record['reason'] if record['reason'] else ''}")


def _width() -> int:
    return shutil.get_terminal_size((100, 24)).columns


@cli.command("report", short_help="A page to look at, and a summary to keep.")
@click.argument("directory", type=_RUN_OR_OUTPUT, metavar="RUN")
@click.option("--losses", type=_FILE, help="Losses from this file, where no run recorded them.")
@click.option("--preset", help="Where no run recorded it: the preset that was trained.")
@click.option("--planned", type=click.IntRange(min=1), metavar="STEPS", help="The steps you had planned.")
@_ROOT
def report_command(directory: Path, losses: Path | None, preset: str | None, planned: int | None, root: Path) -> None:
    """Write report.html, one page that needs no network, and summary.md into the run's directory."""
    from spyke_kohya.report.html import report_html
    from spyke_kohya.report.markdown import summary_markdown
    from spyke_kohya.report.story import read_story

    examined = _examine(preset, root, ()) if preset else None
    if examined and examined.plan is None:
        _say_findings(examined.findings)
        raise _blocked(examined.findings, "the preset has no plan to compare with")
    story = read_story(directory, losses=losses, planned=planned, preset=examined)
    for name, text in (("report.html", report_html(story)), ("summary.md", summary_markdown(story))):
        (story.folder / name).write_text(text, encoding="utf-8")
        click.echo(story.folder / name)


@cli.command("deploy", short_help="Put the chosen checkpoint where it is used.")
@click.argument("directory", type=_RUN_OR_OUTPUT, metavar="DIR")
@click.option(
    "--to", type=_DIRECTORY, help="ComfyUI's, A1111's or Forge's directory.  [default: the preset's [deploy] to]"
)
@click.option("--step", type=click.IntRange(min=1), help="This checkpoint, and not the top of the test order.")
@click.option("--name", help="What to call it there.  [default: the preset's [deploy] name, or the output_name]")
@click.option("--replace", is_flag=True, help="Put it in the place of a different file, which is kept beside it.")
@click.option("--metadata", is_flag=True, help="Write the trigger and the run into the file's header.")
@click.option("--link", is_flag=True, help="Make a symbolic link.")
@click.option("--undo", is_flag=True, help="Take it away again, and put back what was there.")
@_JSON
def deploy_command(
    directory: Path,
    to: Path | None,
    step: int | None,
    name: str | None,
    replace: bool,
    metadata: bool,
    link: bool,
    undo: bool,
    as_json: bool,
) -> None:
    """Put the top of the test order, or --step N, into models/loras, checked, with its history."""
    from spyke_kohya import deploy as shipping
    from spyke_kohya.shipment import choose, place_on_record

    target = to or place_on_record(directory)
    if target is None:
        raise UsageError(
            "where to is not said", remedy="name the directory: --to ~/tools/ComfyUI, or [deploy] to = ..."
        )
    place = shipping.find_place(Path(target).expanduser())
    if undo:
        click.echo(shipping.undo(place, name or choose(directory).name))
        return
    shipment = choose(directory, step=step, name=name)
    done = shipping.deploy(shipment, place, now=datetime.now(), replace=replace, link=link, metadata=metadata)
    if as_json:
        _print_json(done.to_dict())
        return
    click.echo(f"deployed {shipment.checkpoint.name} to {place.ui}: {done.file}")
    click.echo(f"history: {place.provenance(shipment.name)}\n{shipment.verdict}")


@cli.command("list", short_help="What is deployed, and from which run.")
@click.argument("place", type=_DIRECTORY, metavar="COMFYUI")
@_JSON
def list_command(place: Path, as_json: bool) -> None:
    """What is deployed in ComfyUI's, A1111's or Forge's directory, and from which run."""
    from spyke_kohya.deploy import deployed_in, find_place

    found = deployed_in(find_place(place.expanduser()))
    if as_json:
        _print_json([one.to_dict() for one in found])
        return
    for one in found:
        run = one.provenance["run"] or "a training without a record"
        click.echo(f"{one.name}  {one.state}  step {one.provenance['step']} of {run}")


@cli.command("lock", short_help="Record all that decides how a preset trains.")
@click.argument("preset")
@click.option("--check", is_flag=True, help="Tell what has drifted since, and write nothing.")
@_ENGINE
@_ROOT
def lock_command(preset: str, check: bool, engine: Path | None, root: Path) -> None:
    """Record all that decides how PRESET trains in presets/NAME.lock, for `train --locked` to hold to."""
    from spyke_kohya.lock import lock_path, lock_text

    root = root.absolute()
    examined = _examine(preset, root, ())
    found = _find_engine(examined.loaded, engine, root)
    path = lock_path(examined.loaded)
    if check:
        _, drifted = _drift(examined, found, root, path)
        if drifted:
            _say_findings(drifted)
            raise _blocked(drifted, "drifted from the lock")
        click.echo(f"as locked: {path}")
        return
    lock = _make_lock(examined, found, root)
    path.write_text(lock_text(lock), encoding="utf-8")
    click.echo(f"locked {len(lock['images'])} images, {len(lock['captions'])} captions: {path}")


def _examine(
    name: str, root: Path, settings: Sequence[str], *, quick: bool = False, allow_pickle: bool = False
) -> Examination:
    from spyke_kohya.presets.loading import load

    root = root.absolute()
    return _examine_loaded(load(name, root, settings), root, quick=quick, allow_pickle=allow_pickle)


def _examine_loaded(loaded: Loaded, root: Path, *, quick: bool = False, allow_pickle: bool = False) -> Examination:
    from spyke_kohya.audit.examine import Means, examine
    from spyke_kohya.audit.memory import physical_memory_bytes
    from spyke_kohya.audit.picture_cache import PictureCache, cache_directory
    from spyke_kohya.report.decoding import decoding_bar

    cache = PictureCache(cache_directory(os.environ, Path.home()))
    with decoding_bar(is_terminal=sys.stderr.isatty()) as begin:
        means = Means(
            look=None if quick else partial(cache.look, begin=begin),
            environment=os.environ,
            home=Path.home(),
            memory_bytes=physical_memory_bytes(),
            allow_pickle=allow_pickle,
        )
        examined = examine(loaded, root, means=means)
    return _with_other_runs(examined, root)


def _asked(preset: str | None, recorded: Path | None, settings: Sequence[str], root: Path) -> Asked:
    from spyke_kohya.presets.loading import load

    if (preset is None) == (recorded is None):
        raise UsageError("name a preset, or a run to repeat with --from RUN")
    if recorded is None:
        return Asked(load(preset or "", root, settings), root)
    from spyke_kohya.replay import recorded_preset
    from spyke_kohya.run.rundir import RunDirectory

    run = RunDirectory(recorded.absolute())
    again = recorded_preset(run, settings)
    return Asked(again.loaded, again.root, again.engine, run.lock if run.lock.is_file() else None)


def _with_other_runs(examined: Examination, root: Path) -> Examination:
    from spyke_kohya.engine.command import expand_home
    from spyke_kohya.presets.loading import shown_path
    from spyke_kohya.run.in_use import check_in_use

    training = examined.loaded.training
    if training is None:
        return examined
    output_dir = root / str(expand_home("output_dir", training.options["output_dir"]))
    more = check_in_use(output_dir, shown_path(examined.loaded.path, root))
    return replace(examined, findings=(*examined.findings, *more))


def _explanation(code: str) -> str:
    from difflib import get_close_matches

    from spyke_kohya.audit.catalogue import CATALOGUE, explanation

    if code in CATALOGUE:
        return explanation(code)
    close = get_close_matches(code, CATALOGUE, n=1)
    remedy = f"did you mean {close[0]}?" if close else "docs/findings.md lists them all"
    raise UsageError(f"there is no finding `{code}`", remedy=remedy)


def _base_hash(examined: Examination, root: Path) -> dict[str, str | None]:
    from spyke_kohya.audit.base_model import base_path, file_hash

    training = examined.loaded.training
    return {"base_sha256": file_hash(base_path(training.effective_options, root.absolute()))} if training else {}


def _show_tags(examined: Examination) -> None:
    from spyke_kohya.audit.tags import tag_tables
    from spyke_kohya.report.tags import tag_table_text

    for table in tag_tables(examined.scan, examined.captions) if examined.scan else []:
        click.echo(f"\n{tag_table_text(table)}")


def _prepare(
    asked: Asked, engine: Path | None, locked: bool, allow_pickle: bool, resume: bool
) -> tuple[Launch, list[Finding]]:
    from spyke_kohya.audit.engine import check_engine
    from spyke_kohya.lock import lock_path, lock_text
    from spyke_kohya.run.identity import identify
    from spyke_kohya.run.launch import prepare_launch
    from spyke_kohya.run.resume import find_segment

    examined = _examine_loaded(asked.loaded, asked.root, allow_pickle=allow_pickle)
    if examined.loaded.training is None or examined.plan is None or examined.scan is None:
        _say_findings(examined.findings)
        raise _blocked(examined.findings, "there is nothing to start")
    found = _find_engine(asked.loaded, engine, asked.root, asked.engine)
    identity = identify(asked.loaded, examined.scan, found, asked.root)
    prepare = partial(
        prepare_launch, asked.loaded, examined.plan, found, root=asked.root, inherited=os.environ, identity=identity
    )
    launch = prepare(now=datetime.now())
    if resume:
        segment = find_segment(launch.output_dir, launch.output_name, examined.plan, identity)
        launch = prepare(now=datetime.now(), segment=segment)
    findings = [*examined.findings, *check_engine(found), *_engine_drift(asked, found)]
    lock = lock_path(asked.loaded) if locked else asked.lock
    if lock:
        now, drifted = _drift(examined, found, asked.root, lock)
        findings += drifted
        launch = replace(launch, files={**launch.files, launch.run.lock.name: lock_text(now)})
    return replace(launch, findings=tuple(findings)), findings


def _engine_drift(asked: Asked, found: Engine) -> list[Finding]:
    from spyke_kohya.replay import engine_drift

    return engine_drift(asked.engine, found) if asked.engine and not asked.lock else []


def _drift(examined: Examination, engine: Engine, root: Path, path: Path) -> tuple[dict[str, Any], list[Finding]]:
    from spyke_kohya.lock import drift, read_lock
    from spyke_kohya.presets.loading import shown_path

    locked, now = read_lock(path), _make_lock(examined, engine, root)
    return now, drift(locked, now, shown_path(path, root))


def _make_lock(examined: Examination, engine: Engine, root: Path) -> dict[str, Any]:
    from spyke_kohya.lock import Surroundings, make_lock

    if examined.plan is None or examined.scan is None or examined.loaded.training is None:
        _say_findings(examined.findings)
        raise _blocked(examined.findings, "there is nothing to lock")
    around = Surroundings(root, Path.home(), os.environ)
    return make_lock(examined.loaded, examined.plan, examined.scan, engine, around)


def _find_engine(
    loaded: Loaded | None, given: Path | None, root: Path, recorded: Mapping[str, Any] | None = None
) -> Engine:
    from spyke_kohya.engine.release import find_engine

    preset_engine = loaded.training.launch.engine if loaded and loaded.training else None
    return find_engine(
        given=given.absolute() if given else None,
        environment=os.environ,
        preset_engine=recorded["directory"] if recorded else preset_engine,
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
    from spyke_kohya.run.supervision import Patience
    from spyke_kohya.run.train import train as run_training

    _say(f"run directory: {launch.run.path}")
    if launch.segment:
        _say(launch.segment.in_words)
    with _display() as display:
        return run_training(
            launch,
            inherited=os.environ,
            listen=display,
            now=datetime.now,
            patience=Patience(*patience),
            complain=_say,
            awake=sys.platform == "darwin",
        )


def _display() -> PlainDisplay | TerminalDisplay:
    import time

    from spyke_kohya.report.live import PlainDisplay, TerminalDisplay

    return TerminalDisplay() if sys.stderr.isatty() else PlainDisplay(sys.stderr, time.monotonic)


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
