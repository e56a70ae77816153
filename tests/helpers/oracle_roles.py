"""What the rules hold constant in a graph: patterns, factors that weigh, normalisers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import fx

import oracle_entrywise
import oracle_lrp
from oracle_graph import (
    RESHAPE,
    SOFTMAX,
    VIEW,
    OracleTrace,
    aten,
    name_of,
    operands_of,
)

_PRODUCT = aten("bmm mm matmul baddbmm addmm")
_TRANSPARENT = RESHAPE | aten(
    """dropout native_dropout masked_fill masked_fill_ where nan_to_num slice select split
    split_with_sizes unbind constant_pad_nd as_strided unfold"""
)
_SUM = aten("add add_ sub sub_")
_REDUCTION = aten("mean sum var var_mean std std_mean linalg_vector_norm norm")
_SELF_REDUCING_ROOT = aten("std std_mean linalg_vector_norm norm")
_ROOT = aten("rsqrt rsqrt_ sqrt sqrt_")
_POWER = {"aten::pow", "aten::pow_"}
_EPSILON = aten("add add_ sub clamp clamp_ clamp_min clamp_min_ maximum mul div mul_ div_")
_SCALING = aten("mul mul_ div div_")
_LINEAR_MAP = _PRODUCT | {"aten::linear", "aten::convolution", "aten::einsum"}
#: Element-wise functions that make the feature maps of linear attention.
_FEATURE_MAP = aten("relu relu_ sigmoid exp gelu silu silu_ elu elu_ softplus hardsigmoid")


def feeds_product(softmax: fx.Node, depends: set[fx.Node]) -> bool:
    """Whether the softmax output reaches a product with values that are no weight."""
    seen: set[fx.Node] = set()
    todo = [softmax]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        for user in node.users:
            name = name_of(user)
            if name in _PRODUCT:
                factors = list(user.args[-2:])
                others = [factor for factor in factors if factor is not node]
                if not any(_is_weight(factor) for factor in others):
                    return True
            if name in _LINEAR_MAP:
                if operands_of(user, depends) == [node]:
                    todo.append(user)
                continue
            if name in ("aten::div", "aten::div_") and user.args[0] is node:
                todo.append(user)  # renormalised by its own sums
                continue
            if name in _SUM:  # of patterns (differential attention), or of a pattern and constants
                if all(_is_softmaxes(o, depends) for o in operands_of(user, depends)):
                    todo.append(user)
                continue
            by_constant = name in _SCALING and operands_of(user, depends) == [node]
            if by_constant or name in _TRANSPARENT or name in ("getitem", "aten::cat"):
                todo.append(user)
    return False


def _is_softmaxes(node: fx.Node, depends: set[fx.Node]) -> bool:
    return all(name_of(origin) in SOFTMAX for origin in origins_of(node, depends, {}))


def is_sink(node: fx.Node, depends: set[fx.Node]) -> bool:
    """``sigmoid(logsumexp(scores) - sink)``: what a softmax with one more entry leaves."""
    if name_of(node) != "aten::sigmoid":
        return False
    while True:
        operands = operands_of(node, depends)
        if len(operands) != 1:
            return False
        node = operands[0]
        if name_of(node) == "aten::logsumexp":
            return True
        if name_of(node) not in RESHAPE and name_of(node) not in _EPSILON:
            return False


def _is_weight(node: Any) -> bool:
    """Whether a factor is a parameter, perhaps reshaped: no values of an attention head."""
    while isinstance(node, fx.Node):
        if node.op == "get_attr":
            return True
        if name_of(node) not in RESHAPE:
            return False
        node = node.args[0]
    return True


def weights_of(trace: OracleTrace, depends: set[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Factors that weigh the other factor of a product although no softmax made them.

    Take ``out = f(q) (f(k)^T v)`` apart. In the inner product ``f(k)`` alone is a feature map, and
    ``v``, which is no product of its own, is what it weighs. The outer product has a weighted sum
    of values for one factor; the other factor, whatever it is, weighs that sum. What divides such
    a sum is part of its weights. Activated scores ``f(q k^T)`` weigh whatever they multiply.
    """
    found = _Attention(trace, depends)
    for node in trace.graph.nodes:
        if node in depends and name_of(node) in _PRODUCT | _SCALING:
            found.judge(node)
    return found.weights


