"""Beyond the paper: which rules and gammas are best on validation examples.

For every data set :func:`captum_lrp_tx.evaluation.tune` chooses a gamma for each kind of linear
layer, once on top of ``lrp`` and once on top of ``attnlrp``, on examples that no table reports on.
What it chose is explained with as ``LRP-tuned`` in the tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from captum_lrp_tx import ConservativeLRP
from captum_lrp_tx.evaluation import Examples, Tuned, evaluate, tune
from captum_lrp_tx.evaluation.tuning import composite_of, linear_layers
from captum_lrp_tx.methods import Chosen
from experiments.ali2022.subjects import DataSet

NAME = "LRP-tuned"
#: What the gammas are put on.
BASES = ("lrp", "attnlrp")
#: Validation examples of each data set.
COUNT = 32
FILE = "search.json"


def loss(auac: float, au_mse: float) -> float:
    """What is made small: ``(1 - AUAC) * AU-MSE``, see :class:`captum_lrp_tx.evaluation.Trial`."""
    return (1 - auac) * au_mse


def search(data: DataSet, bar: Chosen, show: bool = False) -> dict[str, Any]:
    """Everything that was tried on a data set.

    Args:
        data (DataSet): Validation examples.
        bar (tuple): Integrated Gradients, to compare with.
        show (bool): Show progress.

    Returns:
        dict: By base the trials in their order, ``best`` with its base, and what ``bar`` reaches.
    """
    found: dict[str, Any] = {"data set": data.title, "n": data.count, "trials": {}}
    best: dict[str, Any] | None = None
    for base in BASES:
        tuned: Tuned = tune(
            data.model, data.examples, masker=data.masker, base=base, limit=data.count,
            show_progress=show,
        )  # fmt: skip
        found["trials"][base] = [
            {"gammas": dict(t.gammas), "auac": round(t.auac, 4), "au_mse": round(t.au_mse, 4)}
            for t in tuned.trials
        ]
        if best is None or tuned.best.loss < loss(best["auac"], best["au_mse"]):
            best = {
                "base": base, "gammas": dict(tuned.best.gammas), "auac": tuned.best.auac,
                "au_mse": tuned.best.au_mse,
            }  # fmt: skip
    (measured,) = evaluate(
        data.model, data.examples, [bar], masker=data.masker, limit=data.count,
        show_progress=show,
    )  # fmt: skip
    areas = (float(measured.values(m).mean()) for m in ("activation", "pruning"))
    found["bar"] = dict(zip(("auac", "au_mse"), areas, strict=True))
    found["best"] = best
    return found


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """What was found so far, by data set."""
    path = folder / FILE
    found: dict[str, dict[str, Any]] = {}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
    return found


def save(found: Mapping[str, Any], name: str, folder: Path) -> None:
    """Adds what was found on a data set to the file of all of them."""
    every = load(folder)
    every[name] = dict(found)
    (folder / FILE).write_text(json.dumps(every, indent=1) + "\n", encoding="utf-8")


def tuned(name: str, examples: Examples, folder: Path) -> tuple[Chosen, ...]:
    """``LRP-tuned`` of a data set, nothing where nothing was searched.

    Args:
        name (str): Of the data set.
        examples (Examples): One of them shows which linear layers there are.
        folder (Path): With the file of :func:`save`.
    """
    every = load(folder)
    if name not in every:
        return ()
    best = every[name]["best"]

    def make(model: Any) -> Any:
        layers = linear_layers(model, examples.inputs([0]))
        composite = composite_of(layers, best["gammas"], best["base"])
        return ConservativeLRP(model, composite, bias="distribute")

    return ((NAME, make),)


def report(every: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables of all that was tried.

    Args:
        every (mapping): By data set, from :func:`search`.
    """
    lines = [
        "# What validation examples choose",
        "",
        "`python -m experiments.ali2022.run --experiment search`: AUAC and AU-MSE on validation "
        "examples, biases distributed; gamma 0 is the epsilon rule. First one gamma for all "
        "linear layers, then one kind after the other. The smallest `(1 - AUAC) * AU-MSE` (bold) "
        f"is `{NAME}`.",
        "",
        *_common(every),
    ]
    for found in every.values():
        best = found["best"]
        lines += [f"## {found['data set']} ({found['n']} examples)", ""]
        kinds = list(best["gammas"])
        lines += [
            f"| base | gamma: {' | '.join(kinds)} | AUAC | AU-MSE |",
            "|---" * (len(kinds) + 3) + "|",
        ]
        for base, trials in found["trials"].items():
            for trial in trials:
                chosen = base == best["base"] and trial["gammas"] == best["gammas"]
                mark = "**" if chosen else ""
                gammas = " | ".join(f"{trial['gammas'][kind]:g}" for kind in kinds)
                areas = f"{mark}{trial['auac']:.3f}{mark} | {mark}{trial['au_mse']:.2f}{mark}"
                lines.append(f"| {base} | {gammas} | {areas} |")
        blank = " | ".join("" for _ in kinds)
        bar = found["bar"]
        lines += [f"| IG | {blank} | {bar['auac']:.3f} | {bar['au_mse']:.2f} |", ""]
    return "\n".join(lines)


def _common(every: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Means over the data sets, for what was tried on all of them."""
    rows: dict[tuple[str, float], list[float]] = {}
    for found in every.values():
        for base, trials in found["trials"].items():
            for trial in trials:
                gammas = set(trial["gammas"].values())
                if len(gammas) == 1:
                    ratio = loss(trial["auac"], trial["au_mse"]) / loss(**found["bar"])
                    rows.setdefault((base, gammas.pop()), []).append(ratio)
    lines = [
        "One gamma everywhere: loss divided by that of Integrated Gradients (50 steps), below 1 is "
        "better, geometric mean over the data sets.",
        "",
        "| base | gamma | ratio of losses |",
        "|---|---|---|",
    ]
    for (base, gamma), ratios in rows.items():
        lines.append(f"| {base} | {gamma:g} | {_mean(ratios):.3f} |")
    return [*lines, ""]


def _mean(ratios: Sequence[float]) -> float:
    product = 1.0
    for ratio in ratios:
        product *= ratio
    return product ** (1 / len(ratios))
