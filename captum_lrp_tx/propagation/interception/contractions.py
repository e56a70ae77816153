"""Matrix products: linear maps, patterns times values, or products of two tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrp_tx.propagation.graph import gate_strength, mark_node
from captum_lrp_tx.propagation.interception.attention_patterns import (
    exponentials_times_values,
    is_head,
    keys_times_values,
    unweighted,
    weighted_values,
)
from captum_lrp_tx.propagation.interception.booking import booked
from captum_lrp_tx.propagation.interception.calls import Call, Handler, by_name, depends
from captum_lrp_tx.propagation.interception.constant_weights import (
    apply_linear,
    folded_product,
    of_constants,
)
from captum_lrp_tx.propagation.interception.products import entrywise_product
from captum_lrp_tx.propagation.interception.scans import scan_product
from captum_lrp_tx.propagation.interception.spreading import spread_through
from captum_lrp_tx.propagation.operations import Kind, LinearMap, NormalizerProduct, PatternProduct
from captum_lrp_tx.propagation.recognition import (
    delta_rule,
    homogeneity,
    patterns,
    rescaling,
    summaries,
    weighing,
)
from captum_lrp_tx.propagation.recognition.contracted import contraction_of, entrywise_factors
from captum_lrp_tx.propagation.recognition.undecided import confirm_places

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context


def contraction(context: Context, call: Call) -> Any:
    """matmul, bmm, einsum, ...: a linear map, a pattern times values, or another product."""
    func, args, kwargs = call.parts
    dependent = [i for i, a in enumerate(args) if depends(a)]
    if len(dependent) >= 2:
        return _dependent_contraction(context, call, dependent)
    tensors = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
    if (
        context.has_memory
        and len(dependent) == 1
        and context.scope.rule(Kind.ATTENTION) is not None
        and delta_rule.is_key(args[dependent[0]])
    ):  # the memory is still empty: a constant, like the key that would read it
        return func(*(a.detach() if depends(a) else a for a in args), **kwargs)
    if len(dependent) == 1 and len(tensors) == 2:
        (i,) = dependent
        j = tensors[1] if tensors[0] == i else tensors[0]
        if is_head(context, args[i]) and not context.constants.is_of_model(args[j]):
            # values of another text, say: weighted as if they were explained.  What the model
            # holds itself (memory slots, bases, places) is the weight of a linear map
            context.scope.find("softmax attention")
            return context.apply(
                Kind.ATTENTION, PatternProduct(*call.parts, patterns=(i,), operands=(i,))
            )
        run = func
        if "mul" in call.name:
            run = folded_product(context, func, args[i], args[j], weight_first=j < i)

        others = [None if k == i else a for k, a in enumerate(args)]  # rules may keep this

        def apply(x: Tensor, w: Tensor) -> Tensor:
            called = list(others)
            called[i], called[j] = x, w
            result: Tensor = func(*called, **kwargs)
            return result

        how = contraction_of(func, args)
        operation = LinearMap(
            run, args, kwargs, context.absorber(),
            input=args[i], weight=args[j], bias=None,
            apply=apply, distribute=spread_through(apply, args[j]),
            sources=None if how is None else how.sources(i),
        )  # fmt: skip
        return apply_linear(context, operation)
    return of_constants(context, call)


def _dependent_contraction(context: Context, call: Call, dependent: list[int]) -> Any:
    func, args, kwargs = call.parts
    if context.has_memory and context.scope.rule(Kind.ATTENTION) is not None:
        values = [i for i in dependent if delta_rule.is_sum_of_values(args[i])]
        if len(values) == 1:
            weights = tuple(i for i in dependent if i != values[0])
            return weighted_values(context, call, weights)
    if context.has_steps:
        scanned = scan_product(context, call, dependent, elementwise=False)
        if scanned is not None:
            return scanned
    what = weighing.Weighing()
    if context.scope.rule(Kind.ATTENTION) is not None:
        what = weighing.weighing_of(func, args, dependent)
        if what.what:
            context.scope.find(what.what)
        if what.weights:
            result = context.apply(
                Kind.ATTENTION,
                PatternProduct(
                    *call.parts, patterns=what.weights, operands=tuple(dependent),
                    shares=what.shares,
                ),
            )  # fmt: skip
            summaries.summarize(result, args, func, what.weights)
            weighed, how = set(dependent) - set(what.weights), contraction_of(func, args)
            are_patterns = all(patterns.is_pattern(args[i]) for i in what.weights)
            if len(weighed) == 1 and are_patterns:
                confirm_places(args[next(iter(weighed))])
            if how is not None and len(weighed) == 1 and are_patterns:
                position = weighed.pop()
                patterns.mark_product(result, args[position], how.sources(position))
            return result
    if context.scope.rule(Kind.NORM) is not None:
        for i in reversed(dependent):
            others = [args[j] for j in dependent if j != i]
            found = homogeneity.normalises(context.degrees, args[i], others, quotient=False)
            if found is homogeneity.Normalising.WHOLE:
                context.scope.find("norm written out")
                return context.apply(Kind.NORM, NormalizerProduct(*call.parts, normalizer=i))
    entries = None
    gated = any(gate_strength(args[i]) for i in dependent)
    if func is torch.einsum or (gated and len(args) == 2):
        # f(k) @ v of one token, say
        entries = entrywise_factors(contraction_of(func, args), args)
    if entries is not None and not kwargs and len(entries) == len(dependent) == 2:
        result = entrywise_product(context, call.replaced(tuple(entries), func=torch.mul))
    else:
        result = unweighted(context, call, dependent, what.mixes)
    if what.is_untold:
        mark_node(result, rescaling.UNTOLD)
    if what.is_pattern:
        patterns.mark(result, None)
    if what.proposed:
        result = keys_times_values(context, result, call, what.proposed)
    elif not what.mixes and context.scope.rule(Kind.ATTENTION) is not None:
        result = exponentials_times_values(context, result, call)
    return result


def _tensordot(context: Context, call: Call) -> Any:
    first, second, dims = call.bind(("a", "b", "dims"))
    if call.kwargs.get("out") is None and not isinstance(dims, Tensor):
        call = call.replaced((first, second, 2 if dims is None else dims))
    return contraction(context, call)


def _solve(context: Context, call: Call) -> Any:
    """A triangular system of scores, as in the delta rule: the scores weigh the right-hand side."""
    matrix, right = call.bind(("A", "B"))
    if not (depends(matrix) and depends(right)) or context.scope.rule(Kind.ATTENTION) is None:
        return call.run()
    of_values = delta_rule.is_system(matrix, right)
    if of_values is None:
        return call.run()
    context.has_memory = True
    rest = {k: v for k, v in call.kwargs.items() if k not in ("A", "B")}
    call = call.replaced((matrix, right), rest)
    if of_values:
        return weighted_values(context, call, (0,))
    result = call.run()
    delta_rule.note(result, of_values=False)
    return result


def product_with_summand(context: Context, call: Call) -> Any:
    """``input + batch1 @ batch2`` of two tensors that depend on the inputs."""
    result = _dependent_contraction(context, call, [1, 2])
    return booked(context, call, result)


def _einsum(context: Context, call: Call) -> Any:
    if len(call.args) == 2 and isinstance(call.args[1], (list, tuple)):
        call = call.replaced((call.args[0], *call.args[1]), call.kwargs)
    return contraction(context, call)


HANDLERS: dict[str, Handler] = {
    **by_name(contraction, "matmul __matmul__ __rmatmul__ mm bmm mv dot inner _sparse_mm"),
    **by_name(_tensordot, "tensordot"),
    **by_name(_solve, "linalg_solve_triangular solve_triangular"),
    **by_name(_einsum, "einsum"),
}
