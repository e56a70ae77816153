"""One rule in the lower blocks of a model, another in the upper ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, NoReturn

from torch import nn

from captum_lrp_tx.errors import RuleError
from captum_lrp_tx.propagation.operations import Kind
from captum_lrp_tx.rules.rule import Bias, Rule

#: Lists of smaller modules than these hold parts of blocks.
_PARTS = 3


@dataclass(frozen=True)
class ByDepthRule(Rule):
    """``lower`` in the first blocks of a model and wherever there are no blocks, then ``upper``.

    Blocks are found by their order, not by their names: they are what the outermost lists of the
    model hold (``nn.ModuleList`` or ``nn.Sequential``) if it is several modules of one class, each
    made of parts. Each list has a depth of its own, as in encoder-decoder models. A model that runs
    one block over and over (ALBERT) has no depth and gets ``lower``.

    Args:
        lower, upper (Rule): For the same kinds of operation.
        share (float): Of the blocks that get ``lower``; of 30 blocks and 0.5 the first 15.

    Raises:
        RuleError: Arguments of the wrong kind, or two rules that have no kind in common.

    Example::

        >>> from captum_lrp_tx import Composite
        >>> from captum_lrp_tx.rules import AHRule, UniformAttentionRule
        >>> by_depth = ByDepthRule(UniformAttentionRule(), AHRule())
        >>> Composite({"": by_depth}, base="attnlrp-gamma")  # "" is the name of the whole model
        Composite({'': ByDepthRule(lower=UniformAttentionRule(), upper=AHRule(), share=0.5)}, ...
    """

    lower: Rule
    upper: Rule
    share: float = 0.5

    def __post_init__(self) -> None:
        for rule in (self.lower, self.upper):
            if not isinstance(rule, Rule) or isinstance(rule, ByDepthRule):
                raise RuleError(f"ByDepthRule takes two rules, not {rule!r}.")
        if not isinstance(self.share, Real) or not 0 <= float(self.share) <= 1:
            raise RuleError(f"share must be a number from 0 to 1, not {self.share!r}.")
        if not self.kinds:
            raise RuleError(f"{self.lower!r} and {self.upper!r} are for different operations.")

    @property
    def kinds(self) -> frozenset[Kind]:  # type: ignore[override]
        """What both rules govern."""
        return self.lower.kinds & self.upper.kinds

    def at(self, depth: float | None) -> Rule:
        """The rule at a depth from 0 to 1, ``None`` outside of blocks."""
        return self.lower if depth is None or depth < self.share else self.upper

    def propagate(self, operation: Any) -> NoReturn:
        raise RuleError(
            "ByDepthRule acts by the place of modules among others: give it as an entry of a "
            "Composite, not as module.rule."
        )

    def with_bias(self, bias: Bias) -> ByDepthRule:
        return replace(self, lower=self.lower.with_bias(bias), upper=self.upper.with_bias(bias))

    def absorbing(self) -> ByDepthRule:
        return replace(self, lower=self.lower.absorbing(), upper=self.upper.absorbing())


def at_depth(rule: Rule, depth: float | None) -> Rule:
    """The rule that holds at a depth: itself, unless it goes by depth."""
    return rule.at(depth) if isinstance(rule, ByDepthRule) else rule


class Depths:
    """Where every module is among the blocks of its model.

    Args:
        modules (sequence of (str, Module)): Named modules, outermost first.
    """

    def __init__(self, modules: Sequence[tuple[str, nn.Module]]) -> None:
        #: The blocks with their depths: number over count.
        self.blocks: list[tuple[nn.Module, float]] = []
        self._depths: dict[int, float] = {}
        for stack in _stacks(modules):
            for number, block in enumerate(stack):
                depth = number / len(stack)
                self.blocks.append((block, depth))
                for part in block.modules():
                    self._depths.setdefault(id(part), depth)

    def of(self, module: nn.Module) -> float | None:
        """Depth of the block that a module is, or is in; ``None`` outside of blocks."""
        return self._depths.get(id(module))


def _stacks(modules: Sequence[tuple[str, nn.Module]]) -> Iterator[list[nn.Module]]:
    inside: set[int] = set()
    for _, module in modules:
        if id(module) in inside or not isinstance(module, (nn.ModuleList, nn.Sequential)):
            continue
        large = [c for c in module if sum(1 for _ in c.modules()) > _PARTS]
        kinds = [type(child) for child in large]
        stack = [child for child in large if kinds.count(type(child)) > 1]
        if stack:
            inside.update(id(part) for block in stack for part in block.modules())
            yield stack
