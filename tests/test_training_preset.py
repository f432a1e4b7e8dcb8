"""The training preset's model: whatever is wrong is said at once, with its place and what to do."""

import math
from pathlib import Path

import pytest
import toml
from preset_schemas import dataset_schema, training_schema

from spyke_kohya.engine.options import RESERVED, train_network_options
from spyke_kohya.presets.training import REQUIRED, Expect, Launch, parse_training_preset

PRESETS = Path(__file__).parents[1] / "presets"
NEEDED = {
    "pretrained_model_name_or_path": "base.safetensors",
    "output_dir": "output",
    "output_name": "x",
    "network_module": "networks.lora",
}


def document(**changes):
    return {"dataset": "d", "launch": {"target": "mps"}, "train_network": dict(NEEDED)} | changes


def faults(**changes):
    preset, findings = parse_training_preset(document(**changes), "p.toml")
    assert (preset is None) == bool(findings)
    return [(finding.code, finding.where) for finding in findings]


@pytest.mark.parametrize("name", ["spyke_plasma_v1", "spyke_plasma_v2", "demo"])
def test_the_project_s_own_presets_have_no_faults(name):
    read = toml.loads((PRESETS / f"{name}.toml").read_text(encoding="utf-8"))
    preset, findings = parse_training_preset(read, name)
    assert findings == []
    assert preset.options == read["train_network"]
    assert preset.effective_options.keys() == train_network_options().keys()


def test_what_is_not_said_has_its_default():
    preset, _ = parse_training_preset(document(), "p.toml")
    assert preset.launch == Launch(target="mps", num_cpu_threads_per_process=4, engine=None)
    assert preset.expect == Expect(total_steps=None, trigger=None)
    assert preset.effective_options["max_train_steps"] == 1600


def test_all_faults_are_said_at_once():
    broken = {
        "datset": "d",
        "launch": {"target": "metal", "thread": 4},
        "expect": {"total_steps": 0, "trigger": ""},
        "train_network": {"learning_rat": 1, "network_dim": "32", "resume": "x", "save_precision": "fp8"},
    }
    preset, findings = parse_training_preset(broken, "p.toml")
    assert preset is None
    assert sorted((finding.code, finding.where) for finding in findings) == [
        ("schema.bad-choice", "p.toml: [train_network] save_precision"),
        ("schema.missing-key", "p.toml: [train_network] network_module"),
        ("schema.missing-key", "p.toml: [train_network] output_dir"),
        ("schema.missing-key", "p.toml: [train_network] output_name"),
        ("schema.missing-key", "p.toml: [train_network] pretrained_model_name_or_path"),
        ("schema.missing-key", "p.toml: dataset"),
        ("schema.reserved-option", "p.toml: [train_network] resume"),
        ("schema.unknown-key", "p.toml: [launch] thread"),
        ("schema.unknown-key", "p.toml: [train_network] learning_rat"),
        ("schema.unknown-key", "p.toml: datset"),
        ("schema.wrong-type", "p.toml: [expect] total_steps"),
        ("schema.wrong-type", "p.toml: [expect] trigger"),
        ("schema.wrong-type", "p.toml: [launch] target"),
        ("schema.wrong-type", "p.toml: [train_network] network_dim"),
    ]
    assert all(finding.remedy and finding.message for finding in findings)
    messages = " ".join(finding.message for finding in findings)
    assert "did you mean `dataset`?" in messages
    assert "did you mean `learning_rate`?" in messages


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dataset": 5}, "expected text in quotes, got the whole number 5"),
        ({"launch": 5}, "expected a table, got the whole number 5"),
        ({"train_network": "x"}, "expected a table, got the text 'x'"),
        ({"expect": {"total_steps": "9"}}, "expected a whole number, got the text '9'"),
    ],
)
def test_a_wrong_value_is_described_as_in_a_dataset_preset(changes, expected):
    _, (finding,) = parse_training_preset(document(**changes), "p.toml")
    assert finding.message == expected


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_every_number_is_finite(number):
    assert faults(
        samples={"strengths": [1.0, number], "scale": number}, train_network=NEEDED | {"unet_lr": number}
    ) == [
        ("schema.wrong-type", "p.toml: [samples.strengths] 1"),
        ("schema.wrong-type", "p.toml: [samples] scale"),
        ("schema.wrong-type", "p.toml: [train_network] unet_lr"),
    ]


@pytest.mark.parametrize("name", RESERVED)
def test_what_belongs_to_the_launcher_is_refused_with_its_reason(name):
    preset, (finding,) = parse_training_preset(document(train_network=NEEDED | {name: "x"}), "p.toml")
    assert preset is None
    assert (finding.code, finding.remedy) == ("schema.reserved-option", RESERVED[name])


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("empty", [True, False])
def test_what_sd_scripts_can_not_do_without_must_be_said(name, empty):
    options = {key: value for key, value in NEEDED.items() if key != name} | ({name: ""} if empty else {})
    assert faults(train_network=options) == [("schema.missing-key", f"p.toml: [train_network] {name}")]


@pytest.mark.parametrize(
    ("changes", "code", "where"),
    [
        ({"launch": 5}, "schema.wrong-type", "p.toml: launch"),
        ({"launch": {}}, "schema.missing-key", "p.toml: [launch] target"),
        ({"expect": []}, "schema.wrong-type", "p.toml: expect"),
        ({"train_network": "x"}, "schema.wrong-type", "p.toml: train_network"),
        ({"dataset": ""}, "schema.wrong-type", "p.toml: dataset"),
        ({"dataset": ["a"]}, "schema.wrong-type", "p.toml: dataset"),
        (
            {"launch": {"target": "mps", "num_cpu_threads_per_process": 0}},
            "schema.wrong-type",
            "p.toml: [launch] num_cpu_threads_per_process",
        ),
        (
            {"launch": {"target": "mps", "num_cpu_threads_per_process": True}},
            "schema.wrong-type",
            "p.toml: [launch] num_cpu_threads_per_process",
        ),
        ({"expect": {"total_steps": 1840.0}}, "schema.wrong-type", "p.toml: [expect] total_steps"),
        ({"train_network": NEEDED | {"seed": {"a": 1}}}, "schema.wrong-type", "p.toml: [train_network] seed"),
        (
            {"train_network": NEEDED | {"network_args": ["--resume=x"]}},
            "schema.unsafe-value",
            "p.toml: [train_network] network_args",
        ),
    ],
)
def test_a_wrong_shape_is_one_fault_in_its_place(changes, code, where):
    assert faults(**changes) == [(code, where)]


@pytest.mark.parametrize("schema", [training_schema(), dataset_schema()])
def test_every_key_says_what_it_is_for(schema):
    for table in (schema, *schema["$defs"].values()):
        for name, entry in table["properties"].items():
            assert entry["description"], name
