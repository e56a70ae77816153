"""Targets of language models whose answer is longer than a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Union, get_args

import torch
from torch import Tensor

from captum_lrp_tx.attr.targets.indices import LogProbability, Sum, TargetType, logsumexp
from captum_lrp_tx.errors import TargetError

#: What is explained of each token.
Score = Literal["logit", "log-probability", "log-odds"]


class LogOdds(LogProbability):
    r"""
    Logarithm of the odds of an index: its probability over that of all others together.

    It is the logit :math:`z_t` minus the logsumexp of the other logits, and unlike the
    log-probability it does not go to zero where the model is sure.  With
    :math:`q = \mathrm{softmax}` over the others, relevance adds up to
    :math:`z_t - \sum_{k \ne t} q_k z_k` under rules that conserve, which is the log-odds plus the
    entropy H(q) in nats.

    Args:
        target (int, tuple, Tensor or list): An index of one of Captum's kinds.
        dim (int): The dimension of the output that the probabilities sum to one over.

    Raises:
        TargetError: something that is no index.

    Example::

        >>> relevance = ConservativeLRP(model).attribute(ids, target=LogOdds((5, 17)))
    """

    def _others(self, chosen: Tensor, scores: Tensor) -> Tensor:
        # the place of the chosen score; of equal scores any one, as all give the same value
        place = (scores == chosen.unsqueeze(1)).int().argmax(1, keepdim=True)
        return logsumexp(scores.scatter(1, place, -torch.inf))


class Span(Sum):
    r"""
    An answer of a causal language model, or a piece of it, explained in one pass.

    The token at place ``p`` of a text is predicted at place ``p - 1``.  The target is the sum over
    the tokens of the span of their logits, log-probabilities or log-odds; relevance lies on the
    prompt and on those generated tokens before the end of the span that helped to predict later
    ones.

    A span knows no mask: padding behind a shorter answer counts as part of it.  Give a list then,
    one span for each text, that ends where its answer does.

    Args:
        ids (Tensor or sequence of int): The text, prompt and answer: ``(tokens,)``, or
            ``(batch, tokens)`` where each example has its own.
        start (int): Place of the first token of the span, at least 1; negative counts from the end.
        stop (int, optional): Place behind its last token; the end of the text unless given.
        score (str): ``"logit"``, ``"log-probability"`` or ``"log-odds"`` of each token.

    Raises:
        TargetError: no token ids, an empty span, one that begins at place 0 or is not in the text,
            or an unknown score.

    Example::

        >>> ids = torch.cat([prompt, answer], dim=1)  # (1, tokens)
        >>> relevance = ConservativeLRP(lm).attribute(ids, target=Span(ids, prompt.shape[1]))
        >>> last_word = Span(ids, -2, score="log-odds")  # if the last word has two tokens
    """

    def __init__(
        self,
        ids: Union[Tensor, Sequence[int]],
        start: int,
        stop: int | None = None,
        score: Score = "logit",
    ) -> None:
        if score not in get_args(Score):
            raise TargetError(f"score must be one of {get_args(Score)}, not {score!r}.")
        texts = _texts(ids)
        length = len(texts[0])
        first, end, _ = slice(start, stop).indices(length)
        out = (stop is not None and abs(stop) > length) or not -length <= start < length
        if out or first >= end:
            raise TargetError(
                f"{start}:{'' if stop is None else stop} is no span of a text of {length} tokens."
            )
        if first == 0:
            raise TargetError(
                "The first token of a text is not predicted; begin the span at place 1 or later, "
                "behind a start token or prompt."
            )
        super().__init__(*[_token(texts, place, score) for place in range(first, end)])
        self._shown = f"Span({first}:{end} of {length} tokens, score={score!r})"

    def __repr__(self) -> str:
        return self._shown


def _token(texts: list[list[int]], place: int, score: Score) -> TargetType:
    """The target for the token at a place, one index for each text."""
    indices: list[tuple[int, ...]] = [(place - 1, text[place]) for text in texts]
    index: TargetType = indices[0] if len(indices) == 1 else indices
    if score == "logit":
        return index
    return LogProbability(index) if score == "log-probability" else LogOdds(index)


def _texts(ids: Union[Tensor, Sequence[int]]) -> list[list[int]]:
    if not isinstance(ids, Tensor):
        ids = torch.as_tensor(list(ids))
    if ids.dim() not in (1, 2) or ids.numel() == 0 or ids.is_floating_point():
        raise TargetError(
            f"Span takes token ids of shape (tokens,) or (batch, tokens), not {tuple(ids.shape)} "
            f"of {ids.dtype}."
        )
    texts: list[list[int]] = ids.reshape(-1, ids.shape[-1]).tolist()
    return texts
