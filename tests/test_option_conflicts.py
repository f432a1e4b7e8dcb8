"""The audit of options, base model, output directory and machine: against each other, the plan and the target."""

import hashlib
import json
import struct
import subprocess
import sys

import pytest
from workplace import SD15_KEY, make_workplace

from spyke_kohya.audit.base import file_hash
from spyke_kohya.audit.examine import AuditTools, examine
from spyke_kohya.audit.memory import needed_bytes
from spyke_kohya.audit.output import check_in_use
from spyke_kohya.engine.options import parser_defaults
from spyke_kohya.presets.loading import load
from spyke_kohya.presets.resolved import ResolvedDataset
from spyke_kohya.process.process_table import mark_of, physical_memory_bytes


@pytest.fixture
def place(tmp_path):
    return make_workplace(tmp_path)


def findings_of(place, *settings, **tools):
    return list(examine(load("tiny", place.root, settings), place.root, tools=AuditTools(**tools)).findings)


def only(place, *settings, **tools):
    (finding,) = findings_of(place, *settings, **tools)
    assert finding.remedy
    return finding


def write_big_base(path, numbers=1_000_000_000, dtype="F16"):
    """A sparse file with the header of a model of that many numbers."""
    size = {"F16": 2, "F8_E4M3": 1}[dtype]
    header = json.dumps({SD15_KEY: {"dtype": dtype, "shape": [numbers], "data_offsets": [0, numbers * size]}}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + numbers * size)


@pytest.mark.parametrize(
    ("name", "value", "code", "severity", "words"),
    [
        ("lr_warmup_steps", "17", "options.warmup-refused", "error", "the scheduler constant takes no warm-up"),
        ("lr_warmup_steps", "100.0", "options.warmup-form", "error", "write 100"),
        ("save_every_n_steps", "17", "options.saves-too-rarely", "warning", "none is saved on the way"),
        ("network_alpha", "8", "options.alpha-above-dim", "warning", "the LoRA is scaled by 2"),
        ("learning_rate", "0.1", "options.learning-rate", "warning", "0.1 is outside the usual 5e-06 to 0.002"),
        ("text_encoder_lr", "[1e-4, 3.0]", "options.learning-rate", "warning", "3 is outside"),
    ],
)
def test_options_that_do_not_go_together(place, name, value, code, severity, words):
    finding = only(place, f"train_network.{name}={value}")
    assert (finding.code, finding.severity) == (code, severity)
    assert finding.where == f"presets/tiny.toml: [train_network] {name}"
    assert words in finding.message + finding.remedy


def test_a_warm_up_as_long_as_the_run_and_one_that_is_a_share(place):
    cosine = "train_network.lr_scheduler=cosine"
    assert only(place, cosine, "train_network.lr_warmup_steps=16").code == "options.warmup-too-long"
    assert findings_of(place, cosine, "train_network.lr_warmup_steps=15") == []
    assert findings_of(place, cosine, "train_network.lr_warmup_steps=0.5") == []


def test_the_default_learning_rate_is_doubted_and_an_adaptive_optimizer_wants_one(place):
    assert "2e-06 is sd-scripts default" in only(place, "train_network.learning_rate=").message
    assert findings_of(place, "train_network.learning_rate=", "train_network.unet_lr=1e-4") == []
    prodigy = "train_network.optimizer_type=Prodigy"
    assert "outside the usual 0.1 to 2" in only(place, prodigy).message
    assert findings_of(place, prodigy, "train_network.learning_rate=1.0") == []
    assert findings_of(place, "train_network.text_encoder_lr=0.0") == []  # that is how it is switched off


def test_a_split_or_a_batch_in_the_dataset_breaks_a_rule_of_the_target_too(place):
    safe = ("launch.target=mps", "train_network.sdpa=true")
    assert findings_of(place, *safe) == []
    file = place.root / "presets/data.toml"
    plain = file.read_text()
    file.write_text(plain.replace("batch_size = 1", "batch_size = 1\nvalidation_split = 0.5\nvalidation_seed = 1"))
    assert "target.validation" in [finding.code for finding in findings_of(place, *safe)]
    file.write_text(plain.replace("batch_size = 1", "batch_size = 600"))
    assert "target.batch-rows" in [finding.code for finding in findings_of(place, *safe)]


def test_augmented_images_can_not_be_cached_and_are_told_once(place):
    found = findings_of(place, "train_network.cache_latents=true", "train_network.color_aug=true")
    assert [finding.code for finding in found] == ["dataset.cache-latents"]


@pytest.mark.parametrize("name", ["m.ckpt", "m.pt", "m.bin"])
def test_a_pickle_is_refused_unless_allowed(place, name):
    (place.root / name).write_bytes(b"cos\nsystem\n.")
    setting = f"train_network.pretrained_model_name_or_path={name}"
    finding = only(place, setting)
    assert (finding.code, finding.severity) == ("base.pickle", "error")
    assert findings_of(place, setting, allow_pickle=True) == []


def test_eight_bit_weights_are_noted(place):
    write_big_base(place.root / "base.safetensors", 100, "F8_E4M3")
    finding = only(place)
    assert finding.code == "base.dtype"
    assert "holds weights as F8_E4M3" in finding.message


