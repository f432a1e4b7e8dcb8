"""A stand-in for sd-scripts that trains nothing: it prints a scripted console and writes small files, at once.

Takes the options of a real run and a scenario from FAKE_SCENARIO. Its numbers fit one dataset: 4 images x 2 repeats.
"""

import argparse
import json
import os
import shutil
import signal
import struct
import sys
from pathlib import Path

BATCHES = 8
SCENARIO = os.environ.get("FAKE_SCENARIO", "")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--output_name")
    parser.add_argument("--save_every_n_steps", type=int)
    parser.add_argument("--max_train_epochs", type=int)
    parser.add_argument("--max_train_steps", type=int)
    parser.add_argument("--logging_dir", type=Path)
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
    loss = "nan" if SCENARIO == "nan" and step > 3 else f"{1 / step:.3g}"
    bar = f"\rsteps: {100 * step // total:3}%|█▎        | {step}/{total} [00:{step:02}<00:14,  1.00s/it"
    print(f"{bar}]{bar}, avr_loss={loss}]", end="", flush=True)


def save(file: Path) -> None:
    say("", f"saving checkpoint: {file}")
    file.parent.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"lora": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", 1.0))


def log_losses(logging_dir: Path) -> None:
    if events := os.environ.get("FAKE_EVENTS"):
        logging_dir.mkdir(parents=True, exist_ok=True)
        shutil.copy(events, logging_dir / "events.out.tfevents.0.fake")


def say_ready_and_wait() -> None:
    Path(os.environ["FAKE_READY"]).write_text(str(os.getpid()))
    signal.pause()


def main() -> None:
    options = parse()
    total = options.max_train_steps or options.max_train_epochs * BATCHES
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
    for step in range(1, total + 1):
        print_step(step, total)
        if options.save_every_n_steps and step % options.save_every_n_steps == 0 and step < total:
            save(options.output_dir / f"{options.output_name}-step{step:08}.safetensors")
        if step == 4:
            trip()
    if SCENARIO != "unsaved":
        save(options.output_dir / f"{options.output_name}.safetensors")
    say("2026-11-22 10:44:20 INFO     model saved.                    train_network.py:1729")


def trip() -> None:
    """What happens in the middle of a run."""
    if SCENARIO == "waits":
        say_ready_and_wait()
    if SCENARIO == "traceback":
        raise OSError("image file is truncated")
    if SCENARIO == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if SCENARIO == "launcher-killed":
        os.kill(os.getppid(), signal.SIGKILL)
        say_ready_and_wait()
    if SCENARIO == "silent-exit":
        sys.exit(9)


if __name__ == "__main__":
    main()
