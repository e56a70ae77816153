"""Which modules are running, with which sequences, and which attention maps belong together."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from captum_lrp_tx.propagation.graph import Node, parents


@dataclass(eq=False)
class Frame:
    """A running call of a module."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def sequences(self) -> dict[str, Tensor]:
        """Floating-point arguments of three dimensions, by parameter name."""
        found: dict[str, Tensor] = {}
        for position, value in enumerate(self.args):
            if _is_sequence(value):
                found[self._parameter(position)] = value
        found.update({name: value for name, value in self.kwargs.items() if _is_sequence(value)})
        return found

    def _parameter(self, position: int) -> str:
        try:
            names = list(inspect.signature(self.module.forward).parameters)
        except (TypeError, ValueError):
            names = []
        return names[position] if position < len(names) else str(position)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point()


def sequences_of(frames: Sequence[Frame]) -> dict[str, Tensor]:
    """Those of the innermost running call that has any, by parameter name."""
    return next((found for frame in reversed(frames) if (found := frame.sequences())), {})


@dataclass(eq=False)
class MapOrigin:
    """Where an attention map comes from.

    Attributes:
        node (Node): Of its pattern in the graph; None of a constant.
        shape (tuple of int): Of the map.
        is_cross (bool): Whether keys come from another sequence than queries.
        frames (tuple of Frame): The running calls, outermost first.
    """

    node: Node
    shape: tuple[int, ...]
    is_cross: bool
    frames: tuple[Frame, ...]

    def is_beside(self, others: Sequence[MapOrigin]) -> bool:
        """Whether this and the others are heads of one layer that are computed one by one.

        They are of the same sequence, and none builds on another one.
        """
        last = others[-1]
        if (self.shape, self.is_cross) != (last.shape, last.is_cross):
            return False
        return self._is_of_same_sequence(last) and not self._builds_on(others)

    def _is_of_same_sequence(self, other: MapOrigin) -> bool:
        own, others = sequences_of(self.frames), sequences_of(other.frames)
        if [id(x) for x in own.values()] == [id(x) for x in others.values()]:
            return True
        shared = [frame for frame in self.frames if frame in other.frames]
        around = shared[-1].sequences() if shared else {}
        return len({id(x) for x in around.values()}) == 1

    def _builds_on(self, others: Sequence[MapOrigin]) -> bool:
        nodes = {other.node for other in others if other.node is not None}
        oldest = min((int(node._sequence_nr()) for node in nodes), default=0)
        ahead, seen = [self.node], set[Node]()
        while ahead:
            node = ahead.pop()
            if node in nodes:
                return True
            if node is None or node in seen or int(node._sequence_nr()) < oldest:
                continue
            seen.add(node)
            ahead += parents(node)
        return False