def test_a_preset_that_holds_nothing_out_is_doubted(place):
    place.change("tiny", evaluate={"heldout_dir": None})
    finding = only(place)
    assert (finding.code, finding.severity) == ("evaluate.no-heldout", "warning")


def test_a_range_for_face_crops_is_two_numbers(place):
    finding = only(place, "train_network.face_crop_aug_range='2.0'")
    assert (finding.code, finding.remedy) == ("dataset.face-crop-aug-range", 'write it like "2.0,4.0"')
    assert findings_of(place, "train_network.face_crop_aug_range='2.0,4.0'") == []


def test_a_cache_of_sizes_and_captions_is_believed_and_named(place):
    place.change("data", general={"caption_extension": ".txt", "cache_info": True})
    assert findings_of(place) == []
    (place.images / "metadata_cache.json").write_text("{}")
    assert only(place).code == "dataset.info-cache"


def test_a_resolution_that_the_base_does_not_know(place):
    write_big_base(place.root / "base.safetensors")
    finding = only(place)
    assert (finding.code, finding.where) == (
        "dataset.resolution-unusual",
        "presets/data.toml: datasets[0].resolution",
    )


def test_memory_is_estimated_from_below_and_compared(place):
    write_big_base(place.root / "base.safetensors")
    too_small = [f for f in findings_of(place, memory_bytes=4 * 10**9) if f.code == "machine.memory"]
    assert len(too_small) == 1
    assert "training needs at least 3.8 GiB and this machine has 3.7" in too_small[0].message
    assert "machine.memory" not in [f.code for f in findings_of(place, memory_bytes=5 * 10**9)]
    assert "machine.memory" not in [f.code for f in findings_of(place, "launch.target=cuda", memory_bytes=1)]
    assert physical_memory_bytes() > 10**8


def test_the_estimate_is_what_was_measured_at_512_pixels():
    dataset = ResolvedDataset("d", (512, 512), (), batch_size=2)
    options = parser_defaults()
    grow = {
        name: needed_bytes(options | changed, (dataset,), 0) / 2**30
        for name, changed in {
            "plain": {},
            "mem_eff": {"mem_eff_attn": True},
            "checkpointed": {"gradient_checkpointing": True},
        }.items()
    }
    assert grow == pytest.approx({"plain": 9.08, "mem_eff": 3.64, "checkpointed": 0.42})


def test_checkpoints_that_stand_there_will_be_overwritten(place):
    place.output.mkdir()
    (place.output / "tiny.safetensors").touch()
    finding = only(place)
    assert (finding.code, finding.severity) == ("output.overwrites", "warning")
    assert finding.message.startswith("1 of the run's 4 checkpoints are there already")


def write_run(place, **record):
    run = place.output / "runs/20260101-000000-tiny"
    run.mkdir(parents=True, exist_ok=True)
    (run / "run.json").write_text(json.dumps(record))


def test_a_run_that_is_writing_into_the_directory_is_an_error(place):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as other:
        wrapper = {"pid": other.pid, "started": mark_of(other.pid).started}
        write_run(place, status="running", wrapper=wrapper, started_at="2026-01-01T00:00:00")
        (finding,) = check_in_use(place.output, "p.toml")
        assert (finding.code, finding.severity) == ("output.in-use", "error")
        validated = place.spyke("validate", "tiny", "--json")
        assert [f["code"] for f in json.loads(validated.stdout)[0]["findings"]] == ["output.in-use"]
        write_run(place, status="finished", wrapper=wrapper)
        assert check_in_use(place.output, "p.toml") == []
        other.communicate(b"\n")
    write_run(place, status="running", wrapper=wrapper)
    assert check_in_use(place.output, "p.toml") == []


@pytest.mark.parametrize(
    "record", [{"status": "running"}, {"status": "running", "wrapper": {"pid": 10**30, "started": "x"}}]
)
def test_a_record_that_says_nothing_is_no_run(place, record):
    write_run(place)
    (place.output / "runs/20260101-000000-tiny/run.json").write_text(json.dumps(record))
    assert check_in_use(place.output, "p.toml") == []


def test_the_hash_is_the_file_s_and_a_directory_has_none(place):
    base = place.root / "base.safetensors"
    expected = hashlib.sha256(base.read_bytes()).hexdigest()
    assert file_hash(base) == expected
    assert file_hash(place.root) is None
    told = place.spyke("validate", "tiny", "data", "--hash", "--json")
    assert [one.get("base_sha256") for one in json.loads(told.stdout)] == [expected, None]
    assert f"base_sha256: {expected}" in place.spyke("validate", "tiny", "--hash").stdout


def test_quick_decodes_nothing_and_verbose_counts_tags(place, tmp_path):
    file = place.images / "1.png"
    file.write_bytes(file.read_bytes()[:-30])
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert place.spyke("validate", "tiny", "--quick", **cache).returncode == 0
    assert not (tmp_path / "cache").exists()
    full = place.spyke("validate", "tiny", "--verbose", **cache)
    assert full.returncode == 4
    assert "images.broken" in full.stdout
    assert "4  100%  spyke" in full.stdout
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["spyke-kohya"]
    assert place.spyke("train", "tiny", **cache).returncode == 4
