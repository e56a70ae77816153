"""The curves of an evaluation as a figure, with matplotlib but without pyplot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.evaluation.result import Evaluation, mean_curve
from captum_lrp_tx.methods.line_styles import styles
from captum_lrp_tx.metrics.curves import Curve
from captum_lrp_tx.visualization.canvas import headline, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curves_figure(
    evaluation: Evaluation, *, width: float = 6.5, title: str = "", columns: int = 5
) -> Figure:
    """One panel for each curve that was measured, with the mean of each method.

    Args:
        evaluation (Evaluation): What was measured.
        width (float): In inches.
        title (str): Headline.
        columns (int): Of the legend.

    Returns:
        matplotlib.figure.Figure: For ``savefig`` (PDF and SVG too); not known to pyplot.

    Raises:
        ImportError: matplotlib is not installed.
        InputError: No curve was measured.

    Example::

        >>> curves_figure(evaluation, title="SST-2").savefig("curves.pdf")  # doctest: +SKIP
    """
    measures = [measure for measure in evaluation.measures if measure.is_curve]
    methods = [method for method in evaluation if method.error is None]
    if not measures or not methods:
        raise InputError(
            "no curve was measured, so there is nothing to draw; "
            "name activation or pruning in metrics="
        )
    entries = -(-len(methods) // columns)
    head, foot, panel = 0.26 if title else 0.02, 0.5 + 0.19 * entries, 2.35
    height = head + panel + 0.25 + foot
    drawing = new_figure(width, height)
    grid = drawing.subplots(1, len(measures), squeeze=False)[0]
    drawing.subplots_adjust(
        left=0.62 / width, right=1 - 0.2 / width, bottom=foot / height,
        top=1 - (head + 0.25) / height, wspace=0.42 if len(measures) < 3 else 0.5,
    )  # fmt: skip
    drawn = styles([method.name for method in methods])
    most = max(len(method.rows) for method in methods)
    for axes, measure in zip(grid, measures, strict=True):
        for method in methods:
            curve = method.measured[measure.name]
            assert isinstance(curve, Curve)
            x, y = mean_curve(curve)
            colour, dashes, thickness = drawn[method.name]
            count = len(method.rows)
            axes.plot(
                x.numpy() * 100, y.numpy(), color=colour, linestyle=dashes, linewidth=thickness,
                label=method.name + (f" (n = {count})" if count < most else ""),
                zorder=2 + thickness,
            )  # fmt: skip
        better = "higher" if measure.higher else "lower"
        axes.set_title(f"{measure.title}: {better} is better", fontsize=9)
        axes.set_xlabel(f"% of features {measure.steps}", fontsize=8)
        axes.set_ylabel(measure.axis, fontsize=8)
        _quiet(axes)
    handles, labels = grid[0].get_legend_handles_labels()
    legend = drawing.legend(
        handles, labels, loc="lower center", ncol=min(columns, len(methods)), fontsize=7.5,
        frameon=False, handlelength=2.4, columnspacing=1.4, bbox_to_anchor=(0.5, 0.0),
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
    if title:
        headline(drawing, 0.5, 1 - 0.19 / height, title, size=10.5, ha="center")
    return drawing


def _quiet(axes: Any) -> None:
    """Thin grey axes, and a grid to read values from."""
    axes.set_xlim(0, 100)
    axes.tick_params(labelsize=7.5, length=2.5, colors="#4a4a4a")
    axes.grid(True, axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#a0a0a0")
        spine.set_linewidth(0.7)
