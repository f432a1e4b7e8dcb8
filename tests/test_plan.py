"""The plan is what sd-scripts does, in every number, and its words are the ones a person needs."""

import json
import struct
import zlib
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from spyke_kohya.dataset.scan import Scan, ScannedDataset, ScannedImage, ScannedSubset, header_size, scan
from spyke_kohya.plan.plan import explain, make_plan
from spyke_kohya.presets.dataset import parse_dataset_config
from spyke_kohya.presets.resolved import resolve

CASES = json.loads((Path(__file__).parent / "data" / "oracle" / "plan_cases.json").read_text(encoding="utf-8"))


def scan_of(datasets, images, cached=()):
    """A scan of images that need not exist: path to size."""
    by_folder = {}
    for path in sorted(images):
        size = images[path] and tuple(images[path])
        problem = "" if size else "it is not an image"
        by_folder.setdefault(path.rpartition("/")[0], []).append(
            ScannedImage(path, size, problem, dict(cached).get(path))
        )
    return Scan(
        tuple(
            ScannedDataset(
                dataset,
                tuple(
                    ScannedSubset(subset, subset.image_dir, tuple(by_folder.get(subset.image_dir.rstrip("/"), ())))
                    for subset in dataset.subsets
                ),
            )
            for dataset in datasets
        )
    )


def options_of(case):
    return {name: case[name] for name in ("max_train_epochs", "gradient_accumulation_steps")}


def plan_of_case(case, scanned_with):
    config, _ = parse_dataset_config(case["config"], "x.toml")
    datasets, findings = resolve(config, options_of(case), "x.toml")
    if datasets is None:
        return None, findings
    plan, more = make_plan(scanned_with(datasets), options_of(case), num_processes=case["num_processes"])
    return plan, findings + more


def differences(plan, result):
    given = plan.to_dict()
    return {name: (given[name], expected) for name, expected in result.items() if given[name] != expected}


def test_every_number_is_the_one_sd_scripts_computed():
    agreed = Counter()
    for number, case in enumerate(CASES):
        plan, findings = plan_of_case(case, lambda datasets, case=case: scan_of(datasets, case["images"]))
        if "error" in case:
            assert plan is None, f"case {number}: {case['error']}"
            assert [finding for finding in findings if finding.severity == "error"]
        else:
            assert plan is not None, f"case {number}: {findings}"
            assert not differences(plan, case["result"]), f"case {number}"
        agreed["crash" if "error" in case else "plan"] += 1
    print(f"{len(CASES)} cases: {agreed['plan']} plans, {agreed['crash']} crashes foreseen, all agree")  # noqa: T201
    assert agreed == {"plan": 186, "crash": 14}


def test_each_crash_of_sd_scripts_has_its_own_finding():
    codes = Counter()
    for case in CASES:
        if "error" in case:
            _, findings = plan_of_case(case, lambda datasets, case=case: scan_of(datasets, case["images"]))
            wanted = {"ValueError": "dataset.empty-subset-with-split"}.get(
                case["error"].split(":")[0], "dataset.bucket-limits"
            )
            assert wanted in {finding.code for finding in findings}
            codes[wanted] += 1
    assert codes == {"dataset.empty-subset-with-split": 12, "dataset.bucket-limits": 2}


SMALL_CASES = [
    case for case in CASES if "result" in case and case["result"]["batches_per_epoch"] and len(case["images"]) < 18
]


@pytest.mark.parametrize("case", SMALL_CASES[:10])
def test_real_files_give_the_same_plan(case, tmp_path):
    for dataset in case["config"]["datasets"]:
        for subset in dataset["subsets"]:
            (tmp_path / subset["image_dir"]).mkdir(parents=True, exist_ok=True)
    for path, size in case["images"].items():
        Image.new("L", size).save(tmp_path / path)
    plan, findings = plan_of_case(case, lambda datasets: scan(datasets, tmp_path))
    assert plan is not None, findings
    assert not differences(plan, case["result"])


TRAIN, REG = {"image_dir": "train", "num_repeats": 10}, {"image_dir": "reg", "is_reg": True}
RECORD = {f"train/{index}.png": (512, 512) for index in range(23)} | {
    f"reg/{index}.png": (512, 768) for index in range(100)
}
FOUR_EPOCHS = {"max_train_epochs": 4}


