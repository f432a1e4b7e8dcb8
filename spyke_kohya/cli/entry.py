"""The entry point: every end of a command has its exit code, and none is a traceback."""

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
from spyke_kohya.cli.terminal import print_json, redactor, say, say_findings
from spyke_kohya.errors import Interrupted, SpykeError, UsageError
from spyke_kohya.report.plain_text import fault_text


def main() -> NoReturn:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may be no valid text
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
        _end(UsageError(fault.format_message()), say_it=False)
    except (click.Abort, KeyboardInterrupt):
        say("interrupted")
        _end(Interrupted("interrupted"), say_it=False)
    except SpykeError as fault:
        _end(fault)
    except BrokenPipeError:  # the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as fault:
        own = SpykeError(f"{type(fault).__name__}: {fault}", remedy=f"report it with {_crash_log()}")
        say(f"{fault_text(own)}\n  This is a fault of spyke-kohya itself.")
        _end(own, say_it=False)


def _end(fault: SpykeError, *, say_it: bool = True) -> NoReturn:
    """Say how the command failed, on stderr; with --json on stdout too, as JSON."""
    if say_it:
        say_findings(fault.findings)
        say(fault_text(fault))
    if "--json" in sys.argv:
        print_json(redactor().value(fault.to_dict()))
    sys.exit(fault.exit_code)


def _crash_log() -> str:
    text = f"spyke-kohya {__version__}, Python {sys.version}, {sys.platform}\n{' '.join(sys.argv)}\n\n"
    with tempfile.NamedTemporaryFile("w", prefix="spyke-kohya-", suffix=".log", delete=False, encoding="utf-8") as log:
        log.write(redactor().text(text + traceback.format_exc()))
    return log.name
