"""Comparisons of methods as figures, with matplotlib but without pyplot."""

from __future__ import annotations

import math
import textwrap
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from captum_lrp_tx.packages import matplotlib
from captum_lrp_tx.visualization.arrays import map_of, pixels_of, scale_of
from captum_lrp_tx.visualization.canvas import (
    GREY,
    Ruler,
    bare,
    colormap,
    headline,
    new_figure,
    sheet,
)
from captum_lrp_tx.visualization.colours import PURPLE, RGB, SIGNED, hexadecimal, shade
from captum_lrp_tx.visualization.comparison import Strip, TextComparison, scales_of
from captum_lrp_tx.visualization.figures import notes_of
from captum_lrp_tx.visualization.glyphs import families
from captum_lrp_tx.visualization.layout import placed, wrapped
from captum_lrp_tx.visualization.wording import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def comparison_figure(
    comparison: TextComparison, *, width: float = 6.5, merge: bool = True
) -> Figure:
    """The text once for each method, with the method's name in front.

    Args:
        comparison (TextComparison): What to show.
        width (float): In inches; long texts are wrapped and make the figure higher.
        merge (bool): Join word-pieces.

    Returns:
        matplotlib.figure.Figure: For ``savefig`` (PDF and SVG too); not known to pyplot.

    Raises:
        ImportError: If matplotlib is not installed.

    Example::

        >>> strips = [Strip("GI", [1.0, -0.5]), Strip("LRP", [1.2, 0.1])]
        >>> drawing = comparison_figure(TextComparison(["good", "film"], strips))
        >>> drawing.savefig("methods.pdf")  # doctest: +SKIP
    """
    size, small, pad, gap = 9.0, 7.5, 2.0, 2.4  # in points, as all lengths below
    step, margin = size * 1.78, 7.0
    total = width * 72
    lines = comparison.lines(merge)
    every = "".join(piece.text for piece in comparison.words(merge))
    every += "".join(strip.name + strip.reason for strip in comparison.strips)
    family = families(every)
    measure = Ruler(family, size)
    names = [printable(strip.name) for strip in comparison.strips]
    left = margin + max(map(measure, names), default=0.0) * 1.06 + 8
    room = total - left - margin

    def boxed(text: str) -> float:
        return measure(text) + 2 * pad

    drawn = [list(wrapped(p, room, boxed, gap)) for _, p, _ in lines]
    # lines of one method closer together than methods
    between = 7.0 if max(map(len, drawn), default=0) > 1 else 2.2
    heights = [max(1, len(rows)) * step + between for rows in drawn]
    notes = notes_of(
        comparison.facts, lambda text: measure(text) * small / size, total - 2 * margin
    )
    title = textwrap.shorten(printable(comparison.title), 400)
    head = size * 2.0 if title else 0.0
    height = 2 * margin + head + len(notes) * small * 1.5 + 5 + sum(heights) + 18
    drawing = new_figure(width, height / 72)
    axes = sheet(drawing, (0, total), (-height, 0))

    def write(x: float, y: float, text: str, **style: Any) -> None:
        axes.text(x, y, text, parse_math=False, va="baseline", fontfamily=family, **style)

    y = -margin - head
    for note in notes:
        write(margin, y - small, note, fontsize=small, color=GREY)
        y -= small * 1.5
    y -= 5
    boxes = matplotlib("patches").FancyBboxPatch
    for (strip, pieces, scale), name, rows, used in zip(lines, names, drawn, heights, strict=True):
        base = y - step + 5.4
        write(left - 8, base, name, fontsize=size, ha="right", color="#1a1a1a")
        if not strip.is_drawn:
            reason = _cut(strip.reason, room, measure, 7.5 / size)
            write(left + pad, base, reason, fontsize=7.5, color="#8a8a8a", style="italic")
        top = y
        for row in rows:
            for x, text, piece in placed(row, pieces, room, boxed, gap):
                background, ink = shade(piece.relevance, scale, strip.signed, piece.special)
                axes.add_patch(
                    boxes(
                        (left + x, top - step + 2.0), boxed(text), step - 2.6,
                        boxstyle="round,pad=0,rounding_size=1.6", mutation_aspect=1, linewidth=0,
                        facecolor=hexadecimal(background),
                    )
                )  # fmt: skip
                place = left + x + pad
                write(place, top - step + 5.4, text, fontsize=size, color=hexadecimal(ink))
            top -= step
        y -= used
    kinds = {strip.signed for strip, pieces, _ in lines if pieces}
    own = "one scale for all methods" if comparison.common_scale else "each line on its own scale"
    _legend(axes, left, -height + margin + 1, kinds, own, Ruler(family, 7.0))
    axes.set(xlim=(0, total), ylim=(-height, 0))  # imshow has narrowed the view
    if title:
        headline(drawing, margin / total, 1 - (margin + size) / height, title, size=size + 1.0)
    return drawing


