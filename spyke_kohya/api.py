"""For notebooks and programs: what the command line does, as functions that give plain values and print nothing.

Every fault is a ``SpykeError`` with what happened, where, and what to do.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue

from spyke_kohya.audit.examine import Examination, examine
from spyke_kohya.engine.events import Event
from spyke_kohya.engine.release import find_engine
from spyke_kohya.errors import PresetError
from spyke_kohya.findings import Finding, errors_in
from spyke_kohya.plan.plan import Plan
from spyke_kohya.presets.loading import Loaded, load
from spyke_kohya.rank.directory import TrainingResult, rank_directory, rank_heldout
from spyke_kohya.rank.result import HeldoutRanking
from spyke_kohya.record.exclusive import output_lock
from spyke_kohya.record.rundir import RunDirectory
from spyke_kohya.repeat.inputs import identify
from spyke_kohya.run.faults import Notice
from spyke_kohya.run.launch import Launch, prepare_launch
from spyke_kohya.run.progress import Watch
from spyke_kohya.run.supervision import StopRequest
from spyke_kohya.run.train import Outcome
from spyke_kohya.run.train import train as run_training

__all__ = ["Training", "evaluation", "load_preset", "plan", "rank", "train", "validate"]


def load_preset(name: str, *, root: Path | None = None, settings: Sequence[str] = ()) -> Loaded:
    """A preset by path or bare name, with ``settings`` like ``train_network.seed=7`` put over it.

    ``root`` is where relative paths start, else the current directory. What is wrong with the file is in its findings.
    """
    return load(name, _root(root), settings)


def validate(preset: Loaded, *, root: Path | None = None) -> tuple[Finding, ...]:
    """Everything wrong with a preset, its dataset and its plan; an ``error`` among them would stop a training."""
    return examine(preset, _root(root)).findings


def plan(preset: Loaded, *, root: Path | None = None) -> Plan:
    """What sd-scripts will do. Raises PresetError where it could not start."""
    return _planned(examine(preset, _root(root)))


def train(
    preset: Loaded, *, environment: Mapping[str, str], engine: Path | None = None, root: Path | None = None
) -> Training:
    """A training that begins when its events are asked for. ``environment`` is usually ``os.environ``.

    Raises PresetError for a preset with errors and EngineError where no engine is found.
    """
    place = _root(root)
    examined = examine(preset, place)
    if errors_in(examined.findings):
        raise _refused(examined.findings)
    found = find_engine(
        given=engine,
        environment=environment,
        preset_engine=preset.training.launch.engine if preset.training else None,
        root=place,
        own_python=Path(sys.executable),
    )
    launch = prepare_launch(
        preset,
        _planned(examined),
        found,
        root=place,
        now=datetime.now(),
        inherited=environment,
        identity=identify(preset, examined.scan, found, place) if examined.scan else {},
    )
    return Training(launch, environment)


class Training:
    """A training as an iterator of its events; ``outcome`` says how it ended, once it has.

    To leave the loop, or to interrupt the notebook's cell, stops the engine as Ctrl-C does, and keeps the record.
    """

    def __init__(self, launch: Launch, environment: Mapping[str, str]) -> None:
        self.launch = launch
        self.outcome: Outcome | None = None
        self._environment = environment

    @property
    def run_directory(self) -> Path:
        return self.launch.run.under(self.launch.root).path

    def __iter__(self) -> Iterator[Event | Notice]:
        told: SimpleQueue[Event | Notice | None] = SimpleQueue()
        stop = StopRequest()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(self._run, told, stop)
            running.add_done_callback(lambda _: told.put(None))
            try:
                while (event := told.get()) is not None:
                    yield event
            finally:
                self._end(running, stop)

    def _run(self, told: SimpleQueue[Event | Notice | None], stop: StopRequest) -> Outcome:
        def listen(event: Event | Notice | None, _: Watch) -> None:
            if event is not None:
                told.put(event)

        with output_lock(self.launch.output_dir):
            return run_training(self.launch, inherited=self._environment, listen=listen, now=datetime.now, stop=stop)

    def _end(self, running: Future[Outcome], stop: StopRequest) -> None:
        if not running.done():
            stop.signals.append(signal.SIGINT)
        self.outcome = running.result()


def rank(directory: Path, *, losses: Path | None = None) -> TrainingResult:
    """The checkpoints of an output or run directory by training loss. Raises UsageError and NothingToRank."""
    return rank_directory(directory, losses=losses)


def evaluation(run: Path) -> HeldoutRanking:
    """What ``spyke-kohya evaluate`` measured of a run. Raises NothingToRank where it did not yet."""
    return rank_heldout(run, RunDirectory(run.resolve()).output_dir).ranking


def _root(root: Path | None) -> Path:
    return (root or Path()).absolute()


def _planned(examined: Examination) -> Plan:
    if examined.plan is None:
        raise _refused(examined.findings)
    return examined.plan


def _refused(findings: Sequence[Finding]) -> PresetError:
    errors = errors_in(findings)
    told = "; ".join(f"{finding.where}: {finding.message}" for finding in errors)
    return PresetError(told, where=errors[0].where if errors else "", remedy=errors[0].remedy if errors else "")
