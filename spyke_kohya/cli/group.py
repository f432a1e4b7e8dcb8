"""The command group, and the arguments and options that several commands share."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from spyke_kohya import __version__

COMPLETE = "_SPYKE_KOHYA_COMPLETE"
DIRECTORY = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
RUN_OR_OUTPUT = click.Path(path_type=Path, file_okay=False, exists=True)
ROOT = click.option("--root", type=DIRECTORY, default=Path(), help="Where relative paths start.  [default: here]")
ENGINE = click.option("--engine", type=DIRECTORY, help="The directory of sd-scripts, with its train_network.py.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout.")
PICKLE = click.option("--allow-pickle", is_flag=True, help="Allow a .ckpt or .pt base model, which can run code.")
TARGET = click.option(
    "--target",
    type=click.Choice(["mps", "cuda", "cpu"]),
    default="mps" if sys.platform == "darwin" else "cuda",
    show_default=True,
    help="The device to train on.",
)
STRICT = click.option("--strict", is_flag=True, help="Treat warnings as errors.")
SET = click.option(
    "--set", "settings", multiple=True, metavar="TABLE.KEY=VALUE", help="Use this value, not the preset's; repeatable."
)


def preset_names(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the bare names of the presets, or else any file: a preset may be named by its path."""
    root = context.params.get("root") or Path()
    names = sorted(file.stem for file in (root / "presets").glob("*.toml"))
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="First: spyke-kohya doctor. Then: spyke-kohya new NAME --images FOLDER",
)
@click.version_option(__version__)
def cli() -> None:
    """Plan, train, watch and rank Stable Diffusion LoRAs with kohya's sd-scripts.

    PRESET is a preset file, or the bare name of one in presets/.
    """
