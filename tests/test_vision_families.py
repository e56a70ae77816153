"""Vision families of timm with random weights: covered and conserving, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from captum_lrp_tx import ConservativeLRP, audit
from captum_lrp_tx.errors import UncoveredOperationError

timm = pytest.importorskip("timm")

COVERED = """vit_tiny_patch16_224 deit_tiny_distilled_patch16_224 beit_base_patch16_224
eva02_tiny_patch14_224 vit_small_patch16_rope_224 swin_tiny_patch4_window7_224
swinv2_tiny_window8_256 xcit_nano_12_p16_224 pvt_v2_b0 mvitv2_tiny maxvit_rmlp_pico_rw_256
coatnet_pico_rw_224 davit_tiny hiera_tiny_224 twins_pcpvt_small crossvit_9_240 convit_tiny
levit_128s volo_d1_224 tiny_vit_5m_224 samvit_base_patch16_224 mobilevit_xxs edgenext_xx_small
poolformer_s12 efficientformer_l1 visformer_tiny nest_tiny convnext_atto resnet18""".split()
#: What no rule covers yet: talking heads.
REFUSED = {"cait_xxs24_224": "softmax that is no attention pattern"}


def build(name: str) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    with torch.no_grad():  # libraries start some scales, biases and heads at zero
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * (parameter.abs().mean() + 0.1))
    size = model.default_cfg["input_size"][-1]
    return model, torch.randn(1, 3, size, size)


@pytest.mark.parametrize("name", COVERED)
def test_family_conserves(name: str, untouched: Any) -> None:
    model, image = build(name)
    with untouched(model):
        report = audit.explainability(model, image, target=1, file=None, strict=True)
    scale = abs(report.output) + sum(abs(v) for v in report.absorbed.values())
    assert abs(report.conservation_error) < 1e-4 * scale
    assert report.relevance != 0


@pytest.mark.parametrize("name", REFUSED)
def test_family_is_refused_with_the_operation(name: str) -> None:
    model, image = build(name)
    with pytest.raises(UncoveredOperationError, match=REFUSED[name]):
        ConservativeLRP(model).attribute(image, target=1, strict=True)
