"""Models of timm and torchvision in the zoo."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from zoo_cases import CLASSES, Case, add, floats, randomise


def _fused(model: nn.Module, fused: bool) -> nn.Module:
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused  # type: ignore[assignment]
    return model


def _timm_vit(fused: bool, variant: str) -> Case:
    models = importlib.import_module("timm.models")
    options: dict[str, Any] = {}
    if variant == "scaled":
        options = {"init_values": 0.5, "qk_norm": True}
    if variant == "pooled":
        options = {"global_pool": "avg"}
    model = models.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=2,
        num_classes=CLASSES,
        **options,
    )
    norms = 5 + (4 if variant == "scaled" else 0)
    inputs = (floats(2, 3, 32, 32),)
    return Case("", _fused(randomise(model), fused), "floats", inputs, 2, 2, norms)


def _timm_swin(fused: bool) -> Case:
    models = importlib.import_module("timm.models")
    model = models.SwinTransformer(
        img_size=32,
        patch_size=2,
        window_size=4,
        embed_dim=24,
        depths=(2, 2),
        num_heads=(2, 4),
        num_classes=CLASSES,
    )
    inputs = (floats(2, 3, 32, 32),)
    # Patch embedding, two in each of four blocks, patch merging, the last one.
    return Case("", _fused(randomise(model), fused), "floats", inputs, 2, patterns=4, norms=11)


def _torchvision_vit(real: bool) -> Case:
    if real:
        models = importlib.import_module("torchvision.models")
        inputs = (floats(1, 3, 224, 224),)
        model = randomise(models.vit_b_16(weights=None))
        return Case("", model, "floats", inputs, 7, patterns=12, norms=25)
    vision = importlib.import_module("torchvision.models.vision_transformer")
    model = vision.VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=24,
        mlp_dim=48,
        num_classes=CLASSES,
    )
    return Case("", randomise(model), "floats", (floats(2, 3, 32, 32),), 2, patterns=2, norms=5)


for _is_fused in (True, False):
    _suffix = "-fused" if _is_fused else "-explicit"
    for _variant in ("plain", "scaled", "pooled"):
        add(
            f"timm-vit-{_variant}{_suffix}",
            "timm vit",
            "floats",
            _timm_vit,
            _is_fused,
            _variant,
            needs="timm",
        )
    add(f"timm-swin{_suffix}", "timm swin", "floats", _timm_swin, _is_fused, needs="timm")
add("torchvision-vit", "torchvision vit", "floats", _torchvision_vit, False, needs="torchvision")
add(
    "torchvision-vit_b_16",
    "torchvision vit slow",
    "floats",
    _torchvision_vit,
    True,
    needs="torchvision",
)
