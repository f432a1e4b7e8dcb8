"""What is wrong with a preset and its dataset: each fault on real files, with its code, its words and its exit code."""

import os

import pytest
from workplace import make_workplace, write_base_model

from spyke_kohya.audit.examine import examine
from spyke_kohya.presets.loading import load


@pytest.fixture
def place(tmp_path):
    return make_workplace(tmp_path)


def findings_of(place, name="tiny", *settings):
    return list(examine(load(name, place.root, settings), place.root).findings)


def only_finding(place, name="tiny", *settings):
    (finding,) = findings_of(place, name, *settings)
    assert finding.where
    assert finding.remedy
    return finding


def rename_images(place, name):
    place.images.rename(place.images.with_name(name))
    data = place.root / "presets/data.toml"
    data.write_text(data.read_text().replace("1_spyke", name))


def test_a_sound_preset_and_its_dataset_have_no_faults(place):
    examined = examine(load("tiny", place.root), place.root)
    assert (examined.findings, examined.ok, examined.plan.total_steps) == ((), True, 16)
    assert examine(load("data", place.root), place.root).findings == ()


def test_repeats_stated_twice_are_an_error_until_the_steps_are_confirmed(place):
    rename_images(place, "10_spyke")
    place.change("tiny", expect={"total_steps": None})
    finding = only_finding(place)
    assert (finding.code, finding.severity) == ("repeats.stated-twice", "error")
    assert finding.where == "presets/data.toml: datasets[0].subsets[0].image_dir"
    assert "the folder 10_spyke says 10 repeats and num_repeats says 2" in finding.message
    assert "sd-scripts ignores the prefix beside a dataset config: each image is used 2 x an epoch" in finding.message
    place.change("tiny", expect={"total_steps": 16})
    assert only_finding(place).severity == "warning"


def test_an_ignored_prefix_is_an_error_until_the_steps_are_confirmed(place):
    rename_images(place, "10_spyke")
    data = place.root / "presets/data.toml"
    data.write_text(data.read_text().replace("num_repeats = 2\n", ""))
    place.change("tiny", expect={"total_steps": None})
    finding = only_finding(place)
    assert (finding.code, finding.severity) == ("repeats.prefix-ignored", "error")
    assert "no num_repeats is set" in finding.message
    assert "each image is used 1 x an epoch" in finding.message
    assert "num_repeats = 10" in finding.remedy
    place.change("tiny", expect={"total_steps": 8})
    assert only_finding(place).severity == "warning"


def test_a_wrong_expectation_confirms_nothing(place):
    rename_images(place, "10_spyke")
    place.change("tiny", expect={"total_steps": 160})
    assert [(finding.code, finding.severity) for finding in findings_of(place)] == [
        ("repeats.stated-twice", "error"),
        ("plan.unexpected-steps", "error"),
    ]


@pytest.mark.parametrize("name", ["1_spyke", "0_spyke", "spyke", "10spyke", "spyke_10_", "_10"])
def test_a_folder_that_promises_no_repeats_is_no_fault(place, name):
    rename_images(place, name)
    assert findings_of(place) == []


def test_steps_other_than_expected_are_explained(place):
    place.change("tiny", expect={"total_steps": 20})
    finding = only_finding(place)
    assert finding.code == "plan.unexpected-steps"
    assert "expected 20 steps, sd-scripts will take 16: 4 images x 2 repeats = 8" in finding.message


def test_captions_without_the_trigger_are_counted_and_the_first_is_named(place):
    for index in (1, 3):
        (place.images / f"{index}.txt").write_text("spyke picture, spyke")
    finding = only_finding(place)
    assert (finding.code, finding.severity) == ("captions.trigger-missing", "error")
    assert finding.message == "2 of 4 captions do not start with the trigger 'spyke'"
    assert finding.remedy == "put it first, followed by ',', in 1.txt and 1 more"


def test_a_caption_prefix_counts_as_the_caption_s_start(place):
    for index in range(4):
        (place.images / f"{index}.txt").write_text(f"picture {index}")
    place.change("data", general={"caption_prefix": "spyke,"})
    assert findings_of(place) == []


def test_a_regularisation_image_needs_no_trigger(place):
    reg = place.root / "dataset/reg"
    reg.mkdir()
    (place.images / "0.png").rename(reg / "0.png")
    (reg / "0.txt").write_text("somebody else")
    text = '\n[[datasets.subsets]]\nis_reg = true\nimage_dir = "dataset/reg"\n'
    with (place.root / "presets/data.toml").open("a") as file:
        file.write(text)
    place.change("tiny", expect={"total_steps": None})
    assert findings_of(place) == []


def test_missing_captions_are_a_warning_and_lack_the_trigger(place):
    (place.images / "2.txt").unlink()
    codes = [(finding.code, finding.severity) for finding in findings_of(place)]
    assert codes == [("captions.missing", "warning"), ("captions.trigger-missing", "error")]
    place.change("tiny", expect={"trigger": None})
    assert only_finding(place).message == "1 of 4 images have no .txt caption and train with an empty one"


@pytest.mark.parametrize(
    ("data", "code"), [(b"", "captions.empty"), (b"spyke, caf\xe9", "captions.not-utf8"), (None, "captions.missing")]
)
def test_a_caption_that_stops_sd_scripts_or_is_missing(place, data, code):
    place.change("tiny", expect={"trigger": None})
    caption = place.images / "1.txt"
    caption.unlink()
    if data is not None:
        caption.write_bytes(data)
    assert only_finding(place).code == code


