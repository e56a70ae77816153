"""Tensors that later in-place operations do not reach, with as few copies as that takes."""

from __future__ import annotations

from torch import Tensor

_COPY = "_captum_lrp_tx_copy"


def kept(x: Tensor) -> Tensor:
    """A copy of ``x`` as it is now, one for all who ask before it changes.

    Models may go on in place, as residual connections do.
    """
    known = getattr(x, _COPY, None)
    if known is None or known[0] != x._version:
        known = (x._version, x.detach().clone())
        setattr(x, _COPY, known)
    copy: Tensor = known[1]
    return copy


def passed_on(y: Tensor) -> Tensor:
    """The result of a function that leaves a fresh ``y`` as it is and changes its backward pass.

    Not a view of ``y`` to autograd, so that the model may go on in place, and not a copy either:
    only for what a linear map or a norm has just made, of which nobody keeps the values.
    """
    return y.data
