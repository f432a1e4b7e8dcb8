"""`spyke-kohya import`: settings of the kohya_ss window, of a --config_file and of a command line, as presets."""

import json
import subprocess

import pytest
import toml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from workplace import make_workplace

from spyke_kohya.errors import PresetError
from spyke_kohya.presets.loading import load
from spyke_kohya.start.importing.import_settings import import_settings, read_foreign
from spyke_kohya.start.writing import write_new

# As the kohya_ss window saves a LoRA's settings; written for this test, with its own key names.
WINDOW = {
    "LoRA_type": "Standard",
    "adaptive_noise_scale": 0,
    "additional_parameters": "--zero_terminal_snr --min_snr_gam=5",
    "block_dims": "",
    "bucket_no_upscale": True,
    "bucket_reso_steps": 64,
    "cache_latents": True,
    "caption_extension": ".txt",
    "clip_skip": 2,
    "color_aug": False,
    "enable_bucket": True,
    "epoch": 3,
    "gradient_checkpointing": True,
    "keep_tokens": "1",
    "learning_rate": 0.0001,
    "logging_dir": "logs",
    "lr_scheduler": "cosine",
    "lr_warmup": 10,
    "max_data_loader_n_workers": "0",
    "max_resolution": "512,512",
    "max_token_length": "75",
    "max_train_epochs": "",
    "max_train_steps": 0,
    "mixed_precision": "no",
    "model_list": "custom",
    "network_alpha": 16,
    "network_dim": 32,
    "num_cpu_threads_per_process": 2,
    "optimizer": "AdamW",
    "optimizer_args": "fused=True weight_decay=0.1",
    "output_dir": "out",
    "output_name": "moss",
    "pretrained_model_name_or_path": "base.safetensors",
    "reg_data_dir": "reg",
    "sample_prompts": "",
    "save_every_n_epochs": 1,
    "save_model_as": "safetensors",
    "save_precision": "float",
    "seed": "0",
    "shuffle_caption": True,
    "text_encoder_lr": 5e-05,
    "train_batch_size": 2,
    "train_data_dir": "img",
    "unet_lr": 0.0001,
    "use_wandb": True,
    "xformers": "sdpa",
}


@pytest.fixture
def place(tmp_path):
    made = make_workplace(tmp_path)
    for name in ("img/10_moss", "img/3_moss_b", "img/loose", "reg/1_lichen"):
        (tmp_path / name).mkdir(parents=True)
    return made


def imported(place, text, name=None):
    result = import_settings(text, place.root, name=name, target="cpu")
    write_new(result.files)
    loaded = load(result.name, place.root)
    assert [finding.code for finding in loaded.findings if finding.code != "schema.no-such-preset"] == []
    return result, loaded


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epoch": 3, "max_train_steps": 900}, {"max_train_steps": 900, "max_train_epochs": None}),
        ({"epoch": 3, "max_train_epochs": 5}, {"max_train_epochs": 5}),
        (
            {"noise_offset": 0.05, "multires_noise_iterations": 8},
            {"noise_offset": 0.05, "multires_noise_iterations": None},
        ),
        (
            {"noise_offset": 0.05, "multires_noise_iterations": 8, "noise_offset_type": "Multires"},
            {"noise_offset": None, "multires_noise_iterations": 8},
        ),
        ({"text_encoder_lr": 0}, {"text_encoder_lr": None, "network_train_unet_only": True}),
        ({"unet_lr": "0.0"}, {"unet_lr": None, "network_train_text_encoder_only": True}),
        ({"lr_scheduler": "cosine_with_restarts", "lr_scheduler_num_cycles": ""}, {"lr_scheduler_num_cycles": 3}),
        ({"lr_scheduler_num_cycles": ""}, {"lr_scheduler_num_cycles": None}),
        (
            {"block_dims": "4,4,8", "loraplus_lr_ratio": 4},
            {"network_args": ["block_dims=4,4,8", "loraplus_lr_ratio=4"]},
        ),
        (
            {"LoRA_type": "Kohya DyLoRA", "unit": 4, "conv_dim": 8},
            {"network_module": "networks.dylora", "network_args": ["conv_dim=8", "unit=4"]},
        ),
        ({"unit": 4, "conv_dim": 8}, {"network_module": "networks.lora", "network_args": None}),
        (
            {"sample_prompts": "a moss", "sample_every_n_steps": 20},
            {"sample_prompts": None, "sample_every_n_steps": None},
        ),
        ({"dynamo_backend": "no"}, {"dynamo_backend": None}),
        ({"seed": 7}, {"seed": 7}),
    ],
)
def test_a_setting_means_what_the_window_makes_of_it(changes, expected):
    values = read_foreign(json.dumps(WINDOW | changes)).values
    assert {name: values.get(name) for name in expected} == expected


def test_another_script_and_what_is_not_for_this_one_are_a_line_each():
    notes = read_foreign(json.dumps(WINDOW | {"sdxl": True, "t5xxl_dtype": "bf16", "logit_std": 1})).notes
    assert "use_wandb, t5xxl_dtype, logit_std: the window's own, or for another script" in notes
    (script,) = [note for note in notes if note.startswith("sdxl: ")]
    assert "sdxl_train_network.py" in script


