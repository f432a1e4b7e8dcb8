"""Every command as a function for notebooks and programs: it returns plain values and prints nothing.

Every fault is a ``SpykeError`` with what happened, where, and what to do. ``environment`` is ``os.environ``: functions
that start a program need it. ``root`` is where relative paths start, by default the current directory.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from spyke_kohya.errors import refusal
from spyke_kohya.findings import Finding, errors_in
from spyke_kohya.presets.loading import Loaded
from spyke_kohya.session import Request, Session

if TYPE_CHECKING:
    from spyke_kohya.audit.doctor import Check
    from spyke_kohya.dataset.holdout import Choice
    from spyke_kohya.engine.events import Event
    from spyke_kohya.engine.targets import Target
    from spyke_kohya.plan.plan import Plan
    from spyke_kohya.process.stop_signals import StopRequest
    from spyke_kohya.rank.directory import HeldoutResult, TrainingResult
    from spyke_kohya.rank.result import Evidence, HeldoutRanking
    from spyke_kohya.record.runs import Deletable
    from spyke_kohya.repeat.inputs import Difference
    from spyke_kohya.report.overview import RunSummary
    from spyke_kohya.run.faults import Notice
    from spyke_kohya.run.launch import Launch
    from spyke_kohya.run.progress import Progress
    from spyke_kohya.run.supervision import Patience
    from spyke_kohya.run.train import Outcome
    from spyke_kohya.ship.deploy import Deployed
    from spyke_kohya.start.importing.import_settings import Imported


def load_preset(name: str, *, root: Path | None = None, settings: Sequence[str] = ()) -> Loaded:
    """Read a preset by path or bare name, with ``settings`` like ``train_network.seed=7`` put over it.

    What is wrong with the file is in its findings.
    """
    return _session(root).load(name, settings)


def validate(
    preset: Loaded,
    *,
    environment: Mapping[str, str] | None = None,
    root: Path | None = None,
    quick: bool = False,
    allow_pickle: bool = False,
) -> tuple[Finding, ...]:
    """Collect everything wrong with a preset, its dataset and its plan; an ``error`` would stop a training."""
    return _session(root, environment).examine(preset, quick=quick, allow_pickle=allow_pickle).findings


def plan(
    preset: Loaded, *, root: Path | None = None, options: Mapping[str, Any] | None = None, num_processes: int = 1
) -> Plan:
    """Work out what sd-scripts will do. Raises an error by its findings where it could not start.

    ``options`` complete a dataset preset: ``max_train_epochs``, ``gradient_accumulation_steps``.
    """
    examined = _session(root).plan(preset, options, num_processes)
    if errors_in(examined.findings) or examined.plan is None:
        raise refusal(examined.findings, "the preset has errors")
    return examined.plan


def doctor(
    preset: Loaded | None = None,
    *,
    environment: Mapping[str, str],
    engine: Path | None = None,
    root: Path | None = None,
) -> list[Check]:
    """Check whether this machine, this Python and this sd-scripts can train at all."""
    return list(_session(root, environment).doctor(preset, engine))


def lock(
    preset: Loaded, *, environment: Mapping[str, str], engine: Path | None = None, root: Path | None = None
) -> Path:
    """Record all that decides how a preset trains; return the file."""
    return _session(root, environment).write_lock(preset, engine)


def drift(
    preset: Loaded, *, environment: Mapping[str, str], engine: Path | None = None, root: Path | None = None
) -> list[Finding]:
    """Return all that differs from the lock; empty where a training would be the same."""
    return _session(root, environment).check_lock(preset, engine)


def new(
    name: str,
    images: str,
    *,
    target: Target,
    base: str | None = None,
    reg: str | None = None,
    trigger: str | None = None,
    root: Path | None = None,
) -> list[Path]:
    """Write a dataset preset and a training preset for a folder of images; return both files."""
    from spyke_kohya.start.new import write_presets

    return write_presets(
        name, images, base=base, target=target, reg=reg, trigger=trigger, root=(root or Path()).absolute()
    )


def import_settings(text: str, *, target: Target, name: str | None = None, root: Path | None = None) -> Imported:
    """Write presets from another front end's settings; ``notes`` say what could not be carried over."""
    from spyke_kohya.start.importing.import_settings import import_settings
    from spyke_kohya.start.writing import write_new

    imported = import_settings(text, (root or Path()).absolute(), name=name, target=target)
    write_new(imported.files)
    return imported


