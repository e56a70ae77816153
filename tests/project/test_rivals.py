"""The benchmarks beside other tools: what they measure, and that they would notice a trace."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


def _script(name: str) -> Any:
    before = list(sys.path)
    sys.path.insert(0, BENCHMARKS)
    try:
        return importlib.import_module(name)
    finally:
        sys.path[:] = before  # the script adds to it, too, and benchmarks share names with helpers


@pytest.fixture(scope="module")
def rivals() -> Any:
    """The script, as a module."""
    return _script("rivals")


@pytest.fixture(params=["BERT", "CNN", "transformer of torch.nn"])
def family(request: pytest.FixtureRequest) -> str:
    pytest.importorskip("transformers")
    return str(request.param)


def test_ours_conserves_and_equals_the_oracle(rivals: Any, family: str) -> None:
    word, found = rivals.share("ours", rivals.TOOLS["ours"], family, False)
    assert word == "runs" and found == (pytest.approx(1, abs=1e-9), [])
    assert rivals.named(family) == pytest.approx(1, abs=1e-9)
    word, (error, _) = rivals.error(rivals.TOOLS["ours"], family, rivals.expected(family, "lrp"))
    assert word == "runs" and error < 1e-12
    word, (error, _) = rivals.error(rivals.TOOLS["ours"], family, rivals.expected(family, "gi"))
    assert family == "CNN" or error > 1e-3  # it can tell rules apart


def test_ours_leaves_nothing_behind(rivals: Any, family: str) -> None:
    for call in (0, 1):
        assert rivals.afterwards(rivals.TOOLS["ours"], family, call) == []
    assert rivals.threads(rivals.TOOLS["ours"], family, rounds=2) == "same"


def test_what_is_left_behind_is_noticed(rivals: Any) -> None:
    def explain(model: nn.Module, x: Tensor, target: int) -> Tensor:
        first = next(m for m in model.modules() if isinstance(m, nn.Linear))
        first.register_forward_hook(lambda *_: None)
        first.told = True  # type: ignore[assignment]
        with torch.no_grad():
            first.weight += 1e-3
        return x

    found = " ".join(rivals.afterwards(rivals.Tool("torch", explain), "CNN"))
    for part in ("parameters differ", "logits differ", "1 hooks left", "attribute `told`"):
        assert part in found


@pytest.mark.parametrize("name", ["Captum LRP", "zennit", "lxt", "autoLRP"])
def test_others_run_or_refuse(rivals: Any, name: str) -> None:
    tool = rivals.TOOLS[name]
    if not rivals.installed(tool):
        pytest.skip(f"{tool.package} is not installed")
    word, found = rivals.apart(rivals.share, name, tool, "CNN", False)
    assert word == ("refuses" if name == "lxt" else "runs")
    assert name == "lxt" or found[0] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("title", ["zennit", "Captum", "lxt", "autoLRP"])
def test_rules_that_others_have_too_give_the_same(title: str) -> None:
    parity = _script("parity")
    package, rows = parity.PACKAGES[title]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    found = {
        f"{row.model}: {row.there}": parity.apart(parity.difference, row, torch.float64)
        for row in rows()
    }
    # Captum's rule does not reach through an activation before its layer
    differs = found.pop("MLP with Tanh: IdentityRule() in the middle", 1.0)
    assert differs > 1e-2 and len(found) > 5
    assert max(found.values()) < (1e-6 if title in ("lxt", "autoLRP") else 1e-12), found
