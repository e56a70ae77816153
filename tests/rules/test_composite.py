"""Which rule acts where."""

from __future__ import annotations

import gc
import re
import threading
from typing import Any

import pytest
import torch
from captum.attr._utils import lrp_rules as captum_rules
from torch import Tensor, nn

from captum_lrp_tx import Composite, ConservativeGI, ConservativeLRP, audit, rules
from captum_lrp_tx.errors import RuleError
from captum_lrp_tx.propagation.operations import Kind
from captum_lrp_tx.rules import (
    EpsilonRule,
    GammaRule,
    GeneralizedGammaRule,
    GradientRule,
    ZPlusRule,
)

pytestmark = [pytest.mark.core, pytest.mark.captum]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.act = nn.GELU()
        self.down = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@pytest.fixture
def net() -> Net:
    return Net().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 6)


def applied(net: nn.Module, x: Tensor, composite: Composite) -> dict[tuple[str, str], str]:
    report = audit.explainability(net, x, target=0, rules=composite, file=None)
    return {(item.module, item.kind): item.rule for item in report.applied}


def test_type_name_regex_and_predicate_keys(net: Net, x: Tensor) -> None:
    gamma = GammaRule(0.1)
    by_key: list[tuple[Any, set[str]]] = [
        (nn.Linear, {f"blocks.{i}.{n}" for i in range(3) for n in ("up", "down")} | {"head"}),
        ("blocks.1.*", {"blocks.1.up", "blocks.1.down"}),
        ("blocks.1", {"blocks.1.up", "blocks.1.down"}),
        (re.compile(r"blocks\.[02]\.up"), {"blocks.0.up", "blocks.2.up"}),
        (lambda name, module: getattr(module, "out_features", 0) == 8,
         {f"blocks.{i}.up" for i in range(3)}),
    ]  # fmt: skip
    for key, expected in by_key:
        got = applied(net, x, Composite({key: gamma}, base="lrp"))
        assert {m for (m, k), rule in got.items() if rule.startswith("GammaRule")} == expected
        rest = {m for (m, k), rule in got.items() if rule.startswith("EpsilonRule")}
        assert rest == by_key[0][1] - expected


def test_the_first_entry_wins(net: Net, x: Tensor) -> None:
    first = applied(net, x, Composite({"blocks.0": ZPlusRule(), nn.Linear: GammaRule()}))
    assert first["blocks.0.up", "linear"].startswith("ZPlusRule")
    assert first["blocks.1.up", "linear"].startswith("GammaRule")
    turned = applied(net, x, Composite({nn.Linear: GammaRule(), "blocks.0": ZPlusRule()}))
    assert turned["blocks.0.up", "linear"].startswith("GammaRule")


def test_entries_govern_only_the_kinds_of_their_rule(net: Net, x: Tensor) -> None:
    got = applied(net, x, Composite({"blocks.0": GammaRule()}, base="lrp"))
    assert got["blocks.0.act", "activation"] == "PassActivationRule()"
    several = Composite({"blocks.0": [GammaRule(), rules.PassRule()]}, base="lrp")
    assert applied(net, x, several)["blocks.0.act", "activation"] == "PassRule()"


def test_extending_puts_new_entries_first(net: Net, x: Tensor) -> None:
    base = Composite({nn.Linear: GammaRule()}, base="lrp")
    got = applied(net, x, base.extend({"head": EpsilonRule(0.1)}))
    assert got["head", "linear"].startswith("EpsilonRule(epsilon=0.1")
    assert got["blocks.0.up", "linear"].startswith("GammaRule")


def test_a_module_itself(net: Net, x: Tensor) -> None:
    composite = Composite({net.head: GammaRule(0.5)}, base="lrp")
    named = Composite({"head": GammaRule(0.5)}, base="lrp")
    got = ConservativeLRP(net, rules=composite).attribute(x, target=0)
    assert torch.equal(got, ConservativeLRP(net, rules=named).attribute(x, target=0))
    assert repr(composite).startswith("Composite({this Linear: GammaRule(")
    foreign = Composite({nn.Linear(2, 2): GammaRule()}, base="lrp")
    with pytest.raises(RuleError, match="no module of this model"):
        ConservativeLRP(net, rules=foreign).attribute(x, target=0)


def test_none_switches_a_rule_off(net: Net, x: Tensor) -> None:
    off = Composite({"norm": None}, base="ah+ln")
    got = ConservativeGI(net, rules=off).attribute(x, target=0)
    plain = ConservativeGI(net, rules="gi").attribute(x, target=0)
    assert torch.equal(got, plain)
    assert Composite({"norm": GradientRule()}, base="ah+ln")._entries == off._entries


def test_a_chosen_gradient_is_no_fault(net: Net, x: Tensor) -> None:
    composite = Composite({"norm": None}, base="lrp")
    report = audit.explainability(net, x, target=0, rules=composite, file=None)
    assert report.is_covered
    assert [f.module for f in report.findings] == ["norm"]


