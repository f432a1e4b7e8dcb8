"""`new`: write presets for a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from spyke_kohya.cli.group import ROOT, TARGET, cli
from spyke_kohya.cli.terminal import say

if TYPE_CHECKING:
    from spyke_kohya.engine.targets import Target


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
    from spyke_kohya.start.new import write_presets

    files = write_presets(name, images, base=base, target=target, reg=reg, trigger=trigger, root=root.absolute())
    click.echo("\n".join(str(path) for path in files))
    say(f"look at both, then: spyke-kohya plan {name}")
