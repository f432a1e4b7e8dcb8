"""Recognise faults as they happen, from the engine's events and the time between them, and say what to do.

The input is events and moments (seconds of a clock that never goes back), the output notices; no process is known here.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from spyke_kohya.engine.events import EngineFault, EngineWarning, Event, Step

FaultKind = Literal["nan", "silence", "slowing", "out-of-memory", "missing-operator", "cpu-fallback", "disk-full"]

NAN_PATIENCE = 2
_SILENCE_S = 300.0
_SILENT_STEPS = 20
_SLOWER = 3.0
_SLOWER_BY_S = 0.5  # very short steps always vary by more than the factor
_STEPS_COMPARED = 20
_STEPS_TO_WARM_UP = 3
# What is in the engine's output, what it means and what to do: the sentences are torch's own.
_SENTENCES: tuple[tuple[str, FaultKind, str], ...] = (
    (
        "MPS backend out of memory",
        "out-of-memory",
        "set gradient_checkpointing = true, a smaller batch or resolution, or close other programs; "
        "PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 would trade the error for swapping",
    ),
    ("CUDA out of memory", "out-of-memory", "set gradient_checkpointing = true, or a smaller batch or resolution"),
    (
        "not currently implemented for the MPS device",
        "missing-operator",
        "start with PYTORCH_ENABLE_MPS_FALLBACK=1, as `spyke-kohya train` does, or update torch",
    ),
    (
        "will fall back to run on the CPU",
        "cpu-fallback",
        "an operator runs on the CPU and slows every step down: a newer torch may have it for MPS",
    ),
    ("No space left on device", "disk-full", "make room, then go on with `spyke-kohya train PRESET --resume`"),
)


@dataclass(frozen=True)
class Notice:
    """A fault, in words for a person. Where it ``ends_run``, to go on makes no sense."""

    kind: FaultKind
    message: str
    remedy: str
    ends_run: bool = False


class FaultWatch:
    """Recognises faults in the order in which things happen. ``counts`` says how often each was seen."""

    def __init__(self, *, at: float, nan_patience: int = NAN_PATIENCE, stall_timeout_s: float | None = None) -> None:
        """``nan_patience`` steps without a number for a loss end the run, and ``stall_timeout_s`` without output."""
        self.counts: Counter[str] = Counter()
        self._nan_patience = nan_patience
        self._stall_timeout_s = stall_timeout_s
        self._output_at = at
        self._step_at: float | None = None
        self._steps_seen = 0
        self._warm: list[float] = []
        self._recent: deque[float] = deque(maxlen=_STEPS_COMPARED)
        self._silent = False
        self._first_bad: Step | None = None
        self._bad_steps = 0

    def output_seen(self, at: float) -> None:
        """Note that the engine printed something, whatever it was."""
        self._output_at, self._silent = at, False

    def handle(self, event: Event, at: float) -> list[Notice]:
        """Return what one event shows."""
        return self._counted(list(self._read_step(event, at) if isinstance(event, Step) else _recognised(event)))

    def no_output(self, at: float) -> list[Notice]:
        """Return what the silence since the last output shows."""
        return self._counted(list(self._judge_silence(at - self._output_at)))

    @property
    def patience_s(self) -> float:
        """How long a run may be silent before a notice: 5 minutes, or 20 steps if they take longer."""
        steps = [*self._warm, *self._recent]
        return max(_SILENCE_S, _SILENT_STEPS * statistics.median(steps)) if steps else _SILENCE_S

    def _counted(self, notices: list[Notice]) -> list[Notice]:
        self.counts.update(notice.kind for notice in notices if not (notice.ends_run and self.counts[notice.kind]))
        return notices

    def _judge_silence(self, silent_s: float) -> Iterator[Notice]:
        if self._stall_timeout_s is not None and silent_s >= self._stall_timeout_s:
            message = f"the engine has said nothing for {silent_s:.0f} s"
            yield Notice("silence", message, "see the end of console.log for what it did last", ends_run=True)
        elif silent_s >= self.patience_s and not self._silent:
            self._silent = True
            message = f"the engine has said nothing for {silent_s / 60:.0f} minutes; it may hang, or sleep"
            yield Notice("silence", message, "wait, or stop it with Ctrl-C; --stall-timeout SECONDS would end it")

    def _read_step(self, step: Step, at: float) -> Iterator[Notice]:
        yield from self._compare_times(at)
        if step.avr_loss is None or math.isfinite(step.avr_loss):
            return
        self._first_bad = self._first_bad or step
        self._bad_steps += 1
        message = f"the loss is not a number from step {self._first_bad.step} on"
        remedy = "lower the learning rate; on a Mac, set sdpa = true: the default attention gives NaN there"
        if self._bad_steps in (1, self._nan_patience):
            yield Notice("nan", message, remedy, ends_run=self._bad_steps == self._nan_patience)

    def _compare_times(self, at: float) -> Iterator[Notice]:
        before, self._step_at = self._step_at, at
        self._steps_seen += 1
        if before is None or self._steps_seen <= _STEPS_TO_WARM_UP:
            return
        if len(self._warm) < _STEPS_COMPARED:
            self._warm.append(at - before)
            return
        self._recent.append(at - before)
        if self.counts["slowing"] or len(self._recent) < _STEPS_COMPARED:
            return
        first, now = statistics.median(self._warm), statistics.median(self._recent)
        if now > _SLOWER * first and now - first > _SLOWER_BY_S:
            message = f"a step takes {now:.1f} s now, and took {first:.1f} s at first"
            remedy = "close other programs, or set a smaller batch or resolution: the machine may swap, or be hot"
            yield Notice("slowing", message, remedy)


def remedy_for(text: str) -> str:
    """Return what to do about a message of the engine, or ""."""
    return next((remedy for words, _, remedy in _SENTENCES if words in text), "")


def _recognised(event: Event) -> Iterator[Notice]:
    text = event.text if isinstance(event, EngineFault | EngineWarning) else ""
    found = (Notice(kind, text, remedy) for words, kind, remedy in _SENTENCES if words in text)
    return islice(found, 1)
