"""The checkpoints of a training, found in its output directory and read no further than their headers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from spyke_kohya.engine.filenames import CheckpointKind, FileName, parse_file_name
from spyke_kohya.errors import UsageError
from spyke_kohya.files import sha256_of
from spyke_kohya.formats.tensor_file import TensorFileError, read_header
from spyke_kohya.rank.result import Candidate
from spyke_kohya.rank.training_info import Facts, facts_from_metadata, steps_in
from spyke_kohya.record.record import Record

OVERWRITTEN = "it was overwritten since this run saved it"


@dataclass(frozen=True)
class FoundCheckpoint:
    """A network file on the disk. ``step`` is None while unknown; ``problem`` says why it can't be used, or is empty.

    ``sha256`` is that of the record of its run, empty where there is none.
    """

    file: Path
    output_name: str
    kind: CheckpointKind
    step: int | None
    problem: str = ""
    facts: Facts = field(default_factory=Facts)
    sha256: str = ""

    @property
    def readable(self) -> bool:
        return not self.problem


def find_checkpoints(directory: Path, name: str | None = None) -> list[FoundCheckpoint]:
    """All checkpoints in ``directory`` with one output name, by step; unreadable ones are there, with their problem.

    Raises UsageError when the directory holds several output names and ``name`` doesn't choose one of them.
    """
    found = _read_all(directory)
    names = _names(found)
    if name is None and len(names) > 1:
        raise UsageError(
            f"checkpoints of {len(names)} trainings here: {', '.join(names)}",
            where=str(directory),
            remedy="choose one with --name, e.g. --name " + names[0],
        )
    chosen = [checkpoint for checkpoint in found if name in (None, checkpoint.output_name)]
    return sorted(chosen, key=lambda one: (one.step is None, one.step or 0, one.file.name))


def recorded(checkpoints: Iterable[FoundCheckpoint], record: Record, directory: Path) -> list[FoundCheckpoint]:
    """Return the checkpoints as their run's record knows them: by their true steps, with the problems that were found.

    sd-scripts counts the steps of a resumed run from 1 in the files' own metadata, and the record has read each tensor.
    A file that was overwritten since has that as its problem.
    """
    found = {one.file: one for one in checkpoints}
    for saved in record.checkpoints:
        file = directory / saved.file
        if file.is_file():
            one = found.get(file) or read_checkpoint(file)
            problem, sha256 = saved.problem, saved.sha256
            if _is_another(file, saved.size_bytes, sha256, record.ended_at):
                problem, sha256 = OVERWRITTEN, ""
            found[file] = replace(one, step=saved.step, problem=one.problem or problem, sha256=sha256)
    return sorted(found.values(), key=lambda one: (one.step is None, one.step or 0, one.file.name))


def output_names(directory: Path) -> list[str]:
    """Return the output names of the trainings that left checkpoints in ``directory``."""
    return _names(_read_all(directory))


def read_checkpoint(path: Path) -> FoundCheckpoint:
    """One checkpoint, from its header alone: no tensor is read."""
    parsed = parse_file_name(path.name) or FileName(path.stem, "final", None)
    try:
        metadata = read_header(path).metadata
    except TensorFileError as problem:
        reason = f"not a readable safetensors file: {problem}"
        return FoundCheckpoint(path, parsed.output_name, parsed.kind, _step_in_name(parsed), reason)
    named = _named(path, parsed, metadata)
    step = steps_in(metadata) or _step_in_name(named)
    return FoundCheckpoint(path, named.output_name, named.kind, step, facts=facts_from_metadata(metadata))


def merged_facts(checkpoints: Iterable[FoundCheckpoint]) -> Facts:
    """Return what the checkpoints' metadata say about their training, the latest first."""
    facts = Facts()
    for checkpoint in sorted(checkpoints, key=lambda one: one.step or 0, reverse=True):
        facts = facts.or_else(checkpoint.facts)
    return facts


def _read_all(directory: Path) -> list[FoundCheckpoint]:
    return [read_checkpoint(path) for path in sorted(directory.glob("*.safetensors"))]


def _names(checkpoints: Iterable[FoundCheckpoint]) -> list[str]:
    return sorted({checkpoint.output_name for checkpoint in checkpoints})


def place(
    checkpoints: Iterable[FoundCheckpoint], steps_per_epoch: int | None, last_step: int | None
) -> list[FoundCheckpoint]:
    """Give a step to checkpoints whose name has only an epoch, or that are the final one (``--no_metadata``)."""
    return [_placed(one, steps_per_epoch, last_step) for one in checkpoints]


def one_per_step(checkpoints: Iterable[FoundCheckpoint]) -> list[Candidate]:
    """Return one candidate a step: the last step's file is the final one, any other's the step's own.

    A step whose file was overwritten has a candidate without one.
    """
    by_step: dict[int, list[FoundCheckpoint]] = {}
    for one in checkpoints:
        if one.step is not None and (one.readable or one.problem == OVERWRITTEN):
            by_step.setdefault(one.step, []).append(one)
    last = max(by_step, default=0)
    return [_first_of(step, twins, final_first=step == last) for step, twins in sorted(by_step.items())]


def _first_of(step: int, twins: list[FoundCheckpoint], *, final_first: bool) -> Candidate:
    kinds = ("final", "step", "epoch") if final_first else ("step", "epoch", "final")
    files = [twin for kind in kinds for twin in twins if twin.kind == kind and twin.readable]
    if not files:
        return Candidate(step)
    return Candidate(step, files[0].file, tuple(twin.file for twin in files[1:]), files[0].sha256)


def _is_another(file: Path, size_bytes: int, sha256: str, ended_at: object) -> bool:
    """Tell whether a file is not the one of this size and hash. Only one that changed after the run's end is hashed."""
    about = file.stat()
    if about.st_size != size_bytes:
        return True
    try:
        ended = datetime.fromisoformat(str(ended_at)).timestamp()
    except ValueError:  # it runs, or its end was not recorded
        return False
    return bool(sha256) and about.st_mtime > ended and sha256_of(file) != sha256


def _placed(checkpoint: FoundCheckpoint, steps_per_epoch: int | None, last_step: int | None) -> FoundCheckpoint:
    if checkpoint.step is not None or not checkpoint.readable:
        return checkpoint
    parsed = parse_file_name(checkpoint.file.name)
    if checkpoint.kind == "final" and last_step is not None:
        return replace(checkpoint, step=last_step)
    if parsed and parsed.kind == "epoch" and parsed.number and steps_per_epoch is not None:
        return replace(checkpoint, step=parsed.number * steps_per_epoch)
    return replace(checkpoint, problem="its step is not known: it has no ss_steps in its metadata")


def _named(path: Path, parsed: FileName, metadata: Mapping[str, str]) -> FileName:
    """Return the name as its metadata explain it: an output name may itself end like an epoch's file."""
    if metadata.get("ss_output_name") == path.stem:
        return FileName(path.stem, "final", None)
    return parsed


def _step_in_name(named: FileName) -> int | None:
    return named.number if named.kind == "step" else None
