"""The Python interface: the example of its page as it stands there, and what happens to who leaves it early."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from spyke_kohya import api
from spyke_kohya.engine.events import Header
from spyke_kohya.errors import NothingToRank, PresetError
from tests.commands import PROJECT
from tests.small_training import write_training

PAGE = PROJECT / "docs" / "how-to-python.md"


@pytest.fixture
def work(tmp_path, tiny_base, monkeypatch) -> Path:
    write_training(tmp_path, tiny_base)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("work")
def test_the_example_of_the_page_gives_every_step_once_and_every_checkpoint(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, str(PAGE), "exec"), names)  # what a reader would paste
    told = capsys.readouterr().out
    assert "8 steps planned" in told
    assert [int(step) for step in re.findall(r"^(\d+) \S+$", told, re.MULTILINE)] == list(range(1, 9))
    assert re.findall("^saved (.*)$", told, re.MULTILINE) == [
        "small-step00000004.safetensors",
        "small-step00000008.safetensors",
        "small.safetensors",
    ]
    assert names["training"].outcome.status == "finished"
    assert "cannot show generalisation" in told
    with pytest.raises(NothingToRank, match="was not evaluated"):
        api.evaluation(names["training"].run_directory)


@pytest.mark.usefixtures("work")
def test_a_training_that_is_left_is_interrupted():
    preset = api.load_preset("small", settings=["train_network.max_train_steps=4000"])
    training = api.train(preset, environment=os.environ)
    events = iter(training)
    seen = [next(events) for _ in range(3)]
    assert any(isinstance(event, Header) for event in seen)
    events.close()
    assert training.outcome is not None
    assert training.outcome.status == "interrupted"
    assert [thread.name for thread in threading.enumerate()] == ["MainThread"]


def test_a_preset_with_errors_is_refused_with_all_of_them(work):
    (work / "presets/small.toml").write_text('dataset = "nowhere"\n[launch]\ntarget = "cpu"\n[train_network]\n')
    preset = api.load_preset("small")
    assert len(api.validate(preset)) > 3
    for refused in (lambda: api.plan(preset), lambda: api.train(preset, environment={})):
        with pytest.raises(PresetError, match="output_name"):
            refused()
