"""The record of a run: what ``run.json`` holds, in the one model by which it is written and read.

Reading is lenient. What is wrong with one value costs that value, which then is unknown, and is kept by its name in
``problems``. Secrets and the home directory are taken out before a record is written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError, from_json, to_json

from spyke_kohya.engine.command import expand_tilde
from spyke_kohya.engine.options import check_option
from spyke_kohya.engine.targets import Target
from spyke_kohya.errors import SpykeError
from spyke_kohya.files import write_whole
from spyke_kohya.findings import Finding
from spyke_kohya.presets.training import Evaluate, Expect, Samples
from spyke_kohya.process.process_table import ProcessMark, is_running
from spyke_kohya.record.redact import Redactor, restored
from spyke_kohya.record.rundir import RunDirectory

SCHEMA_VERSION = 1
UNFINISHED = ("prepared", "running")
STALE = "it was killed, or the machine went down: nothing recorded its end"
UNREADABLE = "unreadable"

_Count = Annotated[int, Field(ge=0, lt=1 << 31)]
_AtLeastOne = Annotated[int, Field(ge=1, lt=1 << 31)]
_Size = Annotated[int, Field(ge=0, lt=1 << 63)]
_Seconds = Annotated[float, Field(ge=0, lt=1e10)]


class _Part(BaseModel):
    """A table of the record. Each key may be unknown; keys that this version doesn't know are kept."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, defer_build=True)


@dataclass(frozen=True)
class SavedCheckpoint:
    """A network file of the run: ``file`` is its path from the output directory, ``step`` counts from the first run on.

    ``problem`` says why it must not be used, or is empty.
    """

    step: _Count
    file: str
    size_bytes: _Size
    sha256: str = ""
    problem: str = ""


@dataclass(frozen=True)
class SavedState:
    """A state to resume from, saved at the end of ``epoch``; ``path`` is its directory."""

    epoch: _Count
    step: _Count
    path: str


class RecordedDeploy(_Part):
    """The table [deploy] of the preset; the reader of ``name`` must check it."""

    to: str | None = None
    name: str | None = None


class PresetDocument(_Part):
    """The training preset with the values that it was started with."""

    expect: Expect = Expect()
    deploy: RecordedDeploy = RecordedDeploy()


class RecordedPreset(_Part):
    """The training preset that was started."""

    name: str | None = None
    path: str | None = None
    document: PresetDocument = PresetDocument()


class PlannedFile(_Part):
    """A checkpoint of the plan."""

    file: str


class PlannedFolder(_Part):
    """An image folder of the plan: ``per_epoch`` counts its images with their repeats."""

    image_dir: str
    is_reg: bool
    images: _Count
    num_repeats: _Count
    per_epoch: _Count


class RecordedPlan(_Part):
    """The plan, as ``plan --json`` prints it; ``folders`` and ``buckets`` are lists by dataset."""

    num_train_images: _Count | None = None
    num_reg_images: _Count | None = None
    batches_per_epoch: _AtLeastOne | None = None
    steps_per_epoch: _AtLeastOne | None = None
    total_steps: _Count | None = None
    gradient_accumulation_steps: _AtLeastOne | None = None
    checkpoints: tuple[PlannedFile, ...] = ()
    folders: tuple[tuple[PlannedFolder, ...], ...] = ()
    buckets: tuple[tuple[tuple[tuple[_Count, _Count], _Count], ...], ...] = ()


class RecordedEngine(_Part):
    """The engine that ran, and the versions of the packages that decide how it behaves."""

    directory: str | None = None
    commit: str | None = None
    packages: dict[str, str] = {}


class ResumedFrom(_Part):
    """The run before a resumed one, by its directory's name, and the step after which the resumed one starts."""

    run: Annotated[str, Field(pattern=r"^[^/\x00]+$")]
    step: _Count


class Result(_Part):
    """How the run ended; a run that has not ended has no ``status``."""

    status: str | None = None
    steps: _Count | None = None
    duration_s: _Seconds | None = None
    checkpoints: tuple[SavedCheckpoint, ...] = ()

    @property
    def seconds_per_step(self) -> float | None:
        """Wall time of the whole run by its steps, start-up and saving included."""
        return self.duration_s / self.steps if self.duration_s is not None and self.steps else None


