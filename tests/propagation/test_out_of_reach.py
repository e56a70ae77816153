"""Modules that are compiled, or reached in ways that rules cannot follow: honoured or refused."""

from __future__ import annotations

import copy
import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr._utils.lrp_rules import GammaRule
from torch import Tensor, nn

from captum_lrp_tx import (
    AttentionRollout,
    Composite,
    ConservativeGI,
    ConservativeLRP,
    LayerConservativeLRP,
    rules,
)
from captum_lrp_tx.errors import RuleError, UnsupportedModelError

pytestmark = pytest.mark.captum

X = torch.linspace(-1, 1, 12).reshape(2, 6)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).eval()


# ---- compiled ---------------------------------------------------------------------------------
def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def part_in_place(model: nn.Module) -> nn.Module:
    in_place(model[0])  # type: ignore[index]
    return model


def its_forward(model: nn.Module) -> nn.Module:
    model.forward = torch.compile(model.forward, backend="eager")  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("compiled", [in_place, part_in_place, its_forward])
def test_compiled_in_place_is_refused(compiled: Callable[..., Any], called: bool) -> None:
    model = compiled(net())
    if called:
        model(X)
    for explain in (
        lambda: ConservativeLRP(model).attribute(X, target=0),
        lambda: ConservativeGI(lambda x: model(x)).attribute(X, target=0),
        lambda: LayerConservativeLRP(model, model[2]).attribute(X, target=0),
        lambda: AttentionRollout(model).attribute(X),
    ):
        with pytest.raises(UnsupportedModelError, match="compiled"):
            explain()


@pytest.mark.parametrize("compiled", [in_place, part_in_place])
def test_what_the_message_suggests_works(compiled: Callable[..., Any]) -> None:
    expected = ConservativeLRP(net()).attribute(X, target=0)
    model = compiled(net())
    twin = copy.deepcopy(model)
    assert torch.equal(ConservativeLRP(twin).attribute(X, target=0), expected)
    for m in model.modules():
        m._compiled_call_impl = None
    assert torch.equal(ConservativeLRP(model).attribute(X, target=0), expected)


def test_a_compiled_function_is_refused_and_its_original_explained() -> None:
    model = net()
    function = torch.compile(lambda x: model(x), backend="eager")
    with pytest.raises(UnsupportedModelError, match="_torchdynamo_orig_callable"):
        ConservativeLRP(function).attribute(X, target=0)
    with pytest.raises(UnsupportedModelError, match="compiled"):
        ConservativeLRP(functools.partial(function)).attribute(X, target=0)
    original = function._torchdynamo_orig_callable
    expected = ConservativeLRP(model).attribute(X, target=0)
    assert torch.equal(ConservativeLRP(original).attribute(X, target=0), expected)


def test_a_function_kept_from_the_compiler_is_not_compiled() -> None:
    model = net()
    kept = torch.compiler.disable(lambda x: model(x))
    expected = ConservativeLRP(model).attribute(X, target=0)
    assert torch.equal(ConservativeLRP(kept).attribute(X, target=0), expected)


# ---- reached otherwise ------------------------------------------------------------------------
def with_rule() -> nn.Sequential:
    model = net()
    model[0].rule = GammaRule(1.0)
    return model


class Holder:
    def __init__(self, model: nn.Module) -> None:
        self.models = {"deep": [model]}

    def run(self, x: Tensor) -> Tensor:
        y: Tensor = self.models["deep"][0](x)
        return y


class Slots:
    __slots__ = ("model",)

    def __init__(self, model: nn.Module) -> None:
        self.model = model


