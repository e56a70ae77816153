"""The walker for torchvision and torch.nn: their transformers, tiny, from the constructors."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from families.common import Case, NotBuilt

WIDTH, HEADS, CLASSES = zoo.WIDTH, zoo.HEADS, zoo.CLASSES


def names() -> list[str]:
    """``torchvision/...`` and ``torch.nn/...``, in the order of this file."""
    return list(_BUILDERS)


def cases(name: str) -> list[Case]:
    """The one case of a family.

    Raises:
        NotBuilt: torchvision is missing.
    """
    library, family = name.split("/")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, forward, x, target = _BUILDERS[name]()
    except ImportError as error:
        raise NotBuilt(str(error)) from error
    return [Case(library, family, type(model).__name__, "", model, forward, x, target)]


# --------------------------------------------------------------------------- torchvision


def _vision(module: str, make: Callable[[Any], nn.Module], *shape: int) -> Any:
    model = zoo.randomise(make(importlib.import_module(f"torchvision.models.{module}")))
    return model, model, zoo.floats(1, 3, *shape), 1


def _swin(module: Any, version: int) -> nn.Module:
    second = {
        "block": module.SwinTransformerBlockV2,
        "downsample_layer": module.PatchMergingV2,
    }
    made: nn.Module = module.SwinTransformer(
        patch_size=[2, 2], embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4],
        num_classes=CLASSES, **(second if version == 2 else {}),
    )  # fmt: skip
    return made


def _video_swin(module: Any) -> nn.Module:
    made: nn.Module = module.SwinTransformer3d(
        patch_size=[2, 4, 4], embed_dim=16, depths=[2, 2], num_heads=[2, 4],
        window_size=[2, 4, 4], num_classes=CLASSES,
    )  # fmt: skip
    return made


def _mvit(module: Any, version: int) -> nn.Module:
    blocks = [
        module.MSBlockConfig(2, 16, 32, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
        module.MSBlockConfig(4, 32, 32, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
    ]
    second = version == 2
    made: nn.Module = module.MViT(
        (32, 32), 4, blocks, residual_pool=second, residual_with_cls_embed=False,
        rel_pos_embed=second, proj_after_attn=second, num_classes=CLASSES,
    )  # fmt: skip
    return made


def _vit(module: Any) -> nn.Module:
    made: nn.Module = module.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32,
        num_classes=CLASSES,
    )  # fmt: skip
    return made


def _maxvit(module: Any) -> nn.Module:
    made: nn.Module = module.MaxVit(
        input_size=(32, 32), stem_channels=8, partition_size=2, block_channels=[8, 16],
        block_layers=[1, 2], head_dim=4, stochastic_depth_prob=0.0, num_classes=CLASSES,
    )  # fmt: skip
    return made


# --------------------------------------------------------------------------- torch.nn

_AT = (2, 3)  # token and entry of the explained output (batch, tokens, width)
_SHARED: dict[str, Any] = {"d_model": WIDTH, "nhead": HEADS, "dim_feedforward": 24}
_CAUSAL = nn.Transformer.generate_square_subsequent_mask(zoo.TOKENS)
_PADDING = torch.tensor([[False] * 5 + [True] * 2, [False] * 7])


def _encoder(depth: int = 2, mask: bool = False, **options: Any) -> Any:
    layer = nn.TransformerEncoderLayer(**_SHARED, batch_first=True, **options)
    model = zoo.randomise(nn.TransformerEncoder(layer, depth, nn.LayerNorm(WIDTH)))
    padding = _PADDING if mask else None

    def forward(x: Tensor) -> Tensor:
        output: Tensor = model(x, src_key_padding_mask=padding)
        return output

    return model, forward, zoo.floats(2, zoo.TOKENS, WIDTH), _AT


def _layer() -> Any:
    model = zoo.randomise(nn.TransformerEncoderLayer(**_SHARED, batch_first=True))
    return model, model, zoo.floats(2, zoo.TOKENS, WIDTH), _AT


def _decoder() -> Any:
    layer = nn.TransformerDecoderLayer(**_SHARED, batch_first=True, activation="gelu")
    model = zoo.randomise(nn.TransformerDecoder(layer, 2))

    def forward(x: Tensor) -> Tensor:
        output: Tensor = model(x, x.flip(1)[:, :4], tgt_mask=_CAUSAL, tgt_is_causal=True)
        return output

    return model, forward, zoo.floats(2, zoo.TOKENS, WIDTH), _AT


def _transformer(norm_first: bool) -> Any:
    model = nn.Transformer(
        WIDTH, HEADS, 2, 2, 24, batch_first=True, norm_first=norm_first, activation=F.silu
    )
    zoo.randomise(model)

    def forward(x: Tensor) -> Tensor:
        output: Tensor = model(x[:, :3], x[:, 3:])
        return output

    return model, forward, zoo.floats(2, zoo.TOKENS, WIDTH), _AT


def _attention(
    call: dict[str, Any] | None = None, self_attention: bool = True, **options: Any
) -> Any:
    model = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options)
    zoo.randomise(model)

    def forward(x: Tensor) -> Tensor:
        key = x if self_attention else x[..., : model.kdim].flip(1)
        value = x if self_attention else x[..., -model.vdim :]
        output: Tensor = model(x, key, value, **(call or {"need_weights": False}))[0]
        return output

    return model, forward, zoo.floats(2, zoo.TOKENS, WIDTH), _AT


def _unbatched() -> Any:
    model = zoo.randomise(nn.MultiheadAttention(WIDTH, HEADS))

    def forward(x: Tensor) -> Tensor:
        output: Tensor = model(x[0], x[0], x[0])[0]
        return output[None]

    return model, forward, zoo.floats(1, zoo.TOKENS, WIDTH), _AT


def _bare_function(*heads: int) -> Any:
    model = zoo.randomise(nn.Linear(WIDTH, 4 * sum(heads)))
    options = {"enable_gqa": True} if heads[0] != heads[1] else {}

    def forward(x: Tensor) -> Tensor:
        projected = model(x).unflatten(-1, (-1, 4)).transpose(1, 2)
        query, key, value = projected.split(heads, 1)
        output = F.scaled_dot_product_attention(query, key, value, is_causal=True, **options)
        return output.transpose(1, 2).flatten(2)

    return model, forward, zoo.floats(2, zoo.TOKENS, WIDTH), _AT


_MASK_3D = zoo.floats(2 * HEADS, zoo.TOKENS, zoo.TOKENS)

_BUILDERS: dict[str, Callable[[], Any]] = {
    "torchvision/vit": functools.partial(_vision, "vision_transformer", _vit, 32, 32),
    "torchvision/swin": functools.partial(
        _vision, "swin_transformer", functools.partial(_swin, version=1), 32, 32
    ),
    "torchvision/swin_v2": functools.partial(
        _vision, "swin_transformer", functools.partial(_swin, version=2), 32, 32
    ),
    "torchvision/maxvit": functools.partial(_vision, "maxvit", _maxvit, 32, 32),
    "torchvision/swin3d": functools.partial(
        _vision, "video.swin_transformer", _video_swin, 4, 32, 32
    ),
    "torchvision/mvit_v1": functools.partial(
        _vision, "video.mvit", functools.partial(_mvit, version=1), 4, 32, 32
    ),
    "torchvision/mvit_v2": functools.partial(
        _vision, "video.mvit", functools.partial(_mvit, version=2), 4, 32, 32
    ),
    "torch.nn/Transformer": functools.partial(_transformer, False),
    "torch.nn/Transformer norm_first": functools.partial(_transformer, True),
    "torch.nn/TransformerEncoderLayer": _layer,
    "torch.nn/TransformerEncoder": _encoder,
    "torch.nn/TransformerEncoder norm_first gelu": functools.partial(
        _encoder, norm_first=True, activation="gelu"
    ),
    "torch.nn/TransformerEncoder padded": functools.partial(_encoder, mask=True),
    "torch.nn/TransformerDecoder": _decoder,
    "torch.nn/MultiheadAttention": _attention,
    "torch.nn/MultiheadAttention weights": functools.partial(
        _attention, {"need_weights": True, "average_attn_weights": False}
    ),
    "torch.nn/MultiheadAttention kdim vdim": functools.partial(
        _attention, self_attention=False, kdim=6, vdim=10
    ),
    "torch.nn/MultiheadAttention bias_kv": functools.partial(_attention, add_bias_kv=True),
    "torch.nn/MultiheadAttention zero attention": functools.partial(_attention, add_zero_attn=True),
    "torch.nn/MultiheadAttention 3-d mask": functools.partial(
        _attention, {"attn_mask": _MASK_3D, "need_weights": False}
    ),
    "torch.nn/MultiheadAttention padded": functools.partial(
        _attention, {"key_padding_mask": _PADDING}, add_bias_kv=True, add_zero_attn=True
    ),
    "torch.nn/MultiheadAttention causal": functools.partial(
        _attention, {"attn_mask": _CAUSAL, "is_causal": True, "need_weights": False}
    ),
    "torch.nn/MultiheadAttention unbatched": _unbatched,
    "torch.nn/scaled_dot_product_attention": functools.partial(_bare_function, 4, 4, 4),
}
if "enable_gqa" in (F.scaled_dot_product_attention.__doc__ or ""):
    _BUILDERS["torch.nn/scaled_dot_product_attention grouped"] = functools.partial(
        _bare_function, 4, 2, 2
    )
