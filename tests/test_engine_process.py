"""Processes, with real ones: cooperative, stubborn, orphaned, silent and loud."""

import os
import signal
import sys
from pathlib import Path

import pytest
from workplace import assert_gone

from spyke_kohya.errors import EngineError
from spyke_kohya.process.engine_process import LADDER, EngineProcess, Rung, ask

SHORT = tuple(Rung(rung.signal, 0.2) for rung in LADDER)
# deaf to all but SIGKILL; says so once it is
DEAF = """
import signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: print(signal.Signals(number).name, flush=True))
print("ready", flush=True)
while True: time.sleep(60)
"""
# starts a grandchild that holds the pipe and writes its pid and a line now and then, then ends or waits
PARENT = """
import subprocess, sys, time
child = '''
import os, sys, time
print("pid", os.getpid(), flush=True)
while True:
    if sys.argv[1] == "loud": print("step", flush=True)
    time.sleep(0.01)
'''
subprocess.Popen([sys.executable, "-c", child, sys.argv[1]])
if sys.argv[2] == "wait": time.sleep(60)
"""


def start(tmp_path: Path, program: str, *words: str, **more) -> EngineProcess:
    return EngineProcess([sys.executable, "-c", program, *words], env=dict(os.environ), cwd=tmp_path, **more)


def read_to_end(process: EngineProcess) -> bytes:
    return b"".join(iter(lambda: _next(process), b""))


def _next(process: EngineProcess) -> bytes:
    while (data := process.read(0.1)) is None:
        pass
    return data


def read_until(process: EngineProcess, word: bytes) -> bytes:
    seen = b""
    while word not in seen:
        seen += _next(process)
    return seen


def test_both_outputs_are_read_to_the_end_and_the_code_is_given(tmp_path):
    program = "import sys; print('out', flush=True); print('err', file=sys.stderr, flush=True); sys.exit(7)"
    process = start(tmp_path, program)
    assert read_to_end(process) == b"out\nerr\n"
    assert process.wait() == 7


def test_a_signal_s_death_is_a_negative_code(tmp_path):
    process = start(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert read_to_end(process) == b""
    assert process.wait() == -signal.SIGSEGV


def test_nothing_to_read_is_told_apart_from_the_end(tmp_path):
    with start(tmp_path, DEAF) as process:
        assert read_until(process, b"\n") == b"ready\n"
        assert process.read(0.01) is None


def test_the_child_leads_a_session_of_its_own(tmp_path):
    process = start(tmp_path, "import os; print(os.getpid(), os.getpgid(0), os.getsid(0))")
    assert read_to_end(process).split() == [str(process.pid).encode()] * 3
    process.wait()


def test_it_runs_where_and_with_what_it_is_told(tmp_path):
    program = "import os, sys; print(os.getcwd(), sorted(os.environ), sys.stdin.read())"
    process = EngineProcess([sys.executable, "-E", "-c", program], env={"ONLY": "this", "LC_CTYPE": "C"}, cwd=tmp_path)
    assert read_to_end(process).decode() == f"{tmp_path} ['LC_CTYPE', 'ONLY'] \n"
    process.wait()


def test_ten_megabytes_without_a_line_break_arrive_whole(tmp_path):
    process = start(tmp_path, "import sys; sys.stdout.write('x' * 10_000_000)")
    assert len(read_to_end(process)) == 10_000_000
    assert process.wait() == 0


def test_a_missing_program_and_a_missing_place_are_engine_errors(tmp_path):
    with pytest.raises(EngineError, match="No such file") as caught:
        EngineProcess([str(tmp_path / "none")], env={}, cwd=tmp_path)
    assert caught.value.where == str(tmp_path / "none")
    assert "doctor" in caught.value.remedy
    with pytest.raises(EngineError, match="No such file"):
        EngineProcess([sys.executable], env={}, cwd=tmp_path / "none")


def test_a_program_that_may_not_be_run_is_an_engine_error(tmp_path):
    script = tmp_path / "accelerate"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(EngineError, match="Permission denied"):
        EngineProcess([str(script)], env={}, cwd=tmp_path)


def test_the_ladder_goes_from_a_request_to_force():
    assert [rung.signal for rung in LADDER] == [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
    assert LADDER[0].patience_s >= 10


def test_one_that_is_deaf_is_killed_and_heard_to_the_last(tmp_path):
    process = start(tmp_path, DEAF, ladder=SHORT)
    read_until(process, b"\n")
    rungs, heard = [], []
    assert process.stop(rungs.append, heard.append, lambda: 0) == -signal.SIGKILL
    assert rungs == list(SHORT)
    assert b"".join(heard) == b"SIGINT\nSIGTERM\n"


def test_one_that_listens_needs_one_rung(tmp_path):
    program = """
import time
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("saving", flush=True)
"""
    process = start(tmp_path, program)
    read_until(process, b"\n")
    rungs, heard = [], []
    assert process.stop(rungs.append, heard.append, lambda: 0) == 0
    assert rungs == [LADDER[0]]
    assert b"".join(heard) == b"saving\n"


def test_asking_again_goes_to_the_next_rung_at_once(tmp_path):
    process = start(
        tmp_path, DEAF, ladder=(Rung(signal.SIGINT, 60), Rung(signal.SIGTERM, 60), Rung(signal.SIGKILL, 60))
    )
    read_until(process, b"\n")
    heard = []
    requests = lambda: 1 + b"".join(heard).count(b"\n")  # noqa: E731
    assert process.stop(lambda _: None, heard.append, requests) == -signal.SIGKILL
    assert b"".join(heard) == b"SIGINT\nSIGTERM\n"


def test_one_that_closed_its_output_and_runs_on_has_not_ended(tmp_path):
    program = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("ready", flush=True)
os.close(1); os.close(2)
time.sleep(60)
"""
    process = start(tmp_path, program, ladder=SHORT)
    read_until(process, b"\n")
    assert process.read(0.3) is None
    assert process.stop(lambda _: None, lambda _: None, lambda: 0) == -signal.SIGTERM


@pytest.mark.parametrize("noise", ["silent", "loud"])
def test_an_orphan_that_holds_the_pipe_is_ended(tmp_path, noise):
    process = start(tmp_path, PARENT, noise, "end", straggler_s=0.2)
    orphan = int(read_until(process, b"\n").split()[1])
    read_to_end(process)
    assert process.wait() == 0
    assert_gone(orphan)


def test_stopping_reaches_the_whole_group(tmp_path):
    process = start(tmp_path, PARENT, "silent", "wait")
    grandchild = int(read_until(process, b"\n").split()[1])
    process.stop(lambda _: None, lambda _: None, lambda: 0)
    assert_gone(grandchild)


def test_a_context_leaves_nothing_behind(tmp_path):
    with start(tmp_path, PARENT, "loud", "wait") as process:
        grandchild = int(read_until(process, b"\n").split()[1])
    assert_gone(process.pid)
    assert_gone(grandchild)


def test_a_helper_s_answer_is_whole(tmp_path):
    program = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    answer = ask([sys.executable, "-c", program], env={}, cwd=tmp_path, timeout_s=30)
    assert (answer.returncode, answer.stdout, answer.stderr) == (3, b"out\n", b"err\n")


def test_a_helper_that_is_slow_or_missing_is_an_engine_error(tmp_path):
    with pytest.raises(EngineError, match="no answer"):
        ask([sys.executable, "-c", "import time; time.sleep(60)"], env={}, cwd=tmp_path, timeout_s=0.2)
    with pytest.raises(EngineError, match="could not start"):
        ask([str(tmp_path / "none")], env={}, cwd=tmp_path, timeout_s=1)
