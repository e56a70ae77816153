"""How tensors grow with what they were made of.

Every tensor has a *degree* in each of its sources: 1 in itself, the sum of degrees for a product,
``k`` times the degree for a power ``k``; sums, reductions, views and casts keep it.  A new spelling
is one more name in one of the sets below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from captum_lrp_tx.propagation.graph import (
    KEEP_ENTRIES,
    OVERWRITTEN,
    Node,
    mark_node,
    node_name,
)

#: Keep the degree of their only input-dependent operand.
_KEEP = KEEP_ENTRIES | frozenset(
    """Abs Relu LeakyRelu Clamp ClampMin ClampMax Topk Sort Kthvalue Mode ViewAsReal
    ViewAsComplex DiagEmbed""".split()
)
#: Linear but for what they choose by sign or order: sums of these may be moduli
#: (``relu(x) + relu(-x)``), their differences spreads (of quantiles).
_PIECEWISE = frozenset(
    "Relu LeakyRelu Clamp ClampMin ClampMax Where Sort Topk Kthvalue Mode".split()
)
#: Where a node notes that it picked entries by their order.
CHOSEN = "captum_lrp_tx.chosen_by_order"
#: Add up operands of one degree, or choose among them.
_SUMS = frozenset(
    "Add Sub Rsub Where Maximum Minimum Fmax Fmin Cat Stack Lerp Hypot".split()
)  # of two sources: a source of its own
_OF_TWO = frozenset("Maximum Minimum Fmax Fmin".split())
_POOLED_EXTREMES = frozenset("MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D".split())
_EXTREMES = _POOLED_EXTREMES | frozenset(
    "Max Amax Min Amin Aminmax Cummax Median Nanmedian Maximum Hypot".split()
)
_REDUCTIONS = _POOLED_EXTREMES | frozenset(
    """Sum Mean Cumsum Nansum Max Amax Min Amin Aminmax Median Nanmedian Cummax Trace IndexAdd
    ScatterAdd ScatterReduce SegmentReduce""".split()
)
_SPREADS = frozenset("Std Var StdMean VarMean LinalgVectorNorm Norm LinalgSvd".split())
_POWERS = {"Sqrt": 0.5, "Rsqrt": -0.5, "Reciprocal": -1.0, "Sign": 0.0, "Sgn": 0.0}
_MATRIX_PRODUCTS = frozenset("Mm Bmm Mv Dot Vdot Addmm Baddbmm Addmv".split())
_POOLS = frozenset("AvgPool2D AvgPool3D".split())
#: Maps by weights of one tensor that depends on the inputs.
LINEAR_MAPS = (
    _MATRIX_PRODUCTS
    | _POOLS
    | frozenset(
        """Convolution MkldnnConvolution LinearValue Substitute SpreadBias Stabilize
        Signed FftR2C FftC2C FftC2R""".split()
    )
)
_DISPLACE = frozenset({"Roll", "Flip"})
_SUMMAND_FIRST = frozenset("Addmm Baddbmm Addmv".split())
#: Functions of one tensor that depends on the inputs.
_OF_ONE = _KEEP | _SUMS | _REDUCTIONS | _SPREADS | LINEAR_MAPS | {"Mul", "Div"}
#: Steps between an exponential and its logarithm.
_MOST_STEPS = 16
_EXPONENT = "captum_lrp_tx.exponent"
_SHIFT = "captum_lrp_tx.shift"
_DIVISOR = "captum_lrp_tx.divisor"
_WEIGHTS = "captum_lrp_tx.weights"
#: From here on, a number added to a norm is no safeguard against division by zero.
_LARGE_SHIFT = 0.25


#: A node by its number, and which of its results.
_Key = tuple[int, int]
#: What autograd numbers leaves with, all of them.
_LEAF = 2**64 - 1


class Source(NamedTuple):
    """A node, told without holding it: what it saves may be freed before the pass is over.

    Attributes:
        number (int): Autograd counts the nodes of a thread, and uses no number again.
        name (str): What the node does.
    """

    number: int
    name: str

    @classmethod
    def at(cls, node: Node) -> Source:
        """The one that a node is."""
        return cls(_number_of(node), node_name(node))


def _number_of(node: Node) -> int:
    number = node._sequence_nr()
    return number if number != _LEAF else -id(getattr(node, "variable", node))


class Degree(NamedTuple):
    """Degrees of a tensor in its sources, and how it was made of them.

    Attributes:
        of (mapping of Source to float): The sources with a degree other than zero.
        is_nonlinear (bool): Whether a power, a modulus or an extreme was taken on the way.
        is_reduced (bool): Whether entries were combined after that.
        is_pooled (bool): Whether that was done over neighbours (local response norm).
        is_shifted (bool): Whether a number too large for a safeguard was added.
        is_mixed (bool): Whether something was multiplied or divided by a statistic.
        is_past_norm (bool): Whether it was followed to before something was normalised.
        is_piecewise (bool): Whether it is linear but for what was chosen by sign or order.
    """

    of: dict[Source, float]
    is_nonlinear: bool = False
    is_reduced: bool = False
    is_pooled: bool = False
    is_shifted: bool = False
    is_mixed: bool = False
    is_past_norm: bool = False
    is_piecewise: bool = False


def note_shift(result: Any, number: Any) -> None:
    """Remember that a number was added that is no mere safeguard."""
    if isinstance(number, (int, float)) and abs(number) >= _LARGE_SHIFT:
        mark_node(result, _SHIFT)


def is_shifted(node: Node) -> bool:
    """Whether a node adds a number that is no mere safeguard."""
    return bool(node.metadata.get(_SHIFT))


def note_norm(degrees: Degrees, result: Any, statistic: Tensor, quotient: bool) -> None:
    """Remember what something was normalised by, which is a constant in the graph by now."""
    node: Node | None = getattr(result, "grad_fn", None)
    if node is not None and statistic.grad_fn is not None:
        found = degrees.shallow.degree(statistic.grad_fn, statistic.output_nr)
        node.metadata[_DIVISOR] = found, -1.0 if quotient else 1.0


def note_weights(result: Tensor) -> None:
    """Remember that a result is weights, which do not grow with anything."""
    mark_node(result, _WEIGHTS)


def with_exponent(result: Any, exponent: float | None) -> Any:
    """A result under a rule for activations, whose node does not tell the exponent of a power."""
    if exponent is not None:
        mark_node(result, _EXPONENT, exponent)
    return result


def product(factors: Sequence[Degree], signs: Sequence[float] = ()) -> Degree:
    """The degree of a product; of a quotient, where a sign is -1."""
    of: dict[Source, float] = {}
    for factor, sign in zip(factors, signs or [1.0] * len(factors), strict=True):
        for node, degree in factor.of.items():
            of[node] = of.get(node, 0.0) + sign * degree
    shared_out = len({f.is_reduced for f in factors}) > 1
    shared = not signs and len(factors) > 1 and bool(set(factors[0].of) & set(factors[1].of))
    # weights that sum to one, and ratios of norms, do not grow: beside others they are constants
    growing = [f for f in factors if f.of] or factors
    return Degree(
        {n: d for n, d in of.items() if abs(d) > 1e-6},
        shared or any(f.is_nonlinear for f in growing),
        bool(growing) and all(f.is_reduced for f in growing),
        any(f.is_pooled for f in factors),
        any(f.is_shifted for f in factors),
        any(f.is_mixed for f in factors) or (shared_out and any(map(_is_of_statistics, factors))),
        any(f.is_past_norm for f in factors),
        any(f.is_piecewise for f in growing),
    )


def _is_displaced(node: Node) -> bool:
    """Whether a product has one of its factors from other places than the other."""
    found = []
    for edge, _ in node.next_functions[-2:]:
        steps = set()
        while edge is not None and node_name(edge) in KEEP_ENTRIES and edge.next_functions:
            if node_name(edge) in _DISPLACE:
                steps.add(edge)
            edge = edge.next_functions[0][0]
        found.append(steps)
    return len(found) == 2 and found[0] != found[1]


def _is_of_statistics(degree: Degree) -> bool:
    return degree.is_nonlinear and degree.is_reduced and bool(degree.of)


def _raised(degree: Degree, power: float) -> Degree:
    """The degree of a power of something."""
    return degree._replace(of={n: d * power for n, d in degree.of.items()})


class Search:
    """The degrees behind a tensor, up to ``source`` if one is given.

    ``deep`` looks through linear maps of a source as well: ``(W x) / rms(x)``.  What was normalised
    is a source, too; ``through_norms`` looks at what it was before.
    """

    def __init__(
        self,
        deep: bool = False,
        source: tuple[Node, int] | None = None,
        through_norms: bool = False,
    ) -> None:
        self.deep = deep
        self.through_norms = through_norms
        self.known: dict[_Key, Degree] = {}
        #: Nodes before this one cannot depend on the source.
        self.first = -1
        if source is not None:
            node, output = source
            self.known[_number_of(node), output] = Degree({Source.at(node): 1.0})
            self.first = node._sequence_nr()

    def degree(self, node: Node, output: int) -> Degree:
        """The degree of the result ``output`` of a node; each is found once."""
        known, wanted = self.known, (_number_of(node), output)
        waiting: list[tuple[_Key, Node, list[_Key] | None]] = [(wanted, node, None)]
        while waiting:  # no recursion: a graph may be deeper than the stack
            key, node, keys = waiting.pop()
            if key in known:
                continue
            if keys is None:
                edges = self._edges(node)
                keys = [(_number_of(one), number) for one, number in edges]
                if any(k not in known for k in keys):
                    ahead = zip(keys, edges, strict=True)
                    waiting += [(key, node, keys), *((k, one, None) for k, (one, _) in ahead)]
                    continue
            known[key] = self._found(node, key[1], [known[k] for k in keys])
        return known[wanted]

    def _edges(self, node: Node) -> Sequence[tuple[Node, int]]:
        """What the degree of a node depends on; nothing if it is a source."""
        name = node_name(node)
        edges = [(e, i) for e, i in node.next_functions if e is not None]
        if name == "Copy" or OVERWRITTEN in node.metadata:
            edges = edges[-1:]
        if name == "AccumulateGrad" or node._sequence_nr() < self.first:
            return []
        if _WEIGHTS in node.metadata:
            return []
        if name == "Exp":
            power = _power_of(edges[0][0]) if edges else None
            return [] if power is None else [power.base]
        if len(edges) == 1:
            return edges if _is_known(node, name) else []
        if name in _MATRIX_PRODUCTS:
            has_summand = name in _SUMMAND_FIRST and node.next_functions[0][0] is not None
            return edges if len(edges) == 2 and not has_summand else []
        return edges if name in _SUMS or name in ("Mul", "Div") else []

    def _found(self, node: Node, output: int, before: list[Degree]) -> Degree:
        found = self._made(node, output, before) if before else None
        if found is None:
            return Degree({Source.at(node): 1.0})
        if _SHIFT in node.metadata and found.is_nonlinear:
            found = found._replace(is_shifted=True)
        return found._replace(is_piecewise=True) if CHOSEN in node.metadata else found

    def _made(self, node: Node, output: int, before: list[Degree]) -> Degree | None:
        """The degree of a node by those of what it was made of; ``None`` for a source."""
        name = node_name(node)
        divisor = node.metadata.get(_DIVISOR) if self.through_norms else None
        if divisor is not None and len(before) == 1:
            past = product([before[0], divisor[0]], (1.0, divisor[1]))
            return past._replace(is_past_norm=True)
        if name == "Exp":
            power = _power_of(node.next_functions[0][0])
            assert power is not None
            reduced = before[0].is_reduced or power.is_sum
            found = _raised(before[0], power.exponent)
            return found._replace(is_nonlinear=True, is_reduced=reduced)
        if len(before) == 1 and name in KEEP_ENTRIES:
            return before[0]
        if len(before) == 1:  # the larger of something and a constant is bounded by that
            return self._of_one(node, "ClampMin" if name in _OF_TWO else name, output, before[0])
        if name in _SUMS:
            return self._sum(before, name)
        if name in ("Mul", "Div"):
            made = product(before, (1.0, -1.0) if name == "Div" else ())
        else:
            made = product(before)._replace(is_reduced=True)
        if made.is_nonlinear and _is_displaced(node) and not any(b.is_nonlinear for b in before):
            return made._replace(is_nonlinear=False)  # x * x.roll(1) is of no one's size
        return made

    def _sum(self, terms: list[Degree], name: str) -> Degree | None:
        first = terms[0]
        if any(differs(first, t) for t in terms[1:]):
            return None
        return Degree(
            first.of,
            name in _EXTREMES or any(t.is_nonlinear for t in terms),
            any(t.is_reduced for t in terms) and all(t.is_nonlinear for t in terms),
            any(t.is_pooled for t in terms),
            any(t.is_shifted for t in terms),
            any(t.is_mixed for t in terms),
            any(t.is_past_norm for t in terms),
            name in _PIECEWISE or any(t.is_piecewise for t in terms),
        )

    def _of_one(self, node: Node, name: str, output: int, before: Degree) -> Degree | None:
        if name in LINEAR_MAPS:
            if not before.is_nonlinear and not self.deep:
                return None
            pooled = before.is_pooled or name in _POOLS
            return before._replace(is_reduced=True, is_pooled=pooled)
        power = _power(node, name)
        if power is not None:
            nonlinear = before.is_nonlinear or power != -1.0
            return _raised(before, power)._replace(is_nonlinear=nonlinear)
        if name in _SPREADS:
            if output == 1 and name in ("StdMean", "VarMean"):
                return before._replace(is_reduced=True)
            degree = 2.0 if name in ("Var", "VarMean") else 1.0
            return _raised(before, degree)._replace(is_nonlinear=True, is_reduced=True)
        if name in _PIECEWISE:
            before = before._replace(is_piecewise=True)
        if name in _EXTREMES or name == "Abs":
            before = before._replace(is_nonlinear=True)
        return before._replace(is_reduced=True) if name in _REDUCTIONS else before


class Degrees:
    """What is known of the degrees of a graph that grows: every node is looked at once a search."""

    def __init__(self) -> None:
        self.shallow = Search()
        self.deep = Search(deep=True)
        self.through_norms = Search(through_norms=True)


class _Power(NamedTuple):
    """``exp(c * log(v))``, which is ``v ** c``; ``is_sum`` if entries of ``v`` were summed."""

    base: tuple[Node, int]
    exponent: float
    is_sum: bool


def _power_of(node: Node) -> _Power | None:
    """The power that the exponential of a node's result is, if it is one."""
    power, is_sum = 1.0, False
    for _ in range(_MOST_STEPS):
        name = node_name(node)
        edges = [(e, i) for e, i in node.next_functions if e is not None]
        if len(edges) != 1:
            return None
        if name == "Log":
            return _Power(edges[0], power, is_sum)
        if name in ("Logsumexp", "Logcumsumexp") or name == "Mean":  # of logs: a sum
            is_sum = True
        elif name == "Neg":
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


def _is_known(node: Node, name: str) -> bool:
    """Whether what a function of one tensor does to degrees is known."""
    return name in _OF_ONE or _power(node, name) is not None


def differs(one: Degree, other: Degree) -> bool:
    """Whether two degrees are not the same in every source."""
    return set(one.of) != set(other.of) or any(
        abs(d - other.of[n]) > 1e-6 for n, d in one.of.items()
    )


def _power(node: Node, name: str) -> float | None:
    if name == "Pow":
        noted = node.metadata.get(_EXPONENT)
        return _number(getattr(node, "_saved_exponent", None) if noted is None else noted)
    if name == "Div" and node.next_functions[0][0] is None:
        return -1.0  # a constant divided
    return _POWERS.get(name)


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 and not value.is_complex() else None
    return float(value) if isinstance(value, (int, float)) else None
