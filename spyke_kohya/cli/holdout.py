"""`holdout`: set training pictures aside, to evaluate on."""

from __future__ import annotations

from pathlib import Path

import click

from spyke_kohya.cli.group import DIRECTORY, cli
from spyke_kohya.cli.terminal import say


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
        click.echo(f"put back: {put_back(folder, target or default_target(folder))} files in {folder}")
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
