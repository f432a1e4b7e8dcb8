"""The entry point: run a command; every ending has its exit code, and none is a traceback."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import traceback
from typing import NoReturn

import click
from click.shell_completion import shell_complete

from spyke_kohya import __version__
from spyke_kohya.cli import (  # noqa: F401 - importing them adds their commands
    completion,
    deploy,
    doctor,
    evaluate,
    holdout,
    import_,
    list,
    lock,
    new,
    plan,
    rank,
    report,
    runs,
    samples,
    train,
    validate,
    watch,
)
from spyke_kohya.cli.group import COMPLETE, cli
from spyke_kohya.cli.terminal import redactor, say
from spyke_kohya.errors import Interrupted, SpykeError
from spyke_kohya.report.plain_text import fault_text


def main() -> NoReturn:
    """Run the command line; every ending has its exit code, and none is a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may be no text at all
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get(COMPLETE):
        sys.exit(shell_complete(cli, {}, "spyke-kohya", COMPLETE, os.environ[COMPLETE]))
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
        say("interrupted")
        sys.exit(Interrupted.exit_code)
    except SpykeError as fault:
        say(fault_text(fault))
        sys.exit(fault.exit_code)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as fault:
        say(f"error: {type(fault).__name__}: {fault}\n  This is a fault of spyke-kohya itself.")
        say(f"  do: report it with {_crash_log()}")
        sys.exit(SpykeError.exit_code)


def _crash_log() -> str:
    text = f"spyke-kohya {__version__}, Python {sys.version}, {sys.platform}\n{' '.join(sys.argv)}\n\n"
    with tempfile.NamedTemporaryFile("w", prefix="spyke-kohya-", suffix=".log", delete=False, encoding="utf-8") as log:
        log.write(redactor().text(text + traceback.format_exc()))
    return log.name
