"""Configurations of transformers made tiny without knowing the family.

Every size-like attribute is set small, by what its name says, in sub-configurations too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Token ids that a tiny vocabulary must still hold; ordinary ids are below.
FIRST_SPECIAL, VOCABULARY = 40, 64
LABELS = 3
_KEEP = re.compile(
    r"eps|norm|drop|prob|std|factor|range|ratio|stride|kernel|theta|act|bias|scal|version|beta|coef"
    r"|conv_groups|groups_|_rate|sampling|seed|resolution_|num_channels$|in_chans|in_channels$"
    r"|out_features|out_indices|padding|dilation|position_embedding_type|squeeze|expand|fps|index$"
)
_Size = Callable[[int], int]


def _at_most(limit: int) -> _Size:
    return lambda value: min(value, limit)


_IMAGE = r"image_size|img_size|crop_size|input_size$"
_HEAD = r"head_dim|d_kv|rotary_dim|head_size|dim_head|attention_head_channels|d_head"
_WIDTH = r"hidden|d_model|n_embd|embed|width|dim|channels|filters|units|_size$"
_PATCH = r"patch_size|patch_stride"

#: The first pattern that is found in an attribute's name decides.
_RULES: tuple[tuple[str, _Size], ...] = (
    (r"(^|_)vocab(ulary)?(_size)?(_|$)|codebook_size|num_codes|type_vocab", _at_most(VOCABULARY)),
    (r"codebooks|num_quantizers", _at_most(2)),
    (r"interval|every|pattern$|_freq$|_step$|first_k_dense|replace$", _at_most(2)),
    (r"local_layers|num_nextn|mtp|head_layers", _at_most(1)),
    (r"experts?_per_tok|top_?k$|moe_k|topk_experts", _at_most(2)),
    (r"n_group|topk_group|num_shared|n_shared", _at_most(1)),
    (r"experts", _at_most(4)),
    (r"key_value|kv_heads|num_kv|query_groups", _at_most(2)),
    (_HEAD, _at_most(8)),
    (r"lora_rank", _at_most(16)),
    (r"heads|n_head|attention_groups", _at_most(4)),
    (r"window|block_size|chunk_(size|length)|block_length|band|num_rand", _at_most(4)),
    (r"state_size|d_state|time_step_rank|dt_rank|ssm_state|n_groups", _at_most(4)),
    (r"mel|spectrogram|num_freq|feature_size$|input_feat", _at_most(16)),
    (_IMAGE, _at_most(32)),
    (r"temporal_patch|tubelet", _at_most(2)),
    (_PATCH, _at_most(8)),
    (r"num_frames|n_frames|frames$", _at_most(4)),
    (r"positions|max_pos|n_ctx|max_length|seq_len|context_len|max_seq|source_len", _at_most(64)),
    (r"intermediate|ffn|d_ff|n_inner|inner_dim|mlp_dim|feedforward|d_inner|ff_dim", _at_most(64)),
    (r"num_queries|query_length|num_query|latents|num_tokens|n_query", _at_most(6)),
    (r"layers?$|n_layers?|depth|blocks$|num_hidden_layers|_layers_", _at_most(2)),
    (_WIDTH, _at_most(32)),
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How small: families whose parts do not fit together at one size may do so at another."""

    image: int = 32
    width: int = 32
    head: int = 8
    patch: int = 8
    mrope: bool = False
    lists: bool = True
    layer_types: bool = True


#: Tried in this order.
SIZES = (
    Size(),
    Size(mrope=True),
    Size(image=128, patch=4),
    Size(width=64, head=16),
    Size(head=128, mrope=False),
    Size(layer_types=False),
    Size(lists=False, image=64),
    Size(lists=False, image=224, width=10**6, patch=32),
)


def tiny(default: Any, size: Size = SIZES[0]) -> Any:
    """The configuration class of ``default`` again, with every size small."""
    return type(default)(**overrides(default, size), **_TOP)


_TOP: dict[str, Any] = {"num_labels": LABELS, "use_cache": False}
#: For attributes that start as None and must be something.
_IF_NONE = {
    "num_key_value_heads": 2, "prediction_length": 8, "context_length": 24,
    "n_routed_experts": 4, "n_shared_experts": 1, "hidden_size": 32, "hash_seed": 0,
    "default_language": "en_XX",
}  # fmt: skip


