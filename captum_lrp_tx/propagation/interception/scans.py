"""Products with the coefficients of a recurrence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captum_lrp_tx.propagation.interception.calls import Call
from captum_lrp_tx.propagation.operations import Kind, ScanProduct
from captum_lrp_tx.propagation.recognition import recurrence

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context


def scan_product(context: Context, call: Call, dependent: list[int], elementwise: bool) -> Any:
    """A product of a state space model under the rule in force; None for any other product."""
    if context.scope.rule(Kind.SCAN) is None:
        return None
    resolved = recurrence.resolve(
        [call.args[i] for i in dependent], _einsum_labels(call.args, dependent), elementwise
    )
    if resolved is None:
        return None
    signal, role = resolved
    if signal is None:  # plain, so that the audit finds it
        result = call.run()
    else:
        context.scope.find("state space model (MambaLRP)")
        coefficients = tuple(i for i in dependent if i != dependent[signal])
        result = context.apply(Kind.SCAN, ScanProduct(*call.parts, coefficients=coefficients))
    recurrence.mark(result, role)
    return result


def _einsum_labels(args: tuple[Any, ...], dependent: list[int]) -> list[frozenset[str]] | None:
    """Letters of the dependent operands and of the result, if this is an einsum by equation."""
    if not isinstance(args[0], str) or "->" not in args[0] or "." in args[0]:
        return None
    inputs, output = args[0].replace(" ", "").split("->")
    letters = [frozenset(term) for term in inputs.split(",")]
    return [*(letters[i - 1] for i in dependent), frozenset(output)]
