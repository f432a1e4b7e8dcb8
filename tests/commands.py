"""The command line as a person starts it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def spyke(
    *words: str | Path, cwd: Path | None = None, most_bytes: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``spyke-kohya WORDS``; with ``most_bytes`` no file that it writes can grow beyond."""
    limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))) if most_bytes else None
    no_bytecode = (
        {"PYTHONDONTWRITEBYTECODE": "1"} if most_bytes else {}
    )  # it would be cut off, and break all later runs
    return subprocess.run(
        [sys.executable, "-m", "spyke_kohya.cli", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        preexec_fn=limit,
        env=os.environ | {"PYTHONPATH": str(PROJECT), "COLUMNS": "100"} | no_bytecode,
    )
