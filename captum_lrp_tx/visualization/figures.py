"""Heat maps as figures, with matplotlib but without pyplot and its global state."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Union

from captum_lrp_tx.packages import matplotlib
from captum_lrp_tx.visualization.arrays import map_of, pixels_of, scale_of
from captum_lrp_tx.visualization.canvas import (
    BOLD,
    GREY,
    Ruler,
    bare,
    colormap,
    colour_bar,
    headline,
    new_figure,
    sheet,
)
from captum_lrp_tx.visualization.colours import colour_of, hexadecimal
from captum_lrp_tx.visualization.glyphs import families, quiet_about_glyphs
from captum_lrp_tx.visualization.layout import broken, placed, wrapped
from captum_lrp_tx.visualization.tokens import TokenHeatmap
from captum_lrp_tx.visualization.wording import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Target = Union[str, "os.PathLike[str]", BinaryIO]


def figure(heatmap: TokenHeatmap, *, width: float = 6.5, merge: bool = True) -> Figure:
    """The text with a coloured box for each word, as a figure for a paper.

    Args:
        heatmap (TokenHeatmap): What to show.
        width (float): In inches; long texts are wrapped and make the figure higher.
        merge (bool): Join word-pieces.

    Returns:
        matplotlib.figure.Figure: For ``savefig`` (PDF and SVG too); not known to pyplot.

    Raises:
        ImportError: If matplotlib is not installed.

    Example::

        >>> drawing = figure(TokenHeatmap(["good", "film"], [1.0, -0.5]))
        >>> drawing.savefig("film.pdf")  # doctest: +SKIP
    """
    size, small, pad, gap = 11.0, 8.0, 2.6, 4.2  # in points, as all lengths below
    step, margin = size * 2.05, 8.0
    total_width = width * 72
    pieces = heatmap.pieces(merge)
    scale = heatmap.scale(merge)
    family = families("".join(piece.text for piece in pieces) + heatmap.title)
    ruler = Ruler(family, size)

    def measure(text: str) -> float:
        return ruler(text) + 2 * pad

    room = total_width - 2 * margin
    lines = list(wrapped(pieces, room, measure, gap))
    facts = heatmap.facts()
    title = broken(printable(heatmap.title), lambda text: ruler(text) * BOLD, room)
    head = size * (0.5 + 1.4 * len(title)) if heatmap.title else 0.0
    notes = notes_of(facts, lambda text: ruler(text) * small / size, room)
    height = 2 * margin + head + len(notes) * small * 1.55 + 4 + len(lines) * step + 16
    drawing = new_figure(width, height / 72)
    axes = sheet(drawing, (0, total_width), (-height, 0))

    def write(x: float, y: float, text: str, **style: Any) -> None:
        # parse_math: a price list is no formula
        axes.text(x, y, text, parse_math=False, va="baseline", fontfamily=family, **style)

    y = -margin
    if heatmap.title:
        for number, line in enumerate(title):
            write(margin, y - size * (1 + 1.4 * number), line, fontsize=size, fontweight="bold")
        y -= head
    for note in notes:
        write(margin, y - small, note, fontsize=small, color=GREY)
        y -= small * 1.55
    y -= 4
    patches = matplotlib("patches")
    for row in lines:
        for x, text, piece in placed(row, pieces, room, measure, gap):
            background, ink = colour_of(piece.relevance, scale, piece.special)
            box = patches.FancyBboxPatch(
                (margin + x, y - step + 3.2), measure(text), step - 4.6,
                boxstyle="round,pad=0,rounding_size=2.2", mutation_aspect=1, linewidth=0,
                facecolor=hexadecimal(background),
            )  # fmt: skip
            axes.add_patch(box)
            colour = hexadecimal(ink)
            write(margin + x + pad, y - step + 8.2, text, fontsize=size, color=colour)
        y -= step
    _legend(axes, margin, y - 16, scale, lambda text: ruler(text) * 7 / size)
    axes.set(xlim=(0, total_width), ylim=(-height, 0))  # imshow has narrowed the view
    return drawing


def png(
    heatmap: TokenHeatmap,
    path: Target,
    *,
    width: float = 6.5,
    dpi: int = 200,
    merge: bool = True,
) -> None:
    """Writes :func:`figure` as a PNG file.

    Args:
        heatmap (TokenHeatmap): What to show.
        path (str, PathLike or binary file): Where to write.
        width (float): In inches.
        dpi (int): Dots per inch.
        merge (bool): Join word-pieces.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    drawing = figure(heatmap, width=width, merge=merge)
    with quiet_about_glyphs():
        drawing.savefig(path, format="png", dpi=dpi)


