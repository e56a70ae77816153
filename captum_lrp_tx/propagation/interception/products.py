"""Products entry by entry: normalisers, gates, quotients."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrp_tx.propagation.autograd.functions import WithValue
from captum_lrp_tx.propagation.graph import CLEAR, gate_strength, mark_node, parents
from captum_lrp_tx.propagation.interception.attention_patterns import (
    await_use,
    exponentials_times_values,
    keys_times_values,
    proposed,
    undecided,
    untold_unless_kept,
    weighted_values,
)
from captum_lrp_tx.propagation.interception.booking import booked
from captum_lrp_tx.propagation.interception.calls import Call, Handler, by_name, depends
from captum_lrp_tx.propagation.interception.scans import scan_product
from captum_lrp_tx.propagation.interception.writing import overwritten
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
    delta_rule,
    entrywise,
    homogeneity,
    patterns,
    rescaling,
    self_gated,
    summaries,
    weighing,
)
from captum_lrp_tx.propagation.recognition.contracted import equation_of
from captum_lrp_tx.propagation.recognition.degrees import note_norm, note_weights

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context


_OPERANDS = ("input", "other")


def entrywise_product(context: Context, call: Call) -> Any:
    """``a * b`` or ``a / b``: a norm, weights, a gate, a query or just a product."""
    name, args, inplace = call.name, call.args, call.is_inplace
    if call.kwargs and all(k in _OPERANDS or v is None for k, v in call.kwargs.items()):
        call = call.replaced(tuple(call.bind(_OPERANDS)))
        args = call.args
    if call.kwargs or len(args) != 2 or not (depends(args[0]) and depends(args[1])):
        if context.has_memory and context.scope.rule(Kind.ATTENTION) is not None and not inplace:
            # how much is kept of a memory that holds nothing yet: a constant
            args = tuple(a.detach() if depends(a) and delta_rule.is_decay(a) else a for a in args)
            call = call.replaced(args, call.kwargs)
        return _without_nothing(context, call).run()
    quotient, target, plain = "div" in name, args[0], call
    if inplace:
        # rules may look at a view of what is overwritten here; in-place calls keep their meaning:
        # the result is copied into the first argument
        plain = call.replaced((target.clone(), args[1]), func=getattr(torch, name.strip("_")))
    result = _recognised(context, plain, quotient)
    if result is None:
        return call.run()
    return overwritten(target, result) if inplace else result


def _without_nothing(context: Context, call: Call) -> Call:
    """An exponential times zeros is zero: how a running softmax, still empty, is scaled first."""
    args = call.args
    if context.scope.rule(Kind.ATTENTION) is None or len(args) != 2 or "mul" not in call.name:
        return call
    for one, other in (args, args[::-1]):
        is_constant = isinstance(other, Tensor) and not depends(other)
        scales = is_constant and depends(one) and rescaling.is_rescaling_of_nothing(one)
        if scales and not bool(other.any()):
            return call.replaced(tuple(a.detach() if a is one else a for a in args))
    return call


def _recognised(context: Context, call: Call, quotient: bool) -> Any:
    """The product under a rule; ``None`` if no rule has a say in it."""
    if context.has_steps and not quotient:
        scanned = scan_product(context, call, [0, 1], elementwise=True)
        if scanned is not None:
            return scanned
    if context.has_memory and context.scope.rule(Kind.ATTENTION) is not None and not quotient:
        decays = tuple(i for i in (0, 1) if delta_rule.is_decay(call.args[i]))
        if len(decays) == 1 and delta_rule.is_sum_of_values(call.args[1 - decays[0]]):
            return weighted_values(context, call, decays)
    for recognised in (_sink, _softmax, _row_sums, _share, _norm, _written_activation, _other):
        result = recognised(context, call, quotient)
        if result is not None:
            return result
    return None


def _sink(context: Context, call: Call, quotient: bool) -> Tensor | None:
    """What an attention head loses to its sink, or to the keys of other chunks."""
    args = call.args
    if context.scope.rule(Kind.ATTENTION) is None:
        return None
    sinks = tuple(
        i for i in ((1,) if quotient else (0, 1))
        if patterns.is_sink_gate(args[i].grad_fn) and summaries.is_weighed(args[1 - i])
    )  # fmt: skip
    if len(sinks) != 1:
        return None
    context.scope.find("gate of an attention sink")
    return _part_of_pattern(context, call, sinks, quotient)


def _share(context: Context, call: Call, quotient: bool) -> Tensor | None:
    """What one chunk of keys has of the sum over all, or that sum."""
    if context.scope.rule(Kind.ATTENTION) is None:
        return None
    for i in (1,) if quotient else (0, 1):
        if rescaling.is_share(call.args[i], call.args[1 - i]):
            context.scope.find("attention that is joined by sums of weights")
            return _part_of_pattern(context, call, (i,), quotient)
    return None


def _part_of_pattern(
    context: Context, call: Call, factor: tuple[int, ...], quotient: bool
) -> Tensor:
    operation = PatternProduct(*call.parts, patterns=factor, operands=(0, 1), rescales=quotient)
    return _tensor(context.apply(Kind.ATTENTION, operation))


def _softmax(context: Context, call: Call, quotient: bool) -> Tensor | None:
    """Weights divided by their sum: what is done with them decides."""
    args = call.args
    if patterns.is_normalised(args[0], args[1], quotient):
        result = _tensor(call.run())
        note_weights(result)  # of relu(s) ** 2 the divisor is no norm
        return result
    if context.scope.rule(Kind.ATTENTION) is None:
        return None
    for i in (0,) if quotient else (0, 1):
        weights = patterns.weights_in(args[i], args[1 - i], quotient)
        if weights is not None:  # the same, if the sum was taken in another way
            result = _tensor(call.run())
            if patterns.mark_if_ones(result, parents(weights)[0]):
                return result
    return None


def _row_sums(context: Context, call: Call, quotient: bool) -> Tensor | None:
    """Values summed with weights, divided by the sum of the weights."""
    args = call.args
    if context.scope.rule(Kind.ATTENTION) is None:
        return None
    divisor = rescaling.renormalizer(args, quotient)
    if quotient and rescaling.rescaled_entries(args[0], args[1]):  # of several sums, all of them
        divisor = 1
    if divisor is None:
        return None
    others = (args[1 - divisor],)
    norm = homogeneity.normalises(context.degrees, args[divisor], others, quotient)
    if norm is homogeneity.Normalising.WHOLE:  # o / rms(o) is a norm of the values
        return None
    context.scope.find("row sums of attention")
    operation = PatternProduct(*call.parts, patterns=(divisor,), operands=(0, 1), rescales=True)
    return _tensor(context.apply(Kind.ATTENTION, operation))


def _norm(context: Context, call: Call, quotient: bool) -> Tensor | None:
    """Something divided by its own size."""
    args = call.args
    if context.scope.rule(Kind.NORM) is None:
        return None
    degrees = context.degrees
    for i in (1,) if quotient else (1, 0):
        if homogeneity.is_ratio(degrees, args[1 - i], args[i], quotient):
            result = _tensor(call.run())
            mark_node(result, homogeneity.IS_RATIO)  # what the ratio multiplies decides
            return result
        if homogeneity.are_weights(args[1 - i], args[i], quotient):
            other = _other(context, call, quotient)
            result = _tensor(call.run()) if other is None else other
            note_weights(result)
            return result
    for i in (1,) if quotient else (1, 0):
        found = homogeneity.normalises(degrees, args[i], (args[1 - i],), quotient)
        if found is homogeneity.Normalising.LAST_STEP:
            result = _tensor(call.run())
            mark_node(result, homogeneity.IN_STEPS)
            return result
        if found is not None:
            context.scope.find("norm written out")
            operation = NormalizerProduct(*call.parts, normalizer=i)
            result = _tensor(context.apply(Kind.NORM, operation))
            note_norm(degrees, result, args[i], quotient)
            return result
    return None


def _written_activation(context: Context, call: Call, quotient: bool) -> Tensor | None:
    args = call.args
    if context.scope.rule(Kind.ACTIVATION) is None:
        return None
    x = self_gated.activated(args[0], args[1], quotient)
    if x is None:
        return None
    context.scope.find("activation written out")
    return _tensor(_as_activation(context, call, x))


def _other(context: Context, call: Call, quotient: bool) -> Tensor | None:
    """A gate, a pattern that may weigh what it meets, or just a product."""
    args = call.args
    result = None
    if context.scope.rule(Kind.PRODUCT) is not None:
        result = _shared(context, call, quotient)
    if context.scope.rule(Kind.ATTENTION) is not None:
        if not quotient:
            result = _weighed_entries(context, call, result)
        if result is not None and args[0].shape != args[1].shape:
            axes.note_spread(result, *args)  # a rule may have made a constant of one
    return None if result is None else _tensor(result)


def _tensor(result: Any) -> Tensor:
    assert isinstance(result, Tensor)
    return result


def _shared(context: Context, call: Call, quotient: bool) -> Any:
    """A product or quotient under the rule for products.

    Where both factors are spread out and what they have in common is summed over, it is a matrix
    product written entry by entry.
    """
    args = call.args
    operation = Product(*call.parts, first=0, second=1, elementwise=True, quotient=quotient)
    if context.scope.ledger is not None and not quotient:
        strengths = [gate_strength(a) for a in args]
        if strengths[0] != strengths[1]:
            context.scope.find("gate")
    result = context.apply(Kind.PRODUCT, operation)
    common = () if quotient else _common_axes(*args)
    rule = context.scope.rule(Kind.PRODUCT)
    if not common or rule is None:
        return result
    clear = [i for i in (0, 1) if gate_strength(args[i]) == CLEAR]
    chooses = len(clear) == 1 and not all(
        axes.origin(args[clear[0]], d, through_scores=True) is axes.Origin.DATA for d in common
    )
    matrix = replace(operation, elementwise=False, gate=clear[0] if chooses else None)
    result, weighed = undecided(
        context, Kind.PRODUCT, result, [rule.propagate(matrix)], "matrix product, entry by entry"
    )
    weighed.along = common
    await_use(context, result, weighed)
    return result


def _common_axes(first: Tensor, second: Tensor) -> tuple[int, ...]:
    """The axes that two factors have in common, from the right, if neither has all of both."""
    shape = torch.broadcast_shapes(first.shape, second.shape)  # type: ignore[no-untyped-call]
    if shape in (first.shape, second.shape):
        return ()
    shared = min(first.dim(), second.dim())
    return tuple(d for d in range(-shared, 0) if first.shape[d] == second.shape[d] > 1)


def _as_activation(context: Context, call: Call, x: int) -> Any:
    """A product of ``x`` with a function of itself, as an activation of ``x``."""
    args = call.args
    with torch.no_grad():
        value = call.run()
    operation = Activation(lambda _: value, (args[x],), {}, input=args[x], name="Silu")
    if context.scope.ledger is not None:
        operation.absorb = context.absorber()
    return context.apply(Kind.ACTIVATION, operation)


def _weighed_entries(context: Context, call: Call, product: Any) -> Any:
    """A pattern times values, entry by entry: attention if it is summed along its axis."""
    args = call.args
    found = entrywise.weights(args[0], args[1])
    if found is None:
        return _linear_attention(context, call, product)
    if product is None:
        product = call.run()
    has_name = patterns.is_pattern(args[found.position])
    for way in [found] if has_name else found.ways:
        product = _summed_later(context, call, product, way, has_name)
    return product


def _summed_later(
    context: Context, call: Call, plain: Tensor, found: entrywise.Weights, has_name: bool
) -> Tensor:
    """A product that is attention if its entries are summed up, or no rule knows what then."""
    if found.is_untold:
        return untold_unless_kept(context, plain, found)
    operation = PatternProduct(*call.parts, patterns=(found.position,), operands=(0, 1))
    product, weighed = proposed(context, plain, [operation], "softmax attention, entry by entry")
    weighed.along = found.along
    weighed.group = found.source
    weighed.values = call.args[1 - found.position]
    # a divisor may follow, or a query that reads what keys have summed
    written = equation_of(*call.args)
    args, func, i = (written, torch.einsum, 1) if written else (call.args, call.func, 0)
    summary = summaries.summarize(product, args, func, (found.position + i,))
    summary.weighed = weighed
    await_use(context, product, weighed)
    return product


def _linear_attention(context: Context, call: Call, product: Any) -> Any:
    """Keys times values, or a query that reads their sum, entry by entry."""
    args = call.args
    reading = weighing.reading_of(args[0], args[1])
    if reading is not None:
        product = call.run() if product is None else product
        query, sums = reading.query, 1 - reading.query
        shares = {query: 0.25, sums: 0.75} if reading.sums else None
        operation = PatternProduct(*call.parts, patterns=(query,), operands=(0, 1), shares=shares)
        product, weighed = proposed(context, product, [operation], "linear attention (convention)")
        weighed.along = () if reading.axis is None else (reading.axis,)
        weighed.group = axes.moved(args[query])  # of a loop over channels
        weighed.sums = [(one, reading.key) for one in reading.sums]
        await_use(context, product, weighed)
        return product
    written = equation_of(args[0], args[1])
    if written is not None:
        keys = weighing.weighing_of(torch.einsum, written, [1, 2]).proposed
        if keys:
            product = call.run() if product is None else product
            return keys_times_values(
                context, product, call.replaced(written, func=torch.einsum), keys
            )
    if any(map(rescaling.is_exponential, args)):
        product = call.run() if product is None else product
        return exponentials_times_values(context, product, call)
    return product


def _added_product(context: Context, call: Call) -> Any:
    """``input + value * tensor1 * tensor2``, or ``tensor1 / tensor2``: a product and a sum."""
    summand, first, second = call.bind(("input", "tensor1", "tensor2"))
    if not (depends(first) and depends(second)) or not context.scope.has_rules:
        return call.run()
    part = torch.div if "div" in call.name else torch.mul
    with torch.no_grad():
        value = getattr(torch, call.name.rstrip("_"))(*call.args, **call.kwargs)
    product = entrywise_product(context, call.replaced((first, second), func=part))
    product = product * call.kwargs.get("value", 1)
    result = booked(context, call, WithValue.call(value, summand + product))
    return overwritten(summand, result) if call.is_inplace else result


def _interpolated(context: Context, call: Call) -> Any:
    """``start + weight * (end - start)``: a sum, and a product if the weight depends on inputs."""
    start, end, weight = call.bind(("input", "end", "weight"))
    ends = depends(start) or depends(end)
    if not (ends and depends(weight)) or context.scope.rule(Kind.PRODUCT) is None:
        return call.run()
    with torch.no_grad():
        value = torch.lerp(start, end, weight)
    with context.watching():
        spelled = start + weight * (end - start)
    result = WithValue.call(value, spelled)
    return overwritten(start, result) if call.is_inplace else result


def _outer(context: Context, call: Call) -> Any:
    first, second = call.bind(("input", "vec2"))
    if not (depends(first) and depends(second)):
        return call.run()
    return entrywise_product(context, call.replaced((first[:, None], second), func=torch.mul))


def _glu(context: Context, call: Call) -> Any:
    x, dim = call.bind(("input", "dim"))
    if not depends(x):
        return call.run()
    return context.apply(
        Kind.PRODUCT, FusedGate(*call.parts, input=x, dim=-1 if dim is None else dim)
    )


HANDLERS: dict[str, Handler] = {
    **by_name(entrywise_product, "mul mul_ multiply multiply_ div div_ divide divide_ true_divide"),
    **by_name(_added_product, "addcmul addcmul_ addcdiv addcdiv_"),
    **by_name(_interpolated, "lerp lerp_"),
    **by_name(_outer, "outer ger"),
    **by_name(_glu, "glu"),
}
