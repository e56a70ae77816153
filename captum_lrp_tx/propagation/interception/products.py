"""Products entry by entry: normalisers, gates, quotients."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrp_tx.propagation import delta_rule
from captum_lrp_tx.propagation.autograd.functions import WithValue
from captum_lrp_tx.propagation.graph import gate_strength, parents
from captum_lrp_tx.propagation.interception.attention_patterns import (
    await_use,
    exponentials_times_values,
    keys_times_values,
    proposed,
    undecided,
    weighted_values,
)
from captum_lrp_tx.propagation.interception.booking import booked
from captum_lrp_tx.propagation.interception.calls import Handler, bind, by_name, depends
from captum_lrp_tx.propagation.interception.scans import scan_product
from captum_lrp_tx.propagation.operations import (
    Activation,
    FusedGate,
    Kind,
    NormalizerProduct,
    PatternProduct,
    Product,
)
from captum_lrp_tx.propagation.recognition import (
    axes,
    entrywise,
    homogeneity,
    patterns,
    rescaling,
    self_gated,
    summaries,
    weighing,
)
from captum_lrp_tx.propagation.recognition.contracted import equation_of

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.mode import Interception


_OPERANDS = ("input", "other")


def entrywise_product(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """``a * b`` or ``a / b``: a norm, weights, a gate, a query or just a product."""
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
    if mode.has_memory and mode.scope.rule(Kind.ATTENTION) is not None and not quotient:
        decays = tuple(i for i in (0, 1) if delta_rule.is_decay(args[i]))
        if len(decays) == 1 and delta_rule.is_sum_of_values(args[1 - decays[0]]):
            kept = weighted_values(mode, plain, args, {}, decays)
            return target.copy_(kept) if inplace else kept
    for recognised in (_sink, _softmax, _row_sums, _norm, _written_activation, _other):
        result = recognised(mode, plain, args, quotient)
        if result is not None:
            return target.copy_(result) if inplace else result
    return func(target, args[1])


def _sink(mode: Interception, plain: Any, args: tuple[Any, ...], quotient: bool) -> Tensor | None:
    """What an attention head loses to its sink, or to the keys of other chunks."""
    if mode.scope.rule(Kind.ATTENTION) is None or quotient:
        return None
    sinks = tuple(
        i for i in (0, 1) if patterns.is_sink_gate(args[i]) and summaries.is_weighed(args[1 - i])
    )
    if len(sinks) != 1:
        return None
    mode.scope.find("gate of an attention sink")
    operation = PatternProduct(plain, args, {}, patterns=sinks, operands=(0, 1))
    return _tensor(mode.apply(Kind.ATTENTION, operation))


def _softmax(
    mode: Interception, plain: Any, args: tuple[Any, ...], quotient: bool
) -> Tensor | None:
    """Weights divided by their sum: what is done with them decides."""
    if patterns.is_normalised(args[0], args[1], quotient):
        return _tensor(plain(*args))
    if mode.scope.rule(Kind.ATTENTION) is None:
        return None
    for i in (0,) if quotient else (0, 1):
        weights = patterns.weights_in(args[i], args[1 - i], quotient)
        if weights is not None:  # the same, if the sum was taken in another way
            result = _tensor(plain(*args))
            if patterns.mark_if_ones(result, parents(weights)[0]):
                return result
    return None


def _row_sums(
    mode: Interception, plain: Any, args: tuple[Any, ...], quotient: bool
) -> Tensor | None:
    """Values summed with weights, divided by the sum of the weights."""
    if mode.scope.rule(Kind.ATTENTION) is None:
        return None
    divisor = rescaling.renormalizer(args, quotient)
    if divisor is None and quotient and rescaling.rescaled_entries(args[0], args[1]):
        divisor = 1
    if divisor is None or homogeneity.is_norm(
        args[divisor], (args[1 - divisor],), quotient
    ):  # o / rms(o) is a norm of the values
        return None
    mode.scope.find("row sums of attention")
    operation = PatternProduct(plain, args, {}, patterns=(divisor,), operands=(0, 1), rescales=True)
    return _tensor(mode.apply(Kind.ATTENTION, operation))


def _norm(mode: Interception, plain: Any, args: tuple[Any, ...], quotient: bool) -> Tensor | None:
    """Something divided by its own size."""
    if mode.scope.rule(Kind.NORM) is None:
        return None
    if quotient and homogeneity.is_ratio(args[0], args[1]):
        return _tensor(plain(*args))  # what the ratio multiplies decides
    for i in (1,) if quotient else (1, 0):
        if homogeneity.is_norm(args[i], (args[1 - i],), quotient):
            mode.scope.find("norm written out")
            operation = NormalizerProduct(plain, args, {}, normalizer=i)
            result = _tensor(mode.apply(Kind.NORM, operation))
            homogeneity.note_norm(result, args[i], quotient)
            return result
        if homogeneity.is_norm(args[i], (args[1 - i],), quotient, in_steps=True):
            return _tensor(homogeneity.note_steps(plain(*args)))
    return None


def _written_activation(
    mode: Interception, plain: Any, args: tuple[Any, ...], quotient: bool
) -> Tensor | None:
    if mode.scope.rule(Kind.ACTIVATION) is None:
        return None
    x = self_gated.activated(args[0], args[1], quotient)
    if x is None:
        return None
    mode.scope.find("activation written out")
    return _tensor(_as_activation(mode, plain, args, x))


def _other(mode: Interception, plain: Any, args: tuple[Any, ...], quotient: bool) -> Tensor | None:
    """A gate, a pattern that may weigh what it meets, or just a product."""
    result = None
    if mode.scope.rule(Kind.PRODUCT) is not None:
        result = _shared(mode, plain, args, quotient)
    if mode.scope.rule(Kind.ATTENTION) is not None:
        if not quotient:
            result = _weighed_entries(mode, plain, args, result)
        if result is not None and args[0].shape != args[1].shape:
            axes.note_spread(result, *args)  # a rule may have made a constant of one
    return None if result is None else _tensor(result)


def _tensor(result: Any) -> Tensor:
    assert isinstance(result, Tensor)
    return result


def _shared(mode: Interception, func: Any, args: tuple[Any, ...], quotient: bool) -> Any:
    """A product or quotient under the rule for products.

    Where both factors are spread out and what they have in common is summed over, it is a matrix
    product written entry by entry.
    """
    operation = Product(func, args, {}, first=0, second=1, elementwise=True, quotient=quotient)
    if mode.scope.ledger is not None and not quotient:
        strengths = [gate_strength(a) for a in args]
        if strengths[0] != strengths[1]:
            mode.scope.find("gate")
    result = mode.apply(Kind.PRODUCT, operation)
    common = () if quotient else _common_axes(*args)
    rule = mode.scope.rule(Kind.PRODUCT)
    if not common or rule is None:
        return result
    matrix = replace(operation, elementwise=False)
    result, weighed = undecided(
        mode, Kind.PRODUCT, result, [rule.propagate(matrix)], "matrix product, entry by entry"
    )
    weighed.along = common
    await_use(mode, result, weighed)
    return result


def _common_axes(first: Tensor, second: Tensor) -> tuple[int, ...]:
    """The axes that two factors have in common, from the right, if neither has all of both."""
    shape = torch.broadcast_shapes(first.shape, second.shape)  # type: ignore[no-untyped-call]
    if shape in (first.shape, second.shape):
        return ()
    shared = min(first.dim(), second.dim())
    return tuple(d for d in range(-shared, 0) if first.shape[d] == second.shape[d] > 1)


def _as_activation(mode: Interception, func: Any, args: tuple[Any, ...], x: int) -> Any:
    """A product of ``x`` with a function of itself, as an activation of ``x``."""
    with torch.no_grad():
        value = func(*args)
    operation = Activation(lambda _: value, (args[x],), {}, input=args[x], name="Silu")
    if mode.scope.ledger is not None:
        operation.absorb = mode.absorber()
    return mode.apply(Kind.ACTIVATION, operation)


def _weighed_entries(mode: Interception, plain: Any, args: tuple[Any, ...], product: Any) -> Any:
    """A pattern times values, entry by entry: attention if it is summed along its axis."""
    found = entrywise.weights(args[0], args[1])
    if found is None:
        return _linear_attention(mode, plain, args, product)
    if product is None:
        product = plain(*args)
    operation = PatternProduct(plain, args, {}, patterns=(found.position,), operands=(0, 1))
    product, weighed = proposed(mode, product, [operation], "softmax attention, entry by entry")
    if weighed is not None:
        weighed.along = found.along
        weighed.group = found.source
        weighed.values = args[1 - found.position]
        await_use(mode, product, weighed)
    return product


def _linear_attention(mode: Interception, plain: Any, args: tuple[Any, ...], product: Any) -> Any:
    """Keys times values, or a query that reads their sum, entry by entry."""
    if not axes.KNOWS_SHAPES:
        return product
    reading = weighing.reading_of(args[0], args[1])
    if reading is not None:
        product = plain(*args) if product is None else product
        query, sums = reading.query, 1 - reading.query
        shares = {query: 0.25, sums: 0.75} if reading.sums else None
        operation = PatternProduct(
            plain, args, {}, patterns=(query,), operands=(0, 1), shares=shares
        )
        product, weighed = proposed(mode, product, [operation], "linear attention (convention)")
        if weighed is not None:
            weighed.along, weighed.group = (reading.axis,), args[query].grad_fn
            weighed.sums = [(one, reading.key) for one in reading.sums]
            await_use(mode, product, weighed)
        return product
    written = equation_of(args[0], args[1])
    if written is not None:
        keys = weighing.weighing_of(torch.einsum, written, [1, 2]).proposed
        if keys:
            product = plain(*args) if product is None else product
            return keys_times_values(mode, product, torch.einsum, written, {}, keys)
    if any(map(rescaling.is_exponential, args)):
        product = plain(*args) if product is None else product
        return exponentials_times_values(mode, product, plain, args, {})
    return product


def _added_product(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """``input + value * tensor1 * tensor2``, or ``tensor1 / tensor2``: a product and a sum."""
    summand, first, second = bind(("input", "tensor1", "tensor2"), args, kwargs)
    if not (depends(first) and depends(second)) or not mode.scope.has_rules:
        return func(*args, **kwargs)
    part = torch.div if "div" in func.__name__ else torch.mul
    with torch.no_grad():
        value = getattr(torch, func.__name__.rstrip("_"))(*args, **kwargs)
    product = entrywise_product(mode, part, (first, second), {}) * kwargs.get("value", 1)
    result = booked(mode, func, args, kwargs, WithValue.call(value, summand + product))
    return summand.copy_(result) if func.__name__.endswith("_") else result


def _outer(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    first, second = bind(("input", "vec2"), args, kwargs)
    if not (depends(first) and depends(second)):
        return func(*args, **kwargs)
    return entrywise_product(mode, torch.mul, (first[:, None], second), {})


def _glu(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, dim = bind(("input", "dim"), args, kwargs)
    if not depends(x):
        return func(*args, **kwargs)
    return mode.apply(
        Kind.PRODUCT, FusedGate(func, args, kwargs, input=x, dim=-1 if dim is None else dim)
    )


HANDLERS: dict[str, Handler] = {
    **by_name(entrywise_product, "mul mul_ multiply multiply_ div div_ divide divide_ true_divide"),
    **by_name(entrywise_product, "mul.Tensor mul_.Tensor div.Tensor div_.Tensor"),
    **by_name(_added_product, "addcmul addcmul_ addcdiv addcdiv_"),
    **by_name(_outer, "outer ger"),
    **by_name(_glu, "glu"),
}