_SOLVE = "aten::linalg_solve_triangular"
_PARTS = aten("split split_with_sizes unbind") | {"getitem"}


def delta_rule_weights(nodes: Iterable[fx.Node], depends: set[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Factors that weigh values in the gated delta rule.

    ``solve(scores, values)`` is linear in the values, and so is whatever multiplies its result, or
    sums made of it, before the next weight matrix. Keys, by having made the scores, are no values.
    """
    weights: dict[fx.Node, fx.Node] = {}
    keys: set[fx.Node] = set()
    sums: set[fx.Node] = set()
    for node in nodes:
        if node not in depends:
            continue
        name, operands = name_of(node), operands_of(node, depends)
        if name == _SOLVE and len(operands) == 2:
            scores = [n for n in _behind(operands[0], depends) if name_of(n) in _PRODUCT]
            keys.update(
                k for s in scores for o in operands_of(s, depends) for k in _behind(o, depends)
            )
            if not any(
                name_of(n) not in _PRODUCT and n in keys for n in _behind(operands[1], depends)
            ):
                weights[node] = operands[0]
                sums.add(node)
        elif name in _PRODUCT and len(operands) == 2:
            if (operands[0] in sums) != (operands[1] in sums):
                weights[node] = operands[0] if operands[1] in sums else operands[1]
                sums.add(node)
        elif (
            name in ("aten::mul", "aten::mul_")
            and len(operands) == 2
            and (any(o in sums for o in operands) and any(_is_decay(o) for o in operands))
        ):
            weights[node] = next(o for o in operands if _is_decay(o))
            sums.add(node)
        elif any(o in sums for o in operands) and (
            name in _TRANSPARENT | _SCALING | {"aten::add", "aten::sub", "aten::cat", "getitem"}
        ):
            sums.add(node)
        if name == "aten::copy_" and node in sums:
            written: Any = node.args[0]  # a slice of the result
            while isinstance(written, fx.Node) and written not in sums:
                sums.add(written)
                written = written.args[0] if name_of(written) in VIEW else None
    return weights


def _is_decay(node: fx.Node) -> bool:
    while name_of(node) in _TRANSPARENT and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return name_of(node) == "aten::exp"


def _behind(node: fx.Node, depends: set[fx.Node]) -> set[fx.Node]:
    """The nodes that a tensor was moved and scaled through, down to what made its entries."""
    found: set[fx.Node] = set()
    todo = [node]
    while todo:
        current = todo.pop()
        name = name_of(current)
        if current in found or name in _PARTS:
            continue
        if name not in _TRANSPARENT | _SCALING | {"aten::constant_pad_nd"}:
            if name in _PRODUCT:
                found.add(current)
            continue
        found.add(current)
        operands = operands_of(current, depends)
        strengths = [oracle_lrp.gate_strength(o, depends) for o in operands]
        todo.extend(o for o, s in zip(operands, strengths, strict=True) if s == min(strengths))
    return found


class _Attention:
    """The products seen so far, by what they are for."""

    def __init__(self, trace: OracleTrace, depends: set[fx.Node]) -> None:
        self.depends, self.softmaxes = depends, set(trace.patterns)
        self.weights: dict[fx.Node, fx.Node] = {}
        self.sums: set[fx.Node] = set()  # products that sum values
        self.scores: set[fx.Node] = set()  # products of two tensors neither of which is a weight
        self.patterns: set[fx.Node] = set()  # those of them that multiply two feature maps

    def judge(self, node: fx.Node) -> None:
        factors = list(node.args[-2:] if name_of(node) in _PRODUCT else node.args[:2])
        if not all(factor in self.depends for factor in factors):
            return
        origins = [origins_of(factor, self.depends, self.weights) for factor in factors]
        summed = [bool(o) and o <= self.sums for o in origins]
        if name_of(node) in _SCALING:
            inverse = [name_of(node).startswith("aten::div")] * 2
            if not inverse[0]:
                inverse = [all(name_of(n) == "aten::reciprocal" for n in o) for o in origins]
            if summed[0] and inverse[1]:
                self.weights[node] = factors[1]
            elif summed[1] and inverse[0] and not name_of(node).startswith("aten::div"):
                self.weights[node] = factors[0]
            return
        softmaxes = [bool(o) and o <= self.softmaxes for o in origins]
        if any(softmaxes):
            if not all(softmaxes):
                self.sums.add(node)
            return
        features = [bool(o) and all(name_of(n) in _FEATURE_MAP for n in o) for o in origins]
        activated = [f and self._of_scores(o) for f, o in zip(features, origins, strict=True)]
        patterns = [bool(o) and o <= self.patterns for o in origins]
        if patterns == [False, True]:  # q @ (f(k)^T f(v)): the rows that q reads are the keys'
            for inner in origins[1]:
                self.weights[inner] = inner.args[-2]
                self.patterns.discard(inner)
            self.weights[node] = factors[0]
            self.sums.add(node)
            return
        for signs in (patterns, summed[::-1], activated, features):
            if signs[0] != signs[1]:
                side = signs.index(True)
                if signs is features and origins[1 - side] & self.scores:
                    break
                self.weights[node] = factors[side]
                self.sums.add(node)
                return
        self.scores.add(node)
        if all(features):
            self.patterns.add(node)

    def _of_scores(self, activations: set[fx.Node]) -> bool:
        behind = [origins_of(n.all_input_nodes[0], self.depends, self.weights) for n in activations]
        return all(bool(o) and o <= self.scores for o in behind)


def origins_of(
    node: fx.Node, depends: set[fx.Node], weights: dict[fx.Node, fx.Node]
) -> set[fx.Node]:
    """The nodes from which a factor was made by moving, masking, scaling and joining entries,
    and, from a softmax, by linear maps with constants."""
    found: set[fx.Node] = set()
    todo, seen = [node], set()
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        name, operands = name_of(current), operands_of(current, depends)
        if name in _SCALING and current in weights:
            operands = [o for o in operands if o is not weights[current]]
        elif name in ("aten::div", "aten::div_"):
            if oracle_entrywise.is_own_sum(current):
                found.add(current)
                continue
            operands = [o for o in operands if o is current.args[0]]
        passes = name in _TRANSPARENT or name in ("getitem", "aten::cat", "aten::constant_pad_nd")
        passes = passes or name in _SUM
        passes = passes or (name in _SCALING and len(operands) == 1)
        if passes and operands:
            todo.extend(operands)
        elif name in _LINEAR_MAP and len(operands) == 1:
            behind = origins_of(operands[0], depends, weights)
            mixed = bool(behind) and all(name_of(n) in SOFTMAX for n in behind)
            found |= behind if mixed else {current}
        else:
            found.add(current)
    return found


def _is_root(node: fx.Node) -> bool:
    name = name_of(node)
    if name in _ROOT or name in _SELF_REDUCING_ROOT:
        return True
    return name in _POWER and len(node.args) == 2 and node.args[1] in (0.5, -0.5)


def is_normaliser(node: fx.Node, depends: set[fx.Node]) -> bool:
    if not _is_root(node):
        return False
    if name_of(node) not in _SELF_REDUCING_ROOT and not _comes_from_reduction(node, depends):
        return False
    return _scales_dependent(node, depends)


def _comes_from_reduction(root: fx.Node, depends: set[fx.Node]) -> bool:
    """Whether the value under the root is a reduction, up to epsilons, casts and reshaping."""
    node = root
    while True:
        operands = operands_of(node, depends)
        if len(operands) != 1:
            return False
        node = operands[0]
        name = name_of(node)
        if name in _REDUCTION:
            return True
        if name not in RESHAPE and name not in _EPSILON and name != "getitem":
            return False


def _scales_dependent(root: fx.Node, depends: set[fx.Node]) -> bool:
    """Whether the value divides or multiplies something else that depends on the inputs."""
    todo, seen = [root], set()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        for user in node.users:
            name = name_of(user)
            if name in _SCALING and len(operands_of(user, depends)) > 1:
                return True
            by_constant = name in _EPSILON and operands_of(user, depends) == [node]
            if by_constant or name in RESHAPE or name in ("getitem", "aten::reciprocal"):
                todo.append(user)
    return False