def overrides(default: Any, size: Size) -> dict[str, Any]:
    """What to pass to a configuration class so that its model is tiny."""
    chosen: dict[str, Any] = {}
    specials = FIRST_SPECIAL
    layer_kinds = _kinds(getattr(default, "layer_types", None)) if size.layer_types else []
    for name in _names(default):
        try:
            value = getattr(default, name, None)
        except Exception:  # attributes that differ by layer refuse to be read
            continue
        if _is_config(value):
            chosen[name] = {**overrides(value, size), "model_type": value.model_type}
        elif re.search(r"token_(id|index)$|_token$", name) and isinstance(value, int):
            chosen[name], specials = _special(name, value, specials)
        elif name.startswith("rope_") and isinstance(value, dict):
            chosen[name] = _rope(value, size)
        elif value is None and name in _IF_NONE:
            chosen[name] = _IF_NONE[name]
        elif isinstance(value, bool) or value is None or _KEEP.search(name):
            continue
        elif isinstance(value, int):
            chosen[name] = _small(name, value, size)
        elif isinstance(value, (list, tuple)) and value and _all_ints(value) and size.lists:
            chosen[name] = type(value)(_small_list(name, list(value), size))
    if len(layer_kinds) > 1:
        chosen["layer_types"] = layer_kinds
        for name in ("num_hidden_layers", "num_layers", "n_layer"):
            if name in chosen:
                chosen[name] = len(layer_kinds)
    if "pad_token_id" in _names(default):
        chosen["pad_token_id"] = 0
    if "attention_types" in chosen or hasattr(default, "attention_types"):
        chosen["attention_types"] = [[["global", "local"], 1]]
    if "axial_pos_embds" in _names(default):  # its parts must sum to the width
        chosen["axial_pos_embds"] = False
    if hasattr(default, "kv_lora_rank"):  # latent attention has no groups
        chosen["num_key_value_heads"] = chosen.get("num_attention_heads", 4)
    _fit_state_heads(default, chosen)
    return {k: v for k, v in chosen.items() if v != getattr(default, k, None)}


def _fit_state_heads(default: Any, chosen: dict[str, Any]) -> None:
    """Heads of a state space must fill its expanded width."""
    names = _names(default)
    for prefix in ("mamba_", ""):
        expand = getattr(default, prefix + "expand", None)
        for heads, head in (("n_heads", "d_head"), ("num_heads", "head_dim")):
            if expand and prefix + heads in names and prefix + head in names:
                width = chosen.get("hidden_size", getattr(default, "hidden_size", 32))
                chosen[prefix + head] = 8
                chosen[prefix + heads] = int(expand * width) // 8


def _names(config: Any) -> list[str]:
    hidden = {"transformers_version", "model_type", "id2label", "label2id", "layer_types"}
    return [n for n in config.to_dict() if n not in hidden and not n.startswith("_")]


def _is_config(value: Any) -> bool:
    return hasattr(value, "model_type") and hasattr(value, "to_dict")


def _kinds(layer_types: Any) -> list[str]:
    return list(dict.fromkeys(layer_types)) if isinstance(layer_types, list) else []


def _special(name: str, value: int, specials: int) -> tuple[int, int]:
    if 0 <= value < FIRST_SPECIAL and not re.search(r"image|video|audio", name):
        return min(value, 3) if value > 3 else value, specials
    return specials, specials + 1


def _rope(parameters: dict[str, Any], size: Size) -> dict[str, Any]:
    """Rotary sections must sum to half of a head."""
    found = dict(parameters)
    if size.mrope and not any(isinstance(v, dict) for v in found.values()):
        found.setdefault("mrope_section", [0, 0, 0])
    if isinstance(found.get("mrope_section"), list):
        found["mrope_section"] = {3: [2, 1, 1], 2: [2, 2], 4: [1, 1, 1, 1]}.get(
            len(found["mrope_section"]), found["mrope_section"]
        )
    return found


def _all_ints(values: Any) -> bool:
    return all(isinstance(v, int) and not isinstance(v, bool) for v in values)


def _small(name: str, value: int, size: Size) -> int:
    for pattern, smaller in _RULES:
        if re.search(pattern, name):
            limit = smaller(value)
            by_kind = {_IMAGE: (32, size.image), _HEAD: (8, size.head), _WIDTH: (32, size.width),
                       _PATCH: (8, size.patch)}  # fmt: skip
            usual, wanted = by_kind.get(pattern, (0, 0))
            return min(value, wanted) if usual and value > min(usual, wanted) else limit
    return value


def _small_list(name: str, values: list[int], size: Size) -> list[int]:
    if re.search(r"depth|layers|blocks|num_modules|repeats", name):
        return [min(v, 1) for v in values]
    if re.search(r"heads|groups", name):
        return [min(v, 2) for v in values]
    if re.search(r"image_size|img_size|grid", name):
        return [min(v, size.image) for v in values]
    if re.search(r"patch_size|window", name):
        return [min(v, 4) for v in values]
    if re.search(r"hidden|dim|channels|width|filters|sizes|conv_dim", name) and max(values) > 8:
        largest = max(values)
        return [max(8, v * 32 // largest // 8 * 8) for v in values]
    return values
