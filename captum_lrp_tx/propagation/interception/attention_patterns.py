"""Values weighted by a pattern, and the pattern that a divisor completes."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_lrp_tx.propagation import delta_rule
from captum_lrp_tx.propagation.interception.calls import depends
from captum_lrp_tx.propagation.operations import (
    Kind,
    PatternProduct,
    Product,
)
from captum_lrp_tx.propagation.recognition import axes, patterns, rescaling, summaries
from captum_lrp_tx.propagation.recognition.undecided import Undecided, Weighed, remember

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.mode import Interception


def is_head(mode: Interception, pattern: Tensor) -> bool:
    """Whether a rule for attention is in force and the tensor is a pattern."""
    return mode.scope.rule(Kind.ATTENTION) is not None and patterns.is_pattern(pattern)


def weighted_values(
    mode: Interception,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    weights: tuple[int, ...],
) -> Any:
    """Patterns (the operands at ``weights``) times values, under the rule for attention."""
    operands = tuple(i for i, a in enumerate(args) if depends(a))
    mode.scope.find("gated delta rule (convention)")
    result = mode.apply(
        Kind.ATTENTION, PatternProduct(func, args, kwargs, patterns=weights, operands=operands)
    )
    delta_rule.note(result, of_values=True)
    return result


def unweighted(
    mode: Interception,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dependent: list[int],
    gate: int | None = None,
) -> Any:
    """A product of two input-dependent tensors neither of which is a pattern."""
    if len(dependent) != 2 or mode.scope.rule(Kind.PRODUCT) is None:
        return func(*args, **kwargs)
    first, second = dependent
    return mode.apply(
        Kind.PRODUCT,
        Product(func, args, kwargs, first=first, second=second, elementwise=False, gate=gate),
    )


def proposed(
    mode: Interception, plain: Tensor, operations: list[PatternProduct], what: str
) -> tuple[Tensor, Weighed | None]:
    """A product that may turn out to be attention, computed for each meaning.

    Args:
        mode (Interception): Of the pass.
        plain (Tensor): The product as it is if nothing turns out.
        operations (list of PatternProduct): What it may be.
        what (str): The same in words.

    Returns:
        tuple: the product, and the handle by which a meaning is confirmed; ``None`` if the rule in
        force cannot wait (it records patterns).
    """
    rule = mode.scope.rule(Kind.ATTENTION)
    if rule is None or getattr(rule, "records", False):
        return plain, None
    meanings = [rule.propagate(one) for one in operations]
    return undecided(mode, Kind.ATTENTION, plain, meanings, what)


def keys_times_values(
    mode: Interception,
    plain: Tensor,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    keys: tuple[int, ...],
) -> Tensor:
    """A product that is half of linear attention if a query reads it, ``f(k).T @ v``.

    Args:
        mode (Interception): Of the pass.
        plain (Tensor): The product as it is if none does.
        func, args, kwargs: The product.
        keys (tuple of int): The operands that may be the keys.
    """
    factors = tuple(i for i, a in enumerate(args) if depends(a))
    operations = [
        PatternProduct(
            func, args, kwargs, patterns=(key,), operands=factors,
            shares={j: 1 / 3 if j == key else 2 / 3 for j in factors},
        )
        for key in keys
    ]  # fmt: skip
    result, weighed = proposed(mode, plain, operations, "linear attention (convention)")
    if weighed is not None:
        summaries.summarize(result, args, func, keys).weighed = weighed
        remember(result, weighed)  # or a divisor decides
    return result


def exponentials_times_values(
    mode: Interception, plain: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """A product that is attention if it is divided by the sum of its exponentials afterwards."""
    factors = tuple(i for i, a in enumerate(args) if depends(a))
    weights = [i for i in factors if rescaling.is_exponential(args[i])]
    if len(factors) != 2 or len(weights) != 1 or not axes.KNOWS_SHAPES:
        return plain
    operation = PatternProduct(func, args, kwargs, patterns=tuple(weights), operands=factors)
    result, weighed = proposed(mode, plain, [operation], "attention, divided by its row sums")
    if weighed is not None:
        await_use(mode, result, weighed)
    return result


def undecided(
    mode: Interception, kind: Kind, plain: Tensor, meanings: list[Tensor], what: str
) -> tuple[Tensor, Weighed]:
    """One value with several meanings, and the handle by which one of them is confirmed."""
    scope = mode.scope  # the mode leads to the graph, and the graph to this
    module, rule = scope.module, scope.rule(kind)
    assert rule is not None
    result = Undecided.call(plain.detach(), plain, *meanings)
    node: Any = result.grad_fn

    def confirmed(_: int) -> None:
        scope.note(kind, rule, module)
        scope.find(what, module)

    return result, Weighed(weakref.ref(node), None, (), confirmed)


def await_use(mode: Interception, result: Tensor, weighed: Weighed) -> None:
    """Let an undecided product wait for what sums it up."""
    remember(result, weighed)
    mode.undecided.append(weakref.ref(weighed))  # the mode must not hold the graph
