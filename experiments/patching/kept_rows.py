"""Results of one item a line, kept as soon as they are there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

Row = TypeVar("Row")


def kept_rows(path: Path, items: Sequence[Row], work: Callable[[int, Row], Any]) -> list[Any]:
    """What ``work`` finds for each item; what the file already has is not done again.

    Args:
        path (Path): A file of JSON, one line an item; made if it is not there.
        items (sequence): In an order that never changes.
        work (callable): From number and item to what JSON can hold.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]  # a killed run may have left half a line
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    found = [json.loads(line) for line in whole.splitlines()][: len(items)]
    for i in tqdm(range(len(found), len(items)), desc=path.stem):
        found.append(work(i, items[i]))
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found[-1]) + "\n")
    return found
