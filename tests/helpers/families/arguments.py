"""Suitable inputs of a tiny random model: ids, pixels, waveforms, features, decoder ids.

Each name that models of transformers use for their main input has a few shapes to try; the first
with which the model runs is taken.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from families.configs import FIRST_SPECIAL

BATCH, TOKENS = 2, 8


def candidates(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """The explained argument's name and all arguments, the likeliest first."""
    names = inspect.signature(model.forward).parameters
    config = model.config
    main = [str(getattr(model, "main_input_name", "input_ids"))]
    if main[0] == "input_ids" and "input_ids" not in names and any(n in names for n in _SHAPES):
        main = []  # the default of the base class
    main += [n for n in _SHAPES if n in names and n not in main]
    if "input_ids" in names and "input_ids" not in main:
        main.append("input_ids")
    for name in main:
        if name not in names and name != "input_ids":
            continue
        for value in _values(name, config):
            required = {
                n for n, p in names.items()
                if p.default is inspect.Parameter.empty
                and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            }  # fmt: skip
            base = {name: value}
            for extra in _extras(names, config, value):
                if required <= {*base, *extra}:
                    yield name, {**base, **extra}


def _ids(tokens: int = TOKENS, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, FIRST_SPECIAL, (BATCH, tokens), generator=generator)