def planned(datasets, images=RECORD, options=FOUR_EPOCHS, num_processes=1, cached=(), save_states=False):
    config, _ = parse_dataset_config({"datasets": [{"resolution": 512} | dataset for dataset in datasets]}, "x.toml")
    resolved, findings = resolve(config, options, "x.toml")
    found = scan_of(resolved, images, cached)
    plan, more = make_plan(found, options, num_processes=num_processes, where="y.toml", save_states=save_states)
    return plan, findings + more


def codes(findings):
    return [finding.code for finding in findings]


def first_line(*datasets, **how):
    return explain(planned(datasets, **how)[0])[0]


def test_the_run_of_record_is_explained():
    assert first_line({"subsets": [TRAIN, REG]}) == (
        "23 images x 10 repeats = 230, + 100 regularisation images repeated to 230 = 460 batches an epoch, "
        "x 4 epochs = 1840 steps"
    )


def test_batches_accumulation_and_processes_are_explained():
    dataset = {"batch_size": 2, "subsets": [TRAIN, REG]}
    options = {"max_train_epochs": 4, "gradient_accumulation_steps": 4}
    assert first_line(dataset, options=options, num_processes=2) == (
        "23 images x 10 repeats = 230, + 100 regularisation images repeated to 230 = 460 images, "
        "in batches of 2 = 230 batches an epoch, on 2 processes, 4 to a step = 29 steps an epoch, "
        "x 4 epochs = 116 steps"
    )


def test_a_run_ended_by_steps_is_explained():
    assert first_line({"subsets": [TRAIN]}, options={"max_train_steps": 500}) == (
        "23 images x 10 repeats = 230 batches an epoch, ended after 500 steps, in epoch 3"
    )


def test_surplus_regularisation_images_are_explained():
    subsets = [{"image_dir": "train"}, REG]
    assert first_line({"subsets": subsets}) == (
        "23 images x 1 repeat = 23, + 23 of 100 regularisation images = 46 batches an epoch, x 4 epochs = 184 steps"
    )


def test_several_datasets_subsets_and_a_validation_are_explained():
    split = {"subsets": [TRAIN], "validation_split": 0.2, "validation_seed": 1}
    two = {"subsets": [{"image_dir": "train"}, {"image_dir": "reg", "num_repeats": 2}]}
    assert explain(planned([split, two])[0]) == [
        "dataset 0: 19 images x 10 repeats = 190 batches an epoch",
        "dataset 1: 23 images x 1 repeat + 100 images x 2 repeats = 223 batches an epoch",
        "together 413 batches an epoch, x 4 epochs = 1652 steps",
        "validation on 5 images in 5 batches",
        "1 checkpoint",
    ]


def test_the_disk_a_run_takes_is_said():
    options = {"max_train_epochs": 4, "save_every_n_steps": 200, "network_module": "networks.lora", "network_dim": 32}
    plan, _ = planned([{"subsets": [TRAIN, REG]}], options=options)
    assert (plan.checkpoint_bytes, plan.disk_bytes) == (75_614_824, 756_148_240)
    assert explain(plan)[-1] == "10 checkpoints of about 75.6 MB, 756 MB in all"


STATES = {"network_module": "networks.lora", "network_dim": 32, "output_name": "s", "save_every_n_steps": 200}


@pytest.mark.parametrize(("epochs", "kept"), [(1, 0), (2, 1), (3, 2), (4, 2)])
def test_no_state_is_kept_of_the_last_epoch(epochs, kept):
    plan, _ = planned([{"subsets": [TRAIN]}], options=STATES | {"max_train_epochs": epochs}, save_states=True)
    assert plan.states_kept == kept


def test_the_disk_of_states_holds_the_checkpoint_that_comes_with_each():
    """Three numbers in float32 a weight, beside the epoch's checkpoint, which nobody asked for and goes into it."""
    plan, _ = planned([{"subsets": [TRAIN]}], options=STATES | FOUR_EPOCHS, save_states=True)
    assert plan.state_bytes == 3 * plan.checkpoint_bytes
    assert plan.kept_state_bytes == 4 * plan.checkpoint_bytes
    assert plan.disk_bytes == plan.checkpoint_bytes * len(plan.checkpoints) + 2 * plan.kept_state_bytes
    asked, _ = planned(
        [{"subsets": [TRAIN]}], options=STATES | FOUR_EPOCHS | {"save_every_n_epochs": 1}, save_states=True
    )
    assert asked.kept_state_bytes == asked.state_bytes


