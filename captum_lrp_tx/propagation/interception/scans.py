"""Products with the coefficients of a recurrence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captum_lrp_tx.propagation import recurrence
from captum_lrp_tx.propagation.operations import (
    Kind,
    ScanProduct,
)

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.mode import Interception


def scan_product(
    mode: Interception,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dependent: list[int],
    elementwise: bool,
) -> Any:
    """A product of a state space model under the rule in force; None for any other product."""
    if mode.scope.rule(Kind.SCAN) is None:
        return None
    resolved = recurrence.resolve(
        [args[i] for i in dependent], _einsum_labels(args, dependent), elementwise
    )
    if resolved is None:
        return None
    signal, role = resolved
    if signal is None:  # plain, so that the audit finds it
        result = func(*args, **kwargs)
    else:
        mode.scope.find("state space model (MambaLRP)")
        coefficients = tuple(i for i in dependent if i != dependent[signal])
        result = mode.apply(Kind.SCAN, ScanProduct(func, args, kwargs, coefficients=coefficients))
    recurrence.mark(result, role)
    return result


def _einsum_labels(args: tuple[Any, ...], dependent: list[int]) -> list[frozenset[str]] | None:
    """Letters of the dependent operands and of the result, if this is an einsum by equation."""
    if not isinstance(args[0], str) or "->" not in args[0] or "." in args[0]:
        return None
    inputs, output = args[0].replace(" ", "").split("->")
    letters = [frozenset(term) for term in inputs.split(",")]
    return [*(letters[i - 1] for i in dependent), frozenset(output)]
