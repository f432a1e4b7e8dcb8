"""How fast the wrapper itself is: start-up, a plan of 10,000 images, the console parser, and its share of a run.

Run it with the project's own Python: ``make bench``. Each figure stands beside its aim; nothing fails.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from PIL import Image

PROJECT = Path(__file__).resolve().parents[1]
LONG_STEPS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000, help="images of the dataset that is planned")
    options = parser.parse_args()
    print(f"{'measure':<44} {'figure':>14}   aim")
    bare_s = _median_s([sys.executable, "-c", "pass"])
    _line("python -c pass", f"{bare_s:.3f} s", "")
    for name, words in (("--help", ["--help"]), ("validate spyke.toml", ["validate", "presets/spyke.toml"])):
        _line(
            f"spyke-kohya {name}",
            f"{_median_s([sys.executable, '-m', 'spyke_kohya.cli', *words]):.3f} s",
            "under 0.3 s",
        )
    with tempfile.TemporaryDirectory() as scratch:
        _line(f"plan of {options.images} images", f"{_plan_s(Path(scratch), options.images):.2f} s", "under 2 s")
        full_s, quick_s, again_s, peak_mb = _audit(Path(scratch), options.images)
        _line(f"audit of {options.images} images, all decoded", f"{full_s:.1f} s", "the disk and both cores")
        _line("  its memory at the most", f"{peak_mb:.0f} MB", "under 300 MB")
        _line("  validate --quick", f"{quick_s:.2f} s", "under 3 s")
        _line("  a second audit, nothing changed", f"{again_s:.2f} s", "under 1 s")
    _line("console parser", f"{_parser_mb_per_s():.0f} MB/s", "over 20 MB/s")
    cpu_s, wall_s, steps = _supervision()
    _line(f"the wrapper's own CPU in the demo's {steps} steps", f"{cpu_s:.2f} s", "")
    _line(f"  the same in a run of {LONG_STEPS} steps", f"{cpu_s / steps * LONG_STEPS:.2f} s", "")
    share = cpu_s / wall_s
    _line(f"  its share of the demo's {wall_s:.0f} s", f"{share:.2%}", "under 1 %")


def _line(measure: str, figure: str, aim: str) -> None:
    print(f"{measure:<44} {figure:>14}   {aim}", flush=True)


def _median_s(argv: list[str], times: int = 7) -> float:
    def once() -> float:
        started = time.perf_counter()
        subprocess.run(argv, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - started

    return statistics.median(once() for _ in range(times))


def _plan_s(folder: Path, count: int) -> float:
    """Seconds of ``plan`` as a command, on real image files of mixed sizes with captions."""
    sizes = [(512, 512), (640, 448), (448, 640), (768, 512), (300, 900), (1024, 1024)]
    images = folder / "train" / "1_many"
    images.mkdir(parents=True)
    for size in sizes:
        Image.new("RGB", size).save(folder / f"{size[0]}x{size[1]}.png")
    originals = [(folder / f"{width}x{height}.png").read_bytes() for width, height in sizes]
    for index in range(count):
        (images / f"{index:06d}.png").write_bytes(originals[index % len(originals)])
        (images / f"{index:06d}.txt").write_text(f"many, number {index}")
    (folder / "dataset.toml").write_text(
        "[general]\nenable_bucket = true\ncaption_extension = '.txt'\n[[datasets]]\nresolution = 512\nbatch_size = 2\n"
        f"[[datasets.subsets]]\nimage_dir = '{images}'\nnum_repeats = 1\n"
    )
    return _median_s(
        [sys.executable, "-m", "spyke_kohya.cli", "plan", str(folder / "dataset.toml"), "--epochs", "1"], times=3
    )


def _audit(folder: Path, count: int) -> tuple[float, float, float, float]:
    """Seconds of validate in full, --quick and again; and the peak of memory in MB. No picture looks like another."""
    images = folder / "audited" / "1_many"
    images.mkdir(parents=True)
    chance = random.Random(0)
    for index in range(count):
        blocks = Image.frombytes("RGB", (6, 6), chance.randbytes(108))
        size = ((512, 512), (640, 448), (448, 640))[index % 3]
        file = images / f"{index:06d}.{'jpg' if index % 2 else 'png'}"
        blocks.resize(size, Image.Resampling.BICUBIC).save(file, compress_level=1)
        (images / f"{index:06d}.txt").write_text(f"many, number {index}")
    preset = (folder / "dataset.toml").read_text().replace(str(folder / "train"), str(folder / "audited"))
    (folder / "audit.toml").write_text(preset)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.sync()  # the disk is to read now, not to write still
    words = [sys.executable, "-m", "spyke_kohya.cli", "validate", str(folder / "audit.toml")]
    quick_s = _median_s([*words, "--quick"], times=3)
    full_s = _median_s(words, times=1)
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
    return full_s, quick_s, _median_s(words, times=3), peak_mb


def _parser_mb_per_s() -> float:
    from spyke_kohya.engine.console import ConsoleParser

    raw = b"".join(path.read_bytes() for path in sorted((PROJECT / "tests/data/transcripts").glob("*.raw")))
    stream = raw * (20_000_000 // len(raw) + 1)
    parser = ConsoleParser()
    started = time.process_time()
    for offset in range(0, len(stream), 65536):
        parser.feed(stream[offset : offset + 65536])
    parser.finish()
    return len(stream) / 1e6 / (time.process_time() - started)


def _supervision() -> tuple[float, float, int]:
    """CPU seconds and seconds that the wrapper itself takes to supervise the demo, and the demo's steps."""
    from spyke_kohya.audit.examine import examine
    from spyke_kohya.engine.release import find_engine
    from spyke_kohya.presets.loading import load
    from spyke_kohya.record.redact import Redactor
    from spyke_kohya.report.live import Display
    from spyke_kohya.run.launch import prepare_launch
    from spyke_kohya.run.train import train

    with tempfile.TemporaryDirectory() as scratch, open(os.devnull, "w") as nowhere:
        examined = examine(load("demo", PROJECT, [f"train_network.output_dir={scratch}"]), PROJECT)
        engine = find_engine(
            given=None, environment={}, preset_engine="scripts/miniature", root=PROJECT, own_python=Path(sys.executable)
        )
        if examined.plan is None:
            raise SystemExit("the demo has no plan: run `make demo-inputs` first")
        launch = prepare_launch(
            examined.loaded, examined.plan, engine, root=PROJECT, now=datetime.now(), inherited=os.environ
        )
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        outcome = train(
            launch,
            inherited=os.environ,
            redactor=Redactor(os.environ, Path.home()),
            listen=Display(nowhere),
            now=datetime.now,
        )
        after, ended = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    if outcome.status != "finished":
        raise SystemExit(f"the demo ended at step {outcome.steps}: {outcome.reason}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, ended - started, outcome.steps


if __name__ == "__main__":
    main()
