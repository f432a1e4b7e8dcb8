"""The record of a run: whatever is wrong with it costs that one thing, by name."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest

from spyke_kohya.errors import SpykeError
from spyke_kohya.evaluate.recorded_run import read_recorded_run
from spyke_kohya.process.process_table import mark_of
from spyke_kohya.rank.directory import rank_best
from spyke_kohya.record.exclusive import live_run, mark_stale, stale_runs
from spyke_kohya.record.record import Record, SavedCheckpoint, parse_record, read_record, write_record
from spyke_kohya.record.redact import Redactor
from spyke_kohya.record.rundir import RunDirectory
from spyke_kohya.record.runs import deletable, find_runs
from spyke_kohya.repeat.replay import differences, recorded_preset
from spyke_kohya.report.data import read_report_data
from spyke_kohya.report.html import report_html
from spyke_kohya.report.markdown import summary_markdown
from spyke_kohya.report.overview import summarize
from spyke_kohya.run.lossfile import history
from spyke_kohya.run.watch import follow
from spyke_kohya.ship.choose import choose, place_on_record
from tests.commands import spyke
from tests.recorded import record_run

NOW = datetime(2026, 3, 1)
WRONG = (None, True, -1, 10**30, 0.5, "x", [], [1], [[{}]], {}, {"x": [1]})
BROKEN = {
    "an empty file": "",
    "null": "null",
    "a list": "[]",
    "half of it": '{"status": "finis',
    "no text": "\udcff",
    "a number of 5,000 digits": f'{{"plan": {"1" * 5000}}}',
    "deep nesting": "[" * 100_000,
}


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    states = [{"epoch": 1, "step": 40, "path": str(tmp_path / "output/spyke/spyke-000001-state")}]
    saved = [{"step": 20, "file": "spyke-step00000020.safetensors", "size_bytes": 1, "sha256": "", "problem": "cut"}]
    more = {"states": states, "checkpoints": saved, "resumed_from": {"run": "20260101-000000-spyke", "step": 40}}
    identity = {"settings": "0" * 64, "images": "1" * 64}
    process = {"pid": 4_000_000, "started": "x"}
    finding = {"code": "a.b", "severity": "warning", "where": "here", "message": "m", "remedy": "r"}
    more |= {"identity": identity, "wrapper": process, "engine_process": process, "findings": [finding]}
    return RunDirectory(record_run(tmp_path, evaluate={"heldout_dir": "h"}, samples={"prompts": {"a": "b"}}, **more))


def put(run: RunDirectory, document: object) -> None:
    run.record.write_text(document if isinstance(document, str) else json.dumps(document), errors="surrogateescape")


def read_everywhere(run: RunDirectory) -> None:
    """Have every reader of records read this run: each goes on, or refuses as this program refuses."""
    output_dir = run.output_dir

    def subject() -> None:
        found = read_recorded_run(run.path)
        _ = found.engine_dir, found.heldout_dir, found.base, found.path_in("vae")

    for read in (
        subject,
        lambda: summarize(run).to_dict(),
        lambda: rank_best(run.path),
        lambda: rank_best(output_dir),
        lambda: choose(run.path),
        lambda: place_on_record(output_dir),
        lambda: recorded_preset(run),
        lambda: differences(run, run),
        lambda: list(follow(run, lambda: pytest.fail("it is waited for"))),
        lambda: (live_run(output_dir), stale_runs(output_dir), history(run)),
        lambda: deletable(output_dir, output_dir / "scratch", NOW),
        lambda: [render(read_report_data(run.path)) for render in (summary_markdown, report_html)],
    ):
        with suppress(SpykeError):
            read()


def places_in(value: object, *above: str | int) -> list[tuple[str | int, ...]]:
    """The places of all values, but of a list's items the first one only."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    return [*([above] if above else []), *(place for key, item in items for place in places_in(item, *above, key))]


def test_a_whole_record_has_no_problems_and_is_written_as_it_was_read(run):
    before = json.loads(run.record.read_text())
    record = read_record(run)
    assert record.problems == ()
    write_record(run, record, Redactor({}, Path("/")))
    after = json.loads(run.record.read_text())
    assert {key: after[key] for key in before if key != "result"} == {k: v for k, v in before.items() if k != "result"}
    assert after.keys() == before.keys()


@pytest.mark.parametrize("name", sorted(Record.model_fields.keys() - {"problems"}))
def test_a_wrong_value_costs_no_other_value(run, name):
    document, whole = json.loads(run.record.read_text()), read_record(run)
    for wrong in WRONG:
        put(run, document | {name: wrong})
        record = read_record(run)
        assert all(problem.startswith(f"{name}") for problem in record.problems)
        others = Record.model_fields.keys() - {name, "problems"}
        assert [other for other in others if getattr(record, other) != getattr(whole, other)] == []
        assert record.problems or getattr(record, name) != getattr(whole, name) or document.get(name) == wrong


