"""Parts of a model that no rule can reach into, and what to switch off to explain it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from captum_lrp_tx.errors import UnsupportedModelError

#: Parts of autograd node names: what made them, and the way out.
_FOREIGN = {
    "flash": "foreign attention kernel; load the model with attn_implementation='sdpa'",
    "flexattention": "foreign attention kernel; load the model with attn_implementation='sdpa'",
    "xformers": "foreign attention kernel; load the model with attn_implementation='sdpa'",
    "memoryefficient": "foreign attention kernel; load the model with attn_implementation='sdpa'",
    "differentiablegraph": "scripted function; explain the Python function it was made from",
    "checkpointfunction": "activation checkpointing; switch it off, "
    "e.g. model.gradient_checkpointing_disable() or model.set_grad_checkpointing(False)",
    "notimplemented": "operation of an extension without a derivative; use the implementation "
    "in Python, e.g. attn_implementation='sdpa'",
}

_CHECKPOINTING = (
    "The model runs parts under activation checkpointing, which computes them again in the "
    "backward pass where no rule is in force. Switch it off for the explanation: "
    "model.gradient_checkpointing_disable() (Hugging Face), model.set_grad_checkpointing(False) "
    "(timm), or call the parts without torch.utils.checkpoint."
)

#: Messages of torch for models that cannot be differentiated, and what to say about them.
_FAILURES = {
    "FlexAttention": "The model uses flex attention, into which no rule can see (and which torch "
    "does not differentiate on the CPU). Load it with attn_implementation='sdpa'.",
    "torch.utils.checkpoint": _CHECKPOINTING,
    "modified by an inplace operation": "The model overwrites in place a tensor that its gradient "
    "needs, so torch cannot differentiate it. Switch off what writes in place: caches "
    "(use_cache=False), or inference-only code paths.",
    "modified inplace": "The model overwrites in place a tensor that its gradient needs, so torch "
    "cannot differentiate it. Switch off what writes in place: caches (use_cache=False), or "
    "inference-only code paths.",
}

_top_hooks: Callable[[bool], Any] | None = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", None
)


def foreign(name: str) -> str | None:
    """What an autograd node of this name is, if rules cannot see into it; None if unknown."""
    lower = name.lower()
    return next((what for part, what in _FOREIGN.items() if part in lower), None)


def refuse_checkpointing() -> None:
    """Raise inside a part of the model that is run under activation checkpointing.

    Raises:
        UnsupportedModelError: with the switch to set.
    """
    hooks = _top_hooks(True) if _top_hooks is not None else None
    if hooks is not None and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint":
        raise UnsupportedModelError(_CHECKPOINTING)


def explained_failure(error: Exception) -> UnsupportedModelError | None:
    """What to do about an exception of torch's, if it is one of those that models cause."""
    text = str(error)
    told = next((told for part, told in _FAILURES.items() if part in text), None)
    return None if told is None else UnsupportedModelError(told)
