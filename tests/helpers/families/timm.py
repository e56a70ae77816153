"""The walker for timm: its models with few layers and small images, weights random.

``names`` lists one model of every module of timm and those in ``ARCHITECTURES`` besides, for
modules that hold several.  Nothing else here knows an architecture: models are made small by what
their constructors call depths and sizes.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import zoo
from families import by_hand
from families.common import Case, NotBuilt

#: Modules that hold more than one architecture, or architectures with options of their own.
ARCHITECTURES = """vit_tiny_patch16_224 vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2
vit_base_patch16_clip_quickgelu_224 vit_base_patch16_siglip_224 vit_medium_patch16_gap_240
vit_base_patch16_rope_ape_224 vit_small_patch16_rope_mixed_224 vit_dpwee_patch16_reg1_gap_256
vit_small_patch16_18x2_224 vit_base_patch16_xp_224 vit_pe_core_tiny_patch16_384
vit_small_patch16_dinov3 aimv2_large_patch14_224 beit3_base_patch16_224 flexivit_small
deit_tiny_distilled_patch16_224 deit3_small_patch16_224 beitv2_base_patch16_224
eva02_tiny_patch14_224 vit_relpos_small_patch16_224 vit_relpos_medium_patch16_rpn_224
vit_srelpos_small_patch16_224 vit_tiny_r_s16_p8_224 vit_small_r26_s32_224
naflexvit_base_patch16_map swin_tiny_patch4_window7_224 pvt_v2_b0 pvt_v2_b2_li maxvit_tiny_tf_224
maxvit_rmlp_pico_rw_256 coatnet_pico_rw_224 coatnext_nano_rw_224 maxxvitv2_nano_rw_256
twins_pcpvt_small twins_svt_small crossvit_9_240 levit_128s levit_conv_128s coat_tiny
coat_lite_tiny efficientvit_b0 efficientvit_l1 efficientvit_m0 fastvit_t8 fastvit_sa12
poolformer_s12 poolformerv2_s12 caformer_s18 convformer_s18 mobilevit_xxs mobilevitv2_050
botnet26t_256 halonet26t lambda_resnet26t lambda_resnet26rpt_256 bat_resnext26ts gcresnet33ts
eca_resnet33ts seresnet33ts resnest14d skresnet18 mobilenetv4_hybrid_medium mixer_s32_224
gmixer_12_224 gmlp_ti16_224 resmlp_12_224 convnext_atto convnextv2_atto""".split()

#: Modules of plain convolutional networks: walked by the survey, left out of the tests.
CONVOLUTIONAL = frozenset(
    """byobnet cspnet cspnext densenet dla dpn efficientnet ghostnet hardcorenas hgnet hrnet
    inception_resnet_v2 inception_v3 inception_v4 lcnetv2 mobilenetv3 nasnet nfnet pnasnet regnet
    repghost res2net resnet resnetv2 rexnet selecsls senet tresnet vgg vovnet xception
    xception_aligned fasternet rdnet starnet""".split()
)

#: What "the pattern" is in some families, by the beginning of their names.
CONVENTIONS = {
    "cait": "talking heads: the pattern is constant as the values meet it, mixed over heads",
    "efficientformerv2": "talking heads: the pattern is constant as the values meet it, mixed over "
    "heads",
    "convit": "the gate between content and position is part of the pattern",
    "coat": "factorised attention: queries and the softmax of the keys over tokens are constant",
    "xcit": "attention over channels (cross-covariance): its softmax pattern is constant",
    "davit": "attention over channels and windows: both softmax patterns are constant",
    "edgenext": "attention over channels (cross-covariance): its softmax pattern is constant",
    "volo": "outlook attention: the softmax over neighbours is constant",
    "bat": "bilinear attention: the normalised sigmoids on both sides are constant",
    "convnextv2": "global response norm: the factor of each channel is constant",
    "csatv2": "global response norm: the factor of each channel is constant",
}

_SMALLEST_FIRST = "test femto atto nano pico xxs xxtiny xx tiny xs ti mini s small m b".split()
_DEPTHS = {"depth", "depths", "layers", "num_layers", "stages", "num_blocks", "d"}
_SIZES = (64, 56, None)


def names(convolutional: bool = False) -> list[str]:
    """Models in the order of timm's modules: those listed above, and one of every other module."""
    timm = importlib.import_module("timm")
    found: list[str] = []
    for module in timm.list_modules():
        if module in CONVOLUTIONAL and not convolutional:
            known: Iterable[str] = timm.list_models(module=module)
            found += [name for name in ARCHITECTURES if name in set(known)]
            continue
        models = timm.list_models(module=module)
        listed = [name for name in ARCHITECTURES if name in set(models)]
        found += listed or sorted(models, key=_size)[:1]
    return found