def test_whatever_is_wrong_anywhere_every_reader_goes_on_or_refuses_by_name(run):
    document = json.loads(run.record.read_text())
    places = [place for place in places_in(document) if place[0] != "argv"]
    for number, (*above, last) in enumerate(places[:: max(1, len(places) // 12)]):
        spoiled = json.loads(json.dumps(document))
        table = spoiled
        for key in above:
            table = table[key]
        table[last] = WRONG[number % len(WRONG)]
        put(run, spoiled)
        read_everywhere(run)


def test_a_wrong_item_of_a_list_costs_that_item():
    good, bad = {"step": 1, "file": "a", "size_bytes": 2}, {"step": "x", "file": 3}
    record = parse_record({"checkpoints": [good, bad, good, bad, good | {"file": "b"}]})
    assert [saved.file for saved in record.checkpoints] == ["a", "a", "b"]
    assert [problem.partition(":")[0] for problem in record.problems] == [
        "checkpoints.1.size_bytes",
        "checkpoints.3.size_bytes",
    ]


def test_a_wrong_option_costs_that_option():
    record = parse_record({"settings": {"network_dim": [4], "learning_rate": 1e-4, "an_option_of_tomorrow": [4]}})
    assert record.settings == {"learning_rate": 1e-4, "an_option_of_tomorrow": [4]}
    assert record.problems[0].startswith("settings.network_dim: expected ")


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_a_record_that_can_not_be_read_is_named_and_hides_no_other_run(tmp_path, run, text):
    record_run(tmp_path, "other", stamp="20260221-101530")
    put(run, text)
    assert (read_record(run).status, read_record(run).problems[0][:9]) == ("unreadable", "run.json:")
    listed = spyke("runs", tmp_path)
    assert (listed.returncode, "other  finished" in " ".join(listed.stdout.split(" ")).replace("   ", "  ")) == (
        0,
        True,
    )
    assert f"{run.path.name}: not read: run.json: " in listed.stdout
    read_everywhere(run)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda file: file.symlink_to("/dev/zero")])
def test_only_a_regular_file_is_opened(tmp_path, run, make):
    run.record.unlink()
    make(run.record)
    assert [found.path.name for found in find_runs(tmp_path)] == [run.path.name]
    assert summarize(run).problems == ("run.json: it is not a regular file",)
    read_everywhere(run)


COMMANDS = (
    ["runs"], ["runs", "--gc"], ["rank", "RUN"], ["report", "RUN"], ["watch", "RUN"],
    ["deploy", "RUN", "--to", "comfy"], ["evaluate", "RUN"], ["samples", "RUN"],
    ["train", "--from", "RUN", "--dry-run"],
)  # fmt: skip


@pytest.mark.parametrize("document", ["[]", {"plan": None, "result": 0, "engine": {"packages": ""}}])
def test_no_command_calls_a_bad_record_a_fault_of_its_own(tmp_path, run, document):
    whole = json.loads(run.record.read_text())
    put(run, document if isinstance(document, str) else whole | document)
    (tmp_path / "comfy/models/loras").mkdir(parents=True)
    for words in COMMANDS:
        done = spyke(*(str(run.path) if word == "RUN" else word for word in words), cwd=tmp_path)
        assert (done.returncode != 1, "Traceback" not in done.stderr) == (True, True), done.stderr


def test_a_newer_record_is_read_as_far_as_it_goes_and_keeps_its_keys_when_it_is_rewritten(run):
    document = json.loads(run.record.read_text()) | {"status": "running", "schema_version": 2, "tomorrow": {"a": [1]}}
    put(run, document | {"target": {"a": "kind of tomorrow"}})
    record = read_record(run)
    assert record.problems == (
        "target: input should be 'mps', 'cuda' or 'cpu'",
        "schema_version: 2 is newer than this spyke-kohya knows",
    )
    assert (record.plan.total_steps, record.output_name) == (120, "spyke")
    (stale,) = stale_runs(run.output_dir)
    mark_stale(stale, NOW)
    after = json.loads(run.record.read_text())
    assert (after["status"], after["tomorrow"], after["target"]) == ("stale", {"a": [1]}, {"a": "kind of tomorrow"})


def test_a_path_begins_with_this_machines_home(run, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(run, {"cwd": "~/loras", "argv": ["--output_dir=~/loras"]})
    assert read_record(run).cwd == str(tmp_path / "loras")


def test_a_run_that_says_that_it_was_resumed_from_itself_has_a_history(run):
    put(run, {"resumed_from": {"run": run.path.name, "step": 40}})
    assert len(history(run)) == 120


def test_what_is_wrong_with_a_record_is_said(run):
    put(run, json.loads(run.record.read_text()) | {"plan": {"total_steps": "many"}})
    problem = "plan.total_steps: input should be a valid integer"
    assert problem in spyke("runs", run.output_dir).stdout
    assert json.loads(spyke("runs", run.output_dir, "--json").stdout)[0]["problems"] == [problem]
    assert problem in json.loads(spyke("rank", run.path, "--json").stdout)["problems"]
    spyke("report", run.path)
    assert "the record: unreadable plan.total" in (run.path / "summary.md").read_text().replace("\\", "")


def test_the_first_record_of_a_changed_value_is_checked_as_a_file_is():
    record = Record().changed(checkpoints=[SavedCheckpoint(1, "a", 2)], wrapper=mark_of(os.getpid()))
    assert record.to_dict()["checkpoints"] == [{"step": 1, "file": "a", "size_bytes": 2, "sha256": "", "problem": ""}]
    assert record.changed(status=3).problems == ("status: input should be a valid string",)


def test_an_estimate_needs_no_record_of_the_pace(run):
    put(run, json.loads(run.record.read_text()) | {"result": {"steps": 0, "duration_s": 1.0}})
    assert read_record(run).result.seconds_per_step is None
