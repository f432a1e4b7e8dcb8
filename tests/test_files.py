"""Hashing a file, and writing one whole: a reader sees the old or the new content, and nothing is left beside it."""

from __future__ import annotations

import hashlib
import resource
import signal
import subprocess
import sys

import pytest

from spyke_kohya.files import sha256_of, write_whole
from tests.commands import PROJECT


def test_a_hash_is_that_of_the_bytes_also_through_a_link(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    (tmp_path / "link").symlink_to("file")
    assert sha256_of(tmp_path / "file") == sha256_of(tmp_path / "link") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("content", ["ä\n", b"\x00\xff"])
def test_a_file_is_written_and_replaced_whole(tmp_path, content):
    for _ in range(2):
        write_whole(tmp_path / "file", content)
    written = content.encode() if isinstance(content, str) else content
    assert (tmp_path / "file").read_bytes() == written
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_name_of_the_greatest_length_can_be_written(tmp_path):
    write_whole(tmp_path / ("x" * 255), "text")
    assert [path.name for path in tmp_path.iterdir()] == ["x" * 255]


def test_a_full_disk_leaves_the_old_content_and_nothing_beside_it(tmp_path):
    (tmp_path / "file").write_text("old")
    code = "import sys; from pathlib import Path; from spyke_kohya.files import write_whole\n"
    code += f"write_whole(Path({str(tmp_path / 'file')!r}), 'n' * 10_000)"

    def small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    command = [sys.executable, "-B", "-c", code]
    done = subprocess.run(command, cwd=PROJECT, preexec_fn=small_disk, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "OSError" in done.stderr
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]
