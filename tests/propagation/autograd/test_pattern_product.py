"""The AH-rule's backward pass on stock kernels against the pattern written out, at every shape."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend

from captum_lrp_tx.propagation.autograd import pattern_product
from captum_lrp_tx.propagation.autograd.pattern_product import (
    attention_with_logsumexp,
    heads_of,
    transposed_pattern_product,
)

pytestmark = pytest.mark.core

MASKS = ("none", "causal", "keys", "keys expanded", "rows", "boolean rows", "per head", "dead rows")


def make_mask(kind: str, batch: int, heads: int, rows: int, columns: int) -> Tensor | None:
    keep = torch.rand(batch, 1, rows, columns) > 0.3
    keep[..., 0] = True  # no row without a key
    if kind in ("none", "causal"):
        return None
    if kind == "keys":
        return keep[:, :, :1]
    if kind == "keys expanded":
        return keep[:, :, :1].expand(-1, -1, rows, -1)
    if kind == "rows":
        return torch.randn(batch, 1, rows, columns).masked_fill(~keep, -math.inf)
    if kind == "boolean rows":
        return keep
    if kind == "per head":
        return torch.randn(batch, heads, rows, columns) * 3
    keep[:, :, : rows // 2] = False
    return keep


def written_out(
    q: Tensor, k: Tensor, grad: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """``P^T grad`` in double precision from the definition."""
    q, k, grad = q.double(), k.double(), grad.double()
    groups = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(groups, 1).transpose(-2, -1)
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        scores = scores + torch.full(scores.shape[-2:], -math.inf).double().triu(1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    pattern = scores.softmax(-1).nan_to_num(0.0)
    result = pattern.transpose(-2, -1) @ grad
    return result.unflatten(1, (k.shape[1], groups)).sum(2)


@pytest.fixture(autouse=True, scope="module", params=[0, pattern_product.SHORT])
def short(request: pytest.FixtureRequest) -> Iterator[int]:
    """Up to how many tokens the pattern is computed at once: none, or the usual number."""
    usual, pattern_product.SHORT = pattern_product.SHORT, request.param
    yield request.param
    pattern_product.SHORT = usual


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Which of the two ways was taken."""
    taken: list[str] = []
    for name in ("_swapped", "_by_blocks"):
        function = getattr(pattern_product, name)

        def spy(*args: object, _function: object = function, _name: str = name) -> Tensor:
            taken.append(_name)
            return _function(*args)  # type: ignore[operator, no-any-return]

        monkeypatch.setattr(pattern_product, name, spy)
    yield taken


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("rows, columns", [(37, 37), (5, 23), (64, 9)])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_equals_the_pattern_written_out(
    kind: str, rows: int, columns: int, scale: float | None, kernel_calls: list[str], short: int
) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, rows, 16), torch.randn(2, 4, columns, 16), torch.randn(
        2, 4, columns, 16
    )  # fmt: skip
    grad = torch.randn(2, 4, rows, 16)
    mask, causal = make_mask(kind, 2, 4, rows, columns), kind == "causal"
    out, logsumexp = attention_with_logsumexp(q, k, v, mask, causal, scale, {})
    stock = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)
    assert torch.equal(out, stock)
    result = transposed_pattern_product(q, k, grad, mask, causal, scale, logsumexp)
    expected = written_out(q, k, grad, mask, causal, scale)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-5)
    fused = logsumexp is not None and not (causal and rows != columns)
    assert kernel_calls == ([] if short else ["_swapped" if fused else "_by_blocks"])
    assert logsumexp is not None