def test_a_window_s_preset_becomes_two(place):
    result, loaded = imported(place, json.dumps(WINDOW))
    assert loaded.training.options == {
        "pretrained_model_name_or_path": "base.safetensors",
        "cache_latents": True,
        "clip_skip": 2,
        "max_train_epochs": 3,
        "gradient_checkpointing": True,
        "learning_rate": 1e-4,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 0.1,
        "max_data_loader_n_workers": 0,
        "network_alpha": 16.0,
        "network_dim": 32,
        "network_module": "networks.lora",
        "optimizer_args": ["fused=True", "weight_decay=0.1"],
        "optimizer_type": "AdamW",
        "output_dir": "out",
        "output_name": "moss",
        "save_every_n_epochs": 1,
        "save_precision": "float",
        "text_encoder_lr": [5e-5],
        "unet_lr": 1e-4,
        "sdpa": True,
        "zero_terminal_snr": True,
        "min_snr_gamma": 5.0,
    }
    assert loaded.training.launch.num_cpu_threads_per_process == 2
    general = loaded.dataset.general
    assert (general.enable_bucket, general.caption_extension, general.keep_tokens) == (True, ".txt", 1)
    assert [(s.image_dir, s.num_repeats, s.is_reg, s.class_tokens) for s in loaded.dataset.datasets[0].subsets] == [
        ("img/10_moss", 10, None, "moss"),
        ("img/3_moss_b", 3, None, "moss_b"),
        ("reg/1_lichen", 1, True, "lichen"),
    ]
    notes = "\n".join(result.notes)
    for left in ("use_wandb", "logging_dir", "loose", "--min_snr_gam: sd-scripts takes it for --min_snr_gamma"):
        assert left in notes


def test_a_config_file_is_flattened_as_sd_scripts_does(place):
    text = '[model]\npretrained_model_name_or_path = "b.safetensors"\n[x]\nunet_lr = 1\ndataset_config = "d.toml"\n'
    result, loaded = imported(place, text + 'odd = 3\noutput_name = "a b/c"\nnetwork_dim = "8"\nclip_skip = "two"\n')
    assert (result.name, loaded.training.dataset) == ("a_b_c", "d.toml")
    assert (loaded.training.options["unet_lr"], loaded.training.options["network_dim"]) == (1.0, 8)
    assert any(note.startswith("odd: ") for note in result.notes)
    assert any(note.startswith("clip_skip = 'two'") for note in result.notes)


COMMAND = r"""
# how I train
PYTORCH_ENABLE_MPS_FALLBACK=1 accelerate launch --num_cpu_threads_per_process=4 --mixed_precision fp16 \
  "sd scripts/train_network.py" --pretrained_model_name_or_path="my base.safetensors" \
  --dataset_config d.toml --output_dir=out --output_name=moss --network_module=networks.lora \
  --learning_rat=1e-4 --optimizer_args "a=1" "b=2" --no_half_vae --lr_warmup_steps 10% --resume state --made_up 1 \
  --max_train_epochs=2
"""


@pytest.mark.parametrize("text", [COMMAND, COMMAND.replace("\\\n", "^\r\n"), COMMAND.replace("\\\n", "`\n")])
def test_a_command_line_is_taken_apart_as_a_shell_does(place, text):
    result, loaded = imported(place, text)
    options = loaded.training.options
    assert options["pretrained_model_name_or_path"] == "my base.safetensors"
    assert (options["learning_rate"], options["lr_warmup_steps"], options["no_half_vae"]) == (1e-4, 0.1, True)
    assert (options["optimizer_args"], options["max_train_epochs"]) == (["a=1", "b=2"], 2)
    assert loaded.training.launch.num_cpu_threads_per_process == 4
    notes = "\n".join(result.notes)
    for left in (
        "--learning_rat: sd-scripts takes it for --learning_rate",
        "resume = 'state'",
        "made_up",
        "fp16",
        "MPS",
    ):
        assert left in notes
    assert "# Imported; this could not be carried over" in (place.root / "presets/moss.toml").read_text()


def test_an_ambiguous_beginning_is_left_behind():
    found = read_foreign("accelerate launch train_network.py --save=3 --seed=1")
    assert found.values == {"seed": 1}
    assert found.notes == ["save: train_network.py of this release has no such option"]


def test_a_folder_that_is_not_here_is_said(place):
    result, loaded = imported(
        place, "python train_network.py --pretrained_model_name_or_path=b --train_data_dir /nowhere/img"
    )
    assert loaded.dataset.datasets[0].subsets[0].image_dir == "/nowhere/img"
    assert any("can't be looked into here" in note for note in result.notes)


@pytest.mark.parametrize("text", ["", "hello", "{", "{}", "[]", "train_network.py 'open", "\0", "ls -l"])
def test_what_is_none_of_them_is_refused(text):
    with pytest.raises(PresetError):
        import_settings(text, None, name=None, target="cpu")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(sorted(WINDOW)),
        st.none() | st.booleans() | st.floats() | st.text(max_size=9) | st.lists(st.integers(), max_size=2),
        min_size=1,
    )
)
def test_any_window_s_preset_is_imported_or_refused(place, document):
    try:
        result = import_settings(json.dumps(document), place.root, name="any", target="cpu")
    except PresetError:
        return
    for text in result.files.values():
        toml.loads(text)


def test_the_command_reads_a_pipe_and_says_what_was_left(place):
    done = subprocess.run(
        place.command("import", "-", "--target", "cpu"),
        input=COMMAND,
        cwd=place.root,
        env=place.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip().endswith("presets/moss.toml")) == (0, True)
    assert "changed or lost: made_up" in done.stderr
    assert place.spyke("import", "presets/tiny.toml", "--name", "tiny").returncode == 3
