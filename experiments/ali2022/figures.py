"""The figures: curves of all data sets, the bias study, conservation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from captum_lrp_tx.methods.line_styles import STYLES
from experiments.ali2022 import bias
from experiments.ali2022.bias import EFFECT, Measured
from experiments.ali2022.conservation import Sums

Array = np.ndarray[Any, np.dtype[np.float64]]

#: Methods that the figure of curves shows.
SHOWN = (
    "Random", "A-Last", "Rollout", "GAE", "Chefer", "GI", "LRP(AH)", "LRP(LN)", "LRP(AH+LN)", "LRP",
    "AttnLRP", "LRP-gamma", "AttnLRP-gamma", "IG",
)  # fmt: skip
KINDS = {
    "female": "#b2439a", "male": "#3b7a57", "Spanish": "#d08a1d", "other": "#4c6fa8",
    "country": "#777777",
}  # fmt: skip
_RC: Any = {
    "font.size": 8, "axes.titlesize": 8.5, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "legend.frameon": False, "figure.dpi": 150,
}  # fmt: skip


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", pad_inches=0.06, metadata={"Software": None})
    plt.close(figure)


def curves(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Mean activation and pruning curves: one column a data set.

    Args:
        results (dict): Of :func:`experiments.ali2022.reporting.summary`, by data set.
        path (Path): Of the PNG.
    """
    count = len(results)
    with plt.rc_context(_RC):
        figure, axes = plt.subplots(
            2, count, figsize=(1.2 + 1.75 * count, 4.6), squeeze=False, sharex=True
        )
        seen: dict[str, Any] = {}
        for column, result in enumerate(results.values()):
            for row, key in enumerate(("activation", "pruning")):
                ax = axes[row][column]
                for name in SHOWN:
                    colour, style, width = STYLES[name]
                    entry = result["methods"].get(name)
                    if entry is None:
                        continue
                    at = np.linspace(0, 1, len(entry[key]))
                    (line,) = ax.plot(at, entry[key], style, color=colour, lw=width)
                    seen.setdefault(name, line)
                ax.margins(x=0.02)
                ax.set_xticks([0, 0.5, 1], ["0", "50", "100"])
            axes[0][column].set_title(f"{result['data set']}\n(n = {result['n']})")
            axes[0][column].set_xlabel("% inserted", labelpad=1)
            axes[1][column].set_xlabel("% removed", labelpad=1)
        axes[0][0].set_ylabel("probability of the class\n(higher is better)")
        axes[1][0].set_ylabel("squared change of logits\n(lower is better)")
        figure.legend(
            seen.values(), seen, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.8
        )
        figure.tight_layout(w_pad=0.6, h_pad=0.9)
        _save(figure, path)


def conservation(panels: Mapping[str, Sums], path: Path) -> None:
    """Sum of relevance, without and with what constants absorb, against the logit.

    Args:
        panels (mapping): By the title of the row of panels.
        path (Path): Of the PNG.
    """
    count = max(len(found.relevance) for found in panels.values())
    with plt.rc_context(_RC):
        figure, axes = plt.subplots(
            len(panels), count, figsize=(1.8 * count, 2.1 * len(panels)), squeeze=False,
            sharey="row",
        )  # fmt: skip
        for row, (title, found) in zip(axes, panels.items(), strict=True):
            for ax, name in zip(row, found.relevance, strict=True):
                _account(ax, found, name)
            row[0].set_ylabel(f"{title}\nsum")
        for ax, name in zip(axes[0], next(iter(panels.values())).relevance, strict=True):
            ax.set_title(name.replace(", ", ",\n"), pad=4)
        rings, points = (
            Line2D([], [], ls="", marker="o", ms=3.5, color="#444444", mfc=fill, mew=0.6)
            for fill in ("none", "#444444")
        )
        figure.tight_layout(w_pad=0.5, rect=(0, 0.05, 1, 1))
        figure.legend(
            [rings, points, Line2D([], [], color="black", lw=0.8)],
            ["relevance at the embeddings", "relevance and what biases and constants absorb",
             "the logit"],
            loc="lower center", ncols=3,
        )  # fmt: skip
        _save(figure, path)


def _account(ax: Axes, found: Sums, name: str) -> None:
    """One model under one rule set."""
    logits, values = found.logits, found.relevance[name]
    low, high = min(logits.min(), 0.0), max(logits.max(), 0.0)
    room, reach = 0.08 * (high - low), 2.5 * (high - low)
    ax.plot([low - room, high + room], [low - room, high + room], color="black", lw=0.8, zorder=3)
    colour = STYLES[name][0]
    account = values + found.absorbed[name]
    look: Any = {"facecolors": "none", "edgecolors": colour, "lw": 0.5, "alpha": 0.45}
    ax.scatter(logits, np.clip(values, low - reach, high + reach), s=9, **look)
    ax.scatter(
        logits, np.clip(account, low - reach, high + reach), s=9, lw=0, alpha=0.75, color=colour
    )
    error = np.abs(account - logits).mean() / np.abs(logits).mean()
    said = "accounted for\nto the last digit" if error < 1e-5 else f"missing: {100 * error:.0f} %"
    ax.text(
        0.04, 0.97, said, transform=ax.transAxes, va="top", ha="left", fontsize=7, zorder=4,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
    )  # fmt: skip
    ax.set_xlabel("logit", labelpad=1)


