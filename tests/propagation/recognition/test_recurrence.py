"""Roles of the factors of a state space model: ``h_t = exp(D A) h + D B x``, ``y = C h``.

Every product that implementations form, in every order, against the definition: which factor is
the signal (all others are coefficients, constant under the rule), and what the result is.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from captum_lrp_tx import ConservativeLRP, audit
from captum_lrp_tx.propagation.recognition import recurrence
from captum_lrp_tx.propagation.recognition.recurrence import (
    UNCLEAR,
    confirm_steps,
    mark,
    resolve,
    role,
)

BATCH, TIME, STATE = 2, 3, 4
UNKNOWN = (None, UNCLEAR)


def made(name: str, *shape: int) -> Tensor:
    """A tensor with a role, as a model would compute it, or marked."""
    x = torch.rand(*(shape or (BATCH, TIME, STATE)), requires_grad=True)
    if name == "free":
        return x.tanh()
    if name == "step":
        return F.softplus(x)
    if name == "decay":
        return (F.softplus(x) * -torch.rand(x.shape[-1])).exp()
    if name == "product":
        return x.tanh() @ x.sin().mT
    result = x * 2
    mark(result, name)
    return result


@pytest.mark.parametrize(
    "factors, elementwise, expected",
    [
        # nothing of a state space model
        (("free", "free"), True, None),
        (("output", "free"), True, None),  # read from the state, then gated
        (("output", "output"), True, None),
        # D x and D B
        (("decay", "free"), True, (1, "decayed")),
        (("free", "decay"), True, (0, "decayed")),
        (("decay", "product"), True, (1, "kernel")),
        (("product", "decay"), True, (0, "kernel")),
        (("decay", "output"), True, (1, "output")),
        (("decay", "scaled"), True, (1, "scaled")),
        (("scaled", "decay"), False, (0, "scaled")),
        (("decay", "decayed"), True, (1, "decayed")),
        (("decay", "kernel"), True, (1, "kernel")),
        (("step", "kernel"), True, (1, "kernel")),
        (("kernel", "step"), False, (0, "kernel")),
        (("step", "free"), False, UNKNOWN),  # steps scale entry by entry
        (("step", "scaled"), True, UNKNOWN),
        (("step", "decayed"), True, UNKNOWN),
        # the state
        (("state", "decay"), True, (0, "state")),
        (("decay", "state"), True, (1, "state")),
        (("state", "free"), False, (0, "output")),
        (("free", "state"), False, (1, "output")),
        (("decay", "state", "free"), False, (1, "output")),
        (("state", "state"), True, UNKNOWN),
        (("state", "step"), True, UNKNOWN),
        (("state", "scaled"), True, UNKNOWN),
        (("state", "kernel"), True, UNKNOWN),
        # chunks
        (("kernel", "scaled"), False, (1, "output")),
        (("scaled", "kernel"), False, (0, "output")),
        (("kernel", "free"), False, (1, "output")),
        (("kernel", "decay", "free"), False, (2, "output")),
        (("kernel", "free", "free"), False, UNKNOWN),
        (("kernel", "kernel"), False, UNKNOWN),
        (("scaled", "decayed"), False, (0, "state")),
        (("decayed", "scaled"), False, (1, "state")),
        (("free", "decay", "scaled"), False, (2, "state")),
        (("free", "free", "scaled"), False, (2, "output")),
        (("free", "scaled", "free", "decay"), False, (1, "output")),
        (("scaled", "scaled"), True, UNKNOWN),
        (("step", "decay"), True, UNKNOWN),
        (("unclear", "state"), True, UNKNOWN),
        (("decayed", "free"), False, UNKNOWN),
        (("free", "step", "free"), False, UNKNOWN),  # no letters tell them apart
    ],
    ids=str,
)
def test_products_of_a_scan(factors: tuple[str, ...], elementwise: bool, expected: Any) -> None:
    square = (BATCH, STATE, STATE)
    assert resolve([made(name, *square) for name in factors], None, elementwise) == expected


def test_a_step_of_the_same_shape_is_a_gate_until_an_exponential_has_seen_it() -> None:
    argument = torch.rand(2, 3, requires_grad=True)
    step, x = F.softplus(argument), made("free", 2, 3)
    assert resolve([step, x], None, True) is None  # softplus(a) * b, a gated linear unit
    confirm_steps(step * -2.0)
    assert resolve([step, x], None, True) == (1, "scaled")
    assert resolve([x, step], None, True) == (0, "scaled")
    other = F.softplus(argument)
    assert resolve([other[..., None], made("free", 2, 3, 4)], None, True) == (1, "scaled")
    assert resolve([step, made("scaled", 2, 3)], None, True) == UNKNOWN


@pytest.mark.parametrize("swapped", [False, True])
def test_what_is_written_to_the_state(swapped: bool) -> None:
    """``(D B) x`` and ``(D x) B``: the factor with every dimension of the state is ``D B``."""

    def signal(scaled: Tensor, free: Tensor, elementwise: bool, letters: Any = None) -> Any:
        both, names = [scaled, free], letters
        if swapped:
            both = both[::-1]
            names = None if letters is None else [letters[1], letters[0], letters[2]]
        found = resolve(both, names, elementwise)
        assert found is not None
        position, result = found
        if position is None:
            return result
        assert result == "state"
        return "free" if (position == 1) != swapped else "scaled"

    full, thin = (2, 5, 4), (2, 5, 1)
    assert signal(made("scaled", *full), made("free", *thin), True) == "free"
    assert signal(made("scaled", *thin), made("free", 2, 1, 4), True) == "scaled"
    assert signal(made("scaled", *thin), made("free", *full), True) == UNCLEAR
    assert signal(made("scaled", 2, 4, 4), made("free", 2, 4, 4), False) == UNCLEAR
    sets = [frozenset(letters) for letters in ("bdn", "bd", "bdn")]
    assert signal(made("scaled", 2, 5, 4), made("free", 2, 5), False, sets) == "free"
    sets = [frozenset(letters) for letters in ("bdnt", "bdt", "bdn")]  # over a chunk of time
    assert signal(made("scaled", 2, 5, 4, 3), made("free", 2, 5, 3), False, sets) == "free"
    sets = [frozenset(letters) for letters in ("bdt", "bdnt", "bdn")]
    assert signal(made("scaled", 2, 5, 3), made("free", 2, 5, 4, 3), False, sets) == UNCLEAR
    sets = [frozenset(letters) for letters in ("bd", "bn", "bdn")]
    assert signal(made("scaled", 2, 5), made("free", 2, 4), False, sets) == "scaled"
    sets = [frozenset(letters) for letters in ("bd", "bdn", "bdn")]
    assert signal(made("scaled", 2, 5), made("free", 2, 5, 4), False, sets) == UNCLEAR


def test_step_input_and_signal_in_one_product() -> None:
    """``einsum("bd,bn,bd->bdn", D, B, x)``: the signal has the channels of its step size."""
    sets = [frozenset(letters) for letters in ("bd", "bn", "bd", "bdn")]
    step, b, x = made("step", 2, 5), made("free", 2, 4), made("free", 2, 5)
    assert resolve([step, b, x], sets, False) == (2, "state")
    order = [sets[0], sets[2], sets[1], sets[3]]
    assert resolve([step, x, b], order, False) == (1, "state")
    sets = [frozenset("bd")] * 3 + [frozenset("bdn")]
    assert resolve([step, x, made("free", 2, 5)], sets, False) == UNKNOWN
    assert resolve([made("decayed", 2, 5), x, x], sets, False) == UNKNOWN  # without a step


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda t: t, "step"),
        (lambda t: t[:, 1:].transpose(1, 2).unsqueeze(-1), "step"),
        (lambda t: t.clamp(min=0.1), "step"),
        (lambda t: t * torch.rand(4), "step"),
        (lambda t: t / 2 + 1, "step"),
        (lambda t: torch.cat([t, t]), "step"),
        (lambda t: torch.cat([t[:, 1:], t[:, :1]], 1), "step"),
        (lambda t: (t * -1.0).exp(), "decay"),
        (lambda t: (t.cumsum(1) - t.sum(1, keepdim=True)).exp()[:, :2], "decay"),
        (lambda t: (t * t).exp(), None),  # not linear in the steps
        (lambda t: (t + t.tanh()).exp(), None),
        (lambda t: t.tanh(), None),
        (lambda t: t.exp().exp(), None),
        (lambda t: t.sum(1), None),
        (lambda t: torch.cat([t, t.tanh()]), None),
        (lambda t: torch.stack([t, (t * -1.0).exp()]), None),  # which of both?
    ],
)
def test_roles_are_found_through_what_moves_entries(change: Any, expected: str | None) -> None:
    assert role(change(made("step"))) == expected


def test_a_sum_with_the_state_is_the_state() -> None:
    assert role(made("state") + made("free")) == "state"
    assert role(torch.stack([made("free"), made("state")])) == "state"
    assert role(made("free") + made("free")) is None
    assert role(torch.rand(2)) is None and role(torch.rand(2, requires_grad=True)) is None
    assert role(torch.rand(2, requires_grad=True) * 2) is None
    mark(torch.rand(2), "state")  # a constant has no node, and needs none
    confirm_steps(torch.rand(2))


def test_chains_of_any_length_come_to_an_end() -> None:
    step = made("step")
    for _ in range(recurrence._MAX_NODES + 10):
        step = step.view_as(step)
    assert role(step) is None
    assert role((step * -1.0).exp()) is None


@pytest.mark.parametrize("order", ["state first", "written first", "in place", "not assigned"])
def test_the_state_at_the_start_is_a_constant(order: str) -> None:
    """One step from a state that was handed in, in both orders of the sum."""
    to_b, to_c, start = (torch.randn(3, STATE), torch.randn(3, STATE), torch.randn(3, STATE))

    def forward(x: Tensor) -> Tensor:
        step = F.softplus(x)
        kept = (step * -1.0).exp()[..., None] * start
        written = (step * x)[..., None] * (x @ to_b)[:, None]
        if order == "in place":
            state = kept.add_(written)
        elif order == "not assigned":
            kept.add_(written)
            state = kept
        else:
            state = kept + written if order == "state first" else written + kept
        return (state * (x @ to_c)[:, None]).sum((1, 2))

    x = zoo.floats(BATCH, 3)
    expected = x * F.softplus(x) * ((x @ to_b) * (x @ to_c)).sum(-1, keepdim=True)
    relevance = ConservativeLRP(forward).attribute(x, strict=True)
    torch.testing.assert_close(relevance, expected, rtol=1e-4, atol=1e-5)
    report = audit.explainability(forward, x, file=None, strict=True)
    assert sum(report.absorbed.values()) == pytest.approx(
        float((forward(x) - expected.sum(1)).sum()), abs=1e-4
    )
    assert report.conservation_error == pytest.approx(0.0, abs=1e-4)
