"""Resume a run that did not end well: find its newest whole state, and refuse where its inputs have changed.

sd-scripts resumes correctly from the end of an epoch, with ``--resume STATE --initial_epoch N``. Its own numbering then
starts from 1, and ``numbering.py`` corrects it.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from spyke_kohya.engine.filenames import parse_file_name
from spyke_kohya.engine.states import ARCHIVES, TRAIN_STATE, WEIGHTS, epoch_of_state
from spyke_kohya.errors import PresetError
from spyke_kohya.plan.plan import Plan
from spyke_kohya.record.record import Record, SavedCheckpoint, SavedState, read_record
from spyke_kohya.record.rundir import RunDirectory, runs_under
from spyke_kohya.repeat.inputs import differences
from spyke_kohya.run.inspection import inspect
from spyke_kohya.run.launch import Segment
from spyke_kohya.run.lossfile import history

_START_ANEW = "start anew without --resume"


def find_segment(output_dir: Path, output_name: str, plan: Plan, identity: Mapping[str, str]) -> Segment:
    """Find where the last run of this name in ``output_dir`` can be resumed.

    Raises PresetError with the reason: there is no such run, it ended well, something it depends on has changed since,
    or no whole state is left.
    """
    run, record = _last_run(output_dir, output_name)
    if record.status == "finished":
        raise _refused("the last run ended well: there is nothing to resume", run)
    if unknown := [problem for problem in record.problems if problem.startswith("identity")]:
        raise _refused(f"its record doesn't tell what it depended on: {unknown[0]}", run)
    if changed := differences(record.identity, identity):
        reason = f"changed since that run: {', '.join(changed)}. To go on would mix two trainings"
        raise _refused(reason, run, f"put it back as it was, or {_START_ANEW}")
    states = _states_of(run, record, record.plan.steps_per_epoch or plan.steps_per_epoch)
    state, faults = _newest_whole(states)
    if state is None:
        why = f": {'; '.join(faults)}" if faults else ": it ended before its first epoch did, or saved none"
        raise _refused(f"no whole state to resume from{why}", run)
    if (step := state.step) >= plan.total_steps:
        raise _refused("its newest state is at the end of the training", run)
    return Segment(
        earlier=run,
        state=Path(state.path),
        epoch=state.epoch,
        step=step,
        steps_lost=max(0, _last_step(run, record) - step),
        checkpoints=(*_checkpoints_of(record, step, run.path.name), *_unrecorded(run, record, step)),
        states=tuple(one for one in states if one.step <= step),
    )


def fault_of_state(directory: Path) -> str:
    """Return why a state can't be trusted, or "": it is written file by file, and a run may end in between.

    All its files are read: its weights must be whole and finite, the checksums of its archives match.
    """
    try:
        json.loads((directory / TRAIN_STATE).read_text(encoding="utf-8"))
        if problem := inspect(directory / WEIGHTS).problem:
            return f"{WEIGHTS}: {problem}"
        for name in ARCHIVES:
            with zipfile.ZipFile(directory / name) as archive:
                if damaged := archive.testzip():
                    return f"{name} is damaged at {damaged}"
    except FileNotFoundError as fault:
        return f"{Path(str(fault.filename)).name} is missing"
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as fault:
        return f"a file of it is damaged: {fault}"
    return ""


def _last_run(output_dir: Path, output_name: str) -> tuple[RunDirectory, Record]:
    for run in runs_under(output_dir):
        record = read_record(run)
        reached = record.states or record.resumed_from or _steps_reached(record) or record.result.status is None
        if record.output_name == output_name and reached:
            return run, record  # a run that failed before its first step does not hide the one before it
    raise PresetError(f"there is no run of {output_name} to resume", where=str(output_dir), remedy=_START_ANEW)


def _states_of(run: RunDirectory, record: Record, steps_per_epoch: int) -> list[SavedState]:
    """Return the states on record, and those that the engine saved just before the launching process was killed."""
    folder = run.segment if record.resumed_from else run.output_dir
    recorded = {state.path for state in record.states}
    found = []
    for place in folder.glob("*-state"):
        epoch = epoch_of_state(place, str(record.output_name))
        if epoch and _is_of(run, place / TRAIN_STATE) and str(place) not in recorded:
            found.append(SavedState(epoch, epoch * steps_per_epoch, str(place)))
    return sorted([*record.states, *found], key=lambda one: one.step)


def _is_of(run: RunDirectory, file: Path) -> bool:
    """Check whether a file was written after the run began: both times are those of the same disk."""
    try:
        return file.stat().st_mtime_ns >= run.command.stat().st_mtime_ns
    except OSError:
        return False


def _newest_whole(states: list[SavedState]) -> tuple[SavedState | None, list[str]]:
    faults: list[str] = []
    for state in reversed(states):
        fault = fault_of_state(Path(state.path))
        if not fault:
            return state, faults
        faults.append(f"that of epoch {state.epoch}: {fault}")
    return None, faults


def _last_step(run: RunDirectory, record: Record) -> int:
    """Return how far the run came: of a run that was killed, the engine's own losses go further than the record."""
    return max([_steps_reached(record), *(loss.step for loss in history(run)[-1:])])


def _steps_reached(record: Record) -> int:
    """Return the last step on record: the result's, or of a run that has none, its last checkpoint's."""
    saved = [one.step for one in record.checkpoints] + [one.step for one in record.states]
    return max([record.result.steps or 0, *saved])


def _checkpoints_of(record: Record, step: int, run_name: str) -> list[SavedCheckpoint]:
    """Return the checkpoints on record; those after ``step`` are marked: they are trained again."""
    problem = f"replaced: run {run_name} was resumed from step {step}, so it is of no loss on record"
    return [one if one.step <= step or one.problem else replace(one, problem=problem) for one in record.checkpoints]


def _unrecorded(run: RunDirectory, record: Record, step: int) -> list[SavedCheckpoint]:
    """Find files of this name that no record of this training holds.

    Those of the run itself up to ``step`` were saved just before it was killed, and are read now. All others belong to
    another training, and stay where they are.
    """
    known = {one.file for one in record.checkpoints}
    found = []
    for file in sorted(run.output_dir.iterdir()):
        named = parse_file_name(file.name)
        if not named or named.output_name != record.output_name or named.kind == "epoch" or file.name in known:
            continue
        if named.number is not None and named.number <= step and _is_of(run, file):
            seen = inspect(file)
            found.append(SavedCheckpoint(named.number, file.name, seen.size_bytes, seen.sha256, seen.problem))
        else:
            at = named.number or record.plan.total_steps or 0
            found.append(SavedCheckpoint(at, file.name, file.stat().st_size, "", "not of the resumed training"))
    return found


def _refused(reason: str, run: RunDirectory, remedy: str = _START_ANEW) -> PresetError:
    return PresetError(f"can't resume: {reason}", where=str(run.path), remedy=remedy)