def test_ten_million_steps_are_planned_and_not_one_more():
    for steps, code in ((10_000_000, []), (10_000_001, ["plan.too-long"])):
        plan, findings = planned([{"subsets": [TRAIN]}], options={"max_train_steps": steps})
        assert (codes(findings), plan is None) == (code, bool(code))


@pytest.mark.parametrize(("count", "code"), [(10, []), (12, ["dataset.reg-unequal"]), (23, [])])
def test_regularisation_images_are_unequal_from_twice_as_often_on(count, code):
    """Of 10 each is used 2 or 3 times an epoch, of 12 once or twice."""
    images = {path: size for path, size in RECORD.items() if path.startswith("train")}
    images |= {f"reg/{index}.png": (512, 512) for index in range(count)}
    _, findings = planned([{"subsets": [{"image_dir": "train"}, REG]}], images=images)
    assert codes(findings) == code


def test_the_plan_as_json_has_the_names_that_others_rely_on():
    plan, _ = planned([{"subsets": [TRAIN, REG]}], options=FOUR_EPOCHS | {"output_name": "s", "save_every_n_epochs": 3})
    given = json.loads(json.dumps(plan.to_dict()))
    assert given["buckets"] == [[[[512, 512], 460]]]
    assert given["checkpoints"] == [
        {"step": 1380, "file": "s-000003.safetensors"},
        {"step": 1840, "file": "s.safetensors"},
    ]
    assert (given["num_train_images"], given["num_reg_images"], given["batches_per_epoch"]) == (230, 100, 460)
    assert (given["steps_per_epoch"], given["epochs"], given["total_steps"]) == (460, 4, 1840)
    assert (given["train_images"], given["reg_images"], given["reg_images_used"]) == (23, 100, 100)
    assert given["validation_batches"] == 0


def test_sixteen_hundred_steps_by_default_are_an_error():
    plan, findings = planned([{"subsets": [TRAIN]}], options={})
    assert (plan.total_steps, plan.steps_source) == (1600, "default")
    assert [(found.code, found.severity, found.where) for found in findings] == [
        ("plan.steps-defaulted", "error", "y.toml: [train_network]")
    ]


def test_epochs_win_over_steps_with_a_warning():
    plan, findings = planned([{"subsets": [TRAIN]}], options={"max_train_epochs": 1, "max_train_steps": 7})
    assert plan.total_steps == 230
    assert codes(findings) == ["plan.steps-ignored"]


@pytest.mark.parametrize(
    "name", ["max_train_epochs", "save_every_n_steps", "save_every_n_epochs", "gradient_accumulation_steps"]
)
def test_a_number_that_must_be_one_or_more_is_refused(name):
    plan, findings = planned([{"subsets": [TRAIN]}], options=FOUR_EPOCHS | {name: 0})
    assert plan is None
    assert codes(findings) == ["plan.below-one"]


def test_without_images_the_plan_is_one_of_no_steps():
    plan, findings = planned([{"subsets": [TRAIN]}], images={})
    assert (plan.total_steps, plan.checkpoints) == (0, ())
    assert codes(findings) == ["dataset.subset-dropped", "images.none"]
    assert explain(plan) == ["there is nothing to train on"]


def test_a_folder_named_twice_counts_once_and_is_said_to_be_dropped():
    plan, findings = planned([{"subsets": [TRAIN, TRAIN, {"image_dir": "reg", "num_repeats": 0}]}])
    assert plan.batches_per_epoch == 230
    assert codes(findings) == ["dataset.subset-dropped", "dataset.subset-dropped"]


def test_a_folder_under_two_spellings_is_trained_with_the_repeats_of_the_last():
    plan, findings = planned([{"subsets": [TRAIN, {"image_dir": "train/", "num_repeats": 3}]}])
    assert (plan.num_train_images, plan.batches_per_epoch) == (23 * 13, 23 * 3)
    assert codes(findings) == ["dataset.image-twice"]
    assert explain(plan)[0].startswith(
        "23 images x 10 repeats + 23 images x 3 repeats = 299, - 230 named twice = 69 batches"
    )


