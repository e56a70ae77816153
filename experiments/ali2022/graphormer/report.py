"""Results as Markdown and CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from captum_lrp_tx.metrics.bootstrap import bootstrap_interval, paired_bootstrap
from experiments.ali2022.graphormer.evaluate import (
    HOW,
    Conservation,
    How,
    Result,
    blank_probabilities,
)
from experiments.ali2022.graphormer.model import Graphormer
from experiments.ali2022.graphormer.molecules import Example

_REFERENCE = "LRP(AH+LN)"
_TITLES: dict[How, str] = {
    "masked": "Atoms masked: type, features and degree unknown, bonds and distances stay",
    "removed": "Atoms removed: nothing attends to them",
    "frozen": "Atoms masked, all attention as in the whole molecule",
}


def about(
    model: Graphormer, examples: Sequence[Example], targets: Tensor, target: str
) -> list[str]:
    """What was measured on what, a line each."""
    blank = blank_probabilities(model, examples)
    config = model.config
    count = sum(parameter.numel() for parameter in model.parameters())
    sizes = [example.graph.atoms.shape[1] - 1 for example in examples]
    return [
        "",
        f"Model: {config.layers} layers, width {config.width}, {config.heads} heads, {count:,} "
        "parameters.",
        f"Explained: the {target} class of {len(examples)} test molecules ("
        f"{int((targets == 1).sum())} times active; {min(sizes)} to {max(sizes)} atoms, mean "
        f"{sum(sizes) / len(sizes):.1f}). Mean probability of active without any atom: "
        + ", ".join(f"{how} {float(values.mean()):.2f}" for how, values in blank.items())
        + ".",
        "Intervals: 95 % bootstrap over molecules. AUAC: higher is better. AU-MSE: lower is "
        "better; atoms of the smallest absolute relevance go first as in the paper, in the signed "
        "order those that speak most against the class.",
    ]


def markdown(
    results: Sequence[Result],
    conserved: Sequence[Conservation],
    lines: Sequence[str],
    published: Mapping[str, float],
) -> str:
    """The tables, under some lines of text.

    Args:
        results (sequence of Result): Of all methods.
        conserved (sequence of Conservation): Of all rule sets.
        lines (sequence of str): The text.
        published (mapping of str to float): AUAC in the paper by method, or nothing.
    """
    text = list(lines)
    for how in HOW:
        beside = {} if how == "frozen" else published
        chosen = [result for result in results if result.how == how]
        reference = next((r for r in chosen if r.method == _REFERENCE), None)
        versus = f" AUAC minus that of {_REFERENCE} | AU-MSE minus that of {_REFERENCE} |"
        text += [
            "",
            f"## {_TITLES[how]}",
            "",
            "| method | AUAC | "
            + "paper's | " * bool(beside)
            + "AU-MSE | AU-MSE, signed order | ms |"
            + versus * bool(reference),
            "|---|---|---|---|---|" + "---|" * bool(beside) + "---|---|" * bool(reference),
        ]
        for result in chosen:
            line = (
                f"| {result.method} | {result.activation.interval()} | "
                + f"{_shown(beside.get(result.method))} | " * bool(beside)
                + f"{result.pruning.interval()} | {result.pruning_signed.interval()} | "
                + f"{1000 * result.seconds:.0f} |"
            )
            if reference is not None:
                line += " | |" if result is reference else (
                    f" {paired_bootstrap(result.activation.area, reference.activation.area)} |"
                    f" {paired_bootstrap(result.pruning.area, reference.pruning.area)} |"
                )  # fmt: skip
            text.append(line)
    text += [
        "",
        "## Conservation",
        "",
        "Share of the explained logit that the relevance of atoms and virtual node leaves out, and "
        "what is still missing with the relevance of named constants (biases) added: mean over the "
        "molecules with its interval.",
        "",
        "| rules | left out | error | worst error |",
        "|---|---|---|---|",
    ]
    for item in conserved:
        error = bootstrap_interval(item.error)
        shown = str(error) if error.estimate > 1e-3 else f"{error.estimate:.0e}"
        text.append(
            f"| {item.rules} | {bootstrap_interval(item.left_out)} | {shown} | "
            f"{float(item.error.max()):.0e} |"
        )
    return "\n".join(text)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def write_examples(results: Sequence[Result], examples: Sequence[Example], path: Path) -> None:
    """The areas of every molecule, for paired comparisons with other methods.

    A line for each molecule and way of hiding, with three columns for each method.
    """
    names = list(dict.fromkeys(result.method for result in results))
    kinds = ("AUAC", "AU-MSE", "AU-MSE signed")
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(
            ["smiles", "atoms", *(f"{name} {kind}" for name in names for kind in kinds)]
        )
        for how in HOW:
            areas = [
                curve.area
                for result in results
                if result.how == how
                for curve in (result.activation, result.pruning, result.pruning_signed)
            ]
            for example, row in zip(examples, torch.stack(areas, 1).tolist(), strict=True):
                writer.writerow([example.smiles, how, *(f"{area:.4f}" for area in row)])


def write_csv(results: Sequence[Result], path: Path) -> None:
    """One line for each method, way of hiding, curve and step."""
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow("method atoms curve molecules area low high fraction mean_value".split())
        for result in results:
            for curve in (result.activation, result.pruning, result.pruning_signed):
                interval = curve.interval()
                ends = [f"{v:.6f}" for v in (interval.estimate, interval.low, interval.high)]
                for fraction, value in zip(curve.fractions, curve.values.mean(0), strict=True):
                    writer.writerow(
                        [result.method, result.how, curve.name, len(curve), *ends,
                         f"{float(fraction):.1f}", f"{float(value):.6f}"]
                    )  # fmt: skip
