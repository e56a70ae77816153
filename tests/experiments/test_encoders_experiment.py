"""The experiment on encoders: where atoms come from, planted words, and what is kept."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_tx.models import sentiment
from experiments.encoders import planted, reactions
from experiments.encoders.__main__ import draw, explainer

TOKENS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] ( ) . = - # 1 2 3 >> B C N O S F Cl Br c n o s [nH]".split()
)
VOCABULARY = {token: i for i, token in enumerate(TOKENS)}


def test_atoms_of_a_reaction_come_from_their_counterparts() -> None:
    pytest.importorskip("rdkit")
    names = {i: token for token, i in VOCABULARY.items()}
    items = list(islice(reactions.candidates(VOCABULARY), 200))
    assert {item.task for item in items} == set(reactions.FOILS)
    unique = 0
    for item in items:
        text = [names[i] for i in item.ids]
        (reason,) = item.reasons
        answer, foil = names[item.answer], names[item.foil]
        border, mask = text.index(">>"), text.index("[MASK]")
        assert text[reason] == answer and reason < border < mask
        other = [names[i] for i in item.corrupted]
        assert [i for i, (a, b) in enumerate(zip(text, other, strict=True)) if a != b] == [reason]
        assert other[reason] == foil
        same = [i for i in range(border) if text[i] == answer]
        unique += len(same) == 1
    assert unique > 20  # where there is one candidate only, it is the right one


def test_two_chlorines_are_told_apart() -> None:
    """The chlorine that leaves is no origin of the one that stays."""
    pytest.importorskip("rdkit")
    how = "[S:1](=[O:2])(=[O:3])Cl.[N;!H0:4]>>[S:1](=[O:2])(=[O:3])[N:4]"
    made = reactions._react("O=S(=O)(Cl)c1ccc(Cl)cc1", "C1COCCN1", how)
    assert made is not None
    tokens, origins = made
    assert "".join(tokens).startswith("O=S(=O)(Cl)c1ccc(Cl)cc1.")
    (place,) = (p for p in origins if tokens[p] == "Cl")
    leaves, stays = (i for i in range(tokens.index(">>")) if tokens[i] == "Cl")
    assert place > tokens.index(">>") and origins[place] == stays and leaves < stays


def test_planted_sentences_differ_in_the_word_only() -> None:
    model, tokenizer = sentiment()
    items = list(islice(planted.candidates(tokenizer), 30))
    for item in items:
        (place,) = item.reasons
        differ = [
            i for i, (a, b) in enumerate(zip(item.ids, item.corrupted, strict=True)) if a != b
        ]
        assert differ == [place]
        word = tokenizer.convert_ids_to_tokens(item.ids[place])
        assert word in (planted.GOOD if item.answer == 1 else planted.BAD)
    kept = draw(planted.Classes(model), iter(items), 3)
    assert kept and all(item in items for item in kept)
    relevance = explainer("lrp", planted.Classes(model), 100, 0)(
        torch.tensor([kept[0].ids]), [(kept[0].answer, kept[0].foil)]
    )
    assert int(relevance[0, 1:].argmax()) + 1 in kept[0].reasons


class Counts(nn.Module):
    """Scores that count a token."""

    def forward(self, ids: Tensor) -> Tensor:
        count = (ids == 7).float().sum(1)
        return torch.stack([-count, count], 1)


def test_leaving_out_is_by_replacing() -> None:
    found = explainer("leave one out", Counts(), 5, 0)(torch.tensor([[7, 2, 7]]), [(1, 0)])
    assert found.tolist() == [[2.0, 0.0, 2.0]]


def test_the_logits_are_those_at_the_mask() -> None:
    class Model(nn.Module):
        def forward(self, ids: Tensor) -> Any:
            rows = torch.nn.functional.one_hot(ids, 10).float().cumsum(1)
            return type("Output", (), {"logits": rows})

    got = reactions.AtMask(Model(), 4)(torch.tensor([[1, 4, 2], [4, 1, 1]]))
    assert got[:, [1, 4, 2]].tolist() == [[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
