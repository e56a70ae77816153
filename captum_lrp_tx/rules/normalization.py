"""The rule for layer norm, RMS norm, group norm and every hand-written kin of theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_lrp_tx.propagation.autograd.functions import ConstantNormalizer, Substitute, safe_ratio
from captum_lrp_tx.propagation.autograd.handing_over import SpreadBias
from captum_lrp_tx.propagation.operations import FusedNorm, Kind, NormalizerProduct
from captum_lrp_tx.rules.rule import Bias, Rule, check_bias


@dataclass(frozen=True)
class LNRule(Rule):
    r"""LayerNorm rule: the divisor :math:`\sqrt{\epsilon + \mathrm{Var}[x]}` is a constant.

    The norm becomes linear, its centring :math:`x - \mathrm{E}[x]` included:

    .. math:: R(x_i) = \sum_j \frac{x_i (\delta_{ij} - 1/N)}{\sum_{i'} x_{i'}
              (\delta_{i'j} - 1/N)} R(y_j)

    It holds for RMS norm, group norm, l2 normalisation and hand-written norms alike.

    Args:
        bias: What happens to the relevance of the norm's bias; ``None`` follows the attribution
            class (``"absorb"``).

    Source: Ali et al., ICML 2022, section 4.
    """

    bias: Bias | None = None
    kinds = frozenset({Kind.NORM})

    def __post_init__(self) -> None:
        check_bias(self.bias)

    def propagate(self, operation: FusedNorm | NormalizerProduct) -> Tensor:
        if isinstance(operation, NormalizerProduct):
            i = operation.normalizer
            return operation.with_operands({i: operation.args[i].detach()})
        output = ConstantNormalizer.call(
            operation.input,
            operation.run,
            operation.weight,
            operation.shape,
            operation.dims,
            operation.center,
        )
        if operation.bias is None:
            return output
        if self.bias == "distribute":
            operation.absorb(output, lambda: _stranded(operation))
            return SpreadBias.call(output, operation.input, operation.bias, _spread(operation))
        if self.bias == "ignore":
            unbiased = output - operation.bias
            return Substitute.call(output.detach(), unbiased, 1.0, 1e-9)
        operation.absorb(output, operation.bias)
        return output


@torch.no_grad()
def _stranded(operation: FusedNorm) -> Tensor:
    """The bias of the groups that hold nothing but zeros (a masked token): it cannot be spread."""
    x, bias = operation.input, operation.bias
    assert bias is not None
    wide = x.reshape(operation.shape).to(torch.promote_types(x.dtype, torch.float32))
    size = wide.square().sum(operation.dims, keepdim=True)
    is_empty = (size < torch.finfo(wide.dtype).tiny).expand_as(wide)
    return bias * is_empty.reshape(x.shape)


def _spread(operation: FusedNorm) -> Callable[[Tensor, Tensor], Tensor]:
    """The bias relevance of each normalised group to its entries, as their squares."""
    shape, dims = operation.shape, operation.dims

    def spread(x: Tensor, relevance: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)  # squares exceed the range of float16
        wide, parts = x.reshape(shape).to(dtype), relevance.reshape(shape).to(dtype)
        share = safe_ratio(parts.sum(dims, keepdim=True), wide.square().sum(dims, keepdim=True))
        return (wide * share).reshape(x.shape).to(x.dtype)

    return spread
