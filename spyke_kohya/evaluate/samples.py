"""Pictures to judge by: the tied checkpoints and the base, with the same prompts and seeds, by sd-scripts' gen_img.py.

It decides what is rendered and has it rendered; the contact sheet is laid out in ``report/drawings.py``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spyke_kohya.engine.command import program_environment
from spyke_kohya.engine.release import Engine
from spyke_kohya.errors import EngineError, PresetError
from spyke_kohya.evaluate.recorded_run import RecordedRun
from spyke_kohya.presets.training import Samples
from spyke_kohya.process.helper_program import run_program
from spyke_kohya.rank.result import Candidate

SCRIPT = "gen_img.py"
PROMPTS_NAME = "prompts.txt"
LOG_NAME = "samples.log"
_LONGEST_SLUG = 40


@dataclass(frozen=True)
class Cell:
    """One picture: ``file`` is its name, ``line`` what gen_img.py is asked for, with the multiplier of every LoRA."""

    file: str
    line: str


@dataclass(frozen=True)
class Grid:
    """What is rendered, row by row: a label for each row (a prompt, and a strength where there are several) and for
    each column (the base, then the checkpoints by step). The base's pictures are the same at every strength."""

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]
    settings: Samples
    checkpoints: tuple[Candidate, ...]

    @property
    def pictures(self) -> list[Cell]:
        """Every picture once."""
        return list({cell.file: cell for row in self.cells for cell in row}.values())


def lay_out(settings: Samples, checkpoints: Sequence[Candidate], base: Path) -> Grid:
    """Return the grid of these checkpoints, which all have files.

    Raises PresetError for prompts that can't be passed on.
    """
    if not settings.prompts:
        remedy = 'add prompts to the preset: [samples.prompts], then "a label" = "a prompt", and name it with --preset'
        raise PresetError("there are no prompts to render", where="[samples]", remedy=remedy)
    for label, prompt in [*settings.prompts.items(), ("negative", settings.negative)]:
        _check_prompt(label, prompt)
    ordered = tuple(sorted(checkpoints, key=lambda one: one.step))
    identities = [str(base), *(_identity(one) for one in ordered)]
    rows, cells = [], []
    for label, prompt in settings.prompts.items():
        for strength in settings.strengths:
            rows.append(label if len(settings.strengths) == 1 else f"{label} (strength {strength:g})")
            cells.append(tuple(_row_of(settings, label, prompt, strength, ordered, identities)))
    columns = ("base", *(f"step {one.step}" for one in ordered))
    return Grid(columns, tuple(rows), tuple(cells), settings, ordered)


def render(
    subject: RecordedRun,
    grid: Grid,
    engine: Engine,
    *,
    inherited: Mapping[str, str],
    listen: Callable[[int, int], None],
) -> Path:
    """Render what isn't there yet, in one process for all checkpoints; gives the folder of the pictures.

    ``listen`` is called with the number of pictures that are there, and that are needed.
    Raises EngineError when the engine has no gen_img.py or it fails.
    """
    folder = subject.run.samples
    missing = [cell for cell in grid.pictures if not (folder / cell.file).is_file()]
    listen(0, len(missing))
    if not missing:
        return folder
    script = engine.directory / SCRIPT
    if not script.is_file():
        raise EngineError(
            f"this engine has no {SCRIPT}",
            where=str(engine.directory),
            remedy="name sd-scripts' directory with --engine or SPYKE_ENGINE",
        )
    folder.mkdir(exist_ok=True)
    prompts = folder / PROMPTS_NAME
    prompts.write_text("".join(f"{cell.line}\n" for cell in missing), encoding="utf-8")
    started = iter(range(len(missing) + 1))
    run_program(
        [str(engine.python), str(script), *_options(subject, grid, prompts)],
        environment=program_environment(subject.target, inherited),
        cwd=engine.directory,
        log=subject.run.path / LOG_NAME,
        on_line=lambda line: listen(next(started, len(missing)), len(missing)) if "filename: " in line else None,
    )
    lost = [cell.file for cell in missing if not (folder / cell.file).is_file()]
    if lost:
        raise EngineError(
            f"{SCRIPT} ended without {len(lost)} of {len(missing)} pictures",
            where=str(subject.run.path / LOG_NAME),
            remedy="read that log",
        )
    return folder


def _options(subject: RecordedRun, grid: Grid, prompts: Path) -> list[str]:
    settings, of_run = grid.settings, subject.settings
    count = len(grid.checkpoints)
    options = ["--v2"] if of_run.get("v2") else ["--v1"]
    options += [f"--{name}" for name in ("v_parameterization", "zero_terminal_snr") if of_run.get(name)]
    for name, value in (
        ("--ckpt", subject.base),
        ("--vae", subject.path_in("vae")),
        ("--clip_skip", of_run.get("clip_skip")),
        ("--tokenizer_cache_dir", subject.path_in("tokenizer_cache_dir")),
        ("--from_file", prompts),
        ("--outdir", prompts.parent),
        ("--sampler", settings.sampler),
        ("--steps", settings.steps),
        ("--scale", settings.scale),
        ("--W", settings.width),
        ("--H", settings.height),
    ):
        options += [name, str(value)] if value is not None else []
    files = [str(one.file) for one in grid.checkpoints]
    return [
        *options,
        "--no_half_vae",
        "--sdpa",
        *("--network_module", *["networks.lora"] * count),
        *("--network_weights", *files),
        *("--network_mul", *["0"] * count),
    ]


def _row_of(
    settings: Samples,
    label: str,
    prompt: str,
    strength: float,
    checkpoints: Sequence[Candidate],
    identities: Sequence[str],
) -> list[Cell]:
    cells = []
    for column in range(len(checkpoints) + 1):
        multipliers = [f"{strength:g}" if column == index + 1 else "0" for index in range(len(checkpoints))]
        what = f"{prompt} --d {settings.seed}"
        what += f" --n {settings.negative}" if settings.negative else ""
        who = "base" if column == 0 else f"step{checkpoints[column - 1].step:08d}"
        at = "" if column == 0 else f"-{strength:g}"
        key = f"{identities[column]} {at} {what} {settings.model_dump(exclude={'prompts', 'strengths'})}"
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        file = f"{_slug(label)}-{who}{at}-{digest}.png"
        cells.append(Cell(file, f"{what} --am {','.join(multipliers)} --f {file}"))
    return cells


def _check_prompt(label: str, prompt: str) -> None:
    if "\n" in prompt or " --" in prompt or prompt.startswith(("#", "--")):
        raise PresetError(
            f"{SCRIPT} would read options in this prompt: {prompt!r}",
            where=f"[samples] {label}",
            remedy="write it on one line, without ` --` and without # at its start",
        )


def _identity(candidate: Candidate) -> str:
    assert candidate.file is not None
    about = candidate.file.stat()
    return f"{candidate.file.name} {about.st_size} {about.st_mtime_ns}"


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:_LONGEST_SLUG] or "prompt"
