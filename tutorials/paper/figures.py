"""The figures: curves of all data sets, the bias study, conservation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from tutorials.paper import bias
from tutorials.paper.bias import EFFECT, Measured

Array = np.ndarray[Any, np.dtype[np.float64]]

#: Colour, line style and width of the methods that the figure of curves shows.
STYLES: dict[str, tuple[str, str, float]] = {
    "Random": ("#9a9a9a", ":", 1.6),
    "A-Last": ("#c9b458", "-", 1.2),
    "Rollout": ("#8c6d31", "-", 1.2),
    "GAE": ("#6a51a3", "-", 1.4),
    "Chefer": ("#b09ccf", "-", 1.2),
    "GI": ("#d6604d", "-", 1.4),
    "LRP(AH)": ("#f4a582", "-", 1.2),
    "LRP(LN)": ("#92c5de", "-", 1.2),
    "LRP(AH+LN)": ("#2166ac", "-", 2.2),
    "LRP": ("#00665e", "-", 2.2),
    "AttnLRP": ("#5ab4ac", "-", 1.2),
    "LRP-gamma": ("#d4a017", "-", 2.2),
    "AttnLRP-gamma": ("#c2185b", "-", 2.2),
    "IG": ("#222222", "--", 1.6),
}
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
        results (dict): Of :func:`tutorials.paper.reporting.summary`, by data set.
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
                for name, (colour, style, width) in STYLES.items():
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


def conservation(panels: dict[str, tuple[Array, dict[str, Array]]], path: Path) -> None:
    """Sum of relevance against the logit, a row of panels for each model.

    Args:
        panels (dict): Logits and sums of relevance, by the title of the row.
        path (Path): Of the PNG.
    """
    count = max(len(found) for _, found in panels.values())
    with plt.rc_context(_RC):
        figure, axes = plt.subplots(
            len(panels), count, figsize=(1.75 * count, 2.0 * len(panels)), squeeze=False,
            sharey="row",
        )  # fmt: skip
        for row, (title, (logits, found)) in enumerate(panels.items()):
            for ax, (name, values) in zip(axes[row], found.items(), strict=True):
                low, high = min(logits.min(), 0.0), max(logits.max(), 0.0)
                room = 0.08 * (high - low)
                ax.plot([low - room, high + room], [low - room, high + room], color="black", lw=0.8)
                reach = 2.5 * (high - low)
                shown = np.clip(values, low - reach, high + reach)
                ax.scatter(
                    logits, shown, s=9, lw=0, alpha=0.65,
                    color=STYLES.get(name.split(",")[0], ("#00665e",))[0],
                )  # fmt: skip
                r = np.corrcoef(logits, values)[0, 1] if values.std() > 0 else float("nan")
                heading = name.replace(", ", ",\n")
                ax.set_title(heading if row == 0 else "", pad=4)
                ax.text(
                    0.04, 0.97, f"r = {r:.2f}", transform=ax.transAxes, va="top", ha="left",
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 1},
                )  # fmt: skip
                ax.set_xlabel("logit", labelpad=1)
            axes[row][0].set_ylabel(f"{title}\nsum of relevance")
        figure.tight_layout(w_pad=0.5)
        _save(figure, path)


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
    colours = {EFFECT: "black", "LRP(AH+LN)": "#2166ac", "LRP": "#00665e", "GI": "#d6604d"}
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
