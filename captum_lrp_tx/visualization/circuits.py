"""A circuit as a figure: layers upwards, heads side by side, lines as wide as edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from captum_lrp_tx.packages import matplotlib
from captum_lrp_tx.visualization.canvas import headline, new_figure, sheet
from captum_lrp_tx.visualization.colours import colour_of, hexadecimal
from captum_lrp_tx.visualization.glyphs import families
from captum_lrp_tx.visualization.wording import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW, _EDGE = 0.42, 5.0  # inches between rows, points of the widest line


class Drawn(NamedTuple):
    """A node of a circuit: its name, its kind, its layer, and its number among heads."""

    name: str
    kind: str
    layer: int | None
    number: int | None


def circuit_figure(
    nodes: Sequence[Drawn],
    edges: Sequence[tuple[int, int, float]],
    *,
    title: str = "",
    width: float = 6.5,
) -> Figure:
    """Nodes in rows from the inputs up to the output, joined by signed lines.

    Heads and MLPs are circles, constants are squares at the right, half a row below what reads
    them. Red lines are positive, blue ones negative, and the widest has the largest magnitude.

    Args:
        nodes (sequence of Drawn): In the order of the forward pass.
        edges (sequence of (int, int, float)): Places of writer and reader, and the value.
        title (str): Headline.
        width (float): In inches.

    Returns:
        matplotlib.figure.Figure: For ``savefig``; not known to pyplot.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If a value is not finite.

    Example::

        >>> nodes = [Drawn("input", "input", None, None), Drawn("output", "output", None, None)]
        >>> drawing = circuit_figure(nodes, [(0, 1, 0.5)])
    """
    if not all(math.isfinite(value) for _, _, value in edges):
        raise ValueError("values that are not finite")
    rows = _rows(nodes, edges)
    top = max(rows, default=0.0)
    below, head = 0.3, 0.45 if title else 0.25
    height = below + _ROW * top + head
    heads = 1 + max((node.number or 0 for node in nodes), default=0)
    columns = _columns(nodes, rows, heads, width)
    places = [(x, below + _ROW * row) for x, row in zip(columns, rows, strict=True)]
    for i, node in enumerate(nodes):  # constants of one row stand above each other
        if node.kind == "constants":
            beside = [j for j in range(i) if nodes[j].kind == "constants" and rows[j] == rows[i]]
            places[i] = places[i][0], places[i][1] + 0.13 * len(beside)
    drawing = new_figure(width, height)
    axes = sheet(drawing, (0, width), (0, height))
    _draw_edges(axes, places, edges)
    for node, (x, y) in zip(nodes, places, strict=True):
        _draw_node(axes, node, x, y)
    if title:
        headline(drawing, 0.1 / width, 1 - 0.25 / height, title)
    return drawing


def _rows(nodes: Sequence[Drawn], edges: Sequence[tuple[int, int, float]]) -> list[float]:
    """How high each node stands: a row for each kind of branch of each layer that is there."""
    found: list[float] = [0.0] * len(nodes)
    row, last = -1, None
    for i, node in enumerate(nodes):
        if node.kind == "constants":
            continue
        kind = "attention" if node.kind == "head" else node.kind
        if (kind, node.layer) != last:
            row, last = row + 1, (kind, node.layer)
        found[i] = float(row)
    for i, node in enumerate(nodes):
        if node.kind == "constants":
            readers = [found[j] for writer, j, _ in edges if writer == i]
            found[i] = min(readers, default=0.5) - 0.5
    return found


def _columns(
    nodes: Sequence[Drawn], rows: Sequence[float], heads: int, width: float
) -> list[float]:
    """Where each node stands in its row; constants at the right."""
    left, right = 0.3, width - 1.3
    found = []
    for node, row in zip(nodes, rows, strict=True):
        if node.kind == "constants":
            found.append(width - 0.95)
            continue
        same = [n for n, r in zip(nodes, rows, strict=True) if r == row and n.kind == node.kind]
        if node.kind == "head":
            share = ((node.number or 0) + 0.5) / heads
        else:
            share = (same.index(node) + 0.5) / len(same)
        found.append(left + (right - left) * share)
    return found


def _draw_edges(
    axes: Axes,
    places: Sequence[tuple[float, float]],
    edges: Sequence[tuple[int, int, float]],
) -> None:
    scale = max((abs(value) for _, _, value in edges), default=0.0) or 1.0
    arrow = matplotlib("patches").FancyArrowPatch
    for i, j, value in sorted(edges, key=lambda edge: abs(edge[2])):
        is_far = places[j][1] - places[i][1] > 1.6 * _ROW
        share = abs(value) / scale
        line = arrow(
            places[i], places[j], arrowstyle="-", linewidth=0.3 + (_EDGE - 0.3) * share,
            connectionstyle=f"arc3,rad={0.16 if is_far else 0.0}", alpha=0.35 + 0.5 * share,
            color=hexadecimal(colour_of(math.copysign(1.0, value), 1.0)[0]), capstyle="round",
            shrinkA=0, shrinkB=0, zorder=1,
        )  # fmt: skip
        axes.add_patch(line)


def _draw_node(axes: Axes, node: Drawn, x: float, y: float) -> None:
    is_constant = node.kind == "constants"
    name = node.name.removeprefix("constants ")
    axes.plot(
        [x], [y], marker="s" if is_constant else "o", markersize=5 if is_constant else 8,
        markerfacecolor="white", markeredgecolor="0.25", markeredgewidth=0.8, zorder=2,
    )  # fmt: skip
    axes.text(
        x + (0.07 if is_constant else 0.09), y, printable(name), fontsize=6, va="center",
        ha="left", zorder=3, parse_math=False, fontfamily=families(name),
        bbox={"facecolor": "white", "alpha": 0.6, "linewidth": 0, "pad": 0.4},
    )  # fmt: skip
