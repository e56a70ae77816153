"""Which output is measured where no target is named."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_tx.comparing import compare
from captum_lrp_tx.errors import TargetError
from captum_lrp_tx.metrics import MaskTokens, activation_curve, captum_scores, conservation


class Numbers(nn.Module):
    """Three numbers of each text, as a regression of transformers has them."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)
        self.config = SimpleNamespace(
            problem_type="regression", num_labels=3, id2label={0: "joy", 1: "fear", 2: "anger"}
        )

    def forward(self, ids: Tensor) -> Tensor:
        made: Tensor = self.head(self.words(ids).mean(1))
        return made


IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])
MEASURES: dict[str, Callable[[Any, Any], Any]] = {
    "compare": lambda model, target: compare(model, IDS[:1], target, methods="GI"),
    "curve": lambda model, target: activation_curve(
        model, IDS, torch.ones(2, 3), target, masker=MaskTokens(0), measure="logit"
    ),
    "conservation": lambda model, target: conservation(
        model, IDS, target, rules={"LRP": "lrp"}, layers=[model.head]
    ),
    "captum": lambda model, target: captum_scores(
        model,
        IDS,
        ["LRP"],
        target=target,
        masker=MaskTokens(0),
        n_perturb_samples=2,
        n_noise_samples=2,
    ),
}


@pytest.mark.parametrize("measure", MEASURES)
def test_no_number_of_a_regression_is_the_prediction(measure: str) -> None:
    model = Numbers().eval()
    with pytest.raises(TargetError, match="3 numbers; name one as target: joy, fear, anger"):
        MEASURES[measure](model, None)
    assert MEASURES[measure](model, "fear") is not None
    model.config.problem_type = "single_label_classification"
    assert MEASURES[measure](model, None) is not None


def test_one_number_of_them_is_enough() -> None:
    model = Numbers().eval()
    curve = activation_curve(
        lambda ids: model(ids)[:, 1], IDS, torch.ones(2, 3), masker=MaskTokens(0), measure="logit"
    )
    assert curve.values.shape[0] == 2
