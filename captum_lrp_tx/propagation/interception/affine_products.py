"""Linear maps in torch's rarer spellings: products with a summand, chains, bilinear maps, bags."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrp_tx.propagation.autograd.functions import WithValue
from captum_lrp_tx.propagation.autograd.handing_over import spread_last
from captum_lrp_tx.propagation.interception import lookups
from captum_lrp_tx.propagation.interception.booking import booked
from captum_lrp_tx.propagation.interception.calls import Call, Handler, by_name, depends
from captum_lrp_tx.propagation.interception.constant_weights import apply_linear
from captum_lrp_tx.propagation.interception.contractions import product_with_summand
from captum_lrp_tx.propagation.interception.spreading import spread_through
from captum_lrp_tx.propagation.operations import LinearMap

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context

#: Names of the summand and of the factors.
_WITH_SUMMAND = {
    "addmm": ("input", "mat1", "mat2"),
    "_sparse_addmm": ("input", "mat1", "mat2"),
    "addmv": ("input", "mat", "vec"),
    "addbmm": ("input", "batch1", "batch2"),
    "baddbmm": ("input", "batch1", "batch2"),
    "addr": ("input", "vec1", "vec2"),
}


def _with_summand(context: Context, call: Call) -> Any:
    """``beta * input + alpha * first @ second``."""
    func, names = call.func, _WITH_SUMMAND[call.name]
    options = {k: v for k, v in call.kwargs.items() if k not in names}
    if len(call.args) > 3 or options.keys() - {"beta", "alpha"}:
        return booked(context, call, call.run())
    operands = tuple(call.bind(names))
    call = call.replaced(operands, options)
    summand, beta = operands[0], options.get("beta", 1)
    where = [i for i in (1, 2) if depends(operands[i])]
    if len(where) == 2:
        return product_with_summand(context, call)
    if not where:
        return booked(context, call, call.run())
    (i,) = where
    alone = {**options, "beta": 0}

    def apply(x: Tensor, w: Tensor) -> Tensor:
        start = summand.detach().to(x.dtype)  # not read, but its shape and dtype are checked
        result: Tensor = func(start, *((x, w) if i == 1 else (w, x)), **alone)
        return result

    by_row = call.name == "addmm" and i == 1
    weight = operands[3 - i]
    bias = None if depends(summand) else summand if beta == 1 else summand * beta
    operation = LinearMap(
        *call.parts, context.absorber(summand),
        input=operands[i], weight=weight, bias=bias, apply=apply, by_row=by_row,
        distribute=spread_last if by_row else spread_through(apply, weight),
    )  # fmt: skip
    if bias is not None:
        return apply_linear(context, operation)
    value = operation.value()
    operation.func = lambda *_, **__: apply(operands[i], weight)
    product = apply_linear(context, operation)
    with context.watching():
        return WithValue.call(value, summand * beta + product)


def _spelled(spell: Callable[..., Tensor | None]) -> Handler:
    """A handler for calls that are run as other calls, under the context.

    ``spell`` gets the arguments of the call, and returns ``None`` where the call is to stay.
    """

    def handler(context: Context, call: Call) -> Any:
        with context.watching():
            result = spell(*call.args, **call.kwargs)
        if result is None:
            return call.run()
        with torch.no_grad():
            value = call.run()
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


def _weighted_bag(context: Context, call: Call) -> Any:
    """Rows of a constant table, summed with weights that depend on the inputs."""
    given = dict(zip(lookups.BAG, call.bind(lookups.BAG), strict=True))
    indices, table, weights = given["input"], given["weight"], given["per_sample_weights"]
    if not depends(weights) or depends(table) or len(call.args) > 8:
        return lookups.embedding_bag(context, call)
    operands = ("input", "weight", "per_sample_weights")
    rest = {k: v for k, v in call.kwargs.items() if k not in operands}

    def apply(x: Tensor, w: Tensor) -> Tensor:
        result: Tensor = call.func(indices, w, *call.args[2:], per_sample_weights=x, **rest)
        return result

    operation = LinearMap(
        *call.parts, context.absorber(),
        input=weights, weight=table, bias=None,
        apply=apply, distribute=spread_through(apply, table),
    )  # fmt: skip
    return apply_linear(context, operation)


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(_WITH_SUMMAND, _with_summand),
    **by_name(_spelled(_chain), "linalg_multi_dot multi_dot"),
    **by_name(_spelled(_vecdot), "linalg_vecdot vecdot"),
    **by_name(_spelled(_bilinear), "bilinear"),
    **by_name(_weighted_bag, "embedding_bag"),
}
