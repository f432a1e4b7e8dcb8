"""What only decoding tells of an image: is it whole, what do its pixels lose in training, what does it look like?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from spyke_kohya.engine.batching import Size

_WHITE_FROM = 240


@dataclass(frozen=True)
class Picture:
    """One decoded file, or the ``problem`` that decoding it ended in.

    ``digest`` is of its bytes, ``look`` what ``likeness.look_of`` says, in hexadecimal. ``transparent`` is the share of
    pixels that are, ``beneath`` the colour (red, green, blue) that they have once the transparency is dropped.
    ``size`` is what ``header_size`` says, None where it raises.
    """

    digest: str = ""
    problem: str = ""
    mode: str = ""
    orientation: int = 1
    animated: bool = False
    transparent: float = 0.0
    beneath: tuple[int, int, int] = (255, 255, 255)
    look: str = ""
    size: Size | None = None


Pictures: TypeAlias = dict[str, Picture]
Listen: TypeAlias = Callable[[int], object]
"""Called with the number of images decoded so far."""


def is_white(colour: tuple[int, int, int]) -> bool:
    """Whether a background of this colour is what one expects where a picture was transparent."""
    return min(colour) >= _WHITE_FROM
