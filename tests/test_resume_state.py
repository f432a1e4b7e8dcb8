"""Where a run can be gone on with, and where not."""

import json
from dataclasses import replace

import pytest
from workplace import make_workplace

from spyke_kohya.audit.examine import examine
from spyke_kohya.errors import PresetError
from spyke_kohya.presets.loading import load
from spyke_kohya.run.resume import find_segment


def test_a_state_at_the_end_of_the_training_leaves_nothing_to_train(tmp_path):
    place = make_workplace(tmp_path, images=1)
    place.change("tiny", train_network={"max_train_epochs": 3}, expect={"total_steps": 24})
    assert place.spyke("train", "tiny", "--json", FAKE_SCENARIO="killed", FAKE_AT="12").returncode
    plan = examine(load("tiny", place.root), place.root).plan
    identity = json.loads((place.only_run() / "run.json").read_text())["identity"]
    assert find_segment(place.output, "tiny", plan, identity).step == 8
    assert find_segment(place.output, "tiny", replace(plan, total_steps=9), identity).step == 8
    with pytest.raises(PresetError, match="its newest state is at the end of the training"):
        find_segment(place.output, "tiny", replace(plan, total_steps=8), identity)