class Record(_Part):
    """The record of one run. ``status`` is prepared, running, finished, failed, interrupted or stale, or not known.

    ``problems`` names what of the file could not be used, and why; it is never written.
    """

    schema_version: _Count | None = None
    status: str = "unknown"
    reason: str = ""
    started_at: str | None = None
    ended_at: str | None = None
    output_name: str | None = None
    target: Target | None = None
    cwd: str | None = None
    preset: RecordedPreset = RecordedPreset()
    evaluate: Evaluate = Evaluate()
    samples: Samples = Samples()
    settings: dict[str, Any] = {}
    plan: RecordedPlan = RecordedPlan()
    explained: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    engine: RecordedEngine = RecordedEngine()
    machine: dict[str, str] = {}
    identity: dict[str, str] = {}
    resumed_from: ResumedFrom | None = None
    checkpoints: tuple[SavedCheckpoint, ...] = ()
    states: tuple[SavedState, ...] = ()
    wrapper: ProcessMark | None = None
    engine_process: ProcessMark | None = None
    result: Result = Result()
    problems: tuple[str, ...] = Field(default=(), exclude=True)

    @field_validator("settings")
    @classmethod
    def _check_settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Refuse each value that its option can't have; an option of another engine may be any."""
        faults = [
            InitErrorDetails(type=PydanticCustomError("option", "{what}", {"what": fault[1]}), loc=(name,), input=value)
            for name, value in settings.items()
            if (fault := check_option(name, value)) and fault[0] != "unknown-key"
        ]
        if faults:
            raise ValidationError.from_exception_data("settings", faults)
        return settings

    @property
    def true_now(self) -> Record:
        """The record with the status that is true now: stale where it says running and no process runs it."""
        if self.status not in UNFINISHED or self.wrapper is None or is_running(self.wrapper) is not False:
            return self
        return self.model_copy(update={"status": "stale", "reason": STALE})

    def changed(self, **values: object) -> Record:
        """Return the record with these values in the place of its own."""
        return parse_record(self.to_dict() | from_json(to_json(values)))

    def to_dict(self) -> dict[str, Any]:
        """Return what is written: all that was ever set, and no default."""
        written: dict[str, Any] = self.model_dump(mode="json", exclude_unset=True)
        return written


def parse_record(document: dict[str, Any]) -> Record:
    """Return the record that a JSON document holds; what can't be used is taken out of ``document``."""
    # Version 1 is the only one there was. What makes a 1 of it, or of a 1 the next, has its place here.
    problems: dict[str, str] = {}
    while True:
        try:
            record = Record.model_validate_json(to_json(document))
        except ValidationError as faults:
            problems = _taken_out(document, faults.errors(include_url=False, include_context=False)) | problems
        else:
            break
    if (record.schema_version or 0) > SCHEMA_VERSION:
        problems["schema_version"] = f"{record.schema_version} is newer than this spyke-kohya knows"
    return record.model_copy(update={"problems": tuple(f"{place}: {what}" for place, what in problems.items())})


def _taken_out(document: dict[str, Any], faults: list[ErrorDetails]) -> dict[str, str]:
    """Take each faulty value out of the document, from the end on, so that the places before it stay; name them."""
    named: dict[str, str] = {}
    gone: tuple[int | str, ...] = ("",)
    for fault in reversed(faults):
        place = fault["loc"]
        if place[: len(gone)] == gone:
            continue
        *above, last = gone = _place_in(document, place)
        table: Any = document
        for key in above:
            table = table[key]
        del table[last]
        named[".".join(map(str, place))] = f"{fault['msg'][:1].lower()}{fault['msg'][1:]}"
    return dict(reversed(named.items()))


def _place_in(document: Any, place: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return the part of a place that exists: of a table that lacks something, the table itself."""
    for depth, key in enumerate(place):
        if not (key in document if isinstance(document, dict) else isinstance(key, int) and key < len(document)):
            return place[:depth]
        document = document[key]
    return place


def read_record(run: RunDirectory, *, or_raise: type[SpykeError] | None = None) -> Record:
    """Return what is on record of a run, with this machine's home directory where a path begins with ``~``.

    A file that can't be read gives a record of the status "unreadable" with the reason as its one problem; with
    ``or_raise`` that is raised.
    """
    try:
        return parse_record(restored(_document(run.record), Path(expand_tilde("~"))))
    except (OSError, ValueError) as fault:
        why = str(fault.strerror if isinstance(fault, OSError) else fault)
    if or_raise:
        remedy = "name a run directory: `spyke-kohya runs` lists them"
        raise or_raise(f"this run's record can't be read: {why}", where=str(run.record), remedy=remedy)
    return Record(status=UNREADABLE, problems=(f"run.json: {why}",))


def write_record(run: RunDirectory, record: Record, redactor: Redactor) -> None:
    """Write ``run.json`` whole. Raises OSError."""
    _write(run, redactor.value(record.to_dict()))


def amend_record(run: RunDirectory, **values: str) -> None:
    """Put values into a record that is there; whatever else stands in it stays. Raises OSError and ValueError."""
    _write(run, _document(run.record) | values)


def _write(run: RunDirectory, document: dict[str, Any]) -> None:
    write_whole(run.record, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _document(file: Path) -> dict[str, Any]:
    """Read the JSON table of a regular file: a pipe might never end. Raises OSError and ValueError."""
    if file.exists() and not file.is_file():
        raise ValueError("it is not a regular file")
    document = from_json(file.read_bytes())
    if not isinstance(document, dict):
        raise ValueError("it doesn't hold a table")
    return document
