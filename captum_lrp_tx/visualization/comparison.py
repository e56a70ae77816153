"""Several explanations of the same prediction, one below the other: what to draw, and as text.

Methods with signed relevance are drawn in blue and red, methods without a sign (attention maps,
absolute gradients) in purple, since they do not say what speaks for and what against the output.

Example::

    >>> strips = [Strip("GI", [0.2, -0.1]), Strip("Rollout", [0.6, 0.4], signed=False)]
    >>> print(comparison_terminal(TextComparison(["good", "film"], strips), colour=False))
             good  film
    GI      +0.20 -0.10
    Rollout  0.60  0.40
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from captum_lrp_tx.visualization.arrays import block_sums, map_of, scale_of
from captum_lrp_tx.visualization.colours import colour_of, paint, shade, supports_colour
from captum_lrp_tx.visualization.text import decimals_for, map_lines, painted
from captum_lrp_tx.visualization.tokens import Piece, TokenHeatmap
from captum_lrp_tx.visualization.wording import Scheme, cells, fitted, printable

if TYPE_CHECKING:
    from captum_lrp_tx.visualization.arrays import FloatArray


@dataclass(frozen=True)
class Strip:
    """One method's relevance, or why there is none.

    Attributes:
        name (str): Of the method.
        relevance (sequence of float, Tensor or array, optional): One number for each token, or a
            map; None if the method could not be applied.
        signed (bool): Whether relevance can speak against the output.
        error (str): Why there is no relevance.
        note (str): Shown instead of colours, e.g. that relevance is zero up to rounding.
        numbers (tuple of (str, str)): What to show beside it, pairs of a heading and a text; the
            same headings in every strip.
    """

    name: str
    relevance: Any = None
    signed: bool = True
    error: str = ""
    note: str = ""
    numbers: tuple[tuple[str, str], ...] = ()

    @property
    def is_drawn(self) -> bool:
        """Whether there are colours to show."""
        return self.relevance is not None and not self.note

    @property
    def reason(self) -> str:
        """What to say instead of colours."""
        return printable(self.note or self.error) or "no result"


@dataclass(frozen=True)
class TextComparison:
    """A text as several methods see it.

    Attributes:
        tokens (sequence of str): As the tokenizer names them.
        strips (sequence of Strip): One for each method.
        title (str): Headline.
        facts (sequence of (str, str)): What is known about the output.
        special (sequence of bool, optional): Which tokens are special; guessed unless given.
        scheme (str): How tokens mark the borders of words, see :class:`TokenHeatmap`.
        common_scale (bool): One scale for all signed strips, and one for all others, instead of
            one for each strip.
    """

    tokens: Sequence[str]
    strips: Sequence[Strip]
    title: str = ""
    facts: Sequence[tuple[str, str]] = ()
    special: Sequence[bool] | None = None
    scheme: Scheme = "auto"
    common_scale: bool = False

    def lines(self, merge: bool = True) -> list[tuple[Strip, list[Piece], float]]:
        """Each strip with its boxes (none if nothing is drawn) and its scale."""
        maps = [self._heatmap(s.relevance) if s.is_drawn else None for s in self.strips]
        own = [0.0 if heatmap is None else heatmap.scale(merge) for heatmap in maps]
        scales = scales_of([strip.signed for strip in self.strips], own, self.common_scale)
        return [
            (strip, [], 1.0) if heatmap is None else (strip, heatmap.pieces(merge), scale)
            for strip, heatmap, scale in zip(self.strips, maps, scales, strict=True)
        ]

    def words(self, merge: bool = True) -> list[Piece]:
        """The boxes of the text alone."""
        return self._heatmap([0.0] * len(self.tokens)).pieces(merge)

    def _heatmap(self, relevance: Any) -> TokenHeatmap:
        return TokenHeatmap(self.tokens, relevance, special=self.special, scheme=self.scheme)


def comparison_terminal(
    comparison: TextComparison,
    width: int | None = None,
    colour: bool | None = None,
    *,
    merge: bool = True,
) -> str:
    """One line of coloured text for each method, or a table of numbers.

    Args:
        comparison (TextComparison): What to show.
        width (int, optional): Columns; those of the terminal unless given.
        colour (bool, optional): 24-bit colours, or a table with a column for each word; unless
            given, whatever :func:`supports_colour` says of standard output.
        merge (bool): Join word-pieces.

    Returns:
        str: Lines without a line break at the end.
    """
    width = max(width or shutil.get_terminal_size().columns, 24)
    colour = supports_colour() if colour is None else colour
    lines = comparison.lines(merge)
    names = _padded([strip.name for strip in comparison.strips])
    left = max(map(cells, names), default=0) + 1
    if not colour:
        return _matrix(comparison.words(merge), lines, names, left, width)
    shown = []
    for (strip, pieces, scale), name in zip(lines, names, strict=True):
        head = name + " "
        if not pieces:
            shown.append(f"{head}{_reason(strip)}")
        for line in painted(pieces, max(width - left - 1, 8), scale, strip.signed):
            shown.append(head + line)
            head = " " * left
    return "\n".join([*shown, "", legend_of(comparison)])


def legend_of(comparison: TextComparison) -> str:
    """What the colours mean, in one line."""
    own = "one scale for all" if comparison.common_scale else "each line on its own scale"
    kinds = {strip.signed for strip in comparison.strips if strip.is_drawn}
    parts = []
    if True in kinds:
        bar = "".join(paint(" ", *colour_of(i / 5, 1.0)) for i in range(-5, 6))
        parts.append(f"against {bar} for")
    if False in kinds:
        bar = "".join(paint(" ", *shade(i / 5, 1.0, False)) for i in range(6))
        parts.append(f"0 {bar} largest (no sign)")
    return "   ".join([*parts, own])


def numbers_table(strips: Sequence[Strip]) -> str:
    """The numbers beside the strips, one line for each method."""
    headings = list(dict.fromkeys(name for strip in strips for name, _ in strip.numbers))
    names = _padded([strip.name for strip in strips])
    cell = {(i, key): text for i, s in enumerate(strips) for key, text in s.numbers}
    widths = {
        key: max([cells(key), *(cells(cell.get((i, key), "")) for i in range(len(strips)))])
        for key in headings
    }
    left = max([6, *map(cells, names)])
    rows = ["  ".join(["method".ljust(left), *(key.rjust(widths[key]) for key in headings)])]
    for i, (strip, name) in enumerate(zip(strips, names, strict=True)):
        head = name + " " * (left - cells(name))
        if strip.relevance is None:
            rows.append(f"{head}  {_reason(strip)}")
            continue
        rows.append("  ".join([head, *(cell.get((i, k), "").rjust(widths[k]) for k in headings)]))
    return "\n".join(row.rstrip() for row in rows)


def image_comparison_terminal(
    strips: Sequence[Strip],
    width: int | None = None,
    colour: bool | None = None,
    *,
    common_scale: bool = False,
) -> str:
    """Heat maps side by side, as many in a row as there is room for.

    Args:
        strips (sequence of Strip): With maps as relevance, see :func:`image_figure`.
        width (int, optional): Columns; those of the terminal unless given.
        colour (bool, optional): As for :func:`image_terminal`, whose characters are used.
        common_scale (bool): One scale for all signed maps, and one for all others.

    Returns:
        str: Lines without a line break at the end.
    """
    width = max(width or shutil.get_terminal_size().columns, 24)
    colour = supports_colour() if colour is None else colour
    panel = min(28, width) if colour else min(38, width)
    across = max(1, (width + 2) // (panel + 2))
    shown = [s for s in strips if s.is_drawn]
    maps = [_fitted(strip, panel if colour else panel // 2) for strip in shown]
    scales = scales_of([s.signed for s in shown], [scale_of(m) for m in maps], common_scale)
    drawn = [
        map_lines(values, scale, colour, strip.signed)
        for values, scale, strip in zip(maps, scales, shown, strict=True)
    ]
    blocks: list[str] = []
    for start in range(0, len(shown), across):
        group = slice(start, start + across)
        rows = ["  ".join(_fit(printable(s.name), panel) for s in shown[group]).rstrip()]
        for line in zip_longest(*drawn[group], fillvalue=("", 0)):
            rows.append("  ".join(t + " " * (panel - used) for t, used in line).rstrip())
        blocks.append("\n".join(rows))
    blocks += [f"{printable(s.name)}: {_reason(s)}" for s in strips if not s.is_drawn]
    if not colour:
        own = "the common" if common_scale else "each map's"
        blocks.append(f"for: # + .   against: = - ,   (above 2/3, 1/3, 1/9 of {own} scale)")
    return "\n\n".join(blocks)


def scales_of(signed: Sequence[bool], scales: Sequence[float], common: bool) -> list[float]:
    """The scales of several strips, or the largest one of those with and of those without a sign.

    Example::

        >>> scales_of([True, True, False], [1.0, 2.0, 3.0], common=True)
        [2.0, 2.0, 3.0]
    """
    if not common:
        return list(scales)
    pairs = list(zip(signed, scales, strict=True))
    return [max(scale for other, scale in pairs if other == kind) for kind in signed]


def _matrix(
    words: Sequence[Piece],
    lines: Sequence[tuple[Strip, list[Piece], float]],
    names: Sequence[str],
    left: int,
    width: int,
) -> str:
    """A column for each word, a line for each method, broken into blocks that fit."""
    room = max(width - left, 8)
    texts = [fitted(piece.text, room - 1) for piece in words]
    columns: list[list[str]] = []
    for strip, pieces, scale in lines:
        places, sign = decimals_for(scale), "+" if strip.signed else ""
        columns.append([f"{p.relevance:{sign}.{places}f}" for p in pieces])
    widths = [
        max([cells(text), *(len(column[i]) for column in columns if column)])
        for i, text in enumerate(texts)
    ]
    blocks: list[str] = []
    start = 0
    while start < len(texts) or not blocks:
        stop, used = start, 0
        while stop < len(texts) and (stop == start or used + widths[stop] + 1 <= room):
            used += widths[stop] + 1
            stop += 1
        span = range(start, stop)
        head = " ".join(" " * (widths[i] - cells(texts[i])) + texts[i] for i in span)
        rows = [" " * left + head]
        for (strip, _, _), name, column in zip(lines, names, columns, strict=True):
            if column:
                rows.append(f"{name} " + " ".join(column[i].rjust(widths[i]) for i in span))
            elif start == 0:
                rows.append(f"{name} {_reason(strip)}")
        blocks.append("\n".join(row.rstrip() for row in rows))
        start = stop
    return "\n\n".join(blocks)


def _fitted(strip: Strip, width: int) -> FloatArray:
    """A map of no more columns than there is room for; patches as blocks of characters."""
    values = map_of(strip.relevance)
    values = block_sums(values, math.ceil(values.shape[1] / width))
    repeat = max(1, width // values.shape[1])
    return values.repeat(repeat, 0).repeat(repeat, 1)


def _reason(strip: Strip) -> str:
    return f"({strip.reason})"


def _padded(names: Sequence[str]) -> list[str]:
    shown = [printable(name) for name in names]
    width = max(map(cells, shown), default=0)
    return [name + " " * (width - cells(name)) for name in shown]


def _fit(text: str, columns: int) -> str:
    text = fitted(text, columns)
    return text + " " * (columns - cells(text))
