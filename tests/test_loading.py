"""From a preset's name to a preset: missing, broken and strange files, and what --set puts over them."""

import json

import pytest
import toml
from workplace import make_workplace

from spyke_kohya.errors import UsageError
from spyke_kohya.presets.loading import apply_setting, find_preset, load

DOCUMENT = {
    "expect": {"total_steps": 1840},
    "train_network": {"max_train_epochs": 4, "learning_rate": 1e-4, "output_name": "v1"},
}


@pytest.fixture
def place(tmp_path):
    return make_workplace(tmp_path)


def only_finding(loaded):
    assert not loaded.ok
    (finding,) = loaded.findings
    return finding


def test_a_bare_name_and_a_path_mean_the_same_file(place):
    for name in ("tiny", "presets/tiny.toml", str(place.root / "presets/tiny.toml")):
        loaded = load(name, place.root)
        assert (loaded.path, loaded.kind, loaded.ok) == (place.root / "presets/tiny.toml", "training", True)
        assert loaded.dataset_path == place.root / "presets/data.toml"
    assert load("data", place.root).kind == "dataset"


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_preset("~/p.toml", tmp_path / "elsewhere") == tmp_path / "p.toml"
    assert find_preset("~no-such-user-here/p.toml", tmp_path) == tmp_path / "~no-such-user-here/p.toml"


def test_a_dot_in_a_bare_name_is_no_suffix(tmp_path):
    assert find_preset("spyke.v1", tmp_path) == tmp_path / "presets/spyke.v1.toml"


def test_a_misspelt_name_is_answered_with_the_nearest(place):
    finding = only_finding(load("tinny", place.root))
    assert finding.code == "schema.no-such-preset"
    assert finding.remedy == "did you mean `tiny`?"


def test_a_name_like_no_other_is_answered_with_all(place):
    assert only_finding(load("qqqqq", place.root)).remedy == "there are: data, tiny"


def test_without_any_presets_a_file_is_asked_for(tmp_path):
    assert only_finding(load("x", tmp_path)).remedy == "name its file"


def test_broken_toml_is_told_with_its_line(place):
    (place.root / "presets/tiny.toml").write_text('dataset = "d"\n\n[launch\ntarget = "mps"\n')
    finding = only_finding(load("tiny", place.root))
    assert finding.code == "schema.broken"
    assert finding.where == "presets/tiny.toml, line 3"


def test_broken_json_is_told_with_its_line(place):
    (place.root / "presets/x.json").write_text('{\n"a": }')
    finding = only_finding(load("presets/x.json", place.root))
    assert (finding.code, finding.where) == ("schema.broken", "presets/x.json, line 2")


@pytest.mark.parametrize("text", ["= 5", "a", "[a]\n[a]", 'a = "\\q"', "a = 1 2", "\0"])
def test_no_broken_toml_raises(place, text):
    (place.root / "presets/tiny.toml").write_text(text)
    assert only_finding(load("tiny", place.root)).code == "schema.broken"


@pytest.mark.parametrize("name", ["deep.toml", "deep.json"])
def test_brackets_without_end_are_broken_too(place, name):
    (place.root / "presets" / name).write_text(("a = " if name.endswith("toml") else "") + "[" * 3000)
    assert only_finding(load(f"presets/{name}", place.root)).code == "schema.broken"


def test_json_that_is_no_table_is_broken(place):
    (place.root / "presets/x.json").write_text("[]")
    assert only_finding(load("presets/x.json", place.root)).message == "the file holds no table"


def test_a_file_that_is_not_utf8_is_told_with_the_byte(place):
    (place.root / "presets/tiny.toml").write_bytes(b'dataset = "sp\xffke"')
    finding = only_finding(load("tiny", place.root))
    assert (finding.code, finding.message) == ("schema.not-utf8", "the file is not UTF-8: byte 13 is 0xff")


def test_a_directory_in_a_file_s_place_is_told(place):
    (place.root / "presets/folder.toml").mkdir()
    finding = only_finding(load("folder", place.root))
    assert (finding.code, finding.message) == ("schema.unreadable", "the file can't be read: Is a directory")


@pytest.mark.parametrize("name", ["x" * 5000, "nul\0.toml"])
def test_a_name_that_no_file_can_have_is_told(place, name):
    assert only_finding(load(name, place.root)).code == "schema.unreadable"


def test_all_faults_of_both_files_are_told_at_once(place):
    place.change("tiny", train_network={"learning_rat": 1}, launch={"targett": "cpu"})
    place.change("data", general={"shuffle_captions": True})
    loaded = load("tiny", place.root)
    assert [(finding.code, finding.where.partition(":")[0]) for finding in loaded.findings] == [
        ("schema.unknown-key", "presets/tiny.toml"),
        ("schema.unknown-key", "presets/tiny.toml"),
        ("schema.unknown-key", "presets/data.toml"),
    ]
    assert (loaded.training, loaded.dataset) == (None, None)


