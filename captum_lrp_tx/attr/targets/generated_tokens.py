"""Targets over all tokens of a generated answer at once."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_lrp_tx.attr.targets.indices import Target, TargetType, select_target
from captum_lrp_tx.errors import TargetError

#: A smaller part of a value than this is rounding.
ROUNDING = 1e-6


class GeneratedTokens(Target):
    r"""
    Weighted sum, over the tokens of an answer, of how much each was preferred to all others.

    With the softmax q over the logits of the others, a token :math:`t` was preferred by
    :math:`z_t - \sum_{k \ne t} q_k z_k`, its log-odds plus the entropy of q, in nats.  It is
    never negative for the likeliest token.  The q are constants.

    Args:
        ids (Tensor): The text, prompt and answer: ``(batch, tokens)``.
        start (int): Place of the first token of the answer.
        weights (Tensor): Of the tokens of the answer: ``(batch, tokens - start)``.

    Raises:
        TargetError: (on use) the output has no logits at each place of the text.
    """

    def __init__(self, ids: Tensor, start: int, weights: Tensor) -> None:
        self._ids, self._start, self._weights = ids, start, weights

    def __repr__(self) -> str:
        return f"GeneratedTokens({self._start}:{self._ids.shape[1]})"

    def select(self, output: Tensor) -> Tensor:
        logits = answer_logits(output, self._ids, self._start)
        terms = preferences(logits, self._ids[:, self._start :])
        return (self._weights.to(terms) * terms).sum(1)


class Watched(Target):
    """Another target, whose value is split into what is linear in the output and the rest.

    Args:
        target: What is explained.
        ids (Tensor): The text, prompt and answer: ``(batch, tokens)``.
        start (int): Place of the first token of the answer.

    Attributes:
        preferred (Tensor): Once selected: how much each token of the answer was preferred, of shape
            ``(batch, tokens - start)``.
    """

    def __init__(self, target: TargetType, ids: Tensor, start: int) -> None:
        self._target, self._ids, self._start = target, ids, start
        self.preferred = torch.empty(0)
        self._linear = torch.empty(0)

    def __repr__(self) -> str:
        return repr(self._target)

    def select(self, output: Tensor) -> Tensor:
        plain = output.detach()
        logits = answer_logits(plain, self._ids, self._start)
        self.preferred = preferences(logits, self._ids[:, self._start :])
        with torch.enable_grad():
            leaf = plain.requires_grad_()
            value = select_target(leaf, self._target)
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        terms = torch.where(slope == 0, 0.0, slope * plain.detach())  # 0 times minus infinity
        self._linear = terms.flatten(1).double().sum(1)
        return select_target(output, self._target)

    def rest(self, value: Tensor) -> float:
        """What of the value is no gradient times output, such as the entropy in a log-odds.

        Args:
            value (Tensor): That was selected, ``(batch,)``.
        """
        rest = value.double() - self._linear
        return float(torch.where(rest.abs() > ROUNDING * value.abs(), rest, 0.0).sum())


def answer_logits(output: Tensor, ids: Tensor, start: int) -> Tensor:
    """The logits that the tokens of an answer were chosen by: ``(batch, answer, vocabulary)``."""
    if output.dim() != 3 or output.shape[:2] != ids.shape:
        raise TargetError(
            f"The output has the shape {tuple(output.shape)}; an answer is explained by logits of "
            f"shape {(*ids.shape, 'vocabulary')}, one row for each token of prompt and answer."
        )
    logits = output[:, start - 1 : -1]
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def preferences(logits: Tensor, tokens: Tensor) -> Tensor:
    """By how much each token was preferred to all others, linear in the logits.

    Args:
        logits (Tensor): ``(batch, places, vocabulary)``.
        tokens (Tensor): Which token stands at each place: ``(batch, places)``.

    Returns:
        Tensor: ``(batch, places)``, in nats.
    """
    places = tokens.to(logits.device).unsqueeze(-1)
    with torch.no_grad():
        others = logits.scatter(-1, places, -torch.inf).softmax(-1)
    kept = logits.masked_fill(others == 0, 0.0)  # 0 times minus infinity
    return logits.gather(-1, places).squeeze(-1) - (others * kept).sum(-1)
