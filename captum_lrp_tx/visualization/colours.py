"""The signed colour scale, and colours in a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

RGB = tuple[int, int, int]

# ColorBrewer's red-blue scale: tells the signs apart for colour-blind readers too.
RED: tuple[RGB, ...] = (
    (247, 247, 247), (253, 219, 199), (244, 165, 130), (214, 96, 77), (178, 24, 43),
)  # fmt: skip
BLUE: tuple[RGB, ...] = (
    (247, 247, 247), (209, 229, 240), (146, 197, 222), (67, 147, 195), (33, 102, 172),
)  # fmt: skip
#: From all against to all for.
SIGNED: tuple[RGB, ...] = (*BLUE[::-1], *RED[1:])
#: For methods without a sign: ColorBrewer's purples, from the same white.
PURPLE: tuple[RGB, ...] = (
    (247, 247, 247), (218, 218, 235), (188, 189, 220), (128, 125, 186), (84, 39, 143),
)  # fmt: skip
PAPER: RGB = RED[0]
INK: RGB = (26, 26, 26)
_FADED: RGB = (125, 125, 125)


def colour_of(value: float, scale: float, faded: bool = False) -> tuple[RGB, RGB]:
    """Background and text colour of a relevance.

    Args:
        value (float): Relevance.
        scale (float): Relevance of the full colour; larger ones are clipped.
        faded (bool): Paler, for special tokens.

    Returns:
        tuple of RGB: Background and text, each three numbers from 0 to 255.

    Example::

        >>> colour_of(0.0, 1.0)
        ((247, 247, 247), (26, 26, 26))
    """
    return _between(RED if value >= 0 else BLUE, abs(value) / scale, faded)


def shade(value: float, scale: float, signed: bool, faded: bool = False) -> tuple[RGB, RGB]:
    """Background and text colour of a relevance; purple for methods without a sign.

    Args:
        value (float): Relevance.
        scale (float): Relevance of the full colour.
        signed (bool): Which of the two scales.
        faded (bool): Paler, for special tokens.

    Example::

        >>> shade(0.0, 1.0, signed=False) == shade(0.0, 1.0, signed=True)
        True
    """
    if signed:
        return colour_of(value, scale, faded)
    return _between(PURPLE, max(value / scale, 0.0), faded)


def _between(stops: Sequence[RGB], share: float, faded: bool) -> tuple[RGB, RGB]:
    """The colour at a share of a scale, and that of a text on it."""
    position = min(share, 1.0) * (len(stops) - 1) * (0.5 if faded else 1.0)
    low = min(int(position), len(stops) - 2)
    part = position - low
    red, green, blue = (
        round(a + (b - a) * part) for a, b in zip(stops[low], stops[low + 1], strict=True)
    )
    background = (red, green, blue)
    if faded:
        return background, _FADED
    # dark or white text, whichever has more contrast as WCAG 2 defines it
    is_light = (_luminance(background) + 0.05) ** 2 > (_luminance(INK) + 0.05) * 1.05
    return background, INK if is_light else (255, 255, 255)


def _luminance(rgb: RGB) -> float:
    parts = [part / 255 for part in rgb]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def supports_colour(stream: Any = None) -> bool:
    """Whether colours should be written to a stream.

    Args:
        stream (text stream, optional): Standard output unless given.

    Returns:
        bool: True on a terminal, unless ``NO_COLOR`` is set (https://no-color.org) or the
        terminal is ``dumb``.
    """
    stream = sys.stdout if stream is None else stream
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(getattr(stream, "isatty", lambda: False)())


def paint(text: str, background: RGB, ink: RGB) -> str:
    """A text between the escape codes of its colours."""
    codes = ";".join(map(str, (48, 2, *background, 38, 2, *ink)))
    return f"\033[{codes}m{text}\033[0m"


def hexadecimal(rgb: RGB) -> str:
    """A colour as HTML and matplotlib write it."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)
