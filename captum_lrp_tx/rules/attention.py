"""Rules for attention: the pattern constant (AH), or shared with the values (AttnLRP)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_lrp_tx.propagation.autograd.functions import ConstantPattern, ScaleGradient
from captum_lrp_tx.propagation.autograd.pattern_product import heads_of, rows_of_pattern
from captum_lrp_tx.propagation.autograd.uniform_attention import UniformAttention, shares
from captum_lrp_tx.propagation.operations import FusedAttention, Kind, PatternProduct
from captum_lrp_tx.rules.rule import Rule


@dataclass(frozen=True)
class AHRule(Rule):
    r"""Attention-head rule: the attention pattern :math:`p_{ij}` is a constant.

    .. math:: R(x_i) = \sum_j \frac{x_i\, p_{ij}}{\sum_{i'} x_{i'}\, p_{i'j}} R(y_j)

    All relevance of a head goes to its values, none to queries and keys, and the head conserves it.

    The pattern is whatever weighs the values, constant as the model uses it:

    * softmax attention over tokens, channels (XCiT, DaViT), windows or neighbours (VOLO): the
      softmax; l2-normalised queries and keys, temperatures, relative positions and gates between
      patterns (ConViT) are part of it, and so are maps between heads behind it (CaiT);
    * linear attention :math:`\phi(q)\,(\phi(k)^\top v)`: :math:`\phi(q)\,\phi(k)^\top` with its
      divisor, which the model never forms (Katharopoulos et al. 2020; EfficientViT; with a softmax
      over the tokens for :math:`\phi(k)` the factorised attention of CoaT);
    * without a softmax, the factor that an activation made (sigmoid or ReLU attention).

    Source: Ali et al., ICML 2022, section 4.
    """

    kinds = frozenset({Kind.ATTENTION})

    def propagate(self, operation: PatternProduct | FusedAttention) -> Tensor:
        if isinstance(operation, PatternProduct):
            return _constant(operation)
        query, key, mask = operation.query.detach(), operation.key.detach(), operation.mask
        if mask is not None and mask.requires_grad:
            # the flag stays, on which torch's choice of kernel depends
            mask = mask.detach().requires_grad_()
        if not operation.value_.requires_grad:
            return operation.value()
        if operation.dropout_p:
            return _explicit(operation, query, key, mask)
        return ConstantPattern.call(
            operation.value_, query, key, mask, operation.is_causal, operation.scale,
            operation.rest,
        )  # fmt: skip


def _constant(operation: PatternProduct) -> Tensor:
    constant = {i: operation.args[i].detach() for i in operation.patterns}
    return operation.with_operands(constant)


def _explicit(operation: FusedAttention, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """With dropout the kernel's random mask must be shared by both passes: spell it out."""
    key, value = heads_of(query, key), heads_of(query, operation.value_)
    scale = query.shape[-1] ** -0.5 if operation.scale is None else operation.scale
    pattern = rows_of_pattern(
        query, key.transpose(-2, -1), mask, operation.is_causal, scale, numbers=None
    ).detach()
    pattern = torch.nn.functional.dropout(pattern, operation.dropout_p)
    return pattern.to(value.dtype) @ value


@dataclass(frozen=True)
class UniformAttentionRule(Rule):
    r"""AttnLRP: half of the relevance to the values, half to the pattern and on through softmax.

    The product of pattern and values shares uniformly (eq. 13 and 14); the softmax passes its part
    on by its first-order Taylor expansion :math:`R(x_i) = x_i (R_i - s_i \sum_j R_j)` (eq. 7 to
    11), which is gradient x input; queries and keys share theirs uniformly again.  In this modified
    gradient the factors are 1/2 for the values and 1/4 for queries and keys; where a part does
    not depend on the inputs (a learned query), the other has its share.

    Source: Achtibat et al., ICML 2024, section 3.
    """

    covers_softmax = True  # its gradient is this rule for it
    kinds = frozenset({Kind.ATTENTION})

    def propagate(self, operation: PatternProduct | FusedAttention) -> Tensor:
        if isinstance(operation, PatternProduct):
            if operation.rescales:
                return _constant(operation)
            even = dict.fromkeys(operation.operands, 1.0 / len(operation.operands))
            scaled = {
                i: ScaleGradient.call(operation.args[i], share)
                for i, share in (operation.shares or even).items()
            }
            return operation.with_operands(scaled)
        if operation.dropout_p:  # a second run of the kernel would drop other entries
            parts: list[Any] = [operation.query, operation.key, operation.value_, operation.mask]
            depend = [t is not None and t.requires_grad for t in parts]
            query, key, value, mask = (
                ScaleGradient.call(t, share) if depends else t
                for t, share, depends in zip(parts, shares(*depend), depend, strict=True)
            )
            return torch.nn.functional.scaled_dot_product_attention(
                query, key, value, mask, operation.dropout_p, operation.is_causal,
                scale=operation.scale, **operation.rest,
            )  # fmt: skip
        return UniformAttention.call(
            operation.query, operation.key, operation.value_, operation.mask, operation.is_causal,
            operation.scale, operation.rest,
        )  # fmt: skip
