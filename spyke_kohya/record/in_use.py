"""Is another run writing into this output directory right now?"""

from __future__ import annotations

from pathlib import Path

from spyke_kohya.errors import SpykeError
from spyke_kohya.findings import Finding, error
from spyke_kohya.record.exclusive import live_run


def check_in_use(output_dir: Path, where: str) -> list[Finding]:
    """``output.in-use`` where a run that is on record here still runs; the launch itself asks the lock."""
    try:
        running = live_run(output_dir)
    except (OSError, SpykeError):  # a name that is too long; a folder that may not be listed
        return []
    if not running:
        return []
    place = f"{where}: [train_network] output_dir"
    remedy = "wait until it has ended, or name another output_dir"
    return [error("output.in-use", place, f"a run is writing into it: {running.rstrip(',')}", remedy)]
