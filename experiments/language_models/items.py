"""Items: prompts as token ids, those kept that the model solves for the known reason."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from experiments.language_models.network import NextToken
from experiments.language_models.tasks import TASKS, Prompt, Words

#: Tasks of which fewer items are drawn, because they are long.
LIMITS = {"needle": 10}
#: By how much, in nats, the model must prefer the answer.
MARGIN = 1.0
#: Token places of one batch.
BATCH = 400
_MARK = re.compile("«(.*?)\\|(.*?)»")


@dataclass(frozen=True)
class Item:
    """A prompt behind a start token.

    Attributes:
        task (str): Its task.
        ids (tuple of int): The start token and the prompt.
        corrupted (tuple of int): The same with other reasons.
        reasons (tuple of int): Their places.
        answer, foil (int): The two next tokens; the model prefers the first.
        text (str): The marked prompt.
    """

    task: str
    ids: tuple[int, ...]
    corrupted: tuple[int, ...]
    reasons: tuple[int, ...]
    answer: int
    foil: int
    text: str


def encode(task: str, prompt: Prompt, tokenizer: Any) -> Item | None:
    """A prompt as an item, ``None`` if clean and corrupted prompt are not aligned token by token.

    Args:
        task (str): Its task.
        prompt (Prompt): With marked reasons.
        tokenizer: A fast one of transformers.
    """
    clean, spans = "", []
    rest = 0
    for match in _MARK.finditer(prompt.text):
        clean += prompt.text[rest : match.start()]
        spans.append((len(clean), len(clean) + len(match[1])))
        clean += match[1]
        rest = match.end()
    clean += prompt.text[rest:]
    corrupt = _MARK.sub("\\2", prompt.text)
    coded = tokenizer(clean, add_special_tokens=False, return_offsets_mapping=True)
    ids = coded["input_ids"]
    other = tokenizer(corrupt, add_special_tokens=False)["input_ids"]
    answer, foil = (
        tokenizer(" " + word, add_special_tokens=False)["input_ids"][0]
        for word in (prompt.answer, prompt.foil)
    )
    reasons = [
        place
        for place, (start, end) in enumerate(coded["offset_mapping"])
        if any(start < last and end > first for first, last in spans)
    ]
    differ = [i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b]
    if len(ids) != len(other) or not set(differ) <= set(reasons) or answer == foil:
        return None
    start = tokenizer.bos_token_id
    return Item(
        task, (start, *ids), (start, *other), tuple(i + 1 for i in reasons), answer, foil,
        prompt.text,
    )  # fmt: skip


def draw(
    model: NextToken,
    tokenizer: Any,
    split: str,
    count: int,
    blimp: Path | None,
    tasks: Collection[str] = tuple(TASKS),
) -> list[Item]:
    """Items that the model solves, and no longer does (by half of the contrast) when corrupted.

    Args:
        model (NextToken): The language model.
        tokenizer: Its tokenizer.
        split (str): ``"train"`` or ``"test"``.
        count (int): How many of each task.
        blimp (Path, optional): Folder of BLiMP; without it its tasks have no items.
        tasks (collection of str): Names of those that are drawn; all unless given.
    """
    words = Words(split, blimp)
    found: list[Item] = []
    for name, task in TASKS.items():
        if name not in tasks:
            continue
        wanted = min(count, LIMITS.get(name, count))
        prompts = task(words, Random(f"{split} {name}"))
        kept: list[Item] = []
        seen: set[tuple[int, ...]] = set()
        for _ in range(12):
            tried = []
            for prompt in _some(prompts, 2 * wanted):
                item = encode(name, prompt, tokenizer)
                if item is not None and item.ids not in seen:
                    seen.add(item.ids)
                    tried.append(item)
            clean = contrasts(model, [i.ids for i in tried], tried)
            corrupted = contrasts(model, [i.corrupted for i in tried], tried)
            kept += [
                item
                for item, a, b in zip(tried, clean, corrupted, strict=True)
                if a >= MARGIN and b <= a / 2
            ]
            if len(kept) >= wanted:
                break
        found += kept[:wanted]
        print(f"{split}, {name}: {len(kept[:wanted])} of {len(seen)} tried", flush=True)
    return found


def _some(prompts: Iterator[Prompt], count: int) -> Iterator[Prompt]:
    for _, prompt in zip(range(count), prompts, strict=False):
        yield prompt


def contrasts(
    model: NextToken, texts: Sequence[Sequence[int]], items: Sequence[Item]
) -> list[float]:
    """Logit of the answer minus logit of the foil behind each of some token ids.

    Args:
        model (NextToken): The language model.
        texts (sequence): Token ids.
        items (sequence of Item): Whose answers are meant, one for each text.
    """
    found = [0.0] * len(texts)
    for places in batches([len(text) for text in texts]):
        ids = torch.tensor([list(texts[i]) for i in places])
        with torch.no_grad():
            logits = model(ids)
        for row, i in zip(logits, places, strict=True):
            found[i] = float(row[items[i].answer] - row[items[i].foil])
    return found


def batches(lengths: Sequence[int], size: int = BATCH) -> Iterator[list[int]]:
    """Places of texts of one length, as many as fit into a batch.

    Args:
        lengths (sequence of int): Of the texts.
        size (int): Token places of a batch.
    """
    for length in sorted(set(lengths)):
        places = [i for i, n in enumerate(lengths) if n == length]
        step = max(size // length, 1)
        for start in range(0, len(places), step):
            yield places[start : start + step]


def as_tensor(items: Sequence[Item]) -> Tensor:
    """Token ids of items of one length: ``(items, tokens)``."""
    return torch.tensor([list(item.ids) for item in items])


def save(items: Sequence[Item], path: Path) -> None:
    """Write items as JSON, one a line."""
    path.write_text("".join(json.dumps(asdict(item)) + "\n" for item in items), encoding="utf-8")


def read(path: Path) -> list[Item]:
    """Read what :func:`save` wrote."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Item(**{k: tuple(v) if isinstance(v, list) else v for k, v in r.items()}) for r in rows]
