"""The command line: parse, call one function, print, exit code; the only importer of click.

Commands import what they need when they run, so that ``--help`` and ``validate`` answer at once.
"""

from spyke_kohya.cli.entry import main

__all__ = ["main"]
