"""Cells in rows as a figure: layers down, heads or tokens across."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from captum_lrp_tx.packages import matplotlib
from captum_lrp_tx.visualization.canvas import headline, new_figure, sheet
from captum_lrp_tx.visualization.colours import colour_of, hexadecimal
from captum_lrp_tx.visualization.glyphs import families
from captum_lrp_tx.visualization.wording import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cells_figure(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str = "",
    width: float = 6.5,
) -> Figure:
    """A signed heat map of cells with names, the first row at the bottom, as layers are counted.

    Args:
        values (sequence of sequence of float): A row of values for each name in ``rows``; ``None``
            leaves a cell empty, and rows may end early.
        rows, columns (sequence of str): Names.
        title (str): Headline.
        width (float): In inches.

    Returns:
        matplotlib.figure.Figure: For ``savefig``; not known to pyplot.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If numbers of names and values differ or a value is not finite.

    Example::

        >>> drawing = cells_figure([[0.2, -0.1, 0.4]], ["0"], ["0", "1", "MLP"])
    """
    if len(values) != len(rows) or any(len(row) > len(columns) for row in values):
        raise ValueError("a row of values for each name in rows, not longer than columns")
    known = [abs(v) for row in values for v in row if v is not None]
    if not all(map(math.isfinite, known)):
        raise ValueError("values that are not finite")
    scale = max(known, default=0.0) or 1.0
    left = 0.25 + 0.075 * max(map(len, rows))
    below = 0.2 + 0.075 * max(map(len, columns))
    cell = (width - left - 0.1) / len(columns)
    high = min(cell, 0.28)
    head = 0.35 if title else 0.1
    height = below + high * len(rows) + head
    drawing = new_figure(width, height)
    axes = sheet(drawing, (0, width), (0, height))
    family = families("".join([*columns, *rows]))
    for i, row in enumerate(values):
        y = below + i * high
        axes.text(left - 0.08, y + high / 2, printable(rows[i]), fontsize=7, ha="right",
                  va="center", fontfamily=family, parse_math=False)  # fmt: skip
        for j, value in enumerate(row):
            if value is not None:
                box = matplotlib("patches").Rectangle(
                    (left + j * cell, y), cell * 0.94, high * 0.9, linewidth=0,
                    facecolor=hexadecimal(colour_of(value, scale)[0]),
                )  # fmt: skip
                axes.add_patch(box)
    for j, name in enumerate(columns):
        axes.text(left + (j + 0.47) * cell, below - 0.07, printable(name), fontsize=7,
                  rotation=90 if max(map(len, columns)) > 3 else 0, ha="center", va="top",
                  fontfamily=family, parse_math=False)  # fmt: skip
    if title:
        headline(drawing, 0.1 / width, 1 - 0.24 / height, title)
    return drawing
