"""Values weighted by a pattern, and the pattern that a divisor completes."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_lrp_tx.propagation.graph import CLEAR, gate_strength, mark_node
from captum_lrp_tx.propagation.interception.calls import Call, depends
from captum_lrp_tx.propagation.operations import Kind, PatternProduct, Product
from captum_lrp_tx.propagation.recognition import (
    axes,
    delta_rule,
    patterns,
    rescaling,
    summaries,
    weighing,
)
from captum_lrp_tx.propagation.recognition.contracted import contraction_of
from captum_lrp_tx.propagation.recognition.entrywise import Weights
from captum_lrp_tx.propagation.recognition.undecided import (
    SUMMARY,
    Undecided,
    Weighed,
    remember,
)

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context


def is_head(context: Context, pattern: Tensor) -> bool:
    """Whether a rule for attention is in force and the tensor is a pattern."""
    return context.scope.rule(Kind.ATTENTION) is not None and patterns.is_pattern(pattern)


def weighted_values(context: Context, call: Call, weights: tuple[int, ...]) -> Any:
    """Patterns (the operands at ``weights``) times values, under the rule for attention."""
    operands = tuple(i for i, a in enumerate(call.args) if depends(a))
    context.scope.find("gated delta rule (convention)")
    result = context.apply(
        Kind.ATTENTION, PatternProduct(*call.parts, patterns=weights, operands=operands)
    )
    delta_rule.note(result, of_values=True)
    return result


def unweighted(context: Context, call: Call, dependent: list[int], gate: int | None = None) -> Any:
    """A product of two input-dependent tensors neither of which is a pattern."""
    if len(dependent) != 2 or context.scope.rule(Kind.PRODUCT) is None:
        return call.run()
    first, second = dependent
    how = contraction_of(call.func, call.args)
    # a gate without an axis of its own scales the other factor entry by entry, in front of a sum
    scales = how is not None and any(
        gate_strength(call.args[i]) > 1
        and weighing.is_of_data(call.args[i], i, how)
        and not any(call.args[i].shape[axis] > 1 for axis, _ in how.own(i))
        for i in dependent
    )
    if gate is None and how is not None and not scales:
        clear = [i for i in dependent if gate_strength(call.args[i]) == CLEAR]
        # what chooses among experts; over tokens it would be attention
        if len(clear) == 1 and not weighing.is_of_data(call.args[clear[0]], clear[0], how):
            gate = clear[0]
    operation = Product(*call.parts, first=first, second=second, elementwise=scales, gate=gate)
    return context.apply(Kind.PRODUCT, operation)


def proposed(
    context: Context, plain: Tensor, operations: list[PatternProduct], what: str
) -> tuple[Tensor, Weighed]:
    """A product that may turn out to be attention, computed for each meaning; its rule is in force.

    Args:
        context (Context): Of the pass.
        plain (Tensor): The product as it is if nothing turns out.
        operations (list of PatternProduct): What it may be.
        what (str): The same in words.

    Returns:
        tuple: the product, and the handle by which a meaning is confirmed.
    """
    rule = context.scope.rule(Kind.ATTENTION)
    assert rule is not None
    meanings = [rule.propagate(one) for one in operations]
    return undecided(context, Kind.ATTENTION, plain, meanings, what)


def keys_times_values(context: Context, plain: Tensor, call: Call, keys: tuple[int, ...]) -> Tensor:
    """A product that is half of linear attention if a query reads it, ``f(k).T @ v``.

    Args:
        context (Context): Of the pass.
        plain (Tensor): The product as it is if none does.
        call (Call): The product.
        keys (tuple of int): The operands that may be the keys.
    """
    factors = tuple(i for i, a in enumerate(call.args) if depends(a))
    operations = [
        PatternProduct(
            *call.parts, patterns=(key,), operands=factors,
            shares={j: 1 / 3 if j == key else 2 / 3 for j in factors},
        )
        for key in keys
    ]  # fmt: skip
    result, weighed = proposed(context, plain, operations, "linear attention (convention)")
    summaries.summarize(result, call.args, call.func, keys).weighed = weighed
    remember(result, weighed)  # or a divisor decides
    return result


def exponentials_times_values(context: Context, plain: Tensor, call: Call) -> Tensor:
    """A product that is attention if it is divided by the sum of its exponentials afterwards."""
    factors = tuple(i for i, a in enumerate(call.args) if depends(a))
    weights = [i for i in factors if rescaling.is_exponential(call.args[i])]
    if len(factors) != 2 or len(weights) != 1:
        return plain
    operation = PatternProduct(*call.parts, patterns=tuple(weights), operands=factors)
    result, weighed = proposed(context, plain, [operation], "attention, divided by its row sums")
    root = axes.moved(call.args[weights[0]])
    mark_node(result, SUMMARY, summaries.Summary([root], weighed=weighed))  # another may divide
    await_use(context, result, weighed)
    return result


def untold_unless_kept(context: Context, plain: Tensor, found: Weights) -> Tensor:
    """A product with what may be weights: if it is summed along them, no rule knows how."""
    told = plain * 1
    mark_node(told, rescaling.UNTOLD)
    result = Undecided.call(plain.detach(), plain, told)
    node: Any = result.grad_fn
    weighed = Weighed(weakref.ref(node), found.source, found.along, lambda _: None)
    await_use(context, result, weighed)
    return result


def undecided(
    context: Context, kind: Kind, plain: Tensor, meanings: list[Tensor], what: str
) -> tuple[Tensor, Weighed]:
    """One value with several meanings, and the handle by which one of them is confirmed."""
    scope = context.scope  # the context leads to the graph, and the graph to this
    module, rule = scope.module, scope.rule(kind)
    assert rule is not None
    result = Undecided.call(plain.detach(), plain, *meanings)
    node: Any = result.grad_fn

    def confirmed(_: int) -> None:
        scope.note(kind, rule, module)
        scope.find(what, module)

    return result, Weighed(weakref.ref(node), None, (), confirmed)


def await_use(context: Context, result: Tensor, weighed: Weighed) -> None:
    """Let an undecided product wait for what sums it up."""
    remember(result, weighed)
    context.undecided.append(weakref.ref(weighed))  # the context must not hold the graph
