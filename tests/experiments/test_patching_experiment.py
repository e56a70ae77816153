"""The experiment on patching: measured one by one, and its tables, on a small Llama."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.language_models.items import Item
from experiments.language_models.network import NextToken
from experiments.patching import report
from experiments.patching.__main__ import Run
from experiments.patching.kept_rows import kept_rows
from experiments.patching.measured import Patching, kept
from experiments.patching.methods import METHODS
from language_models import language_model

ITEM = Item("cats", (1, 5, 6, 7, 8), (1, 5, 9, 7, 8), (2,), 3, 4, "the «cat|mat» sat on")


def small() -> Patching:
    torch.manual_seed(0)
    return Patching(NextToken(language_model("llama")))  # type: ignore[arg-type]


def test_a_growing_batch_measures_what_one_run_a_node_does() -> None:
    patching = small()
    effects = patching.effects(ITEM)
    runs = torch.cat([torch.zeros(1, patching.nodes), torch.eye(patching.nodes)]).bool()
    clean, *patched = patching.contrasts(ITEM, runs)
    assert effects.shape == (patching.nodes,) and float(effects.abs().max()) > 1e-4
    torch.testing.assert_close(effects, clean - torch.stack(patched), rtol=1e-4, atol=1e-6)


def test_circuits_keep_all_or_nothing() -> None:
    patching = small()
    scores = patching.effects(ITEM)
    assert kept(patching, ITEM, scores, (0, patching.nodes)) == pytest.approx([0.0, 1.0])


def test_every_method_estimates_every_node() -> None:
    """In the order of what is measured, and nothing where nothing was corrupted."""
    patching = small()
    measured = patching.effects(ITEM).numpy()
    for name, estimate in METHODS.items():
        found = estimate(patching, ITEM)
        assert found.shape == (patching.nodes,) and bool(found.isfinite().all()), name
        if name != "random":
            assert np.corrcoef(found.numpy(), measured)[0, 1] > 0.8, name
    close = Item(**{**vars(ITEM), "corrupted": ITEM.ids})
    for name in ("gi", "lrp", "IG, 10 steps"):
        assert not METHODS[name](patching, close).any(), name


def test_rows_are_kept_and_half_a_row_is_done_again(tmp_path: Path) -> None:
    path, done = tmp_path / "rows.jsonl", []

    def work(i: int, item: str) -> list[str]:
        done.append(i)
        return [item]

    assert kept_rows(path, ["a", "b"], work) == [["a"], ["b"]]
    path.write_text(path.read_text(encoding="utf-8") + '["c', encoding="utf-8")
    assert kept_rows(path, ["a", "b", "c"], work) == [["a"], ["b"], ["c"]]
    assert kept_rows(path, ["a", "b", "c"], work) == [["a"], ["b"], ["c"]] and done == [0, 1, 2]


def test_table_and_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    patching = small()
    items = [ITEM, Item(**{**vars(ITEM), "ids": (1, 5, 9, 2, 8)})]
    run = Run(patching, items, tmp_path, "test")
    found = {
        report.MEASURED: run.results(report.MEASURED, Patching.effects),
        **{name: run.results(name, METHODS[name]) for name in ("random", "gi")},
    }
    of_layer = patching.heads + 1
    text = report.table(items, found, (5, 10, 20, 40, 80), of_layer)
    first = [found[name][0].effects for name in ("gi", report.MEASURED)]
    got = report.scores(*first, of_layer)
    assert got["Pearson"] == pytest.approx(np.corrcoef(*first)[0, 1])
    mlps = [np.asarray(e)[patching.heads :: of_layer] for e in first]
    assert got["Pearson, MLPs"] == pytest.approx(np.corrcoef(*mlps)[0, 1])
    assert "**cats**, 2 items" in text and text.count("| gi |") == 2
    assert text.count("| measured |") == 1
    assert "Pearson less that of gi" in text and "| 0.000 [0.000, 0.000] |" in text
    less = report.table(items, {k: v for k, v in found.items() if k != "gi"}, (5,), of_layer)
    assert "less that of" not in less
    drawing = report.figure(items, found, (5, 10, 20, 40, 80), of_layer)
    assert len(drawing.axes) == 2 and len(drawing.axes[1].lines) == 4
