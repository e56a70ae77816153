"""Conservation as a figure, with matplotlib but without pyplot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.methods.line_styles import styles
from captum_lrp_tx.methods.registry import Style
from captum_lrp_tx.visualization.canvas import frame, headline, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from captum_lrp_tx.metrics.sums import Conservation

_TINY = 1e-8
Array = np.ndarray[Any, np.dtype[np.float64]]


def conservation_figure(
    result: Conservation,
    *,
    rules: Sequence[str] | None = None,
    level: str = "embeddings",
    width: float = 7.2,
    title: str = "",
) -> Figure:
    """Sums of relevance against outputs, one panel for each rule set, and the error by depth.

    If absorbed relevance was measured, pale rings are the sums of relevance at the embeddings, and
    full points are these and what named constants absorb: on the line, everything is accounted for.

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
    drawn = styles(names)
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    panel, right = 1.62, 2.35
    side = (width - right - 0.95) / columns
    head, foot = 0.34 if title else 0.08, 0.45
    height = head + rows * (panel + 0.25) + foot
    drawing = new_figure(width, height)
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
        axes.plot([low, high], [low, high], color="#8a8a8a", linewidth=0.8, zorder=1)
        sums, colour = result.sums[name][level].numpy(), drawn[name][0]
        found = result.at(name, level)
        correlation = "none" if math.isnan(found.correlation) else f"{found.correlation:.2f}"
        said = f"r = {correlation}\nerror {_percent(found.error)}"
        if level == "embeddings" and name in result.absorbed:
            _points(axes, output, sums, (bottom, top), colour, rings=True)
            sums = sums + result.absorbed[name].numpy()
            said += f"\nwith constants {_percent(result.unaccounted(name))}"
        _points(axes, output, sums, (bottom, top), colour)
        axes.set_title(name, fontsize=7.2, pad=3, color=colour, fontweight="bold", parse_math=False)
        axes.text(
            0.04, 0.96, said, fontsize=6.5, va="top", transform=axes.transAxes, color="#4a4a4a",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1},
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
    _depth(drawing, result, drawn, (width, height, right, head, foot))
    if title:
        headline(drawing, 0.5, 1 - 0.2 / height, title, size=10, ha="center")
    return drawing


def _points(
    axes: Any, output: Array, sums: Array, ends: tuple[float, float], colour: str,
    rings: bool = False,
) -> None:  # fmt: skip
    """A point for each example; those off the scale are triangles at its edge."""
    inside = np.clip(sums, *ends)
    beyond = inside != sums
    look: dict[str, Any] = {"color": colour, "alpha": 0.55, "linewidths": 0}
    if rings:
        look = {"facecolors": "none", "edgecolors": colour, "alpha": 0.4, "linewidths": 0.5}
    axes.scatter(output[~beyond], sums[~beyond], s=7, **look)
    for end, marker in zip(ends, "v^", strict=True):
        some = beyond & (inside == end)
        if some.any():
            axes.scatter(output[some], inside[some], s=9, marker=marker, clip_on=False, **look)


def _depth(
    drawing: Any,
    result: Conservation,
    drawn: dict[str, Style],
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
    for name, (colour, dashes, _) in drawn.items():
        errors = [max(result.at(name, level).error, _TINY) for level in levels]
        axes.plot(
            range(len(levels)), errors, color=colour, linestyle=dashes, marker="o", markersize=2.8,
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


def _range(output: Array) -> tuple[float, float]:
    """From below zero, or below the smallest value, to above the largest."""
    low, high = min(float(output.min()), 0.0), max(float(output.max()), 0.0)
    margin = 0.15 * ((high - low) or 1.0)
    return low - margin, high + margin


def _quiet(axes: Any) -> None:
    axes.tick_params(labelsize=6.5, length=2, colors="#4a4a4a")
    axes.set_axisbelow(True)
    frame(axes, "#b0b0b0")


def _percent(error: float) -> str:
    if error < 1e-4:
        return f"{error:.0e}"
    return f"{100 * error:.0f} %" if error >= 0.1 else f"{100 * error:.1f} %"
