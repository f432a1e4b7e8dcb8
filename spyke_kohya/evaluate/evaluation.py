"""Evaluate a run: choose the pictures, say what it will cost, have it measured under the engine's Python.

What the numbers mean is left to ``rank/heldout.py``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spyke_kohya.engine.command import program_environment
from spyke_kohya.engine.release import Engine
from spyke_kohya.errors import EngineError
from spyke_kohya.evaluate.evaluated_pictures import choose_pictures
from spyke_kohya.evaluate.recorded_run import RecordedRun
from spyke_kohya.evaluate.request import Request, make_request, write_request
from spyke_kohya.process.helper_program import run_program

PROGRAM = Path(__file__).resolve().parents[1] / "programs" / "evaluate.py"
LOG_NAME = "evaluate.log"

# A training step is a forward pass and a backward one, which costs two; gradient checkpointing goes forward twice.
_FORWARDS_PER_STEP = 3
_FORWARDS_PER_STEP_CHECKPOINTED = 4


@dataclass(frozen=True)
class Forecast:
    """What an evaluation will cost. ``seconds`` is an estimate from the training's own pace, None where unknown."""

    checkpoints: int
    heldout: int
    trained: int
    timesteps: int
    forwards: int
    missing: int
    seconds: float | None

    @property
    def measured(self) -> int:
        return self.forwards - self.missing


@dataclass(frozen=True)
class Progress:
    """How far it is. ``seconds_left`` is None until the first losses were measured."""

    stage: str
    done: int
    total: int
    checkpoint: str = ""
    seconds_left: float | None = None


@dataclass(frozen=True)
class Cost:
    """What it took: of the ``total_s``, ``loaded_s`` to load the models and encode the pictures, ``text_s`` for the
    captions and ``forward_s`` for the predictions themselves.
    """

    forward_s: float
    text_s: float
    loaded_s: float
    total_s: float
    most_memory_bytes: int


def prepare(subject: RecordedRun, engine: Engine, *, heldout_dir: Path | None = None, quick: bool = False) -> Request:
    """Return what to measure: ``heldout_dir``, else the folder that the run's preset named, else trained pictures.

    Raises DatasetError, EngineError and PresetError where it can't be measured.
    """
    pictures = choose_pictures(subject.datasets, heldout_dir or subject.heldout_dir, subject.root, quick=quick)
    return make_request(subject, pictures, engine, quick=quick)


def forecast(subject: RecordedRun, request: Request) -> Forecast:
    """Return the number of predictions, and their time by the pace of the training."""
    pictures = request.document["pictures"]
    heldout = sum(picture["role"] == "heldout" for picture in pictures)
    pace = _seconds_per_forward(subject)
    return Forecast(
        checkpoints=len(request.document["checkpoints"]) - 2,
        heldout=heldout,
        trained=len(pictures) - heldout,
        timesteps=len(request.document["timesteps"]),
        forwards=request.forwards,
        missing=request.missing,
        seconds=None if pace is None else pace * request.missing,
    )


def measure(
    subject: RecordedRun,
    request: Request,
    engine: Engine,
    *,
    inherited: Mapping[str, str],
    listen: Callable[[Progress], None],
) -> Cost | None:
    """Measure what is missing, to ``evaluate.csv``; None where nothing was. What was measured survives any ending.

    Raises EngineError when the program fails, Interrupted when a person stops it.
    """
    write_request(subject.run, request)
    if not request.missing:
        return None
    messages: list[dict[str, Any]] = []
    run_program(
        [str(engine.python), str(PROGRAM), str(subject.run.evaluation_request)],
        environment=program_environment(subject.target, inherited),
        cwd=subject.root,
        log=subject.run.path / LOG_NAME,
        on_line=_Listener(messages, listen, time.monotonic),
    )
    if not messages or messages[-1].get("stage") != "measured":
        raise EngineError("the evaluation ended before its end", where=str(subject.run.path / LOG_NAME))
    last = messages[-1]
    names = ("forward_s", "text_s", "loaded_s", "total_s", "most_memory_bytes")
    return Cost(**{name: last[name] for name in names})


class _Listener:
    """Reads the program's lines: those that are JSON are progress, the time left comes from the pace so far."""

    def __init__(
        self, messages: list[dict[str, Any]], listen: Callable[[Progress], None], clock: Callable[[], float]
    ) -> None:
        self._messages = messages
        self._listen = listen
        self._clock = clock
        self._began: tuple[float, int] | None = None

    def __call__(self, line: str) -> None:
        try:
            said = json.loads(line) if line.startswith('{"done"') else None
        except ValueError:  # a log line of the engine's own
            return
        if not isinstance(said, dict):
            return
        self._messages.append(said)
        self._listen(
            Progress(said["stage"], said["done"], said["total"], said.get("checkpoint", ""), self._left_s(said))
        )

    def _left_s(self, said: dict[str, Any]) -> float | None:
        if said["stage"] != "measuring":
            return None
        if self._began is None:
            self._began = (self._clock(), said["done"])
            return None
        began_at, done_before = self._began
        done = said["done"] - done_before
        return (self._clock() - began_at) / done * int(said["total"] - said["done"]) if done else None


def _seconds_per_forward(run: RecordedRun) -> float | None:
    record = run.record
    pace = record.result.seconds_per_step
    if not pace:
        return None
    passes = _FORWARDS_PER_STEP_CHECKPOINTED if run.settings.get("gradient_checkpointing") else _FORWARDS_PER_STEP
    batch = max(dataset.batch_size for dataset in run.datasets) * (record.plan.gradient_accumulation_steps or 1)
    return pace / passes / batch
