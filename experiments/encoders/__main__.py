"""The command: draws items, explains them by every method, writes the tables.

Relevance is kept under ``--out`` as soon as it is there: a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from captum_lrp_tx import TokenIntegratedGradients
from captum_lrp_tx.attr.targets import Contrast
from captum_lrp_tx.rules import PRESETS
from experiments.encoders import planted, reactions
from experiments.language_models import report
from experiments.language_models.items import MARGIN, Item, batches, read, save
from experiments.language_models.measures import scores
from experiments.language_models.methods import Explain, Pairs, at_random, by_rules

#: How many candidates are tried for an item of a task.
_TRIES = 400
#: Items of each task that a slow method sees.
LIMITS = {"IG, 20 steps": 8}
METHODS = ("random", "leave one out", "IG, 20 steps", *PRESETS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment."""
    parser = argparse.ArgumentParser(prog="python -m experiments.encoders", description=__doc__)
    parser.add_argument("--reactions", type=Path, default=Path("paper-models/rxnmapper"),
                        help="folder of the model of rxnmapper; made if missing")  # fmt: skip
    parser.add_argument("--sentiment", type=Path, help="folder of a classifier, 1 is positive")
    parser.add_argument("--out", type=Path, default=Path("paper-work/encoders"))
    parser.add_argument("--count", type=int, default=40, help="items of each task")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS)
    parser.add_argument("--report", type=Path, help="where the tables are written")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    reactions.make(options.reactions)
    at_mask, vocabulary = reactions.load(options.reactions)
    texts = [
        "Copied atoms, the model of rxnmapper:", "",
        _explained("reactions", at_mask, reactions.candidates(vocabulary), vocabulary["[UNK]"],
                   vocabulary["[PAD]"], options),
    ]  # fmt: skip
    if options.sentiment is not None:
        classes, tokenizer = planted.load(options.sentiment)
        texts += [
            "Planted words, a MiniLM for sentiment:", "",
            _explained("planted", classes, planted.candidates(tokenizer), tokenizer.unk_token_id,
                       tokenizer.pad_token_id, options),
        ]  # fmt: skip
    text = "\n".join(texts)
    if options.report is None:
        print(text)
    else:
        report.insert(text, options.report)


def _explained(
    name: str, model: nn.Module, candidates: Iterator[Item], unknown: int, padding: int,
    options: argparse.Namespace,
) -> str:  # fmt: skip
    """The table of one model."""
    path = options.out / f"{name}-items.jsonl"
    if not path.exists():
        save(draw(model, candidates, options.count), path)
    items = read(path)
    found = {}
    for method in options.methods:
        path = options.out / f"{name}-{method.replace(' ', '_')}.json"
        if not path.exists():
            explain = explainer(method, model, unknown, padding)
            path.write_text(json.dumps(_relevance(items, explain, method)), encoding="utf-8")
        relevance = json.loads(path.read_text(encoding="utf-8"))
        found["start", method] = [
            None if row is None else scores(item, row, None)
            for item, row in zip(items, relevance, strict=True)
        ]
    return report.table(items, found, {"start": "The first token is left out of the ranking"})


def draw(model: nn.Module, candidates: Iterator[Item], count: int) -> list[Item]:
    """So many items of each task that the model solves, and no longer does when corrupted.

    Args:
        model (nn.Module): From token ids to scores, ``(batch, classes)``.
        candidates (iterator of Item): Tried in their order.
        count (int): Of each task.
    """
    found: dict[str, list[Item]] = {}
    for item in islice(candidates, _TRIES * count):
        kept = found.setdefault(item.task, [])
        if len(kept) >= count or any(item.ids == other.ids for other in kept):
            if all(len(rows) >= count for rows in found.values()):
                break
            continue
        with torch.no_grad():
            a, b = (
                float(row[item.answer] - row[item.foil])
                for row in model(torch.tensor([item.ids, item.corrupted]))
            )
        if a >= MARGIN and b <= a / 2:
            kept.append(item)
    return [item for rows in found.values() for item in rows]


def explainer(method: str, model: nn.Module, unknown: int, padding: int) -> Explain:
    """A method by its name.

    Args:
        method (str): One of ``METHODS``.
        model (nn.Module): From token ids to scores, ``(batch, classes)``.
        unknown (int): Id of the token that replaces what is left out.
        padding (int): Id of the token that integrated gradients start from.
    """
    if method == "random":
        return at_random(model)  # type: ignore[arg-type]
    if method == "leave one out":
        return lambda ids, pairs: _left_out(model, ids, pairs, unknown)
    if method == "IG, 20 steps":
        integrated = TokenIntegratedGradients(model, n_steps=20, baseline=padding)

        def explain(ids: Tensor, pairs: Pairs) -> Tensor:
            targets = [Contrast(a, b) for a, b in pairs]
            relevance = integrated.attribute(ids, target=targets)
            assert isinstance(relevance, Tensor)
            return relevance

        return explain
    return by_rules(method)(model)  # type: ignore[arg-type]


@torch.no_grad()
def _left_out(model: nn.Module, ids: Tensor, pairs: Pairs, unknown: int) -> Tensor:
    """By how much the contrast falls if a token is replaced."""
    answers, foils = torch.tensor(pairs).split(1, dim=1)

    def contrast(ids: Tensor) -> Tensor:
        logits = model(ids)
        return (logits.gather(1, answers) - logits.gather(1, foils)).squeeze(1)

    whole = contrast(ids)
    columns = []
    for place in range(ids.shape[1]):
        without = ids.clone()
        without[:, place] = unknown
        columns.append(whole - contrast(without))
    return torch.stack(columns, 1)


def _relevance(items: Sequence[Item], explain: Explain, name: str) -> list[list[float] | None]:
    """Relevance of the tokens of every item; ``None`` for those that a slow method does not see."""
    found: list[list[float] | None] = [None] * len(items)
    seen = Counter[str]()
    chosen = []
    for i, item in enumerate(items):
        seen[item.task] += 1
        if seen[item.task] <= LIMITS.get(name, len(items)):
            chosen.append(i)
    for group in tqdm(list(batches([len(items[i].ids) for i in chosen])), desc=name):
        places = [chosen[i] for i in group]
        some = [items[i] for i in places]
        ids = torch.tensor([item.ids for item in some])
        rows = explain(ids, [(item.answer, item.foil) for item in some])
        for i, row in zip(places, rows.tolist(), strict=True):
            found[i] = row
    return found


if __name__ == "__main__":
    main()
