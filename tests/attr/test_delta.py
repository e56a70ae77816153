"""The delta where outputs and inputs have different numbers of rows: one number, no broadcast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_tx import ConservativeLRP, LayerConservativeLRP
from captum_lrp_tx.attr.token_gradients import TokenIntegratedGradients, TokenSaliency
from captum_lrp_tx.errors import InputError, OutputError
from captum_lrp_tx.metrics.sums import _total

pytestmark = pytest.mark.captum


class TwoKinds(nn.Module):
    """Token ids and pixel patches, as Qwen2-VL has them: patches of all images in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.patches = nn.Embedding(20, 8), nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        seen = self.patches(pixel_values).relu().reshape(len(input_ids), -1, 8)
        both: Tensor = torch.cat([seen, self.words(input_ids)], 1)
        return self.head(both.sum(1).relu())


class Matching(nn.Module):
    """One image against several texts: logits per image, or per text."""

    def __init__(self, per_image: bool) -> None:
        super().__init__()
        self.words, self.pixels, self.per_image = nn.Embedding(20, 8), nn.Linear(6, 8), per_image

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        scores = self.words(input_ids).sum(1) @ self.pixels(pixel_values).T
        return scores.T if self.per_image else scores


def explained(model: nn.Module, inputs: dict[str, Tensor], target: int) -> tuple[Tensor, Tensor]:
    """The delta, and what it must sum to by the model's own output."""
    relevance, delta = ConservativeLRP(model).attribute(
        inputs, target=target, return_convergence_delta=True
    )
    right = model(**inputs)[:, target].sum() - sum(r.sum() for r in relevance)
    return delta, right.detach()


@pytest.mark.parametrize("examples", [1, 2, 4])
def test_patches_beside_token_ids(examples: int) -> None:
    inputs = {"input_ids": torch.randint(0, 20, (examples, 3)),
              "pixel_values": torch.randn(examples * 4, 6)}  # fmt: skip
    delta, right = explained(TwoKinds().eval(), inputs, 2)
    assert delta.shape == (1,)
    torch.testing.assert_close(delta[0], right)


@pytest.mark.parametrize("per_image", [True, False])
def test_one_image_and_three_texts(per_image: bool) -> None:
    inputs = {"input_ids": torch.randint(0, 20, (3, 4)), "pixel_values": torch.randn(1, 6)}
    delta, right = explained(Matching(per_image).eval(), inputs, 0)
    assert delta.shape == (1,)
    torch.testing.assert_close(delta[0], right)


POOLED: dict[str, Any] = {
    "mean": lambda y: y.mean(0, keepdim=True),
    "scalar": lambda y: y[:, 0].sum(),
    "graphs": lambda y: torch.zeros(2, 3).index_add(0, torch.tensor([0, 0, 1, 1]), y),
}


@pytest.mark.parametrize("pool", POOLED)
def test_outputs_pooled_from_the_batch(pool: str) -> None:
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(4, 6)
    target = None if pool == "scalar" else 1

    def forward(x: Tensor) -> Tensor:
        y: Tensor = POOLED[pool](model(x))
        return y

    output = forward(x) if target is None else forward(x)[:, target]
    explainer = ConservativeLRP(forward)
    relevance, delta = explainer.attribute(x, target=target, return_convergence_delta=True)
    assert delta.shape == (1,)
    torch.testing.assert_close(delta[0], (output.sum() - relevance.sum()).detach())
    layer = LayerConservativeLRP(forward, model[0])
    relevance, delta = layer.attribute(x, target=target, return_convergence_delta=True)
    torch.testing.assert_close(delta, (output.sum() - relevance.sum()).detach()[None])
    if target is not None:
        _, deltas = explainer.attribute_targets(x, [0, 1], return_convergence_delta=True)
        assert deltas.shape == (2, 1)
        torch.testing.assert_close(deltas[1], explainer.attribute(
            x, target=1, return_convergence_delta=True)[1])  # fmt: skip


def test_by_example_where_the_rows_agree() -> None:
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(4, 6)
    explainer = ConservativeLRP(model)
    relevance, delta = explainer.attribute(x, target=1, return_convergence_delta=True)
    expected = (model(x)[:, 1] - relevance.sum(1)).detach()
    torch.testing.assert_close(delta, expected)
    torch.testing.assert_close(
        explainer.compute_convergence_delta(relevance, model(x)[:, 1:2].detach()), expected
    )
    parts = (relevance, relevance[:, :2])
    torch.testing.assert_close(
        explainer.compute_convergence_delta(parts, model(x)[:, 1].detach()),
        expected - relevance[:, :2].sum(1),
    )


def test_several_values_for_each_example_are_no_explained_output() -> None:
    model, x = nn.Linear(6, 3), torch.randn(3, 6)
    explainer = ConservativeLRP(model)
    with pytest.raises(InputError, match="several values"):
        explainer.compute_convergence_delta(explainer.attribute(x, target=0), model(x))
    with pytest.raises(InputError, match="several values"):
        explainer.compute_convergence_delta(x[:1], model(x[:1]))


def test_integrated_gradients_need_an_output_for_each_example() -> None:
    """Captum runs several points of the way at once: an output of all would mix them."""
    pooled = nn.Sequential(
        nn.Embedding(20, 3), nn.Flatten(0, 1), nn.Unflatten(0, (1, -1)), nn.Flatten()
    )
    method = TokenIntegratedGradients(pooled, baseline=0)
    with pytest.raises(OutputError, match=r"shape \(1, 1200\) for 100 inputs.*ConservativeLRP"):
        method.attribute(torch.randint(1, 20, (2, 4)), target=1)
    with pytest.raises(OutputError, match=r"shape \(1, 24\) for 2 inputs.*ConservativeLRP"):
        TokenSaliency(pooled).attribute(torch.randint(1, 20, (2, 4)), target=1)


def test_conservation_by_example_needs_a_row_for_each() -> None:
    assert _total(torch.ones(2, 3), 2).tolist() == [3, 3]
    assert _total((torch.ones(2, 3), torch.ones(2, 2)), 2).tolist() == [5, 5]
    with pytest.raises(InputError, match="no row for each"):
        _total(torch.ones(3, 2, 4), 2)
