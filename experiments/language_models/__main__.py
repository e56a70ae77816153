"""The command: draws items, explains them by every method, writes the table.

Everything is kept under ``--out`` as soon as it is there: a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments.language_models import effects, items, network, report
from experiments.language_models.measures import scores
from experiments.language_models.methods import LIMITS, LONGEST, METHODS, WITH_START, Method
from experiments.language_models.tasks import SPLITS

SETTINGS = ("start", "bare")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.language_models", description=__doc__
    )
    parser.add_argument("--model", type=Path, default=Path("paper-models/smollm2"),
                        help="folder of the model; made there if it is not")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("paper-work/language_models"))
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--count", type=int, default=25, help="items of each task")
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS),
                        help="with a start token, or bare prompts")  # fmt: skip
    parser.add_argument("--pairs", nargs="*", type=_pair, default=[], metavar="METHOD:METHOD",
                        help="differences that are shown below the tables")  # fmt: skip
    parser.add_argument("--blimp", type=Path, default=_blimp(), help="folder with BLiMP's files")
    parser.add_argument(
        "--report", type=Path, help="where the table is written; printed if missing"
    )
    options = parser.parse_args(arguments)
    network.make(options.model)
    options.out.mkdir(parents=True, exist_ok=True)
    run = Run(options.model, options.out, options.split, options.count, options.blimp)
    found = {
        (setting, name): run.scores(name, METHODS[name], setting)
        for setting in options.settings
        for name in options.methods
        if setting == "start" or name not in WITH_START
    }
    text = report.table(run.items, found)
    if options.pairs:
        text += "\n" + report.differences(run.items, found, options.pairs)
    if options.report is None:
        print(text)
    else:
        report.insert(text, options.report)


def _pair(text: str) -> tuple[str, str]:
    first, _, second = text.partition(":")
    if first not in METHODS or second not in METHODS:
        raise argparse.ArgumentTypeError(f"{text!r} is no pair of methods, such as lrp:attnlrp")
    return first, second


def _blimp() -> Path | None:
    shared = os.environ.get("CAPTUM_LRP_TX_SHARED")
    folder = Path(shared or "../shared") / "data" / "blimp"
    return folder if folder.exists() else None


class Run:
    """One split of the items, and what is known about it on disk.

    Args:
        folder (Path): Of the model.
        out (Path): Gets items, effects and relevance.
        split (str): ``"train"`` or ``"test"``.
        count (int): Items of each task.
        blimp (Path, optional): Folder with BLiMP's files.
    """

    def __init__(self, folder: Path, out: Path, split: str, count: int, blimp: Path | None) -> None:
        self.model, tokenizer = network.load(folder)
        self._out, self._split = out, split
        path = out / f"items-{split}.jsonl"
        if not path.exists():
            items.save(items.draw(self.model, tokenizer, split, count, blimp), path)
        self.items = items.read(path)
        path = out / f"effects-{split}.json"
        if not path.exists():
            _write(path, effects.measure(self.model, tqdm(self.items, desc="effects")))
        self.effects: list[list[float] | None] = _read(path)

    def relevance(self, name: str, method: Method, setting: str) -> list[list[float] | None]:
        """Relevance of the tokens of every item; ``None`` where a method is too slow.

        Args:
            name (str): Of the method, under which its relevance is kept.
            method: See :mod:`.methods`.
            setting (str): ``"start"`` for a start token in front, ``"bare"`` for none.
        """
        path = self._out / f"{self._split}-{setting}-{name.replace(' ', '_')}.json"
        if path.exists():
            kept: list[list[float] | None] = _read(path)
            return kept
        explain = method(self.model)
        found: list[list[float] | None] = [None] * len(self.items)
        chosen = self._chosen(name)
        lengths = [len(self.items[i].ids) for i in chosen]
        for batch in tqdm(list(items.batches(lengths)), desc=f"{name}, {setting}"):
            places = [chosen[i] for i in batch]
            some = [self.items[i] for i in places]
            ids = torch.tensor([list(item.ids) for item in some])
            if setting == "bare":
                ids = ids[:, 1:]
            relevance = explain(ids, [(item.answer, item.foil) for item in some])
            for i, row in zip(places, relevance, strict=True):
                found[i] = [float(f"{value:.6g}") for value in row.tolist()]
        _write(path, found)
        return found

    def _chosen(self, name: str) -> list[int]:
        seen: dict[str, int] = {}
        found = []
        for i, item in enumerate(self.items):
            seen[item.task] = seen.get(item.task, 0) + 1
            is_short = len(item.ids) <= LONGEST.get(name, len(item.ids))
            if is_short and seen[item.task] <= LIMITS.get(name, len(self.items)):
                found.append(i)
        return found

    def scores(self, name: str, method: Method, setting: str) -> list[dict[str, float] | None]:
        """Scores of every item, see :func:`.measures.scores`."""
        relevance = self.relevance(name, method, setting)
        measured: list[list[float] | None] = self.effects
        if setting == "bare":  # effects are those behind a start token
            measured = [None] * len(self.items)
        return [
            None if values is None else scores(item, values, effect)
            for item, values, effect in zip(self.items, relevance, measured, strict=True)
        ]


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, value: Any) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value), encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    main()