def _bars(ax: Axes, measured: Measured, method: str, count: int, title: str) -> None:
    values = measured.means()[method]
    count = min(count, len(values) // 2)
    order = np.argsort(values)
    chosen = [*order[:count], *order[-count:]]
    places = [*range(count), *range(count + 1, 2 * count + 1)]
    colours = [KINDS[measured.group.kinds[i]] for i in chosen]
    scale = values.std()
    centre = values.mean()
    ax.barh(places, (values[chosen] - centre) / scale, color=colours, height=0.78)
    ax.set_yticks(places, [measured.group.words[i] for i in chosen])
    ax.tick_params(axis="y", length=0, pad=2, labelsize=7)
    ax.axvline(0, color="black", lw=0.6)
    ax.text(0, count, "⋯", ha="center", va="center")
    ax.set_title(title)
    ax.set_ylim(-0.7, 2 * count + 0.7)
    ax.set_xlabel("standard deviations\nfrom the mean", labelpad=1)


def bias_names(measured: Measured, path: Path, count: int = 12) -> None:
    """The most positive and most negative names, and how well they agree with the effect.

    Args:
        measured (Measured): Of the given names.
        path (Path): Of the PNG.
        count (int): How many names at either end.
    """
    means = measured.means()
    agreed = bias.agreement(measured)
    with plt.rc_context(_RC):
        figure, axes = plt.subplots(
            1, 5, figsize=(11.4, 4.1), gridspec_kw={"width_ratios": [1, 1, 1, 1.25, 1.25]}
        )
        titles = {
            EFFECT: "effect of the name\non the model",
            "LRP(AH+LN)": "relevance by\nLRP(AH+LN)",
            "GI": "relevance by\ngradient x input",
        }
        for ax, (method, title) in zip(axes[:3], titles.items(), strict=True):
            _bars(ax, measured, method, count, title)
        for ax, method in zip(axes[3:], ("LRP(AH+LN)", "GI"), strict=True):
            for kind in dict.fromkeys(measured.group.kinds):
                is_kind = np.array(measured.group.kinds) == kind
                ax.scatter(
                    means[EFFECT][is_kind], means[method][is_kind], s=13, lw=0, alpha=0.8,
                    color=KINDS[kind], label=kind,
                )  # fmt: skip
            estimate, low, high, rank = agreed[method]
            ax.set_title(
                f"{method} against effect\nr = {estimate:.2f} [{low:.2f}, {high:.2f}], "
                f"rank {rank:.2f}"
            )
            ax.set_xlabel("effect on the logit difference")
            ax.set_ylabel("relevance", labelpad=1)
        axes[3].legend(loc="upper left", handletextpad=0.1, borderaxespad=0.1)
        figure.tight_layout(w_pad=0.7)
        _save(figure, path)


def bias_groups(all_measured: Sequence[Measured], path: Path) -> None:
    """Differences between kinds of words, by relevance and by effect.

    Args:
        all_measured (sequence of Measured): Groups with two kinds of several words.
        path (Path): Of the PNG.
    """
    shown = [m for m in all_measured if m.group.contrast[0] and len(m.group.words) > 2]
    colours = {EFFECT: "black", **{m: STYLES[m][0] for m in ("LRP(AH+LN)", "LRP", "GI")}}
    with plt.rc_context(_RC):
        figure, ax = plt.subplots(figsize=(5.6, 0.5 + 0.85 * len(shown)))
        ticks = []
        for place, measured in enumerate(reversed(shown)):
            found = bias.differences(measured)
            first, second = measured.group.contrast
            ticks.append(f"{measured.group.title}:\n{first} minus {second}")
            for k, (name, colour) in enumerate(colours.items()):
                estimate, low, high = found[name]
                y = place + 0.27 - 0.18 * k
                ax.plot([low, high], [y, y], color=colour, lw=1.4, solid_capstyle="round")
                label = {EFFECT: "effect on the model"}.get(name, name)
                ax.plot(estimate, y, "o", ms=4, color=colour, label=label if place == 0 else None)
        ax.axvline(0, color="black", lw=0.6, ls=":")
        ax.set_yticks(range(len(shown)), ticks)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel("difference in standard deviations over words (95 % interval)")
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        _save(figure, path)
