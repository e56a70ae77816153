"""Affine calls in every spelling: relevance is input times slope, constants absorb the rest.

With rules that conserve nothing else can be right for ``f(x) = A x + c``: the inputs get
``x * A^T 1`` and the constants ``c``.  With distributed biases the inputs get everything.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from captum_lrp_tx import Composite, ConservativeLRP, audit
from captum_lrp_tx.rules import GeneralizedGammaRule

N, C, T = 3, 4, 6


def made(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + len(shape)))


W, SQUARE, B, MEAN = made(C, C), made(C, C), made(C), made(C)
VARIANCE, KERNEL, IMAGE = made(C).abs() + 0.1, made(C, C, 3), made(C, C, 3, 3)
FLAGS = made(N, C) > 0

#: Of rows, shape (N, C).
ROWS = {
    "linear": lambda x: F.linear(x, W),
    "linear with bias": lambda x: F.linear(x, W, B),
    "linear by keyword": lambda x: F.linear(bias=B, input=x, weight=W),
    "addmm": lambda x: torch.addmm(B, x, W),
    "addmm of two summands": lambda x: torch.addmm(x @ SQUARE, x, W),
    "addmm with factors": lambda x: torch.addmm(B, x, W, beta=0.5, alpha=2),
    "addmm of a constant": lambda x: torch.addmm(x, W[:N], SQUARE),
    "matmul": lambda x: x @ W,
    "matmul by keyword": lambda x: torch.matmul(input=x, other=W),
    "matmul from the left": lambda x: (W @ x.mT).mT,
    "one row": lambda x: torch.stack([torch.mv(W, row) for row in x]),
    "dot": lambda x: torch.stack([torch.dot(row, B) for row in x])[:, None],
    "einsum": lambda x: torch.einsum("nc,dc->nd", x, W),
    "einsum from the left": lambda x: torch.einsum("dc,nc->nd", W, x),
    "tensordot": lambda x: torch.tensordot(x, W, 1),
    "tensordot over two axes": lambda x: torch.tensordot(x, KERNEL[:N])[None],
    "addmm of old": lambda x: torch.addmm(0.5, B.expand(N, C), 2, x, W),
    "multi_dot of constants": lambda x: x @ torch.linalg.multi_dot([W, SQUARE, W]),
    "vecdot": lambda x: torch.linalg.vecdot(x, W[:N])[:, None],
    "vecdot from the left": lambda x: torch.linalg.vecdot(W[:N], x, dim=0)[:, None],
    "vecdot of constants": lambda x: x * torch.linalg.vecdot(W, SQUARE),
    "cosines of constants": lambda x: x * F.cosine_similarity(W, SQUARE),
    "glu of constants": lambda x: x * F.glu(torch.cat([W[0], SQUARE[0]])),
    "sublists": lambda x: torch.einsum(x, [0, 1], W, [2, 1], [0, 2]),
    "bag of constant rows": lambda x: F.embedding_bag(
        torch.arange(C).expand(N, C), SQUARE, mode="sum", per_sample_weights=x
    ),
    "baddbmm": lambda x: torch.baddbmm(B, x[:, None], W.expand(N, C, C))[:, 0],
    "baddbmm of a constant": lambda x: torch.baddbmm(
        x[:, None], W.expand(N, C, C)[:, :1], SQUARE.expand(N, C, C)
    )[:, 0],
    "batch norm": lambda x: F.batch_norm(x, MEAN, VARIANCE, W[0], B),
    "batch norm, bare": lambda x: F.batch_norm(x, MEAN, VARIANCE),
    "batch norm, shifted": lambda x: F.batch_norm(x, MEAN, VARIANCE, None, B),
    "batch norm, scaled": lambda x: F.batch_norm(x, MEAN, VARIANCE, W[0]),
    "batch norm, eps": lambda x: F.batch_norm(x, MEAN, VARIANCE, W[0], B, False, 0.1, 0.5),
    "batch norm by keyword": lambda x: F.batch_norm(
        eps=0.5, running_var=VARIANCE, running_mean=MEAN, input=x, bias=B
    ),
    "sum": lambda x: x + B,
    "sum from the left": lambda x: B + x * 2,
    "difference": lambda x: x - B,
    "difference from the left": lambda x: 1.5 - x,
    "rsub": lambda x: torch.rsub(x, B),
    "in place": lambda x: (x * 2).add_(B).sub_(1.0),
    "scaled summand": lambda x: torch.add(B, x, alpha=3),
    "lerp": lambda x: torch.lerp(x, B.expand(N, C), 0.25),
    "cat": lambda x: torch.cat([x, B[None], x], 0),
    "stack": lambda x: torch.stack([x, B.expand(N, C)], -1),
    "where": lambda x: torch.where(FLAGS, x, B),
    "masked_fill": lambda x: x.masked_fill(FLAGS, 0.5),
    "masked_fill_": lambda x: (x * 2).masked_fill_(FLAGS, 0.5),
    "pad": lambda x: F.pad(x, (1, 2), value=0.5),
    "addcmul": lambda x: torch.addcmul(B.expand(N, C), x, W[0].expand(N, C), value=2),
    "index_add": lambda x: x.index_add(1, torch.tensor([0, 2]), made(N, 2)),
    "index_fill": lambda x: x.index_fill(1, torch.tensor([1]), 0.5),
    "scatter": lambda x: x.scatter(1, torch.zeros(N, 1, dtype=torch.long), made(N, 1)),
}
#: Of channels over time, shape (N, C, T).
TIME = {
    "conv": lambda x: F.conv1d(x, KERNEL, B, padding=1),
    "conv, no bias": lambda x: F.conv1d(x, KERNEL, None, 2),
    "conv by keyword": lambda x: F.conv1d(dilation=2, bias=B, weight=KERNEL, input=x),
    "grouped": lambda x: F.conv1d(x, KERNEL[:, :1], B, groups=C),
    "transposed": lambda x: F.conv_transpose1d(x, KERNEL, B, stride=2),
    "spread out": lambda x: F.conv_transpose1d(x, KERNEL, B, stride=2, output_padding=1),
    "of images": lambda x: F.conv2d(x.unflatten(-1, (2, 3)), IMAGE, B, padding=1),
    "transposed, of images": lambda x: F.conv_transpose2d(x.unflatten(-1, (2, 3)), IMAGE, B),
    "batch norm over time": lambda x: F.batch_norm(x, MEAN, VARIANCE, W[0], B),
    "batch norm of images": lambda x: F.batch_norm(x.unflatten(-1, (2, 3)), MEAN, VARIANCE),
    "many rows": lambda x: F.linear(x.mT.expand(20, N, T, C), W, B).sum(0),
    "many rows of one output": lambda x: F.linear(x.mT.expand(20, N, T, C), W[0]).sum(0),
}
CALLS = {
    **{k: (v, (N, C)) for k, v in ROWS.items()},
    **{k: (v, (N, C, T)) for k, v in TIME.items()},
}
#: Calls whose constant is a bias of a linear map, which can be distributed.
BIASED = {k for k in CALLS if k.startswith(("linear", "conv", "transposed", "batch norm", "many"))}


@pytest.mark.parametrize("call", CALLS)
def test_inputs_get_the_slope_and_constants_the_rest(call: str) -> None:
    function, shape = CALLS[call]
    x = zoo.floats(*shape)

    def forward(t: Tensor) -> Tensor:
        output = function(t)
        return (output * made(*output.shape)).sum()[None]

    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(forward(leaf).sum(), leaf)
    relevance = ConservativeLRP(forward).attribute(x)
    torch.testing.assert_close(relevance, x * slope, rtol=1e-4, atol=1e-5)
    report = audit.explainability(forward, x, file=None, strict=True)
    constant = float(forward(torch.zeros_like(x)))
    assert sum(report.absorbed.values()) == pytest.approx(constant, abs=1e-3)
    assert report.conservation_error == pytest.approx(0.0, abs=1e-3)


def test_what_is_added_to_attention_is_absorbed() -> None:
    values = made(2, N, C)

    def forward(x: Tensor) -> Tensor:
        return torch.baddbmm(values, (x @ x.mT).softmax(-1), x).sum((1, 2))

    report = audit.explainability(forward, zoo.floats(2, N, C), file=None)
    assert sum(report.absorbed.values()) == pytest.approx(float(values.sum()), abs=1e-4)
    assert report.conservation_error == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("call", sorted(BIASED))
def test_distributed_biases_leave_nothing(call: str) -> None:
    function, shape = CALLS[call]
    x = zoo.floats(*shape)

    def forward(t: Tensor) -> Tensor:
        output = function(t)
        return (output * made(*output.shape)).sum()[None]

    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(forward(leaf).sum(), leaf)
    constant = float(forward(torch.zeros_like(x)))
    relevance = ConservativeLRP(forward, bias="distribute").attribute(x)
    assert float(relevance.sum()) == pytest.approx(float(forward(x)), abs=2e-3)
    share = relevance - x * slope  # by the squares of what each output sees: all of one sign
    assert float(share.sum()) == pytest.approx(constant, abs=2e-3)
    ignored = ConservativeLRP(forward, bias="ignore").attribute(x)
    assert torch.isfinite(ignored).all()


@pytest.mark.parametrize(
    "options", [{}, {"bias": "distribute"}, {"rules": "lrp-gamma"}, {"rules": "ah"}]
)
@pytest.mark.parametrize("examples", [2, C])
def test_a_linear_layer_of_a_vector_makes_no_axis(examples: int, options: Any) -> None:
    """What its results count are the tokens: it is ``x @ w``, and what tokens add is no bias."""
    weight, places = torch.nn.Parameter(made(C).double()), made(T).double()

    def forward(multiply: Callable[..., Tensor], x: Tensor) -> Tensor:
        scores = multiply(x.mT, weight) + places
        return ((scores.softmax(-1) ** 2)[:, None] @ scores.tanh()[..., None]).flatten(1)

    x = torch.randn(examples, C, T, dtype=torch.float64)
    got, want = (
        ConservativeLRP(functools.partial(forward, f), **options).attribute(x, target=0)
        for f in (F.linear, torch.matmul)
    )
    torch.testing.assert_close(got, want)


def test_the_generalised_gamma_rule_by_hand() -> None:
    """Outputs and biases of both signs: what agrees with the output counts 1 + gamma times."""
    x, gamma = torch.tensor([[1.0, -2.0, 0.5]]), 0.25
    for row in ((0.5, 0.25, 1.0), (0.5, -1.0, 2.0), (-0.5, 1.0, 0.25)):
        for bias in (-0.7, -0.1, 0.3, 2.0):
            layer = torch.nn.Linear(3, 1)
            layer.weight.data, layer.bias.data = torch.tensor([row]), torch.tensor([bias])
            parts = [float(a) * b for a, b in zip(x[0], row, strict=True)]
            output = sum(parts) + bias
            agree = [gamma * p if p * output > 0 else 0.0 for p in (*parts, bias)]
            total = sum(parts) + bias + sum(agree)
            expected = [(p + a) / total * output for p, a in zip(parts, agree[:3], strict=True)]
            rules = Composite({torch.nn.Linear: GeneralizedGammaRule(gamma)}, base="gi")
            got = ConservativeLRP(layer, rules).attribute(x)
            torch.testing.assert_close(got, torch.tensor([expected]), rtol=1e-4, atol=1e-6)
