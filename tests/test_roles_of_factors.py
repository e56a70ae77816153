"""Which factor of a product weighs the other: linear attention, the delta rule, what is foreign."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_lrp_tx.errors import UnsupportedModelError
from captum_lrp_tx.propagation import delta_rule, graph, linear_attention, obstacles
from captum_lrp_tx.propagation.graph import Role

N = 4


def leaf(*shape: int) -> Tensor:
    return torch.rand(*(shape or (N, N)), requires_grad=True)


def linear() -> Tensor:
    return leaf() * 2


def feature() -> Tensor:
    return F.elu(leaf()) + 1


def score() -> Tensor:
    return (leaf() @ leaf()) / 2


def summed() -> Tensor:
    """Values that were summed with the weights of a pattern, moved and masked since."""
    result = leaf() @ torch.rand(N, N)
    graph.mark(result, Role.SUMMARY)
    return result.mT[None].squeeze(0) * 0.5


MAKE = {"linear": linear, "feature": feature, "score": score, "summed": summed,
        "softmax": lambda: leaf().softmax(-1), "relu of scores": lambda: score().relu(),
        "sigmoid of scores": lambda: (score() - 1).sigmoid() * 2,
        "leaf": leaf}  # fmt: skip


@pytest.mark.parametrize(
    "first, second, weights, is_pattern",
    [
        ("linear", "linear", (), False),
        ("leaf", "linear", (), False),
        ("feature", "linear", (0,), False),  # f(q) and a sum of values is yet to come
        ("linear", "feature", (1,), False),
        ("feature", "feature", (), True),  # f(q) f(k)^T
        ("relu of scores", "linear", (0,), False),
        ("linear", "sigmoid of scores", (1,), False),
        ("relu of scores", "feature", (0,), False),  # scores come before feature maps
        ("feature", "relu of scores", (1,), False),
        ("relu of scores", "sigmoid of scores", (), True),
        ("feature", "score", (), False),  # bare scores are no values
        ("score", "feature", (), False),
        ("score", "linear", (), False),
        ("summed", "linear", (1,), False),
        ("feature", "summed", (0,), False),
        ("summed", "feature", (1,), False),
        ("summed", "summed", (), False),
        ("softmax", "linear", (0,), False),
    ],
)
def test_weights_of_a_product(
    first: str, second: str, weights: tuple[int, ...], is_pattern: bool
) -> None:
    args = (MAKE[first](), MAKE[second]())
    assert linear_attention.weights(args, [0, 1]) == (weights, is_pattern)
    moved = ("equation", *args)
    shifted = tuple(i + 1 for i in weights)
    assert linear_attention.weights(moved, [1, 2]) == (shifted, is_pattern)


def test_weights_of_products_of_three() -> None:
    args = (feature(), linear(), linear())
    assert linear_attention.weights(args, [0, 1, 2]) == ((), False)
    args = (feature(), summed(), linear())
    assert linear_attention.weights(args, [0, 1, 2]) == ((0, 2), False)


@pytest.mark.parametrize(
    "first, second, quotient, expected",
    [
        ("summed", "linear", True, 1),  # (sum of values) / z
        ("summed", "linear", False, None),  # a gate
        ("summed", "reciprocal", False, 1),  # (sum of values) * (1 / z)
        ("reciprocal", "summed", False, 0),
        ("linear", "summed", True, None),
        ("linear", "summed", False, None),
        ("reciprocal", "linear", False, None),
        ("linear", "linear", True, None),
    ],
)
def test_what_makes_weights_sum_to_one(
    first: str, second: str, quotient: bool, expected: int | None
) -> None:
    make = {**MAKE, "reciprocal": lambda: (leaf() + 1).reciprocal()[None].squeeze(0) * 1.5}
    assert linear_attention.renormalizer((make[first](), make[second]()), quotient) == expected


def test_no_path_is_walked_for_ever() -> None:
    far = summed()
    for _ in range(60):
        far = far.view_as(far)
    assert linear_attention.weights((far, feature()), [0, 1]) == ((1,), False)
    pattern = leaf().softmax(-1)
    for _ in range(60):
        pattern = pattern.view_as(pattern)
    assert not graph.is_pattern(pattern) and graph.gate_strength(pattern) == 0
    sink = leaf().logsumexp(-1)
    for _ in range(60):
        sink = sink.view_as(sink)
    assert not graph.is_sink_gate(sink.sigmoid())


# ---- the delta rule -----------------------------------------------------------------------------
def system() -> tuple[Tensor, Tensor, Tensor]:
    """Scores ``k k^T``, masked and decayed, with their keys and the values."""
    keys, values = leaf().unsqueeze(0) * 2, leaf().unsqueeze(0) * 3
    decay = (leaf(1, N, N) * -1).exp()
    scores = ((keys @ keys.mT) * decay.detach()).tril(-1) + torch.eye(N)
    return scores, keys, values


def test_keys_are_what_made_the_scores() -> None:
    scores, keys, values = system()
    assert not delta_rule.is_key(keys) and not delta_rule.is_key(values)
    assert delta_rule.is_system(scores, values) is True
    assert delta_rule.is_key(keys) and not delta_rule.is_key(values)
    assert delta_rule.is_key(keys[:, 1:].mT * 2) and delta_rule.is_key(keys + keys)
    assert not delta_rule.is_key(keys.tanh()) and not delta_rule.is_key(torch.rand(2))
    assert delta_rule.is_system(scores, keys * 0.5) is False  # solved for keys


@pytest.mark.parametrize(
    "matrix",
    [
        lambda: leaf().tril() * 2, lambda: (leaf() @ torch.rand(N, N)).tril(),
        lambda: leaf().exp(), lambda: torch.rand(N, N), lambda: (leaf() @ leaf()).tanh(),
    ],
)  # fmt: skip
def test_other_systems_are_none(matrix: Any) -> None:
    assert delta_rule.is_system(matrix(), linear()) is None


def test_a_sum_of_weighed_values_is_known_again() -> None:
    result = leaf() @ torch.rand(N, N)
    assert not delta_rule.is_sum_of_values(result)
    delta_rule.note(result, of_values=True)
    assert delta_rule.is_sum_of_values(result) and not delta_rule.is_key(result)
    for moved in (result[1:].mT, result * 2, result / 2, result + linear(), result - 1,
                  torch.cat([linear(), result]), torch.stack([result, linear()])):  # fmt: skip
        assert delta_rule.is_sum_of_values(moved)
    assert delta_rule.is_sum_of_values(result * leaf().sigmoid())  # gated: the signal decides
    for other in (result.exp(), result @ linear(), linear(), torch.rand(2)):
        assert not delta_rule.is_sum_of_values(other)
    delta_rule.note(other := leaf() * 1, of_values=False)
    assert delta_rule.is_key(other) and not delta_rule.is_sum_of_values(other)
    delta_rule.note(torch.rand(2), of_values=True)  # constants have no node


def test_decays_are_exponentials_that_were_only_moved() -> None:
    assert delta_rule.is_decay(leaf().exp()) and delta_rule.is_decay(leaf().exp()[1:, None].mT)
    for other in (leaf().exp() * 2, leaf().sigmoid(), leaf(), torch.rand(2), leaf().exp().sum()):
        assert not delta_rule.is_decay(other)


# ---- what is foreign ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name, what",
    [
        ("FlashAttnFuncBackward", "foreign attention kernel"),
        ("FlexAttentionAutogradOpBackward", "foreign attention kernel"),
        ("_MemoryEfficientAttentionBackward", "foreign attention kernel"),
        ("xformers::Op", "foreign attention kernel"),
        ("DifferentiableGraphBackward", "scripted function"),
        ("CheckpointFunctionBackward", "activation checkpointing"),
        ("NotImplemented", "without a derivative"),
    ],
)
def test_foreign_operations_by_name(name: str, what: str) -> None:
    told = obstacles.foreign(name)
    assert told is not None and what in told


@pytest.mark.parametrize("name", ["Mul", "Softmax", "ScaledDotProduct", ""])
def test_operations_that_are_known(name: str) -> None:
    assert obstacles.foreign(name) is None


@pytest.mark.parametrize(
    "message, what",
    [
        ("FlexAttention does not support backward on CPU", "flex attention"),
        ("in torch.utils.checkpoint: trying to", "checkpointing"),
        ("has been modified by an inplace operation: [torch", "overwrites in place"),
        ("Output 0 of View is a view and is being modified inplace", "overwrites in place"),
    ],
)
def test_failures_of_models_are_explained(message: str, what: str) -> None:
    told = obstacles.explained_failure(RuntimeError(message))
    assert isinstance(told, UnsupportedModelError) and what in str(told)
    assert obstacles.explained_failure(RuntimeError("out of memory")) is None