@pytest.mark.parametrize("dataset", ["daata", "presets/none.toml", "x\0y"])
def test_a_dataset_that_is_not_there_is_a_fault_of_the_preset(place, dataset):
    text = (place.root / "presets/tiny.toml").read_text().replace('"presets/data.toml"', json.dumps(dataset))
    (place.root / "presets/tiny.toml").write_text(text)
    finding = only_finding(load("tiny", place.root))
    assert finding.where == "presets/tiny.toml: dataset"
    assert finding.code in ("schema.no-such-preset", "schema.unreadable")


def test_a_dataset_must_have_a_name_that_sd_scripts_reads(place):
    (place.root / "presets/data.toml").rename(place.root / "presets/data.conf")
    text = (place.root / "presets/tiny.toml").read_text().replace("data.toml", "data.conf")
    (place.root / "presets/tiny.toml").write_text(text)
    assert only_finding(load("tiny", place.root)).code == "schema.file-name"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("train_network.output_name=v2", "v2"),
        ('train_network.output_name="v2"', "v2"),
        ("train_network.output_name = a b ", "a b"),
        ("train_network.output_name=a=b", "a=b"),
        ("train_network.output_name=5", 5),
        ("train_network.output_name=1e-5", 1e-5),
        ("train_network.output_name=true", True),
        ('train_network.output_name=["a", "b"]', ["a", "b"]),
    ],
)
def test_a_setting_is_toml_or_else_plain_text(setting, value):
    assert apply_setting(DOCUMENT, setting)["train_network"]["output_name"] == value
    assert DOCUMENT["train_network"]["output_name"] == "v1"


def test_an_empty_value_takes_a_key_away():
    assert "output_name" not in apply_setting(DOCUMENT, "train_network.output_name=")["train_network"]
    assert apply_setting(DOCUMENT, "train_network.absent=") == DOCUMENT


def test_setting_steps_takes_epochs_away_and_expects_them():
    changed = apply_setting(DOCUMENT, "train_network.max_train_steps=20")
    assert changed["train_network"] == {"max_train_steps": 20, "learning_rate": 1e-4, "output_name": "v1"}
    assert changed["expect"] == {"total_steps": 20}


def test_setting_epochs_takes_steps_away_and_expects_what_was_expected():
    document = DOCUMENT | {"train_network": {"max_train_steps": 20, "output_name": "v1"}}
    changed = apply_setting(document, "train_network.max_train_epochs=2")
    assert changed["train_network"] == {"max_train_epochs": 2, "output_name": "v1"}
    assert changed["expect"] == {"total_steps": 1840}


def test_who_expected_nothing_still_does():
    changed = apply_setting({"train_network": {}}, "train_network.max_train_steps=20")
    assert changed == {"train_network": {"max_train_steps": 20}}


@pytest.mark.parametrize("name", ["max_train_steps", "max_train_epochs"])
def test_taking_away_steps_or_epochs_leaves_the_other(name):
    changed = apply_setting(DOCUMENT, f"train_network.{name}=")
    assert changed["train_network"].get("max_train_epochs") == (None if name == "max_train_epochs" else 4)
    assert changed["expect"] == {"total_steps": 1840}


def test_an_expectation_of_a_wrong_shape_is_left_to_the_model():
    changed = apply_setting({"expect": 5, "train_network": {}}, "train_network.max_train_steps=20")
    assert changed["expect"] == 5


@pytest.mark.parametrize("setting", ["", "x", "=5", "a..b=1", "a.=1", ".a=1"])
def test_what_is_no_setting_is_refused(setting):
    with pytest.raises(UsageError, match="not of the form"):
        apply_setting(DOCUMENT, setting)


@pytest.mark.parametrize("setting", ["train_network.output_name.x=1", "train_network.output_name.x.y=1"])
def test_a_key_of_what_is_no_table_is_refused(setting):
    with pytest.raises(UsageError, match=r"train_network\.output_name.* is not a table"):
        apply_setting(DOCUMENT, setting)


def test_settings_are_checked_as_the_file_is_and_kept_in_its_text(place):
    loaded = load("tiny", place.root, ["train_network.seed=7", "launch.target=mps"])
    assert loaded.training.options["seed"] == 7
    assert toml.loads(loaded.text)["launch"] == {"target": "mps"}
    assert only_finding(load("tiny", place.root, ["train_network.seed=seven"])).code == "schema.wrong-type"


def test_without_settings_the_text_is_the_file_s(place):
    assert load("tiny", place.root).text == (place.root / "presets/tiny.toml").read_text()
