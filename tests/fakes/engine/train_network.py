"""A stand-in for sd-scripts that trains nothing: it prints a scripted console and writes small files, at once.

Takes the options of a real run and a scenario from FAKE_SCENARIO, which comes to pass at step FAKE_AT, in a
resumed run at FAKE_AT_IN_RESUMED or not at all. Its numbers fit one dataset: 4 images x 2 repeats.
"""

import argparse
import json
import os
import shutil
import signal
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

BATCHES = 8
RESUMED = any(word.startswith("--resume=") for word in sys.argv)
AT = int(os.environ.get("FAKE_AT_IN_RESUMED", "0") if RESUMED else os.environ.get("FAKE_AT", "4"))
SCENARIO = os.environ.get("FAKE_SCENARIO", "") if AT else ""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--output_name")
    parser.add_argument("--save_every_n_steps", type=int)
    parser.add_argument("--max_train_epochs", type=int)
    parser.add_argument("--max_train_steps", type=int)
    parser.add_argument("--logging_dir", type=Path)
    parser.add_argument("--save_state", action="store_true")
    parser.add_argument("--save_every_n_epochs", type=int)
    parser.add_argument("--save_last_n_epochs_state", type=int)
    parser.add_argument("--initial_epoch", type=int, default=1)
    return parser.parse_known_args()[0]


def say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def print_header(total: int, epochs: int) -> None:
    say(
        "running training / 学習開始",
        f"  num train images * repeats / 学習画像の数×繰り返し回数: {9 if SCENARIO == 'header' else 8}",
        "  num validation images * repeats / 学習画像の数×繰り返し回数: 0",
        "  num reg images / 正則化画像の数: 0",
        f"  num batches per epoch / 1epochのバッチ数: {BATCHES}",
        f"  num epochs / epoch数: {epochs}",
        "  batch size per device / バッチサイズ: 1",
        "  gradient accumulation steps / 勾配を合計するステップ数 = 1",
        f"  total optimization steps / 学習ステップ数: {total}",
    )


def print_step(step: int, total: int) -> None:
    loss = "nan" if SCENARIO == "nan" and step >= AT else f"{1 / step:.3g}"
    bar = f"\rsteps: {100 * step // total:3}%|█▎        | {step}/{total} [00:{step:02}<00:14,  1.00s/it"
    print(f"{bar}]{bar}, avr_loss={loss}]", end="", flush=True)


def save(file: Path) -> None:
    say("", f"saving checkpoint: {file}")
    file.parent.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"lora": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    data = struct.pack("<Q", len(header)) + header + struct.pack("<f", 1.0)
    if SCENARIO == "saving":
        file.write_bytes(data[:-2])
        say_ready_and_wait()
    if SCENARIO == "spoiled":
        data = data[:-4] + struct.pack("<f", float("nan"))
    file.write_bytes(data)
    if SCENARIO == "clock-back":
        os.utime(file, (1000, 1000))


def save_state(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "train_state.json").write_text("{}")
    header = json.dumps({"lora": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        with zipfile.ZipFile(directory / name, "w") as archive:
            archive.writestr("data.pkl", name)
    log = f"2026-11-22 10:44:16 INFO     Random states saved in {directory}/random_states_0.pkl"
    say(log.ljust(220) + "checkpointing.py:170")


def save_epoch(options: argparse.Namespace, epoch: int) -> None:
    name = options.output_dir / f"{options.output_name}-{epoch:06}"
    save(name.with_name(f"{name.name}.safetensors"))
    if options.save_state:
        save_state(name.with_name(f"{name.name}-state"))
        kept = options.save_last_n_epochs_state or epoch
        shutil.rmtree(options.output_dir / f"{options.output_name}-{epoch - kept:06}-state", ignore_errors=True)


def log_losses(logging_dir: Path) -> None:
    if events := os.environ.get("FAKE_EVENTS"):
        logging_dir.mkdir(parents=True, exist_ok=True)
        shutil.copy(events, logging_dir / "events.out.tfevents.0.fake")


def say_ready_and_wait() -> None:
    Path(os.environ["FAKE_READY"]).write_text(str(os.getpid()))
    signal.pause()


def hold() -> None:
    """Say so, and go on when the other end of the pipe FAKE_GO is opened."""
    Path(os.environ["FAKE_READY"]).write_text(str(os.getpid()))
    Path(os.environ["FAKE_GO"]).read_bytes()


def main() -> None:
    options = parse()
    total = options.max_train_steps or options.max_train_epochs * BATCHES
    if SCENARIO == "at-start":
        say_ready_and_wait()
    say(f"accelerator device: {'cuda' if SCENARIO == 'device' else 'cpu'}")
    if SCENARIO == "device":
        say_ready_and_wait()
    if SCENARIO == "no-data":
        say("2026-11-22 10:44:16 ERROR    No data found. Please verify arguments / 画像がありません。 train_util.py:1")
        sys.exit(0)
    print_header(total, -(-total // BATCHES))
    if SCENARIO == "header":
        say_ready_and_wait()
    log_losses(options.logging_dir)
    train(options, total)
    if SCENARIO != "unsaved":
        save(options.output_dir / f"{options.output_name}.safetensors")
    say("2026-11-22 10:44:20 INFO     model saved.                    train_network.py:1729")


def train(options: argparse.Namespace, total: int) -> None:
    done = (options.initial_epoch - 1) * BATCHES
    for step in range(1, total - done + 1):
        print_step(step, total)
        if options.save_every_n_steps and step % options.save_every_n_steps == 0 and step + done < total:
            save(options.output_dir / f"{options.output_name}-step{step:08}.safetensors")
        if step == AT:
            trip()
        if SCENARIO == "nan" and step == AT + 2:
            say_ready_and_wait()
        if options.save_every_n_epochs and step % BATCHES == 0 and step + done < total:
            save_epoch(options, (step + done) // BATCHES)


def fill_disk() -> None:
    with (Path("output") / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def be_deaf() -> None:
    """Hear every signal that can be ignored, say so, and go on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: Path(os.environ["FAKE_READY"]).write_text("heard"))
    Path(os.environ["FAKE_READY"]).write_text(str(os.getpid()))
    while True:
        signal.pause()


def tell_secrets() -> None:
    say(*(os.environ[name] for name in ("HF_TOKEN", "WANDB_API_KEY")))
    say(f"2026-11-22 10:44:16 WARNING  token {os.environ['HF_TOKEN']} in {Path.home()}/x    train_util.py:1")


def crash() -> None:
    raise OSError("image file is truncated")


def kill_launcher() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    say_ready_and_wait()


def trip() -> None:
    """What happens in the middle of a run."""
    happenings: dict[str, Callable[[], object]] = {
        "waits": say_ready_and_wait,
        "deaf": be_deaf,
        "holds": hold,
        "loud": lambda: sys.stdout.buffer.write(b"x" * 10_000_000 + b"\n"),
        "bytes": lambda: sys.stdout.buffer.write(bytes(range(256)) * 40 + b"\n"),
        "fills-disk": fill_disk,
        "tells-secrets": tell_secrets,
        "traceback": crash,
        "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "launcher-killed": kill_launcher,
        "silent-exit": lambda: sys.exit(9),
    }
    happenings.get(SCENARIO, lambda: None)()


if __name__ == "__main__":
    main()
