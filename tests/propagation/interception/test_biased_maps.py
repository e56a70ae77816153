"""Biases of linear maps in every spelling against ``F.linear`` and the fused convolution."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_tx import Composite, ConservativeLRP, audit, rules

pytestmark = pytest.mark.core

WAYS = [
    {},
    {"epsilon": 0.1},
    {"bias": "distribute"},
    {"bias": "distribute", "epsilon": 0.1},
    {"bias": "ignore", "epsilon": 0.3},
    {"rules": "lrp-gamma"},
    {"rules": "lrp-gamma", "bias": "distribute"},
    {"rules": Composite({nn.Module: rules.AlphaBetaRule()}, base="lrp"), "bias": "distribute"},
    {"rules": Composite({nn.Module: rules.FlatRule()}, base="lrp"), "bias": "distribute"},
]

torch.manual_seed(0)
W = nn.Parameter(torch.randn(6, 4, dtype=torch.float64))
B = nn.Parameter(torch.randn(4, dtype=torch.float64))
S = torch.rand(4, dtype=torch.float64) + 0.5


def inplace(y: Tensor) -> Tensor:
    y += B
    return y


def inplace_view(y: Tensor) -> Tensor:
    y.transpose(0, 1).add_(B)
    return y


SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "matmul": lambda x: x @ W + B,
    "bias first": lambda x: B + x @ W,
    "in place": lambda x: inplace(x @ W),
    "sub": lambda x: x @ W - (-B),
    "rsub": lambda x: B - x @ (-W),
    "alpha": lambda x: torch.add(x @ W, B / 2, alpha=2),
    "alpha of the map": lambda x: torch.add(B, x @ W, alpha=1.0),
    "taken off the other way round": lambda x: torch.rsub(-B / 2, x @ W, alpha=2),
    "a number": lambda x: (x @ W - 2.0) + (B + 2.0),
    "a number added": lambda x: (x @ W + 2.0) + (B - 2.0),
    "a number first": lambda x: (2 + x @ W) + (B - 2.0),
    "a number in place": lambda x: (x @ W).add_(2.0) + (B - 2.0),
    "keywords": lambda x: torch.add(input=torch.matmul(x, other=W), other=B),
    "more dimensions": lambda x: torch.cat([t @ W + B[None, None] for t in x]),
    "two constants": lambda x: x @ W + B / 2 + B / 2,
    "linear and a constant": lambda x: F.linear(x, W.T, B / 4) + B * 0.75,
    "einsum": lambda x: torch.einsum("btd,do->bto", x, W) + B,
    "bmm": lambda x: torch.bmm(x, W.expand(2, 6, 4)) + B,
    "baddbmm": lambda x: torch.baddbmm(B.expand(2, 1, 4), x, W.expand(2, 6, 4)),
    "baddbmm, beta": lambda x: torch.baddbmm(
        2 * B.expand(2, 1, 4), x, W.expand(2, 6, 4) / 3, beta=0.5, alpha=3
    ),
    "addmm, beta": lambda x: torch.addmm(2 * B, x.flatten(0, 1), W, beta=0.5).view(2, 3, 4),
    "addmm, kwargs": lambda x: torch.addmm(
        input=B, mat1=x.flatten(0, 1), mat2=W / 2, alpha=2
    ).view(2, 3, 4),
    "addmv": lambda x: torch.stack(
        [torch.stack([torch.addmv(B, W.T, v) for v in row]) for row in x]
    ),
    "views": lambda x: (x @ W).transpose(0, 1).flatten(0, 1).view(3, 2, 4).transpose(0, 1) + B,
    "heads": lambda x: ((x @ W).view(2, 3, 2, 2).transpose(1, 2) + B.view(2, 1, 2))
    .transpose(1, 2).reshape(2, 3, 4),
    "parts": lambda x: torch.cat([p + b for p, b in zip((x @ W).chunk(2, -1), B.chunk(2))], -1),
    "tokens": lambda x: torch.stack([t + B for t in (x @ W).unbind(1)], 1),
    "slices": lambda x: torch.cat([(x @ W)[:, :1] + B, (x @ W)[:, 1:] + B], 1),
    "scaled": lambda x: (x @ W) / S * S + B,
    "negative": lambda x: -(x @ -W) + B,
    "aten": lambda x: torch.ops.aten.linear.default(x, W.T.contiguous(), B),
    "aten.addmm": lambda x: torch.ops.aten.addmm.default(B, x.flatten(0, 1), W).view(2, 3, 4),
    "aten.matmul": lambda x: torch.ops.aten.add.Tensor(torch.ops.aten.matmul(x, W), B),
    "aten in place": lambda x: torch.ops.aten.add_.Tensor(torch.ops.aten.matmul(x, W), B),
    "tensordot": lambda x: torch.tensordot(x, W, dims=1) + B,
    "inner": lambda x: torch.inner(x, W.T) + B,
    "multi_dot": lambda x: torch.linalg.multi_dot([x.flatten(0, 1), W, torch.eye(4).double()]).view(
        2, 3, 4
    ) + B,
    "convolution": lambda x: F.conv1d(x.transpose(1, 2), W.T[..., None], B).transpose(1, 2),
    "torch.convolution": lambda x: torch.convolution(
        x.transpose(1, 2), W.T[..., None], B, [1], [0], [1], False, [0], 1
    ).transpose(1, 2),
    "conv without bias": lambda x: (
        F.conv1d(x.transpose(1, 2), W.T[..., None]) + B[:, None]
    ).transpose(1, 2),
}  # fmt: skip


class Model(nn.Module):
    def __init__(self, linear: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(6, 6).double(), nn.Linear(4, 2).double()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.linear(torch.relu(self.first(x))))).sum(1)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_bias_is_a_bias_in_every_spelling(spelling: str) -> None:
    model, plain = Model(SPELLINGS[spelling]), Model(lambda x: F.linear(x, W.T, B))
    torch.manual_seed(2)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    value = model(x)
    torch.testing.assert_close(value, plain(x))
    for kw in WAYS:
        if "rules" in kw and spelling in ("negative", "rsub", "views", "multi_dot", "slices"):
            continue  # rules that look at signs see other weights
        found = ConservativeLRP(model, **kw).attribute(x, target=0)
        expected = ConservativeLRP(plain, **kw).attribute(x, target=0)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7, msg=f"{kw}")
    for bias in ("absorb", "distribute"):
        report = audit.explainability(model, x, target=0, bias=bias, file=None)
        written = audit.explainability(plain, x, target=0, bias=bias, file=None)
        assert report.is_covered and abs(report.conservation_error) < 1e-6
        assert sum(report.absorbed.values()) == pytest.approx(sum(written.absorbed.values()))


FACTORS = torch.tensor([[0.5], [-2.0], [1.5], [-1.0], [3.0]], dtype=torch.float64)
NO_BIAS: dict[str, Callable[[Tensor], Tensor]] = {
    # no weights make rows of their own sign of what is added to all rows
    "rows scaled by both signs": lambda x: (x @ W) * FACTORS[: x.shape[1]] + B,
    "spread out": lambda x: (x @ W).mean(1, keepdim=True) + PLACES,
    "behind a quotient": lambda x: 1.0 / (x @ W) + B,
    "a mask": lambda x: (x @ W + B.masked_fill(B < 0, -torch.inf)).sigmoid(),
}


@pytest.mark.parametrize("bias", ["absorb", "distribute"])
@pytest.mark.parametrize("spelling", NO_BIAS)
def test_constants_that_no_weights_have_as_their_bias_are_absorbed(
    spelling: str, bias: Any
) -> None:
    """They get the relevance that is theirs, and the inputs the plain gradient."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 6, dtype=torch.float64, generator=draw)

    def forward(given: Tensor) -> Tensor:
        return NO_BIAS[spelling](given).sum((1, 2))

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(forward(leaf).sum(), leaf)
    rule = Composite({nn.Module: rules.EpsilonRule(epsilon=0.0)}, base="gi")

    class Model(nn.Module):
        def forward(self, given: Tensor) -> Tensor:
            return forward(given)

    got = ConservativeLRP(Model(), rules=rule, bias=bias).attribute(x)
    torch.testing.assert_close(got, x * gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("views, is_found", [(2, True), (98, True), (100, False)])
def test_a_map_is_looked_for_behind_a_hundred_views(views: int, is_found: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 6, dtype=torch.float64, generator=draw)

    def forward(count: int, given: Tensor) -> Tensor:
        y = given @ W
        for _ in range(count):
            y = y.mT
        return (y + B).sum((1, 2))

    got = ConservativeLRP(functools.partial(forward, views), bias="distribute").attribute(x)
    bias: Any = "distribute" if is_found else "absorb"
    want = ConservativeLRP(functools.partial(forward, 0), bias=bias).attribute(x)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)


