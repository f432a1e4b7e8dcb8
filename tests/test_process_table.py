"""Who runs on this machine, by /proc or by ps; and a Mac that is kept awake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from workplace import assert_gone

from spyke_kohya.process import process_table as processes
from spyke_kohya.process.engine_process import EngineProcess
from spyke_kohya.process.process_table import (
    ProcessMark,
    end_group,
    is_running,
    mark_of,
    members_of_group,
    working_directory,
)


@pytest.fixture(params=["proc", "ps"])
def table(request, monkeypatch, tmp_path):
    if request.param == "proc" and not processes._PROC.joinpath("self/stat").exists():
        pytest.skip("no /proc here")
    if request.param == "ps":
        monkeypatch.setattr(processes, "_PROC", tmp_path)
    return request.param


@pytest.fixture
def sleeper():
    """A child that leads a group of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()", "a-sleeper"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout.readline() == b"up\n"
    yield process
    process.kill()
    process.communicate()


def test_a_process_has_a_mark_as_long_as_it_runs(table, sleeper):
    mark = mark_of(sleeper.pid)
    assert mark is not None
    assert mark.started
    assert is_running(mark)
    assert not is_running(ProcessMark(mark.pid, "another time"))
    sleeper.kill()
    while mark_of(sleeper.pid):  # until it is a zombie
        pass
    assert not is_running(mark)


def test_the_members_of_a_group_are_known_by_their_commands(table, sleeper):
    (member,) = members_of_group(sleeper.pid)
    assert (member.pid, member.group) == (sleeper.pid, sleeper.pid)
    assert "a-sleeper" in member.command


def test_where_a_process_runs_is_known(table, sleeper):
    assert working_directory(sleeper.pid) == Path.cwd()
    sleeper.kill()
    sleeper.wait()
    assert working_directory(sleeper.pid) is None


def test_a_group_is_ended(table, sleeper):
    assert end_group(sleeper.pid)
    assert members_of_group(sleeper.pid) == []
    assert end_group(sleeper.pid, patience_s=0.1)


def test_a_mac_is_kept_awake_as_long_as_the_engine_runs(tmp_path):
    note = tmp_path / "note"
    os.mkfifo(note)
    program = tmp_path / "caffeinate"
    program.write_text(f'#!/bin/sh\necho "$$ $@" > {note}\nexec sleep 60\n')
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    argv = [sys.executable, "-c", "import signal; signal.pause()"]
    with EngineProcess(argv, env=environment, cwd=tmp_path, awake=True) as process:
        pid, *words = note.read_text().split()
        assert words == ["-i", "-w", str(process.pid)]
    assert_gone(int(pid))


def test_a_machine_without_caffeinate_trains_too(tmp_path):
    with EngineProcess(["/bin/true"], env={"PATH": str(tmp_path)}, cwd=tmp_path, awake=True) as process:
        assert process.wait() == 0
