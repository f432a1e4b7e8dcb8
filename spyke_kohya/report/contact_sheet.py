"""A grid of pictures as one picture, with a label above every column and beside every row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont

TALLEST = 512
"""Pixels that a picture is reduced to, so that a whole grid can be looked at."""
GAP = 8
HEAD = 40
SIDE = 170
BACKGROUND, INK = "#ffffff", "#222222"


def write_contact_sheet(
    path: Path, columns: Sequence[str], rows: Sequence[str], pictures: Sequence[Sequence[Path]], title: str = ""
) -> None:
    """Write the pictures (rows of columns), all of one shape, as a PNG."""
    width, height = _size(pictures[0][0])
    sheet = Image.new(
        "RGB",
        (SIDE + len(columns) * (width + GAP) + GAP, 2 * HEAD + len(rows) * (height + GAP) + GAP),
        BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, HEAD // 2), title, fill=INK, font=_font(20), anchor="lm")
    for column, label in enumerate(columns):
        middle = SIDE + column * (width + GAP) + width // 2
        draw.text((middle, HEAD + HEAD // 2), label, fill=INK, font=_font(_fitting(label, width)), anchor="mm")
    for row, label in enumerate(rows):
        top = 2 * HEAD + row * (height + GAP)
        text = "\n".join(wrap(label, 18))
        draw.multiline_text((GAP, top + height // 2), text, fill=INK, font=_font(16), anchor="lm")
        for column, picture in enumerate(pictures[row]):
            with Image.open(picture) as image:
                reduced = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(reduced, (SIDE + column * (width + GAP), top))
    sheet.save(path, format="PNG")


def _size(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as image:
        scale = min(1.0, TALLEST / image.height)
        return round(image.width * scale), round(image.height * scale)


def _fitting(label: str, width: int) -> int:
    """A font size at which the label is no wider than its column."""
    return max(8, min(18, round(1.7 * width / len(label))))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