CONVOLUTIONS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...]]] = {
    # the function, its weights with the outputs first, and what comes in
    "conv1d": (F.conv1d, (4, 3, 2), (2, 3, 5)),
    "conv2d": (F.conv2d, (4, 3, 2, 2), (2, 3, 4, 3)),
    "conv3d": (F.conv3d, (4, 2, 2, 1, 2), (2, 2, 3, 2, 3)),
    "grouped": (lambda x, w, b=None: F.conv1d(x, w, b, groups=2), (4, 2, 2), (2, 4, 5)),
    "transposed": (
        lambda x, w, b=None: F.conv_transpose1d(x, w.transpose(0, 1), b), (4, 3, 2), (2, 3, 5)
    ),
    "transposed in groups": (
        lambda x, w, b=None: F.conv_transpose1d(
            x, w.unflatten(0, (2, 2)).permute(0, 2, 1, 3).flatten(0, 1), b, groups=2
        ), (4, 3, 2), (2, 6, 5),
    ),
    "torch.convolution, transposed": (
        lambda x, w, b=None: torch.convolution(
            x, w.transpose(0, 1), b, [1], [0], [1], True, [0], 1
        ), (4, 3, 2), (2, 3, 5),
    ),
}  # fmt: skip
SIGNED = [rules.GammaRule(gamma=0.5), rules.AlphaBetaRule(), rules.GeneralizedGammaRule(gamma=0.5)]


