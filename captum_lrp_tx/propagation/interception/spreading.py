"""How the relevance of a bias is spread over the inputs of a linear map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import grad as autograd_grad

from captum_lrp_tx.propagation.autograd.functions import safe_ratio
from captum_lrp_tx.propagation.autograd.pattern_product import LOW_PRECISION
from captum_lrp_tx.propagation.operations import connections

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context

Spread = Callable[[Tensor, Tensor], Tensor]


def spread_through(apply: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> Spread:
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


@dataclass(frozen=True)
class HandedOver:
    """Spreads a bias over inputs, and books what the constants of another module have of it.

    Attributes:
        module (str): That of the inputs.
        spread (callable): Spreads a bias, and books nothing.
        book (callable): Told what the constant that was added last spreads.
        before (callable): Spreads the bias that was there before, and books what that asks for.
        own (Tensor, optional): Share of the bias that was there before.
    """

    module: str
    spread: Spread
    book: Callable[[float], None]
    before: Spread
    own: Tensor | None

    def __call__(self, x: Tensor, relevance: Tensor) -> Tensor:
        own = self.own
        if own is not None and own.shape[-1] != relevance.shape[-1] == 1:
            own = None  # sums of rows, of which the parts cannot be told
        share = self.spread(x, relevance if own is None else relevance * (1 - own))
        self.book(float((x.double() * share.double()).sum()))
        return share if own is None else share + self.before(x, relevance * own)

    def moved(self, spread: Spread, move: Callable[[Tensor], Tensor]) -> HandedOver:
        """The same behind views, where ``spread`` spreads."""
        before, own = self.before, None if self.own is None else move(self.own)
        before = before.moved(spread, move) if isinstance(before, HandedOver) else spread
        return replace(self, spread=spread, before=before, own=own)


def handed_over(
    context: Context, module: str, before: Spread, own: Tensor | None, bias: Tensor
) -> Spread:
    """``before``; what one module spreads over the inputs of another is booked for both.

    Args:
        context (Context): Of the pass; its module adds a constant.
        module (str): That of the map.
        before (callable): What spread the bias until then.
        own (Tensor, optional): The bias that was there, whose share is none of the constant.
        bias (Tensor): That and the constant.
    """
    ledger, here, spread = context.scope.ledger, context.scope.module, before
    if isinstance(before, HandedOver):  # the map is one with a constant
        module, spread = before.module, before.spread
    if ledger is None or (module == here and spread is before):
        return before
    share = None if own is None else safe_ratio(own, bias)
    return HandedOver(module, spread, ledger.hand_over(here, module), before, share)
