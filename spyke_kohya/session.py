"""Examine, find the engine, lock, prepare, run, resume, rank: what ``cli`` and ``api`` both call.

How a person asks, and how results are shown, is left to them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spyke_kohya.errors import EngineError, NothingToRank, PresetError, UsageError, exit_code_of, refusal
from spyke_kohya.findings import Finding, error

if TYPE_CHECKING:
    from spyke_kohya.audit.doctor import Check
    from spyke_kohya.audit.examine import Examination
    from spyke_kohya.engine.release import Engine
    from spyke_kohya.evaluate.evaluation import Progress
    from spyke_kohya.presets.loading import Loaded
    from spyke_kohya.presets.training import TrainingPreset
    from spyke_kohya.process.stop_signals import StopRequest
    from spyke_kohya.rank.directory import HeldoutResult, TrainingResult
    from spyke_kohya.record.record import RecordedEngine
    from spyke_kohya.run.launch import Launch
    from spyke_kohya.run.supervision import Listener, Patience
    from spyke_kohya.run.train import Outcome

Begin = Callable[[int], Callable[[int], object]]
"""Given the number of images to decode, returns what is called with the number of those done."""
Display = Callable[[], AbstractContextManager["Listener"]]
"""Opens the display of a run."""


@dataclass(frozen=True)
class Request:
    """A training that is asked for: a preset and where its paths start.

    ``engine`` is the directory that a person named, ``recorded_engine`` the engine of the run that is repeated. With
    ``lock``, a training that differs from this file is refused.
    """

    loaded: Loaded
    root: Path
    engine: Path | None = None
    recorded_engine: RecordedEngine | None = None
    lock: Path | None = None
    allow_pickle: bool = False


@dataclass(frozen=True)
class Session:
    """Where, and for whom, the work is done.

    Relative paths start at ``root``. ``say`` shows a person a sentence, ``confirm`` asks a question. ``decoding`` opens
    a display of decoded images.
    """

    root: Path
    environment: Mapping[str, str]
    home: Path
    say: Callable[[str], None] = lambda _: None
    confirm: Callable[[str], bool] = lambda _: False
    decoding: Callable[[], AbstractContextManager[Begin]] = lambda: nullcontext(lambda _: lambda _: None)

    def load(self, name: str, settings: Sequence[str] = ()) -> Loaded:
        """Read a preset by its path or bare name, with ``settings`` put over it."""
        from spyke_kohya.presets.loading import load

        return load(name, self.root, settings)

    def examine(self, loaded: Loaded, *, quick: bool = False, allow_pickle: bool = False) -> Examination:
        """Collect everything wrong with a preset, its dataset and its plan; ``quick`` decodes no image."""
        from spyke_kohya.audit.examine import AuditTools, examine
        from spyke_kohya.dataset.picture_cache import PictureCache, cache_directory
        from spyke_kohya.process.process_table import physical_memory_bytes

        cache = PictureCache(cache_directory(self.environment, self.home))
        with self.decoding() as begin:
            tools = AuditTools(
                size_of=cache.size_of,
                look=None if quick else partial(cache.look, begin=begin),
                compare=cache.compare,
                environment=self.environment,
                home=self.home,
                memory_bytes=physical_memory_bytes() if loaded.training else None,
                allow_pickle=allow_pickle,
            )
            examined = examine(loaded, self.root, tools=tools)
        return replace(examined, findings=(*examined.findings, *self._in_use(loaded)))

    def plan(self, loaded: Loaded, options: Mapping[str, Any] | None = None, num_processes: int = 1) -> Examination:
        """Work out what sd-scripts will do, from the headers alone; ``options`` complete a dataset preset.

        Raises an error by its findings where sd-scripts could not start.
        """
        from spyke_kohya.audit.examine import examine

        examined = examine(loaded, self.root, options or {}, num_processes=num_processes)
        if examined.plan is None:
            raise refusal(examined.findings, "sd-scripts could not start, so there is no plan")
        return examined

    def find_engine(
        self,
        loaded: Loaded | None,
        named: Path | None,
        recorded: RecordedEngine | None = None,
        *,
        must_exist: bool = True,
    ) -> Engine:
        """Find the engine: ``named``, else ``recorded`` of a run, else the preset's. Raises EngineError."""
        from spyke_kohya.engine.release import find_engine

        preset_engine = loaded.training.launch.engine if loaded and loaded.training else None
        return find_engine(
            given=named.absolute() if named else None,
            environment=self.environment,
            preset_engine=recorded.directory if recorded else preset_engine,
            root=self.root,
            own_python=Path(sys.executable),
            must_exist=must_exist,
        )

    def request(
        self,
        preset: str | Loaded | None,
        recorded: Path | None = None,
        settings: Sequence[str] = (),
        *,
        locked: bool = False,
        engine: Path | None = None,
        allow_pickle: bool = False,
    ) -> Request:
        """Return what is to be trained: a preset, or a recorded run again. ``locked``: as `lock` recorded it."""
        from spyke_kohya.repeat.lock import lock_path

        if (preset is None) == (recorded is None):
            raise UsageError("name a preset, or a run to repeat with --from RUN")
        if recorded is None:
            loaded = self.load(preset, settings) if isinstance(preset, str) else preset
            assert loaded is not None
            asked = Request(loaded, self.root)
        else:
            from spyke_kohya.record.rundir import RunDirectory
            from spyke_kohya.repeat.replay import recorded_preset

            run = RunDirectory(recorded.absolute())
            again = recorded_preset(run, settings)
            asked = Request(again.loaded, again.root, None, again.engine, run.lock if run.lock.is_file() else None)
        lock = lock_path(asked.loaded) if locked else asked.lock
        return replace(asked, engine=engine, lock=lock, allow_pickle=allow_pickle)

    def prepare(self, request: Request, *, resume: bool = False, needs_engine: bool = True) -> Launch:
        """Lock the command of a training; ``check`` tells whether its findings forbid the start.

        Without ``needs_engine`` a missing engine is a finding, and the command names the place where it would be.
        """
        from spyke_kohya.audit.expectations import check_engine
        from spyke_kohya.repeat.inputs import identify
        from spyke_kohya.repeat.lock import lock_text
        from spyke_kohya.repeat.replay import engine_drift
        from spyke_kohya.run.launch import prepare_launch
        from spyke_kohya.run.resume import find_segment

        here = replace(self, root=request.root)
        loaded = request.loaded
        examined = here.examine(loaded, allow_pickle=request.allow_pickle)
        if loaded.training is None or examined.plan is None or examined.scan is None:
            raise refusal(examined.findings, "there is nothing to start")
        engine, missing = here._engine_or_finding(request, needs_engine)
        identity = {} if missing else identify(loaded, examined.scan, engine, here.root)
        prepare = partial(
            prepare_launch,
            loaded,
            examined.plan,
            engine,
            root=here.root,
            now=datetime.now(),
            inherited=here.environment,
            identity=identity,
        )
        launch = prepare()
        if resume:
            segment = find_segment(launch.output_dir, launch.output_name, examined.plan, identity)
            launch = prepare(segment=segment)
        # the lock on the directory decides who trains into it, and a resumed run writes over nothing
        decided = {"output.in-use", "output.overwrites"} if resume else {"output.in-use"}
        findings = [finding for finding in examined.findings if finding.code not in decided]
        findings += missing or check_engine(engine)
        if request.recorded_engine and not (missing or request.lock):
            findings += engine_drift(request.recorded_engine, engine)
        if request.lock:
            now, drifted = here.drift(examined, engine, request.lock)
            findings += drifted
            launch = replace(launch, files={**launch.files, launch.run.lock.name: lock_text(now)})
        return replace(launch, findings=tuple(findings))

    def check(self, launch: Launch, *, strict: bool = False) -> None:
        """Raise an error by the findings of a launch that must not be started."""
        if exit_code_of(launch.findings, strict=strict):
            raise refusal(launch.findings, "not started")

    def train(
        self,
        request: Request,
        launch: Launch,
        *,
        display: Display,
        patience: Patience | None = None,
        end_stale: bool = False,
        stop: StopRequest | None = None,
    ) -> tuple[Launch, Outcome]:
        """Run a launch as the only one in its output directory; resume after a crash where the preset says so.

        Returns the last launch and its outcome. Raises PresetError where another run trains there, and where processes
        of an earlier run still do and a person does not want them ended.
        """
        from spyke_kohya.record.exclusive import output_lock
        from spyke_kohya.run.train import MOST_RESUMES

        run = partial(self._run, display=display, patience=patience, stop=stop)
        with output_lock(launch.output_dir):
            self._clear_stale(launch.output_dir, end_stale)
            outcome = run(launch)
            for time in range(1, MOST_RESUMES + 1):
                if not (outcome.crashed and launch.auto_resume):
                    break
                self.say(
                    f"crashed at step {outcome.steps}: {outcome.reason}\nresuming by itself, {time} of {MOST_RESUMES}"
                )
                try:
                    launch = self.prepare(request, resume=True)
                except PresetError as fault:
                    self.say(f"not resumed: {fault.what}")
                    break
                outcome = run(launch)
        return launch, outcome

    def rank_run(self, launch: Launch) -> TrainingResult | None:
        """Rank a run that ended well; a run with nothing to rank is no failure."""
        from spyke_kohya.rank.directory import rank_directory

        try:
            return rank_directory(launch.run.under(launch.root).path)
        except NothingToRank as fault:
            self.say(f"not ranked: {fault.what}")
            return None

    def doctor(self, loaded: Loaded | None, engine: Path | None = None) -> Iterator[Check]:
        """Check this machine, this Python and this sd-scripts, one after the other."""
        from spyke_kohya.audit.doctor import Checkup, examine

        training = _training_of(loaded) if loaded else None
        find = partial(self.find_engine, loaded, engine)
        return examine(Checkup(find, training, self.root, self.environment, self.home))

    def evaluate(
        self,
        run: Path,
        *,
        heldout: Path | None = None,
        quick: bool = False,
        name: str | None = None,
        engine: Path | None = None,
        listen: Callable[[Progress], None] = lambda _: None,
    ) -> HeldoutResult:
        """Measure the checkpoints of a run that are not yet measured on held-out pictures, and rank them all by it."""
        from spyke_kohya.evaluate.evaluation import forecast, measure, prepare
        from spyke_kohya.evaluate.recorded_run import read_recorded_run
        from spyke_kohya.rank.checkpoints import OVERWRITTEN
        from spyke_kohya.rank.directory import rank_heldout
        from spyke_kohya.report.plain_text import cost_text, forecast_text

        subject = read_recorded_run(run, name)
        found = replace(self, root=subject.root).find_engine(None, engine or subject.engine_dir)
        for file in subject.overwritten:
            self.say(f"not measured: {file.name}, {OVERWRITTEN}")
        request = prepare(subject, found, heldout_dir=heldout.absolute() if heldout else None, quick=quick)
        self.say(forecast_text(forecast(subject, request)))
        if cost := measure(subject, request, found, inherited=self.environment, listen=listen):
            self.say(cost_text(cost))
        return rank_heldout(subject.run.path, subject.run.output_dir)

    def samples(
        self,
        run: Path,
        *,
        preset: str | None = None,
        name: str | None = None,
        png: Path | None = None,
        engine: Path | None = None,
        listen: Callable[[int, int], None] = lambda _done, _of: None,
    ) -> tuple[Path, Path]:
        """Render the checkpoints to look at; return the folder of the pictures, and the contact sheet."""
        from spyke_kohya.evaluate.recorded_run import read_recorded_run
        from spyke_kohya.evaluate.samples import lay_out, render
        from spyke_kohya.rank.directory import rank_best
        from spyke_kohya.report.drawings import write_contact_sheet

        subject = read_recorded_run(run, name)
        found = replace(self, root=subject.root).find_engine(None, engine or subject.engine_dir)
        settings = _training_of(self.load(preset)).samples if preset else subject.record.samples
        trials = rank_best(subject.run.path, name=name).ranking.test_order
        grid = lay_out(settings, [trial.candidate for trial in trials if trial.candidate.file], subject.base)
        self.say(f"{len(grid.pictures)} pictures: {len(grid.rows)} x {', '.join(grid.columns)}")
        if subject.target == "mps":
            self.say("sd-scripts' gen_img.py can't use MPS: a Mac renders on its CPU, in minutes a picture")
        folder = render(subject, grid, found, inherited=self.environment, listen=listen)
        sheet = png or subject.run.contact_sheet
        pictures = [[folder / cell.file for cell in row] for row in grid.cells]
        write_contact_sheet(sheet, grid.columns, grid.rows, pictures, subject.run.path.name)
        return folder, sheet

    def report(
        self, directory: Path, *, losses: Path | None = None, preset: str | None = None, planned: int | None = None
    ) -> list[Path]:
        """Write report.html and summary.md into a run's directory; return both files."""
        from spyke_kohya.files import write_result
        from spyke_kohya.report.data import read_report_data
        from spyke_kohya.report.html import report_html
        from spyke_kohya.report.markdown import summary_markdown

        examined = self.plan(self.load(preset)) if preset else None
        data = read_report_data(directory, losses=losses, planned=planned, preset=examined)
        texts = {"report.html": report_html(data), "summary.md": summary_markdown(data)}
        remedy = "free disk space, or move what has this name, or allow yourself to write there"
        return [
            write_result(data.folder / name, text.encode(errors="backslashreplace"), name, remedy)
            for name, text in texts.items()
        ]

    def lock(self, examined: Examination, engine: Engine) -> dict[str, Any]:
        """Return the lock of an examined training preset. Raises an error by its findings where it can't start."""
        from spyke_kohya.repeat.lock import LockContext, make_lock

        if examined.plan is None or examined.scan is None or examined.loaded.training is None:
            raise refusal(examined.findings, "there is nothing to lock")
        around = LockContext(self.root, self.home, self.environment)
        return make_lock(examined.loaded, examined.plan, examined.scan, engine, around)

    def drift(self, examined: Examination, engine: Engine, path: Path) -> tuple[dict[str, Any], list[Finding]]:
        """Return the lock as it would be now, and all that differs from the one in ``path``."""
        from spyke_kohya.presets.loading import shown_path
        from spyke_kohya.repeat.lock import drift, read_lock

        locked, now = read_lock(path), self.lock(examined, engine)
        return now, drift(locked, now, shown_path(path, self.root))

    def write_lock(self, loaded: Loaded, engine: Path | None = None) -> Path:
        """Record all that decides how a training preset trains; return the file."""
        from spyke_kohya.repeat.lock import lock_path, write_lock

        path = lock_path(loaded)
        write_lock(path, self.lock(self.examine(loaded), self.find_engine(loaded, engine)))
        return path

    def check_lock(self, loaded: Loaded, engine: Path | None = None) -> list[Finding]:
        """Return all that differs from a preset's lock."""
        from spyke_kohya.repeat.lock import lock_path

        return self.drift(self.examine(loaded), self.find_engine(loaded, engine), lock_path(loaded))[1]

    def _engine_or_finding(self, request: Request, needs_engine: bool) -> tuple[Engine, list[Finding]]:
        find = partial(self.find_engine, request.loaded, request.engine, request.recorded_engine)
        try:
            return find(), []
        except EngineError as fault:
            if needs_engine:
                raise
            return find(must_exist=False), [error("engine.missing", fault.where, fault.what, fault.remedy)]

    def _in_use(self, loaded: Loaded) -> list[Finding]:
        if loaded.training is None:
            return []
        from spyke_kohya.audit.output import check_in_use
        from spyke_kohya.engine.command import path_option
        from spyke_kohya.presets.loading import shown_path

        output_dir = path_option(loaded.training.options, "output_dir", self.root)
        return check_in_use(output_dir, shown_path(loaded.path, self.root))

    def _run(self, launch: Launch, *, display: Display, patience: Patience | None, stop: StopRequest | None) -> Outcome:
        from spyke_kohya.record.redact import Redactor
        from spyke_kohya.run.supervision import Patience
        from spyke_kohya.run.train import train

        self.say(f"run directory: {launch.run.path}")
        if launch.segment:
            self.say(launch.segment.in_words)
        with display() as listen:
            return train(
                launch,
                inherited=self.environment,
                redactor=Redactor(self.environment, self.home),
                listen=listen,
                now=datetime.now,
                patience=patience or Patience(),
                warn=self.say,
                awake=sys.platform == "darwin",
                stop=stop,
            )

    def _clear_stale(self, output_dir: Path, end_stale: bool) -> None:
        """Mark the runs here that died without a recorded end; end their processes only where that is allowed."""
        from spyke_kohya.process.process_table import end_group
        from spyke_kohya.record.exclusive import mark_stale, stale_runs
        from spyke_kohya.record.record import STALE

        for stale in stale_runs(output_dir):
            name = stale.run.path.name
            if not stale.is_marked:
                mark_stale(stale, datetime.now())
                self.say(f"stale: {name}: {STALE}")
            if not stale.left:
                continue
            left = f"{name} still trains: process {', '.join(map(str, stale.left))}"
            if not (end_stale or self.confirm(f"{left}. End it?")):
                remedy = "wait until it ends, or end it with --end-stale"
                raise PresetError(left, where=str(stale.run.path), remedy=remedy)
            ended = [end_group(group) for group in stale.groups]
            if not all(ended):
                raise PresetError(
                    f"{left}, and can't be ended", where=str(stale.run.path), remedy="end the process yourself"
                )
            self.say(f"ended what was left of {name}")


def _training_of(loaded: Loaded) -> TrainingPreset:
    if loaded.training is None:
        raise refusal(loaded.findings, "not a training preset without faults")
    return loaded.training


def smoke_settings(scratch: Path) -> tuple[str, ...]:
    """Return the settings of a smoke run: 5 steps, into the directory ``scratch``."""
    return (
        "train_network.max_train_steps=5",
        "train_network.save_every_n_steps=",
        "train_network.save_every_n_epochs=",
        f"train_network.output_dir={json.dumps(str(scratch))}",
    )