@pytest.mark.parametrize("rule", SIGNED, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_channels_that_are_scaled_after_a_convolution_are_its_own(name: str, rule: Any) -> None:
    """Factors of both signs go into the weights, of which the rule takes the positive ones."""
    convolution, weights, shape = CONVOLUTIONS[name]
    draw = torch.Generator().manual_seed(3)
    x, weight = (torch.randn(s, generator=draw, dtype=torch.float64) for s in (shape, weights))
    scale = torch.tensor([0.5, -2.0, 1.5, -0.25], dtype=torch.float64)
    shift = torch.randn(4, generator=draw, dtype=torch.float64)
    aside = (-1, *(1,) * (len(shape) - 2))

    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = convolution(x, weight) * scale.view(aside) + shift.view(aside)
            return y.tanh().flatten(1).sum(1)

    class Fused(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            own = weight * scale.view(-1, *(1,) * (weight.dim() - 1))
            return convolution(x, own, shift).tanh().flatten(1).sum(1)

    for bias in ("absorb", "distribute"):
        got, want = (
            ConservativeLRP(m, rules=Composite({nn.Module: rule}, base="lrp"), bias=bias).attribute(
                x
            )
            for m in (Scaled(), Fused())
        )
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


PLACES = torch.randn(5, 4, dtype=torch.float64)
SUMMANDS: dict[str, Callable[[Tensor], Tensor]] = {
    "matmul": lambda x: x @ W + PLACES[: x.shape[1]],
    "linear": lambda x: F.linear(x, W.T, B) + PLACES[None, : x.shape[1]],
    "einsum": lambda x: torch.einsum("btd,do->bto", x, W) + PLACES[: x.shape[1]],
    "views": lambda x: (x @ W).transpose(0, 1) + PLACES[: x.shape[1], None],
    "convolution": lambda x: F.conv1d(x.mT, W.T[..., None]).flatten(2).mT + PLACES[: x.shape[1]],
    "of another model": lambda x: PLACES[: x.shape[1]].expand(len(x), -1, -1).sin() + x @ W,
}


@pytest.mark.parametrize("bias", ["absorb", "distribute"])
@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize("spelling", SUMMANDS)
def test_constants_of_their_own_for_rows_are_no_bias(spelling: str, tokens: int, bias: Any) -> None:
    """They are absorbed, whatever becomes of biases: for texts of every length and in batches."""
    x = torch.randn(2, tokens, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def forward(given: Tensor) -> Tensor:
        y = SUMMANDS[spelling](given)
        return (y.transpose(0, 1) if spelling == "views" else y).matmul(weights).sum(1)

    def plain(given: Tensor) -> Tensor:
        return (F.linear(given, W.T, B if spelling == "linear" else None) @ weights).sum(1)

    explainers = [ConservativeLRP(f, bias=bias) for f in (forward, plain)]
    got, want = (e.attribute(x) for e in explainers)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)
    for i in range(2):
        torch.testing.assert_close(explainers[0].attribute(x[i : i + 1]), got[i : i + 1])


class Latent(nn.Module):
    """One learned query, beside what it reads (as in a Perceiver), or a number for each example."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.map, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.query, self.way = nn.Parameter(torch.randn(1, 1, 4)), way

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        y = self.map(x.mean(1, keepdim=True))
        if self.way == "number":
            return self.head(torch.tanh(y[:, 0] + number))
        if self.way == "made":  # of a parameter, by the model
            return self.head(torch.tanh(y[:, 0] + self.query[:, 0, :1].exp()))
        if self.way == "scaled":  # all of it
            return self.head(torch.tanh(self.map(x) + 2 * self.query.exp()).mean(1))
        query = self.query.expand(len(x), -1, -1) if self.way == "expanded" else self.query
        return self.head(torch.tanh(y + query)[:, 0])


@pytest.mark.parametrize("options", WAYS[2::3])
@pytest.mark.parametrize("way", ["expanded", "stored", "number", "made", "scaled"])
def test_a_batch_of_one_is_no_other_case(way: str, options: Any) -> None:
    """What is a bias must not be told by the size of the batch."""
    torch.manual_seed(0)
    model = Latent(way).double().eval()
    explainer = ConservativeLRP(model, **options)
    x, number = torch.randn(3, 5, 4).double(), torch.randn(3, 1).double()
    together = explainer.attribute(x, 1, number)
    alone = [explainer.attribute(x[i : i + 1], 1, number[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), together)
    if way == "expanded":
        model.way = "stored"
        torch.testing.assert_close(explainer.attribute(x, 1, number), together)


class Places(nn.Module):
    """Rows of a learned table, scaled, for as many tokens as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(PLACES.clone())

    def forward(self, x: Tensor) -> Tensor:
        return (x @ W + 2 * self.table[: x.shape[1]]).sum(1)


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_a_scaled_place_is_no_bias(tokens: int) -> None:
    """One row of a table is not the whole of what the model stores, though it meets one token."""
    x = torch.randn(2, tokens, 6, dtype=torch.float64)
    got = ConservativeLRP(Places(), bias="distribute").attribute(x, target=1)
    torch.testing.assert_close(got, x * W[:, 1])


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
@pytest.mark.parametrize("options", WAYS[:3])
def test_neighbours_that_are_summed_by_a_sparse_matrix(layout: str, options: Any) -> None:
    """A graph convolution (Kipf and Welling 2017): its bias stands behind the sum."""
    torch.manual_seed(0)
    weight, bias = torch.randn(4, 3), torch.randn(3)
    dense = (torch.rand(6, 6) < 0.4).float() + torch.eye(6)
    x = torch.randn(6, 4)
    expected, found = (
        ConservativeLRP(lambda v, a=a: torch.mm(a, v @ weight) + bias, **options).attribute(x, 1)
        for a in (dense, getattr(dense, layout)())
    )
    torch.testing.assert_close(found, expected)


BEHIND_A_NORM: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda y: 0 + y,
    "of another shape": lambda y: y.flatten(1) + 1.0,
    "transposed": lambda y: y.transpose(1, 2) + B,
    "half of the channels": lambda y: y[:, 2:] + 1.0,
    "a part of them": lambda y: y.chunk(2, dim=1)[1] - 1.0,
}


@pytest.mark.parametrize("view", BEHIND_A_NORM)
def test_what_is_added_to_a_batch_norm_is_spread_with_its_shift(view: str) -> None:
    """Views behind it were a RuntimeError, and so were the views that an audit makes."""
    x, mean = torch.randn(2, 4, 3).double(), torch.randn(4).double()

    def forward(x: Tensor) -> Tensor:
        y = F.batch_norm(x, mean, mean.square() + 0.1, W[0], B)
        return BEHIND_A_NORM[view](y).flatten(1)

    explainer = ConservativeLRP(forward, bias="distribute")
    relevance, delta = explainer.attribute(x, target=1, return_convergence_delta=True)
    report = audit.explainability(forward, x, target=1, bias="distribute", file=None)
    assert relevance.abs().sum() > 0.01
    assert delta.abs().max() < 1e-9
    assert abs(report.conservation_error) < 1e-9


@pytest.mark.parametrize("options", [{}, {"bias": "distribute"}, {"rules": "lrp-gamma"}])
def test_a_bias_that_is_taken_off_again_is_booked_twice(options: Any) -> None:
    """DoRA scales a layer's result without its bias, and adds that to the result with it."""
    x, last = torch.randn(2, 6).double(), torch.randn(4, 2).double()

    def forward(x: Tensor) -> Tensor:
        y = F.linear(x, W.t(), B)
        return (y + 0.3 * (y - B)) @ last

    report = audit.explainability(forward, x, target=1, file=None, **options)
    assert abs(report.conservation_error) < 1e-7
    plain = audit.explainability(
        lambda x: (F.linear(x, W.t(), B) + 0.3 * F.linear(x, W.t())) @ last,
        x, target=1, file=None, **options,
    )  # fmt: skip
    if "rules" not in options:
        assert report.absorbed == pytest.approx(plain.absorbed)


class Shifted(nn.Module):
    """A layer, a norm and constants of the model behind it, in an order that is given."""

    def __init__(self, order: str, bias: bool) -> None:
        super().__init__()
        self.order, self.layer, self.norm = order, nn.Linear(6, 5, bias), nn.BatchNorm1d(5)
        for values in (*self.norm.parameters(), self.norm.running_mean):
            nn.init.normal_(values)  # type: ignore[arg-type]
        self.shift, self.head = nn.Parameter(torch.randn(5)), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of two classes."""
        x = self.layer(x)
        for step in self.order:
            x = {"n": self.norm, "+": self.shift.add, "v": lambda y: y.view(-1, 5, 1).mT[:, 0]}[
                step
            ](x)
        return self.head(x.relu())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("order", ["+", "++", "n", "n+", "+n", "+v+", "v+n+"])
def test_what_constants_of_several_modules_spread_is_booked_for_each(
    order: str, bias: bool
) -> None:
    """A layer was charged with its own bias again, and not with the norm's where more follows."""
    torch.manual_seed(0)
    model, x = Shifted(order, bias).double().eval(), torch.randn(3, 6).double()
    report = audit.explainability(model, x, target=1, bias="distribute", file=None)
    assert {layer.module for layer in report.layers} >= {"layer", "head"}
    assert max(abs(layer.error) for layer in report.layers) < 1e-9
    relevance = ConservativeLRP(model, bias="distribute").attribute(x, target=1)
    assert report.relevance == pytest.approx(float(relevance.sum()))
