"""`spyke-kohya new`: what a folder itself says, in presets that are sound as they are written."""

import zlib

import pytest
import toml
from PIL import Image
from test_audit_whole import TOOLS, Folder, picture
from workplace import make_workplace, write_base_model

from spyke_kohya.audit.examine import examine
from spyke_kohya.errors import DatasetError, PresetError
from spyke_kohya.presets.loading import load
from spyke_kohya.start.new import NewPreset, base_of_others, new_presets
from spyke_kohya.start.writing import write_new


@pytest.fixture
def root(tmp_path):
    write_base_model(tmp_path / "base.safetensors")
    (tmp_path / "presets").mkdir()
    make_folder(tmp_path, "heldout-images", 1)
    return tmp_path


def make_folder(root, name, count, first="spyke", size=(512, 512), text=None):
    folder = Folder(root / name, first)
    for index in range(count):
        folder.add(f"{index}.jpg", picture(zlib.crc32(name.encode()) + index, size), text)


def made(root, name="mine", **asked):
    write_new(new_presets(NewPreset(name, "images", "base.safetensors", "cpu", **asked), root))
    return examine(load(name, root), root, tools=TOOLS)


@pytest.mark.parametrize(
    ("count", "seen", "steps"), [(1, 400, 400), (5, 400, 400), (23, 920, 920), (40, 1000, 960), (300, 1000, 900)]
)
def test_pictures_are_seen_forty_times_within_limits(root, count, seen, steps):
    make_folder(root, "images", count, size=(256, 256))
    examined = made(root)
    assert examined.findings == ()
    assert examined.plan.total_steps == steps
    assert abs(examined.plan.total_steps - seen) <= 0.12 * seen


def test_the_run_of_record_comes_out_as_it_was(root):
    make_folder(root, "images", 23)
    make_folder(root, "reg", 100, "girl", (64, 64))
    examined = made(root, reg="reg")
    assert (examined.plan.total_steps, examined.loaded.training.expect.total_steps) == (1840, 1840)
    assert {finding.code for finding in examined.findings} == {"images.upscaled"}  # the small ones made here


def test_the_trigger_is_the_first_tag_of_all_captions(root):
    make_folder(root, "images", 3, "moss_v1")
    examined = made(root)
    assert examined.loaded.training.expect.trigger == "moss_v1"
    assert examined.loaded.training.evaluate.heldout_dir == "heldout-images"
    assert examined.loaded.dataset.general.keep_tokens == 1
    assert examined.findings == ()


def test_without_captions_the_name_or_the_given_trigger_stands_for_all(root):
    make_folder(root, "images", 3, text="none")
    assert made(root).findings == ()
    document = toml.loads((root / "presets/mine_dataset.toml").read_text())
    assert document["datasets"][0]["subsets"][0]["class_tokens"] == "mine"
    assert made(root, name="other", trigger="moss").loaded.training.expect.trigger == "moss"


def test_small_pictures_lower_the_resolution(root):
    make_folder(root, "images", 3, size=(200, 220))
    examined = made(root)
    assert examined.loaded.dataset.datasets[0].resolution == 192
    assert examined.findings == ()


def test_nothing_that_stands_is_written_over(root):
    make_folder(root, "images", 2)
    made(root)
    before = (root / "presets/mine.toml").read_text()
    with pytest.raises(PresetError, match="there is such a file already"):
        made(root, trigger="other")
    assert (root / "presets/mine.toml").read_text() == before


def test_a_folder_without_pictures_is_refused_and_the_one_below_named(root):
    make_folder(root, "images/1_deeper", 1)
    with pytest.raises(DatasetError) as told:
        new_presets(NewPreset("mine", "images", "base.safetensors", "cpu"), root)
    assert "images/1_deeper" in told.value.remedy
    (root / "broken").mkdir()
    (root / "broken/x.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match="none of its images can be read"):
        new_presets(NewPreset("mine", "broken", "base.safetensors", "cpu"), root)


def test_the_base_of_another_preset_is_taken(root):
    assert base_of_others(root) is None
    (root / "presets/a.toml").write_text("broken [")
    (root / "presets/b.toml").write_text('[train_network]\npretrained_model_name_or_path = "~/b.safetensors"\n')
    assert base_of_others(root) == "~/b.safetensors"


def test_the_command_writes_both_and_says_what_is_next(tmp_path):
    place = make_workplace(tmp_path)
    Image.new("RGB", (64, 64), "teal").save(place.images / "more.png")
    words = ("new", "fresh", "--images", "dataset/1_spyke", "--base", "base.safetensors", "--target", "cpu")
    done = place.spyke(*words)
    assert (done.returncode, done.stdout.count("\n")) == (0, 2)
    assert "spyke-kohya plan fresh" in done.stderr
    assert place.spyke(*words).returncode == 3
    assert place.spyke("new", "../x", "--images", "dataset/1_spyke").returncode == 2
