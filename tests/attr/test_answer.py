"""``AnswerLRP``: hops against one explanation for each token and a triangular system."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_lrp_tx import AnswerLRP, ConservativeLRP, audit
from captum_lrp_tx.attr.answer import CONSTANT, UNDECIDED
from captum_lrp_tx.attr.targets import Contrast, LogOdds, Span, Sum
from captum_lrp_tx.errors import InputError, TargetError
from language_models import language_model

PROMPT, ANSWER = 4, 5


def written(family: str, rows: int = 1, greedy: bool = True) -> tuple[Any, Tensor]:
    """A model in float64, prompts and answers of likeliest tokens, or with an unlikely second."""
    model = copy.deepcopy(language_model(family)).double()
    torch.manual_seed(1)
    ids = torch.randint(4, 18, (rows, PROMPT))
    for i in range(ANSWER):
        with torch.no_grad():
            ranked = model(ids).logits[:, -1].argsort(-1, descending=True)
        token = ranked[:, 0 if greedy or i != 1 else 9]
        ids = torch.cat([ids, token[:, None]], 1)
    return model, ids


def by_hand(model: Any, ids: Tensor, first: Tensor, rules: str, margin: float) -> Tensor:
    """Where relevance ends that lies on a text of one row: all tokens explained one by one.

    The share of a token in the choice of a later one is its relevance for the log-odds of that
    one in its prefix. With the shares within the answer in G, weights w on its tokens solve
    w (I - G) = r, and G is strictly lower triangular.
    """
    lrp = ConservativeLRP(model, rules)
    shares = torch.zeros(ANSWER, PROMPT + ANSWER, dtype=torch.float64)
    passed = torch.zeros(ANSWER, dtype=torch.float64)
    for i in range(ANSWER):
        prefix, token = ids[:, : PROMPT + i], int(ids[0, PROMPT + i])
        relevance = lrp.attribute(prefix, target=LogOdds((-1, token)))
        with torch.no_grad():
            z = model(prefix).logits[0, -1]
        others = torch.cat([z[:token], z[token + 1 :]])
        strength = float(z[token] - (others.softmax(0) * others).sum())
        passed[i] = max(min(strength / margin, 1.0), 0.0)
        shares[i, : PROMPT + i] = relevance[0] / strength
    shares = shares * passed[:, None]
    inner = shares[:, PROMPT:]
    assert not inner.triu().any()
    unit = torch.eye(ANSWER, dtype=torch.float64)
    weights = torch.linalg.solve_triangular(
        (unit - inner).T, first[PROMPT:, None], upper=True, unitriangular=True
    )
    return first[:PROMPT] + weights[:, 0] @ shares[:, :PROMPT]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("rules", ["lrp", "attnlrp", "gi"])
@pytest.mark.parametrize("greedy", [True, False])
def test_all_hops_solve_the_triangular_system(family: str, rules: str, greedy: bool) -> None:
    model, ids = written(family, greedy=greedy)
    target = Span(ids, -2, score="log-odds")
    first = ConservativeLRP(model, rules).attribute(ids, target=target)
    got = AnswerLRP(model, rules).attribute(ids, target=target, start=PROMPT, hops=ANSWER)
    assert not got[:, PROMPT:].any()
    torch.testing.assert_close(
        got[0, :PROMPT], by_hand(model, ids, first[0], rules, 1.0), rtol=1e-6, atol=1e-6
    )
    assert float((first - got)[:, :PROMPT].abs().max()) > 1e-3


@pytest.mark.parametrize(
    "score, rules, family",
    [
        *zip(
            ["logit", "log-probability", "log-odds", None] * 3,
            ["lrp", "attnlrp", "language"] * 4,
            ["llama"] * 4 + ["gpt2"] * 4 + ["qwen2"] * 4,
        )
    ],
)
def test_relevance_and_named_constants_are_the_value_at_every_hop(
    family: str, rules: str, score: Any
) -> None:
    model, ids = written(family, rows=2, greedy=False)
    target = None if score is None else Span(ids, PROMPT, score=score)
    found = AnswerLRP(model, rules).attribute_hops(ids, target, start=PROMPT, hops=ANSWER)
    assert found.hops >= 2 and len(found.absorbed) == found.hops + 1
    assert float(found.unaccounted.abs().max()) < 1e-5 * float(found.value.abs().sum())
    assert (CONSTANT in found.absorbed[0]) == (score in ("log-probability", "log-odds"))
    assert UNDECIDED in found.absorbed[-1]  # some token of a drawn answer was not preferred
    assert float(found.left[0]) > 0 and float(found.left[-1]) == 0


def test_no_hop_is_the_explanation_of_the_target() -> None:
    model, ids = written("llama", rows=2)
    target = [Contrast((-1, 5), (-1, 6))] * 2
    found = AnswerLRP(model).attribute_hops(ids, target, start=PROMPT, hops=0)
    torch.testing.assert_close(
        found.relevance[0], ConservativeLRP(model).attribute(ids, target=target)
    )
    report = audit.explainability(model, ids, target, file=None)
    assert found.absorbed[0] == pytest.approx(report.absorbed)


def test_batches_are_explained_row_by_row_and_padding_is_left_out() -> None:
    model, ids = written("llama", rows=2)
    lrp = AnswerLRP(model)
    both, delta = lrp.attribute(ids, start=PROMPT, hops=ANSWER, return_convergence_delta=True)
    for row in range(2):
        torch.testing.assert_close(
            both[row], lrp.attribute(ids[row : row + 1], start=PROMPT, hops=ANSWER)[0]
        )
    torch.testing.assert_close(delta.shape, (2,))
    short = torch.cat([ids[:1], torch.zeros(1, 2, dtype=torch.long)], 1)
    mask = torch.ones_like(short)
    mask[:, -2:] = 0
    padded = lrp.attribute({"input_ids": short, "attention_mask": mask}, start=PROMPT, hops=ANSWER)
    torch.testing.assert_close(padded[:, :-2], both[:1])
    assert not padded[:, -2:].any()


def test_hops_end_by_themselves() -> None:
    model, ids = written("llama")
    found = AnswerLRP(model).attribute_hops(ids, start=PROMPT)
    left = found.left / found.left[0]
    assert 0 < found.hops < ANSWER and float(left[-1]) <= 1e-3 < float(left[-2])


def test_hops_of_an_example_end_as_they_do_alone() -> None:
    model, ids = written("llama", rows=3)
    # beside relevance of another size, what is left here is little
    target = [Sum((-1, 3), weights=w) for w in (1e-4, 1.0, 1e3)]
    lrp = AnswerLRP(model)
    together = lrp.attribute(ids, target=target, start=PROMPT)
    for row in range(3):
        alone = lrp.attribute_hops(ids[row : row + 1], target=[target[row]], start=PROMPT)
        torch.testing.assert_close(together[row], alone.relevance[-1, 0], rtol=1e-6, atol=1e-12)


def test_a_larger_margin_hands_on_less() -> None:
    model, ids = written("llama")
    come = [
        AnswerLRP(model).attribute_hops(ids, start=PROMPT, hops=ANSWER, margin=m).absorbed[-1]
        for m in (1e-9, 100.0)
    ]
    assert UNDECIDED not in come[0] or abs(come[0][UNDECIDED]) < 1e-6
    assert abs(come[1][UNDECIDED]) > 0.1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"start": 0}, "no place of an answer"),
        ({"start": PROMPT + ANSWER}, "no place of an answer"),
        ({"start": PROMPT, "hops": -1}, "hops must be"),
        ({"start": PROMPT, "hops": True}, "hops must be"),
        ({"start": PROMPT, "margin": 0}, "margin must be"),
    ],
)
def test_refusals(options: Any, message: str) -> None:
    model, ids = written("llama")
    with pytest.raises(InputError, match=message):
        AnswerLRP(model).attribute(ids, **options)


def test_refusals_of_inputs_and_outputs() -> None:
    model, ids = written("llama")
    rows = model.get_input_embeddings()(ids).detach()
    with pytest.raises(InputError, match="from token to token"):
        AnswerLRP(model).attribute({"inputs_embeds": rows}, start=PROMPT)
    with pytest.raises(TargetError, match="one row for each token"):
        AnswerLRP(lambda ids: model(ids).logits[:, -1:]).attribute(ids, start=PROMPT)
