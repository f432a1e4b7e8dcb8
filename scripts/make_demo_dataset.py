"""Draw the demo's pictures: a small creature called spyke to train on, and other creatures as regularisation images.

Everything is drawn with Pillow from a seed, so the same seed gives the same pictures and captions, and the demo needs
no download. A file that is already there is left as it is.

    DIR/train/1_spyke_demo/spyke_00.png, spyke_00.txt ...     12 pictures, captions that begin with the trigger word
    DIR/reg/1_creature/creature_00.png, creature_00.txt ...   8 pictures
    DIR/heldout/unseen_00.png, unseen_00.txt ...              8 more of spyke, which are never trained on
"""

from __future__ import annotations

import argparse
import io
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

TRIGGER = "spyke_demo"
TRAIN_FOLDER, REG_FOLDER, HELDOUT_FOLDER = "train/1_spyke_demo", "reg/1_creature", "heldout"

SIZES = [(192, 192), (128, 240), (256, 160), (160, 160)]
"""Width and height in pixels: square, tall, wide, so that bucketing at resolution 96 has three buckets to fill."""

BACKGROUNDS = {"blue": "#9cc9f0", "green": "#a8dba0", "pink": "#f5bcd0", "white": "#f7f7f2", "grey": "#b9bcc4"}
POSES = ["standing", "jumping", "leaning", "sitting"]
REG_COLOURS = {"red": "#d9534f", "orange": "#f0a04b", "brown": "#8d6748", "teal": "#3fa7a0"}
REG_SHAPES = ["round creature", "square creature"]

SUPERSAMPLING = 4
"""Pictures are drawn this many times larger and then reduced, which smooths their edges."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    files = draw_dataset(random.Random(args.seed))
    written = sum(write_once(args.directory / name, content) for name, content in files.items())
    print(
        f"{args.directory}: 12 training, 8 regularisation and 8 held-out images; "
        f"{written} of {len(files)} files written"
    )


def draw_dataset(rng: random.Random) -> dict[str, bytes]:
    """Every file of the dataset: its path in DIR to its bytes."""
    files: dict[str, bytes] = {}
    for number in range(12):
        pose, background = POSES[number % len(POSES)], list(BACKGROUNDS)[number % len(BACKGROUNDS)]
        picture = draw_spyke(SIZES[(number // 2) % len(SIZES)], pose, BACKGROUNDS[background], rng)
        files[f"{TRAIN_FOLDER}/spyke_{number:02}.png"] = as_png(picture)
        files[f"{TRAIN_FOLDER}/spyke_{number:02}.txt"] = f"{TRIGGER}, {pose}, {background} background\n".encode()
    for number in range(8):
        shape, colour = REG_SHAPES[number % 2], sorted(REG_COLOURS)[number // 2]
        background = list(BACKGROUNDS)[number % len(BACKGROUNDS)]
        picture = draw_creature(SIZES[number % len(SIZES)], shape, REG_COLOURS[colour], BACKGROUNDS[background], rng)
        files[f"{REG_FOLDER}/creature_{number:02}.png"] = as_png(picture)
        files[f"{REG_FOLDER}/creature_{number:02}.txt"] = f"{shape}, {colour}, {background} background\n".encode()
    for number in range(8):
        pose, background = POSES[number % len(POSES)], list(BACKGROUNDS)[(number + 2) % len(BACKGROUNDS)]
        picture = draw_spyke(SIZES[(number + 1) % len(SIZES)], pose, BACKGROUNDS[background], rng)
        files[f"{HELDOUT_FOLDER}/unseen_{number:02}.png"] = as_png(picture)
        files[f"{HELDOUT_FOLDER}/unseen_{number:02}.txt"] = f"{TRIGGER}, {pose}, {background} background\n".encode()
    return files


def write_once(path: Path, content: bytes) -> bool:
    if path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return True


def as_png(picture: Image.Image) -> bytes:
    smooth = picture.resize((picture.width // SUPERSAMPLING, picture.height // SUPERSAMPLING), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    smooth.save(stream, "PNG")
    return stream.getvalue()


class Brush:
    """Draws in units of the creature's size around its middle, with y downwards and a lean to one side."""

    def __init__(self, size: tuple[int, int], background: str, rng: random.Random, lift: float, lean: float) -> None:
        width, height = (side * SUPERSAMPLING for side in size)
        self.picture = Image.new("RGB", (width, height), background)
        self.draw = ImageDraw.Draw(self.picture)
        self.unit = min(width, height) * rng.uniform(0.28, 0.33)
        middle_x, middle_y = width * rng.uniform(0.45, 0.55), height * rng.uniform(0.54, 0.58)
        self.draw.rectangle((0, middle_y + self.unit, width, height), fill=shade(background, 0.8))
        self.middle = (middle_x, middle_y - lift * self.unit)
        self.lean = lean

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.middle[0] + (x - y * self.lean) * self.unit, self.middle[1] + y * self.unit

    def disc(self, x: float, y: float, radius_x: float, radius_y: float, fill: str) -> None:
        middle_x, middle_y = self.at(x, y)
        reach = (radius_x * self.unit, radius_y * self.unit)
        box = (middle_x - reach[0], middle_y - reach[1], middle_x + reach[0], middle_y + reach[1])
        self.draw.ellipse(box, fill=fill)

    def shape(self, points: list[tuple[float, float]], fill: str) -> None:
        self.draw.polygon([self.at(*point) for point in points], fill=fill)


