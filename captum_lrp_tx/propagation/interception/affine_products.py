"""Linear maps in torch's rarer spellings: products with a summand, chains, bilinear maps, bags."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrp_tx.propagation.autograd.functions import WithValue
from captum_lrp_tx.propagation.interception import lookups
from captum_lrp_tx.propagation.interception.booking import booked
from captum_lrp_tx.propagation.interception.calls import Handler, bind, by_name, depends
from captum_lrp_tx.propagation.interception.constant_weights import apply_linear
from captum_lrp_tx.propagation.interception.contractions import product_with_summand
from captum_lrp_tx.propagation.interception.spreading import spread_last, spread_through
from captum_lrp_tx.propagation.operations import LinearMap

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.mode import Interception

#: Names of the summand and of the factors.
_WITH_SUMMAND = {
    "addmm": ("input", "mat1", "mat2"),
    "_sparse_addmm": ("input", "mat1", "mat2"),
    "addmv": ("input", "mat", "vec"),
    "addbmm": ("input", "batch1", "batch2"),
    "baddbmm": ("input", "batch1", "batch2"),
    "addr": ("input", "vec1", "vec2"),
}


def _with_summand(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """``beta * input + alpha * first @ second``."""
    name: str = func.__name__
    names = _WITH_SUMMAND[name]
    options = {k: v for k, v in kwargs.items() if k not in names}
    if len(args) > 3 or options.keys() - {"beta", "alpha"}:
        return booked(mode, func, args, kwargs, func(*args, **kwargs))
    operands = tuple(bind(names, args, kwargs))
    summand, beta = operands[0], options.get("beta", 1)
    where = [i for i in (1, 2) if depends(operands[i])]
    if len(where) == 2:
        return product_with_summand(mode, func, operands, options)
    if not where:
        return booked(mode, func, operands, options, func(*operands, **options))
    (i,) = where
    alone = {**options, "beta": 0}

    def apply(x: Tensor, w: Tensor) -> Tensor:
        start = summand.detach().to(x.dtype)  # not read, but its shape and dtype are checked
        result: Tensor = func(start, *((x, w) if i == 1 else (w, x)), **alone)
        return result

    by_row = name == "addmm" and i == 1
    weight = operands[3 - i]
    bias = None if depends(summand) else summand if beta == 1 else summand * beta
    operation = LinearMap(
        func, operands, options, mode.absorber(summand),
        input=operands[i], weight=weight, bias=bias, apply=apply, by_row=by_row,
        distribute=spread_last if by_row else spread_through(apply, weight),
    )  # fmt: skip
    if bias is not None:
        return apply_linear(mode, operation)
    value = operation.value()
    operation.func = lambda *_, **__: apply(operands[i], weight)
    product = apply_linear(mode, operation)
    with mode:
        return WithValue.call(value, summand * beta + product)


def _spelled(
    spell: Callable[..., Tensor | None],
) -> Handler:
    """A handler for calls that are run as other calls, under the mode.

    ``spell`` gets the arguments of the call, and returns ``None`` where the call is to stay.
    """

    def handler(
        mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        with mode:
            result = spell(*args, **kwargs)
        if result is None:
            return func(*args, **kwargs)
        with torch.no_grad():
            value = func(*args, **kwargs)
        return WithValue.call(value, result.to(value.dtype))

    return handler


def _chain(tensors: Any, **kwargs: Any) -> Tensor | None:
    if kwargs.get("out") is not None or not any(map(depends, tensors)):
        return None
    # neighbouring constants first: one linear map has one rule
    groups = itertools.groupby(tensors, key=depends)
    parts = [
        t for live, ts in groups for t in (ts if live else [functools.reduce(torch.matmul, ts)])
    ]
    product: Tensor = functools.reduce(torch.matmul, parts)
    return product


def _vecdot(x: Tensor, y: Tensor, *, dim: int = -1, out: Any = None) -> Tensor | None:
    if out is not None or not (depends(x) or depends(y)) or x.is_complex() or y.is_complex():
        return None
    if depends(x) and depends(y):
        return (x * y).sum(dim)
    x, y = x.movedim(dim, -1).unsqueeze(-2), y.movedim(dim, -1).unsqueeze(-1)
    return (x @ y).squeeze(-1).squeeze(-1)


def _bilinear(
    input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor | None:
    if depends(input1) == depends(input2) or depends(weight):
        return None
    if depends(input1):
        result = torch.einsum(
            "...i,...oi->...o", input1, torch.einsum("oij,...j->...oi", weight, input2)
        )
    else:
        result = torch.einsum(
            "...j,...oj->...o", input2, torch.einsum("oij,...i->...oj", weight, input1)
        )
    return result if bias is None else result + bias


def _weighted_bag(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Rows of a constant table, summed with weights that depend on the inputs."""
    names = (
        "input",
        "weight",
        *"offsets max_norm norm_type scale_grad_by_freq mode sparse".split(),
    )
    bound = bind((*names, "per_sample_weights"), args, kwargs)
    indices, table, weights = bound[0], bound[1], bound[8]
    if not depends(weights) or depends(table) or len(args) > 8:
        lookup = lookups.HANDLERS.get("embedding_bag")
        return func(*args, **kwargs) if lookup is None else lookup(mode, func, args, kwargs)
    rest = {k: v for k, v in kwargs.items() if k not in ("input", "weight", "per_sample_weights")}

    def apply(x: Tensor, w: Tensor) -> Tensor:
        result: Tensor = func(indices, w, *args[2:], per_sample_weights=x, **rest)
        return result

    operation = LinearMap(
        func, args, kwargs, mode.absorber(),
        input=weights, weight=table, bias=None,
        apply=apply, distribute=spread_through(apply, table),
    )  # fmt: skip
    return apply_linear(mode, operation)


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(_WITH_SUMMAND, _with_summand),
    **by_name(_spelled(_chain), "linalg_multi_dot multi_dot"),
    **by_name(_spelled(_vecdot), "linalg_vecdot vecdot"),
    **by_name(_spelled(_bilinear), "bilinear"),
    **by_name(_weighted_bag, "embedding_bag"),
}
