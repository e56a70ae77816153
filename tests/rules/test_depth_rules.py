"""Rules by depth: blocks are found by order, and each gets what its name would get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_tx import Composite, ConservativeLRP, audit
from captum_lrp_tx.errors import RuleError
from captum_lrp_tx.rules import (
    AHRule,
    ByDepthRule,
    EpsilonRule,
    GeneralizedGammaRule,
    LNRule,
    SinkRule,
    UniformAttentionRule,
)
from captum_lrp_tx.rules.depth import Depths

WIDTH = 6
GAMMA = GeneralizedGammaRule(gamma=0.3)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        pattern = (self.q(x) @ self.k(x).mT).softmax(-1)
        return x + pattern @ self.v(x)


class Model(nn.Module):
    """Five blocks between an embedding and a head, and beside them a list of small layers."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])
        self.whatever = nn.ModuleList([Block() for _ in range(5)])
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.before, *self.whatever):
            x = layer(x)
        return self.head(x.mean(1))


def relevance(rules: str | Composite, make: Callable[[], nn.Module] = Model) -> Tensor:
    torch.manual_seed(0)
    model = make().double()
    x = torch.randn(2, 3, WIDTH, dtype=torch.float64)
    return ConservativeLRP(model, rules).attribute(x, target=1)


@pytest.mark.parametrize("share, first", [(0.0, 0), (0.2, 1), (0.5, 3), (0.6, 3), (1.0, 5)])
def test_upper_blocks_get_the_upper_rules(share: float, first: int) -> None:
    by_depth = [
        ByDepthRule(UniformAttentionRule(), AHRule(), share),
        ByDepthRule(EpsilonRule(0.0), GAMMA, share),
    ]
    got = relevance(Composite({"": by_depth}, base="attnlrp"))
    names = {f"whatever.{i}": [AHRule(), GAMMA] for i in range(first, 5)}
    assert torch.equal(got, relevance(Composite(names, base="attnlrp")))
    if first not in (0, 5):
        assert not torch.allclose(got, relevance("attnlrp"))


def test_entries_in_front_win_and_those_behind_do_not() -> None:
    by_depth = ByDepthRule(EpsilonRule(), GAMMA)
    got = relevance(Composite([("*.4.v", EpsilonRule()), ("", by_depth), ("*.3", EpsilonRule())]))
    names = {"*.4.v": EpsilonRule(), "*.3": GAMMA, "*.4": GAMMA, "": EpsilonRule()}
    assert torch.equal(got, relevance(Composite(names)))


def test_an_entry_for_parts_of_blocks() -> None:
    got = relevance(Composite({"*.v": ByDepthRule(EpsilonRule(0.0), GAMMA)}, base="attnlrp"))
    names = {"*.3.v": GAMMA, "*.4.v": GAMMA}
    assert torch.equal(got, relevance(Composite(names, base="attnlrp")))


def test_blocks_of_every_list_have_a_depth_of_their_own() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.ModuleDict({"layers": nn.ModuleList([Block(), Block()])})
            self.decoder = nn.Sequential(*(Block() for _ in range(4)))

    depths = Depths(list(Towers().named_modules()))
    assert [depth for _, depth in depths.blocks] == [0, 0.5, 0, 0.25, 0.5, 0.75]
    towers = Towers()
    depths = Depths(list(towers.named_modules()))
    assert depths.of(towers.decoder[2].v) == 0.5 and depths.of(towers.decoder) is None


def test_without_blocks_the_lower_rule_holds() -> None:
    def single() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * WIDTH, 5), nn.ReLU(), nn.Linear(5, 2))

    got = relevance(Composite({"": ByDepthRule(GAMMA, EpsilonRule())}), single)
    assert torch.equal(got, relevance(Composite({"": GAMMA}), single))


def test_biases_and_audit_reach_both_rules() -> None:
    torch.manual_seed(0)
    model, x = Model().double(), torch.randn(2, 3, WIDTH, dtype=torch.float64)
    rules = Composite({"": ByDepthRule(EpsilonRule(), GAMMA)}, base="lrp")
    _, delta = ConservativeLRP(model, rules, bias="distribute").attribute(
        x, target=1, return_convergence_delta=True
    )
    assert float(delta.abs().max()) < 1e-8
    report = audit.explainability(model, x, target=1, rules=rules, file=None)
    found = {(a.module, a.rule) for a in report.applied if a.kind == "linear"}
    assert ("whatever.2.v", str(EpsilonRule(bias="absorb"))) in found
    assert ("whatever.3.v", str(GeneralizedGammaRule(gamma=0.3, bias="absorb"))) in found


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((AHRule(), LNRule()), "are for different operations"),
        ((AHRule(), AHRule, 0.5), "takes two rules"),
        ((AHRule(), ByDepthRule(AHRule(), AHRule())), "takes two rules"),
        ((AHRule(), AHRule(), 1.5), "share must be a number from 0 to 1"),
    ],
)
def test_refusals(arguments: Any, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        ByDepthRule(*arguments)


def test_as_a_rule_of_a_module_it_is_refused() -> None:
    model = Model()
    model.head.rule = ByDepthRule(EpsilonRule(), GAMMA)  # type: ignore[assignment]
    with pytest.raises(RuleError, match="entry of a Composite"):
        ConservativeLRP(model).attribute(torch.randn(1, 3, WIDTH), target=0)


@pytest.mark.parametrize("name", ["language", "language-ah"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_presets_for_language_models(family: str, name: str) -> None:
    pytest.importorskip("transformers")
    from language_models import language_model

    ids = torch.tensor([[1, 5, 6, 7, 8, 9]])
    model = language_model(family)  # two blocks
    report = audit.explainability(model, ids, target=(-1, 3), rules=name, file=None)
    assert report.is_covered
    assert abs(report.conservation_error) < 1e-4 * abs(report.output)
    lower = UniformAttentionRule() if name == "language" else AHRule()
    where = "h" if family == "gpt2" else "layers"
    by_hand = Composite({f"*.{where}.1": SinkRule(AHRule())}, base=Composite({"": SinkRule(lower)},
        base="mambalrp"))  # fmt: skip
    got = ConservativeLRP(model, name).attribute(ids, target=(-1, 3))
    assert torch.equal(got, ConservativeLRP(model, by_hand).attribute(ids, target=(-1, 3)))
    assert len({a.rule for a in report.applied if a.kind == "attention"}) == 1 + (
        name == "language"
    )