def test_an_image_that_is_none_is_named(place):
    (place.images / "1.png").write_bytes(b"not a picture")
    assert [finding.code for finding in findings_of(place) if "1.png" in finding.where + finding.message]


def test_a_missing_and_an_empty_folder_are_dataset_faults(place):
    for name in ("a", "b"):
        (place.images / f"{name}.png").touch()
    place.images.rename(place.root / "elsewhere")
    missing = [finding.code for finding in findings_of(place)]
    place.images.mkdir()
    empty = [finding.code for finding in findings_of(place)]
    assert any(code.startswith("images.") for code in missing), missing
    assert any(code.startswith(("images.", "plan.no-images")) for code in empty), empty


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("conditioner.embedders.1.model.ln_final.weight", "is a SDXL model; train_network.py trains SD1.5 and SD2"),
        ("cond_stage_model.model.transformer.resblocks.0.ln_1.weight", "is an SD2 model"),
        ("double_blocks.0.img_attn.proj.weight", "is a FLUX model"),
    ],
)
def test_a_base_model_of_another_family(place, key, message):
    write_base_model(place.root / "base.safetensors", key)
    finding = only_finding(place)
    assert finding.code == "base.family"
    assert message in finding.message


def test_an_sd2_model_trains_with_v2_and_an_sd15_does_not(place):
    assert only_finding(place, "tiny", "train_network.v2=true").code == "base.family"
    write_base_model(place.root / "base.safetensors", "cond_stage_model.model.transformer.x")
    assert findings_of(place, "tiny", "train_network.v2=true") == []


def test_a_base_model_that_is_missing_cut_short_or_on_the_hub(place):
    base = place.root / "base.safetensors"
    base.write_bytes(base.read_bytes()[:-1])
    assert only_finding(place).code == "base.unreadable"
    base.unlink()
    assert only_finding(place).code == "base.missing"
    finding = only_finding(place, "tiny", "train_network.pretrained_model_name_or_path=runwayml/stable-diffusion-v1-5")
    assert (finding.code, finding.severity) == ("base.from-hub", "warning")


def test_a_path_of_another_person_s_home_is_missing_and_no_crash(place):
    setting = "train_network.pretrained_model_name_or_path=~no-such-user-here/base.safetensors"
    assert only_finding(place, "tiny", setting).code == "base.missing"


def test_an_output_directory_that_is_a_file(place):
    place.output.write_text("")
    finding = only_finding(place)
    assert (finding.code, finding.message) == ("output.not-a-directory", f"{place.output} is a file")
    assert only_finding(place, "tiny", "train_network.output_dir=output/deeper").code == "output.not-a-directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_directory_that_may_not_be_written(place):
    place.output.mkdir(mode=0o500)
    assert only_finding(place).code == "output.not-writable"


@pytest.mark.parametrize("name", ["a/b", "..", ".", "a\\\\b"])
def test_an_output_name_that_leaves_its_directory(place, name):
    assert only_finding(place, "tiny", f'train_network.output_name="{name}"').code == "output.name"


def test_a_name_too_long_for_any_disk_is_no_crash(place):
    long = "x" * 5000
    assert [f.code for f in findings_of(place, "tiny", f"train_network.output_dir={long}")] == []
    setting = f"train_network.pretrained_model_name_or_path={long}"
    assert only_finding(place, "tiny", setting).code == "base.missing"


def test_a_preset_with_faults_of_its_own_still_has_its_dataset_read(place):
    (place.images / "1.txt").write_bytes(b"")
    codes = [finding.code for finding in findings_of(place, "tiny", "train_network.learning_rat=1")]
    assert codes == ["schema.unknown-key", "captions.empty"]


def test_options_that_the_target_can_not_do_are_told(place):
    finding = only_finding(place, "tiny", "train_network.xformers=true")
    assert finding.code == "target.xformers"
    assert finding.message.startswith("on cpu: ")


def break_preset(place):
    place.change("tiny", train_network={"learning_rat": 1})


def break_captions(place):
    (place.images / "1.txt").write_bytes(b"\xff")


def break_image(place):
    (place.images / "1.png").write_bytes(b"no picture")


def break_folder(place):
    place.images.rename(place.root / "away")


def break_base(place):
    (place.root / "base.safetensors").unlink()


def break_output(place):
    place.output.write_text("")


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        (break_preset, 3),
        (break_base, 3),
        (break_output, 3),
        (break_captions, 4),
        (break_image, 4),
        (break_folder, 4),
    ],
)
def test_each_fault_has_its_exit_code_and_no_traceback(place, harm, code):
    harm(place)
    trained = place.spyke("train", "tiny")
    assert trained.returncode == code
    assert "Traceback" not in trained.stderr
    assert not (place.output / "runs").exists()


def test_an_engine_that_is_not_there_has_its_exit_code(place):
    done = place.spyke("train", "tiny", "--engine", "nowhere")
    assert done.returncode == 5
    assert "make engine" in " ".join(done.stderr.split())
    assert done.stdout == ""


@pytest.mark.parametrize("missing", ["engine", "python"])
def test_a_dry_run_names_the_place_where_a_missing_engine_would_be(place, missing):
    words = ("--engine", "nowhere") if missing == "engine" else ()
    python = {"SPYKE_ENGINE_PYTHON": str(place.root / "gone/bin/python")} if missing == "python" else {}
    done = place.spyke("train", "tiny", "--dry-run", *words, **python)
    assert done.returncode == 0
    assert done.stderr.count("[engine.missing]") == 1
    expected = place.root / ("nowhere/train_network.py" if missing == "engine" else "gone/bin/accelerate")
    assert str(expected) in done.stdout
    assert done.stdout.startswith("#!/bin/sh\n")
