"""``AnswerLRP``: an answer of many tokens, explained by its prompt in hops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, overload

import torch
from captum.log import log_usage
from torch import Tensor

from captum_lrp_tx.attr.captum_method import CaptumMethod
from captum_lrp_tx.attr.conservative import (
    AttributionInputs,
    Memory,
    Strict,
    TargetType,
    forward_of,
)
from captum_lrp_tx.attr.conservative_lrp import ConservativeLRP
from captum_lrp_tx.attr.mappings import inputs_of
from captum_lrp_tx.attr.targets.generated_tokens import ROUNDING, GeneratedTokens, Watched
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.propagation.state.ledger import summed_by_name
from captum_lrp_tx.rules.composite import Composite
from captum_lrp_tx.rules.rule import Bias

#: Hops end when less than this part of what was on the answer at first is left there.
_LEFT = 1e-3
#: Names of what hops add to the constants of the model.
CONSTANT = "target: what is not linear in the logits"
UNDECIDED = "answer: tokens that the model did not prefer"


@dataclass(frozen=True, eq=False)
class AnswerRelevance:
    """Relevance of a text for an answer in it, after each hop.

    Attributes:
        value (Tensor): The explained value of each example, ``(batch,)``.
        relevance (Tensor): ``(hops + 1, batch, tokens)``: on the prompt what has come there so far,
            on the answer what the next hop passes on.
        absorbed (tuple of dict): By name, after each hop, what constants have taken so far, summed
            over the batch, the largest first.
        start (int): Place of the first token of the answer.
    """

    value: Tensor
    relevance: Tensor
    absorbed: tuple[dict[str, float], ...]
    start: int

    @property
    def hops(self) -> int:
        """How many there were."""
        return len(self.relevance) - 1

    @property
    def left(self) -> Tensor:
        """Magnitude of the relevance that is on the answer after each hop, ``(hops + 1,)``."""
        return self.relevance[..., self.start :].abs().sum((1, 2))

    @property
    def unaccounted(self) -> Tensor:
        """After each hop the explained value minus relevance and constants, ``(hops + 1,)``.

        Summed over the batch; zero, up to rounding, under rules that conserve relevance.
        """
        taken = torch.tensor([sum(named.values()) for named in self.absorbed]).double()
        return self.value.double().sum().cpu() - self.relevance.double().sum((1, 2)).cpu() - taken


class AnswerLRP(CaptumMethod):
    r"""
    Which part of the prompt an answer rests on, if answers are written token by token.

    A token of an answer is chosen because of the prompt and of the tokens before it, which
    themselves were chosen because of the prompt.  Relevance that lies on a generated token is
    therefore passed on: as much of it to every earlier token and constant as that had in the choice
    of this token.  One such hop takes one forward and one backward pass for all tokens together.
    As a token is only chosen by earlier ones, all relevance is on the prompt or on named constants
    after as many hops as the answer has tokens; mostly a few are enough.  Relevance and constants
    add up to the explained value after every hop, if the rules conserve relevance.

    What is passed on is explained by how much the token was preferred to all others: by
    :math:`s = z_t - \sum_{k \ne t} q_k z_k`, its log-odds plus the entropy of the others.
    Relevance r of the token becomes :math:`r / s` times the relevance for s.  Where the model was
    undecided, s is near zero, and where a token was sampled or given it may be below: then the
    token is there by chance. If s is below ``margin``, only the part s / ``margin`` of r is passed
    on, none if s is negative; the rest is booked as a constant.

    Source: hops as in FlashTrace (Pan et al., "Towards Long-Horizon Interpretability: Efficient and
    Faithful Multi-Token Attribution for Reasoning LLMs", ICML 2026, arXiv 2602.01914), here with
    relevance that is conserved in place of its scores, and with the factor r / s.

    Args:
        model, rules, bias, epsilon, memory: See :class:`~captum_lrp_tx.ConservativeLRP`. A causal
            language model: logits of shape ``(batch, tokens, vocabulary)``.

    Raises:
        RuleError: unknown preset.

    Example::

        >>> ids = lm.generate(prompt, max_new_tokens=20, do_sample=False)
        >>> relevance = AnswerLRP(lm).attribute(ids, start=prompt.shape[1])  # (1, tokens)
    """

    _title = "Answer LRP"
    _gives_delta = True

    def __init__(
        self,
        model: Callable[..., Any],
        rules: str | Composite = "lrp",
        *,
        bias: Bias = "absorb",
        epsilon: float | None = None,
        memory: Memory = "standard",
    ) -> None:
        CaptumMethod.__init__(self, model)
        self._lrp = ConservativeLRP(model, rules, bias=bias, epsilon=epsilon, memory=memory)

    @overload
    def attribute(
        self,
        inputs: AttributionInputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
        return_convergence_delta: Literal[False] = False,
        *,
        start: int,
        hops: int | None = None,
        margin: float = 1.0,
        strict: Strict = False,
    ) -> Tensor: ...

    @overload
    def attribute(
        self,
        inputs: AttributionInputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
        *,
        return_convergence_delta: Literal[True],
        start: int,
        hops: int | None = None,
        margin: float = 1.0,
        strict: Strict = False,
    ) -> tuple[Tensor, Tensor]: ...

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: AttributionInputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        *,
        start: int,
        hops: int | None = None,
        margin: float = 1.0,
        strict: Strict = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """
        Relevance of the prompt, and what is left on the answer, after the last hop.

        Args:
            inputs: Token ids of prompt and answer, ``(batch, tokens)``, or a mapping with them;
                padded on the left, or behind the answer if the mapping has an ``attention_mask``.
            target (optional): What is explained first, as :meth:`ConservativeLRP.attribute
                <captum_lrp_tx.ConservativeLRP.attribute>` takes it: the last word
                (``targets.Span(ids, -2)``), say, or a contrast of next tokens. Unless given, how
                much all tokens of the answer were preferred, see this class.
            additional_forward_args, strict: See :meth:`ConservativeLRP.attribute
                <captum_lrp_tx.ConservativeLRP.attribute>`.
            return_convergence_delta (bool): Also return the explained value minus the sum of
                relevance.
            start (int): Place of the first token of the answer: the length of the prompt.
            hops (int, optional): How many at most; 0 for none. Unless given, until no more than a
                thousandth is left on the answer, for each example.
            margin (float): Tokens preferred by less, in nats, hand on only part of their relevance.

        Returns:
            Tensor, or 2-element tuple of **attributions**, **delta**:

            - **attributions** (Tensor): ``(batch, tokens)``.
            - **delta** (Tensor): ``(batch,)``.

        Raises:
            InputError: other inputs than token ids, a start outside of the text, or numbers of hops
                or a margin that are none.
            TargetError: the model's output has no logits for each token.
            Exception: As :meth:`ConservativeLRP.attribute
                <captum_lrp_tx.ConservativeLRP.attribute>`.

        Example::

            >>> last = targets.Span(ids, -1, score="log-odds")
            >>> AnswerLRP(lm).attribute(ids, target=last, start=prompt.shape[1], hops=3)
        """
        found = self.attribute_hops(
            inputs, target, additional_forward_args,
            start=start, hops=hops, margin=margin, strict=strict,
        )  # fmt: skip
        relevance = found.relevance[-1]
        if not return_convergence_delta:
            return relevance
        return relevance, found.value - relevance.sum(1)

    def attribute_hops(
        self,
        inputs: AttributionInputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
        *,
        start: int,
        hops: int | None = None,
        margin: float = 1.0,
        strict: Strict = False,
    ) -> AnswerRelevance:
        """
        Relevance after every hop, with the constants by name.

        Args:
            inputs, target, additional_forward_args, start, hops, margin, strict: See
                :meth:`attribute`.

        Returns:
            AnswerRelevance: Value, relevance and named constants.

        Raises:
            Exception: As :meth:`attribute`.

        Example::

            >>> found = AnswerLRP(lm).attribute_hops(ids, start=prompt.shape[1])
            >>> found.relevance[:, :, : found.start].sum((1, 2))  # what has come to the prompt
        """
        ids, mask = _text(inputs, start)
        limit = _limit(hops, ids.shape[1] - start)
        if not isinstance(margin, (int, float)) or not margin > 0:
            raise InputError(f"margin must be a number of nats above 0, not {margin!r}.")
        written = ids.new_ones(ids[:, start:].shape) if mask is None else mask[:, start:]
        if target is None:
            target = GeneratedTokens(ids, start, written.float())
        watched = Watched(target, ids, start)

        def explain(target: TargetType) -> tuple[Tensor, Tensor, dict[str, float]]:
            result, _ = self._lrp._propagate(
                forward_of(self), inputs, target, additional_forward_args, strict, keep_ledger=True
            )
            ledger = result.scope.ledger
            assert ledger is not None
            return result.output, result.relevances[0], ledger.by_name()

        value, relevance, named = explain(watched)
        absorbed = [_added(named, {CONSTANT: watched.rest(value)})]
        steps = [relevance]
        left = relevance[:, start:].abs().sum(1)  # each example ends by itself, as it does alone
        enough = left * _LEFT if hops is None else torch.zeros_like(left)
        preferred = watched.preferred.to(relevance)
        while len(steps) <= limit and bool((left > enough).any()):
            given = relevance[:, start:] * (left > enough)[:, None]
            passed = torch.where(preferred > 0, given / preferred.clamp(min=margin), 0.0)
            _, come, named = explain(GeneratedTokens(ids, start, passed))
            kept = (given - passed * preferred).double()
            kept = torch.where(kept.abs() > ROUNDING * given.abs(), kept, 0.0)
            stays = torch.cat([relevance[:, :start], relevance[:, start:] - given], 1)
            relevance = come + stays
            steps.append(relevance)
            absorbed.append(_added(absorbed[-1], named, {UNDECIDED: float(kept.sum())}))
            left = relevance[:, start:].abs().sum(1)
        return AnswerRelevance(value, torch.stack(steps), tuple(absorbed), start)


def _text(inputs: AttributionInputs, start: int) -> tuple[Tensor, Tensor | None]:
    """Token ids of prompt and answer, and their mask."""
    prepared = inputs_of(inputs)
    leaves = prepared.leaves
    if len(leaves) != 1 or not leaves[0].is_ids or leaves[0].original.dim() != 2:
        given = ", ".join(prepared.keys or ()) or f"{len(leaves)} tensors"
        raise InputError(
            "AnswerLRP passes relevance on from token to token: it takes token ids of shape "
            f"(batch, tokens) and nothing else that is attributed to, not {given}."
        )
    ids = leaves[0].original
    if not isinstance(start, Integral) or not 1 <= start < ids.shape[1]:
        raise InputError(
            f"start={start!r} is no place of an answer in a text of {ids.shape[1]} tokens; it is "
            "the length of the prompt, which has one token or more."
        )
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return ids, mask if isinstance(mask, Tensor) and mask.shape == ids.shape else None


def _limit(hops: int | None, length: int) -> int:
    """The most hops: behind as many as there are tokens in the answer nothing is left there."""
    if hops is None:
        return length
    if not isinstance(hops, Integral) or isinstance(hops, bool) or hops < 0:
        raise InputError(f"hops must be a number of hops, 0 or more, or None, not {hops!r}.")
    return int(hops)


def _added(*named: dict[str, float]) -> dict[str, float]:
    return summed_by_name(item for part in named for item in part.items())