def _floats(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def _find(config: Any, *names: str) -> Any:
    """The first attribute of these that the configuration or one of its parts has."""
    parts = [config]
    for key in ("vision_config", "backbone_config", "audio_config", "encoder", "encoder_config",
                "text_config"):  # fmt: skip
        part = getattr(config, key, None)
        if part is not None and not isinstance(part, (dict, str)):
            parts.append(part)
    for part in parts:
        for name in names:
            value = getattr(part, name, None)
            if value is not None:
                return value
    return None


def _side(config: Any) -> tuple[int, int]:
    size = _find(config, "image_size", "img_size", "input_size")
    if isinstance(size, dict):
        size = (size["height"], size["width"])
    if isinstance(size, (list, tuple)):
        return (int(size[0]), int(size[-1]))
    return (int(size), int(size)) if isinstance(size, int) else (32, 32)


def _channels(config: Any) -> int:
    found = _find(config, "num_channels", "in_channels", "in_chans")
    return found if isinstance(found, int) else 3


def _images(config: Any) -> list[Tensor]:
    height, width = _side(config)
    channels, frames = _channels(config), _find(config, "num_frames") or 4
    shapes = [
        (1, channels, height, width), (1, channels, 64, 64), (1, channels, 32, 32),
        (1, frames, channels, height, width), (1, channels, frames, height, width),
        (1, 1, channels, height, width), (1, channels, 128, 128),
    ]  # fmt: skip
    patch = _find(config, "patch_size")
    if isinstance(patch, int):
        shapes.append((1, 16, channels * patch**2))
        temporal = _find(config, "temporal_patch_size") or 1
        shapes.append((16, channels * temporal * patch**2))
    return [_floats(*shape) for shape in shapes]


def _waves(config: Any) -> list[Tensor]:
    mels = _find(config, "num_mel_bins", "n_mels", "feature_size", "input_feat_per_channel") or 16
    length = _find(config, "max_length") or 64
    return [_floats(1, 2400), _floats(1, 1, 2400), _floats(1, length, mels),
            _floats(1, mels, length), _floats(1, 1, length, mels)]  # fmt: skip


def _features(config: Any) -> list[Tensor]:
    mels = _find(
        config, "num_mel_bins", "n_mels", "input_feat_per_channel", "feature_size",
        "feature_projection_input_dim", "input_dim", "input_feat_size", "mel_bins",
    ) or 16  # fmt: skip
    frames = 2 * (_find(config, "max_source_positions") or 16)
    return [_floats(1, mels, frames), _floats(1, 32, mels), _floats(1, 1, 64, mels),
            _floats(1, frames, mels), _floats(1, 2400)]  # fmt: skip


_SHAPES = ("pixel_values", "input_values", "input_features", "pixel_values_videos", "past_values",
           "hidden_states")  # fmt: skip


def _values(name: str, config: Any) -> list[Tensor]:
    if name in ("input_ids", "decoder_input_ids"):
        return [_ids(), _ids(16), _ids(32)]
    if "pixel" in name:
        return _images(config)
    if name in ("input_values", "audio_values", "waveform"):
        return _waves(config)
    if "features" in name:
        return _features(config)
    if name == "past_values":
        length = _find(config, "context_length", "prediction_length") or 32
        channels = _find(config, "num_input_channels", "input_size") or 1
        lags = max(_find(config, "lags_sequence") or [0])
        return [_floats(1, length, channels), _floats(1, length + lags), _floats(1, length)]
    if name == "inputs":
        return [_ids(), *_images(config), *_features(config)]
    if name == "hidden_states":
        width = _find(config, "hidden_size", "d_model") or 32
        return [_floats(1, 8, width)]
    return []


def _extras(names: Any, config: Any, value: Tensor) -> Iterator[dict[str, Any]]:
    """Further arguments: none, then the decoder's ids, then whatever has a known shape."""
    batch = len(value)
    known: dict[str, Any] = {}
    if "decoder_input_ids" in names:
        known["decoder_input_ids"] = _ids(5, seed=5)[:batch]
    if "input_ids" in names and value.is_floating_point():
        known["input_ids"] = _ids()[:batch]
    if "pixel_values" in names and not value.is_floating_point():
        known["pixel_values"] = _floats(BATCH, _channels(config), *_side(config))
    if "bbox" in names:
        corner = torch.arange(4).clamp(max=3) + torch.tensor([1, 2, 4, 5])
        known["bbox"] = corner.expand(*value.shape, 4) if value.dim() == 2 else None
    if "grid_thw" in names and value.dim() == 2:
        known["grid_thw"] = torch.tensor([[1, 4, 4]])
    if "noise" in names and value.dim() == 4:  # which patches are masked
        height, width = _side(config)
        patch = _find(config, "patch_size") or 16
        if isinstance(patch, int):
            known["noise"] = _floats(batch, (height // patch) * (width // patch))
    if "past_observed_mask" in names:
        known["past_observed_mask"] = torch.ones_like(value)
        time = _find(config, "num_time_features") or 0
        known["past_time_features"] = _floats(*value.shape[:2], time)
    if "visual_feats" in names:
        width = _find(config, "visual_feat_dim", "visual_embedding_dim") or 32
        known["visual_feats"] = _floats(batch, 4, width)
        known["visual_pos"] = _floats(batch, 4, 4).abs()
    pairs: list[dict[str, Any]] = [{}]
    if "decoder_input_ids" in known:
        pairs.append({"decoder_input_ids": known["decoder_input_ids"]})
    if known:
        pairs.append({k: v for k, v in known.items() if v is not None})
        pairs += [{k: v} for k, v in known.items() if v is not None]
    seen: list[set[str]] = []
    for pair in pairs:
        if set(pair) not in seen:
            seen.append(set(pair))
            yield pair


def read(output: Any, of_ids: bool = True) -> Tensor | None:
    """The float tensor that a model's output stands for: one row for each explained example."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and output.dim() else None
    contrast = ("logits_per_text", "logits_per_image")
    preferred = ("logits", *(contrast if of_ids else contrast[::-1]), "last_hidden_state",
                 "pooler_output", "prediction_logits", "pred_logits", "start_logits")  # fmt: skip
    for name in preferred:
        value = getattr(output, name, None)
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    values = output.values() if isinstance(output, dict) else output
    if isinstance(values, (str, bytes)) or values is None:
        return None
    try:
        items = list(values)
    except TypeError:
        return None
    for item in items:
        if isinstance(item, (Tensor, list, tuple, dict)):
            found = read(item, of_ids)
            if found is not None:
                return found
    return None


def target_of(output: Tensor) -> tuple[int, ...] | int:
    """Some entry of each example's output: of the last token where there are tokens."""
    index = tuple(max(0, size - 1) if size < 4 else size - 2 for size in output.shape[1:])
    return index[0] if len(index) == 1 else index


def entry(output: Tensor) -> Tensor:
    """The explained value of each example."""
    return output[(slice(None), *_as_tuple(target_of(output)))]


def is_usable(output: Tensor | None, batch: int) -> bool:
    """Whether there is something to explain in every example."""
    return (
        output is not None
        and output.dim() > 1
        and output.shape[0] == batch
        and math.prod(output.shape) > 0
        and bool(torch.isfinite(entry(output)).all())
    )


def _as_tuple(target: int | tuple[int, ...]) -> tuple[int, ...]:
    return target if isinstance(target, tuple) else (target,)
