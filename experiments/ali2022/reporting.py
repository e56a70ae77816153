"""From measurements to committed results: a summary of each data set, tables of all of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.commits import commit
from captum_lrp_tx.evaluation import Evaluation
from captum_lrp_tx.metrics import Curve, paired_bootstrap
from experiments.ali2022 import published
from experiments.ali2022.subjects import DataSet

RESULTS = Path(__file__).parent / "results"
#: Every method is compared with this one on the same examples.
REFERENCE = "LRP(AH+LN)"
#: Key, heading, and whether higher is better.
METRICS = (("auac", "AUAC", True), ("au_mse", "AU-MSE", False))
#: Integrated Gradients from what the metrics mask with; one row of the tables.
SAME_BASELINE = ("IG [UNK]", "IG black")


def summary(evaluation: Evaluation, data: DataSet, target: str) -> dict[str, Any]:
    """What is committed for a data set.

    Args:
        evaluation (Evaluation): What was measured.
        data (DataSet): On what.
        target (str): Which class was explained.

    Returns:
        dict: For each method mean, 95 % bootstrap interval and ``n`` of both metrics, the mean
        curves, and the areas of each example.

    Raises:
        RuntimeError: A method did not apply.
    """
    found: dict[str, Any] = {
        "data set": data.title,
        "model": data.architecture,
        "target": target,
        "n": data.count,
        "commit": commit(),
        **data.facts,
        "methods": {},
    }
    for method in evaluation:
        if method.error is not None:
            raise RuntimeError(f"{method.name}: {method.error}")
        result: dict[str, Any] = {"n": len(method.rows)}
        for curve, (key, _, _) in zip(("activation", "pruning"), METRICS, strict=True):
            interval = method.interval(curve)
            result[key] = [round(v, 4) for v in (interval.estimate, interval.low, interval.high)]
            measured = method.measured[curve]
            assert isinstance(measured, Curve)
            result[curve] = [round(v, 4) for v in measured.values.mean(0).tolist()]
            result[f"{key} of examples"] = [round(v, 4) for v in method.values(curve).tolist()]
        found["methods"][method.name] = result
    return found


def paired(
    result: dict[str, Any], key: str, other: str = REFERENCE, only: Collection[str] | None = None
) -> dict[str, tuple[float, ...]]:
    """Each method minus another one on the same examples: estimate, low, high, p.

    Args:
        result (dict): Of :func:`summary`.
        key (str): The metric.
        other (str): The method to compare with.
        only (collection of str, optional): The methods that are compared.
    """
    methods = result["methods"]
    found: dict[str, tuple[float, ...]] = {}
    for name, entry in methods.items():
        if name == other or other not in methods or (only is not None and name not in only):
            continue
        first, second = (m[f"{key} of examples"] for m in (entry, methods[other]))
        count = min(len(first), len(second))
        d = paired_bootstrap(first[:count], second[:count])
        found[name] = (d.estimate, d.low, d.high, d.p)
    return found


def save(result: dict[str, Any], path: Path) -> None:
    """Writes a result, one line a method."""
    head = {key: value for key, value in result.items() if key != "methods"}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    methods = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in result["methods"].items()]
    text = "\n".join(["{", *lines, ' "methods": {', ",\n".join(methods), " }", "}", ""])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def load_all(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The results of the data sets that are there, in order; ``IG`` is that of ``SAME_BASELINE``.

    Args:
        folder (Path): With one JSON file a data set.
        names (sequence of str): Of the files.
    """
    found = {}
    for name in names:
        path = folder / f"{name}.json"
        if path.exists():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
            found[name]["methods"] = {
                "IG" if method in SAME_BASELINE else method: entry
                for method, entry in found[name]["methods"].items()
            }
    return found


def table(
    results: Mapping[str, dict[str, Any]],
    key: str,
    heading: str,
    higher: bool,
    semaine: bool = False,
) -> str:
    """One metric: methods by data sets, the paper's numbers in brackets.

    Args:
        results (dict): By the name of the data set.
        key, heading, higher: See ``METRICS``.
        semaine (bool): Whether there is a column for the data set that is not available.
    """
    head, end = (" | Semaine |", " | not available |") if semaine else (" |", " |")
    names = list(dict.fromkeys(m for result in results.values() for m in result["methods"]))
    arrow = "higher is better" if higher else "lower is better"
    lines = [
        f"### {heading} ({arrow})",
        "",
        "| method | " + " | ".join(_heading(n, r) for n, r in results.items()) + head,
        "|---" * (len(results) + 1 + semaine) + "|",
    ]
    for name in names:
        cells = [_cell(dataset, result, name, key, higher) for dataset, result in results.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + end)
    return "\n".join(lines)


def _heading(name: str, result: dict[str, Any]) -> str:
    theirs = published.COUNTERPARTS.get(name, "")
    return f"{result['data set']} (n={result['n']})" + (f"<br>[paper: {theirs}]" if theirs else "")


def _cell(dataset: str, result: dict[str, Any], name: str, key: str, higher: bool) -> str:
    entry = result["methods"].get(name)
    if entry is None:
        return ""
    best = max if higher else min
    full = [m[key][0] for m in result["methods"].values() if m["n"] == result["n"]]
    mean, low, high = entry[key]
    text = f"{mean:.3f}" if not (mean == best(full) and entry["n"] == result["n"]) else (
        f"**{mean:.3f}**"
    )  # fmt: skip
    text += f" [{low:.3f}, {high:.3f}]"
    if entry["n"] != result["n"]:
        text += f" (n={entry['n']})"
    theirs = published.find(key, dataset, name)
    return text + (f"<br>[{theirs}]" if theirs else "")


def difference_table(results: dict[str, dict[str, Any]], other: str = REFERENCE) -> str:
    """Each method minus the reference on the same examples, both metrics.

    Args:
        results (dict): By the name of the data set.
        other (str): The reference.
    """
    lines = []
    for key, heading, _ in METRICS:
        found = {name: paired(result, key, other) for name, result in results.items()}
        methods = list(dict.fromkeys(m for d in found.values() for m in d))
        lines += [
            f"### {heading} minus that of {other}, same examples",
            "",
            "| method | " + " | ".join(r["data set"] for r in results.values()) + " |",
            "|---" * (len(results) + 1) + "|",
        ]
        for method in methods:
            cells = []
            for differences in found.values():
                if method not in differences:
                    cells.append("")
                    continue
                estimate, low, high, p = differences[method]
                sure = "" if low <= 0 <= high else "*"
                cells.append(f"{estimate:+.3f}{sure} [{low:+.3f}, {high:+.3f}] p={p:.2g}")
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)
