"""The miniature engine, run as a real process by `accelerate launch`, and the scripts that make its data and base."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import safe_open
from workplace import PROJECT, run_script

MINIATURE = PROJECT / "scripts" / "miniature" / "train_network.py"

# two training pictures x 2 repeats and as many regularisation images: 8 batches an epoch in three buckets
DATASET = """
[general]
enable_bucket = true
caption_extension = ".txt"
shuffle_caption = true
keep_tokens = 1

[[datasets]]
resolution = 96
min_bucket_reso = 64
batch_size = {batch_size}

  [[datasets.subsets]]
  image_dir = "{train}"
  num_repeats = {repeats}

  [[datasets.subsets]]
  is_reg = true
  image_dir = "{reg}"
"""


@dataclass(frozen=True)
class Outcome:
    returncode: int
    stdout: str
    stderr: str
    output_dir: Path

    def files(self) -> list[str]:
        return sorted(path.name for path in self.output_dir.glob("*"))

    def losses(self) -> list[str]:
        """What the bar showed last for each step."""
        shown = re.findall(r"\| (\d+)/\d+ \[[^\]]*avr_loss=([\w.]+)", self.stderr)
        return list(dict(shown).values())


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory, demo_pictures: Path) -> Path:
    """4 of the demo's training pictures and its 8 regularisation images, of which 4 are used: 8 batches an epoch."""
    folder = tmp_path_factory.mktemp("small")
    train = folder / "train"
    train.mkdir()
    for path in sorted((demo_pictures / "train" / "1_spyke_demo").glob("spyke_0[0-3].*")):
        (train / path.name).write_bytes(path.read_bytes())
    config = folder / "dataset.toml"
    config.write_text(DATASET.format(train=train, reg=demo_pictures / "reg/1_creature", batch_size=1, repeats=1))
    return config


