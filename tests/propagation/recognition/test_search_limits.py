"""The searches through the autograd graph end: what they find up to which distance, and no further.

A model may be thousands of operations deep; what a factor is for is decided by what lies nearby.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_tx.propagation import graph
from captum_lrp_tx.propagation.hygiene.arguments import fresh
from captum_lrp_tx.propagation.model.modules import find_modules
from captum_lrp_tx.propagation.recognition import delta_rule, patterns, recurrence, summaries


def leaf() -> Tensor:
    return torch.rand(3, 3, requires_grad=True)


def moved(x: Tensor, times: int) -> Tensor:
    """The same entries, ``times`` operations later."""
    for _ in range(times):
        x = x.mT
    return x


def added(x: Tensor, times: int) -> Tensor:
    for _ in range(times):
        x = x + 1.0
    return x


#: The search, what it finds ``n`` operations later, and the greatest such ``n``.
SEARCHES: dict[str, tuple[Callable[[Tensor], Any], Callable[[int], Tensor], int]] = {
    "pattern": (patterns.is_pattern, lambda n: moved(leaf().softmax(-1), n), 39),
    "pattern, scaled": (patterns.is_pattern, lambda n: moved(leaf().softmax(-1) / 2, n), 38),
    "sum of patterns": (
        patterns.is_pattern,
        lambda n: moved(leaf().softmax(-1), n - 1) + leaf().softmax(-1), 39,
    ),
    "sink gate": (
        patterns.is_sink_gate, lambda n: moved(leaf().logsumexp(-1, keepdim=True).sigmoid(), n), 40,
    ),
    "gate": (graph.gate_strength, lambda n: moved(leaf().sigmoid(), n), 39),
    "feature map": (graph.gate_strength, lambda n: moved(leaf().relu(), n), 39),
    "step size": (recurrence.role, lambda n: moved(F.softplus(leaf()), n), 399),
    "decay by a step size": (
        lambda t: recurrence.role(t) == "decay", lambda n: moved(F.softplus(leaf()), n).exp(), 400,
    ),
    "sum of values": (summaries.is_weighed, lambda n: moved(summary(), n), 39),
}  # fmt: skip


def summary() -> Tensor:
    args = (leaf().softmax(-1), leaf())
    result = args[0] @ args[1]
    summaries.summarize(result, args, torch.matmul, (0,))
    return result


def noted_value(tensor: Tensor) -> Tensor:
    delta_rule.note(tensor, True)
    return tensor


@pytest.mark.parametrize("name", SEARCHES)
def test_up_to_a_distance(name: str) -> None:
    search, make, limit = SEARCHES[name]
    assert search(make(1))
    assert search(make(limit))
    assert not search(make(limit + 1))


def test_values_of_a_delta_rule_up_to_a_distance() -> None:
    def values(n: int) -> bool:
        return delta_rule.is_sum_of_values(moved(noted_value(leaf() * 1.0), n))

    assert values(1) and values(399)
    assert not values(400)


def nested(item: Any, times: int) -> Any:
    for _ in range(times):
        item = [item]
    return item


def test_models_in_the_arguments_of_a_function_up_to_a_depth() -> None:
    model = nn.Linear(2, 2)

    def found(times: int) -> bool:
        inner = nested(model, times)
        return bool(find_modules(lambda x, of=inner: x))

    assert found(0)
    depth = next(n for n in range(50) if not found(n))
    assert depth == 3


def test_tensors_in_an_argument_are_made_fresh_up_to_a_depth() -> None:
    tensor = torch.ones(2)

    def is_fresh(times: int) -> bool:
        given: Any = nested(tensor, times)
        got = fresh(given)
        while isinstance(got, list):
            (got,) = got
        return got is not tensor

    assert is_fresh(1)
    depth = next(n for n in range(1, 50) if not is_fresh(n))
    assert depth == 7
