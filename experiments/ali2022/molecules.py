"""The results of experiment 3 (``graphormer`` beside this file) in the form of the other ones."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

STORED = Path(__file__).parent / "graphormer/results"
#: How atoms are hidden: as tokens are, and the baseline of Integrated Gradients.
HIDDEN = "masked"
_COLUMNS = {"auac": ("AUAC", "activation"), "au_mse": ("AU-MSE", "pruning")}


def summary(folder: Path = STORED) -> dict[str, Any]:
    """Areas of every molecule, means and intervals, as in :func:`.reporting.summary`.

    Args:
        folder (Path): With the tables that the experiment writes.

    Returns:
        dict: Without the mean curves.

    Example::

        >>> found = summary()
        >>> found["n"], found["methods"]["GI"]["n"]
        (152, 152)
    """
    molecules = _read(folder / "bace_examples.csv")
    count = len(molecules)
    methods: dict[str, dict[str, Any]] = {}
    for row in _read(folder / "bace.csv"):
        entry = methods.setdefault(row["method"], {"n": count})
        for key, (title, curve) in _COLUMNS.items():
            if row["curve"] == curve:
                entry[key] = [float(row[name]) for name in ("area", "low", "high")]
                entry[f"{key} of examples"] = [
                    float(m[f"{row['method']} {title}"]) for m in molecules
                ]
    return {
        "data set": "BACE", "model": "4-layer Graphormer", "target": "predicted", "n": count,
        "methods": methods,
    }  # fmt: skip


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["atoms"] == HIDDEN]
