"""The table and the figure: estimated against measured effects, and what circuits keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.language_models.items import Item
from experiments.language_models.measures import correlation, mean_over_tasks, ranks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The method that all others are held against.
MEASURED = "measured"
#: Attribution patching with plain gradients, whose correlation is taken off, item by item.
PLAIN = "gi"
SCORES = ("Pearson", "Spearman", "Pearson, heads", "Pearson, MLPs")


class Result(NamedTuple):
    """Of one item.

    Attributes:
        effects: Of the nodes: the heads of a layer, then its MLP, layer by layer.
        circuits: What circuits of the best nodes keep of the behaviour, one number for each size.
    """

    effects: list[float]
    circuits: list[float]


Found = Mapping[str, Sequence[Result]]


def scores(
    estimated: Sequence[float], measured: Sequence[float], nodes_of_layer: int
) -> dict[str, float]:
    """Correlations over nodes.

    Args:
        estimated, measured (sequence of float): Effects of the nodes of one item.
        nodes_of_layer (int): Heads of a layer and its MLP, which is the last of them.
    """
    a, b = np.asarray(estimated, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    is_mlp = np.arange(len(a)) % nodes_of_layer == nodes_of_layer - 1
    values = (
        correlation(a, b),
        correlation(ranks(a), ranks(b)),
        correlation(a[~is_mlp], b[~is_mlp]),
        correlation(a[is_mlp], b[is_mlp]),
    )
    return dict(zip(SCORES, values, strict=True))


def table(items: Sequence[Item], found: Found, sizes: Sequence[int], nodes_of_layer: int) -> str:
    """Means over items with 95 % bootstrap intervals, one pair of tables for each task.

    Args:
        items (sequence of Item): Prompts.
        found (mapping): By method the results of each item; what was measured among them.
        sizes (sequence of int): Of the circuits.
        nodes_of_layer (int): See :func:`scores`.
    """
    lines = []
    for task, places in _by_task(items).items():
        lines += [f"**{task}**, {len(places)} items", ""]
        beside = [f"Pearson less that of {PLAIN}"] if PLAIN in found else []
        lines += ["| method | " + " | ".join((*SCORES, *beside)) + " |"]
        lines += ["|---" * (len(SCORES) + len(beside) + 1) + "|"]
        plain = [correlations(found, PLAIN, places, nodes_of_layer)["Pearson"] for _ in beside]
        for name in found:
            if name != MEASURED:
                every = list(correlations(found, name, places, nodes_of_layer).values())
                cells = map(_cell, (*every, *(every[0] - base for base in plain)))
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
        titles = [f"best {size}" for size in sizes]
        lines += ["", "| circuits by | " + " | ".join(titles) + " |"]
        lines += ["|---" * (len(sizes) + 1) + "|"]
        for name, results in found.items():
            kept = np.asarray([results[i].circuits for i in places])
            lines.append(f"| {name} | " + " | ".join(map(_cell, kept.T)) + " |")
        lines.append("")
    return "\n".join(lines)


def correlations(
    found: Found, name: str, places: Sequence[int], nodes_of_layer: int
) -> dict[str, np.ndarray]:
    """By score the values of a method, of the items at some places."""
    rows = [
        scores(found[name][i].effects, found[MEASURED][i].effects, nodes_of_layer) for i in places
    ]
    return {score: np.asarray([row[score] for row in rows]) for score in SCORES}


def figure(
    items: Sequence[Item], found: Found, sizes: Sequence[int], nodes_of_layer: int
) -> Figure:
    """Above, correlations with intervals; below, what circuits keep; one column for each task.

    Args:
        items, found, sizes, nodes_of_layer: See :func:`table`.

    Returns:
        matplotlib.figure.Figure: For ``savefig``.
    """
    from matplotlib.figure import Figure

    tasks = _by_task(items)
    names = [name for name in found if name != MEASURED]
    colours = {name: f"C{i}" for i, name in enumerate(names)} | {MEASURED: "black"}
    drawing = Figure(figsize=(4.2 * len(tasks), 6.4), layout="constrained")
    axes = drawing.subplots(2, len(tasks), squeeze=False, sharey="row")
    for column, (task, places) in enumerate(tasks.items()):
        above, below = axes[:, column]
        above.set_title(f"{task}, {len(places)} items")
        for i, name in enumerate(names):
            values = correlations(found, name, places, nodes_of_layer)["Pearson"]
            _interval(above, i, values, colours[name])
        above.set_yticks(range(len(names)), names)
        above.set(xlim=(-0.55, 1.05), ylim=(len(names) - 0.5, -0.5))
        above.axvline(0, color="0.8", linewidth=1, zorder=0)
        above.set_xlabel("Pearson, estimated and measured effects")
        for name, results in found.items():
            kept = np.asarray([results[i].circuits for i in places]).mean(0)
            style = "--" if name == MEASURED else "-"
            below.plot(sizes, kept, style, marker="o", ms=3, color=colours[name], label=name)
        below.set(xscale="log", xlabel="nodes in the circuit")
        below.set_xticks(sizes, map(str, sizes))
        below.minorticks_off()
        below.axhline(1, color="0.8", linewidth=1, zorder=0)
    axes[1, 0].set_ylabel("kept share of the contrast")
    axes[1, 0].legend(fontsize=7, frameon=False)
    return drawing


def _interval(axes: Axes, place: int, values: np.ndarray, colour: str) -> None:
    mean, low, high = mean_over_tasks({"": values})
    axes.plot([low, high], [place, place], color=colour, linewidth=2)
    axes.plot(mean, place, "o", color=colour)


def _by_task(items: Sequence[Item]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        found.setdefault(item.task, []).append(i)
    return found


def _cell(values: np.ndarray) -> str:
    mean, low, high = mean_over_tasks({"": values})
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"