def image_figure(
    image: Any,
    relevance: Any,
    *,
    title: str = "",
    label: str = "relevance",
    width: float = 6.5,
    percentile: float = 99.5,
    outline: bool | None = None,
    below: Figure | None = None,
) -> Figure:
    """An image beside the signed heat map of its relevance, with a colour bar.

    Args:
        image (Tensor or array): Shape ``(H, W)``, ``(C, H, W)``, ``(H, W, C)`` with 1 or 3
            channels, or a batch of one of these; any range of values.
        relevance (Tensor or array): Same layout, or ``(H, W)``; channels are summed. A coarser map,
            such as one of patches, is drawn as large as the image.
        title (str): Headline, e.g. the prediction.
        label (str): Of the colour bar.
        width (float): In inches.
        percentile (float): Of the absolute relevance, at which the colours saturate: single pixels
            that stand out would leave the rest pale. The colour bar shows it by its pointed ends.
        outline (bool, optional): Draw the outline of the object over its relevance; unless given,
            for images of one channel.
        below (Figure, optional): A figure that is made higher, to draw this one at its lower end.

    Returns:
        matplotlib.figure.Figure: For ``savefig``; not known to pyplot.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If a shape is not that of an image or a value is not finite.

    Example::

        >>> import torch
        >>> pixels, relevance = torch.rand(1, 28, 28), torch.randn(1, 28, 28)
        >>> drawing = image_figure(pixels, relevance, title="4 (probability 0.98)")
        >>> drawing.savefig("four.png", dpi=200)  # doctest: +SKIP
    """
    pixels, values = pixels_of(image), map_of(relevance)
    scale = scale_of(values, percentile)
    rows, columns = pixels.shape[:2]
    panel = (width - 0.9) / 2
    head = 0.5 if title else 0.3
    own = panel * rows / columns + head + 0.1
    drawing = new_figure(width, own) if below is None else _grown(below, own)
    height = float(drawing.get_size_inches()[1])
    bottom, share = 0.1 / height, panel * rows / columns / height
    left = drawing.add_axes((0.1 / width, bottom, panel / width, share))
    right = drawing.add_axes(((0.2 + panel) / width, bottom, panel / width, share))
    bar = drawing.add_axes(((0.27 + 2 * panel) / width, bottom, 0.11 / width, share))
    left.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    shown = right.imshow(
        values, cmap=colormap(), vmin=-scale, vmax=scale, interpolation="nearest", aspect="auto",
        extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
    )  # fmt: skip
    if pixels.ndim == 2 if outline is None else outline:
        grey = pixels if pixels.ndim == 2 else pixels.mean(2)
        if min(grey.shape) > 1:  # contours need two rows and columns
            right.contour(grey, levels=[0.5], colors="#3c3c3c", linewidths=0.7, alpha=0.6)
    for axes, name in ((left, "input"), (right, label)):
        bare(axes)
        axes.set_title(name, fontsize=8, color=GREY, pad=4, parse_math=False)
    colour_bar(drawing, shown, bar, scale, abs(values).max() > scale)
    if title:
        headline(drawing, 0.1 / width, (own - 0.19) / height, title)
    return drawing


def notes_of(
    facts: Sequence[tuple[str, str]], measure: Callable[[str], float], width: float
) -> list[str]:
    """The facts in as few lines as they need; one that is wider than a line goes on in the next."""
    lines = [""]
    for name, text in facts:
        fact = printable(f"{name}: {text}")
        joined = f"{lines[-1]}    {fact}" if lines[-1] else fact
        if measure(joined) <= width:
            lines[-1] = joined
        else:
            lines += broken(fact, measure, width)
    return [line for line in lines if line]


def _legend(axes: Any, x: float, y: float, scale: float, measure: Callable[[str], float]) -> None:
    width, height = 90.0, 5.0
    low, high = f"against {-scale:.2g}".replace("-", "\u2212"), f"{scale:+.2g} for"
    start = x + measure(low) + 5
    style = {"fontsize": 7, "color": GREY, "va": "baseline"}
    axes.text(x, y - 0.3, low, **style)
    axes.imshow(
        [[i / 127.5 - 1 for i in range(256)]],
        cmap=colormap(),
        vmin=-1,
        vmax=1,
        aspect="auto",
        extent=(start, start + width, y, y + height),
        interpolation="bilinear",
    )
    axes.text(start + width + 5, y - 0.3, high, **style)


def _grown(drawing: Figure, more: float) -> Figure:
    """A figure with so many inches of room at its lower end."""
    width, height = drawing.get_size_inches()
    drawing.set_size_inches(width, height + more)
    for axes in drawing.axes:
        box, whole = axes.get_position(), height + more
        place = (box.x0, (box.y0 * height + more) / whole, box.width, box.height * height / whole)
        axes.set_position(place)
    return drawing
