"""The table of docs/reliability.md and the tests beside this one are the same list."""

import re
from pathlib import Path

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "reliability.md"


def test_every_fault_has_its_test_and_every_test_its_row():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", DOCUMENT.read_text(encoding="utf-8"))
    files = [file for file in HERE.glob("test_*.py") if file != Path(__file__)]
    there = {(file.name, test) for file in files for test in re.findall(r"^def (test_\w+)", file.read_text(), re.M)}
    assert len(named) == len(set(named)) > 30
    assert set(named) == there
