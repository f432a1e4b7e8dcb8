"""Who runs on this machine; and a Mac that is kept awake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from workplace import assert_gone

from spyke_kohya.process.engine_process import EngineProcess
from spyke_kohya.process.process_table import (
    ProcessMark,
    end_group,
    is_marked,
    is_running,
    mark_of,
    members_of_group,
    working_directory,
)


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


def test_a_process_has_a_mark_as_long_as_it_runs(sleeper):
    mark = mark_of(sleeper.pid)
    assert mark is not None
    assert is_running(mark) is True
    sleeper.kill()
    while mark_of(sleeper.pid):  # until it is a zombie
        pass
    assert is_running(mark) is False
    sleeper.wait()
    assert is_running(mark) is False


@pytest.mark.parametrize(("seconds", "runs"), [(0, True), (2, True), (-2, True), (60, False), (-60, False)])
def test_a_later_process_of_the_same_number_is_another(sleeper, seconds, runs):
    """The clock that tells a start may have been corrected by a little."""
    started_s, at, namespace = mark_of(sleeper.pid).started.partition("@")
    assert is_running(ProcessMark(sleeper.pid, f"{float(started_s) + seconds}{at}{namespace}")) is runs


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="a mark of this form was written where there is /proc")
@pytest.mark.parametrize(("ticks", "runs"), [(0, True), (60 * os.sysconf("SC_CLK_TCK"), False)])
def test_a_mark_of_an_earlier_version_is_read_as_clock_ticks(sleeper, ticks, runs):
    stat = Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(") ")[2].split()
    assert is_running(ProcessMark(sleeper.pid, f"8f6cdf0a+{int(stat[19]) + ticks}")) is runs


@pytest.mark.parametrize("started", ["Sun Nov 22 12:16:01 2026", "x", "8f6cdf0a+x"])
def test_a_start_in_an_unknown_form_is_never_taken_for_another(sleeper, started):
    assert is_running(ProcessMark(sleeper.pid, started)) is None
    sleeper.kill()
    sleeper.wait()
    assert is_running(ProcessMark(sleeper.pid, started)) is False


def test_a_number_of_another_namespace_says_nothing(sleeper):
    started = mark_of(sleeper.pid).started.partition("@")[0]
    assert is_running(ProcessMark(sleeper.pid, f"{started}@1")) is None
    sleeper.kill()
    sleeper.wait()
    assert is_running(ProcessMark(sleeper.pid, f"{started}@1")) is None


def test_the_members_of_a_group_are_known_by_their_commands(sleeper):
    (member,) = members_of_group(sleeper.pid)
    assert (member.pid, member.group) == (sleeper.pid, sleeper.pid)
    assert "a-sleeper" in member.command
    assert is_marked(member, mark_of(sleeper.pid))
    assert not is_marked(member, mark_of(os.getpid()))
    assert not is_marked(member, ProcessMark(sleeper.pid, "x"))


def test_where_a_process_runs_is_known(sleeper):
    assert working_directory(sleeper.pid) == Path.cwd()
    sleeper.kill()
    sleeper.wait()
    assert working_directory(sleeper.pid) is None


def test_a_group_is_ended(sleeper):
    assert end_group(sleeper.pid)
    assert members_of_group(sleeper.pid) == []
    assert end_group(sleeper.pid)


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
