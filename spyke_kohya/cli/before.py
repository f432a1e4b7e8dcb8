"""Commands for before a training: validate, plan, doctor, new, import, holdout, lock, completion."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from spyke_kohya.cli.asking import drift_from, examine_preset, find_engine, make_lock
from spyke_kohya.cli.group import (
    COMPLETE,
    DIRECTORY,
    ENGINE,
    JSON,
    PICKLE,
    ROOT,
    SET,
    STRICT,
    TARGET,
    cli,
    preset_names,
)
from spyke_kohya.cli.terminal import blocked, exit_code, print_json, say, say_findings
from spyke_kohya.errors import (
    EngineError,
    UsageError,
)
from spyke_kohya.report.findings_text import count_text, findings_text

if TYPE_CHECKING:
    from spyke_kohya.audit.examine import Examination
    from spyke_kohya.engine.targets import Target

_PLAIN_NAME = re.compile(r"[\w-]+")


@cli.command(short_help="Everything wrong with presets, all at once.")
@click.argument("presets", nargs=-1, metavar="PRESET...", shell_complete=preset_names)
@click.option("--quick", is_flag=True, help="Don't decode the images: their headers and captions only.")
@click.option("--hash", "with_hash", is_flag=True, help="Tell the SHA-256 of the base model.")
@click.option("-v", "--verbose", is_flag=True, help="Show how often each tag is in the captions.")
@click.option("--explain", metavar="CODE", help="Why there is this finding, and where it was seen.")
@PICKLE
@SET
@ROOT
@STRICT
@JSON
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
    examined = [examine_preset(name, root, settings, quick=quick, allow_pickle=allow_pickle) for name in presets]
    hashes = [_base_hash(one, root) if with_hash else {} for one in examined]
    if as_json:
        print_json([one.to_dict() | told for one, told in zip(examined, hashes, strict=True)])
    else:
        for one, told in zip(examined, hashes, strict=True):
            click.echo(f"{one.loaded.name}: {count_text(one.findings)}")
            if one.findings:
                click.echo(findings_text(one.findings))
            for name, digest in told.items():
                click.echo(f"{name}: {digest}")
            if verbose:
                _show_tags(one)
    worst = [exit_code(one.findings, strict) for one in examined]
    sys.exit(min((code for code in worst if code), default=0))


@cli.command(short_help="Exactly what sd-scripts will do.")
@click.argument("preset", shell_complete=preset_names)
@click.option("--epochs", type=click.IntRange(min=1), help="For a dataset preset: how many epochs.")
@click.option("--gradient-accumulation-steps", type=click.IntRange(min=1), help="For a dataset preset.")
@click.option("--num-processes", type=click.IntRange(min=1), default=1, help="For a dataset preset.")
@SET
@ROOT
@JSON
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
    from spyke_kohya.report.plan_text import plan_text

    completed = {"max_train_epochs": epochs, "gradient_accumulation_steps": gradient_accumulation_steps}
    options = {name: value for name, value in completed.items() if value is not None}
    examined = examine(load(preset, root.absolute(), settings), root.absolute(), options, num_processes=num_processes)
    say_findings(examined.findings)
    if examined.plan is None:
        raise blocked(examined.findings, "sd-scripts could not start, so there is no plan")
    if as_json:
        print_json(examined.plan.to_dict())
    else:
        click.echo(plan_text(examined.plan))


@cli.command(short_help="Set training pictures aside, to evaluate on.")
@click.argument("folder", type=DIRECTORY, metavar="DIR")
@click.option("--count", type=click.IntRange(min=1), default=8, show_default=True, help="How many different pictures.")
@click.option("--to", "target", type=DIRECTORY, help="Where to.  [default: heldout-NAME beside the folder]")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed chooses other pictures.")
@click.option("--copy", is_flag=True, help="Copy them; they are then still trained on, until you remove them.")
@click.option("--undo", is_flag=True, help="Put back what was set aside.")
def holdout(folder: Path, count: int, target: Path | None, seed: int, copy: bool, undo: bool) -> None:
    """Move a seeded choice of pictures, with their captions, out of the training folder DIR.

    Copies and flips of one picture go together. Name the folder in the preset: [evaluate] heldout_dir.
    """
    from spyke_kohya.dataset.holdout import choose_heldout, default_target, put_back, set_aside
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
        say(f"they are still in {folder}: what is trained on can't be held out")
    if choice.groups < FEWEST_GROUPS:
        say(f"fewer than {FEWEST_GROUPS} different pictures can't tell checkpoints apart: 8 can, 16 better")


@cli.command(short_help="Write presets for a folder of images.")
@click.argument("name")
@click.option("--images", required=True, help="The folder of training images, as it is to stand in the preset.")
@click.option("--reg", help="A folder of regularisation images.")
@click.option("--base", help="The base model.  [default: that of another preset]")
@click.option("--trigger", help="The trigger word.  [default: the first tag of all captions, else NAME]")
@TARGET
@ROOT
def new(
    name: str, images: str, reg: str | None, base: str | None, trigger: str | None, target: Target, root: Path
) -> None:
    """Look at a folder of images and write a dataset and a training preset for it, with comments.

    Each picture is seen 40 times in the whole training, as in the run of record, but all together 400 to 1000 times.
    """
    from spyke_kohya.start.new import Asked, base_of_others, new_presets
    from spyke_kohya.start.writing import write_new

    if not _PLAIN_NAME.fullmatch(name):
        raise UsageError(f"{name!r} can't name a preset", remedy="use letters, digits, - and _")
    base = base or base_of_others(root.absolute())
    if base is None:
        raise UsageError("no base model is named", remedy="say --base FILE")
    files = new_presets(Asked(name, images, base, target, reg, trigger), root.absolute())
    write_new(files)
    click.echo("\n".join(str(path) for path in files))
    say(f"look at both, then: spyke-kohya plan {name}")


@cli.command("import", short_help="Write a preset from another front end's settings.")
@click.argument("file", type=click.File("rb"))
@click.option("--name", help="The preset's name.  [default: its output_name]")
@TARGET
@ROOT
def import_(file: BinaryIO, name: str | None, target: Target, root: Path) -> None:
    """Read a kohya_ss GUI preset (JSON), an sd-scripts --config_file (TOML) or an accelerate launch command line.

    FILE may be - for stdin. What could not be carried over is said on stderr, and in the preset.
    """
    from spyke_kohya.start.importing.imported import import_settings
    from spyke_kohya.start.writing import write_new

    text = file.read().decode("utf-8-sig", errors="replace")
    imported = import_settings(text, root.absolute(), name=name, target=target)
    write_new(imported.files)
    click.echo("\n".join(str(path) for path in imported.files))
    for note in imported.notes:
        say(f"not carried over as it was: {note}")
    say(f"look at it, then: spyke-kohya validate {imported.name}")


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell: commands, options and the names of presets.

    For bash, put `eval "$(spyke-kohya completion bash)"` into ~/.bashrc.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "spyke-kohya", COMPLETE).source())


@cli.command(short_help="Can this machine train at all?")
@click.argument("preset", required=False, shell_complete=preset_names)
@ENGINE
@ROOT
@JSON
def doctor(preset: str | None, engine: Path | None, root: Path, as_json: bool) -> None:
    """Can this machine, this Python and this sd-scripts train at all?"""
    from spyke_kohya.audit.doctor import Patient, examine
    from spyke_kohya.presets.loading import load

    loaded = load(preset, root.absolute()) if preset else None
    if loaded and loaded.training is None:
        say_findings(loaded.findings)
        raise blocked(loaded.findings, "not a training preset without faults")
    patient = Patient(
        find_engine=lambda: find_engine(loaded, engine, root.absolute()),
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
        print_json([check.to_dict() for check in checks])
    sys.exit(EngineError.exit_code if any(check.status == "fault" for check in checks) else 0)


@cli.command("lock", short_help="Record all that decides how a preset trains.")
@click.argument("preset")
@click.option("--check", is_flag=True, help="Tell what has drifted since, and write nothing.")
@ENGINE
@ROOT
def lock_command(preset: str, check: bool, engine: Path | None, root: Path) -> None:
    """Record all that decides how PRESET trains in presets/NAME.lock, for `train --locked` to hold to."""
    from spyke_kohya.repeat.lock import lock_path, write_lock

    root = root.absolute()
    examined = examine_preset(preset, root, ())
    found = find_engine(examined.loaded, engine, root)
    path = lock_path(examined.loaded)
    if check:
        _, drifted = drift_from(examined, found, root, path)
        if drifted:
            say_findings(drifted)
            raise blocked(drifted, "drifted from the lock")
        click.echo(f"as locked: {path}")
        return
    lock = make_lock(examined, found, root)
    write_lock(path, lock)
    click.echo(f"locked {len(lock['images'])} images, {len(lock['captions'])} captions: {path}")


def _explanation(code: str) -> str:
    from difflib import get_close_matches

    from spyke_kohya.audit.catalogue import CATALOGUE, explanation

    if code in CATALOGUE:
        return explanation(code)
    close = get_close_matches(code, CATALOGUE, n=1)
    remedy = f"did you mean {close[0]}?" if close else "docs/findings.md lists them all"
    raise UsageError(f"there is no finding `{code}`", remedy=remedy)


def _base_hash(examined: Examination, root: Path) -> dict[str, str | None]:
    from spyke_kohya.audit.base import base_path, file_hash

    training = examined.loaded.training
    return {"base_sha256": file_hash(base_path(training.effective_options, root.absolute()))} if training else {}


def _show_tags(examined: Examination) -> None:
    from spyke_kohya.audit.tags import tag_tables
    from spyke_kohya.report.tag_table import tag_table_text

    for table in tag_tables(examined.scan, examined.captions) if examined.scan else []:
        click.echo(f"\n{tag_table_text(table)}")


def _reaches(host: str) -> bool:
    import socket

    try:
        with socket.create_connection((host, 443), timeout=3.0):
            return True
    except OSError:
        return False
