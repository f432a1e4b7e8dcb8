"""Where the checkpoints will go: can that directory be written, and is there room?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spyke_kohya.engine.command import expand_home
from spyke_kohya.errors import SpykeError
from spyke_kohya.findings import Finding, error, warning
from spyke_kohya.plan.plan import Plan
from spyke_kohya.record.exclusive import live_run


def check_output(options: Mapping[str, Any], plan: Plan | None, root: Path, where: str) -> list[Finding]:
    """Return findings on ``output_dir`` and ``output_name``; nothing is made or written."""
    place = f"{where}: [train_network] output_dir"
    directory = root / str(expand_home("output_dir", options["output_dir"]))
    standing = nearest_that_stands(directory)
    if not standing.is_dir():
        return [error("output.not-a-directory", place, f"{standing} is a file", "name another directory")]
    if dead := next(
        (above for above in (directory, *directory.parents) if _is_link(above) and not _stands(above)), None
    ):
        return [error("output.not-a-directory", place, f"{dead} is a link to nowhere", "remove it, or name another")]
    if not os.access(standing, os.W_OK | os.X_OK):
        message = f"the output directory can't be written: no right to write in {standing}"
        return [error("output.not-writable", place, message, "name another directory, or give yourself that right")]
    return [
        *_room(standing, plan, place),
        *_name(str(options["output_name"]), where),
        *_overwritten(directory, plan, place),
    ]


def check_in_use(output_dir: Path, where: str) -> list[Finding]:
    """Return ``output.in-use`` where a run that is on record here still runs; the launch itself asks the lock."""
    try:
        running = live_run(output_dir)
    except (OSError, SpykeError):  # a name that is too long; a folder that may not be listed
        return []
    if not running:
        return []
    message, remedy = f"a run is writing into it: {running.rstrip(',')}", "wait until it has ended, or name another"
    return [error("output.in-use", f"{where}: [train_network] output_dir", message, remedy)]


def nearest_that_stands(directory: Path) -> Path:
    """``directory``, or the nearest above it that exists."""
    while not _stands(directory) and directory != directory.parent:
        directory = directory.parent
    return directory


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except OSError:
        return False


def _stands(directory: Path) -> bool:
    try:
        return directory.exists()
    except OSError:  # a name that is too long, a folder that may not be entered
        return False


def _room(directory: Path, plan: Plan | None, place: str) -> list[Finding]:
    needed = plan.disk_bytes if plan else None
    free = shutil.disk_usage(directory).free
    if needed is None or needed <= free:
        return []
    message = f"the checkpoints need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
    return [warning("output.disk", place, message, "make room, save less often, or keep only the last ones")]


def _overwritten(directory: Path, plan: Plan | None, place: str) -> list[Finding]:
    """Report files that sd-scripts would write over; it doesn't ask (sd-scripts v0.10.1 train_network.py:1296)."""
    files = [saved.file for saved in plan.checkpoints] if plan else []
    standing = [file for file in files if os.path.isfile(directory / file)]  # noqa: PTH113 - it never raises
    if not standing:
        return []
    count = f"{len(standing)} of the run's {len(files)} checkpoints"
    message = f"{count} are there already and will be overwritten: {standing[0]}"
    remedy = "name another output_dir or output_name, or move the old ones away"
    return [warning("output.overwrites", place, message, remedy)]


def _name(output_name: str, where: str) -> list[Finding]:
    if (
        output_name
        and not any(character in "/\\\0\n\r" for character in output_name)
        and output_name not in (".", "..")
    ):
        return []
    message = f"{output_name!r} can't be a file's name: checkpoints would leave output_dir"
    return [error("output.name", f"{where}: [train_network] output_name", message, "use a plain name without slashes")]
