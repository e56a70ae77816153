"""Values weighted by a pattern, and the pattern that a divisor completes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_lrp_tx.propagation import delta_rule, graph
from captum_lrp_tx.propagation.interception.calls import depends
from captum_lrp_tx.propagation.operations import (
    Kind,
    PatternProduct,
    Product,
)

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.mode import Interception


def is_head(mode: Interception, pattern: Tensor) -> bool:
    """Whether a rule for attention is in force and the tensor is a pattern."""
    return mode.scope.rule(Kind.ATTENTION) is not None and graph.is_pattern(pattern)


def weighted_values(
    mode: Interception,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    weights: tuple[int, ...],
) -> Any:
    """Patterns (the operands at ``weights``) times values, under the rule for attention."""
    operands = tuple(i for i, a in enumerate(args) if depends(a))
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
) -> Any:
    """A product of two input-dependent tensors neither of which is a pattern."""
    if len(dependent) == 2 and mode.scope.rule(Kind.PRODUCT) is not None:
        return mode.apply(
            Kind.PRODUCT,
            Product(func, args, kwargs, first=dependent[0], second=dependent[1], elementwise=False),
        )
    return func(*args, **kwargs)
