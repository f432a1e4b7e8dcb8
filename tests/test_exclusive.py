"""One run an output directory: what the lock and the records tell, and what neither does."""

import json

import pytest

from spyke_kohya.record.exclusive import live_run, output_lock, stale_runs
from tests.recorded import record_run


@pytest.fixture
def elsewhere(tmp_path):
    """A run that is on record as running, by a process number of another container."""
    run = record_run(tmp_path, "first", stamp="20260220-101530", dip_at=60)
    record = json.loads((run / "run.json").read_text())
    record |= {"status": "running", "started_at": "2026-02-20T10:15:30", "wrapper": {"pid": 1, "started": "1.0@1"}}
    (run / "run.json").write_text(json.dumps(record))
    return run


def test_of_a_process_that_can_not_be_seen_the_lock_tells(elsewhere):
    output_dir = elsewhere.parents[1]
    with output_lock(output_dir):
        assert [stale.run.path for stale in stale_runs(output_dir)] == [elsewhere]


def test_without_a_lock_a_process_that_can_not_be_seen_counts_as_one_that_runs(elsewhere):
    output_dir = elsewhere.parents[1]
    assert live_run(output_dir) == ""
    assert live_run(output_dir, or_unknown=True) == f"{elsewhere.name}, process 1, since 2026-02-20T10:15:30,"
