"""Products entry by entry: normalisers, gates, quotients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from captum_lrp_tx.propagation import delta_rule, graph, linear_attention
from captum_lrp_tx.propagation.interception.calls import Handler, bind, by_name, depends
from captum_lrp_tx.propagation.interception.patterns import weighted_values
from captum_lrp_tx.propagation.interception.scans import scan_product
from captum_lrp_tx.propagation.operations import (
    FusedGate,
    Kind,
    NormalizerProduct,
    PatternProduct,
    Product,
)
from captum_lrp_tx.propagation.recognition import homogeneity

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.mode import Interception


_OPERANDS = ("input", "other")


def _product(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name: str = func.__name__.partition(".")[0]  # of an overload, what it is of
    inplace = name.endswith("_") and not name.startswith("__")
    if kwargs and all(k in _OPERANDS or value is None for k, value in kwargs.items()):
        args, kwargs = tuple(bind(_OPERANDS, args, kwargs)), {}
    if kwargs or len(args) != 2 or not (depends(args[0]) and depends(args[1])):
        if mode.has_memory and mode.scope.rule(Kind.ATTENTION) is not None and not inplace:
            # how much is kept of a memory that holds nothing yet: a constant
            args = tuple(a.detach() if depends(a) and delta_rule.is_decay(a) else a for a in args)
        return func(*args, **kwargs)
    quotient, target = "div" in name, args[0]
    if inplace:  # rules may look at a view of what is overwritten here
        args = (target.clone(), args[1])
    if mode.has_steps and not quotient:
        plain = getattr(torch, name.strip("_")) if inplace else func
        scanned = scan_product(mode, plain, args, {}, [0, 1], elementwise=True)
        if scanned is not None:
            return target.copy_(scanned) if inplace else scanned
    # in-place calls keep their meaning: the result is copied into the first argument
    plain = getattr(torch, name.strip("_")) if inplace else func
    result: Any = None
    if mode.has_memory and mode.scope.rule(Kind.ATTENTION) is not None and not quotient:
        decays = tuple(i for i in (0, 1) if delta_rule.is_decay(args[i]))
        if len(decays) == 1 and delta_rule.is_sum_of_values(args[1 - decays[0]]):
            kept = weighted_values(mode, plain, args, {}, decays)
            return target.copy_(kept) if inplace else kept
    if mode.scope.rule(Kind.ATTENTION) is not None and not quotient:
        sinks = tuple(
            i
            for i in (0, 1)
            if graph.is_sink_gate(args[i]) and linear_attention.is_weighed(args[1 - i])
        )
        if len(sinks) == 1:
            result = mode.apply(
                Kind.ATTENTION,
                PatternProduct(plain, args, {}, patterns=sinks, operands=(0, 1)),
            )
    if quotient and graph.is_quotient_by_own_sum(args[0], args[1]):
        return func(target, args[1])  # a softmax by hand: what is done with it decides
    if (
        quotient
        and mode.scope.rule(Kind.NORM) is not None
        and homogeneity.is_ratio(args[0], args[1])
    ):
        return func(target, args[1])  # what the ratio multiplies decides
    if result is None and mode.scope.rule(Kind.ATTENTION) is not None:
        rescaling = linear_attention.renormalizer(args, quotient)
        if rescaling is not None and not homogeneity.is_norm(
            args[rescaling], (args[1 - rescaling],), quotient
        ):  # o / rms(o) is a norm of the values, not a row sum
            result = mode.apply(
                Kind.ATTENTION,
                PatternProduct(
                    plain, args, {}, patterns=(rescaling,), operands=(0, 1), rescales=True
                ),
            )
    if result is None and mode.scope.rule(Kind.NORM) is not None:
        for i in (1,) if quotient else (1, 0):
            if homogeneity.is_norm(args[i], (args[1 - i],), quotient):
                operation = NormalizerProduct(plain, args, {}, normalizer=i)
                result = mode.apply(Kind.NORM, operation)
                break
    if result is None and mode.scope.rule(Kind.PRODUCT) is not None:
        operation_ = Product(
            plain, args, {}, first=0, second=1, elementwise=True, quotient=quotient
        )
        result = mode.apply(Kind.PRODUCT, operation_)
    if result is None:
        return func(target, args[1])
    return target.copy_(result) if inplace else result


def _added_product(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """``input + value * tensor1 * tensor2``, or ``tensor1 / tensor2``: a norm with its bias."""
    summand, first, second = bind(("input", "tensor1", "tensor2"), args, kwargs)
    rest = {k: v for k, v in kwargs.items() if k == "value"}
    if mode.scope.rule(Kind.NORM) is None or not (depends(first) and depends(second)):
        return func(*args, **kwargs)
    operands, quotient = (summand, first, second), func.__name__ == "addcdiv"
    for i in (2,) if quotient else (2, 1):
        if homogeneity.is_norm(operands[i], (operands[3 - i],), quotient):
            return mode.apply(Kind.NORM, NormalizerProduct(func, operands, rest, normalizer=i))
    return func(*args, **kwargs)


def _glu(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, dim = bind(("input", "dim"), args, kwargs)
    if not depends(x):
        return func(*args, **kwargs)
    return mode.apply(
        Kind.PRODUCT, FusedGate(func, args, kwargs, input=x, dim=-1 if dim is None else dim)
    )


HANDLERS: dict[str, Handler] = {
    **by_name(_product, "mul mul_ multiply multiply_ div div_ divide divide_ true_divide"),
    **by_name(_product, "mul.Tensor mul_.Tensor div.Tensor div_.Tensor"),
    **by_name(_added_product, "addcmul addcdiv"),
    **by_name(_glu, "glu"),
}
