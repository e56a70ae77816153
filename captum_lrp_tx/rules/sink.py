"""The values of attention sinks are constants."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

from torch import Tensor

from captum_lrp_tx.errors import RuleError
from captum_lrp_tx.propagation.autograd.functions import ScaleGradient, WithValue
from captum_lrp_tx.propagation.autograd.pattern_product import heads_of
from captum_lrp_tx.propagation.autograd.uniform_attention import shares
from captum_lrp_tx.propagation.operations import FusedAttention, Kind, PatternProduct
from captum_lrp_tx.propagation.state.scope import current
from captum_lrp_tx.rules.attention import AHRule, UniformAttentionRule
from captum_lrp_tx.rules.attention_sinks import (
    is_causal_call,
    laid_out,
    patterns_of_call,
    taken_from_sinks,
)
from captum_lrp_tx.rules.rule import Rule


@dataclass(frozen=True)
class SinkRule(Rule):
    """Another rule for attention, under which what a head takes from its sink is a constant.

    A sink of a query is a key that has ``share`` or more of the attention of a head in the mean
    over this query and those before it (the first sees itself only, has no choice and is not
    counted). Its values add much the same whatever the text says: the sink, mostly the first token,
    would be given relevance that is no reason. It is absorbed like that of a bias, and booked by
    the name of the attention module. Nothing else changes: relevance and named constants add up
    where they did under the inner rule.

    What comes later has no say in it: a position in a longer text is explained as at the end of its
    prefix. Sinks are looked for in the causal attention of decoders over a whole text, fused or
    spelled out as a matrix product or einsum of a pattern with values. Where attention is not
    causal, is spelled in another way (entry by entry, in a loop), goes to a cache, or has dropout,
    the inner rule acts alone.

    Args:
        rule (Rule): ``AHRule()`` or ``UniformAttentionRule()``.
        share (float): Of the attention of a head, above 0 and at most 1.

    Raises:
        RuleError: Another rule, or a share out of range.

    Example::

        >>> from captum_lrp_tx import Composite, ConservativeLRP
        >>> composite = Composite({"": SinkRule(AHRule())}, base="lrp")
        >>> ConservativeLRP(model, composite).attribute(ids, target=(-1, token))
    """

    rule: Rule
    share: float = 0.5
    kinds = frozenset({Kind.ATTENTION})

    def __post_init__(self) -> None:
        if not isinstance(self.rule, (AHRule, UniformAttentionRule)):
            raise RuleError(
                f"SinkRule takes AHRule() or UniformAttentionRule(), not {self.rule!r}."
            )
        if not isinstance(self.share, Real) or not 0 < float(self.share) <= 1:
            raise RuleError(f"share must be a number above 0 and at most 1, not {self.share!r}.")

    @property
    def covers_softmax(self) -> bool:
        """Whether relevance goes through the softmax."""
        return isinstance(self.rule, UniformAttentionRule)

    def propagate(self, operation: PatternProduct | FusedAttention) -> Tensor:
        result = self.rule.propagate(operation)
        if isinstance(operation, PatternProduct):
            found = laid_out(operation)
            if found is None or not found.values.requires_grad:
                return result
            taken = taken_from_sinks([found.pattern], found.values, self.share)
            part = 1.0 / len(operation.operands)
            return self._held(result, None if taken is None else found.restored(taken), part)
        query, key, value, mask = (
            operation.query, operation.key, operation.value_, operation.mask
        )  # fmt: skip
        if operation.dropout_p or not value.requires_grad or not is_causal_call(operation):
            return result
        part = shares(
            query.requires_grad, key.requires_grad, True, mask is not None and mask.requires_grad
        )[2]
        taken = taken_from_sinks(patterns_of_call(operation), heads_of(query, value), self.share)
        return self._held(result, taken, part)

    def _held(self, result: Tensor, taken: Tensor | None, part: float) -> Tensor:
        """The result without the relevance that goes to sinks, booked if there is a ledger.

        Args:
            result (Tensor): Under the inner rule.
            taken (Tensor, optional): What queries take from their sinks; ``None`` if there is none.
            part (float): Of the relevance that values have if the pattern has some.
        """
        part = part if self.covers_softmax else 1.0
        if taken is None:
            return result
        held = WithValue.call(result.detach(), result - ScaleGradient.call(taken, part))
        scope = current()
        if scope is not None and scope.ledger is not None:
            module = scope.module
            scope.ledger.absorb(held, part * taken, f"{module}: attention sink", module)
        return held
