"""The command: measures the effect of every node, estimates it, writes table and figure.

Everything is kept under ``--out`` item by item: a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.language_models import items, network
from experiments.language_models.items import Item
from experiments.language_models.report import insert
from experiments.language_models.tasks import SPLITS
from experiments.patching import report
from experiments.patching.kept_rows import kept_rows
from experiments.patching.measured import Patching, kept
from experiments.patching.methods import METHODS, Estimate

TASKS = ("indirect object", "agreement, nouns")
#: Numbers of nodes in the circuits that are tried.
SIZES = (5, 10, 20, 40, 80)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment."""
    parser = argparse.ArgumentParser(prog="python -m experiments.patching", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("paper-models/smollm2"),
                        help="folder of the model; made there if it is not")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("paper-work/patching"))
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--count", type=int, default=20, help="items of each task")
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument(
        "--report", type=Path, help="where the table is written; printed if missing"
    )
    parser.add_argument("--figure", type=Path, help="where the figure is written")
    options = parser.parse_args(arguments)
    network.make(options.model)
    options.out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = network.load(options.model)
    drawn = _items(model, tokenizer, options.out, options.split, options.count)
    patching = Patching(model)
    run = Run(patching, drawn, options.out, options.split)
    found = {report.MEASURED: run.results(report.MEASURED, Patching.effects)}
    found.update({name: run.results(name, METHODS[name]) for name in options.methods})
    text = report.table(drawn, found, SIZES, patching.heads + 1)
    if options.report is None:
        print(text)
    else:
        insert(text, options.report)
    if options.figure is not None:
        report.figure(drawn, found, SIZES, patching.heads + 1).savefig(options.figure, dpi=150)


def _items(model: Any, tokenizer: Any, out: Path, split: str, count: int) -> list[Item]:
    """Items of the tasks by turns, so that those of a broken run are as many of each."""
    path = out / f"items-{split}.jsonl"
    if not path.exists():
        drawn = items.draw(model, tokenizer, split, count, None, TASKS)
        by_task = [[item for item in drawn if item.task == task] for task in TASKS]
        items.save([item for turn in zip(*by_task, strict=False) for item in turn], path)
    return items.read(path)[: count * len(TASKS)]


class Run:
    """One split of the items, and what is known about it on disk.

    Args:
        patching (Patching): The model.
        drawn (list of Item): Prompts.
        out (Path): Gets the results.
        split (str): Part of the names of files.
    """

    def __init__(self, patching: Patching, drawn: list[Item], out: Path, split: str) -> None:
        self._patching, self._items, self._out, self._split = patching, drawn, out, split

    def results(self, name: str, estimate: Estimate) -> list[report.Result]:
        """Effect of every node, and what circuits of the best nodes keep, for each item.

        Args:
            name (str): Under which results are kept.
            estimate (callable): See :mod:`.methods`.
        """
        stem = f"{self._split}-{name.replace(' ', '_').replace(',', '')}"
        effects = kept_rows(
            self._out / f"{stem}.jsonl",
            self._items,
            lambda _, item: _rounded(estimate(self._patching, item)),
        )
        circuits = kept_rows(
            self._out / f"{stem}-circuits.jsonl",
            self._items,
            lambda i, item: kept(self._patching, item, torch.tensor(effects[i]), SIZES),
        )
        return [report.Result(*pair) for pair in zip(effects, circuits, strict=True)]


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]


if __name__ == "__main__":
    main()