@pytest.mark.parametrize("value", [torch.finfo(torch.float32).min, -1e9, -1e4, -300.0, -math.inf])
@pytest.mark.parametrize("kind", ["causal and padding", "padding", "one example", "per head"])
@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_that_a_finite_mask_hides_attend_to_what_is_left_by_rounding(
    value: float, kind: str, heads: int, dtype: torch.dtype
) -> None:
    """As the kernel sees it: the sum of score and mask is rounded, then the row is normalised."""
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(2, n, 21, 8).to(dtype) for n in (4, heads, heads, 4))
    mask = torch.zeros(2, 4 if kind == "per head" else 1, 21, 21, dtype=dtype)
    low = max(value, torch.finfo(dtype).min) if value != -math.inf else value
    if kind == "causal and padding":
        mask.masked_fill_(torch.ones(21, 21, dtype=torch.bool).triu(1), low)
        mask[1, ..., :5] = low
    elif kind == "per head":
        mask[:, 2:, 4:9] = low
    else:
        mask = mask[..., :1, :]
        mask[1] = low
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    groups = 4 // heads
    scores = q.to(wide) * 8**-0.5 @ k.repeat_interleave(groups, 1).to(wide).mT
    pattern = (scores + mask.to(wide)).double().softmax(-1).nan_to_num(0.0)
    expected = (pattern.mT @ grad.double()).unflatten(1, (heads, groups)).sum(2)
    out, logsumexp = attention_with_logsumexp(q, k, v, mask, False, None, {"enable_gqa": True})
    stock = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    assert torch.equal(out, stock)
    got = transposed_pattern_product(q, k, grad, mask, False, None, logsumexp)
    if got.shape[1] != heads:
        got = got.sum(1, keepdim=True)  # one head is broadcast, and summed by the caller
    tolerance = 0.05 if dtype == torch.bfloat16 else 2e-5
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [1, 2])
def test_fewer_heads_of_keys(causal: bool, heads: int) -> None:
    torch.manual_seed(0)
    q, grad = torch.randn(2, 6, 11, 8), torch.randn(2, 6, 11, 8)
    k, v = torch.randn(2, heads, 11, 8), torch.randn(2, heads, 11, 8)
    expanded = [t.repeat_interleave(6 // heads, 1) for t in (k, v)]
    _, logsumexp = attention_with_logsumexp(q, *expanded, None, causal, None, {})
    for known in (logsumexp, None):
        result = transposed_pattern_product(q, k, grad, None, causal, None, known)
        if heads == 1:
            result = result.sum(1, keepdim=True)  # one head is broadcast, and summed by the caller
        torch.testing.assert_close(
            result.double(), written_out(q, k, grad, None, causal, None), rtol=0, atol=2e-5
        )


@pytest.mark.parametrize("kind", ["none", "causal", "keys", "rows", "boolean rows"])
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_shared_heads_use_the_stock_kernel_too(
    kind: str, heads: int, kernel_calls: list[str], short: int
) -> None:
    torch.manual_seed(0)
    q, grad = torch.randn(2, 6, 37, 8), torch.randn(2, 6, 37, 8)
    k, v = torch.randn(2, heads, 37, 8), torch.randn(2, heads, 37, 8)
    mask, causal, gqa = make_mask(kind, 2, 6, 37, 37), kind == "causal", {"enable_gqa": True}
    out, logsumexp = attention_with_logsumexp(q, k, v, mask, causal, None, gqa)
    stock = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, **gqa)
    assert torch.equal(out, stock)
    result = transposed_pattern_product(q, k, grad, mask, causal, None, logsumexp)
    if heads == 1:
        result = result.sum(1, keepdim=True)  # by the caller, as above
    expected = written_out(q, k, grad, mask, causal, None)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-5)
    chosen = torch._fused_sdp_choice(q, k, v, mask, 0.0, causal, **gqa)
    is_stock = chosen == SDPBackend.FLASH_ATTENTION.value  # not for shared heads in old ones
    assert kernel_calls == ([] if short else ["_swapped" if is_stock else "_by_blocks"])


@pytest.mark.parametrize(
    "query, shared, heads",
    [
        ((6, 3, 4), (2, 5, 4), [0, 0, 0, 1, 1, 1]),
        ((2, 6, 3, 4), (2, 3, 5, 4), [0, 0, 1, 1, 2, 2]),
        ((6, 3, 4), (6, 5, 4), None),
        ((6, 3, 4), (1, 5, 4), None),
        ((6, 3, 4), (5, 4), None),
        ((3, 4), (5, 4), None),
        ((3, 4), (2, 5, 4), None),
    ],
)
def test_heads_of_keys(
    query: tuple[int, ...], shared: tuple[int, ...], heads: list[int] | None
) -> None:
    given = torch.randn(shared)
    got = heads_of(torch.randn(query), given)
    assert got is given if heads is None else torch.equal(got, given[..., heads, :, :])


@pytest.mark.parametrize("kind", MASKS)
def test_few_rows_with_a_gradient(kind: str, kernel_calls: list[str], short: int) -> None:
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(2, 4, 40, 16) for _ in range(4))
    grad[:, :, :37] = 0
    mask, causal = make_mask(kind, 2, 4, 40, 40), kind == "causal"
    _, logsumexp = attention_with_logsumexp(q, k, v, mask, causal, None, {})
    result = transposed_pattern_product(q, k, grad, mask, causal, None, logsumexp)
    expected = written_out(q, k, grad, mask, causal, None)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-5)
    assert kernel_calls == ([] if short else ["_by_blocks"])


