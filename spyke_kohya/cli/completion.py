"""`completion`: print the completion script of a shell."""

from __future__ import annotations

import click

from spyke_kohya.cli.group import COMPLETE, cli


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    It completes commands, options and names of presets. For bash, put this line into ~/.bashrc:

        eval "$(spyke-kohya completion bash)"
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "spyke-kohya", COMPLETE).source())
