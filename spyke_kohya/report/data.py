"""All that a report shows of a training, read from its directory once; how it is shown is left to others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spyke_kohya.audit.examine import Examination
from spyke_kohya.errors import EngineError, NothingToRank
from spyke_kohya.formats.tensor_file import read_header
from spyke_kohya.plan.plan import explain
from spyke_kohya.rank.directory import TrainingResult, best_ranking, heldout_beside, rank_directory
from spyke_kohya.rank.result import HeldoutRanking, TrainingRanking, Trial
from spyke_kohya.record.record import Record, read_record
from spyke_kohya.record.rundir import RunDirectory
from spyke_kohya.report.deviations import deviations

_TAGS_SHOWN = 40
_SAMPLES_SHOWN = 48
_MET = ("EngineWarning", "EngineFault", "signal", "fault", "Fault", "stall", "resume")


@dataclass(frozen=True)
class Issue:
    """Something that happened during a run; ``count`` times, first ``at`` a local time."""

    at: str
    kind: str
    text: str
    count: int


@dataclass(frozen=True)
class TagTable:
    """How often each tag stands in the captions of a folder, the most frequent first."""

    folder: str
    tags: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class ReportData:
    """What a report shows. ``record`` is the run's, or a preset's; ``unranked`` says why ``result`` is None."""

    title: str
    output_dir: Path
    run: RunDirectory | None
    record: Record
    result: TrainingResult | None
    unranked: str
    heldout: HeldoutRanking | None
    issues: tuple[Issue, ...]
    tags: tuple[TagTable, ...]
    samples: tuple[Path, ...]
    deviations: tuple[str, ...]
    command: str

    @property
    def folder(self) -> Path:
        """Where its report is written."""
        return self.run.path if self.run else self.output_dir

    @property
    def evidence(self) -> TrainingRanking | HeldoutRanking | None:
        """The best ranking there is: held-out losses, else the training's own."""
        return best_ranking(self.result.ranking if self.result else None, self.heldout)

    @property
    def verdict(self) -> str:
        return self.evidence.verdict if self.evidence else self.unranked

    @property
    def test_order(self) -> tuple[Trial, ...]:
        return self.evidence.test_order if self.evidence else ()

    @property
    def steps_run(self) -> int | None:
        return _steps_run(self.record, self.result)


def read_report_data(
    directory: Path, *, losses: Path | None = None, planned: int | None = None, preset: Examination | None = None
) -> ReportData:
    """Return the data of a run directory, or of an output directory's newest run.

    Where no run recorded them, ``losses`` is a file of losses and ``preset`` is what was trained. ``planned`` is the
    number of steps that a person had planned. Raises NothingToRank where there is neither a record nor a loss.
    """
    result, unranked = _ranked(directory, losses)
    run = _run_of(directory, result)
    if result is None and run is None:
        raise NothingToRank(unranked, where=str(directory), remedy="name a run directory, or losses with --losses FILE")
    record = read_record(run).true_now if run else _record_of(preset)
    output_dir = RunDirectory(run.path.resolve()).output_dir if run else directory
    heldout, _ = heldout_beside(run.path if run else None, output_dir)
    problems = result.problems if result else record.problems
    return ReportData(
        title=run.path.name if run else record.output_name or (result.title if result else directory.name),
        output_dir=output_dir,
        run=run,
        record=record,
        result=result,
        unranked=unranked,
        heldout=heldout.ranking if heldout else None,
        issues=(*(Issue("the record", "unreadable", problem, 1) for problem in problems), *_issues(run)),
        tags=tuple(_tags(result)),
        samples=tuple(_samples(run, output_dir, record.output_name or "")),
        deviations=tuple(deviations(record, planned, _steps_run(record, result))),
        command=run.command.read_text(encoding="utf-8") if run and run.command.is_file() else "",
    )


def _ranked(directory: Path, losses: Path | None) -> tuple[TrainingResult | None, str]:
    try:
        return rank_directory(directory, losses=losses), ""
    except (NothingToRank, EngineError) as fault:
        return None, fault.what


def _run_of(directory: Path, result: TrainingResult | None) -> RunDirectory | None:
    if RunDirectory(directory).record.is_file():
        return RunDirectory(directory)
    recorded = result.run_dir if result else None
    return RunDirectory(recorded) if recorded and RunDirectory(recorded).record.is_file() else None


def _record_of(preset: Examination | None) -> Record:
    """Return what a preset says of a training that has no record, in the form of a record."""
    if preset is None or preset.loaded.training is None or preset.plan is None:
        return Record(status="")
    training = preset.loaded.training
    return Record(status="").changed(
        preset={"name": preset.loaded.name, "document": training.model_dump(exclude_none=True)},
        output_name=training.options["output_name"],
        target=training.launch.target,
        settings={name: value for name, value in training.effective_options.items() if value is not None},
        plan=preset.plan.to_dict(),
        explained=explain(preset.plan),
    )


def _steps_run(record: Record, result: TrainingResult | None) -> int | None:
    steps = record.result.steps
    return steps if steps is not None else result.curve.last_step if result else None


def _issues(run: RunDirectory | None) -> Iterator[Issue]:
    """Yield what went wrong and what was warned of, each once."""
    met: dict[tuple[str, str], list[str]] = {}
    for event in _events(run):
        if event.get("event") in _MET:
            text = str(event.get("text") or event.get("message") or event.get("signal") or event.get("reason") or "")
            met.setdefault((str(event["event"]), text), []).append(str(event.get("at", "")))
    for (kind, text), times in met.items():
        yield Issue(times[0], kind, text, len(times))


def _events(run: RunDirectory | None) -> Iterator[Mapping[str, Any]]:
    if run is None or not run.events.is_file():
        return
    for line in run.events.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # a line that was being written when the machine went down
            continue
        if isinstance(event, dict):
            yield event


def _tags(result: TrainingResult | None) -> Iterator[TagTable]:
    """Yield the tags that sd-scripts counted in the metadata of a checkpoint (train_network.py:1158)."""
    files = [trial.candidate.file for trial in result.ranking.test_order] if result else []
    if not files or files[0] is None:
        return
    try:
        frequencies = json.loads(read_header(files[0]).metadata.get("ss_tag_frequency", "{}"))
    except ValueError:
        return
    for folder, tags in frequencies.items() if isinstance(frequencies, dict) else ():
        counted = sorted(tags.items(), key=lambda item: (-item[1], item[0]))
        yield TagTable(str(folder), tuple((str(tag), int(count)) for tag, count in counted[:_TAGS_SHOWN]))


def _samples(run: RunDirectory | None, output_dir: Path, name: str) -> list[Path]:
    """Return the contact sheet, then what sd-scripts drew while it trained, in its order (train_util.py:6573)."""
    found = (output_dir / "sample").glob("*.png")
    drawn = sorted(path for path in found if path.name.startswith(f"{name}_"))[:_SAMPLES_SHOWN]
    sheet = [run.contact_sheet] if run and run.contact_sheet.is_file() else []
    return [*sheet, *drawn]
