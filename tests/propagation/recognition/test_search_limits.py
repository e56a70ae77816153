"""The searches through the autograd graph end: what they find up to which distance, and no further.

A model may be many thousands of operations deep; the searches stay within its last ones.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_tx.propagation import graph
from captum_lrp_tx.propagation.hygiene.arguments import fresh
from captum_lrp_tx.propagation.model.modules import find_modules
from captum_lrp_tx.propagation.recognition import (
    axes,
    delta_rule,
    patterns,
    recurrence,
    summaries,
    undecided,
    weighing,
)
from captum_lrp_tx.propagation.recognition.degrees import Search


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
    "pattern": (patterns.is_pattern, lambda n: moved(leaf().softmax(-1), n), 19_999),
    "pattern, scaled": (
        patterns.is_pattern, lambda n: moved(leaf().softmax(-1) / 2, n), 19_998,
    ),
    "sum of patterns": (
        patterns.is_pattern,
        lambda n: moved(leaf().softmax(-1), n - 1) + leaf().softmax(-1), 19_998,
    ),
    "function of patterns": (
        weighing.is_of_patterns, lambda n: moved(leaf().softmax(-1).square(), n), 3999,
    ),
    "made by a softmax": (
        lambda t: weighing.is_of_softmax(t.grad_fn),
        lambda n: moved(leaf().softmax(-1).square(), n), 3996,
    ),
    "sink gate": (
        lambda t: patterns.is_sink_gate(t.grad_fn),
        lambda n: moved(leaf().logsumexp(-1, keepdim=True).sigmoid(), n), 199,
    ),
    "gate": (graph.gate_strength, lambda n: moved(leaf().sigmoid(), n), 199),
    "feature map": (graph.gate_strength, lambda n: moved(leaf().relu(), n), 199),
    "step size": (recurrence.role, lambda n: moved(F.softplus(leaf()), n), 399),
    "decay by a step size": (
        lambda t: recurrence.role(t) == "decay", lambda n: moved(F.softplus(leaf()), n).exp(), 400,
    ),
    "weights by their sum": (
        lambda t: patterns.is_own_quotient(t.grad_fn),
        lambda n: (lambda w: w / added(w.sum(-1, keepdim=True), n))(leaf().exp()), 399,
    ),
    "power by a logarithm": (
        lambda t: all(s.name != "Exp" for s in Search().degree(t.grad_fn, 0).of),
        lambda n: moved(leaf().log(), n).exp(), 15,
    ),
    "axis made by parameters": (
        lambda t: axes.origin(t, 1) is axes.Origin.PARAMETERS,
        lambda n: added(leaf() @ torch.ones(3, 3), n), 399,
    ),
    "sums of values": (summaries.summaries_of, lambda n: moved(summary(), n), 399),
    "undecided product": (undecided.found, lambda n: moved(in_two_ways()[0], n), 399),
    "sum of values": (summaries.is_weighed, lambda n: moved(summary(), n), 399),
}  # fmt: skip


def summary() -> Tensor:
    args = (leaf().softmax(-1), leaf())
    result = args[0] @ args[1]
    summaries.summarize(result, args, torch.matmul, (0,))
    return result


def in_two_ways() -> tuple[Tensor, list[Tensor], undecided.Weighed]:
    """A product that may be three things, what it is under each, and its handle."""
    meanings = [leaf() for _ in range(3)]
    result = undecided.Undecided.call(meanings[0].detach(), *(m * 1 for m in meanings))
    node: Any = result.grad_fn
    weighed = undecided.Weighed(weakref.ref(node), None, (), lambda _: None)
    undecided.remember(result, weighed)
    return result, meanings, weighed


def test_what_is_read_in_two_ways_is_neither() -> None:
    for confirmed, chosen in (((), 0), ((1,), 1), ((2, 2), 2), ((1, 2), 0)):
        result, meanings, weighed = in_two_ways()
        for meaning in confirmed:
            weighed.confirm(meaning)
        grads = torch.autograd.grad(result.sum(), meanings, allow_unused=True)
        assert [grad is not None for grad in grads] == [i == chosen for i in range(3)]


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
    tensor = torch.ones(2, requires_grad=True) * 2  # has no deep copy of its own

    def is_fresh(times: int) -> bool:
        given: Any = nested(tensor, times)
        got = fresh(given)
        while isinstance(got, list):
            (got,) = got
        return got is not tensor

    assert is_fresh(1)
    depth = next(n for n in range(1, 50) if not is_fresh(n))
    assert depth == 7
