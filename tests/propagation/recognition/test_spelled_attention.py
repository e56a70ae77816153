"""Patterns of attention spelled out: against the fused kernel, and in the order that maps have."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_lrp_tx import ConservativeLRP
from captum_lrp_tx.propagation.operations import FusedAttention, PatternProduct
from captum_lrp_tx.propagation.recognition import patterns
from captum_lrp_tx.rules.spelled_attention import explicit_pattern, spelled_out

BATCH, HEADS, QUERIES, KEYS, WIDTH = 2, 6, 3, 5, 8


def sharp(*shape: int) -> Tensor:
    """Numbers that make patterns far from uniform."""
    return 2 * torch.randn(*shape)


def fused(
    groups: int = 1, dtype: torch.dtype = torch.float32, dropout_p: float = 0.0, **options: Any
) -> FusedAttention:
    query = sharp(BATCH, HEADS, QUERIES, WIDTH).to(dtype).requires_grad_()
    key, value = (
        sharp(BATCH, HEADS // groups, KEYS, WIDTH).to(dtype).requires_grad_() for _ in range(2)
    )
    mask, causal, scale = (options.get(k) for k in ("mask", "is_causal", "scale"))
    rest = {"enable_gqa": True} if groups > 1 else {}

    def run() -> Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, mask, dropout_p, bool(causal), scale=scale, **rest
        )

    return FusedAttention(
        run, (), {}, query=query, key=key, value_=value, mask=mask, dropout_p=dropout_p,
        is_causal=bool(causal), scale=scale, rest=rest,
    )  # fmt: skip


DEAD = torch.tensor([[True] * KEYS, [True, False, True, False, True], [False] * KEYS])
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.3},
    "causal": {"is_causal": True},
    "flags": {"mask": torch.tensor([True, True, False, True, True]).expand(QUERIES, KEYS)},
    "row without keys": {"mask": DEAD},
    "numbers": {"mask": torch.linspace(-3, 3, QUERIES * KEYS).view(QUERIES, KEYS)},
    "minus infinity": {"mask": torch.zeros(QUERIES, KEYS).masked_fill(~DEAD, float("-inf"))},
    "grouped": {"groups": 3},
    "as many heads as queries": {"groups": 2},
    "one group": {"groups": HEADS, "is_causal": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_pattern_is_what_the_kernel_does_to_the_identity(way: str) -> None:
    operation = fused(**WAYS[way])
    eye = torch.eye(KEYS).expand(BATCH, operation.key.shape[1], KEYS, KEYS)
    expected = F.scaled_dot_product_attention(
        operation.query, operation.key, eye, operation.mask, is_causal=operation.is_causal,
        scale=operation.scale, **operation.rest,
    ).nan_to_num()  # fmt: skip
    pattern = explicit_pattern(operation)
    torch.testing.assert_close(pattern, expected, rtol=1e-5, atol=1e-6)
    assert pattern.shape == (BATCH, HEADS, QUERIES, KEYS)
    passing = explicit_pattern(operation, softmax_passes=True)
    torch.testing.assert_close(passing, pattern, rtol=0, atol=0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_shares_of_the_gradient_and_the_kernels_own_value(way: str, share: float) -> None:
    """Two products: queries and keys get the share twice, values once."""
    operation = fused(**WAYS[way])
    tensors = (operation.query, operation.key, operation.value_)
    seen: list[Tensor] = []

    def record(pattern: Tensor) -> Tensor:
        seen.append(pattern)
        return pattern

    result = spelled_out(operation, share, False, record)
    assert torch.equal(result, operation.value()) and len(seen) == 1
    weights = sharp(*result.shape)
    plain = torch.autograd.grad(operation.plain(), tensors, weights)
    got = torch.autograd.grad(result, tensors, weights)
    for one, other, factor in zip(got, plain, (share**2, share**2, share), strict=True):
        torch.testing.assert_close(one, factor * other.nan_to_num(), rtol=1e-4, atol=1e-5)


def test_relevance_that_passes_the_softmax_goes_to_the_scores_entry_by_entry() -> None:
    """R(score) = R(pattern): the gradient times the scores is the gradient times the pattern."""
    operation = fused(scale=1.0)
    arriving = sharp(BATCH, HEADS, QUERIES, KEYS)
    pattern = explicit_pattern(operation, softmax_passes=True)
    (at_query,) = torch.autograd.grad(pattern, operation.query, arriving)
    scores = (operation.query @ operation.key.mT).detach()
    expected = (arriving * pattern.detach() / scores) @ operation.key.detach()
    torch.testing.assert_close(at_query, expected, rtol=1e-3, atol=1e-4)


def test_half_precision_has_its_pattern_in_single() -> None:
    operation = fused(dtype=torch.bfloat16)
    pattern = explicit_pattern(operation)
    assert pattern.dtype == torch.float32
    expected = (operation.query.float() @ operation.key.float().mT / WIDTH**0.5).softmax(-1)
    torch.testing.assert_close(pattern, expected)
    assert spelled_out(operation, 0.5, False).dtype == torch.bfloat16


def test_with_dropout_what_is_recorded_is_what_was_before_it() -> None:
    operation = fused(dropout_p=0.5)
    seen: list[Tensor] = []
    torch.manual_seed(0)
    result = spelled_out(operation, 1.0, False, lambda p: seen.append(p) or p)
    torch.manual_seed(0)
    expected = F.dropout(seen[0], 0.5) @ operation.value_
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(seen[0], explicit_pattern(operation))
    assert not torch.allclose(result, seen[0] @ operation.value_)


# ---- products as models spell them ---------------------------------------------------------------
SIZES = {"b": 2, "h": 4, "i": 3, "j": 5, "d": 6, "e": 7}
EINSUMS = {
    # equation: position of the pattern, its dimensions as a map has them
    "bhij,bhjd->bhid": (1, "bhij"),
    "bhij, bhjd -> bhid": (1, "bhij"),
    "bhjd,bhij->bhid": (2, "bhij"),
    "bijh,bjhd->bihd": (1, "bhij"),
    "bhji,bhjd->bhid": (1, "bhij"),
    "hbij,bjhd->bihd": (1, "bhij"),
    "jbi,bjd->bid": (1, "bij"),
    "ji,jd->id": (1, "ij"),
}


@pytest.mark.parametrize("equation", EINSUMS)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_maps_of_einsums(equation: str, share: float) -> None:
    position, order = EINSUMS[equation]
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    tensors = [torch.randn([SIZES[c] for c in term], requires_grad=True) for term in terms]
    operation = PatternProduct(
        torch.einsum, (equation, *tensors), {}, patterns=(position,), operands=(1, 2)
    )
    seen: list[Tensor] = []
    result = spelled_out(operation, share, False, lambda p: seen.append(p) or p)
    pattern = tensors[position - 1]
    torch.testing.assert_close(seen[0], torch.einsum(f"{terms[position - 1]}->{order}", pattern))
    torch.testing.assert_close(result, torch.einsum(equation, *tensors))
    plain = torch.autograd.grad(torch.einsum(equation, *tensors).square().sum(), tensors)
    for one, other in zip(torch.autograd.grad(result.square().sum(), tensors), plain, strict=True):
        torch.testing.assert_close(one, share * other)


@pytest.mark.parametrize(
    "equation, shapes",
    [
        ("...ij,...jd->...id", [(2, 4, 3, 5), (2, 4, 5, 6)]),
        ("bhij,bhjd", [(2, 4, 3, 5), (2, 4, 5, 6)]),
        ("bij,bjd,de->bie", [(2, 3, 5), (2, 5, 6), (6, 7)]),
        ("bhij,bhjd->bhd", [(2, 4, 3, 5), (2, 4, 5, 6)]),  # queries summed over
        ("bhij,bhij->bhi", [(2, 4, 3, 5), (2, 4, 3, 5)]),
        ("bhij,bjd->bihd", [(2, 4, 3, 5), (2, 5, 6)]),  # heads are no queries, but look alike
    ],
)
def test_what_an_einsum_does_not_tell_keeps_its_order(
    equation: str, shapes: list[tuple[int, ...]]
) -> None:
    tensors = [torch.randn(shape) for shape in shapes]
    operation = PatternProduct(
        torch.einsum, (equation, *tensors), {}, patterns=(1,), operands=(1, 2)
    )
    seen: list[Tensor] = []
    result = spelled_out(operation, 1.0, False, lambda p: seen.append(p) or p)
    assert torch.equal(seen[0], tensors[0])
    torch.testing.assert_close(result, torch.einsum(equation, *tensors))


@pytest.mark.parametrize("constant", [False, True])
def test_maps_of_matrix_products(constant: bool) -> None:
    """A pattern on the right of its values has its rows and columns swapped."""
    pattern, value = torch.rand(2, 3, 5), torch.randn(2, 5, 6)
    for args, position in (((pattern, value), 0), ((value.mT, pattern.mT), 1)):
        operands = (position,) if constant else (0, 1)
        operation = PatternProduct(torch.matmul, args, {}, patterns=(position,), operands=operands)
        seen: list[Tensor] = []
        result = spelled_out(operation, 1.0, False, lambda p, seen=seen: seen.append(p) or p)
        assert torch.equal(seen[0], pattern)
        torch.testing.assert_close(result, torch.matmul(*args))


SPARSE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sparse product": lambda p, v: torch.sparse.mm(p.to_sparse(), v),
    "operator": lambda p, v: p.to_sparse() @ v,
    "compressed rows": lambda p, v: p.to_sparse_csr() @ v,
    "by places": lambda p, v: torch.sparse.mm(
        torch.sparse_coo_tensor(p.nonzero().T, p[p > 0], p.shape), v),
    "masked": lambda p, v: torch.sparse.mm(p.sparse_mask((p > 0).double().to_sparse()), v),
    "dense again": lambda p, v: p.to_sparse().to_dense() @ v,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:Sparse invariant")
@pytest.mark.parametrize("preset", ["gi", "ah", "ah+ln", "lrp", "attnlrp", "lrp-gamma"])
@pytest.mark.parametrize("name", SPARSE)
def test_a_sparse_pattern_is_one(name: str, preset: str) -> None:
    edges = torch.tril(torch.ones(KEYS, KEYS, dtype=torch.bool))
    queries, values = torch.randn(2, WIDTH, WIDTH, dtype=torch.float64)

    def forward(multiply: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
        rows = []
        for one in x:
            scores = (one @ queries @ one.mT / WIDTH).masked_fill(~edges, -torch.inf)
            rows.append(multiply(scores.softmax(-1), one @ values).mean(0))
        return torch.stack(rows)

    x = torch.randn(BATCH, KEYS, WIDTH, dtype=torch.float64)
    want, got = (
        ConservativeLRP(functools.partial(forward, multiply), preset).attribute(
            x, target=0, strict=True
        )
        for multiply in (torch.matmul, SPARSE[name])
    )
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("preset", ["ah", "lrp"])
def test_a_pattern_that_is_repeated_sums_to_one_along_the_same_axis(preset: str) -> None:
    weight = torch.randn(WIDTH, WIDTH, dtype=torch.float64)

    def forward(is_repeated: bool, x: Tensor) -> Tensor:
        p = (x[0] @ weight @ x[0].mT / WIDTH).softmax(-1)
        if is_repeated:  # for each example, and weighed entry by entry
            p = p.expand(len(x), *p.shape)
            return (p[..., None] * x[:, None]).sum(2).tanh().sum((1, 2))
        return (p @ x).tanh().sum((1, 2))

    x = torch.randn(BATCH, KEYS, WIDTH, dtype=torch.float64)
    got, want = (
        ConservativeLRP(functools.partial(forward, is_repeated), preset).attribute(x, strict=True)
        for is_repeated in (True, False)
    )
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("keys", [2, 6])
def test_weights_are_a_pattern_as_far_as_arithmetic_can_tell(dtype: torch.dtype, keys: int) -> None:
    """Large scores round their logarithmic sum; gates in half precision are no pattern by that."""
    scores = (1000 * torch.randn(3, keys, dtype=torch.float64)).to(dtype).requires_grad_()
    weights = (scores - scores.logcumsumexp(-1)[..., -1:]).exp()
    patterns.mark_exponential(weights)
    assert patterns.is_pattern(weights)
    gates = torch.sigmoid(torch.randn(3, 6, dtype=dtype, requires_grad=True))
    assert not patterns.mark_if_ones(gates, None)
    assert not patterns.is_pattern(gates * 1)
    saturated = torch.sigmoid(torch.full((3, 1), 60.0, dtype=dtype, requires_grad=True))
    assert bool((saturated == 1).all()) and not patterns.mark_if_ones(saturated, None)


def test_weights_of_several_axes_have_none_of_their_own() -> None:
    """Where rows and columns sum to one, neither is meant; a sum over both is of none."""
    scores = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    even = scores * 0 + 0.25
    assert patterns.mark_if_ones(even, None)
    found = patterns.pattern_of(even)
    assert found is not None and found.axis is None
    weights = scores.exp()
    assert patterns.is_pattern(weights / weights.sum(-1, keepdim=True))
    assert not patterns.is_pattern(weights / weights.sum((-2, -1), keepdim=True))
