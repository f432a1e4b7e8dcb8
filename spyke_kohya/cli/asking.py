"""From the words of a command to what is asked: the preset examined, the engine found, the lock compared."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spyke_kohya.cli.terminal import blocked, say_findings
from spyke_kohya.errors import (
    UsageError,
)
from spyke_kohya.findings import Finding

if TYPE_CHECKING:
    from spyke_kohya.audit.examine import Examination
    from spyke_kohya.engine.release import Engine
    from spyke_kohya.presets.loading import Loaded
    from spyke_kohya.record.record import RecordedEngine


@dataclass(frozen=True)
class Asked:
    """What is to be trained: a preset and where its paths start; for a repeated run its engine and its lock, if any."""

    loaded: Loaded
    root: Path
    engine: RecordedEngine | None = None
    lock: Path | None = None


def examine_preset(
    name: str, root: Path, settings: Sequence[str], *, quick: bool = False, allow_pickle: bool = False
) -> Examination:
    from spyke_kohya.presets.loading import load

    root = root.absolute()
    return examine_loaded(load(name, root, settings), root, quick=quick, allow_pickle=allow_pickle)


def examine_loaded(loaded: Loaded, root: Path, *, quick: bool = False, allow_pickle: bool = False) -> Examination:
    from spyke_kohya.audit.examine import Means, examine
    from spyke_kohya.audit.memory import physical_memory_bytes
    from spyke_kohya.dataset.picture_cache import PictureCache, cache_directory
    from spyke_kohya.report.decoding_bar import decoding_bar

    cache = PictureCache(cache_directory(os.environ, Path.home()))
    with decoding_bar(is_terminal=sys.stderr.isatty()) as begin:
        means = Means(
            size_of=cache.size_of,
            look=None if quick else partial(cache.look, begin=begin),
            compare=cache.compare,
            environment=os.environ,
            home=Path.home(),
            memory_bytes=physical_memory_bytes(),
            allow_pickle=allow_pickle,
        )
        examined = examine(loaded, root, means=means)
    return _with_other_runs(examined, root)


def asked_for(preset: str | None, recorded: Path | None, settings: Sequence[str], root: Path) -> Asked:
    from spyke_kohya.presets.loading import load

    if (preset is None) == (recorded is None):
        raise UsageError("name a preset, or a run to repeat with --from RUN")
    if recorded is None:
        return Asked(load(preset or "", root, settings), root)
    from spyke_kohya.record.rundir import RunDirectory
    from spyke_kohya.repeat.replay import recorded_preset

    run = RunDirectory(recorded.absolute())
    again = recorded_preset(run, settings)
    return Asked(again.loaded, again.root, again.engine, run.lock if run.lock.is_file() else None)


def _with_other_runs(examined: Examination, root: Path) -> Examination:
    training = examined.loaded.training
    if training is None:
        return examined
    from spyke_kohya.audit.output import check_in_use
    from spyke_kohya.engine.command import expand_home
    from spyke_kohya.presets.loading import shown_path

    output_dir = root / str(expand_home("output_dir", training.options["output_dir"]))
    more = check_in_use(output_dir, shown_path(examined.loaded.path, root))
    return replace(examined, findings=(*examined.findings, *more))


def drift_from(examined: Examination, engine: Engine, root: Path, path: Path) -> tuple[dict[str, Any], list[Finding]]:
    from spyke_kohya.presets.loading import shown_path
    from spyke_kohya.repeat.lock import drift, read_lock

    locked, now = read_lock(path), make_lock(examined, engine, root)
    return now, drift(locked, now, shown_path(path, root))


def make_lock(examined: Examination, engine: Engine, root: Path) -> dict[str, Any]:
    from spyke_kohya.repeat.lock import Surroundings, make_lock

    if examined.plan is None or examined.scan is None or examined.loaded.training is None:
        say_findings(examined.findings)
        raise blocked(examined.findings, "there is nothing to lock")
    around = Surroundings(root, Path.home(), os.environ)
    return make_lock(examined.loaded, examined.plan, examined.scan, engine, around)


def find_engine(
    loaded: Loaded | None, given: Path | None, root: Path, recorded: RecordedEngine | None = None
) -> Engine:
    from spyke_kohya.engine.release import find_engine

    preset_engine = loaded.training.launch.engine if loaded and loaded.training else None
    return find_engine(
        given=given.absolute() if given else None,
        environment=os.environ,
        preset_engine=recorded.directory if recorded else preset_engine,
        root=root,
        own_python=Path(sys.executable),
    )
