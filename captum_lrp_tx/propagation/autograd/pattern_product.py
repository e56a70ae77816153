r"""``P^T G`` for an attention pattern ``P`` that is never held: the backward pass of the AH-rule.

With the log-sum-exp :math:`l_i` of every row that the forward kernel knows anyway, the entries of
the pattern are :math:`p_{ij} = \exp(s_{ij} - l_i)`, so

.. math:: (P^T G)_j = \sum_i e^{s_{ij} - l_i} G_i
          = e^{l'_j} \cdot \mathrm{attention}(K, Q, G; -l)_j

where queries and keys have changed roles, :math:`-l_i` is added to the scores of column ``i``, and
:math:`l'` is the log-sum-exp of that second call.  The stock *forward* kernel thus does the whole
backward pass, in memory linear in the number of tokens.  Where no stock kernel gives its
log-sum-exp, or only few rows of ``G`` are not zero, the pattern is recomputed block by block; so
are rows that a finite mask (-1e9) hides wholly, whose log-sum-exp has no digits left for scores.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from captum_lrp_tx.propagation.autograd.rows import is_packed, rows_with_entries

LOW_PRECISION = (torch.float16, torch.bfloat16)
#: Upper bound on the entries of one block of the recomputed pattern.
BLOCK_ENTRIES = 1 << 22
#: Up to so many rows and columns the pattern is computed again at once: fewer calls.
SHORT = 64
#: A log-sum-exp below this has swallowed digits of the scores: the row is hidden by a mask.
_HIDDEN = -256.0


def attention_with_logsumexp(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """``F.scaled_dot_product_attention`` and the log-sum-exp of its rows, if its kernel tells.

    Args:
        query, key, value (Tensor): shapes ``(..., heads, tokens, channels)``; with ``enable_gqa``
            keys and values may have fewer heads.
        mask (Tensor, optional): Boolean (true: may attend) or added to the scores.
        is_causal (bool): Row ``i`` attends to columns up to ``i``.
        scale (float, optional): Of the scores; default ``1 / sqrt(channels)``.
        kwargs (dict): Further arguments, such as ``enable_gqa``.

    Returns:
        tuple: the stock result, bit for bit, and a float tensor ``(batch, heads, rows)`` or None.
    """
    plain = torch.nn.functional.scaled_dot_product_attention
    if (
        query.device.type != "cpu"
        or query.dim() != 4
        or query.shape[-1] != value.shape[-1]
        or (query.shape[1] != key.shape[1] and not kwargs.get("enable_gqa"))
        or (is_causal and mask is not None)
        or torch.is_autocast_enabled("cpu")
        or torch._fused_sdp_choice(query, key, value, mask, 0.0, is_causal, scale=scale, **kwargs)
        != SDPBackend.FLASH_ATTENTION.value
    ):
        out = plain(query, key, value, attn_mask=mask, is_causal=is_causal, scale=scale, **kwargs)
        return out, None
    added = additive(mask, query.dtype) if mask is not None else None
    # spelled out: not every version's kernel shares heads
    key, value = (heads_of(query, t).expand(*query.shape[:2], -1, -1) for t in (key, value))
    result: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, attn_mask=added, scale=scale
    )
    return result


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to the scores."""
    if mask.dtype != torch.bool:
        return mask.detach()
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -math.inf)


