"""Telling apart the factors of a state space model by what computed them.

A selective state space model mixes its signal ``x`` over time with coefficients that are computed
from the input themselves::

    h_t = exp(D_t A) h_{t-1} + D_t B_t x_t        D = softplus(...), the step size
    y_t = C_t h_t

Implementations multiply these factors in any order: step by step (Mamba), or chunk by chunk with
the products of all decays between two positions (Mamba-2).  Each product gets a *role* here, noted
on its autograd node and found again through views, casts, sums and slices:

=========== ==================================================================================
``step``    the step size ``D``: comes from a softplus
``decay``   ``exp`` of something linear in the step sizes
``scaled``  a step size times something: ``D B`` or ``D x``
``decayed`` a decay times something: ``B`` or ``C`` with the decay up to a position
``kernel``  a decay times a product: ``C_t (decays) B_s``, how position ``t`` reads ``s``
``state``   the state ``h`` and what is added to it
``output``  what is read from the state
=========== ==================================================================================

What cannot be told apart is ``unclear`` and left to the audit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_lrp_tx.propagation.graph import KEEP_ENTRIES, Node, mark_node, node_name, parents

_KEY = "captum_lrp_tx.role"
_CONFIRMED = "captum_lrp_tx.confirmed"
_MAX_NODES = 400

_BOUNDS = frozenset({"Clamp", "ClampMin", "ClampMax"})
_SUMS = frozenset({"Add", "Sub", "Cat", "Stack", "Where", "CopySlices", "IndexPut"})
#: Linear in the step sizes: what may lie between them and the exponential.
_LINEAR = KEEP_ENTRIES | _BOUNDS | _SUMS | frozenset({"Cumsum", "Sum", "Mul", "Div", "Bmm", "Mm"})

UNCLEAR = "unclear"


def mark(tensor: Tensor, role: str) -> None:
    """Note the role of a product on the autograd node that made it."""
    mark_node(tensor, _KEY, role)


def marked(node: Node) -> str | None:
    """The role noted on a node, if any."""
    role: str | None = node.metadata.get(_KEY)
    return role


def role(tensor: Tensor) -> str | None:
    """Role of a tensor in a state space model; ``None`` if it has none."""
    return None if tensor.grad_fn is None else role_of(tensor.grad_fn)


def role_of(node: Node) -> str | None:
    """The same of what a node made."""
    return _role(node, {})


def _role(node: Node, found: dict[Node, str | None]) -> str | None:
    """``found`` holds the roles of the nodes already seen, through another summand perhaps."""
    walked: list[Node] = []
    result: str | None = None
    while len(found) < _MAX_NODES:
        if node in found:
            result = found[node]
            break
        found[node] = None
        walked.append(node)
        name, before = node_name(node), parents(node)
        known = marked(node)
        if known is not None or name == "Softplus":
            result = known or "step"
            break
        if name == "Exp":
            result = "decay" if _of_steps(node) else None
            break
        if name in _SUMS and len(before) > 1:
            roles = {_role(parent, found) for parent in before}
            result = "state" if "state" in roles else roles.pop() if len(roles) == 1 else None
            break
        keeps = name in KEEP_ENTRIES or name in _BOUNDS or name in _SUMS or name in ("Mul", "Div")
        if not keeps or len(before) != 1:
            break
        node = before[0]
    found.update(dict.fromkeys(walked, result))
    return result


def _of_steps(exponential: Node) -> bool:
    """Whether the argument of an exponential is linear in step sizes and nothing else."""
    return bool(_steps_of(parents(exponential)))


def _steps_of(todo: list[Node]) -> set[Node]:
    """The softplus nodes that a tensor is linear in; empty if it depends on anything else."""
    seen, steps = set[Node](), set[Node]()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        name = node_name(node)
        if name == "Softplus":
            steps.add(node)
            continue
        before = parents(node)
        mixes = name in ("Mul", "Div", "Bmm", "Mm") and len(before) > 1
        if name not in _LINEAR or mixes or len(seen) > _MAX_NODES:
            return set()
        todo.extend(before)
    return steps


def confirm_steps(argument: Tensor) -> None:
    """Called for arguments of exponentials: the softplus in them is a step size, not a gate."""
    if argument.grad_fn is not None:
        for node in _steps_of([argument.grad_fn]):
            node.metadata[_CONFIRMED] = True


def _is_confirmed(step: Tensor) -> bool:
    return step.grad_fn is not None and all(
        _CONFIRMED in node.metadata for node in _steps_of([step.grad_fn])
    )


def _is_product(tensor: Tensor) -> bool:
    """Whether a tensor is a sum of products of two input-dependent tensors."""
    node = tensor.grad_fn
    while node is not None:
        before = parents(node)
        if len(before) == 2:
            return node_name(node) in ("Bmm", "Mm", "Mul")
        if len(before) != 1 or not (node_name(node) in KEEP_ENTRIES or node_name(node) == "Sum"):
            return False
        node = before[0]
    return False


def resolve(
    operands: Sequence[Tensor], labels: Sequence[frozenset[str]] | None, elementwise: bool
) -> tuple[int | None, str] | None:
    """Which operand of a product is the signal, and the role of the result.

    Args:
        operands (sequence of Tensor): The input-dependent factors.
        labels (sequence of frozenset of str, optional): Letters of each in an einsum, and last of
            the result.
        elementwise (bool): Whether the factors are multiplied entry by entry.

    Returns:
        None if this is no product of a state space model; else the position of the signal (None if
        unclear) and the role of the result.
    """
    roles = [role(t) for t in operands]
    if not any(roles):
        return None
    coefficients = [i for i, r in enumerate(roles) if r in ("step", "decay")]
    others = [i for i in range(len(roles)) if i not in coefficients]
    states = [i for i in others if roles[i] == "state"]
    scaled = [i for i in others if roles[i] == "scaled"]
    free = [i for i in others if roles[i] is None]
    kernels = [i for i in others if roles[i] == "kernel"]
    decays = [i for i, r in enumerate(roles) if r in ("decay", "decayed")]
    unclear = (None, UNCLEAR)

    if UNCLEAR in roles or not others or len(states) > 1 or len(scaled) > 1:
        return unclear
    if not coefficients and not states and not kernels and not decays and not scaled:
        return None  # outputs of a scan meet something else: a gate
    if states:
        if scaled or kernels or "step" in roles:
            return unclear
        return states[0], "state" if len(others) == 1 else "output"
    if len(operands) == 2 and coefficients:
        return _scaled_by(operands, roles, coefficients[0], elementwise)
    if kernels:
        signal = scaled or free
        return (signal[0], "output") if len(signal) == 1 and len(others) == 2 else unclear
    if scaled and (decays or len(free) == 2):
        return scaled[0], "output" if len(free) == 2 else "state"
    if len(operands) == 2 and scaled and free:
        return _written(operands, scaled[0], free[0], labels, elementwise)
    if labels is not None and len(coefficients) == 1 and len(free) == 2:
        # D_t B_t x_t in one product: the signal has the channels of its step size, B has not
        letters = labels[coefficients[0]]
        signal = [i for i in free if letters <= labels[i]]
        return (signal[0], "state") if len(signal) == 1 else unclear
    return unclear


def _scaled_by(
    operands: Sequence[Tensor], roles: Sequence[str | None], coefficient: int, elementwise: bool
) -> tuple[int | None, str] | None:
    """A step size or a decay times one other tensor."""
    other = 1 - coefficient
    before = roles[other]
    if roles[coefficient] == "decay":
        if before in ("output", "scaled", "decayed", "kernel"):
            return other, before
        return other, "kernel" if _is_product(operands[other]) else "decayed"
    if before == "kernel":
        return other, "kernel"
    if not elementwise or before is not None:
        return None, UNCLEAR
    step = operands[coefficient]
    if step.shape == operands[other].shape and not _is_confirmed(step):
        return None  # softplus(a) * b is a gated linear unit
    return other, "scaled"


def _written(
    operands: Sequence[Tensor],
    scaled: int,
    free: int,
    labels: Sequence[frozenset[str]] | None,
    elementwise: bool,
) -> tuple[int | None, str]:
    """What a step writes to the state: ``(D B) x`` or ``(D x) B``.

    In the former the factor ``D B`` has every dimension of the state already.
    """
    if labels is not None:
        is_full, other_is_full = labels[scaled] >= labels[-1], labels[free] >= labels[-1]
    elif elementwise:
        shape = torch.broadcast_shapes(*(t.shape for t in operands))  # type: ignore[no-untyped-call]
        is_full, other_is_full = operands[scaled].shape == shape, operands[free].shape == shape
    else:
        return None, UNCLEAR
    if other_is_full:
        return None, UNCLEAR
    return (free if is_full else scaled), "state"
