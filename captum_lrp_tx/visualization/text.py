"""Heat maps for a terminal, with 24-bit colours or as plain text."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from captum_lrp_tx.visualization.arrays import block_sums, map_of, scale_of
from captum_lrp_tx.visualization.colours import INK, PAPER, colour_of, paint, shade, supports_colour
from captum_lrp_tx.visualization.layout import wrapped
from captum_lrp_tx.visualization.tokens import Piece, TokenHeatmap
from captum_lrp_tx.visualization.wording import cells, fitted, printable

if TYPE_CHECKING:
    from captum_lrp_tx.visualization.arrays import FloatArray


def terminal(
    heatmap: TokenHeatmap,
    width: int | None = None,
    colour: bool | None = None,
    *,
    merge: bool = True,
) -> str:
    """The text with a background colour for each word, or with numbers below the words.

    Background and text colours are both set, so that it reads the same on dark and on light
    terminals.

    Args:
        heatmap (TokenHeatmap): What to show.
        width (int, optional): Columns; those of the terminal unless given.
        colour (bool, optional): 24-bit colours, or plain text with a number below each word;
            unless given, whatever :func:`supports_colour` says of standard output.
        merge (bool): Join word-pieces.

    Returns:
        str: One or more lines, without a line break at the end.

    Example::

        >>> print(terminal(TokenHeatmap(["good", "film"], [1.0, -0.5]), colour=False))
         good   film
        +1.00  -0.50
    """
    width = max(width or shutil.get_terminal_size().columns, 12)
    pieces, scale = heatmap.pieces(merge), heatmap.scale(merge)
    if not (supports_colour() if colour is None else colour):
        return _interlinear(pieces, width, decimals_for(scale))
    return "\n".join([*painted(pieces, width - 1, scale), "", _legend(scale)])


def painted(
    pieces: Sequence[Piece], width: int, scale: float, signed: bool = True
) -> Iterator[str]:
    """The lines of a coloured text, one column wider than ``width`` at most.

    Args:
        pieces (sequence of Piece): The boxes.
        width (int): Columns.
        scale (float): Relevance at which colours saturate.
        signed (bool): Which of the two scales of colours.
    """
    gap = paint(" ", PAPER, INK)
    for line in wrapped(pieces, width, cells, 1.0):
        parts = [
            (gap if space else "")
            + paint(text, *shade(piece.relevance, scale, signed, piece.special))
            for text, piece, space in line
        ]
        yield "".join(parts) + gap


def table(
    heatmap: TokenHeatmap,
    columns: Sequence[tuple[str, Sequence[float]]] = (),
    *,
    colour: bool = False,
    bar: int = 20,
) -> str:
    """One line for each token: its relevance as a number and as a bar.

    Args:
        heatmap (TokenHeatmap): What to show.
        columns (sequence of (str, sequence of float)): More columns of numbers, e.g. the parts of
            word, position and segment.
        colour (bool): Colour the bars.
        bar (int): Length of the longest bar in characters.

    Returns:
        str: Aligned lines, the first with the names of the columns.
    """
    texts = [fitted(piece.text, 30) for piece in heatmap.pieces(False)]
    names = ["relevance", *(printable(name) for name, _ in columns)]
    largest = max(map(abs, heatmap.relevance), default=0) or 1.0
    places = max(4, decimals_for(largest))
    widths = [max(places + 5, len(name)) for name in names]
    left = max([5, *map(cells, texts)])
    below = max([0, *(round(-r / largest * bar) for r in heatmap.relevance)])
    head = "  ".join(name.rjust(width) for name, width in zip(names, widths, strict=True))
    lines = [f"{'token':<{left}}  {head}"]
    for index, (text, value) in enumerate(zip(texts, heatmap.relevance, strict=True)):
        numbers = [value, *(float(column[index]) for _, column in columns)]
        shown = "  ".join(f"{n:+{w}.{places}f}" for n, w in zip(numbers, widths, strict=True))
        length = round(abs(value) / largest * bar)
        drawn = ("+" if value >= 0 else "-") * length
        if colour and length:
            drawn = paint(" " * length, *colour_of(value, largest))
        before = " " * (below - length if value < 0 else below)
        side = f"{before}{drawn}|" if value < 0 else f"{before}|{drawn}"
        lines.append(f"{text}{' ' * (left - cells(text))}  {shown}  {side}".rstrip())
    return "\n".join(lines)


def image_terminal(relevance: Any, width: int | None = None, colour: bool | None = None) -> str:
    """The relevance of an image as coloured blocks, two pixels in a character.

    Args:
        relevance (Tensor or array): See :func:`image_figure`.
        width (int, optional): Columns at most; larger maps are summed over blocks of pixels.
        colour (bool, optional): As for :func:`terminal`. Without colours ``#``, ``+`` and ``.``
            stand for relevance above 2/3, 1/3 and 1/9 of the full scale, ``=``, ``-`` and ``,``
            for the same below zero.

    Returns:
        str: Lines without a line break at the end.
    """
    width = max(width or shutil.get_terminal_size().columns, 8)
    colour = supports_colour() if colour is None else colour
    values = map_of(relevance)
    factor = math.ceil(values.shape[1] / (width if colour else width // 2))
    values = block_sums(values, factor)
    scale = scale_of(values)
    lines = [line.rstrip() for line, _ in map_lines(values, scale, colour)]
    legend = f"for: # + .   against: = - ,   (above 2/3, 1/3, 1/9 of {scale:.3g})"
    return "\n".join([*lines, "", _legend(scale) if colour else legend])


def map_lines(
    values: FloatArray, scale: float, colour: bool, signed: bool = True
) -> list[tuple[str, int]]:
    """Lines of a map, each with the columns that it takes.

    Args:
        values (array): Shape ``(rows, columns)``.
        scale (float): Relevance at which colours saturate.
        colour (bool): Two pixels of colour in a character, or characters for sign and size.
        signed (bool): Which of the two scales of colours.
    """
    grid = values.tolist()
    if not colour:
        rows = ["".join(2 * _sign(v / scale) for v in row) for row in grid]
        return [(row, len(row)) for row in rows]
    if len(grid) % 2:
        grid.append([0.0] * len(grid[0]))
    return [
        (
            "".join(
                paint("\u2580", shade(b, scale, signed)[0], shade(a, scale, signed)[0])
                for a, b in zip(upper, lower, strict=True)
            ),
            len(upper),
        )
        for upper, lower in zip(grid[::2], grid[1::2], strict=True)
    ]


def decimals_for(scale: float) -> int:
    """Digits after the point: two, or as many as show two digits of ``scale``.

    Example::

        >>> decimals_for(12.0), decimals_for(0.3), decimals_for(0.02)
        (2, 2, 3)
    """
    return min(max(1 - math.floor(math.log10(scale)), 2), 8) if scale > 0 else 2


def _legend(scale: float) -> str:
    bar = "".join(paint(" ", *colour_of(i / 8, 1.0)) for i in range(-8, 9))
    return f"against {-scale:+.3g} {bar} {scale:+.3g} for"


def _interlinear(pieces: Sequence[Piece], width: int, places: int) -> str:
    """Words above their relevance, for output without colours."""
    rows: list[tuple[str, str]] = []
    words = numbers = ""
    for piece in pieces:
        number = f"{piece.relevance:+.{places}f}"
        text = fitted(piece.text, width - 2)
        column = max(cells(text), len(number))
        if words and cells(words) + 2 + column > width:
            rows.append((words, numbers))
            words = numbers = ""
        gap = "  " if words else ""
        words += gap + " " * (column - cells(text)) + text
        numbers += gap + number.rjust(column)
    rows.append((words, numbers))
    return "\n\n".join(f"{a}\n{b}" for a, b in rows)


def _sign(value: float) -> str:
    for bound, positive, negative in ((2 / 3, "#", "="), (1 / 3, "+", "-"), (1 / 9, ".", ",")):
        if abs(value) >= bound:
            return positive if value > 0 else negative
    return " "
