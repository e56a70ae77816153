"""Norms by homogeneity: what is divided does not change when its source is scaled.

Every tensor has a *degree* in each of its sources: 1 in itself, the sum of degrees for a product,
``k`` times the degree for a power ``k``; sums, reductions, views and casts keep it.  A norm is the
product or quotient of something with a reduced, non-linear statistic that makes the degree zero::

    x / sqrt(mean(x ** 2) + eps)        degree 1 - 2 * 1/2 = 0
    x * exp(-0.5 * log(x ** 2 @ ones))  the same
    x * sqrt(mean(x ** 2))              degree 2: no norm
    y / sqrt(mean(x ** 2))              degree -1 in x: a norm of something else

A new spelling is one more name in one of the sets below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from captum_lrp_tx.propagation.graph import KEEP_ENTRIES, Node, is_softmax, node_name

#: Keep the degree of their only input-dependent operand.
_KEEP = KEEP_ENTRIES | frozenset(
    """Abs Relu LeakyRelu Clamp ClampMin ClampMax Topk Sort Real Imag ViewAsReal
    ViewAsComplex DiagEmbed""".split()
)
#: Add up operands of one degree, or choose among them.
_SUMS = frozenset(
    "Add Sub Rsub Where Maximum Minimum Fmax Fmin Cat Stack Lerp Hypot".split()
)  # of two sources: a source of its own
_POOLED_EXTREMES = frozenset("MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D".split())
_EXTREMES = _POOLED_EXTREMES | frozenset(
    "Max Amax Min Amin Aminmax Cummax Median Maximum Hypot".split()
)
_REDUCTIONS = _POOLED_EXTREMES | frozenset(
    """Sum Mean Cumsum Nansum Max Amax Min Amin Aminmax Median Cummax Trace IndexAdd ScatterAdd
    ScatterReduce SegmentReduce""".split()
)
_SPREADS = frozenset("Std Var StdMean VarMean LinalgVectorNorm Norm LinalgSvd".split())
_POWERS = {"Sqrt": 0.5, "Rsqrt": -0.5, "Reciprocal": -1.0, "Sign": 0.0, "Sgn": 0.0}
_MATRIX_PRODUCTS = frozenset(
    "Mm Bmm Mv Dot Vdot Addmm Baddbmm Addmv Inner Einsum LinalgVecdot".split()
)
_POOLS = frozenset("AvgPool1D AvgPool2D AvgPool3D".split())
_LINEAR_MAPS = (
    _MATRIX_PRODUCTS
    | _POOLS
    | frozenset(
        """Convolution MkldnnConvolution LinearValue Substitute SpreadBias Stabilize
        Signed FftR2C FftC2C FftC2R""".split()
    )
)
_SUMMAND_FIRST = frozenset("Addmm Baddbmm Addmv".split())
_WEIGHTS = frozenset({"Sigmoid", "Hardsigmoid"})
#: Operations looked at for one tensor before what lies further back is a source.
_MAX_NODES = 300
_EXPONENT = "captum_lrp_tx.exponent"
_SHIFT = "captum_lrp_tx.shift"
_DIVISOR = "captum_lrp_tx.divisor"
#: Where the node of a product notes that a norm was taken in several steps, and this is the last.
IN_STEPS = "captum_lrp_tx.norm_in_steps"
#: From here on, a number added to a norm is no safeguard against division by zero.
_LARGE_SHIFT = 0.25


@dataclass(frozen=True)
class Degree:
    """Degrees of a tensor in its sources, and how it was made of them.

    Attributes:
        of (mapping of Node to float): The sources with a degree other than zero.
        is_nonlinear (bool): Whether a power, a modulus or an extreme was taken on the way.
        is_reduced (bool): Whether entries were combined after that.
        is_pooled (bool): Whether that was done over neighbours (local response norm).
        is_shifted (bool): Whether a number too large for a safeguard was added.
        is_mixed (bool): Whether something was multiplied or divided by a statistic.
    """

    of: dict[Node, float]
    is_nonlinear: bool = False
    is_reduced: bool = False
    is_pooled: bool = False
    is_shifted: bool = False
    is_mixed: bool = False


def note_shift(result: Any, number: Any) -> None:
    """Remember that a number was added that is no mere safeguard."""
    if isinstance(number, (int, float)) and abs(number) >= _LARGE_SHIFT:
        node: Node | None = getattr(result, "grad_fn", None)
        if node is not None:
            node.metadata[_SHIFT] = True


def is_shifted(node: Node) -> bool:
    """Whether a node adds a number that is no mere safeguard."""
    return bool(node.metadata.get(_SHIFT))


def note_norm(result: Any, statistic: Tensor, quotient: bool) -> None:
    """Remember what something was normalised by, which is a constant in the graph by now."""
    node: Node | None = getattr(result, "grad_fn", None)
    if node is not None and statistic.grad_fn is not None:
        found = _Search(deep=False).degree(statistic.grad_fn, statistic.output_nr)
        node.metadata[_DIVISOR] = found, -1.0 if quotient else 1.0


def note_steps(result: Any) -> Any:
    """Remember that something was divided by the last part of a norm."""
    node: Node | None = getattr(result, "grad_fn", None)
    if node is not None:
        node.metadata[IN_STEPS] = True
    return result


def with_exponent(result: Any, exponent: float | None) -> Any:
    """A result under a rule for activations, whose node does not tell the exponent of a power."""
    node: Node | None = getattr(result, "grad_fn", None)
    if exponent is not None and node is not None:
        node.metadata[_EXPONENT] = exponent
    return result


def is_norm(
    statistic: Tensor, others: Sequence[Tensor], quotient: bool, in_steps: bool = False
) -> bool:
    """Whether ``statistic`` normalises the other factors of a product (or their quotient).

    Args:
        statistic (Tensor): The factor, or the divisor.
        others (sequence of Tensor): The remaining input-dependent factors.
        quotient (bool): Whether ``statistic`` divides.
        in_steps (bool): Whether a part of the norm must have been taken before:
            ``x * m ** -0.25 * m ** -0.25``.
    """
    if statistic.grad_fn is None:
        return False
    if len(others) == 1 and _is_of(statistic, others[0], quotient):
        return not in_steps
    for deep, through_norms in ((False, False), (True, False), (False, True)):
        search = _Search(deep, through_norms=through_norms)
        found = search.degree(statistic.grad_fn, statistic.output_nr)
        if through_norms and not (search.has_met_norm and found.of):
            return False
        reduced = found.is_reduced or statistic.numel() < max(o.numel() for o in others)
        modulus = any(o.is_complex() for o in others) and not statistic.is_complex()
        if not found.is_nonlinear or not (reduced or modulus):
            return False
        if found.is_shifted and not found.is_pooled:
            return False
        if not found.of and found.is_reduced:
            return not in_steps  # norms compared with their own mean (global response norm)
        if all(map(is_weight, found.of)):
            return False  # weights of a mixture in units of their own size, sum or norm
        sign = 1.0 if quotient else -1.0
        factors = _product([search.degree(o.grad_fn, 0) for o in others if o.grad_fn is not None])
        if not deep and factors.is_nonlinear and factors.is_reduced:
            return False  # a ratio of norms: what it multiplies decides
        if all(_cancels(factors.of.get(n, 0.0), sign * d, found) for n, d in found.of.items()):
            return factors.is_mixed is in_steps
    return False


def _is_of(statistic: Tensor, factor: Tensor, quotient: bool) -> bool:
    """Whether a statistic is one of the very factor that it normalises, however that was made.

    Seen from further back, a gated and projected factor (``(a * b) @ w``) is a statistic itself.
    """
    if factor.grad_fn is None or is_statistic(factor):
        return False
    behind = _Search(deep=False).degree(factor.grad_fn, factor.output_nr)
    if all(map(is_weight, behind.of)):
        return False
    source = moved(factor.grad_fn, factor.output_nr)
    sources = [source]
    if node_name(source[0]) in ("Add", "Sub"):  # centred: of what the mean was taken
        sources += [moved(*edge) for edge in source[0].next_functions[:1] if edge[0] is not None]
    sign = 1.0 if quotient else -1.0
    for one in sources:
        search, alone = _Search(deep=False, source=one), {one[0]}
        own = search.degree(factor.grad_fn, factor.output_nr)
        found = search.degree(statistic.grad_fn, statistic.output_nr)
        reduced = found.is_reduced or statistic.numel() < factor.numel()
        if set(own.of) != alone or own.is_nonlinear or set(found.of) != alone:
            continue
        if abs(found.of[one[0]] * sign - own.of[one[0]]) < 1e-3 and found.is_nonlinear and reduced:
            return not found.is_shifted
    return False


def moved(node: Node, output: int) -> tuple[Node, int]:
    """Where a tensor comes from, before it was viewed or cast."""
    while node_name(node) in KEEP_ENTRIES:
        edges = [(e, i) for e, i in node.next_functions if e is not None]
        if len(edges) != 1:
            break
        node, output = edges[0]
    return node, output


def is_statistic(tensor: Tensor) -> bool:
    """Whether a tensor is a norm, or one over a norm, of something; or a ratio of norms."""
    if tensor.grad_fn is None:
        return False
    found = _Search(deep=False).degree(tensor.grad_fn, 0)
    lengths = all(abs(abs(d) - 1) < 1e-3 for d in found.of.values())
    return found.is_nonlinear and found.is_reduced and lengths


def is_weight(node: Node) -> bool:
    """Whether a node makes the weights of a mixture."""
    return is_softmax(node_name(node)) or node_name(node) in _WEIGHTS


def is_known(statistic: tuple[Node, int], source: tuple[Node, int]) -> bool:
    """Whether the degree of a statistic in its source is told by names, so that it is no norm."""
    found = _Search(deep=True, source=source).degree(*statistic)
    return set(found.of) <= {source[0]}


def is_ratio(numerator: Tensor, divisor: Tensor) -> bool:
    """Whether norms are compared with their own mean, as global response norm does."""
    if numerator.grad_fn is None or divisor.grad_fn is None:
        return False
    search = _Search(deep=False)
    below = search.degree(divisor.grad_fn, 0)
    if not (below.is_nonlinear and below.is_reduced):
        return False
    above = search.degree(numerator.grad_fn, 0)
    lengths = all(abs(d - 1) < 1e-3 for d in above.of.values())  # not scores and their sums
    return lengths and above.is_nonlinear and above.is_reduced and not _differs(above, below)


def _cancels(numerator: float, divisor: float, found: Degree) -> bool:
    if found.is_pooled and found.is_shifted:  # (k + alpha * mean of squares) ** beta
        return numerator > 0 and 0 < divisor < 2 * numerator
    return abs(numerator - divisor) < 1e-3 and divisor > 0


def _product(factors: Sequence[Degree], signs: Sequence[float] = ()) -> Degree:
    of: dict[Node, float] = {}
    for factor, sign in zip(factors, signs or [1.0] * len(factors), strict=True):
        for node, degree in factor.of.items():
            of[node] = of.get(node, 0.0) + sign * degree
    shared_out = len({f.is_reduced for f in factors}) > 1
    shared = not signs and len(factors) > 1 and bool(set(factors[0].of) & set(factors[1].of))
    return Degree(
        {n: d for n, d in of.items() if abs(d) > 1e-6},
        shared or any(f.is_nonlinear for f in factors),
        bool(factors) and all(f.is_reduced for f in factors),
        any(f.is_pooled for f in factors),
        any(f.is_shifted for f in factors),
        any(f.is_mixed for f in factors) or (shared_out and any(map(_is_of_statistics, factors))),
    )


def _is_of_statistics(degree: Degree) -> bool:
    return degree.is_nonlinear and degree.is_reduced and bool(degree.of)


def _scaled(degree: Degree, power: float, **changed: bool) -> Degree:
    of = {n: d * power for n, d in degree.of.items()}
    return replace(degree, of=of, **changed)


class _Search:
    """The degrees behind a tensor, up to ``source`` if one is given.

    ``deep`` looks through linear maps of a source as well: ``(W x) / rms(x)``.  What was normalised
    is a source, too; ``through_norms`` looks at what it was before.
    """

    def __init__(
        self, deep: bool, source: tuple[Node, int] | None = None, through_norms: bool = False
    ) -> None:
        self.deep = deep
        self.through_norms = through_norms
        self.has_met_norm = False
        self.known: dict[tuple[Node, int], Degree] = {}
        if source is not None:
            self.known[source] = Degree({source[0]: 1.0})

    def degree(self, node: Node, output: int) -> Degree:
        """The degree of the result ``output`` of a node."""
        key = node, output
        found = self.known.get(key)
        if found is None:
            self.known[key] = Degree({node: 1.0})  # should the search come back here
            found = Degree({node: 1.0})
            if len(self.known) < _MAX_NODES:
                found = self._made(node, output) or found
            if node.metadata.get(_SHIFT) and found.is_nonlinear:
                found = _scaled(found, 1.0, is_shifted=True)
            self.known[key] = found
        return found

    def _made(self, node: Node, output: int) -> Degree | None:
        name = node_name(node)
        edges = [(e, i) for e, i in node.next_functions if e is not None]
        if name == "Copy":
            edges = edges[-1:]
        if not edges or name == "AccumulateGrad":
            return None
        divisor = node.metadata.get(_DIVISOR)
        if divisor is not None:
            self.has_met_norm = True
            if self.through_norms and len(edges) == 1:
                return _product([self.degree(*edges[0]), divisor[0]], (1.0, divisor[1]))
        if len(edges) == 1:
            return self._of_one(node, name, output, *edges[0])
        if name in _SUMS:
            return self._sum([self.degree(*e) for e in edges], name)
        if name in ("Mul", "Div"):
            before = [self.degree(*e) for e in edges]
            return _product(before, (1.0, -1.0) if name == "Div" else ())
        if name in _MATRIX_PRODUCTS and len(edges) == 2:
            if name in _SUMMAND_FIRST and node.next_functions[0][0] is not None:
                return None
            return _scaled(_product([self.degree(*e) for e in edges]), 1.0, is_reduced=True)
        return None

    def _sum(self, terms: list[Degree], name: str) -> Degree | None:
        first = terms[0]
        if any(_differs(first, t) for t in terms[1:]):
            return None
        return Degree(
            first.of,
            name in _EXTREMES or any(t.is_nonlinear for t in terms),
            any(t.is_reduced for t in terms) and all(t.is_nonlinear for t in terms),
            any(t.is_pooled for t in terms),
            any(t.is_shifted for t in terms),
            any(t.is_mixed for t in terms),
        )

    def _of_one(self, node: Node, name: str, output: int, edge: Node, index: int) -> Degree | None:
        if name == "Exp":
            return self._exponential(edge)
        power = _power(node, name)
        if name == "Div" and node.next_functions[0][0] is None:
            power = -1.0  # a constant divided
        linear = name in _LINEAR_MAPS
        summing = name in _SUMS or name in ("Mul", "Div")
        known = name in _KEEP or summing or name in _REDUCTIONS or name in _SPREADS
        if not (known or linear or power is not None):
            return None
        before = self.degree(edge, index)
        if linear:
            if not before.is_nonlinear and not self.deep:
                return None
            pooled = before.is_pooled or name in _POOLS
            return _scaled(before, 1.0, is_reduced=True, is_pooled=pooled)
        if power is not None:
            return _scaled(before, power, is_nonlinear=before.is_nonlinear or power != -1.0)
        if name in _SPREADS:
            if output == 1 and name in ("StdMean", "VarMean"):
                return _scaled(before, 1.0, is_reduced=True)
            degree = 2.0 if name in ("Var", "VarMean") else 1.0
            return _scaled(before, degree, is_nonlinear=True, is_reduced=True)
        nonlinear = before.is_nonlinear or name in _EXTREMES or name == "Abs"
        reduced = before.is_reduced or name in _REDUCTIONS
        return _scaled(before, 1.0, is_nonlinear=nonlinear, is_reduced=reduced)

    def _exponential(self, node: Node) -> Degree | None:
        """``exp(c * log(v))`` is ``v ** c``."""
        power = 1.0
        for _ in range(8):
            name = node_name(node)
            edges = [(e, i) for e, i in node.next_functions if e is not None]
            if len(edges) != 1:
                return None
            if name == "Log":
                return _scaled(self.degree(*edges[0]), power, is_nonlinear=True)
            if name in ("Logsumexp", "Logcumsumexp"):  # of logs: a sum
                total = self._exponential(edges[0][0])
                return None if total is None else _scaled(total, power, is_reduced=True)
            if name == "Neg":
                power = -power
            elif name in ("Mul", "Div"):
                constant = getattr(node, "_saved_other", None)
                constant = getattr(node, "_saved_self", None) if constant is None else constant
                number = _number(constant)
                if not number or (name == "Div" and node.next_functions[0][0] is None):
                    return None
                power = power * number if name == "Mul" else power / number
            elif name not in KEEP_ENTRIES and name not in ("Add", "Sub"):  # of a constant
                return None
            node = edges[0][0]
        return None


def _differs(one: Degree, other: Degree) -> bool:
    return set(one.of) != set(other.of) or any(
        abs(d - other.of[n]) > 1e-6 for n, d in one.of.items()
    )


def _power(node: Node, name: str) -> float | None:
    if name == "Pow":
        noted = node.metadata.get(_EXPONENT)
        return _number(getattr(node, "_saved_exponent", None) if noted is None else noted)
    return _POWERS.get(name)


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 and not value.is_complex() else None
    return float(value) if isinstance(value, (int, float)) else None
