"""The values of attention sinks are constants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real

from torch import Tensor

from captum_lrp_tx.errors import RuleError
from captum_lrp_tx.propagation.autograd.functions import ScaleGradient, WithValue
from captum_lrp_tx.propagation.autograd.pattern_product import heads_of
from captum_lrp_tx.propagation.operations import FusedAttention, Kind, PatternProduct
from captum_lrp_tx.propagation.state.scope import current
from captum_lrp_tx.rules.attention import AHRule, UniformAttentionRule
from captum_lrp_tx.rules.attention_sinks import (
    is_causal_call,
    is_causal_product,
    sinks_of_call,
    sinks_of_product,
)
from captum_lrp_tx.rules.rule import Rule


@dataclass(frozen=True)
class SinkRule(Rule):
    """Another rule for attention, under which what a head takes from its sink is a constant.

    A sink is a key that takes ``share`` or more of the attention of a head, in the mean over the
    queries that have a choice (the first of causal attention sees itself only). Its values add much
    the same whatever the text says: the sink, mostly the first token, would be given relevance that
    is no reason. It is absorbed like that of a bias, and booked by the name of the attention
    module. Nothing else changes: relevance and named constants add up where they did under the
    inner rule.

    Sinks are looked for in fused attention and in matrix products of a pattern with values. Where
    attention is spelled in another way, heads share values that are not repeated, or dropout is on,
    the inner rule acts alone. Whether a token is a sink is decided with all tokens in view, padding
    left out, and changes with the text: a position in a longer text is explained otherwise than at
    the end of its prefix. To explain all tokens of an answer as they were generated, give each its
    prefix.

    Args:
        rule (Rule): ``AHRule()`` or ``UniformAttentionRule()``.
        share (float): Of the attention of a head, above 0 and at most 1.
        causal_only (bool): Only in causal attention, that of decoders; elsewhere, and of one query
            against a cache, the inner rule acts alone.

    Raises:
        RuleError: Another rule, or a share out of range.

    Example::

        >>> from captum_lrp_tx import Composite, ConservativeLRP
        >>> composite = Composite({"": SinkRule(AHRule())}, base="lrp")
        >>> ConservativeLRP(model, composite).attribute(ids, target=(-1, token))
    """

    rule: Rule
    share: float = 0.5
    causal_only: bool = False
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
        if isinstance(operation, PatternProduct):
            return self._product(operation)
        value = operation.value_
        if operation.dropout_p or not value.requires_grad:
            return self.rule.propagate(operation)
        if self.causal_only and not is_causal_call(operation):
            return self.rule.propagate(operation)
        sinks = sinks_of_call(operation, self.share)
        if not bool(sinks.any()):
            return self.rule.propagate(operation)
        heads = heads_of(operation.query, value)
        key = heads_of(operation.query, operation.key)
        held = _held(heads, sinks)
        result = self.rule.propagate(replace(operation, key=key, value_=held))
        if heads is not value:  # a kernel for shared heads may round otherwise
            result = WithValue.call(operation.value(), result)
        return result

    def _product(self, operation: PatternProduct) -> Tensor:
        if self.causal_only and not is_causal_product(operation):
            return self.rule.propagate(operation)
        found = sinks_of_product(operation, self.share)
        if found is None:
            return self.rule.propagate(operation)
        place, sinks = found
        values = operation.args[place]
        if not values.requires_grad or not bool(sinks.any()):
            return self.rule.propagate(operation)
        args = list(operation.args)
        args[place] = _held(values, sinks)
        return self.rule.propagate(replace(operation, args=tuple(args)))


def _held(values: Tensor, sinks: Tensor) -> Tensor:
    """Values whose rows at sinks are constants, booked if the pass keeps a ledger."""
    values = values.expand(*sinks.shape[:-1], values.shape[-1])
    passed = ScaleGradient.call(values, (~sinks).to(values.dtype))
    scope = current()
    if scope is not None and scope.ledger is not None:
        constant, module = values.detach() * sinks, scope.module
        scope.ledger.absorb(passed, constant, f"{module}: attention sink", module)
    return passed
