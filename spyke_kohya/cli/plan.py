"""`plan`: exactly what sd-scripts will do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from spyke_kohya.cli.group import JSON, ROOT, SET, cli, preset_names
from spyke_kohya.cli.terminal import open_session, print_json, say_findings


@cli.command(epilog="Example: spyke-kohya plan spyke_plasma_v1")
@click.argument("preset", shell_complete=preset_names)
@click.option("--epochs", type=click.IntRange(min=1), help="For a dataset preset: the number of epochs.")
@click.option("--gradient-accumulation-steps", type=click.IntRange(min=1), help="For a dataset preset: batches a step.")
@click.option(
    "--num-processes", type=click.IntRange(min=1), default=1, help="For a dataset preset: accelerate's processes."
)
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
    """Show exactly what sd-scripts will do.

    These are the images, buckets, batches, steps, checkpoints and the disk space. Nothing is started.
    """
    from spyke_kohya.report.plain_text import plan_text

    completed = {"max_train_epochs": epochs, "gradient_accumulation_steps": gradient_accumulation_steps}
    options = {name: value for name, value in completed.items() if value is not None}
    session = open_session(root)
    examined = session.plan(session.load(preset, settings), options, num_processes)
    assert examined.plan is not None
    say_findings(examined.findings)
    print_json(examined.plan.to_dict()) if as_json else click.echo(plan_text(examined.plan))
