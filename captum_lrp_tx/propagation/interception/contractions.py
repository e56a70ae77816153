"""Matrix products: linear maps, patterns times values, or products of two tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrp_tx.propagation import delta_rule
from captum_lrp_tx.propagation.graph import gate_strength
from captum_lrp_tx.propagation.interception.attention_patterns import (
    exponentials_times_values,
    is_head,
    keys_times_values,
    unweighted,
    weighted_values,
)
from captum_lrp_tx.propagation.interception.booking import booked
from captum_lrp_tx.propagation.interception.calls import Handler, bind, by_name, depends
from captum_lrp_tx.propagation.interception.constant_weights import (
    apply_linear,
    folded_product,
    of_constants,
)
from captum_lrp_tx.propagation.interception.products import entrywise_product
from captum_lrp_tx.propagation.interception.scans import scan_product
from captum_lrp_tx.propagation.interception.spreading import spread_through
from captum_lrp_tx.propagation.operations import (
    Kind,
    LinearMap,
    NormalizerProduct,
    PatternProduct,
)
from captum_lrp_tx.propagation.recognition import (
    homogeneity,
    patterns,
    rescaling,
    summaries,
    weighing,
)
from captum_lrp_tx.propagation.recognition.contracted import contraction_of, entries_of

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.mode import Interception


def contraction(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """matmul, bmm, einsum, ...: a linear map, a pattern times values, or another product."""
    if kwargs:  # torch.matmul(input=..., other=...)
        named = [kwargs[k] for k in ("input", "tensor1", "other", "mat2", "mat1") if k in kwargs]
        if not args and len(named) == len(kwargs):
            args, kwargs = tuple(named), {}
    dependent = [i for i, a in enumerate(args) if depends(a)]
    if len(dependent) >= 2:
        return _dependent_contraction(mode, func, args, kwargs, dependent)
    tensors = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
    if (
        mode.has_memory
        and len(dependent) == 1
        and mode.scope.rule(Kind.ATTENTION) is not None
        and delta_rule.is_key(args[dependent[0]])
    ):  # the memory is still empty: a constant, like the key that would read it
        return func(*(a.detach() if depends(a) else a for a in args), **kwargs)
    if len(dependent) == 1 and len(tensors) == 2:
        (i,) = dependent
        j = tensors[1] if tensors[0] == i else tensors[0]
        if is_head(mode, args[i]) and not mode.is_of_model(args[j]):
            # values of another text, say: weighted as if they were explained.  What the model
            # holds itself (memory slots, bases, places) is the weight of a linear map
            mode.scope.find("softmax attention")
            return mode.apply(
                Kind.ATTENTION,
                PatternProduct(func, args, kwargs, patterns=(i,), operands=(i,)),
            )
        call = func
        if "mul" in getattr(func, "__name__", ""):
            call = folded_product(mode, func, args[i], args[j], weight_first=j < i)

        others = [None if k == i else a for k, a in enumerate(args)]  # rules may keep this

        def apply(x: Tensor, w: Tensor) -> Tensor:
            called = list(others)
            called[i], called[j] = x, w
            result: Tensor = func(*called, **kwargs)
            return result

        how = contraction_of(func, args)
        operation = LinearMap(
            call, args, kwargs, mode.absorber(),
            input=args[i], weight=args[j], bias=None,
            apply=apply, distribute=spread_through(apply, args[j]),
            sources=None if how is None else how.sources(i),
        )  # fmt: skip
        return apply_linear(mode, operation)
    return of_constants(mode, func, args, kwargs)


def _dependent_contraction(
    mode: Interception,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dependent: list[int],
) -> Any:
    if mode.has_memory and mode.scope.rule(Kind.ATTENTION) is not None:
        values = [i for i in dependent if delta_rule.is_sum_of_values(args[i])]
        if len(values) == 1:
            weights = tuple(i for i in dependent if i != values[0])
            return weighted_values(mode, func, args, kwargs, weights)
    if mode.has_steps:
        scanned = scan_product(mode, func, args, kwargs, dependent, elementwise=False)
        if scanned is not None:
            return scanned
    what = weighing.Weighing()
    if mode.scope.rule(Kind.ATTENTION) is not None:
        what = weighing.weighing_of(func, args, dependent)
        if what.what:
            mode.scope.find(what.what)
        if what.weights:
            result = mode.apply(
                Kind.ATTENTION,
                PatternProduct(
                    func, args, kwargs, patterns=what.weights, operands=tuple(dependent),
                    shares=what.shares,
                ),
            )  # fmt: skip
            summaries.summarize(result, args, func, what.weights)
            return result
    if mode.scope.rule(Kind.NORM) is not None:
        for i in reversed(dependent):
            others = [args[j] for j in dependent if j != i]
            if homogeneity.is_norm(args[i], others, quotient=False):
                mode.scope.find("norm written out")
                return mode.apply(Kind.NORM, NormalizerProduct(func, args, kwargs, normalizer=i))
    entries = None
    gated = any(gate_strength(args[i]) for i in dependent)
    if func is torch.einsum or (gated and len(args) == 2):
        entries = entries_of(contraction_of(func, args), args)  # f(k) @ v of one token, say
    if entries is not None and not kwargs and len(entries) == len(dependent) == 2:
        result = entrywise_product(mode, torch.mul, tuple(entries), {})
    else:
        result = unweighted(mode, func, args, kwargs, dependent, what.mixes)
    node = getattr(result, "grad_fn", None)
    if what.is_untold and node is not None:
        node.metadata[rescaling.UNTOLD] = True
    if what.is_pattern:
        patterns.mark(result, None)
    if what.proposed:
        result = keys_times_values(mode, result, func, args, kwargs, what.proposed)
    elif not what.mixes and mode.scope.rule(Kind.ATTENTION) is not None:
        result = exponentials_times_values(mode, result, func, args, kwargs)
    return result


def _solve(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A triangular system of scores, as in the delta rule: the scores weigh the right-hand side."""
    matrix, right = bind(("A", "B"), args, kwargs)
    if not (depends(matrix) and depends(right)) or mode.scope.rule(Kind.ATTENTION) is None:
        return func(*args, **kwargs)
    of_values = delta_rule.is_system(matrix, right)
    if of_values is None:
        return func(*args, **kwargs)
    mode.has_memory = True
    rest = {k: v for k, v in kwargs.items() if k not in ("A", "B")}
    if of_values:
        return weighted_values(mode, func, (matrix, right), rest, (0,))
    result = func(matrix, right, **rest)
    delta_rule.note(result, of_values=False)
    return result


def product_with_summand(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """``input + batch1 @ batch2`` of two tensors that depend on the inputs."""
    result = _dependent_contraction(mode, func, args, kwargs, [1, 2])
    return booked(mode, func, args, kwargs, result)


def _einsum(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if len(args) == 2 and isinstance(args[1], (list, tuple)):
        args = (args[0], *args[1])
    return contraction(mode, func, args, kwargs)


HANDLERS: dict[str, Handler] = {
    **by_name(
        contraction, "matmul __matmul__ __rmatmul__ mm bmm mv dot inner tensordot _sparse_mm"
    ),
    **by_name(_solve, "linalg_solve_triangular solve_triangular"),
    **by_name(_einsum, "einsum"),
}
