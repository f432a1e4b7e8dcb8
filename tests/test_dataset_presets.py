"""A dataset preset is accepted exactly where sd-scripts accepts it, and all its faults are said at once."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import toml

from spyke_kohya.presets.dataset import parse_dataset_config
from spyke_kohya.presets.resolved import resolve

ORACLE = Path(__file__).parent / "data" / "oracle"
SUBSET = {"image_dir": "train/10_spyke"}


def findings_of(document):
    return parse_dataset_config(document, "presets/x.toml")[1]


def resolved(document, options=()):
    config, _ = parse_dataset_config(document, "presets/x.toml")
    return resolve(config, dict(options), "presets/x.toml")


def one_dataset(subset=(), **settings):
    return {"datasets": [{"resolution": 512, "subsets": [SUBSET | dict(subset)], **settings}]}


def codes(findings):
    return [finding.code for finding in findings]


def test_a_preset_is_accepted_exactly_where_sd_scripts_accepts_it():
    cases = json.loads((ORACLE / "config_cases.json").read_text(encoding="utf-8"))
    verdicts = Counter()
    for case in cases:
        config, findings = parse_dataset_config(toml.loads(case["toml"]), "x.toml")
        assert (config is not None) == case["accepted"], f"{case['toml']}\nsd-scripts: {case.get('error', 'accepted')}"
        assert case["accepted"] or all(finding.code.startswith("schema.") for finding in findings)
        verdicts[config is not None] += 1
    print(f"{len(cases)} cases: {verdicts[True]} accepted, {verdicts[False]} refused, all agree")  # noqa: T201
    assert verdicts == {True: 67, False: 233}


def test_every_fault_is_said_at_once_with_its_place_and_a_remedy():
    document = {
        "general": {"enable_buckets": True},
        "datasets": [{"batch_size": "4", "subsets": [{"num_repeats": 1.5}, {"image_dir": "a", "enable_bucket": True}]}],
    }
    findings = findings_of(document)
    assert {(finding.code, finding.where) for finding in findings} == {
        ("schema.unknown-key", "presets/x.toml: general.enable_buckets"),
        ("schema.wrong-type", "presets/x.toml: datasets[0].batch_size"),
        ("schema.wrong-type", "presets/x.toml: datasets[0].subsets[0].num_repeats"),
        ("schema.missing-key", "presets/x.toml: datasets[0].subsets[0].image_dir"),
        ("schema.unknown-key", "presets/x.toml: datasets[0].subsets[1].enable_bucket"),
    }
    assert all(finding.remedy and finding.severity == "error" for finding in findings)


def test_a_misspelt_key_gets_the_right_one():
    (finding,) = findings_of(one_dataset({"repeats": 10}))
    assert finding.message == "unknown key `repeats`; did you mean `num_repeats`?"


def test_a_key_in_the_wrong_table_is_told_where_it_belongs():
    (finding,) = findings_of(one_dataset({"resolution": 512}))
    assert finding.remedy == "move it to [general] or [[datasets]]"


def test_a_wrong_value_is_told_in_plain_words():
    (finding,) = findings_of(one_dataset({"num_repeats": "10"}))
    assert finding.message == "expected a whole number, got the text '10'"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "settings",
    [
        lambda number: {"caption_dropout_rate": number},
        lambda number: {"face_crop_aug_range": [1.0, number]},
        lambda number: {"custom_attributes": {"a": [{"b": number}]}},
    ],
    ids=["a number", "a pair", "a table"],
)
def test_every_number_is_finite(settings, number):
    (finding,) = findings_of(one_dataset(settings(number)))
    assert (finding.code, finding.severity) == ("schema.wrong-type", "error")
    assert "expected finite numbers, got" in finding.message


def test_the_numbers_that_an_option_writes_as_text_are_finite():
    _, findings = resolved(one_dataset(), {"face_crop_aug_range": "1.0,nan"})
    assert codes(findings) == ["dataset.face-crop-aug-range"]


def test_subsets_of_two_kinds_in_one_dataset_are_refused():
    document = {"datasets": [{"subsets": [SUBSET, {"metadata_file": "meta.json"}]}]}
    assert codes(findings_of(document)) == ["schema.mixed-subsets"]


@pytest.mark.parametrize(
    "document",
    [
        {"datasets": 3},
        {"datasets": [3]},
        {"datasets": [{"subsets": 3}]},
        {"datasets": [{"subsets": [3]}]},
        {"general": []},
    ],
)
def test_a_value_in_a_table_s_place_is_a_fault_and_no_crash(document):
    assert codes(findings_of(document)) == ["schema.wrong-type"]


def test_null_which_json_has_is_no_value():
    assert codes(findings_of(one_dataset(batch_size=None))) == ["schema.wrong-type"]


def test_a_boolean_given_as_a_number_is_accepted_with_a_warning_as_sd_scripts_counts_with_it():
    config, findings = parse_dataset_config(one_dataset({"num_repeats": True}), "x.toml")
    assert config is not None
    assert [(found.code, found.severity) for found in findings] == [("dataset.bool-number", "warning")]


def test_a_value_comes_from_the_nearest_place_that_sets_it():
    document = {
        "general": {"num_repeats": 2, "keep_tokens": 1, "caption_extension": "txt"},
        "datasets": [{"num_repeats": 3, "subsets": [SUBSET | {"num_repeats": 4}, {"image_dir": "b"}]}],
    }
    options = {"resolution": "512,768", "train_batch_size": 2, "shuffle_caption": True, "keep_tokens": 9}
    datasets, findings = resolved(document, options)
    first, second = datasets[0].subsets
    assert (first.num_repeats, second.num_repeats) == (4, 3)
    assert (datasets[0].resolution, datasets[0].batch_size) == ((512, 768), 2)
    assert (first.keep_tokens, first.shuffle_caption, first.caption_extension) == (1, True, ".txt")
    assert first.num_repeats_stated
    assert findings == []


def test_what_nobody_sets_is_what_train_network_s_parser_says():
    ((dataset,), _) = resolved(one_dataset())
    assert (dataset.enable_bucket, dataset.min_bucket_reso, dataset.max_bucket_reso) == (False, 256, 1024)
    assert (dataset.subsets[0].caption_extension, dataset.subsets[0].num_repeats) == (".caption", 1)
    assert not dataset.subsets[0].num_repeats_stated


def test_repeats_from_the_command_line_are_stated_repeats():
    ((dataset,), _) = resolved(one_dataset(), {"dataset_repeats": 5})
    assert (dataset.subsets[0].num_repeats, dataset.subsets[0].num_repeats_stated) == (5, True)


def test_the_old_spelling_of_caption_extension_wins_over_the_new_one_as_in_sd_scripts():
    ((dataset,), _) = resolved(one_dataset(), {"caption_extension": ".a", "caption_extention": ".b"})
    assert dataset.subsets[0].caption_extension == ".b"


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"resolution": 0}, "dataset.resolution"),
        ({"batch_size": 0}, "dataset.batch-size"),
        ({"enable_bucket": True, "bucket_reso_steps": 0}, "dataset.bucket-steps"),
        ({"enable_bucket": True, "min_bucket_reso": 640}, "dataset.bucket-limits"),
        ({"enable_bucket": True, "max_bucket_reso": 448}, "dataset.bucket-limits"),
        ({"enable_bucket": True, "min_bucket_reso": 63}, "dataset.bucket-limits"),
        ({"resize_interpolation": "nicely"}, "dataset.resize-interpolation"),
    ],
)
def test_what_stops_sd_scripts_before_the_first_image_leaves_nothing_to_plan(settings, code):
    datasets, findings = resolved(one_dataset(**settings))
    assert datasets is None
    assert codes(findings) == [code]


@pytest.mark.parametrize(
    ("settings", "options", "code"),
    [
        ({"enable_bucket": True, "bucket_reso_steps": 32}, {}, "dataset.bucket-steps"),
        ({"validation_split": 1.5}, {}, "dataset.validation-split"),
        ({"validation_split": -0.5}, {}, "dataset.validation-split"),
        ({"shuffle_caption": True, "caption_separator": ""}, {}, "dataset.caption-separator"),
        ({"color_aug": True}, {"cache_latents": True}, "dataset.cache-latents"),
        ({"subsets": []}, {}, "dataset.no-subsets"),
    ],
)
def test_what_stops_sd_scripts_later_is_an_error_too(settings, options, code):
    datasets, findings = resolved(one_dataset(**settings), options)
    assert datasets is not None
    assert codes(findings) == [code]


def test_a_resolution_is_missing_only_if_the_options_have_none_either():
    document = {"datasets": [{"subsets": [SUBSET]}]}
    assert codes(resolved(document)[1]) == ["dataset.resolution"]
    assert resolved(document, {"resolution": "512"})[0][0].resolution == (512, 512)
    assert codes(resolved(document, {"resolution": "big"})[1]) == ["dataset.resolution", "dataset.resolution"]


def test_a_preset_without_datasets_and_one_for_fine_tuning_can_t_be_planned():
    assert codes(resolved({})[1]) == ["dataset.none"]
    fine_tuning = {"datasets": [{"resolution": 512, "subsets": [{"metadata_file": "meta.json"}]}]}
    assert codes(resolved(fine_tuning)[1]) == ["dataset.fine-tuning"]