def test_regularisation_images_that_are_never_used_are_said():
    _, findings = planned([{"subsets": [{"image_dir": "train"}, REG]}])
    assert codes(findings) == ["dataset.reg-unused"]
    assert "77 of its 100 images" in findings[0].message


def test_an_unreadable_image_leaves_no_plan_and_every_one_is_named():
    images = RECORD | {"train/0.png": None, "train/1.png": None}
    plan, findings = planned([{"subsets": [TRAIN]}], images=images)
    assert plan is None
    assert [(found.code, found.where) for found in findings] == [
        ("images.unreadable", "train/0.png"),
        ("images.unreadable", "train/1.png"),
    ]


def test_an_unreadable_regularisation_image_that_is_never_used_stops_nothing():
    plan, _ = planned([{"subsets": [{"image_dir": "train"}, REG]}], images=RECORD | {"reg/99.png": None})
    assert plan is not None


def test_an_image_too_small_for_its_bucket_is_an_error():
    dataset = {"enable_bucket": True, "bucket_no_upscale": True, "subsets": [TRAIN]}
    plan, findings = planned([dataset], images={"train/a.png": (40, 100)})
    assert plan is not None
    assert codes(findings) == ["images.no-bucket"]
    plan, findings = planned([dataset], images={"train/a.png": (100, 40)})
    assert plan is None
    assert codes(findings) == ["images.no-bucket"]


def test_latents_cached_from_another_image_are_noticed():
    dataset = {"enable_bucket": True, "subsets": [TRAIN]}
    plan, findings = planned([dataset], images={"train/a.png": (512, 512)}, cached={"train/a.png": (512, 768)})
    assert plan.to_dict()["buckets"] == [[[[384, 640], 10]]]
    assert codes(findings) == ["images.stale-latents"]


def test_a_validation_without_a_seed_is_trained_on_too():
    dataset = {"subsets": [TRAIN], "validation_split": 0.2}
    _, findings = planned([dataset])
    assert codes(findings) == ["dataset.validation-unseeded"]
    assert "chance" in findings[0].message
    _, findings = planned([dataset], options=FOUR_EPOCHS | {"seed": 42})
    assert "chance" not in findings[0].message


def test_an_image_in_both_parts_of_a_split_is_said():
    """5 images at 0.3: ceil(3.5) are trained, and round(1.5) validated."""
    dataset = {"subsets": [TRAIN], "validation_split": 0.3, "validation_seed": 1}
    five = {f"train/{name}.png": (512, 512) for name in "abcde"}
    assert codes(planned([dataset], images=five)[1]) == ["dataset.validation-overlap"]
    assert codes(planned([dataset | {"validation_split": 0.2}], images=five)[1]) == []


def test_a_missing_folder_is_an_error_with_its_place(tmp_path):
    config, _ = parse_dataset_config({"datasets": [{"resolution": 512, "subsets": [TRAIN]}]}, "x.toml")
    datasets, _ = resolve(config, FOUR_EPOCHS, "x.toml")
    _, findings = make_plan(scan(datasets, tmp_path), FOUR_EPOCHS)
    assert [(found.code, found.where) for found in findings] == [
        ("dataset.missing-folder", "x.toml: datasets[0].subsets[0]"),
        ("images.none", "datasets"),
    ]


def png(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress((b"\0" * (width + 1)) * height, 1))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def test_of_ten_thousand_files_each_is_opened_once_and_its_size_asked_once(tmp_path):
    (tmp_path / "train").mkdir()
    pictures = [png(8 + index % 50, 8 + index // 50) for index in range(500)]
    for index in range(10_000):
        (tmp_path / "train" / f"{index:05}.png").write_bytes(pictures[index % 500])
    config, _ = parse_dataset_config(
        {"datasets": [{"resolution": 512, "enable_bucket": True, "subsets": [TRAIN]}]}, "x.toml"
    )
    datasets, _ = resolve(config, FOUR_EPOCHS)
    asked = Counter()

    def size_of(path):
        asked[path] += 1
        return header_size(path)

    plan, _ = make_plan(scan(datasets, tmp_path, size_of), FOUR_EPOCHS)
    assert plan.train_images == 10_000
    assert (len(asked), set(asked.values())) == (10_000, {1})
