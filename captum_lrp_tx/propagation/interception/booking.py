"""What a ledger notes of a call: names of constants, and what affine calls add."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrp_tx.propagation.interception.calls import depends, tensors_in

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.mode import Interception


#: Linear in their input-dependent tensors up to an additive constant, which a ledger books.
AFFINE = frozenset(
    """add add_ sub sub_ subtract rsub __rsub__ __radd__ cat concat concatenate stack hstack vstack
    where masked_fill masked_fill_ lerp index_put index_put_ masked_scatter masked_scatter_ scatter
    scatter_ index_copy index_add addcmul index_fill __setitem__ copy_ pad""".split()
)


def keep_names(mode: Interception, originals: Any, constants: Any) -> None:
    """Let constants made of named parameters go by the parameters' names."""
    ledger = mode.scope.ledger
    assert ledger is not None
    for before, after in zip(tensors_in(originals), tensors_in(constants), strict=True):
        if before is not after:
            ledger.inherit(after, before)


def book_affine(
    mode: Interception,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    name: str,
    result: Any,
) -> None:
    """``f(0, constants)`` is what the constants add to the result of an affine call."""
    output = args[0] if name == "__setitem__" else result
    if not depends(output):
        return

    with torch.no_grad():
        zero_args = tuple(_zeroed(a) for a in args)
        constant = func(*zero_args, **{k: _zeroed(v) for k, v in kwargs.items()})
        if name == "__setitem__":
            constant = zero_args[0]
    if isinstance(constant, Tensor) and bool(constant.any()):
        sources = [t for t in tensors_in((args, kwargs)) if not t.requires_grad]
        mode.absorb(output, constant, *sources)


def booked(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> Any:
    """The result of a call that is affine in what no rule handles, its constants booked."""
    if mode.scope.ledger is not None:
        book_affine(mode, func, args, kwargs, func.__name__, result)
    return result


def _zeroed(x: Any) -> Any:
    """Zeros in place of what depends on the inputs."""
    if isinstance(x, Tensor) and x.requires_grad:
        return torch.zeros_like(x)
    if type(x) in (list, tuple) and any(isinstance(i, Tensor) for i in x):
        return type(x)([_zeroed(i) for i in x])
    return x
