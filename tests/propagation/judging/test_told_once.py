"""The check of uncovered operations belongs to the function explained and to what it ran."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_tx import ConservativeGI, ConservativeLRP, LayerConservativeLRP
from captum_lrp_tx.attr import conservative
from captum_lrp_tx.attr.targets import Target
from captum_lrp_tx.errors import UncoveredOperationWarning

Explained = Callable[..., Any]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


def warned(forward: Explained, *arguments: Any, explainer: Any = ConservativeLRP) -> list[str]:
    """The operations that one explanation complains about."""
    x = torch.randn(2, 6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        explainer(forward).attribute(x, target=1, additional_forward_args=arguments or None)
    return [str(w.message) for w in caught if issubclass(w.category, UncoveredOperationWarning)]


@pytest.fixture
def inspections(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one for each walk over the graph."""
    walks: list[int] = []
    real = conservative.uncovered

    def counted(*args: Any) -> Any:
        walks.append(1)
        return real(*args)

    monkeypatch.setattr(conservative, "uncovered", counted)
    return walks


class Branching(nn.Module):
    """Takes another way by what it is asked, by what it holds, or by its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3)
        self.table = torch.ones(5)

    def forward(self, x: Tensor, how: str = "plain") -> Tensor:
        h = self.first(x)
        if how == "tan":
            h = torch.tan(h)
        elif how == "twice":
            h = torch.cumprod(h, 1)
        elif how == "constant":
            h = h / self.table
        elif how == "turned":
            h = self.table / h
        elif how == "norm":
            h = torch.einsum("bi,bi->bi", h, self.table.expand_as(h))
        elif how == "first":
            h = torch.native_batch_norm(h, None, None, None, None, True, 0.1, 1e-5)[0]
        return self.second(h)


@pytest.mark.parametrize("wrapper", [
    lambda m: lambda t: m(t).softmax(1),
    lambda m: lambda t: torch.tan(m(t)),
    lambda m: partial(lambda dim, t: m(t).softmax(dim), 1),
])  # fmt: skip
def test_another_wrapper_of_a_model_is_inspected(wrapper: Any) -> None:
    model = net()
    assert not warned(model)
    assert len(warned(wrapper(model))) == 1
    assert not warned(wrapper(model)), "the same function once more"


@pytest.mark.parametrize("how", ["tan", "twice", "turned"])
def test_another_branch_is_inspected_and_its_module_named(how: str) -> None:
    model = nn.Sequential(Branching())
    model.forward = lambda x, how="plain": model[0](x, how)  # type: ignore[method-assign]
    assert not warned(model)
    assert not warned(model, "constant")
    (message,) = warned(model, how)
    assert " in 0 (" in message, "found without hooks, named all the same"
    assert not warned(model, how)
    assert not warned(model)


def test_a_branch_taken_by_the_value_of_the_input() -> None:
    model = net()

    def forward(x: Tensor) -> Tensor:
        return torch.tan(model(x)) if x.mean().item() > 0 else model(x)

    explain = ConservativeLRP(forward).attribute
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain(-torch.ones(1, 6), target=0)
    with pytest.warns(UncoveredOperationWarning, match="Tan"):
        explain(torch.ones(1, 6), target=0)


def test_two_functions_with_the_same_fault_are_two() -> None:
    model = net()

    def one(x: Tensor) -> Tensor:
        return torch.tan(model(x))

    def other(x: Tensor) -> Tensor:
        return torch.tan(model(x))

    assert [len(warned(f)) for f in (one, other, one, other)] == [1, 1, 0, 0]


class Squared(Target):
    def select(self, output: Tensor) -> Tensor:
        return output[:, 0] ** 2


def test_another_kind_of_target_is_inspected() -> None:
    model, x = net(), torch.randn(2, 6)
    explainer = ConservativeLRP(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explainer.attribute(x, target=0)
    with pytest.warns(UncoveredOperationWarning, match="Pow"):
        explainer.attribute(x, target=Squared())


def test_what_ran_before_is_not_inspected_again(inspections: list[int]) -> None:
    model = net()
    for explainer in (ConservativeLRP, ConservativeGI):
        for size in (1, 2, 3):
            explainer(model).attribute(torch.randn(size, 6), target=0)
            explainer(model.forward).attribute(torch.randn(size, 6), target=[1] * size)
            explainer(lambda x: model(x)).attribute(torch.randn(size, 6), target=0)
    assert len(inspections) == 4, "model and lambda, two rule sets"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_texts_of_other_lengths_are_not_inspected_again(
    attention: str, inspections: list[int]
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=16, attn_implementation=attention,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    explainers = [ConservativeLRP(model), LayerConservativeLRP(model, model.bert.embeddings)]
    for explainer in explainers:
        for length in (4, 7, 9):
            explainer.attribute(torch.randint(5, 40, (2, length)), target=0)
    assert len(inspections) == 2


def test_each_way_is_inspected_once(inspections: list[int]) -> None:
    model, x = Branching().eval(), torch.randn(2, 6)
    for how in ("plain", "constant", "plain", "constant", "norm", "norm"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ConservativeLRP(model).attribute(x, target=0, additional_forward_args=how)
    assert len(inspections) == 3


def test_nothing_is_kept_of_a_model_that_is_gone() -> None:
    model = net()
    warned(partial(lambda net, x: torch.tan(net(x)), model))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_random_numbers_are_drawn_as_if_nothing_was_named() -> None:
    model = nn.Sequential(Branching(), nn.Dropout(0.5))
    model.forward = lambda x, how="plain": model[1](model[0](x, how))  # type: ignore[method-assign]
    draws = []
    for known in (False, True):
        if known:
            warned(model)
        torch.manual_seed(3)
        warned(model, "tan")
        draws.append(torch.rand(1))
    assert torch.equal(*draws)
