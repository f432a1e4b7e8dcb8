"""What ``programs/evaluate.py`` is asked, and which of the rows already measured still answer it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spyke_kohya.engine.release import Engine
from spyke_kohya.errors import EngineError, NothingToRank, PresetError
from spyke_kohya.evaluate.evaluated_pictures import Picture
from spyke_kohya.evaluate.recorded_run import RecordedRun
from spyke_kohya.files import sha256_of, write_whole
from spyke_kohya.rank.heldout_file import (
    BASE,
    BASE_AGAIN,
    COLUMNS,
    SCHEMA_VERSION,
    MeasuredLoss,
    has_evaluation,
    name_in,
    read_record,
    read_rows,
)
from spyke_kohya.rank.result import Candidate
from spyke_kohya.record.rundir import RunDirectory

SEED = 0
REPLICATES = 1
TIMESTEPS = 8
QUICK_TIMESTEPS = 4
NOISE_STEPS = 1000

# What every loss depends on; a row measured under other settings answers another question.
_SETTINGS = (
    *("base", "base_bytes", "vae", "v2", "v_parameterization", "zero_terminal_snr", "clip_skip", "max_token_length"),
    *("tokenizer_cache_dir", "seed", "device", "engine_commit"),
)


@dataclass(frozen=True)
class Request:
    """``document`` is the program's JSON; ``rows`` are those that needn't be measured again."""

    document: Mapping[str, Any]
    rows: tuple[MeasuredLoss, ...]

    @property
    def forwards(self) -> int:
        """U-Net predictions that are needed in all: checkpoints and twice the base, times pictures, times timesteps."""
        return len(self._keys())

    @property
    def missing(self) -> int:
        """How many of them are still to be made."""
        return len(set(self._keys()) - {row.key for row in self.rows})

    def _keys(self) -> list[tuple[str, str, int, int]]:
        document = self.document
        return [
            (checkpoint["id"], picture["id"], timestep, replicate)
            for checkpoint in document["checkpoints"]
            for picture in document["pictures"]
            for timestep in document["timesteps"]
            for replicate in range(document["replicates"])
        ]


def midpoints(count: int) -> list[int]:
    """Return the middle timestep of each of ``count`` equal parts of 0 to 999."""
    return [int((part + 0.5) * NOISE_STEPS / count) for part in range(count)]


def make_request(subject: RecordedRun, pictures: Sequence[Picture], engine: Engine, *, quick: bool = False) -> Request:
    """Return what to measure: the base, every checkpoint, and the base once more, which shows the noise of the device.

    Rows of ``evaluate.csv`` that were measured under the same settings are kept. Raises EngineError for a network that
    isn't sd-scripts' own LoRA, PresetError where the base model is gone.
    """
    settings = subject.settings
    module = settings.get("network_module")
    if module != "networks.lora":
        raise EngineError(f"can't evaluate a {module} network", remedy="evaluate measures networks.lora alone")
    if not subject.base.exists():
        raise PresetError("the base model of this run is not there any more", where=str(subject.base))
    run = subject.run
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "engine": str(engine.directory),
        "engine_commit": engine.commit,
        "base": str(subject.base),
        "base_bytes": _size_bytes(subject.base),
        "vae": _text(subject.path_in("vae")),
        "v2": bool(settings.get("v2")),
        "v_parameterization": bool(settings.get("v_parameterization")),
        "zero_terminal_snr": bool(settings.get("zero_terminal_snr")),
        "clip_skip": settings.get("clip_skip"),
        "max_token_length": settings.get("max_token_length"),
        "tokenizer_cache_dir": _text(subject.path_in("tokenizer_cache_dir")),
        "checkpoints": [_base(BASE), *(_checkpoint(run, one) for one in subject.candidates), _base(BASE_AGAIN)],
        "pictures": [picture.to_dict() for picture in pictures],
        "timesteps": midpoints(QUICK_TIMESTEPS if quick else TIMESTEPS),
        "replicates": REPLICATES,
        "seed": SEED,
        "device": subject.target,
        "out": str(run.evaluation),
    }
    return Request(document, tuple(_rows_that_hold(run, document)))


def write_request(run: RunDirectory, request: Request) -> None:
    """Put the request and the rows that still hold where the program finds them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(row.cells() for row in request.rows)
    write_whole(run.evaluation, text.getvalue())
    write_whole(run.evaluation_request, json.dumps(request.document, indent=1, ensure_ascii=False) + "\n")


def _rows_that_hold(run: RunDirectory, document: Mapping[str, Any]) -> list[MeasuredLoss]:
    """Read every row that was measured under these settings: each says itself what it was measured on.

    An evaluation under other settings, or one that can't be read, is set aside under a number: it was paid for.
    """
    if not has_evaluation(run):
        return []
    try:
        record = read_record(run)
        before = record.model_extra or {}
        if all(before.get(name) == document[name] for name in _SETTINGS):
            return list({row.key: row for row in read_rows(run, record)[0]}.values())
    except NothingToRank:
        pass
    _set_aside(run)
    return []


def _set_aside(run: RunDirectory) -> None:
    number = next(n for n in range(1, 10_000) if not run.evaluation.with_name(f"evaluate-{n}.csv").exists())
    for file in (run.evaluation, run.evaluation_request):
        file.rename(file.with_name(f"evaluate-{number}{file.suffix}"))


def _base(name: str) -> dict[str, Any]:
    return {"name": name, "id": name, "path": None, "step": None, "sha256": None}


def _checkpoint(run: RunDirectory, candidate: Candidate) -> dict[str, Any]:
    assert candidate.file is not None
    sha256 = sha256_of(candidate.file)
    name = name_in(run.output_dir, candidate.file)
    return {"name": name, "id": sha256, "path": str(candidate.file), "step": candidate.step, "sha256": sha256}


def _size_bytes(base: Path) -> int:
    files = [base] if base.is_file() else [file for file in base.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _text(path: Path | None) -> str | None:
    return str(path) if path else None
