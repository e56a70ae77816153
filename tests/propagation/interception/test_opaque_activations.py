"""Activations that run as an autograd function of the model's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_tx import ConservativeLRP
from captum_lrp_tx.errors import UncoveredOperationError, UncoveredOperationWarning

Function = Callable[[Tensor], Tensor]

KNOWN: dict[str, Function] = {
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "mish": F.mish,
    "relu": F.relu,
    "squared relu": lambda x: F.relu(x) ** 2,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
}
PRESETS = ("ah", "ah+ln", "lrp", "lrp-gated", "lrp-gamma", "attnlrp", "mambalrp")


class Opaque(torch.autograd.Function):
    """A function into which nothing sees, as memory-efficient activations are written."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Function, backward: Function | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.function, ctx.slope = function, backward
        return function(x)

    @staticmethod
    def backward(ctx: Any, *grad: Any) -> Any:
        (x,) = ctx.saved_tensors
        if ctx.slope is not None:
            return grad[0] * ctx.slope(x), None, None
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(ctx.function(leaf).sum(), leaf)
        return grad[0] * slope, None, None


class Hidden(nn.Module):
    """A layer that is one opaque function."""

    def __init__(self, function: Function, backward: Function | None = None) -> None:
        super().__init__()
        self.function, self.backward = function, backward

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = Opaque.apply(x, self.function, self.backward)
        return result


class Plain(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Block(nn.Module):
    """Attention, an activation as signal or as gate, a norm and a head."""

    def __init__(self, activation: nn.Module, gates: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(6, 8)
        self.norm, self.last = nn.LayerNorm(8), nn.Linear(8, 3)
        self.activation, self.gates = activation, gates

    def forward(self, x: Tensor) -> Tensor:
        x = torch.softmax(x @ x.mT, -1) @ x
        h = self.activation(self.first(x))
        h = h * self.second(x) if self.gates else h
        logits: Tensor = self.last(self.norm(h).mean(1))
        return logits


def relevance(model: nn.Module, x: Tensor, **options: Any) -> Tensor:
    result: Tensor = ConservativeLRP(model.eval(), **options).attribute(x, target=0, strict=True)
    return result


@pytest.mark.parametrize("gates", [False, True], ids=["signal", "gate"])
@pytest.mark.parametrize("name", KNOWN)
def test_equal_to_torchs_function(name: str, gates: bool) -> None:
    """As a signal and as a gate, under every preset."""
    x = torch.randn(2, 5, 6)
    hidden, plain = Block(Hidden(KNOWN[name]), gates), Block(Plain(KNOWN[name]), gates)
    assert torch.equal(hidden(x), plain(x))
    for rules in PRESETS:
        found = relevance(hidden, x, rules=rules)
        torch.testing.assert_close(found, relevance(plain, x, rules=rules))


def test_the_model_keeps_its_values() -> None:
    """Constants that are rounded in the model stay so in what is explained."""

    def rounded(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))

    model, x = Block(Hidden(rounded), False).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    found, total = [], ConservativeLRP(model)
    model.last.register_forward_hook(lambda _m, _i, output: found.append(output.detach()))
    total.attribute(x, target=0, strict=True)
    expected = model(x)
    assert all(torch.equal(f, expected) for f in found) and len(found) > 1


@pytest.mark.parametrize("options", [{"memory": "low"}, {"bias": "distribute"}], ids=str)
def test_options(options: dict[str, Any]) -> None:
    """A second run of a block, and biases in front of and behind such a layer."""

    class Stack(nn.Module):
        def __init__(self, make: Callable[[], nn.Module]) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList(
                nn.Sequential(nn.Linear(6, 6), make(), nn.Linear(6, 6)) for _ in range(3)
            )
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + layer(x)
            logits: Tensor = self.head(x.mean(1))
            return logits

    x = torch.randn(2, 4, 6)
    found = relevance(Stack(lambda: Hidden(F.silu)), x, **options)
    torch.testing.assert_close(found, relevance(Stack(lambda: Plain(F.silu)), x, **options))


@pytest.mark.parametrize(
    "layer",
    [
        Hidden(F.relu, torch.ones_like),  # straight through
        Hidden(lambda x: x**3),
        Hidden(lambda x: F.gelu(x) * (1 + x.mean(-1, keepdim=True)), torch.ones_like),
        Hidden(lambda x: torch.where(x.abs() < 13, F.gelu(x), 2 * x)),  # another far out
    ],
    ids=["another derivative", "unknown", "of the row", "unknown far out"],
)
def test_others_are_reported(layer: Hidden) -> None:
    """What no known activation equals is not guessed at."""
    model, x = Block(layer, False).eval(), 30 * torch.randn(2, 5, 6)
    with pytest.warns(UncoveredOperationWarning, match="custom autograd function"):
        ConservativeLRP(model).attribute(x, target=0)
    with pytest.raises(UncoveredOperationError, match="activation"):
        relevance(model, x)


def test_without_rules_nothing_is_replaced() -> None:
    """The preset gi is gradient x input of the model's own gradient."""
    model, x = Block(Hidden(F.relu, torch.ones_like), False).eval(), torch.randn(2, 5, 6)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ConservativeLRP(model, rules="gi").attribute(x, target=0)
    assert torch.equal(found, grad * x)