def family(name: str) -> str:
    """The name without what only says how large the model and its images are."""
    words = "tiny|small|base|medium|large|giant|xxtiny|pico|atto|femto|nano|ti|t"
    sizes = rf"({words}|x*s\d*|xx|\d+[ms]?|patch\d+|p\d+|window\d+)"
    return re.sub(rf"(_{sizes})+(?=_|$)", "", name)


def cases(name: str) -> list[Case]:
    """The model with attention spelled out and with the fused kernel, where it has the choice."""
    model, size = _build(name)
    switches = [m for m in model.modules() if hasattr(m, "fused_attn")]
    x = zoo.floats(1, 3, size, size)
    made = []
    for attention in ("eager", "sdpa") if switches else ("",):
        fused = attention == "sdpa"

        def forward(images: Tensor, fused: bool = fused) -> Tensor:
            for module in switches:
                module.fused_attn = fused  # type: ignore[assignment]
            output = model(images)
            return output if isinstance(output, Tensor) else output[0]

        kind = type(model).__name__
        # the oracle does not see under ah what the softmax over neighbours weighs
        in_part = by_hand.judged if name.startswith("volo") else None
        made.append(
            Case("timm", family(name), kind, attention, model, forward, x, 1, _convention(name),
                 in_part)
        )  # fmt: skip
    return made


def _convention(name: str) -> str:
    start = name.split("_")[0]
    return CONVENTIONS.get(start, "")


def _size(name: str) -> tuple[int, int, str]:
    words = [re.sub(r"\d+$", "", word) for word in name.split("_")]
    ranks = [i for i, word in enumerate(_SMALLEST_FIRST) if word in words]
    return min(ranks, default=len(_SMALLEST_FIRST)), len(name), name


def _build(name: str) -> tuple[nn.Module, int]:
    failures = []
    for shallow in (True, False):
        for size in _SIZES:
            try:
                model = _create(name, size, shallow)
                size = size or model.default_cfg["input_size"][-1]
                return _calibrated(zoo.randomise(model), size), size
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}")
    raise NotBuilt(failures[-1])


def _create(name: str, size: int | None, shallow: bool) -> Any:
    timm = importlib.import_module("timm")
    module = sys.modules[timm.model_entrypoint(name).__module__]
    real = module.build_model_with_cfg

    def small(cls: Callable[..., Any], variant: str, pretrained: bool, **kwargs: Any) -> Any:
        defaults = _defaults(cls)
        if shallow:
            left = {k: v for k, v in defaults.items() if k in _DEPTHS and k not in kwargs}
            kwargs = {k: v if k == "feature_cfg" else _shallow(v, k) for k, v in kwargs.items()}
            kwargs |= {k: _shallow(v, k) for k, v in left.items()}
        if size is not None and "img_size" in defaults:
            kwargs["img_size"] = size
        return real(cls, variant, pretrained, **{**kwargs, "num_classes": zoo.CLASSES})

    with (
        torch.random.fork_rng(devices=[]),
        mock.patch.object(module, "build_model_with_cfg", small),
    ):
        torch.manual_seed(0)
        return timm.create_model(name)


def _defaults(cls: Callable[..., Any]) -> dict[str, Any]:
    """Defaults of the constructor's arguments, those of its base classes included."""
    makers = [c.__init__ for c in cls.__mro__] if inspect.isclass(cls) else [cls]
    found: dict[str, Any] = {}
    for maker in makers:
        for key, parameter in inspect.signature(maker).parameters.items():
            if parameter.default is not parameter.empty:
                found.setdefault(key, parameter.default)
    return found


def _shallow(value: Any, name: str = "") -> Any:
    """At most two of everything that a configuration calls a depth, however deep inside it."""
    if isinstance(value, dict):
        return {k: _shallow(v, k) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f.name for f in dataclasses.fields(value) if f.init]
        return dataclasses.replace(value, **{f: _shallow(getattr(value, f), f) for f in fields})
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(_shallow(v, name) for v in value)
    if name in _DEPTHS and isinstance(value, int) and not isinstance(value, bool):
        return min(value, 2)
    return value


def _calibrated(model: nn.Module, size: int) -> nn.Module:
    """Batch norms with the statistics of random images, so that activations stay near one."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        output = model(zoo.floats(4 if norms else 1, 3, size, size, seed=5))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    output = output if isinstance(output, Tensor) else output[0]
    if output.dim() != 2 or not bool(torch.isfinite(output).all()):
        raise ValueError(f"no finite class scores: {tuple(output.shape)}")
    return model.eval()
