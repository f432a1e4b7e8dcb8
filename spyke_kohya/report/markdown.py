"""``summary.md``: a training's record as Markdown, whole enough to be pasted into a project's notes unchanged."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from spyke_kohya.rank.result import TrainingRanking
from spyke_kohya.report.data import ReportData
from spyke_kohya.report.plain_text import duration

_MARKUP = re.compile(r"([\\`*{}\[\]<>|#]|(?<!\w)_|_(?!\w))")


def summary_markdown(data: ReportData) -> str:
    """Return the whole summary; every name and text in it is escaped."""
    ranking = data.result.ranking if data.result else None
    sections = [
        [f"# {_text(data.title)}", "", _text(data.verdict)],
        ["## Performance", "", *_performance(data)],
        ["## Files", "", *_files(data, ranking)],
        ["## Loss table", "", *_losses(ranking), *_heldout(data)],
        ["## Decisions", "", *_decisions(data, ranking)],
        ["## Deviations from the plan", "", *_listed(map(_text, data.deviations), "None.")],
        ["## Issues met", "", *_listed(_issues(data), "None.")],
        ["## Next tests, in order", "", *_next_tests(data)],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _performance(data: ReportData) -> list[str]:
    record, result = data.record, data.record.result
    facts = {
        "status": _text(": ".join(filter(None, (record.status or "not recorded", record.reason)))),
        "started": _text(record.started_at or ""),
        "steps": "" if data.steps_run is None else str(data.steps_run),
        "duration": duration(result.duration_s) if result.duration_s is not None else "",
        "seconds a step": f"{result.seconds_per_step:.3g}" if result.seconds_per_step else "",
        "target": _text(record.target or ""),
        "machine": _text(record.machine.get("system", "")),
        "sd-scripts": _text(record.engine.commit or ""),
        "torch": _text(record.engine.packages.get("torch", "")),
    }
    return _markdown_table(["", ""], [[name, value] for name, value in facts.items() if value])


def _files(data: ReportData, ranking: TrainingRanking | None) -> list[str]:
    files = [row.candidate.file for row in ranking.by_step if row.candidate.file] if ranking else []
    rows = [[f"`{_code(file.name)}`", f"{file.stat().st_size / 1e6:.1f}"] for file in files]
    recorded = [["`run.json`, `console.log`, `losses.csv`, `command.sh`", ""]] if data.run else []
    if not rows:
        return ["No checkpoint file lies beside these losses."]
    where = data.run.path.name if data.run else data.output_dir.name
    return [f"In `{_code(where)}` and beside it:", "", *_markdown_table(["file", "MB"], rows + recorded)]


def _losses(ranking: TrainingRanking | None) -> list[str]:
    if ranking is None:
        return ["No losses on record."]
    rows = [
        [str(row.rank), str(row.step), f"{row.avr_loss:.4f}", f"{row.standard_error:.4f}", _tie(row.rank, row.tied)]
        for row in ranking.rows
    ]
    covers = f"the last {ranking.window} batches" if ranking.window else "an unknown number of batches"
    note = f"avr_loss is a mean over {covers}; tied: noise alone can explain that it is not the lowest."
    return [*_markdown_table(["rank", "step", "avr_loss", "± SE", ""], rows), "", note]


def _heldout(data: ReportData) -> list[str]:
    if data.heldout is None:
        return []
    rows = [
        [str(row.rank), str(row.step), f"{row.ratio:.4f}", f"{row.above_best:.4f}", _tie(row.rank, row.tied)]
        for row in data.heldout.rows
    ]
    trained = "the trained pictures alone, which ranks nothing"
    pictures = trained if data.heldout.ranks_nothing else f"{data.heldout.pictures} held-out pictures"
    head = f"Loss over that of the base model without a LoRA, on {pictures}:"
    return ["", head, "", *_markdown_table(["rank", "step", "loss / base", "above best", ""], rows)]


def _tie(rank: int, tied: bool) -> str:
    return "lowest" if rank == 1 else "tied" if tied else ""


def _decisions(data: ReportData, ranking: TrainingRanking | None) -> list[str]:
    if ranking is None:
        return ["None: there is nothing to rank."]
    roles = [f"{trial.role}: step {trial.candidate.step}" for trial in data.test_order if trial.role != "early"]
    expected = data.record.preset.document.expect.trigger
    trigger = [f"The trigger is `{_code(expected)}`."] if expected else []
    return _listed([*roles, *trigger, *map(_text, ranking.notes)], "None.")


def _issues(data: ReportData) -> Iterator[str]:
    for finding in data.record.findings:
        yield _text(f"{finding.severity} before the launch, {finding.where}: {finding.message}")
    for issue in data.issues:
        times = f" ({issue.count} times)" if issue.count > 1 else ""
        yield _text(f"{issue.at}: {issue.kind} {issue.text}{times}")


def _next_tests(data: ReportData) -> list[str]:
    if not data.test_order:
        return ["1. Train, or name the losses with `--losses FILE`."]
    trials = [
        f"{trial.role}: step {trial.candidate.step}"
        + (f", `{_code(trial.candidate.file.name)}`" if trial.candidate.file else "")
        for trial in data.test_order
    ]
    steps = [
        "the base model without a LoRA, with the prompts and seeds of all that follow",
        *trials,
        *([] if data.heldout else ["the losses on pictures that were not trained on: `spyke-kohya evaluate RUN`"]),
    ]
    return [f"{number}. {step}" for number, step in enumerate(steps, start=1)]


def _markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _listed(items: Iterable[str], nothing: str) -> list[str]:
    return [f"- {item}" for item in items] or [nothing]


def _text(text: str) -> str:
    """Return the text on one line, without markup and HTML."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Return the text as it may stand between backticks in a table's cell."""
    return " ".join(text.replace("`", "'").replace("|", "\\|").split())
