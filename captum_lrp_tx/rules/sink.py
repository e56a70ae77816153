"""The relevance of attention sinks, given to the other keys or absorbed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal, get_args

from torch import Tensor

from captum_lrp_tx.errors import RuleError
from captum_lrp_tx.propagation.autograd.copies import kept
from captum_lrp_tx.propagation.autograd.functions import ScaleGradient, WithValue
from captum_lrp_tx.propagation.autograd.handing_over import HandedOver
from captum_lrp_tx.propagation.autograd.pattern_product import (
    heads_of,
    transposed_pattern_product,
)
from captum_lrp_tx.propagation.autograd.uniform_attention import shares
from captum_lrp_tx.propagation.operations import FusedAttention, Kind, PatternProduct
from captum_lrp_tx.propagation.state.scope import current
from captum_lrp_tx.rules.attention import AHRule, UniformAttentionRule
from captum_lrp_tx.rules.attention_sinks import (
    LaidOut,
    is_causal_call,
    laid_out,
    patterns_of_call,
    sinks_of,
)
from captum_lrp_tx.rules.hidden_sinks import note_if_hidden
from captum_lrp_tx.rules.rule import Rule

#: What happens to the relevance of attention sinks.
Sink = Literal["distribute", "absorb"]


@dataclass(frozen=True)
class SinkRule(Rule):
    """Another rule for attention, under which sinks keep nothing of what heads take from them.

    A sink of a query is a key that has ``share`` or more of the attention of a head in the mean
    over this query and those before it (the first sees itself only, has no choice and is not
    counted). Its values add much the same whatever the text says: the sink, mostly the first token,
    would be given relevance that is no reason. What a query would give to its sinks

    * is distributed over the other keys that the query looks at, in proportion to its attention,
      and in each of them over its values, in proportion to their squares (a query that looks at
      nothing else has no sink); or
    * is absorbed like the relevance of a bias, and booked by the name of the attention module.

    Nothing else changes: relevance and named constants add up where they did under the inner rule.

    What comes later has no say in it: a position in a longer text is explained as at the end of its
    prefix. Sinks are looked for in the causal attention of decoders over a whole text, fused or
    spelled out as a matrix product, einsum or product by entries of a pattern with values. Where
    attention is not causal or has dropout, the inner rule acts alone; so it does, with a
    :class:`~captum_lrp_tx.errors.HiddenSinksWarning`, where a causal pattern is seen to be used in
    parts: a query, a block of queries or a key at a time, or on a cache of earlier tokens.

    Args:
        rule (Rule): ``AHRule()`` or ``UniformAttentionRule()``.
        share (float): Of the attention of a head, above 0 and at most 1.
        sink (str): ``"distribute"`` or ``"absorb"``. So that sinks keep what they have, use the
            inner rule alone.

    Raises:
        RuleError: Another rule, a share out of range, or another ``sink``.

    Example::

        >>> from captum_lrp_tx import Composite, ConservativeLRP
        >>> composite = Composite({"": SinkRule(AHRule())}, base="lrp")
        >>> ConservativeLRP(model, composite).attribute(ids, target=(-1, token))
    """

    rule: Rule
    share: float = 0.5
    sink: Sink = "distribute"
    kinds = frozenset({Kind.ATTENTION})

    def __post_init__(self) -> None:
        if not isinstance(self.rule, (AHRule, UniformAttentionRule)):
            raise RuleError(
                f"SinkRule takes AHRule() or UniformAttentionRule(), not {self.rule!r}."
            )
        if not isinstance(self.share, Real) or not 0 < float(self.share) <= 1:
            raise RuleError(f"share must be a number above 0 and at most 1, not {self.share!r}.")
        if self.sink not in get_args(Sink):
            raise RuleError(f"sink must be one of {get_args(Sink)}, not {self.sink!r}.")

    @property
    def covers_softmax(self) -> bool:
        """Whether relevance goes through the softmax."""
        return isinstance(self.rule, UniformAttentionRule)

    def absorbing(self) -> SinkRule:
        return replace(self, sink="absorb")

    def propagate(self, operation: PatternProduct | FusedAttention) -> Tensor:
        result = self.rule.propagate(operation)
        spreads = self.sink == "distribute"  # the backward pass looks at the pattern again
        if isinstance(operation, PatternProduct):
            found = laid_out(operation)
            if found is None:
                note_if_hidden(operation, result)
                return result
            if not found.values.requires_grad:
                return result
            part = 1.0 / len(operation.operands)
            pattern = kept(found.pattern) if spreads else found.pattern
            return self._held(
                result, lambda: (pattern,), lambda x: pattern.to(x.dtype).transpose(-2, -1) @ x,
                found.values, part, found,
            )  # fmt: skip
        fused = operation
        query, key, value, mask = fused.query, fused.key, fused.value_, fused.mask
        if fused.dropout_p or not value.requires_grad or not is_causal_call(fused):
            note_if_hidden(fused, result)
            return result
        part = shares(
            query.requires_grad, key.requires_grad, True, mask is not None and mask.requires_grad
        )[2]
        if spreads:
            query, key, mask = kept(query), kept(key), None if mask is None else kept(mask)
        blocks = list(itertools.islice(patterns_of_call(fused), 2))

        def patterns() -> Iterable[Tensor]:  # a short text has one block
            return blocks if len(blocks) == 1 else patterns_of_call(fused)

        def through(x: Tensor) -> Tensor:
            return transposed_pattern_product(
                query, heads_of(query, key), x, mask, fused.is_causal, fused.scale, None
            )

        return self._held(result, patterns, through, heads_of(query, value), part)

    def _held(
        self,
        result: Tensor,
        patterns: Callable[[], Iterable[Tensor]],
        through: Callable[[Tensor], Tensor],
        values: Tensor,
        part: float,
        product: LaidOut | None = None,
    ) -> Tensor:
        """The result, of whose relevance sinks have none.

        Args:
            result (Tensor): Under the inner rule.
            patterns (callable): Gives the pattern in blocks of rows.
            through (callable): The transposed pattern times its argument.
            values (Tensor): ``(..., heads, keys, channels)``; one head may be for all.
            part (float): Of the relevance that values have if the pattern has some.
            product (LaidOut, optional): Whose result it is, if that is laid out in another way.
        """
        part = part if self.covers_softmax else 1.0
        spreads = self.sink == "distribute"
        sinks = sinks_of(patterns, self.share, only_beside_others=spreads)
        if sinks is None:
            return result
        taken = sinks.taken(values, by_key=product is not None and product.by_key)

        def restored(x: Tensor) -> Tensor:
            return x if product is None else product.restored(x, sinks.keys)

        rest = result - ScaleGradient.call(restored(taken), part)
        if spreads:
            each = values.expand(*taken.shape[:-2], *values.shape[-2:])
            handed = HandedOver.call(
                taken.detach(), each, lambda relevance: sinks.handed_on(relevance, through)
            )
            rest = rest + ScaleGradient.call(restored(handed), part)
        held = WithValue.call(result.detach(), rest)
        scope = current()
        if scope is not None and scope.ledger is not None and not spreads:
            module = scope.module
            scope.ledger.absorb(held, part * restored(taken), f"{module}: attention sink", module)
        return held