def test_module_rule_is_honoured_and_stays(net: Net, x: Tensor, untouched: Any) -> None:
    net.head.rule = captum_rules.GammaRule(0.5)  # type: ignore[assignment]
    net.blocks[0].rule = ZPlusRule()  # type: ignore[assignment]
    expected = Composite({"head": GammaRule(0.5), "blocks.0": ZPlusRule()}, base="lrp")
    with untouched(net):
        first = ConservativeLRP(net).attribute(x, target=0)
        second = ConservativeLRP(net).attribute(x, target=0)
    assert torch.equal(first, second)
    del net.head.rule, net.blocks[0].rule
    assert torch.equal(first, ConservativeLRP(net, rules=expected).attribute(x, target=0))
    # the gradient classes do not look at it
    net.head.rule = captum_rules.GammaRule(0.5)  # type: ignore[assignment]
    without = ConservativeGI(net, rules="lrp").attribute(x, target=0)
    del net.head.rule
    assert torch.equal(without, ConservativeGI(net, rules="lrp").attribute(x, target=0))


def test_gamma_on_values_and_output_projections_as_in_the_papers_code() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, num_labels=3,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    gamma = GeneralizedGammaRule(gamma=0.2)
    names = ["*.self.query", "*.self.key", "*.self.value", "*.attention.output.dense"]
    composite = Composite(dict.fromkeys(names, gamma), base="ah+ln")
    ids = torch.randint(1, 50, (2, 7))
    got = applied(model, ids, composite)
    governed = {m.split("layer.")[1] for (m, _), r in got.items() if "Gamma" in r}
    assert governed == {
        f"{i}.attention.{n}" for i in range(2)
        for n in ("self.query", "self.key", "self.value", "output.dense")
    }  # fmt: skip
    relevance = ConservativeGI(model, rules=composite).attribute(ids, target=0)
    assert not torch.equal(relevance, ConservativeGI(model).attribute(ids, target=0))


def test_bias_and_epsilon_reach_the_rules_that_leave_them_open(net: Net) -> None:
    explainer = ConservativeLRP(
        net, Composite({"head": GammaRule(bias="ignore")}, base="lrp"), bias="distribute",
        epsilon=0.25,
    )  # fmt: skip
    text = repr(explainer.composite) + repr(explainer.composite.base)
    assert "bias='ignore', gamma=0.25)" in text
    assert "EpsilonRule(epsilon=0.25, bias='distribute')" in text
    assert "LNRule(bias='distribute')" in text


def test_epsilon_without_a_linear_rule_is_refused(net: Net) -> None:
    with pytest.raises(RuleError, match="no rule for linear layers"):
        ConservativeLRP(net, "ah+ln", epsilon=0.1)


def test_repr_names_entries_and_base() -> None:
    composite = Composite({nn.Linear: ZPlusRule(), "head": None}, base="lrp")
    assert repr(composite).startswith("Composite({Linear: ZPlusRule(")
    assert repr(composite).endswith("base='lrp')")


def test_threads_with_different_rules_do_not_see_each_other(net: Net, x: Tensor) -> None:
    presets = ["gi", "ln", "ah+ln", "lrp"]
    expected = {p: ConservativeGI(net, p).attribute(x, target=1) for p in presets}
    plain = net(x).detach()
    wrong: list[str] = []

    def explain(preset: str) -> None:
        for _ in range(25):
            if not torch.equal(
                ConservativeGI(net, preset).attribute(x, target=1), expected[preset]
            ):
                wrong.append(preset)

    def infer() -> None:
        for _ in range(100):
            if not torch.equal(net(x).detach(), plain):
                wrong.append("inference")

    threads = [threading.Thread(target=explain, args=(p,)) for p in presets]
    threads += [threading.Thread(target=infer) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_explanation_inside_a_hook_of_an_explanation(net: Net, x: Tensor) -> None:
    expected = ConservativeLRP(net).attribute(x, target=1)
    inner: list[Tensor] = []

    def nested(module: nn.Module, args: Any, output: Any) -> None:
        if not inner:
            inner.append(torch.zeros(()))  # the explanation below runs this hook again
            inner[0] = ConservativeLRP(net, rules="ln").attribute(x, target=1)

    handle = net.blocks[1].register_forward_hook(nested)
    try:
        outer = ConservativeLRP(net).attribute(x, target=1)
    finally:
        handle.remove()
    assert torch.equal(outer, expected)
    assert torch.equal(inner[0], ConservativeLRP(net, rules="ln").attribute(x, target=1))


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(item), Tensor) for item in gc.get_objects())


@pytest.mark.parametrize("how", ["attribute", "distribute", "composite", "audit"])
def test_nothing_keeps_a_graph_alive(net: Net, x: Tensor, how: str) -> None:
    def run() -> None:
        if how == "audit":
            audit.explainability(net, x, target=0, file=None)
            return
        composite = Composite({"head": GeneralizedGammaRule()}, base="lrp")
        rules_ = composite if how == "composite" else "lrp"
        bias: Any = "distribute" if how == "distribute" else "absorb"
        ConservativeLRP(net, rules_, bias=bias).attribute(x, target=0)

    run()
    before = live_tensors()
    gc.disable()  # reference counting alone must free everything
    try:
        for _ in range(20):
            run()
        after = sum(issubclass(type(item), Tensor) for item in gc.get_objects())
    finally:
        gc.enable()
    assert after == before


def test_epsilon_keeps_the_rule_of_the_preset() -> None:
    changed = Composite(base="lrp-gamma").with_epsilon(0.5).base[Kind.LINEAR]
    assert changed == rules.GeneralizedGammaRule(gamma=0.01, epsilon=0.5)
    assert Composite(base="lrp").with_epsilon(0.5).base[Kind.LINEAR] == rules.EpsilonRule(0.5)
