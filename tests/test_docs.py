"""Every command of the documentation, run as a reader would, in order, beside the output that it promises.

The tutorial comes first and leaves a workspace with a trained demo; the other pages go on there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser import browser  # noqa: F401 - a fixture
from tests.commands import PROJECT

DOCS = PROJECT / "docs"
PAGES = ("how-to-deploy.md", "how-to-compare-runs.md", "how-to-repeat-a-run.md")


class Workspace:
    """A folder with the project's presets and scripts, and a shell that finds ``spyke-kohya``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copytree(PROJECT / "presets", root / "presets", ignore=shutil.ignore_patterns("*.lock"))
        (root / "scripts").symlink_to(PROJECT / "scripts")
        command = root / "bin" / "spyke-kohya"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m spyke_kohya.cli "$@"\n')
        command.chmod(0o755)
        path = f"{command.parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = os.environ | {"PATH": path, "PYTHONPATH": str(PROJECT), "COLUMNS": "100"}

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["sh", "-ec", command], cwd=self.root, env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def follow(self, page: str) -> int:
        """Run every block of a page; each line below a command is part of what it prints. Gives how many were run."""
        commands = 0
        for block in re.findall(r"```console\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL):
            told = ""
            for line in block.splitlines():
                if line.startswith("$ "):
                    told = " ".join(self.run(line[2:]).split())
                    commands += 1
                else:
                    assert " ".join(line.split()) in told, f"{page} promises {line!r}, and it was {told!r}"
        return commands


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("docs"))
    assert made.follow("tutorial.md") == 12
    return made


def test_the_tutorial_ends_with_a_report_and_a_deployed_file(workspace):
    (run,) = (workspace.root / "output/loras/demo/runs").iterdir()
    assert (run / "report.html").stat().st_size > 1_000_000
    assert "# " in (run / "summary.md").read_text()
    assert (workspace.root / "ComfyUI/models/loras/spyke_demo.safetensors").is_file()


def test_its_report_opens_in_a_browser(workspace, browser):  # noqa: F811
    (page,) = (workspace.root / "output/loras/demo/runs").glob("*/report.html")
    browser.open(page)
    browser.wait_for("document.documentElement.dataset.drawn")
    assert [line for line in browser.console() if '"[bokeh ' not in line] == []
    assert browser.run("return document.querySelectorAll('#chart-loss *').length") > 0


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_does_what_it_says(workspace, page):
    assert workspace.follow(page) > 0


def test_every_page_with_commands_is_followed():
    pages = {path.name for path in DOCS.glob("*.md") if "```console" in path.read_text(encoding="utf-8")}
    assert pages == {"tutorial.md", *PAGES}


def test_links_between_the_pages_lead_somewhere():
    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
