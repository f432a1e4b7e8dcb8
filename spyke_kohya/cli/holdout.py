"""`holdout`: set training pictures aside, to evaluate on."""

from __future__ import annotations

from pathlib import Path

import click

from spyke_kohya.cli.group import DIRECTORY, cli
from spyke_kohya.cli.terminal import say


@cli.command(epilog="Example: spyke-kohya holdout dataset/spyke/train/1_spyke_plasma_v1 --count 8")
@click.argument("folder", type=DIRECTORY, metavar="DIR")
@click.option("--count", type=click.IntRange(min=1), default=8, show_default=True, help="How many different pictures.")
@click.option("--to", "target", type=DIRECTORY, help="The folder to move them to.  [default: heldout-NAME beside DIR]")
@click.option("--seed", type=int, default=0, show_default=True, help="Another number chooses other pictures.")
@click.option("--copy", is_flag=True, help="Copy them. Remove them from DIR before you train.")
@click.option("--undo", is_flag=True, help="Move the pictures back.")
def holdout(folder: Path, count: int, target: Path | None, seed: int, copy: bool, undo: bool) -> None:
    """Set training pictures aside, to evaluate on later.

    They move out of the training folder DIR with their captions. Copies and flips of one picture move together. Then
    name the new folder in the preset: [evaluate] heldout_dir.
    """
    from spyke_kohya import api
    from spyke_kohya.rank.result import FEWEST_GROUPS

    if undo:
        click.echo(f"put back: {api.put_back(folder, target)} files in {folder}")
        return
    choice = api.holdout(folder, count, target=target, seed=seed, copy=copy)
    click.echo(
        f"{'copied' if copy else 'moved'}: {len(choice.pictures)} pictures ({choice.groups} different ones), "
        f"{len(choice.files)} files with their captions, to {choice.target}\n{choice.left} different pictures stay"
    )
    if copy:
        say(f"they are still in {folder}: remove them there before you train")
    if choice.groups < FEWEST_GROUPS:
        say(f"fewer than {FEWEST_GROUPS} different pictures can't tell checkpoints apart: take 8, or better 16")