def train(
    output_dir: Path, base: Path, dataset: Path, *options: str, launcher: tuple[str, ...] = (sys.executable,)
) -> Outcome:
    """One run of the miniature to its end."""
    command = [*launcher, str(MINIATURE)]
    command += [f"--pretrained_model_name_or_path={base}", f"--dataset_config={dataset}"]
    command += [f"--output_dir={output_dir}", "--output_name=spyke", "--network_module=networks.lora", "--seed=42"]
    command += ["--clip_skip=2", "--network_dim=2", *options]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONUNBUFFERED": "1", "COLUMNS": "400"}
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return Outcome(process.returncode, process.stdout, process.stderr, output_dir)


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, small_dataset: Path) -> Outcome:
    """Two epochs of 8 steps through `accelerate launch`, with everything saved and logged that can be."""
    output_dir = tmp_path_factory.mktemp("first") / "output"
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--num_cpu_threads_per_process=2")
    neutral = ("--num_processes=1", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no")
    options = ["--max_train_epochs=2", "--save_every_n_steps=4", "--save_every_n_epochs=1", "--save_state"]
    options += ["--save_last_n_steps=4", "--learning_rate=2e-2", "--lr_scheduler=cosine", "--text_encoder_lr=1e-3"]
    options += [f"--logging_dir={output_dir / 'tb'}", "--log_with=tensorboard"]
    return train(output_dir, tiny_base, small_dataset, *options, launcher=launcher + neutral)


def test_a_run_ends_well_and_says_so_last(first_run: Outcome) -> None:
    assert first_run.returncode == 0, first_run.stderr
    logged = [line for line in first_run.stderr.splitlines() if "INFO" in line]
    assert "model saved." in logged[-1]


def test_the_header_has_the_numbers_of_sd_scripts(first_run: Outcome) -> None:
    header = first_run.stdout.partition("running training / 学習開始\n")[2].splitlines()[:8]
    assert header == [
        "  num train images * repeats / 学習画像の数×繰り返し回数: 4",
        "  num validation images * repeats / 学習画像の数×繰り返し回数: 0",
        "  num reg images / 正則化画像の数: 8",
        "  num batches per epoch / 1epochのバッチ数: 8",
        "  num epochs / epoch数: 2",
        "  batch size per device / バッチサイズ: 1",
        "  gradient accumulation steps / 勾配を合計するステップ数 = 1",
        "  total optimization steps / 学習ステップ数: 16",
    ]


def test_stdout_holds_the_lines_of_sd_scripts_and_nothing_else(first_run: Outcome) -> None:
    lines = [line for line in first_run.stdout.splitlines() if line and not line.startswith("  ")]
    out = first_run.output_dir
    assert lines == [
        "accelerator device: cpu",
        "import network module: networks.lora",
        "prepare optimizer, data loader etc.",
        "override steps. steps for 2 epochs is / 指定エポックまでのステップ数: 16",
        "running training / 学習開始",
        "epoch 1/2",
        f"saving checkpoint: {out}/spyke-step00000004.safetensors",
        f"saving checkpoint: {out}/spyke-step00000008.safetensors",
        f"saving checkpoint: {out}/spyke-000001.safetensors",
        "epoch 2/2",
        f"saving checkpoint: {out}/spyke-step00000012.safetensors",
        f"removing old checkpoint: {out}/spyke-step00000004.safetensors",
        f"saving checkpoint: {out}/spyke-step00000016.safetensors",
        f"removing old checkpoint: {out}/spyke-step00000008.safetensors",
        f"saving checkpoint: {out}/spyke.safetensors",
    ]


def test_files_and_states_have_sd_scripts_names(first_run: Outcome) -> None:
    assert first_run.files() == [
        "spyke-000001-state",
        "spyke-000001.safetensors",
        "spyke-state",
        "spyke-step00000012-state",
        "spyke-step00000012.safetensors",
        "spyke-step00000016-state",
        "spyke-step00000016.safetensors",
        "spyke.safetensors",
        "tb",
    ]


def test_a_state_holds_the_network_alone_and_where_it_was(first_run: Outcome) -> None:
    state = first_run.output_dir / "spyke-000001-state"
    assert json.loads((state / "train_state.json").read_text()) == {"current_epoch": 1, "current_step": 8}
    assert {path.name for path in state.iterdir()} >= {"model.safetensors", "optimizer.bin", "scheduler.bin"}
    with safe_open(state / "model.safetensors", "np") as file:
        assert all(key.startswith("lora_") for key in file.keys())  # noqa: SIM118  # not a dict


def test_keys_have_sd_scripts_form_and_every_layer_has_three(first_run: Outcome) -> None:
    with safe_open(first_run.output_dir / "spyke.safetensors", "np") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  # not a dict
    attention = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    assert shapes[f"{attention}.lora_down.weight"] == [2, 32]
    assert shapes[f"{attention}.lora_up.weight"] == [32, 2]
    assert shapes[f"{attention}.alpha"] == []
    assert shapes["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"] == [2, 32, 1, 1]
    assert shapes["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"] == [64, 2]
    layers = {key.partition(".")[0] for key in shapes}
    assert len(shapes) == 3 * len(layers)
    assert not [name for name in layers if "resnets" in name]


def test_metadata_tells_steps_and_epochs_as_sd_scripts_counts_them(first_run: Outcome) -> None:
    metadata = {}
    for name in ("spyke-step00000012", "spyke-000001", "spyke"):
        with safe_open(first_run.output_dir / f"{name}.safetensors", "np") as file:
            metadata[name] = file.metadata()
    counted = [(found["ss_steps"], found["ss_epoch"]) for found in metadata.values()]
    assert counted == [("12", "1"), ("8", "1"), ("16", "2")]
    final = metadata["spyke"]
    assert final["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert {name: final[f"ss_{name}"] for name in ("num_batches_per_epoch", "network_dim", "seed", "clip_skip")} == {
        "num_batches_per_epoch": "8", "network_dim": "2", "seed": "42", "clip_skip": "2",
    }  # fmt: skip
    assert json.loads(final["ss_tag_frequency"])["train"]["spyke_demo"] == 4


def test_tensorboard_has_every_step_and_the_bar_shows_its_average(first_run: Outcome) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = first_run.output_dir.glob("tb/*/network_train/events.out.tfevents.*")
    log = EventAccumulator(str(events)).Reload()
    scalars = {tag: {e.step: e.value for e in log.Scalars(tag)} for tag in log.Tags()["scalars"]}
    assert list(scalars["loss/current"]) == list(range(1, 17))
    assert list(scalars["loss/epoch_average"]) == [1, 2]
    assert scalars["lr/unet"][16] < scalars["lr/unet"][1] == pytest.approx(2e-2, rel=0.02)
    assert scalars["lr/textencoder"][1] == pytest.approx(1e-3, rel=0.02)
    rolling = sum(list(scalars["loss/current"].values())[8:]) / 8
    assert scalars["loss/average"][16] == pytest.approx(rolling, rel=1e-4)
    assert first_run.losses()[-1] == f"{rolling:.3g}"


def test_it_really_learns(first_run: Outcome) -> None:
    shown = [float(loss) for loss in first_run.losses()]
    assert shown[-1] < shown[7] - 0.05, f"avr_loss {shown[7]} after the first epoch, {shown[-1]} after the second"


def test_a_resumed_run_trains_the_rest_and_goes_on_with_the_schedule(
    first_run: Outcome, tmp_path: Path, tiny_base: Path, small_dataset: Path
) -> None:
    options = [f"--resume={first_run.output_dir / 'spyke-000001-state'}", "--initial_epoch=2", "--max_train_epochs=2"]
    options += ["--learning_rate=2e-2", "--lr_scheduler=cosine", "--text_encoder_lr=1e-3", "--save_every_n_steps=8"]
    resumed = train(tmp_path / "output", tiny_base, small_dataset, *options)
    assert resumed.returncode == 0, resumed.stderr
    assert "\nepoch 2/2\n" in resumed.stdout
    assert "epoch 1/2" not in resumed.stdout
    assert resumed.files() == ["spyke-step00000008.safetensors", "spyke.safetensors"]
    assert len(resumed.losses()) == 8


def test_accumulation_and_batches_make_fewer_steps(tmp_path: Path, tiny_base: Path, demo_pictures: Path) -> None:
    config = tmp_path / "dataset.toml"
    train_dir, reg = demo_pictures / "train/1_spyke_demo", demo_pictures / "reg/1_creature"
    config.write_text(DATASET.format(train=train_dir, reg=reg, batch_size=4, repeats=1))
    options = ["--max_train_steps=3", "--gradient_accumulation_steps=2", "--learning_rate=1e18", "--cache_latents"]
    outcome = train(tmp_path / "output", tiny_base, config, *options)
    assert outcome.returncode == 0, outcome.stderr
    assert "num batches per epoch / 1epochのバッチ数: 7\n" in outcome.stdout  # 12 + 12 in buckets of 12, 7 and 5
    assert "total optimization steps / 学習ステップ数: 3\n" in outcome.stdout
    assert outcome.losses()[-1] == "nan"  # a learning rate of 1e18, and still the exit is 0 and a file is saved
    assert outcome.files() == ["spyke.safetensors"]


def test_an_unknown_option_is_a_usage_error(tmp_path: Path, tiny_base: Path, small_dataset: Path) -> None:
    outcome = train(tmp_path, tiny_base, small_dataset, "--learning_rte=1")
    assert outcome.returncode == 2
    assert outcome.stderr.startswith("usage: train_network.py [-h]")
    assert outcome.stderr.endswith("train_network.py: error: unrecognized arguments: --learning_rte=1\n")


def test_an_option_it_does_not_have_is_refused_and_not_ignored(
    tmp_path: Path, tiny_base: Path, small_dataset: Path
) -> None:
    for option in ("--noise_offset=0.1", "--optimizer_type=Prodigy", "--network_dropout=0.1"):
        outcome = train(tmp_path, tiny_base, small_dataset, option)
        assert (outcome.returncode, outcome.stderr) == (
            1,
            f"train_network.py: error: {option} is not in the miniature\n",
        )


def test_a_missing_base_ends_as_in_sd_scripts(tmp_path: Path, small_dataset: Path) -> None:
    missing = tmp_path / "no" / "model.safetensors"
    outcome = train(tmp_path / "output", missing, small_dataset)
    assert outcome.returncode == 1
    assert outcome.stderr.splitlines()[-1] == (
        f'ValueError: The provided pretrained_model_name_or_path "{missing}" is neither a valid local path nor a valid'
        " repo id. Please check the parameter."
    )


def test_without_images_nothing_is_trained_and_the_exit_is_0(tmp_path: Path, tiny_base: Path) -> None:
    config = tmp_path / "dataset.toml"
    config.write_text(DATASET.format(train=tmp_path / "none", reg=tmp_path / "none", batch_size=1, repeats=1))
    outcome = train(tmp_path / "output", tiny_base, config)
    assert outcome.returncode == 0
    assert "ERROR    No data found. Please verify arguments" in outcome.stderr
    assert outcome.files() == []


def test_the_same_seed_draws_the_same_dataset_and_a_second_run_changes_nothing(
    tmp_path: Path, demo_pictures: Path
) -> None:
    assert "56 of 56 files written" in run_script("make_demo_dataset.py", tmp_path / "again").stdout
    assert "0 of 56 files written" in run_script("make_demo_dataset.py", tmp_path / "again").stdout
    assert files_of(demo_pictures) == files_of(tmp_path / "again")
    assert len(list(demo_pictures.glob("train/*/*.png"))) == 12
    assert len(list(demo_pictures.glob("reg/*/*.png"))) == 8
    assert len(list(demo_pictures.glob("heldout/*.png"))) == 8
    captions = [path.read_text() for path in demo_pictures.glob("train/*/*.txt")]
    assert all(caption.startswith("spyke_demo, ") for caption in captions)


def test_the_same_seed_makes_the_same_base(tmp_path: Path, tiny_base: Path) -> None:
    made = run_script("make_random_base.py", tmp_path / "again")
    assert made.returncode == 0, made.stderr
    assert files_of(tiny_base) == files_of(tmp_path / "again")
    assert sum(len(content) for content in files_of(tiny_base).values()) < 5_000_000


def test_a_base_that_is_there_is_left_alone_and_anything_else_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    before = files_of(tiny_base)
    assert "already there" in run_script("make_random_base.py", tiny_base).stdout
    other = run_script("make_random_base.py", tiny_base, "--seed", "1")
    (tmp_path / "mine.txt").write_text("mine")
    foreign = run_script("make_random_base.py", tmp_path)
    assert (other.returncode, foreign.returncode) == (1, 1)
    assert "remove it or name another one" in other.stderr
    assert "not a base written by this script" in foreign.stderr
    assert files_of(tiny_base) == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
