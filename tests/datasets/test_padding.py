"""Data sets by models that mind where a text is filled up, and what a call exchanges in a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_tx import Composite, ConservativeLRP, attribute_dataset, targets
from captum_lrp_tx.attr.token_gradients import TokenIntegratedGradients
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.rules import GammaRule
from captum_lrp_tx.runs.padding import as_they_were, is_alike, padded_batch

pytest.importorskip("pyarrow", exc_type=ImportError)


LENGTHS = (4, 2, 3, 2, 4)


class Minds(nn.Module):
    """A classifier that reads one place, or divides by the width of the batch."""

    def __init__(self, reads: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.reads, self.words, self.head = reads, nn.Embedding(20, 4), nn.Linear(4, 3)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.widths: list[int] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self.widths.append(len(input_ids))
        states = self.words(input_ids) * attention_mask[..., None]
        read = {
            "first": lambda: states[:, 0], "last": lambda: states[:, -1],
            "mean": lambda: states.mean(1),
        }  # fmt: skip
        logits: Tensor = self.head(read[self.reads]())
        return logits


class OnlyOne(Minds):
    """A classifier on a GPT-like model whose configuration names no padding token."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if len(input_ids) > 1:
            raise ValueError("Cannot handle batch sizes > 1 if no padding token is defined.")
        return super().forward(input_ids, attention_mask)


def rows_of() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 20, (1, n), generator=generator) for n in LENGTHS]


@pytest.mark.parametrize("together", [("first", 5), ("last", 5), ("mean", 2), ("last", 1)])
def test_every_text_is_explained_as_if_alone(together: tuple[str, int], tmp_path: Path) -> None:
    reads, most = together
    model = (Minds if most > 1 else OnlyOne)(reads).eval()
    texts = [{"input_ids": r, "attention_mask": torch.ones_like(r)} for r in rows_of()]
    found = attribute_dataset(model, texts, tmp_path, show_progress=False)
    assert model.widths[-1] <= most
    for row, text in zip(found, texts, strict=True):
        logits = model(**text)[0]
        assert row["prediction"] == int(logits.argmax())
        expected = ConservativeLRP(model).attribute(text, target=row["target"])
        assert isinstance(expected, Tensor)
        torch.testing.assert_close(torch.tensor(row["relevance"]), expected[0])
    again = attribute_dataset(model, texts, tmp_path, show_progress=False)
    assert list(again) == list(found)


class OfTokens(Minds):
    """Scores of each token, from it and from one place."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.words(input_ids) * attention_mask[..., None]
        scores: Tensor = self.head(
            (states + super().forward(input_ids, attention_mask)[:, :1, None]).sin()
        )
        return scores


@pytest.mark.parametrize("reads", ["first", "last"])  # filled up on the right, and on the left
def test_places_of_other_methods_are_those_of_each_text(reads: str, tmp_path: Path) -> None:
    model = OfTokens(reads).eval()
    texts = [{"input_ids": r, "attention_mask": torch.ones_like(r)} for r in rows_of()]
    wanted = [2, (-1, 1), (0, 2), targets.Contrast((-2, 1), (-1, 0)), (-4, 1)]
    method = TokenIntegratedGradients(model, n_steps=3)
    found = attribute_dataset(method, texts, tmp_path, target=wanted, show_progress=False)
    for row, text, one in zip(found, texts, wanted, strict=True):
        place = (text["input_ids"].shape[1] - 1, one) if isinstance(one, int) else one
        expected = method.attribute(text, target=place)
        torch.testing.assert_close(torch.tensor(row["relevance"]), expected[0])


def test_rules_of_other_modules_are_not_gone_on_with(tmp_path: Path) -> None:
    """Modules and functions as keys of a composite have the same text, whichever they are."""
    model = Minds("first").eval()
    texts = [{"input_ids": r, "attention_mask": torch.ones_like(r)} for r in rows_of()]
    keys: list[Any] = [lambda n, m: n == "head", lambda n, m: n == "words", model.head, model.words]
    for folder, (one, other) in (("a", keys[:2]), ("b", keys[2:])):
        runs = [ConservativeLRP(model, Composite([(key, GammaRule(0.5))])) for key in (one, other)]
        attribute_dataset(runs[0], texts, tmp_path / folder, show_progress=False)
        attribute_dataset(runs[0], texts, tmp_path / folder, show_progress=False)
        with pytest.raises(InputError, match="different are: rules"):
            attribute_dataset(runs[1], texts, tmp_path / folder, show_progress=False)


def test_sides() -> None:
    examples = [{"input_ids": torch.tensor(ids)} for ids in ([5, 6, 7], [8])]
    assert padded_batch(examples, 1)["input_ids"].tolist() == [[5, 6, 7], [8, 1, 1]]
    assert padded_batch(examples, 1, "left")["input_ids"].tolist() == [[5, 6, 7], [1, 1, 8]]


def test_outputs_alike() -> None:
    one = torch.tensor([[1.0, -2.0]])
    assert is_alike(one, one * (1 + 1e-6))
    assert not is_alike(one, one * 1.01)
    assert not is_alike(one, one[0])
    assert not is_alike(one, one * torch.nan)
    assert is_alike(one.bfloat16(), one.bfloat16() * 1.01)


def test_what_a_call_exchanges_is_given_back() -> None:
    class Exchanging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kind, self.part = "sparse", nn.Linear(2, 2)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: Tensor) -> Any:
            self.kind, self.part, self.added = "full", nn.Linear(2, 2), 1
            self.seen = torch.ones(1)
            self.new = nn.Linear(2, 2)
            return self.part(x)

    model = Exchanging()
    before, part, seen = dict(vars(model)), model.part, model.seen
    with as_they_were([model]):
        model(torch.zeros(1, 2))
        assert model.kind == "full"
    assert model.part is part and model.seen is seen and not hasattr(model, "added")
    assert dict(vars(model)) == before and [*model._modules] == ["part"]
