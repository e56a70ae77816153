"""Breaking boxes into lines, in a terminal as in a figure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

from captum_lrp_tx.visualization.tokens import Piece


def wrapped(
    pieces: Sequence[Piece], width: float, measure: Callable[[str], float], gap: float
) -> Iterator[list[tuple[str, Piece, bool]]]:
    """Breaks boxes into lines; a word that is wider than a line is cut into several boxes."""
    line: list[tuple[str, Piece, bool]] = []
    used = 0.0
    for piece in pieces:
        space = piece.space
        for text in _chunks(piece.text, width - gap, measure):
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


def _chunks(text: str, width: float, measure: Callable[[str], float]) -> Iterator[str]:
    while len(text) > 1 and measure(text) > width:
        # the longest beginning that fits, by bisection; at least one character
        cut = max(bisect_right(range(1, len(text)), width, key=lambda n: measure(text[:n])), 1)
        yield text[:cut]
        text = text[cut:]
    yield text
