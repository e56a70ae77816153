"""Answers of several tokens: ``targets.Span`` and ``targets.LogOdds``."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from captum_lrp_tx import ConservativeLRP
from captum_lrp_tx.attr.targets import Contrast, LogOdds, LogProbability, Span, select_target
from captum_lrp_tx.errors import TargetError
from language_models import answer, close, language_model

SCORES = ("logit", "log-probability", "log-odds")


def by_hand(logits: Any, ids: Any, start: int, stop: int, score: str) -> Any:
    """The sum over the tokens of a span, written with probabilities."""
    total = logits.new_zeros(len(logits))
    for row in range(len(logits)):
        for place in range(start, stop):
            at, token = logits[row, place - 1], int(ids[row, place])
            p = at.softmax(-1)[token]
            value = {"logit": at[token], "log-probability": p.log(), "log-odds": torch.logit(p)}
            total[row] += value[score]
    return total


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("bounds", [(1, 5), (2, 4), (-2, None), (3, -1)])
def test_value_and_gradient_are_those_of_the_formula(score: Any, bounds: Any) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 7, (3, 5))
    span = Span(ids, *bounds, score=score)
    first, stop, _ = slice(*bounds).indices(5)
    assert repr(span) == f"Span({first}:{stop} of 5 tokens, score={score!r})"
    got, expected = select_target(logits, span), by_hand(logits, ids, first, stop, score)
    torch.testing.assert_close(got, expected)
    for a, b in zip(*(torch.autograd.grad(t.sum(), logits)[0] for t in (got, expected))):
        torch.testing.assert_close(a, b)


def test_of_equal_and_infinite_scores() -> None:
    logits = torch.tensor([[2.0, 2.0, 1.0, -torch.inf]], requires_grad=True)
    got = select_target(logits, LogOdds(0))
    torch.testing.assert_close(got, torch.logit(logits.softmax(-1)[:, 0]))
    (slope,) = torch.autograd.grad(got, logits)
    others = torch.tensor([2.0, 1.0]).softmax(0)
    torch.testing.assert_close(slope, torch.tensor([[1.0, -others[0], -others[1], 0.0]]))


@pytest.mark.parametrize("score", SCORES)
def test_a_span_is_the_sum_of_its_tokens(score: Any) -> None:
    model = language_model("llama")
    ids, tokens, length = answer("the old cat")
    lrp = ConservativeLRP(model, bias="distribute")
    single = {"logit": lambda index: index, "log-probability": LogProbability, "log-odds": LogOdds}
    rows = [
        lrp.attribute(ids, target=single[score]((length - 1 + i, token)))
        for i, token in enumerate(tokens.tolist())
    ]
    whole = lrp.attribute(ids, target=Span(ids, length, score=score))
    close(whole, sum(rows))
    assert float(whole[:, -1].abs().sum()) < 1e-12  # the last token predicts none of the span
    piece = lrp.attribute(ids, target=Span(ids[0].tolist(), length + 1, length + 3, score))
    close(piece, rows[1] + rows[2])


def test_answers_are_contrasted() -> None:
    model = language_model("llama")
    ids, _, length = answer("the old cat")
    other = ids.clone()
    other[0, length] = 5
    lrp = ConservativeLRP(model)
    a, b = Span(ids, length, length + 1), Span(other, length, length + 1)
    close(
        lrp.attribute(ids, target=Contrast(a, b)),
        lrp.attribute(ids, target=a) - lrp.attribute(ids, target=b),
    )


def test_answers_of_a_batch_end_where_each_has_its_end() -> None:
    lrp = ConservativeLRP(language_model("llama"))
    ids = torch.tensor([[1, 5, 9, 12, 7], [1, 7, 8, 0, 0]])
    mask = (ids != 0).long()
    inputs = {"input_ids": ids, "attention_mask": mask}
    found = lrp.attribute(inputs, target=[Span(ids[0], 2), Span(ids[1], 2, 3)])
    close(found[:1], lrp.attribute(ids[:1], target=Span(ids[:1], 2)))
    close(found[1:, :3], lrp.attribute(ids[1:, :3], target=Span(ids[1:, :3], 2)))
    assert not found[1:, 3:].any()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([1, 2, 3], 0), "first token of a text is not predicted"),
        (([1, 2, 3], 2, 2), "is no span of a text of 3 tokens"),
        (([1, 2, 3], 1, 4), "is no span of a text of 3 tokens"),
        (([1, 2, 3], 3), "is no span of a text of 3 tokens"),
        (([], 1), "takes token ids"),
        ((torch.ones(3), 1), "takes token ids"),
        (([1, 2, 3], 1, 2, "odds"), "score must be one of"),
    ],
)
def test_refusals(arguments: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        Span(*arguments)
