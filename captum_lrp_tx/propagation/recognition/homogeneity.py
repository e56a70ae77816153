"""Norms by homogeneity: what is divided does not change when its source is scaled.

A norm is the product or quotient of something with a reduced, non-linear statistic that makes the
degree (:mod:`.degrees`) zero::

    x / sqrt(mean(x ** 2) + eps)        degree 1 - 2 * 1/2 = 0
    x * exp(-0.5 * log(x ** 2 @ ones))  the same
    x * sqrt(mean(x ** 2))              degree 2: no norm
    y / sqrt(mean(x ** 2))              degree -1 in x: a norm of something else

A new spelling is one more name in one of the sets of :mod:`.degrees`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from torch import Tensor

from captum_lrp_tx.propagation.graph import KEEP_ENTRIES, Node, is_softmax, node_name
from captum_lrp_tx.propagation.recognition.degrees import (
    CHOSEN,
    Degree,
    Degrees,
    Search,
    Source,
    differs,
    product,
)

_WEIGHTS = frozenset({"Sigmoid", "Hardsigmoid"})
#: Norms by name, of whatever was multiplied before.
_LENGTHS = frozenset({"LinalgVectorNorm", "Norm", "Std"})
#: Where the node of a product notes that a norm was taken in several steps, and this is the last.
IN_STEPS = "captum_lrp_tx.norm_in_steps"
#: Where the node of a quotient notes that it compares norms and was multiplied with nothing yet.
IS_RATIO = "captum_lrp_tx.ratio_of_norms"


class Normalising(Enum):
    """How a statistic normalises what it divides."""

    WHOLE = "at once"
    LAST_STEP = "after a part of the norm was taken: x * m ** -0.25 * m ** -0.25"


def normalises(
    degrees: Degrees, statistic: Tensor, others: Sequence[Tensor], quotient: bool
) -> Normalising | None:
    """Whether ``statistic`` normalises the other factors of a product (or their quotient).

    Args:
        degrees (Degrees): What is known of the graph.
        statistic (Tensor): The factor, or the divisor.
        others (sequence of Tensor): The remaining input-dependent factors.
        quotient (bool): Whether ``statistic`` divides.
    """
    if statistic.grad_fn is None:
        return None
    if len(others) == 1 and _is_of(degrees, statistic, others[0], quotient):
        return Normalising.WHOLE
    for search in (degrees.shallow, degrees.deep, degrees.through_norms):
        found = search.degree(statistic.grad_fn, statistic.output_nr)
        if search is degrees.through_norms and not (found.is_past_norm and found.of):
            return None
        reduced = found.is_reduced or statistic.numel() < max(o.numel() for o in others)
        modulus = any(o.is_complex() for o in others) and not statistic.is_complex()
        by_pieces = not found.is_nonlinear and found.is_piecewise and len(others) == 1
        if not (found.is_nonlinear or by_pieces) or not (reduced or modulus):
            return None
        if found.is_shifted and not found.is_pooled:
            return None
        if not found.of and found.is_reduced and found.is_nonlinear:
            return Normalising.WHOLE  # norms compared with their own mean (global response norm)
        if all(map(is_weight, found.of)):
            return None  # weights of a mixture in units of their own size, sum or norm
        sign = 1.0 if quotient else -1.0
        factors = product([search.degree(o.grad_fn, 0) for o in others if o.grad_fn is not None])
        if not search.deep and factors.is_nonlinear and factors.is_reduced:
            return None  # a ratio of norms: what it multiplies decides
        if all(_cancels(factors.of.get(n, 0.0), sign * d, found) for n, d in found.of.items()):
            if by_pieces and differs(factors, product([found], (sign,))):
                return None  # relu(x) * y / relu(x).sum(): something else was weighed
            return Normalising.LAST_STEP if factors.is_mixed else Normalising.WHOLE
    return None


def _is_of(degrees: Degrees, statistic: Tensor, factor: Tensor, quotient: bool) -> bool:
    """Whether a statistic is one of the very factor that it normalises, however that was made.

    Seen from further back, a gated and projected factor (``(a * b) @ w``) is a statistic itself.
    """
    if statistic.grad_fn is None or factor.grad_fn is None:
        return False
    searches = degrees.shallow, degrees.deep  # the second looks at more
    if not any(s.degree(statistic.grad_fn, statistic.output_nr).is_nonlinear for s in searches):
        return False  # of nothing
    behind = degrees.shallow.degree(factor.grad_fn, factor.output_nr)
    if all(map(is_weight, behind.of)):
        return False
    source = moved(factor.grad_fn, factor.output_nr)
    sources = [source]
    if node_name(source[0]) in ("Add", "Sub"):  # centred: of what the mean was taken
        sources += [moved(*edge) for edge in source[0].next_functions[:1] if edge[0] is not None]
    sign = 1.0 if quotient else -1.0
    for one in sources:
        search, alone = Search(source=one), {Source.at(one[0])}
        own = search.degree(factor.grad_fn, factor.output_nr)
        found = search.degree(statistic.grad_fn, statistic.output_nr)
        reduced = found.is_reduced or statistic.numel() < factor.numel()
        if set(own.of) != alone or own.is_nonlinear or set(found.of) != alone:
            continue
        (at,) = alone
        if abs(found.of[at] * sign - own.of[at]) < 1e-3 and found.is_nonlinear and reduced:
            return not found.is_shifted
    return False


def are_weights(factor: Tensor, statistic: Tensor, quotient: bool) -> bool:
    """Whether something is divided by its own sum: ``a / a.sum()`` are weights, ``a`` their size.

    So is the energy ``x ** 2 / (x ** 2).sum()``.

    Args:
        factor (Tensor): What is divided.
        statistic (Tensor): The divisor, or its reciprocal if it is no ``quotient``.
        quotient (bool): Whether ``statistic`` divides.
    """
    if statistic.grad_fn is None or factor.grad_fn is None or factor.numel() <= statistic.numel():
        return False
    if not quotient and node_name(moved(statistic.grad_fn, 0)[0]) not in ("Reciprocal", "Div"):
        return False
    source = moved(factor.grad_fn, factor.output_nr)
    found = Search(source=source).degree(statistic.grad_fn, statistic.output_nr)
    is_linear = not found.is_nonlinear and not found.is_piecewise and not found.is_shifted
    of = {Source.at(source[0]): 1.0 if quotient else -1.0}
    return is_linear and found.is_reduced and found.of == of


def moved(node: Node, output: int) -> tuple[Node, int]:
    """Where a tensor comes from, before it was viewed or cast."""
    while node_name(node) in KEEP_ENTRIES and CHOSEN not in node.metadata:
        edges = [(e, i) for e, i in node.next_functions if e is not None]
        if len(edges) != 1:
            break
        node, output = edges[0]
    return node, output


def is_statistic(tensor: Tensor, degrees: Degrees) -> bool:
    """Whether a tensor is a norm, or one over a norm, of something; or a ratio of norms."""
    if tensor.grad_fn is None:
        return False
    found = degrees.shallow.degree(tensor.grad_fn, 0)
    lengths = all(abs(abs(d) - 1) < 1e-3 for d in found.of.values())
    return found.is_nonlinear and found.is_reduced and lengths


def is_weight(source: Source) -> bool:
    """Whether a node makes the weights of a mixture."""
    return is_softmax(source.name) or source.name in _WEIGHTS


def is_known(statistic: tuple[Node, int], source: tuple[Node, int]) -> bool:
    """Whether the degree of a statistic in its source is told by names, so that it is no norm."""
    found = Search(deep=True, source=source).degree(*statistic)
    return set(found.of) <= {Source.at(source[0])}


def is_ratio(degrees: Degrees, numerator: Tensor, divisor: Tensor, quotient: bool) -> bool:
    """Whether norms are compared with their own mean, as global response norm does.

    If it is no ``quotient``, the divisor is given by its reciprocal.
    """
    if numerator.grad_fn is None or divisor.grad_fn is None:
        return False
    search = degrees.shallow
    below = product([search.degree(divisor.grad_fn, 0)], (1.0 if quotient else -1.0,))
    if not (below.is_nonlinear and below.is_reduced):
        return False
    above = search.degree(numerator.grad_fn, 0)
    # not scores and their sums, which grow with queries and with keys
    is_one = len(above.of) == 1 or node_name(moved(numerator.grad_fn, 0)[0]) in _LENGTHS
    lengths = is_one and all(abs(d - 1) < 1e-3 for d in above.of.values())
    if not (lengths and above.is_nonlinear and above.is_reduced) or differs(above, below):
        return False
    # the largest of neighbours are a statistic, too, and have a norm like anything else
    return not _is_of(degrees, divisor, numerator, quotient)


def _cancels(numerator: float, divisor: float, found: Degree) -> bool:
    if found.is_pooled and found.is_shifted:  # (k + alpha * mean of squares) ** beta
        return numerator > 0 and 0 < divisor < 2 * numerator
    return abs(numerator - divisor) < 1e-3 and divisor > 0