def draw_spyke(size: tuple[int, int], pose: str, background: str, rng: random.Random) -> Image.Image:
    """A violet blob with five spikes, one eye larger than the other, a yellow patch on its left and one green boot."""
    brush = Brush(size, background, rng, lift=0.3 if pose == "jumping" else 0.0, lean=0.3 if pose == "leaning" else 0.0)
    foot_x, foot_y = (0.95, 0.9) if pose == "sitting" else (0.45, 1.15)
    brush.shape([(-0.5, 0.5), (-0.2, 0.7), (0.2 - foot_x, foot_y), (-0.2 - foot_x, foot_y)], "#5b3f9e")
    brush.shape([(0.2, 0.7), (0.5, 0.5), (foot_x + 0.25, foot_y), (foot_x - 0.2, foot_y)], "#3d8b4f")
    for spike in range(5):
        angle = math.radians(-150 + 30 * spike)
        reach = 1.45 + 0.1 * (spike % 2)
        left, right = angle - 0.16, angle + 0.16
        tip = (reach * math.cos(angle), reach * math.sin(angle))
        base = [(0.85 * math.cos(side), 0.85 * math.sin(side)) for side in (left, right)]
        brush.shape([base[0], tip, base[1]], "#4a2f86")
    brush.disc(0, 0, 1.0, 0.9, "#7d5fd0")
    brush.disc(-0.55, 0.3, 0.28, 0.22, "#f2d24b")
    for x, radius in ((-0.32, 0.24), (0.34, 0.16)):
        brush.disc(x, -0.2, radius, radius, "white")
        brush.disc(x + rng.uniform(-0.06, 0.06), -0.18, radius * 0.45, radius * 0.45, "#20203a")
    brush.shape([(-0.15, 0.32), (0.4, 0.26), (0.12, 0.5)], "#20203a")
    return brush.picture


def draw_creature(size: tuple[int, int], shape: str, colour: str, background: str, rng: random.Random) -> Image.Image:
    """A plain creature: one body, two equal eyes, two feet."""
    brush = Brush(size, background, rng, lift=0.0, lean=0.0)
    for x in (-0.45, 0.45):
        brush.disc(x, 0.95, 0.25, 0.15, shade(colour, 0.7))
    if shape == "round creature":
        brush.disc(0, 0, 0.95, 0.95, colour)
    else:
        brush.shape([(-0.9, -0.85), (0.9, -0.85), (0.9, 0.9), (-0.9, 0.9)], colour)
    for x in (-0.3, 0.3):
        brush.disc(x, -0.2, 0.15, 0.15, "white")
        brush.disc(x, -0.2, 0.07, 0.07, "black")
    return brush.picture


def shade(colour: str, factor: float) -> str:
    channels = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{int(channel * factor):02x}" for channel in channels)


if __name__ == "__main__":
    main()
