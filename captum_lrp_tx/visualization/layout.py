"""Breaking boxes into lines, in a terminal as in a figure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

from captum_lrp_tx.visualization.bidirectional import (
    RIGHT_TO_LEFT_MARK,
    direction,
    is_right_to_left,
    levels,
    visual_order,
)
from captum_lrp_tx.visualization.tokens import Piece


def wrapped(
    pieces: Sequence[Piece], width: float, measure: Callable[[str], float], gap: float
) -> Iterator[list[tuple[str, Piece, bool]]]:
    """Breaks boxes into lines; a word that is wider than a line is cut into several boxes."""
    line: list[tuple[str, Piece, bool]] = []
    used = 0.0
    for piece in pieces:
        space = piece.space
        for text in chunks(piece.text, width - gap, measure):
            needed = measure(text)
            if line and used + needed + (gap if space else 0.0) > width:
                yield line
                line, used = [], 0.0
            space = space or not line
            line.append((text, piece, space))
            used += needed + (gap if space else 0.0)
            space = False
    if line:
        yield line


def placed(
    line: Sequence[tuple[str, Piece, bool]],
    pieces: Sequence[Piece],
    width: float,
    measure: Callable[[str], float],
    gap: float,
) -> list[tuple[float, str, Piece]]:
    """Where the boxes of a line begin, in the order of the writing direction.

    Args:
        line: As :func:`wrapped` breaks it.
        pieces (sequence of Piece): The whole text; if it is to be read from right to left, its
            lines end at the right.
        width (float): Of a line.
        measure (callable): Width of the box of a text.
        gap (float): Between words.
    """
    turned = is_right_to_left([piece.text for piece in pieces if not piece.special])
    found = levels(["" if piece.special else text for text, piece, _ in line], turned)
    boxes = [
        # a bracket of its own is mirrored between words from right to left
        (place, f"{RIGHT_TO_LEFT_MARK}{text}" if level % 2 and not direction(text) else text, piece)
        for place, ((text, piece, _), level) in enumerate(zip(line, found, strict=True))
    ]
    made = []
    x, last = 0.0, -1
    for place, text, piece in visual_order(boxes, found):
        # neighbours in the text touch where it has no space between them
        touch = last >= 0 and abs(place - last) == 1 and not line[max(place, last)][2]
        x += 0.0 if touch or last < 0 else gap
        made.append((x, text, piece))
        x += measure(text)
        last = place
    start = width - x if turned else 0.0
    return [(start + x, text, piece) for x, text, piece in made]


def chunks(text: str, width: float, measure: Callable[[str], float]) -> Iterator[str]:
    """A text cut where it is wider than a line."""
    while len(text) > 1 and measure(text) > width:
        # the longest beginning that fits, by bisection; at least one character
        cut = max(bisect_right(range(1, len(text)), width, key=lambda n: measure(text[:n])), 1)
        yield text[:cut]
        text = text[cut:]
    yield text


def broken(text: str, measure: Callable[[str], float], width: float) -> list[str]:
    """A text in lines, broken between words, or in a word that is wider than a line."""
    lines = [""]
    for word in text.split(" "):
        for part in chunks(word, width, measure):
            joined = f"{lines[-1]} {part}" if lines[-1] else part
            if measure(joined) <= width or not lines[-1]:
                lines[-1] = joined
            else:
                lines.append(part)
    return lines