class Unregistered(nn.Module):
    """Keeps its parts in a plain list, of which nn.Module knows nothing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))
        self.parts = [model]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.parts[0](x * self.scale)
        return y


KEPT: list[nn.Module] = []
NETS: dict[str, nn.Module] = {}


def by_global_dictionary(model: nn.Module) -> Callable[..., Any]:
    NETS["a"] = model
    return lambda x: NETS["a"](x)


def by_other_function(model: nn.Module) -> Callable[..., Any]:
    KEPT[:] = [model]
    found = weakref.ref(model)

    class Registry:
        @staticmethod
        def get() -> nn.Module:
            module = found()
            assert module is not None
            return module

    return lambda x: Registry.get()(x)


def by_slots(model: nn.Module) -> Callable[..., Any]:
    slots = Slots(model)
    return lambda x: slots.model(x)


def beside_another(model: nn.Module) -> Callable[..., Any]:
    first, nets = nn.Linear(6, 6), {"a": model}
    with torch.no_grad():
        first.weight.copy_(torch.eye(6))
        first.bias.zero_()
    return lambda x: nets["a"](first(x))


WAYS: dict[str, Callable[[nn.Module], Callable[..., Any]]] = {
    "dictionary": lambda m: (lambda nets: lambda x: nets["a"](x))({"a": m}),
    "partial in a dictionary": lambda m: functools.partial(
        lambda nets, x: nets["a"](x), {"a": functools.partial(m)}
    ),
    "keyword": lambda m: lambda x, *, model=m: model(x),
    "object": lambda m: Holder(m).run,
    "global dictionary": by_global_dictionary,
    "other function": by_other_function,
    "slots": by_slots,
    "beside another": beside_another,
    "unregistered": Unregistered,
}
FOLLOWED = {"dictionary", "partial in a dictionary", "keyword", "global dictionary", "object"}


@pytest.mark.parametrize("way", WAYS)
def test_a_rule_is_honoured_or_refused(way: str) -> None:
    model = with_rule()
    forward = WAYS[way](model)
    expected = ConservativeLRP(model).attribute(X, target=0)
    assert not torch.allclose(expected, ConservativeLRP(net()).attribute(X, target=0))
    explainer = ConservativeLRP(forward)
    if way in FOLLOWED:
        assert torch.equal(explainer.attribute(X, target=0), expected)
        return
    with pytest.raises(RuleError, match="no effect"):
        explainer.attribute(X, target=0)
    # without a rule nothing is refused
    del model[0].rule
    plain = ConservativeLRP(net()).attribute(X, target=0)
    torch.testing.assert_close(explainer.attribute(X, target=0), plain)
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks


def test_entries_of_a_composite_are_honoured_or_refused() -> None:
    forward = beside_another(net())
    composite = Composite({nn.Linear: rules.GammaRule(1.0)}, base="lrp")
    with pytest.raises(RuleError, match="no effect"):
        ConservativeLRP(forward, rules=composite).attribute(X, target=0)
    harmless = Composite({"0": rules.EpsilonRule()}, base="lrp")
    with pytest.raises(RuleError, match="no module"):  # as ever: the name is not there
        ConservativeLRP(forward, rules=harmless).attribute(X, target=0)


def test_a_rule_on_a_module_whose_method_is_explained() -> None:
    layer = nn.Linear(6, 2)
    layer.rule = GammaRule(1.0)  # type: ignore[assignment]
    ConservativeLRP(layer).attribute(X, target=0)
    with pytest.raises(RuleError, match="pass the module itself"):
        ConservativeLRP(layer.forward).attribute(X, target=0)


def test_frozen_parameters_give_a_module_away_too() -> None:
    model = with_rule().requires_grad_(False)
    with pytest.raises(RuleError, match="no effect"):
        ConservativeLRP(by_slots(model)).attribute(X, target=0)


def test_compiled_modules_out_of_reach_are_refused() -> None:
    model = net()
    model[2].compile(backend="eager")
    with pytest.raises(UnsupportedModelError):
        ConservativeLRP(by_slots(model)).attribute(X, target=0)


def test_a_parameter_that_belongs_to_no_module_is_nobodys_rule() -> None:
    weight, model = nn.Parameter(torch.eye(6)), with_rule()
    relevance = ConservativeLRP(lambda x: model(x @ weight)).attribute(X, target=0)
    torch.testing.assert_close(relevance, ConservativeLRP(model).attribute(X, target=0))


def test_other_threads_run_their_modules_undisturbed() -> None:
    model, other = with_rule(), with_rule()
    expected, seen = other(X), []

    def forward(x: Tensor) -> Tensor:
        thread = threading.Thread(target=lambda: seen.append(other(X)))
        thread.start()
        thread.join()
        y: Tensor = model(x)
        return y

    ConservativeLRP(forward).attribute(X, target=0)
    assert torch.equal(seen[0], expected)