def image_comparison_figure(
    image: Any,
    strips: Sequence[Strip],
    *,
    title: str = "",
    facts: Sequence[tuple[str, str]] = (),
    width: float = 6.5,
    columns: int | None = None,
    common_scale: bool = False,
    percentile: float = 99.5,
) -> Figure:
    """An image and the heat map of each method, in a grid.

    Args:
        image (Tensor or array): See :func:`image_figure`.
        strips (sequence of Strip): With maps as relevance: pixels, or a coarser grid of patches.
        title (str): Headline.
        facts (sequence of (str, str)): What is known about the output.
        width (float): In inches.
        columns (int, optional): Of the grid; as many as make the panels about an inch wide.
        common_scale (bool): One scale for all signed maps, and one for all others.
        percentile (float): Of the absolute relevance, at which the colours saturate.

    Returns:
        matplotlib.figure.Figure: For ``savefig``; not known to pyplot.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If a shape is not that of an image or a value is not finite.
    """
    pixels = pixels_of(image)
    maps = [map_of(s.relevance) if s.is_drawn else None for s in strips]
    own = [0.0 if m is None else scale_of(m, percentile) for m in maps]
    scales = scales_of([strip.signed for strip in strips], own, common_scale)
    count = len(strips) + 1
    columns = columns or min(count, max(1, round(width / 1.1)))
    if count > columns:  # as even as possible
        columns = math.ceil(count / math.ceil(count / columns))
    rows = math.ceil(count / columns)
    high, wide = pixels.shape[:2]
    side, gap, above, below = 0.1, 0.1, 0.19, 0.13
    panel = (width - 2 * side - (columns - 1) * gap) / columns
    tall = panel * high / wide
    ruler = Ruler(["DejaVu Sans"], 7.5)
    notes = notes_of(facts, ruler, (width - 2 * side) * 72)
    head = (0.3 if title else 0.02) + 0.155 * len(notes) + 0.06
    height = head + rows * (tall + above + below) + 0.27
    drawing = new_figure(width, height)
    for place in range(count):
        row, column = divmod(place, columns)
        x = side + column * (panel + gap)
        y = height - head - row * (tall + above + below) - above - tall
        axes = drawing.add_axes((x / width, y / height, panel / width, tall / height))
        bare(axes)
        name = "input" if place == 0 else printable(strips[place - 1].name)
        colour = GREY if place == 0 else "#1a1a1a"
        axes.set_title(name, fontsize=8, pad=3, color=colour, parse_math=False)
        if place == 0:
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto",
                        extent=(0, wide, high, 0))  # fmt: skip
            continue
        strip, values, scale = strips[place - 1], maps[place - 1], scales[place - 1]
        if values is None:
            _draw_reason(axes, strip.reason, int(panel * 17), max(1, int(tall * 72 / 8) - 1))
        else:
            _draw_map(axes, values, scale, strip.signed, pixels)
            sign = "\u00b1" if strip.signed else "0 to "
            axes.set_xlabel(f"{sign}{scale:.2g}", fontsize=5.5, labelpad=2, color=GREY)
    for line, text in enumerate(notes):
        down = (0.36 if title else 0.08) + 0.155 * line
        drawing.text(side / width, 1 - (down + 0.05) / height, text, fontsize=7.5, color=GREY,
                     parse_math=False)  # fmt: skip
    foot = drawing.add_axes((0, 0, 1, 0.25 / height))
    foot.axis("off")
    kinds = {s.signed for s in strips if s.is_drawn}
    said = "one scale for all maps" if common_scale else "each map on its own scale, below it"
    _legend(foot, side * 72, 6, kinds, said, Ruler(["DejaVu Sans"], 7.0))
    foot.set(xlim=(0, width * 72), ylim=(0, 18))
    if title:
        headline(drawing, side / width, 1 - 0.2 / height, title, size=10)
    return drawing


def _draw_reason(axes: Any, reason: str, width: int, most: int) -> None:
    """Why there is no map: lines of so many letters, and so many of them."""
    axes.set_facecolor("#f7f7f7")
    lines = textwrap.wrap(reason, width)
    text = "\n".join(lines[:most]) + (" ..." if len(lines) > most else "")
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=5.5, style="italic",
              color="#8a8a8a", transform=axes.transAxes, parse_math=False)  # fmt: skip


def _draw_map(axes: Any, values: Any, scale: float, signed: bool, pixels: Any) -> None:
    """A map over the outlines of a grey image."""
    high, wide = pixels.shape[:2]
    axes.imshow(
        values, cmap=colormap(SIGNED if signed else PURPLE), vmin=-scale if signed else 0.0,
        vmax=scale, interpolation="nearest", aspect="auto", extent=(0, wide, high, 0),
    )  # fmt: skip
    if pixels.ndim == 2 and min(pixels.shape) > 1:
        axes.contour(pixels, levels=[0.5], colors="#3c3c3c", linewidths=0.5, alpha=0.55,
                     extent=(0.5, wide - 0.5, 0.5, high - 0.5))  # fmt: skip
        axes.set_xlim(0, wide)
        axes.set_ylim(high, 0)


def _legend(axes: Any, x: float, y: float, kinds: set[bool], note: str, measure: Ruler) -> None:
    style = {"fontsize": 7, "color": GREY, "va": "baseline"}

    def write(text: str) -> None:
        nonlocal x
        axes.text(x, y, text, **style)
        x += measure(text) + 4

    def bar(stops: Sequence[RGB], length: float) -> None:
        nonlocal x
        axes.imshow(
            [[i / 255 for i in range(256)]], cmap=colormap(stops), vmin=0, vmax=1, aspect="auto",
            extent=(x, x + length, y, y + 5), interpolation="bilinear",
        )  # fmt: skip
        x += length + 4

    if True in kinds:
        write("against")
        bar(SIGNED, 60)
        write("for")
        x += 10
    if False in kinds:
        write("0")
        bar(PURPLE, 36)
        write("largest (no sign)")
        x += 10
    write(note)


def _cut(text: str, width: float, measure: Ruler, factor: float) -> str:
    if measure(text) * factor <= width:
        return text
    lengths = range(len(text))
    fits = bisect_right(lengths, width, key=lambda end: measure(text[:end] + " ...") * factor)
    return text[: max(fits - 1, 0)].rstrip() + " ..."