def holdout(folder: Path, count: int = 8, *, target: Path | None = None, seed: int = 0, copy: bool = False) -> Choice:
    """Set training pictures aside, with their captions, to evaluate on; return what was chosen."""
    from spyke_kohya.dataset.holdout import choose_heldout, set_aside

    choice = choose_heldout(folder, count, target=target, seed=seed)
    set_aside(choice, copy=copy)
    return choice


def put_back(folder: Path, target: Path | None = None) -> int:
    """Put back what ``holdout`` set aside; return the number of files."""
    from spyke_kohya.dataset.holdout import default_target, put_back

    return put_back(folder, target or default_target(folder))


def train(
    preset: Loaded | None = None,
    *,
    environment: Mapping[str, str],
    recorded: Path | None = None,
    resume: bool = False,
    locked: bool = False,
    allow_pickle: bool = False,
    strict: bool = False,
    end_stale: bool = False,
    patience: Patience | None = None,
    engine: Path | None = None,
    root: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Training:
    """Prepare a training of a preset, or of the run ``recorded`` again; iterating over it starts it.

    ``say`` is called with what the command would print beside the events. Raises an error by its findings where it must
    not start, and EngineError where no engine is found.
    """
    session = _session(root, environment, say)
    request = session.request(preset, recorded, locked=locked, engine=engine, allow_pickle=allow_pickle)
    launch = session.prepare(request, resume=resume)
    session.check(launch, strict=strict)
    return Training(session, request, launch, patience, end_stale)


def dry_run(
    preset: Loaded | None = None,
    *,
    environment: Mapping[str, str],
    recorded: Path | None = None,
    resume: bool = False,
    locked: bool = False,
    allow_pickle: bool = False,
    engine: Path | None = None,
    root: Path | None = None,
) -> Launch:
    """Return the locked command with its findings; nothing starts, and a missing engine is a finding too."""
    session = _session(root, environment)
    return session.prepare(
        session.request(preset, recorded, locked=locked, engine=engine, allow_pickle=allow_pickle),
        resume=resume,
        needs_engine=False,
    )


@dataclass
class Training:
    """A training as an iterator of its events; ``outcome`` says how it ended, None before its end.

    Leaving the loop or interrupting the notebook's cell stops the engine as Ctrl-C does, and keeps the record. After a
    crash it goes on by itself where the preset says so; ``launch`` is then the last one.
    """

    _session: Session
    _request: Request
    launch: Launch
    _patience: Patience | None
    _end_stale: bool
    outcome: Outcome | None = None

    @property
    def run_directory(self) -> Path:
        """The directory that records this training."""
        return self.launch.run.under(self.launch.root).path

    def __iter__(self) -> Iterator[Event | Notice]:
        from spyke_kohya.process.stop_signals import StopRequest

        events: SimpleQueue[Event | Notice | None] = SimpleQueue()
        stop = StopRequest()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(self._run, events, stop)
            running.add_done_callback(lambda _: events.put(None))
            try:
                while (event := events.get()) is not None:
                    yield event
            finally:
                self._end(running, stop)

    def _run(self, events: SimpleQueue[Event | Notice | None], stop: StopRequest) -> tuple[Launch, Outcome]:
        def listen(event: Event | Notice | None, _: Progress) -> None:
            if event is not None:
                events.put(event)

        return self._session.train(
            self._request,
            self.launch,
            display=lambda: nullcontext(listen),
            patience=self._patience,
            end_stale=self._end_stale,
            stop=stop,
        )

    def _end(self, running: Future[tuple[Launch, Outcome]], stop: StopRequest) -> None:
        if not running.done():
            stop.signals.append(signal.SIGINT)
        self.launch, self.outcome = running.result()


def rank(
    directory: Path,
    *,
    by: Evidence | None = "avr_loss",
    losses: Path | None = None,
    window: int | None = None,
    name: str | None = None,
    every: int | None = None,
) -> TrainingResult | HeldoutResult:
    """Rank the checkpoints of an output or run directory; ``by=None`` takes the best evidence, as the command does.

    Raises UsageError and NothingToRank.
    """
    from spyke_kohya.rank.directory import rank_best

    return rank_best(directory, by=by, losses=losses, window=window, name=name, every=every)


def evaluate(
    run: Path,
    *,
    environment: Mapping[str, str],
    heldout: Path | None = None,
    quick: bool = False,
    name: str | None = None,
    engine: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> HeldoutResult:
    """Measure the loss of every checkpoint on pictures that were not trained on, and rank by it."""
    session = _session(None, environment, say)
    return session.evaluate(run, heldout=heldout, quick=quick, name=name, engine=engine)


def evaluation(run: Path) -> HeldoutRanking:
    """Return what ``evaluate`` measured of a run. Raises NothingToRank before it did."""
    from spyke_kohya.rank.directory import rank_heldout
    from spyke_kohya.record.rundir import RunDirectory

    return rank_heldout(run, RunDirectory(run.resolve()).output_dir).ranking


def samples(
    run: Path,
    *,
    environment: Mapping[str, str],
    preset: str | None = None,
    name: str | None = None,
    png: Path | None = None,
    engine: Path | None = None,
    root: Path | None = None,
) -> tuple[Path, Path]:
    """Render the checkpoints to look at; return the folder of the pictures, and the contact sheet."""
    return _session(root, environment).samples(run, preset=preset, name=name, png=png, engine=engine)


def report(
    directory: Path,
    *,
    losses: Path | None = None,
    preset: str | None = None,
    planned: int | None = None,
    root: Path | None = None,
) -> list[Path]:
    """Write report.html and summary.md into a run's directory; return both files."""
    return _session(root).report(directory, losses=losses, preset=preset, planned=planned)


def runs(directory: Path = Path("output")) -> list[RunSummary]:
    """Return a line about every run under a directory, newest first."""
    from spyke_kohya.record.runs import find_runs
    from spyke_kohya.report.overview import summarize

    return [summarize(run) for run in find_runs(directory)]


def compare(first: Path, second: Path) -> list[Difference]:
    """Return the settings in which two runs differ."""
    from spyke_kohya.record.rundir import RunDirectory
    from spyke_kohya.repeat.replay import differences

    return differences(RunDirectory(first), RunDirectory(second))


def deletable(directory: Path = Path("output")) -> list[Deletable]:
    """Return the files that runs left and no run needs any more."""
    from spyke_kohya.record.runs import deletable

    return deletable(directory, Path(tempfile.gettempdir()), datetime.now())


def delete(items: Sequence[Deletable]) -> None:
    """Delete for good what ``deletable`` returned."""
    from spyke_kohya.record.runs import delete

    delete(items)


def deploy(
    directory: Path,
    *,
    to: Path | None = None,
    step: int | None = None,
    name: str | None = None,
    replace: bool = False,
    link: bool = False,
    metadata: bool = False,
) -> Deployed:
    """Put the first of the test order, or ``step``, into ComfyUI, A1111 or Forge, checked, with its history."""
    from spyke_kohya.ship.choose import choose
    from spyke_kohya.ship.deploy import deploy, place_of

    place = place_of(directory, to)
    shipment = choose(directory, step=step, name=name)
    return deploy(shipment, place, now=datetime.now(), replace=replace, link=link, metadata=metadata)


def undo(directory: Path, *, to: Path | None = None, name: str | None = None) -> str:
    """Remove what was deployed from a directory, and put back what was there before; return what was done."""
    from spyke_kohya.ship.deploy import undo_from

    return undo_from(directory, to, name)


def deployed(place: Path) -> list[Deployed]:
    """Return what is deployed in ComfyUI's, A1111's or Forge's directory, and from which run."""
    from spyke_kohya.ship.deploy import deployed_in, find_place

    return deployed_in(find_place(place.expanduser()))


def _session(
    root: Path | None, environment: Mapping[str, str] | None = None, say: Callable[[str], None] = lambda _: None
) -> Session:
    return Session((root or Path()).absolute(), environment or {}, Path.home(), say=say)
