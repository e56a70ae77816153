"""The experiment on a real language model: its items and scores, without the model."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from experiments.language_models import effects, items, report
from experiments.language_models.items import Item, encode
from experiments.language_models.measures import by_task, mean_over_tasks, scores
from experiments.language_models.network import NextToken
from experiments.language_models.tasks import SPLITS, TASKS, Prompt, Words
from language_models import language_model, tokenizer

ITEM = Item("cats", (1, 5, 6, 7, 8), (1, 5, 9, 7, 8), (2,), 3, 4, "the «cat|mat» sat on")


def words(split: str) -> Words:
    return Words(split)


@pytest.mark.parametrize("task", [t for t in TASKS if "BLiMP" not in t])
def test_prompts_mark_a_reason_and_differ_between_splits(task: str) -> None:
    drawn = {s: list(islice(TASKS[task](words(s), Random(0)), 200)) for s in SPLITS}
    for prompts in drawn.values():
        assert len({p.text for p in prompts}) > 40
        for prompt in prompts:
            (mark,) = items._MARK.findall(prompt.text)
            assert mark[0] != mark[1] and prompt.answer != prompt.foil
    first, second = ({p.text for p in drawn[s]} for s in SPLITS)
    # closed classes of words are in both halves, whole prompts hardly
    assert len(first & second) < 0.1 * len(first)
    again = list(islice(TASKS[task](words("test"), Random(0)), 200))
    assert again == drawn["test"]


def test_prompts_become_aligned_token_ids() -> None:
    item = encode("cats", Prompt("the «cat|dog» sat on a", "mat", "tree"), tokenizer())
    assert item is not None
    read = tokenizer().convert_ids_to_tokens
    assert read(item.ids) == ["<s>", "the", "cat", "sat", "on", "a"]
    assert read(item.corrupted) == ["<s>", "the", "dog", "sat", "on", "a"]
    assert item.reasons == (2,) and read([item.answer, item.foil]) == ["mat", "tree"]
    longer = Prompt("the «cat|old dog» sat on a", "mat", "tree")
    assert encode("cats", longer, tokenizer()) is None


def test_scores_by_hand() -> None:
    found = scores(ITEM, [9.0, 3.0, 2.0, -1.0, 0.5], [2.0, 4.0, 0.0, 1.0])
    assert found["hit"] == 0 and found["MRR"] == 0.5
    assert found["share"] == pytest.approx(2 / 5.5) and found["start"] == pytest.approx(9 / 15.5)
    pearson = np.corrcoef([3.0, 2.0, -1.0, 0.5], [2.0, 4.0, 0.0, 1.0])[0, 1]
    assert found["Pearson"] == pytest.approx(pearson)
    assert found["Spearman"] == pytest.approx(np.corrcoef([3, 2, 0, 1], [2, 3, 0, 1])[0, 1])
    bare = scores(ITEM, [1.0, 2.0, 2.0, 0.5], None)
    assert bare["MRR"] == 0.5 and "start" not in bare and "Pearson" not in bare  # a tie counts


def test_means_are_over_tasks() -> None:
    every = [ITEM, ITEM, Item(**{**vars(ITEM), "task": "dogs"})]
    values: Any = [{"hit": 1.0}, {"hit": 0.0}, {"hit": 1.0}]
    mean, low, high = mean_over_tasks(by_task(every, values, "hit"))
    assert mean == 0.75 and low == 0.5 and high == 1.0
    text = report.table(every, {("start", "lrp"): [*values[:2], None]})
    assert "| lrp | 2 | 0.500 [0.000, 1.000] |" in text


def test_differences_are_paired() -> None:
    every = [ITEM, ITEM, Item(**{**vars(ITEM), "task": "dogs"})]
    a: Any = [{"hit": 1.0}, {"hit": 1.0}, {"hit": 1.0}]
    b: Any = [{"hit": 0.0}, {"hit": 0.0}, None]
    text = report.differences(every, {("start", "lrp"): a, ("start", "gi"): b}, [("lrp", "gi")])
    assert "| `lrp` minus `gi` | +1.000 [1.000, 1.000] |" in text


def test_effects_are_falls_of_the_contrast() -> None:
    model = NextToken(language_model("llama"))  # type: ignore[arg-type]
    (found, long) = effects.measure(
        model, [ITEM, Item(**{**vars(ITEM), "ids": (1,) * 100, "corrupted": (1,) * 100})]
    )
    assert long is None and found is not None and len(found) == 4
    clean, corrupted = (
        model(torch.tensor([ids]))[0, 3] - model(torch.tensor([ids]))[0, 4]
        for ids in (ITEM.ids, ITEM.corrupted)
    )
    assert found[1] == pytest.approx(float(clean - corrupted), rel=1e-5)


def test_items_and_tables_are_kept(tmp_path: Path) -> None:
    items.save([ITEM, ITEM], tmp_path / "items.jsonl")
    assert items.read(tmp_path / "items.jsonl") == [ITEM, ITEM]
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- table -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")
    report.insert("new", path)
    assert path.read_text() == "before\n<!-- table -->\nnew\n<!-- end -->\nafter\n"
