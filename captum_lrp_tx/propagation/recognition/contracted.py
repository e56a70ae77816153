"""Which axes a product sums over: matrix products and einsums in one notation.

Every axis of every operand gets a label, as in an einsum; axes of one label meet.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

#: Products with a summand in front of the factors.
_SUMMAND_FIRST = frozenset("addmm baddbmm addbmm _sparse_addmm".split())
_MATRIX = frozenset("matmul __matmul__ mm bmm _sparse_mm".split()) | _SUMMAND_FIRST


@dataclass(frozen=True)
class Contraction:
    """The labels of the axes of a product's operands, by position, and of its result."""

    operands: dict[int, str]
    result: str

    def summed(self, i: int) -> list[int]:
        """The axes of an operand that are summed over, counted from the right (negative)."""
        mine = self.operands[i]
        return [k - len(mine) for k, label in enumerate(mine) if label not in self.result]

    def own(self, i: int) -> list[tuple[int, int]]:
        """Axes of an operand that no other operand has, and where they are in the result.

        Both are counted from the right.
        """
        mine = self.operands[i]
        others = set().union(*(set(o) for k, o in self.operands.items() if k != i))
        return [
            (k - len(mine), self.result.index(label) - len(self.result))
            for k, label in enumerate(mine)
            if label not in others and label in self.result
        ]

    def axis_in(self, i: int, other: int, axis: int) -> int | None:
        """The axis of the operand ``other`` that meets an axis of operand ``i``, if there is one.

        Both are counted from the right.
        """
        label, there = self.operands[i][axis], self.operands[other]
        return there.index(label) - len(there) if label in there else None

    def came_from(self, weights: Sequence[int]) -> list[tuple[int, int]]:
        """For every axis of the result an operand that has it, values first, and its axis there."""
        order = sorted(self.operands, key=lambda i: i in weights)
        return [
            next((i, self.operands[i].index(c)) for i in order if c in self.operands[i])
            for c in self.result
        ]

    def sources(self, i: int) -> tuple[int | None, ...]:
        """For every axis of the result the axis of an operand that it was, from the left."""
        mine = self.operands[i]
        return tuple(mine.index(label) if label in mine else None for label in self.result)


def entrywise_factors(how: Contraction | None, args: Sequence[Any]) -> list[Tensor] | None:
    """The factors of a product that sums over nothing, laid out to be multiplied entry by entry."""
    if how is None:
        return None
    if any(args[i].shape[axis] > 1 for i in how.operands for axis in how.summed(i)):
        return None
    laid_out = []
    for i, labels in how.operands.items():
        if len(set(labels)) < len(labels):
            return None  # a diagonal
        order = [labels.index(c) for c in how.result if c in labels]
        single = [axis + len(labels) for axis in how.summed(i)]
        kept = args[i].permute(single + order)[(0,) * len(single)]
        places = (slice(None) if c in labels else None for c in how.result)
        laid_out.append(kept[tuple(places)])
    return laid_out


def equation_of(first: Tensor, second: Tensor) -> tuple[str, Tensor, Tensor] | None:
    """A product entry by entry as an einsum, if both factors are spread out."""
    dims = max(first.dim(), second.dim())
    letters = string.ascii_lowercase[:dims]
    terms, squeezed = [], []
    for x, other in ((first, second), (second, first)):
        spread = [
            d for d in range(-x.dim(), 0)
            if x.shape[d] == 1 and other.dim() >= -d and other.shape[d] > 1
        ]  # fmt: skip
        if not spread and x.dim() == dims:
            return None
        terms.append("".join(letters[d] for d in range(-x.dim(), 0) if d not in spread))
        squeezed.append(x.squeeze(tuple(spread)) if spread else x)
    return f"{terms[0]},{terms[1]}->{letters}", squeezed[0], squeezed[1]


def contraction_of(func: Any, args: Sequence[Any]) -> Contraction | None:
    """How the axes of a product meet; ``None`` if the call does not tell."""
    name = getattr(func, "__name__", "").partition(".")[0]
    tensors = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
    if name == "einsum":
        return _of_equation(args, tensors)
    if name == "__rmatmul__":
        return _of_matrices(args, 1, 0)
    if name in _MATRIX:
        first = 1 if name in _SUMMAND_FIRST else 0
        return _of_matrices(args, first, first + 1)
    if name == "mv" or name == "dot":
        return _of_matrices(args, 0, 1)
    if name == "linear":
        given = string.ascii_uppercase[: args[0].dim() - 1]
        made = "k" * (args[1].dim() - 1)
        return Contraction({0: given + "j", 1: made + "j"}, given + made)
    if name == "tensordot" and len(args) == 3:
        return _over(args[0].dim(), args[1].dim(), args[2])
    if name == "inner":
        left = "ABCDEFGH"[: args[0].dim() - 1]
        right = "abcdefgh"[: args[1].dim() - 1]
        return Contraction({0: left + "z", 1: right + "z"}, left + right)
    return None


def _of_matrices(args: Sequence[Any], left: int, right: int) -> Contraction:
    first, second = args[left].dim(), args[right].dim()
    batch = string.ascii_uppercase[: max(first, second, 2) - 2]
    one = batch[len(batch) - max(first - 2, 0) :] + ("ij" if first > 1 else "j")
    two = batch[len(batch) - max(second - 2, 0) :] + ("jk" if second > 1 else "j")
    result = batch + ("i" if first > 1 else "") + ("k" if second > 1 else "")
    return Contraction({left: one, right: two}, result)


def _over(first: int, second: int, dims: Any) -> Contraction:
    """Of ``tensordot``: how many axes of the two operands meet, or which."""
    if isinstance(dims, int):
        dims = (range(first - dims, first), range(dims))
    one, two = (list(d) if not isinstance(d, int) else [d] for d in dims)
    left, right = list(string.ascii_uppercase[:first]), list(string.ascii_lowercase[:second])
    for i, j in zip(one, two, strict=True):
        right[j] = left[i]
    met = {left[i] for i in one}
    result = [c for c in left + right if c not in met]
    return Contraction({0: "".join(left), 1: "".join(right)}, "".join(result))


def _of_equation(args: Sequence[Any], tensors: list[int]) -> Contraction | None:
    equation = args[0]
    if not isinstance(equation, str):
        return None
    given, arrow, result = equation.replace(" ", "").partition("->")
    terms = given.split(",")
    if len(terms) != len(tensors):
        return None
    spare = [c for c in string.ascii_uppercase[::-1] if c not in equation]
    widest = max(
        (args[i].dim() - len(t) + 3 for i, t in zip(tensors, terms) if "..." in t), default=0
    )
    more = "".join(spare[:widest])
    operands = {}
    for i, term in zip(tensors, terms):
        dims = args[i].dim() - len(term) + 3
        operands[i] = term.replace("...", more[len(more) - dims :] if dims > 0 else "")
    if not arrow:
        letters = "".join(sorted(set(given) - set(".,")))
        once = "".join(c for c in letters if given.count(c) == 1)
        result = ("..." if "..." in given else "") + once
    return Contraction(operands, result.replace("...", more))
