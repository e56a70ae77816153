"""How the relevance of a bias is spread over the inputs of a linear map."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import grad as autograd_grad

from captum_lrp_tx.propagation.autograd.functions import safe_ratio
from captum_lrp_tx.propagation.autograd.pattern_product import LOW_PRECISION
from captum_lrp_tx.propagation.operations import connections


def spread_through(
    apply: Callable[[Tensor, Tensor], Tensor], weight: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """Through any linear map: every output place spreads over the inputs that it sees."""

    def spread(x: Tensor, relevance: Tensor) -> Tensor:
        dtype = torch.float32 if x.dtype in LOW_PRECISION else x.dtype
        ones, wide = connections(weight, dtype), x.detach().to(dtype)
        with torch.enable_grad():
            squares = (wide * wide).requires_grad_()
            energy = apply(squares, ones)
        share = safe_ratio(relevance.to(dtype), energy.detach())
        (grad,) = autograd_grad(energy, squares, share)
        return (wide * grad).to(x.dtype)

    return spread
