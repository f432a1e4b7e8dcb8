"""The engine's console as events: what sd-scripts v0.10.1 under ``accelerate launch`` prints, read as it comes.

Takes the bytes of stdout and stderr merged, in any pieces; the events themselves are in ``events.py``.
"""

from __future__ import annotations

import re

from spyke_kohya.engine.events import (
    CheckpointAnnounced,
    CheckpointRemoved,
    DeviceReported,
    EngineFault,
    EngineWarning,
    EpochStarted,
    Event,
    Header,
    ModelSaved,
    StateSaved,
    Step,
)
from spyke_kohya.engine.log_records import MAX_LINE_CHARS, TRACEBACK_HEAD, LogRecord, Traceback

_MAX_SEGMENT_BYTES = 65536
_BAR = re.compile(
    rb"steps:\s+\d+%\|[^|]*\|\s*(\d{1,9})/(\d{1,9}) "
    rb"\[(?:(\d{1,9}):)?(\d{1,9}):(\d\d)<[^,\]]*,\s*([\d.]{1,20}|\?)(s/it|it/s)(?:, ([^\]]*))?\]"
)
_OTHER_BAR = re.compile(rb"%\|[^|]*\|[^\[\]]*\[[^\]]*\]")
_AVR_LOSS = re.compile(rb"avr_loss=\s*([-+.\w]+)")
_ESCAPE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~])?")
_RECORD = re.compile(rb"(?:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|\s{19}) (DEBUG|INFO|WARNING|ERROR|CRITICAL)\s")
_EPOCH = re.compile(rb"epoch (\d{1,9})/(\d{1,9})\s*$")
_USAGE = re.compile(rb"(?:[\w.-]+\.py|accelerate\b[^:]*): error: (.*)")
_WARNING = re.compile(r"(?:.*?:\d+: |\[W[^\]]*\] )(\w*Warning): (.*)")
_ABOUT_SOURCE = {"SyntaxWarning", "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ImportWarning"}
_SUMMARY = {
    b"num train images * repeats": "num_train_images",
    b"num validation images * repeats": "num_validation_images",
    b"num reg images": "num_reg_images",
    b"num batches per epoch": "batches_per_epoch",
    b"num epochs": "epochs",
    b"batch size per device": "batch_size",
    b"gradient accumulation steps": "gradient_accumulation_steps",
    b"total optimization steps": "total_steps",
}
_SAVING, _REMOVING, _DEVICE = b"saving checkpoint: ", b"removing old checkpoint: ", b"accelerator device: "
_NAN_LATENTS = b"NaN found in latents"
_PRINTED = (_SAVING, _REMOVING, _DEVICE, _NAN_LATENTS)
_TRACEBACK_HEAD = TRACEBACK_HEAD.encode()
_HARMLESS_TRACEBACK = (b"Exception ignored in", b"--- Logging error ---")
_CUT_OFF = "a traceback that was cut off"
_STATE_SAVED = re.compile(r"Random states saved in (.*)[/\\]random_states_\d+\.pkl")


