"""`new`: write presets for a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from spyke_kohya.cli.group import ROOT, TARGET, cli
from spyke_kohya.cli.terminal import say

if TYPE_CHECKING:
    from spyke_kohya.engine.targets import Target


@cli.command(epilog="Example: spyke-kohya new spyke --images dataset/spyke/train/1_spyke")
@click.argument("name")
@click.option("--images", required=True, help="The folder of training images, as the preset will name it.")
@click.option("--reg", help="A folder of regularisation images.")
@click.option("--base", help="The base model.  [default: that of another preset]")
@click.option("--trigger", help="The trigger word.  [default: the first tag of all captions, else NAME]")
@TARGET
@ROOT
def new(
    name: str, images: str, reg: str | None, base: str | None, trigger: str | None, target: Target, root: Path
) -> None:
    """Write presets for a folder of images.

    One is a dataset preset, the other a training preset; both have comments. The training sees each picture 40 times,
    but all pictures together at least 400 and at most 1000 times.
    """
    from spyke_kohya import api

    files = api.new(name, images, base=base, target=target, reg=reg, trigger=trigger, root=root)
    click.echo("\n".join(str(path) for path in files))
    say(f"read both presets, then run: spyke-kohya plan {name}")
