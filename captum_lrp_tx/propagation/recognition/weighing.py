"""Which factor of a product weighs the other: attention, linear attention, mixtures, products.

==================  ============================================================================
softmax attention   weights that sum to one along an axis of the data (tokens, channels, neighbours)
                    meet values along that axis
mixture             the same along an axis that only parameters have on both sides (experts, bases):
                    a router, which stays as it is
scores              ``f(q @ k.T) @ v``: activated scores meet values along an axis of the data;
                    attention without a softmax
linear attention    ``f(q) @ (f(k).T @ v)``: a feature map meets values along an axis of the data,
                    and a query reads the sum along the channels of the keys
plain               everything else: two towers, biaffine layers, hypernetworks, Gram matrices
==================  ============================================================================

Linear attention (Katharopoulos et al. 2020; with a softmax over the tokens for ``f(k)`` the
factorised attention of CoaT; lambda layers) never forms its pattern ``f(q) @ f(k).T``.  Holding
that constant, as the rule for attention heads does, means that ``f(q)`` and ``f(k)`` are constants
and all relevance goes to the values.  Whether ``f(k).T @ v`` is half of it shows only when a query
reads it; until then it is *undecided*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from captum_lrp_tx.propagation.graph import (
    BOUNDS,
    KEEP_ENTRIES,
    MASKS,
    Node,
    gate_strength,
    is_activation,
    node_name,
    parents,
)
from captum_lrp_tx.propagation.recognition import axes, patterns, recurrence
from captum_lrp_tx.propagation.recognition.axes import Origin
from captum_lrp_tx.propagation.recognition.contracted import Contraction, contraction_of
from captum_lrp_tx.propagation.recognition.rescaling import MATMUL
from captum_lrp_tx.propagation.recognition.summaries import (
    KEPT,
    keys_at,
    leads_to,
    picked_key,
    summaries_of,
    walk_to,
)
from captum_lrp_tx.propagation.recognition.undecided import Weighed

#: Where the node of a softmax notes that a product with it was seen.
SEEN = "captum_lrp_tx.seen"
#: Functions of single entries.
_FUNCTIONS = frozenset("Pow Sqrt Rsqrt Log Exp Relu Abs Sigmoid Tanh Softplus Reciprocal".split())
_ENTRYWISE = _FUNCTIONS | frozenset("Rsub Topk Sort Scatter ScatterAdd IndexAdd".split())
_REDUCED = frozenset("Sum Mean Amax Amin Max Min Logsumexp Std Var LinalgVectorNorm".split())
#: What joins scores, or shifts and scales them by something else that was computed.
_OF_SCORES = KEEP_ENTRIES | MASKS | BOUNDS | frozenset("Add Sub Mul Div Cat Stack".split())
_MAX_NODES = 4000


@dataclass(frozen=True)
class Weighing:
    """What a product is.

    Attributes:
        weights (tuple of int): Positions of the factors that weigh the others.
        proposed (tuple of int): Positions of factors each of which may turn out to.
        mixes (int, optional): Position of the weights of a mixture.
        shares (dict, optional): Of the factors of linear attention whose keys have had theirs.
        is_pattern (bool): Whether the result is a pattern without a softmax, ``f(q) @ f(k).T``.
        is_untold (bool): Whether a softmax made a factor in a way that no rule knows.
        what (str): In words, if it is more than a product.
    """

    weights: tuple[int, ...] = ()
    proposed: tuple[int, ...] = ()
    mixes: int | None = None
    shares: dict[int, float] | None = None
    is_pattern: bool = False
    is_untold: bool = False
    what: str = ""


def weighing_of(func: Any, args: Sequence[Any], factors: Sequence[int]) -> Weighing:
    """What a product of two or more input-dependent tensors is.

    Args:
        func (callable): The product, which tells what axes it sums over.
        args (sequence): Its arguments.
        factors (sequence of int): Positions of the input-dependent ones.
    """
    how = contraction_of(func, args)
    found = {i: p for i in factors if (p := patterns.pattern_of(args[i])) is not None}
    for pattern in found.values():
        pattern.source.metadata[SEEN] = True
    met = {i: _meets(p, i, args, factors, how) for i, p in found.items()}
    weights = tuple(i for i, what in met.items() if what == "attention")
    if weights and len(weights) < len(factors):
        # a softmax over channels is a query, too, of keys that wait for it
        read = _reads(args, factors, how)
        return read or Weighing(weights, what="softmax attention")
    mixes = [i for i, what in met.items() if what == "mixture"]
    if len(mixes) == 1:
        return Weighing(mixes=mixes[0], what="mixture")
    read = _reads(args, factors, how)
    if read is not None:
        return read
    if len(factors) == 3:
        maps = tuple(i for i in factors if i in found or gate_strength(args[i]))
        others = [i for i in factors if i not in maps]
        if len(others) == 1 and is_of_data(args[others[0]], others[0], how):
            shares = {**dict.fromkeys(maps, 0.25), others[0]: 0.5}
            return Weighing(maps, shares=shares, what="linear attention (convention)")
    if len(factors) != 2:
        return Weighing()
    scores = [
        i for i in factors
        if leads_to(args[i], is_activated_score) and is_of_data(args[i], i, how)
    ]  # fmt: skip
    features = scores or [i for i in factors if i in found or gate_strength(args[i])]
    if len(features) == 2 and not _is_along_data(args, features, how):
        return Weighing(is_pattern=True)
    values = [i for i in factors if i not in features]
    if len(features) == 1 and leads_to(args[values[0]], _is_score):
        return Weighing()
    if len(scores) == 1:
        return Weighing((scores[0],), what="attention without a softmax (convention)")
    for i in factors:
        if i not in weights and how is not None and is_of_data(args[i], i, how):
            if i not in found and is_of_patterns(args[i]):
                return Weighing((i,), what="function of attention patterns alone (convention)")
            if _sums_to_one(args[i], how.summed(i)):
                return Weighing((i,), what="weights that sum to one, as their values tell")
    untold = any(
        i not in found
        and is_of_softmax(args[i].grad_fn)
        and is_of_data(args[i], i, how)
        and not _is_kernel(args[i])
        for i in factors
    )
    proposed = tuple(features) if _is_along_data(args, features, how) else ()
    return Weighing(proposed=proposed, is_untold=untold)


def is_of_patterns(tensor: Tensor, entry_by_entry: bool = False) -> bool:
    """Whether a tensor is a function of patterns and of nothing else, learned weights included.

    Patterns without a softmax, which are activated scores, count (stick-breaking attention).

    Args:
        tensor (Tensor): The tensor.
        entry_by_entry (bool): Whether what patterns were reduced to (their largest entry) counts
            as something else.
    """
    todo: list[Any] = [tensor.grad_fn]
    seen, search = set[Node](), patterns.Search()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if search.is_of_data(node) or is_activated_score(node):
            continue
        before = parents(node)
        if not before or len(seen) > _MAX_NODES or axes.is_linear_map(node):
            return False
        if entry_by_entry and node_name(node) in _REDUCED:
            return False
        todo.extend(before)
    return True


def _sums_to_one(weights: Tensor, axes_summed: list[int]) -> bool:
    """Whether what no name tells (sparsemax, entmax) are weights, along the axis summed over."""
    if len(axes_summed) != 1 or not patterns.mark_if_ones(weights, None):
        return False
    pattern = patterns.pattern_of(weights)
    return pattern is not None and pattern.axis == axes_summed[0] + weights.dim()


def is_of_softmax(root: Node | None) -> bool:
    """Whether the entries of a result are those of a pattern, put through other functions.

    Of a sum all parts must be, or it is the argument of a function; the weights of a router are no
    pattern.
    """
    known, search = dict[tuple[Node, bool], bool](), patterns.Search()
    todo = [] if root is None else [(root, False)]
    while todo and len(todo) + len(known) < _MAX_NODES:
        node, inside = one = todo[-1]
        name, before = node_name(node), parents(node)
        if one in known:
            todo.pop()
            continue
        if search.is_of_data(node):
            known[one] = True
            continue
        if not before or (name not in KEPT and name not in _ENTRYWISE):
            known[one] = False
            continue
        behind = [(parent, inside or name in _FUNCTIONS) for parent in before]
        suffices = inside or name in ("Mul", "Div")  # one of them, or all are needed
        if any(known.get(other) is suffices for other in behind):
            known[one] = suffices
        elif missing := [other for other in behind if other not in known]:
            todo.append(missing[0])
        else:
            known[one] = not suffices
    return known.get((root, False), False)


def _is_kernel(tensor: Tensor) -> bool:
    """Whether products of a state space model's coefficients decay, ``C_t (decays) B_s``.

    They are as plain as in its recurrence, step by step, which has no pattern.
    """
    product = axes.moved(tensor)
    while product is not None and node_name(product) == "Undecided":
        product = axes.moved(parents(product)[0])
    if product is None or node_name(product) != "Mul" or len(parents(product)) != 2:
        return False
    factors, search = parents(product), patterns.Search()
    decays = [node for node in factors if recurrence.role_of(node) == "decay"]
    others = [search.of(node) for node in factors if node not in decays]
    return len(decays) == 1 and all(o is not None and o.logits is None for o in others)


def _meets(
    pattern: patterns.Pattern,
    position: int,
    args: Sequence[Any],
    factors: Sequence[int],
    how: Contraction | None,
) -> str:
    """What a pattern is in a product: attention, the router of a mixture, or something else."""
    if pattern.is_entry:
        return ""
    others = [i for i in factors if i != position]
    if pattern.axis is None or how is None or len(others) != 1:
        return "attention"
    axis = pattern.axis - args[position].dim()
    if axis not in how.summed(position):
        return ""
    (other,) = others
    if not pattern.is_made_by_parameters:
        return "attention"
    there = how.axis_in(position, other, axis)
    if there is None:  # among constants: the experts of einsum("e,eij,j->i")
        return "mixture"
    if _is_read(args[other], there):
        return "attention"
    is_mixed = axes.origin(args[other], there, through_scores=True) is Origin.PARAMETERS
    return "mixture" if is_mixed else "attention"


def _is_read(tensor: Tensor, axis: int) -> bool:
    """Whether an axis of values that were summed with weights is the channels of their keys."""
    return any(keys_at(*found, axis) for found in summaries_of(tensor))


def _reads(args: Sequence[Any], factors: Sequence[int], how: Contraction | None) -> Weighing | None:
    """Whether queries read values that were summed with keys."""
    for i in factors:
        others = [j for j in factors if j != i]
        along = [None] if how is None else how.summed(i)
        for summary, steps in summaries_of(args[i]):
            for axis in along:
                key = keys_at(summary, steps, axis)
                if key is None:
                    continue
                shares = None
                if not summary.is_certain:
                    if not any(gate_strength(args[j]) or patterns.is_pattern(args[j])
                               for j in others):  # fmt: skip
                        continue
                    for one, _ in summaries_of(args[i]):
                        if one.weighed is not None:
                            one.weighed.confirm(key)
                if summary.for_query is not None and len(others) == 1:
                    shares = {others[0]: 0.25, i: 0.75}
                return Weighing(tuple(others), shares=shares, what="linear attention (convention)")
    return None


@dataclass(frozen=True)
class Reading:
    """A query that may read values summed with keys, entry by entry: ``(q * s).sum(k)``.

    Attributes:
        query (int): Its position, 0 or 1.
        axis (int, optional): The channels of the keys, from the right; None if it is one of them.
        key (int): The meaning of the product of keys and values.
        sums (list of Weighed): The products of keys and values.
    """

    query: int
    axis: int | None
    key: int
    sums: list[Weighed]


def reading_of(first: Tensor, second: Tensor) -> Reading | None:
    """Whether one of two factors may be a query of the other, entry by entry."""
    for query, one, other in ((0, first, second), (1, second, first)):
        found = summaries_of(other)
        for summary, steps in found:
            if not (summary.is_certain or gate_strength(one) or patterns.is_pattern(one)):
                continue
            sums = [w for s, _ in found if (w := s.for_query) is not None]
            key = picked_key(summary, steps)
            if key is not None:
                return Reading(query, None, key, sums)
            for axis in range(-min(one.dim(), other.dim()), 0):
                if one.shape[axis] != other.shape[axis] or one.shape[axis] == 1:
                    continue
                key = keys_at(summary, steps, axis)
                if key is not None:
                    return Reading(query, axis, key, sums)
    return None


def is_of_data(tensor: Tensor, position: int, how: Contraction | None) -> bool:
    """Whether a factor is summed over an axis of the data."""
    if how is None:
        return True
    summed = how.summed(position)
    return bool(summed) and all(
        axes.origin(tensor, axis, through_scores=True) is Origin.DATA for axis in summed
    )


def _is_along_data(args: Sequence[Any], positions: Sequence[int], how: Contraction | None) -> bool:
    """Whether feature maps meet their values along positions of the data, or are not summed yet."""
    if how is None:
        return False
    return all(not how.summed(i) or is_of_data(args[i], i, how) for i in positions)


def _is_score(node: Node) -> bool:
    """Whether a node compares two of what the inputs made, joined with others or shifted since."""
    todo, seen = [node], set[Node]()
    while todo and len(seen) < _MAX_NODES:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        name, before = node_name(node), parents(node)
        if name in MATMUL and len(before) > 1:
            return True
        if name == "Sum" and (product := _product(before[0])) is not None:
            first, second = parents(product)
            return first is not second
        if name in _OF_SCORES:
            todo.extend(before)
    return False


def _product(node: Node) -> Node | None:
    """The product of two live factors that a node is, moved since."""
    found = axes.moved(node)
    is_product = found is not None and node_name(found) == "Mul" and len(parents(found)) == 2
    return found if is_product else None


def is_activated_score(node: Node) -> bool:
    """An activation of scores, also raised to a power or divided by its own sums."""
    before = parents(node)
    if node_name(node) in ("Pow", "Sqrt") or patterns.is_own_quotient(node):
        return walk_to(before[0], is_activated_score) is not None
    is_active = is_activation(node) or node_name(node) == "LogSigmoid"
    return is_active and any(walk_to(edge, _is_score) for edge in before)