def transposed_pattern_product(
    query: Tensor,
    key: Tensor,
    grad: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    logsumexp: Tensor | None,
) -> Tensor:
    """``P^T grad`` with ``P = softmax(scale * query key^T + mask)`` over the keys.

    Args:
        query (Tensor): shape ``(..., heads, rows, channels)``.
        key (Tensor): shape ``(..., heads or fewer, columns, channels)``; fewer heads are shared.
        grad (Tensor): shape ``(..., heads, rows, value channels)``.
        mask (Tensor, optional): Boolean (true: may attend) or added to the scores.
        is_causal (bool): Row ``i`` attends to columns up to ``i``.
        scale (float, optional): Of the scores; default ``1 / sqrt(channels)``.
        logsumexp (Tensor, optional): shape ``(batch, heads, rows)``, of the forward kernel.

    Returns:
        Tensor: shape ``(..., heads of key, columns, value channels)``.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    given, key = key, heads_of(query, key)
    repeated = key is not given
    if logsumexp is not None:
        key = key.expand(*query.shape[:-2], -1, -1)  # one head for all: the kernel wants its size
    short = max(query.shape[-2], key.shape[-2]) <= SHORT
    rows = None if short else rows_with_entries(grad)
    if short:
        total = _rows_product(query, key.transpose(-2, -1), grad, mask, is_causal, scale, None)
    elif rows is None and logsumexp is not None and _swappable(query, key, grad, mask, is_causal):
        total = _swapped(query, key, grad, mask, is_causal, scale, logsumexp)
        hidden = (logsumexp < _HIDDEN) & logsumexp.isfinite()
        if bool(hidden.any()):  # by a finite mask: such rows attend to what it hides
            rows = hidden.flatten(0, -2).any(0).nonzero().squeeze(1)
            rest = grad.masked_fill(~hidden.unsqueeze(-1), 0.0)
            total = total + _by_blocks(query, key, rest, mask, is_causal, scale, rows)
    else:
        total = _by_blocks(query, key, grad, mask, is_causal, scale, rows)
    if repeated:
        total = total.reshape(*total.shape[:-3], given.shape[-3], -1, *total.shape[-2:]).sum(-3)
    return total


def heads_of(query: Tensor, shared: Tensor) -> Tensor:
    """Keys or values with as many heads as the queries.

    Args:
        query (Tensor): shape ``(..., heads, rows, channels)``, or without heads.
        shared (Tensor): shape ``(..., fewer heads, columns, channels)``, each for several heads of
            the queries in a row; or one, or without heads, which broadcast.

    Returns:
        Tensor: ``shared`` itself if there is nothing to repeat.
    """
    if shared.dim() < 3 or query.dim() < 3 or shared.shape[-3] in (1, query.shape[-3]):
        return shared
    return shared.repeat_interleave(query.shape[-3] // shared.shape[-3], -3)


# ---- the stock kernel with queries and keys swapped ---------------------------------------------
def _swappable(
    query: Tensor, key: Tensor, grad: Tensor, mask: Tensor | None, is_causal: bool
) -> bool:
    if is_packed(grad):  # one pattern for all of them
        return False
    if is_causal and query.shape[-2] != key.shape[-2]:
        return False
    # the column that carries -l of a mask with rows needs full precision
    return mask is None or _key_only(mask) or query.dtype not in LOW_PRECISION


def _key_only(mask: Tensor) -> bool:
    """Whether every row of the mask is the same (padding)."""
    return mask.dim() >= 2 and (mask.shape[-2] == 1 or mask.stride(-2) == 0)


def _swapped(
    query: Tensor,
    key: Tensor,
    grad: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    logsumexp: Tensor,
) -> Tensor:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    # a row that may attend to nothing contributes nothing, one that a finite mask hides not here;
    # contiguous, the kernel is twice as fast
    is_seen = logsumexp.isfinite() & (logsumexp >= _HIDDEN)
    shift = torch.where(is_seen, -logsumexp, -math.inf).contiguous()
    if is_causal:  # causal again if both sequences run backwards
        query, key, grad, shift = query.flip(-2), key.flip(-2), grad.flip(-2), shift.flip(-1)
    if mask is None or _key_only(mask):
        out, weight = kernel(
            key, query, grad, 0.0, is_causal,
            attn_mask=shift.unsqueeze(-2).to(query.dtype), scale=scale,
        )  # fmt: skip
        if mask is not None:
            weight = weight + additive(mask, query.dtype)[..., 0, :]
    else:
        keys = torch.cat([key, torch.ones_like(key[..., :1])], -1)
        lowest = torch.finfo(shift.dtype).min
        column = shift.clamp(min=lowest).unsqueeze(-1).to(query.dtype)
        queries = torch.cat([query * scale, column], -1)
        padded = torch.nn.functional.pad(grad, (0, 1))
        turned = additive(mask, query.dtype).transpose(-2, -1)
        # the kernel of torch 2.5 and 2.6 overlooks its strides; what heads share stays shared
        turned = turned[tuple(slice(None if s else 1) for s in turned.stride()[:-2])].contiguous()
        out, weight = kernel(keys, queries, padded, 0.0, False, attn_mask=turned, scale=1.0)
        out = out[..., :-1]
    factor = weight.exp().unsqueeze(-1).to(out.dtype)
    result: Tensor = (out * factor).masked_fill_(factor == 0, 0.0)
    return result.flip(-2) if is_causal else result


# ---- block by block -----------------------------------------------------------------------------
def _by_blocks(
    query: Tensor,
    key: Tensor,
    grad: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    rows: Tensor | None,
) -> Tensor:
    """The pattern of some rows at a time; ``rows`` are those of ``grad`` that are not zero."""
    keys = (key.float() if query.dtype in LOW_PRECISION else key).transpose(-2, -1)
    indices = torch.arange(query.shape[-2], device=query.device) if rows is None else rows
    per_row = max(1, query[..., 0, 0].numel() * key.shape[-2])
    total: Tensor | None = None
    for part in torch.split(indices, max(1, BLOCK_ENTRIES // per_row)):
        whole = part.numel() == query.shape[-2]
        q = query if whole else query.index_select(-2, part)
        g = grad if whole else grad.index_select(-2, part)
        section = mask
        if mask is not None and mask.shape[-2] != 1 and not whole:
            section = mask.index_select(-2, part)
        contribution = _rows_product(q, keys, g, section, is_causal, scale, part)
        total = contribution if total is None else total.add_(contribution)
    assert total is not None  # split() gives at least one part
    return total


def _rows_product(
    query: Tensor,
    keys: Tensor,
    grad: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    numbers: Tensor | None,
) -> Tensor:
    """``P^T grad`` for these rows, whose numbers in the sequence are all if not given."""
    pattern = rows_of_pattern(query, keys, mask, is_causal, scale, numbers)
    return pattern.transpose(-2, -1) @ grad.to(pattern.dtype)


def rows_of_pattern(
    query: Tensor,
    keys: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    numbers: Tensor | None,
) -> Tensor:
    """Rows of an attention pattern, in single precision or better.

    Args:
        query (Tensor): shape ``(..., heads, rows, channels)``.
        keys (Tensor): shape ``(..., heads, channels, columns)``.
        mask (Tensor, optional): For these rows; boolean (true: may attend) or added to the scores.
        is_causal (bool): Row ``i`` of the sequence attends to columns up to ``i``.
        scale (float): Of the scores.
        numbers (Tensor, optional): Of the rows in the sequence, shape ``(rows,)``; all of them
            unless given.

    Returns:
        Tensor: shape ``(..., heads, rows, columns)``.
    """
    if query.dtype in LOW_PRECISION:
        query, keys = query.float(), keys.float()
    scores = query * scale @ keys
    if is_causal:
        if numbers is None:
            numbers = torch.arange(scores.shape[-2], device=scores.device)
        hidden = torch.arange(scores.shape[-1], device=scores.device)[None, :] > numbers[:, None]
        scores = scores.masked_fill(hidden, -math.inf)
    if mask is not None:
        is_boolean = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -math.inf) if is_boolean else scores + mask
    pattern = scores.softmax(-1)
    if mask is not None:  # stock kernels return zero for a row that may attend to nothing
        pattern = torch.where(scores.amax(-1, keepdim=True) == -math.inf, 0.0, pattern)
    return pattern
