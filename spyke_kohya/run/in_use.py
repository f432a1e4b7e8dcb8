"""Is another run writing into this output directory right now?"""

from __future__ import annotations

import os
from pathlib import Path

from spyke_kohya.findings import Finding, error
from spyke_kohya.run.rundir import RunDirectory, runs_under


def check_in_use(output_dir: Path, where: str) -> list[Finding]:
    """``output.in-use`` for each run whose record says it runs, and whose processes are there."""
    try:
        running = [run for run in runs_under(output_dir) if _is_running(run)]
    except OSError:  # a name that is too long; a folder that may not be listed
        return []
    remedy = "wait until it has ended, or name another output_dir"
    return [
        error("output.in-use", f"{where}: [train_network] output_dir", f"a run is writing into it: {run.path}", remedy)
        for run in running
    ]


def _is_running(run: RunDirectory) -> bool:
    try:
        record = run.read_record()
        group = record.get("process_group")
        if record.get("status") != "running" or not isinstance(group, int) or group <= 1:
            return False
        os.killpg(group, 0)
    except PermissionError:  # it is there, and somebody else's
        return True
    except (OSError, ValueError, AttributeError, OverflowError, RecursionError):
        return False
    return True
