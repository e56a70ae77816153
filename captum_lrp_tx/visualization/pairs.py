"""Pairs as figures: two texts, or two images, joined by lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrp_tx.packages import matplotlib
from captum_lrp_tx.visualization.arrays import pixels_of
from captum_lrp_tx.visualization.bidirectional import is_right_to_left, levels, visual_order
from captum_lrp_tx.visualization.canvas import Ruler, headline, new_figure, sheet
from captum_lrp_tx.visualization.colours import colour_of, hexadecimal
from captum_lrp_tx.visualization.glyphs import families
from captum_lrp_tx.visualization.tokens import Piece, TokenHeatmap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from captum_lrp_tx.visualization.arrays import FloatArray


def pairs_figure(
    pairs: Any,
    first: Sequence[str],
    second: Sequence[str],
    *,
    title: str = "",
    lines: int = 24,
    special: bool = False,
    width: float = 6.5,
) -> Figure:
    """Two texts under each other, joined by a line for every pair of words that matters.

    Red lines speak for the similarity, blue ones against it; the stronger, the wider. The colour
    of a word is the sum over its pairs, those without a line included.

    Args:
        pairs (Tensor or array): Relevance of the pairs of one example, shape ``(n, m)`` (or ``(1,
            n, m)``); word-pieces are added up to words.
        first, second (sequence of str): The ``n`` and ``m`` tokens, as the tokenizer names them.
        title (str): Headline, e.g. the similarity.
        lines (int): How many pairs are joined, the strongest ones.
        special (bool): Whether special tokens such as ``[CLS]`` are joined by lines, too.
        width (float): In inches.

    Returns:
        matplotlib.figure.Figure: For ``savefig``; not known to pyplot.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the shape does not fit the tokens or a value is not finite.

    Example::

        >>> drawing = pairs_figure([[0.5, -0.1], [0.0, 0.3]], ["a", "film"], ["one", "movie"])
        >>> drawing.savefig("pairs.png")  # doctest: +SKIP
    """
    values = _matrix(pairs, len(first), len(second))
    texts = [
        TokenHeatmap(first, values.sum(1).tolist()),
        TokenHeatmap(second, values.sum(0).tolist()),
    ]
    words = [text.pieces() for text in texts]
    values = torch.stack(
        [
            torch.stack([values[list(a.tokens)][:, list(b.tokens)].sum() for b in words[1]])
            for a in words[0]
        ]
    )
    shown = [torch.tensor([special or not word.special for word in row]) for row in words]
    joined = _strongest(values, shown[0][:, None] & shown[1][None, :], lines)
    scale = max(text.scale() for text in texts)
    family = families("".join(word.text for row in words for word in row))
    measure = Ruler(family, 11)
    sizes = [[measure(word.text) + 6 for word in row] for row in words]
    needed = max(sum(row) + 4 * len(row) for row in sizes) + 16
    total = max(width * 72, needed)  # a long text makes the picture wider, not the letters smaller
    top, gap, box = (26.0 if title else 8.0), 90.0, 18.0
    height = top + gap + 2 * box + 8
    drawing = new_figure(total / 72, height / 72)
    axes = sheet(drawing, (0, total), (-height, 0))
    middles: list[list[float]] = []
    for row, widths, y in zip(words, sizes, (-top - box, -top - box - gap - box), strict=True):
        x = (total - sum(widths) - 4 * len(widths)) / 2
        middles.append([0.0] * len(row))
        for place in _in_order(row):
            word, size = row[place], widths[place]
            paper, ink = colour_of(word.relevance, scale, word.special)
            patch = matplotlib("patches").Rectangle(
                (x, y), size, box, facecolor=hexadecimal(paper), linewidth=0
            )
            axes.add_patch(patch)
            axes.text(x + 3, y + 5, word.text, fontsize=11, color=hexadecimal(ink),
                      fontfamily=family, parse_math=False)  # fmt: skip
            middles[-1][place] = x + size / 2
            x += size + 4
    strongest = max((abs(float(values[pair])) for pair in joined), default=1.0)
    for i, j in joined:
        _line(axes, (middles[0][i], -top - box), (middles[1][j], -top - box - gap),
              float(values[i, j]), strongest)  # fmt: skip
    if title:
        headline(drawing, 8 / total, 1 - 18 / height, title)
    return drawing


def image_pairs_figure(
    pairs: Any,
    first: Any,
    second: Any,
    *,
    title: str = "",
    lines: int = 24,
    width: float = 6.5,
) -> Figure:
    """Two images side by side, joined by a line for every pair of patches that matters.

    Args:
        pairs (Tensor or array): Relevance of the pairs of patches of one example, shape ``(n, m)``
            (or ``(1, n, m)``), in the order of rows; the patches are square.
        first, second (Tensor or array): The images, as :func:`image_figure` takes them.
        title (str): Headline, e.g. the similarity.
        lines (int): How many pairs are joined, the strongest ones.
        width (float): In inches.

    Returns:
        matplotlib.figure.Figure: For ``savefig``; not known to pyplot.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the shapes do not fit or a value is not finite.

    Example::

        >>> import torch
        >>> images = torch.rand(2, 1, 28, 28)
        >>> drawing = image_pairs_figure(torch.randn(16, 16), images[0], images[1])
    """
    images = [pixels_of(first), pixels_of(second)]
    values = _matrix(pairs, None, None)
    grids = [_grid(n, image) for n, image in zip(values.shape, images, strict=True)]
    head, panel = (0.35 if title else 0.1), (width - 0.7) / 2
    tallest = max(panel * image.shape[0] / image.shape[1] for image in images)
    height = tallest + head + 0.1
    drawing = new_figure(width, height)
    axes = sheet(drawing, (0, width), (-height, 0))
    if title:
        headline(drawing, 0.1 / width, 1 - 0.24 / height, title)
    centres: list[list[tuple[float, float]]] = []
    for image, (rows, columns), x in zip(images, grids, (0.1, 0.6 + panel), strict=True):
        high = panel * image.shape[0] / image.shape[1]
        axes.imshow(image, extent=(x, x + panel, -head - high, -head), aspect="auto",
                    cmap="gray" if image.ndim == 2 else None)  # fmt: skip
        centres.append(
            [(x + panel * (c + 0.5) / columns, -head - high * (r + 0.5) / rows)
             for r in range(rows) for c in range(columns)]
        )  # fmt: skip
    axes.set(xlim=(0, width), ylim=(-height, 0))  # imshow has narrowed the view
    joined = _strongest(values, torch.ones_like(values, dtype=torch.bool), lines)
    strongest = max((abs(float(values[pair])) for pair in joined), default=1.0)
    for i, j in joined:
        _line(axes, centres[0][i], centres[1][j], float(values[i, j]), strongest)
    return drawing


def _in_order(words: Sequence[Piece]) -> list[int]:
    """The words from left to right as the writing direction has them."""
    texts = ["" if word.special else word.text for word in words]
    return visual_order(range(len(words)), levels(texts, is_right_to_left(texts)))


def _matrix(pairs: Any, rows: int | None, columns: int | None) -> Tensor:
    values = torch.as_tensor(pairs).detach().cpu().double()
    values = values[0] if values.dim() == 3 and len(values) == 1 else values
    if values.dim() != 2 or (rows is not None and values.shape != (rows, columns)):
        fits = "(n, m)" if rows is None else f"({rows}, {columns})"
        raise ValueError(f"pairs has shape {tuple(values.shape)}; one example has {fits}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError("pairs has values that are not finite")
    return values


def _grid(count: int, image: FloatArray) -> tuple[int, int]:
    """Rows and columns of so many square patches.

    Raises:
        ValueError: there is no such grid.
    """
    height, width = image.shape[:2]
    for rows in range(1, count + 1):
        if count % rows == 0 and rows * width == count // rows * height:
            return rows, count // rows
    raise ValueError(f"{count} patches are no grid of squares on {height} x {width} pixels")


def _strongest(values: Tensor, allowed: Tensor, count: int) -> list[tuple[int, int]]:
    """Places of the largest magnitudes, the weakest first, so that the strongest is drawn last."""
    size = (values.abs() * allowed).flatten()
    order = size.argsort(descending=True)[: max(count, 0)].flip(0)
    return [divmod(int(i), values.shape[1]) for i in order if size[i] > 0]


def _line(
    axes: Any, start: tuple[float, float], end: tuple[float, float], value: float, scale: float
) -> None:
    share = abs(value) / scale
    colour = hexadecimal(colour_of(1.0 if value > 0 else -1.0, 1.0)[0])
    axes.plot(
        [start[0], end[0]], [start[1], end[1]], color=colour, linewidth=0.4 + 3.2 * share,
        alpha=0.25 + 0.7 * share, solid_capstyle="round",
    )  # fmt: skip