@pytest.mark.parametrize(
    "entries, blocks",
    [(1, 30), (2 * 4 * 30, 30), (2 * 4 * 30 * 7, 5), (2 * 4 * 30 * 29, 2), (2 * 4 * 30 * 30, 1)],
)
@pytest.mark.parametrize("kind", ["none", "causal", "keys", "rows"])
def test_blocks_of_any_size(
    entries: int, blocks: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No block has more entries than allowed, unless it is a single row."""
    sizes: list[int] = []
    plain = pattern_product._rows_product

    def spy(query: Tensor, keys: Tensor, *rest: object) -> Tensor:
        sizes.append(query[..., 0].numel() * keys.shape[-1])
        return plain(query, keys, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pattern_product, "_rows_product", spy)
    monkeypatch.setattr(pattern_product, "BLOCK_ENTRIES", entries)
    monkeypatch.setattr(pattern_product, "SHORT", 0)
    torch.manual_seed(0)
    q, k, grad = (torch.randn(2, 4, 30, 8) for _ in range(3))
    mask, causal = make_mask(kind, 2, 4, 30, 30), kind == "causal"
    result = transposed_pattern_product(q, k, grad, mask, causal, None, None)
    expected = written_out(q, k, grad, mask, causal, None)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-5)
    assert len(sizes) == blocks
    assert max(sizes) <= max(entries, 2 * 4 * 30)


@pytest.mark.parametrize("shape", [(64, 64), (65, 1), (1, 65)])
def test_short_inputs_need_no_kernel(
    shape: tuple[int, int], kernel_calls: list[str], short: int
) -> None:
    q, grad, k = torch.randn(1, 2, shape[0], 8), torch.randn(1, 2, shape[0], 8), torch.randn(
        1, 2, shape[1], 8
    )  # fmt: skip
    _, logsumexp = attention_with_logsumexp(q, k, k, None, False, None, {})
    transposed_pattern_product(q, k, grad, None, False, None, logsumexp)
    assert kernel_calls == ([] if short and max(shape) == 64 else ["_swapped"])


@pytest.mark.parametrize("tokens, blocks", [(2048, 1), (2049, 2)])
def test_four_million_entries_at_a_time(
    tokens: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    plain = pattern_product._rows_product

    def spy(query: Tensor, *rest: object) -> Tensor:
        calls.append(query.shape[-2])
        return plain(query, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pattern_product, "_rows_product", spy)
    x = torch.randn(1, 1, tokens, 1)
    transposed_pattern_product(x, x[..., :2048, :], x, None, False, None, None)
    assert len(calls) == blocks


def test_no_row_with_a_gradient() -> None:
    q, k = torch.randn(1, 2, 16, 8), torch.randn(1, 2, 16, 8)
    result = transposed_pattern_product(q, k, torch.zeros(1, 2, 16, 8), None, False, None, None)
    assert torch.equal(result, torch.zeros(1, 2, 16, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", MASKS)
def test_half_precision(dtype: torch.dtype, kind: str, kernel_calls: list[str], short: int) -> None:
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(2, 4, 30, 16).to(dtype) for _ in range(4))
    mask, causal = make_mask(kind, 2, 4, 30, 30), kind == "causal"
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(dtype)
    out, logsumexp = attention_with_logsumexp(q, k, v, mask, causal, None, {})
    assert torch.equal(out, F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal))
    result = transposed_pattern_product(q, k, grad, mask, causal, None, logsumexp)
    expected = written_out(q, k, grad, mask, causal, None)
    bound = 4 * torch.finfo(dtype).eps * float(expected.abs().max())
    assert float((result.double() - expected).abs().max()) < bound
    # a mask with rows takes a column that half precision is too coarse for
    way = "_swapped" if kind in ("none", "causal", "keys", "keys expanded") else "_by_blocks"
    assert kernel_calls == ([] if short else [way])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 40), st.sampled_from([1, 3, 8, 20]), st.sampled_from(MASKS),
    st.sampled_from([1e-3, 1.0, 30.0]), st.integers(0, 99),
)  # fmt: skip
def test_any_size_and_sharpness(
    batch: int, tokens: int, channels: int, kind: str, size: float, seed: int
) -> None:
    """Flat patterns, one-hot ones, and tokens that nobody attends to."""
    torch.manual_seed(seed)
    q, k, v, grad = (torch.randn(batch, 2, tokens, channels) for _ in range(4))
    q = q * size
    mask, causal = make_mask(kind, batch, 2, tokens, tokens), kind == "causal"
    out, logsumexp = attention_with_logsumexp(q, k, v, mask, causal, None, {})
    stock = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
    assert torch.equal(out, stock)
    result = transposed_pattern_product(q, k, grad, mask, causal, None, logsumexp)
    expected = written_out(q, k, grad, mask, causal, None)
    # scores of size 100 carry errors of 1e-5, and so does the pattern
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-4 * max(1.0, size))
