"""Operations of extensions that autograd has no derivative of.

Torch gives their results no gradient, or a node that gives none when it is too late to say where:
relevance would be lost without a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_lrp_tx.propagation.graph import Node, walk
from captum_lrp_tx.propagation.interception import quantised
from captum_lrp_tx.propagation.interception.calls import OPERATORS, Call, depends, tensors_in

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context

#: Types of nodes that may say that there is no derivative.
_SUSPECT = frozenset(["NotImplemented", "CppFunction"])
#: Where torch's own operations live, whose results are numbers where they have no derivative.
_TORCHS_OWN = ("aten::", "prim::", "prims::")


def has_no_derivative(node: Node) -> bool:
    """Whether a node stands for an operation that has no derivative."""
    return type(node).__name__ in _SUSPECT and "NotImplemented" in node.name()


def note(context: Context, call: Call, result: Any) -> None:
    """Remember a call whose result has lost its gradient for want of a derivative."""
    if isinstance(result, Tensor) and result.requires_grad:
        node = result.grad_fn
        if node is not None and has_no_derivative(node):
            context.underived.append((node, _qualified(call.func), context.running()))
        return
    if not isinstance(call.func, OPERATORS) or _qualified(call.func).startswith(_TORCHS_OWN):
        return
    made = [t for t in tensors_in(result) if t.is_floating_point() or t.is_quantized]
    if not made or any(t.requires_grad for t in made):
        return
    if any(depends(t) and t.is_floating_point() for t in tensors_in(call.parts[1:])):
        context.underived.append((None, _qualified(call.func), context.running()))


def refuse_underived(context: Context, roots: list[Node]) -> None:
    """Raise if the output was computed by an operation without a derivative.

    Args:
        context (Context): Of the forward pass that is over.
        roots (list of Node): Of the explained output.

    Raises:
        UnsupportedModelError: with the name of the operation and its layer.
    """
    if not context.underived:
        return
    behind = set(walk(roots))
    for node, operation, where in context.underived:
        if node is None or node in behind:
            quantised.refuse(where, f"runs {operation}, which has no derivative")


def _qualified(func: Any) -> str:
    packet = getattr(func, "overloadpacket", func)
    name = getattr(packet, "_qualified_op_name", None) or getattr(func, "__name__", str(func))
    return str(name)
