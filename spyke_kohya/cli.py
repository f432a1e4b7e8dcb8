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
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
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
    from spyke_kohya.rank.judge import RankResult
    from spyke_kohya.run.launch import Launch
    from spyke_kohya.run.train import Outcome

Command = TypeVar("Command", bound=Callable[..., Any])

_COMPLETE = "_SPYKE_KOHYA_COMPLETE"
_DIRECTORY = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
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
@click.argument("preset", shell_complete=_preset_names)
@click.option("--dry-run", is_flag=True, help="Print the locked command and start nothing.")
@click.option("--smoke", is_flag=True, help="Run 5 steps into a scratch directory.")
@_PICKLE
@_SET
@_ENGINE
@_ROOT
@_STRICT
@_JSON
def train(
    preset: str,
    dry_run: bool,
    smoke: bool,
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
    launch, findings = _prepare(preset, [*settings, *smoke_settings], engine, root.absolute(), allow_pickle)
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


def _examine(
    name: str, root: Path, settings: Sequence[str], *, quick: bool = False, allow_pickle: bool = False
) -> Examination:
    from functools import partial

    from spyke_kohya.audit.examine import Means, examine
    from spyke_kohya.audit.memory import physical_memory_bytes
    from spyke_kohya.audit.picture_cache import PictureCache, cache_directory
    from spyke_kohya.presets.loading import load
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
        examined = examine(load(name, root.absolute(), settings), root.absolute(), means=means)
    return _with_other_runs(examined, root.absolute())


def _with_other_runs(examined: Examination, root: Path) -> Examination:
    from dataclasses import replace

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
    name: str, settings: Sequence[str], engine: Path | None, root: Path, allow_pickle: bool
) -> tuple[Launch, list[Finding]]:
    from spyke_kohya.audit.engine import check_engine
    from spyke_kohya.run.launch import prepare_launch

    examined = _examine(name, root, settings, allow_pickle=allow_pickle)
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
