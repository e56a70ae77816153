"""Conservation as a figure, with matplotlib but without pyplot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.metrics.conservation import Conservation
from captum_lrp_tx.visualization.figures import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {
    "GI": "#c9a227", "LRP(AH)": "#fd8d3c", "LRP(LN)": "#e6550d", "LRP(AH+LN)": "#a50f15",
    "LRP": "#1a1a1a", "LRP, biases distributed": "#4292c6",
}  # fmt: skip
_OTHERS = ("#762a83", "#1b7837", "#8c510a", "#01665e", "#9a9a9a")
_TINY = 1e-8


def conservation_figure(
    result: Conservation,
    *,
    rules: Sequence[str] | None = None,
    level: str = "embeddings",
    width: float = 7.2,
    title: str = "",
) -> Figure:
    """Sums of relevance against outputs, one panel for each rule set, and the error by depth.

    Args:
        result (Conservation): What was measured.
        rules (sequence of str, optional): Which rule sets; all unless given.
        level (str): Of the sums.
        width (float): In inches.
        title (str): Headline.

    Returns:
        matplotlib.figure.Figure: For ``savefig`` (PDF and SVG too); not known to pyplot.

    Raises:
        ImportError: matplotlib is not installed.
        InputError: A rule set or level that was not measured.

    Example::

        >>> conservation_figure(result, title="SST-2").savefig("sums.pdf")  # doctest: +SKIP
    """
    names = list(result.sums) if rules is None else list(rules)
    unknown = [name for name in names if name not in result.sums]
    if unknown or not names or level not in result.levels:
        raise InputError(
            f"there are no rules {unknown} or no level {level!r}; there are "
            f"{', '.join(result.sums)} at {', '.join(result.levels)}"
        )
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    panel, right = 1.62, 2.35
    side = (width - right - 0.95) / columns
    head, foot = 0.34 if title else 0.08, 0.45
    height = head + rows * (panel + 0.25) + foot
    drawing: Figure = require_matplotlib("figure").Figure(figsize=(width, height))
    require_matplotlib("backends.backend_agg").FigureCanvasAgg(drawing)
    output = result.output.numpy()
    low, high = _range(output)
    # points beyond are drawn at the edge: a few sums of plain gradients would squeeze all others
    everything = np.concatenate([output, *(result.sums[name][level].numpy() for name in names)])
    bottom, top = _range(np.percentile(everything, [4, 96]))
    bottom, top = min(bottom, low), max(top, high)
    for place, name in enumerate(names):
        row, column = divmod(place, columns)
        axes = drawing.add_axes((
            (0.55 + column * side) / width,
            (foot + (rows - 1 - row) * (panel + 0.25)) / height,
            (side - 0.1) / width, panel / height,
        ))  # fmt: skip
        sums = result.sums[name][level].numpy()
        axes.plot([low, high], [low, high], color="#8a8a8a", linewidth=0.8, zorder=1)
        colour = _colour(name, place)
        inside = np.clip(sums, bottom, top)
        beyond = inside != sums
        axes.scatter(output[~beyond], sums[~beyond], s=7, color=colour, alpha=0.55, linewidths=0)
        for end, marker in ((bottom, "v"), (top, "^")):  # off the scale
            some = beyond & (inside == end)
            axes.scatter(
                output[some], inside[some], s=9, marker=marker, color=colour, alpha=0.55,
                linewidths=0, clip_on=False,
            )  # fmt: skip
        found = result.at(name, level)
        correlation = "none" if math.isnan(found.correlation) else f"{found.correlation:.2f}"
        axes.set_title(name, fontsize=7.2, pad=3, color=colour, fontweight="bold")
        axes.text(
            0.04, 0.96, f"r = {correlation}\nerror {_percent(found.error)}", fontsize=6.5,
            va="top", transform=axes.transAxes, color="#4a4a4a",
        )  # fmt: skip
        axes.set_xlim(low, high)
        axes.set_ylim(bottom, top)
        _quiet(axes)
        if column:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel("sum of relevance", fontsize=7.5)
        if place + columns < len(names):
            axes.set_xticklabels([])
        else:
            axes.set_xlabel("output", fontsize=7.5, labelpad=2)
    _depth(drawing, result, names, (width, height, right, head, foot))
    if title:
        drawing.text(
            0.5, 1 - 0.2 / height, title, fontsize=10, fontweight="bold", ha="center",
            parse_math=False,
        )  # fmt: skip
    return drawing


def _depth(
    drawing: Any,
    result: Conservation,
    names: list[str],
    sizes: tuple[float, float, float, float, float],
) -> None:
    """Relative error at each level, from the last block down to the input."""
    width, height, right, head, foot = sizes
    left = (width - right + 0.45) / width
    bottom = foot / height
    axes = drawing.add_axes(
        (left, bottom, (right - 0.55) / width, 1 - bottom - (head + 0.25) / height)
    )
    levels = list(reversed(result.levels))
    for place, name in enumerate(names):
        errors = [max(result.at(name, level).error, _TINY) for level in levels]
        axes.plot(
            range(len(levels)), errors, color=_colour(name, place), marker="o", markersize=2.8,
            linewidth=1.3,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_title("relative error by depth", fontsize=8, pad=3)
    axes.set_xticks(range(len(levels)))
    shown = [level.removeprefix("block ") for level in levels]
    axes.set_xticklabels(
        [{"embeddings": "emb.", "input": "in"}.get(text, text) for text in shown], fontsize=6.5
    )
    axes.set_xlabel("after block ... down to the input", fontsize=7.5, labelpad=2)
    _quiet(axes)
    axes.grid(True, axis="y", color="#e6e6e6", linewidth=0.6)


def _range(output: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """From below zero, or below the smallest value, to above the largest."""
    low, high = min(float(output.min()), 0.0), max(float(output.max()), 0.0)
    margin = 0.15 * ((high - low) or 1.0)
    return low - margin, high + margin


def _quiet(axes: Any) -> None:
    axes.tick_params(labelsize=6.5, length=2, colors="#4a4a4a")
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color("#b0b0b0")
        spine.set_linewidth(0.6)


def _colour(name: str, place: int) -> str:
    return _COLOURS.get(name, _OTHERS[place % len(_OTHERS)])


def _percent(error: float) -> str:
    if error < 1e-4:
        return f"{error:.0e}"
    return f"{100 * error:.0f} %" if error >= 0.1 else f"{100 * error:.1f} %"
