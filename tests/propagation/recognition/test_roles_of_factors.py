"""Which factor of a product weighs the other: linear attention, the delta rule, what is foreign."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_tx import ConservativeLRP
from captum_lrp_tx.errors import UnsupportedModelError
from captum_lrp_tx.propagation import graph
from captum_lrp_tx.propagation.judging import obstacles
from captum_lrp_tx.propagation.recognition import (
    axes,
    delta_rule,
    rescaling,
    summaries,
    undecided,
    weighing,
)
from captum_lrp_tx.propagation.recognition.axes import Origin
from captum_lrp_tx.propagation.recognition.contracted import contraction_of, equation_of

pytestmark = pytest.mark.core

N = 4


class Data:
    """Linear maps of one sequence, whose first axis is of the data and last of parameters."""

    def __init__(self) -> None:
        self.x = torch.rand(N, N, requires_grad=True) * 1.0

    def linear(self) -> Tensor:
        weight = torch.rand(N, N)
        result = self.x @ weight
        axes.note(result, self.x, -1)
        return result

    def feature(self) -> Tensor:
        return F.elu(self.linear()) + 1

    def score(self) -> Tensor:
        return self.linear() @ self.linear().mT

    def softmax(self) -> Tensor:
        return self.score().softmax(-1)

    def router(self) -> Tensor:
        return self.linear().softmax(-1)

    def summed(self) -> Tensor:
        """``f(k)^T v`` that is known to be such, moved and masked since."""
        args = (self.linear().softmax(0).mT, self.linear())
        result = args[0] @ args[1]
        summaries.summarize(result, args, torch.matmul, (0,))
        return result[None].squeeze(0) * 0.5


def leaf(*shape: int) -> Tensor:
    return torch.rand(*(shape or (N, N)), requires_grad=True)


def linear() -> Tensor:
    return leaf() * 2


def of(first: Tensor, second: Tensor) -> weighing.Weighing:
    return weighing.weighing_of(torch.matmul, (first, second), [0, 1])


PRODUCTS: dict[str, tuple[Callable[[Data], tuple[Tensor, Tensor]], weighing.Weighing]] = {
    "softmax attention": (
        lambda d: (d.softmax(), d.linear()),
        weighing.Weighing((0,), what="softmax attention")),
    "values on the left": (
        lambda d: (d.linear().mT, d.softmax().mT),
        weighing.Weighing((1,), what="softmax attention")),
    "pooling": (
        lambda d: (d.linear().softmax(0).mT, d.linear()),
        weighing.Weighing((0,), what="softmax attention")),
    "a router and what parameters made": (
        lambda d: (d.router(), d.linear().mT),
        weighing.Weighing(mixes=0, what="mixture")),
    "scores without a softmax": (
        lambda d: (d.score().sigmoid(), d.linear()),
        weighing.Weighing((0,), what="attention without a softmax (convention)")),
    "keys and values": (
        lambda d: (d.feature().mT, d.linear()), weighing.Weighing(proposed=(0,))),
    "two maps over the tokens": (
        lambda d: (d.feature().mT, d.feature()), weighing.Weighing(proposed=(0, 1))),
    "queries and keys": (
        lambda d: (d.feature(), d.feature().mT),
        weighing.Weighing(is_pattern=True)),
    "a query reads": (
        lambda d: (d.linear(), d.summed()),
        weighing.Weighing((0,), what="linear attention (convention)")),
    "two towers": (lambda d: (d.feature(), d.linear().mT), weighing.Weighing()),
    "biaffine": (lambda d: (d.linear(), d.linear().mT), weighing.Weighing()),
    "Gram matrix": (lambda d: (d.linear().mT, d.linear()), weighing.Weighing()),
    "bare scores are no values": (lambda d: (d.feature().mT, d.score()), weighing.Weighing()),
    "along another axis": (
        lambda d: (d.linear(), d.summed().mT), weighing.Weighing()),
    "a power of a softmax": (
        lambda d: (d.softmax() ** 2, d.linear()),
        weighing.Weighing((0,), what="attention without a softmax (convention)")),
    "a softmax times something else": (
        lambda d: (d.softmax() * d.score(), d.linear()), weighing.Weighing(is_untold=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_what_a_product_is(name: str) -> None:
    make, expected = PRODUCTS[name]
    assert of(*make(Data())) == expected


def test_weights_of_products_of_three() -> None:
    d = Data()
    queries, keys, values = d.feature(), d.feature(), d.linear()
    got = weighing.weighing_of(torch.einsum, ("ik,jk,jd->id", queries, keys, values), [1, 2, 3])
    assert got.weights == (1, 2) and got.shares == {1: 0.25, 2: 0.25, 3: 0.5}
    plain = weighing.weighing_of(
        torch.einsum, ("ik,jk,jd->id", queries, d.linear(), values), [1, 2, 3]
    )
    assert plain == weighing.Weighing()


def test_keys_and_values_are_attention_once_a_query_reads_them() -> None:
    d = Data()
    args = (d.feature().mT, d.linear())
    plain = args[0] @ args[1]
    told: list[int] = []
    result = undecided.Undecided.call(plain.detach(), plain, plain * 1.0)
    weighed = undecided.Weighed(weakref.ref(result.grad_fn), None, (), told.append)
    summaries.summarize(result, args, torch.matmul, (0,)).weighed = weighed
    assert of(d.linear(), result) == weighing.Weighing(), "a bare factor is no query"
    assert of(d.feature(), result.mT) == weighing.Weighing(), "along the channels of the values"
    assert not told and graph.parents(result.grad_fn) == [plain.grad_fn]
    assert of(d.feature(), result).weights == (0,)
    assert told == [1] and graph.parents(result.grad_fn) != [plain.grad_fn]


def test_what_divides_weighed_values() -> None:
    d = Data()
    weights = d.score().exp()
    values = d.linear()
    result = weights @ values
    summaries.summarize(result, (weights, values), torch.matmul, (0,))
    total = weights.sum(-1, keepdim=True)
    assert rescaling.renormalizer((result, total), True) == 1
    assert rescaling.renormalizer((result, total.reciprocal()), False) == 1
    assert rescaling.renormalizer((total.reciprocal(), result), False) == 0
    assert rescaling.renormalizer((result, total), False) is None, "no quotient"
    for other in (d.linear(), result.square().mean(-1, keepdim=True).sqrt(), 1 + values.exp()):
        assert rescaling.renormalizer((result, other), True) is None
    assert rescaling.renormalizer((values, total), True) is None


# ---- where an axis comes from -------------------------------------------------------------------
AXES: dict[str, tuple[Callable[[Data], Tensor], int, Origin]] = {
    "tokens": (lambda d: d.linear(), 0, Origin.DATA),
    "channels": (lambda d: d.linear(), 1, Origin.PARAMETERS),
    "channels, activated": (lambda d: d.feature() * 2, -1, Origin.PARAMETERS),
    "transposed": (lambda d: d.linear().mT, 0, Origin.PARAMETERS),
    "heads": (lambda d: d.linear().view(N, 2, N // 2), 1, Origin.PARAMETERS),
    "joined with tokens": (lambda d: d.linear().view(1, N * N), 1, Origin.DATA),
    "of the inputs": (lambda d: d.x, 1, Origin.DATA),
    "keys": (lambda d: d.score(), 1, Origin.SCORES),
    "keys of a constant query": (
        lambda d: torch.rand(2, N) @ d.linear().mT, 1, Origin.DATA),
    "constant queries": (lambda d: torch.rand(2, N) @ d.linear().mT, 0, Origin.PARAMETERS),
    "experts": (lambda d: torch.stack([d.linear(), d.feature()], 1), 1, Origin.PARAMETERS),
    "experts, joined": (
        lambda d: torch.cat([d.linear()[:, None], d.feature()[:, None]], 1), 1, Origin.PARAMETERS),
    "steps of time": (
        lambda d: torch.stack([row.tanh() for row in d.linear().unbind(0)]), 0, Origin.DATA),
    "channels one by one": (
        lambda d: torch.stack([c.tanh() for c in d.linear().unbind(1)], 1), 1, Origin.PARAMETERS),
    "with a class token": (
        lambda d: torch.cat([torch.zeros(1, N), d.linear()]), 0, Origin.DATA),
    "spread out": (lambda d: d.linear()[:, None].expand(N, 3, N), 1, Origin.PARAMETERS),
    "copies, joined with tokens": (
        lambda d: (d.linear()[:, None].expand(N, 3, N).reshape(3 * N, N) * 2).view(N, 3, N), 1,
        Origin.PARAMETERS),
    "tokens, joined with copies": (
        lambda d: (d.linear()[:, None].expand(N, 3, N).reshape(3 * N, N) * 2).view(N, 3, N), 0,
        Origin.DATA),
    "pooled": (lambda d: d.linear().view(1, N, N).mean(1), 1, Origin.PARAMETERS),
    "residual": (lambda d: d.x + d.linear(), 0, Origin.DATA),
    "chosen places": (lambda d: d.linear()[torch.tensor([1, 0])], 0, Origin.DATA),
    "tokens with nothing to squeeze": (lambda d: d.linear().squeeze(0), 0, Origin.DATA),
    "channels with nothing to squeeze": (lambda d: d.linear().squeeze(0), 1, Origin.PARAMETERS),
    "summed, and kept": (lambda d: d.linear().sum(0, keepdim=True), 0, Origin.PARAMETERS),
    "an example, spread out": (lambda d: spread(d), 0, Origin.DATA),
    "examples of a convolution": (lambda d: convolution(d), 0, Origin.DATA),
    "channels of a convolution": (lambda d: convolution(d), 1, Origin.PARAMETERS),
    "places of a convolution": (lambda d: convolution(d), 2, Origin.DATA),
}  # fmt: skip


def spread(d: Data) -> Tensor:
    """What the other factor lacks is of this one, whatever its size."""
    one, other = leaf(1, N, N) * 2, d.linear()
    result = one * other
    axes.note_spread(result, one, other)
    return result


def convolution(d: Data) -> Tensor:
    return F.conv1d(d.linear()[None], torch.rand(3, N, 1))


@pytest.mark.parametrize("name", AXES)
def test_where_an_axis_comes_from(name: str) -> None:
    make, axis, expected = AXES[name]
    assert axes.origin(make(Data()), axis) is expected


def test_behind_scores_lie_the_tokens_of_the_keys() -> None:
    score = Data().score()
    assert axes.origin(score, 1, through_scores=True) is Origin.DATA
    outer = Data().linear()[:1].mT @ Data().linear()[:1]
    assert axes.origin(outer, 1, through_scores=True) is Origin.PARAMETERS


def test_axes_of_products_meet_by_their_labels() -> None:
    x, y = torch.rand(2, 3, 4), torch.rand(2, 4, 5)
    for func, args in (
        (torch.matmul, (x, y)), (torch.bmm, (x, y)),
        (torch.Tensor.__rmatmul__, (y, x)), (torch.einsum, ("bij,bjk->bik", x, y)),
        (torch.einsum, ("...ij,...jk", x, y)), (torch.baddbmm, (torch.rand(1), x, y)),
    ):  # fmt: skip
        how = contraction_of(func, args)
        assert how is not None
        left, right = (
            (i for i, a in enumerate(args) if a is x),
            (i for i, a in enumerate(args) if a is y),
        )
        i, j = next(left), next(right)
        assert how.summed(i) == [-1] and how.summed(j) == [-2]
        assert how.axis_in(i, j, -1) == -2
        assert how.own(i) == [(-2, -2)] and how.own(j) == [(-1, -1)]
    assert contraction_of(torch.tensordot, (x, y)) is None
    entries = contraction_of(torch.einsum, ("bij,bj->bij", x, x[:, 0]))
    assert entries is not None and not entries.summed(1) and not entries.summed(2)
    vector = contraction_of(torch.mv, (x[0], x[0, 0]))
    assert vector is not None and vector.summed(1) == [-1] and vector.own(0) == [(-2, -1)]
    number = contraction_of(torch.dot, (x[0, 0], x[0, 0]))
    assert number is not None and number.summed(0) == [-1] and not number.result


@pytest.mark.parametrize("shapes", [((4,), (3, 1)), ((3, 1), (4,)), ((2, 1, 4), (3, 1))])
def test_a_product_of_what_is_spread_out_is_an_einsum(shapes: Any) -> None:
    first, second = (torch.rand(shape) for shape in shapes)
    written = equation_of(first, second)
    assert written is not None and torch.equal(torch.einsum(*written), first * second)
    assert equation_of(torch.rand(3, 4), second) is None  # has all of both


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


@pytest.mark.parametrize("written", ["signal first", "gate first"])
def test_an_activation_written_out_is_the_activation_in_either_order(written: str) -> None:
    class Model(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.how = how
            torch.manual_seed(1)
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            if self.how == "called":
                return self.second(F.silu(h))
            gate = torch.sigmoid(h)
            return self.second(h * gate if self.how == "signal first" else gate * h)

    x = torch.randn(3, 4)
    for rules in ("lrp", "attnlrp", "lrp-gated"):
        got, expected = (
            ConservativeLRP(Model(how), rules).attribute(x, target=1) for how in (written, "called")
        )
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("rules", ["lrp", "lrp-gated", "attnlrp", "language"])
def test_an_outer_product_that_is_summed_up_is_the_product_with_the_sum(rules: str) -> None:
    """The axis that is summed belongs to the gates alone: nothing is weighed along it."""
    values, gates, last = nn.Linear(6, 3), nn.Linear(6, 4), nn.Linear(3, 2)

    def outer(x: Tensor) -> Tensor:
        gate = torch.sigmoid(gates(x))
        return last((values(x)[:, :, None] * gate[:, None, :]).sum(-1))

    def with_the_sum(x: Tensor) -> Tensor:
        return last(values(x) * torch.sigmoid(gates(x)).sum(-1, keepdim=True))

    x = torch.randn(2, 6)
    got, expected = (
        ConservativeLRP(function, rules).attribute(x, target=1)
        for function in (outer, with_the_sum)
    )
    torch.testing.assert_close(got, expected)