class ConsoleParser:
    """Turns the console's bytes into events; any way of cutting the same bytes gives the same events.

    No bytes make it raise. A line is kept up to 64 KiB: beyond that, its first and last 32.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._events: list[Event] = []
        self._summary: dict[str, str] = {}
        self._accumulates = False
        self._open: LogRecord | Traceback | None = None
        self._previous = b""
        self._step = 0
        self._pending: re.Match[bytes] | None = None
        self._postfix: bytes | None = None
        self._settled = False

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that ``data``, the next bytes of the console, completes."""
        segments = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        self._rest = _bounded(segments.pop())
        for segment in segments:
            if segment:
                self._read(_bounded(segment))
        return self._taken()

    def finish(self) -> list[Event]:
        """Return the events still open when the console has ended."""
        self._read(self._rest)
        self._rest = b""
        self._close()
        self._report_step()
        return self._taken()

    def _taken(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _read(self, segment: bytes) -> None:
        if b"\x1b" in segment:
            segment = _ESCAPE.sub(b"", segment)
        bar = None
        if segment.startswith(b"steps:") and (bar := _BAR.match(segment)):
            self._render(bar)
        elif (at := segment.find(b"%|")) >= 0:
            bar = _OTHER_BAR.match(segment, at)
        if bar:
            self._close()
            segment = segment[bar.end() :]
        if segment and not segment.isspace():
            self._read_text(segment)

    def _render(self, bar: re.Match[bytes]) -> None:
        """Keep the rendering whose avr_loss is the step's own.

        A step shows first with the loss of the one before, then with its own (train_network.py:1487, 1516); the last
        rendering counts. With gradient accumulation those after its own belong to the next step's batches. The first
        may be missing: tqdm leaves out what comes within 0.1 s.
        """
        step, postfix = int(bar[1]), bar[8]
        is_new = step != self._step
        if is_new:
            self._report_step()
            self._step = step
        if is_new or not self._settled:
            self._pending = bar
            self._settled = self._accumulates and (not is_new or postfix != self._postfix)
        self._postfix = postfix

    def _report_step(self) -> None:
        if self._pending and self._step:
            self._events.append(_step_of(self._pending))
        self._pending = None

    def _read_text(self, line: bytes) -> None:
        if self._open and not _is_of_its_own(line) and self._open.takes(_text(line)):
            return
        self._close()
        if record := _RECORD.match(line):
            self._read_record(record[1].decode(), line)
        elif line.startswith(_TRACEBACK_HEAD):
            self._open = None if self._previous.startswith(_HARMLESS_TRACEBACK) else Traceback()
        elif line.startswith(b"  "):
            self._read_summary(line)
        else:
            self._read_print(line)
        self._previous = line[:100]

    def _close(self) -> None:
        match self._open:
            case LogRecord() as record:
                self._report_record(record)
            case Traceback(of_launcher=True, exception=exception):
                self._events.append(EngineFault("launcher", exception or _CUT_OFF))
            case Traceback(exception=exception, text=text):
                self._events.append(EngineFault("traceback", exception or _CUT_OFF, text))
        self._open = None

    def _read_record(self, level: str, line: bytes) -> None:
        if level in ("WARNING", "ERROR", "CRITICAL") or b"Random states saved in" in line or b"model saved." in line:
            self._open = LogRecord(level, _text(line))

    def _report_record(self, record: LogRecord) -> None:
        text = record.text
        if record.level == "WARNING":
            self._events.append(EngineWarning(text))
        elif record.level in ("ERROR", "CRITICAL"):
            self._events.append(EngineFault("no-data" if text.startswith("No data found") else "log-error", text))
        elif text == "model saved.":
            self._events.append(ModelSaved())
        elif state := _STATE_SAVED.match(text):
            self._events.append(StateSaved(state[1]))

    def _read_summary(self, line: bytes) -> None:
        label, _, rest = line[2:].partition(b" / ")
        name = _SUMMARY.get(label)
        value = re.split(rb"[:=] ", rest)[-1].strip() if name else b""
        if not name or (name != "batch_size" and not (value.isdigit() and len(value) < 10)):
            return
        complete = len(self._summary) == len(_SUMMARY)
        self._summary[name] = _text(value)
        if not complete and len(self._summary) == len(_SUMMARY):
            numbers = {name: int(value) for name, value in self._summary.items() if name != "batch_size"}
            header = Header(batch_size=self._summary["batch_size"], **numbers)
            self._accumulates = header.gradient_accumulation_steps > 1
            self._events.append(header)

    def _read_print(self, line: bytes) -> None:
        if line.startswith(_SAVING):
            self._events.append(CheckpointAnnounced(_text(line[len(_SAVING) :]), self._step))
        elif line.startswith(_REMOVING):
            self._events.append(CheckpointRemoved(_text(line[len(_REMOVING) :])))
        elif line.startswith(_DEVICE):
            self._events.append(DeviceReported(_text(line[len(_DEVICE) :])))
        elif epoch := _EPOCH.match(line):
            self._events.append(EpochStarted(int(epoch[1]), int(epoch[2])))
        elif b": error: " in line and (usage := _USAGE.match(line)):
            self._events.append(EngineFault("usage", _text(usage[1])[:MAX_LINE_CHARS]))
        elif line.startswith(_NAN_LATENTS):
            self._events.append(EngineWarning(_text(line)))
        elif b"Warning: " in line and (warning := _WARNING.match(_text(line))) and warning[1] not in _ABOUT_SOURCE:
            self._events.append(EngineWarning(f"{warning[1]}: {warning[2]}"[:MAX_LINE_CHARS]))


def _is_of_its_own(line: bytes) -> bool:
    return line.startswith(_PRINTED) or bool(_RECORD.match(line) or _EPOCH.match(line))


def _step_of(bar: re.Match[bytes]) -> Step:
    hours, minutes, seconds = (int(part or 0) for part in bar.group(3, 4, 5))
    loss = _AVR_LOSS.search(bar[8] or b"")
    rate = _number(bar[6])
    if rate is not None and bar[7] == b"it/s":
        rate = 1 / rate if rate else None
    elapsed_s = hours * 3600 + minutes * 60 + seconds
    return Step(int(bar[1]), int(bar[2]), _number(loss[1]) if loss else None, elapsed_s, rate)


def _number(text: bytes) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _bounded(segment: bytes) -> bytes:
    if len(segment) <= _MAX_SEGMENT_BYTES:
        return segment
    half = _MAX_SEGMENT_BYTES // 2
    return segment[:half] + segment[-half:]


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip()
