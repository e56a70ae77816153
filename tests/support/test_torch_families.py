"""The transformers of torch.nn and torchvision, tiny and random: equal to the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import zoo
from captum_lrp_tx import ConservativeLRP, audit
from captum_lrp_tx.errors import UnreachedInputError
from families import torch_modules as walker
from families.common import PRESETS, TOLERANCE, NotBuilt, check

pytestmark = pytest.mark.image_models


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", walker.names())
def test_family_is_verified(name: str, preset: str, untouched: Any) -> None:
    try:
        (case,) = walker.cases(name)
    except NotBuilt as error:
        pytest.skip(str(error))
    with untouched(case.model):
        outcome = check(case, preset)
    assert outcome.status in ("verified", "convention"), outcome
    report = audit.explainability(
        case.forward, case.inputs, case.target, rules=preset, file=None, strict=True
    )
    if preset == "lrp":
        scale = abs(report.output) + sum(abs(v) for v in report.absorbed.values())
        assert abs(report.conservation_error) <= TOLERANCE * scale


def fast_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(zoo.WIDTH, zoo.HEADS, 24, batch_first=True)
    return zoo.randomise(nn.TransformerEncoder(layer, 2)).requires_grad_(False)


def test_the_fast_path_does_not_hide_operations() -> None:
    """A layer that would run as one fused operation is taken apart, with the same result."""
    model, x = fast_encoder(), zoo.floats(2, zoo.TOKENS, zoo.WIDTH)
    report = audit.explainability(model, x, target=(2, 3), file=None, strict=True)
    assert {"attention", "norm", "linear", "activation"} <= {item.kind for item in report.applied}
    with torch.no_grad():  # the fast path itself
        output = model(x)[:, 2, 3].sum()
    assert report.output == pytest.approx(float(output), rel=1e-4)


def test_a_fast_path_chosen_by_the_model_is_refused() -> None:
    model = fast_encoder()

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            output: torch.Tensor = model(x)
        return output

    with pytest.raises(UnreachedInputError, match="no_grad"):
        ConservativeLRP(forward).attribute(
            zoo.floats(2, zoo.TOKENS, zoo.WIDTH), target=(2, 3), strict=True
        )
