"""Parts of a model that no rule can reach into, and what to switch off to explain it."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.autograd.function import BackwardCFunction

from captum_lrp_tx.errors import UnsupportedModelError

#: Parts of autograd node names: what made them, and the way out.
_FOREIGN = {
    **dict.fromkeys(
        "flash flexattention xformers memoryefficient".split(),
        "foreign attention kernel; load the model with attn_implementation='sdpa' (Hugging Face), "
        "or let it call torch's scaled_dot_product_attention",
    ),
    "differentiablegraph": "scripted function; explain the Python function it was made from",
    "checkpointfunction": "activation checkpointing; switch it off, "
    "e.g. model.gradient_checkpointing_disable() or model.set_grad_checkpointing(False)",
    "notimplemented": "operation of an extension without a derivative; use the implementation "
    "in Python, e.g. attn_implementation='sdpa'",
}

_CHECKPOINT = "torch.utils.checkpoint"
_CHECKPOINTING = (
    "The model runs parts under activation checkpointing, which computes them again in the "
    "backward pass where no rule is in force. Switch it off for the explanation: "
    "model.gradient_checkpointing_disable() (Hugging Face), model.set_grad_checkpointing(False) "
    "(timm), or call the parts without torch.utils.checkpoint."
)

#: Messages of torch for models that cannot be differentiated, and what to say about them.
_FAILURES = {
    "FlexAttention": "The model uses flex attention, into which no rule can see (and which torch "
    "does not differentiate on the CPU). Load it with attn_implementation='sdpa' "
    "(Hugging Face), or let it call torch's scaled_dot_product_attention.",
    "torch.utils.checkpoint": _CHECKPOINTING,
    **dict.fromkeys(
        ("modified by an inplace operation", "modified inplace"),
        "The model overwrites in place a tensor that its gradient needs, so torch cannot "
        "differentiate it. Switch off what writes in place: caches (use_cache=False), or "
        "inference-only code paths.",
    ),
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
    if _is_checkpointed():
        raise UnsupportedModelError(_CHECKPOINTING)


def _is_checkpointed() -> bool:
    if _top_hooks is not None:
        hooks = _top_hooks(True)
        return hooks is not None and getattr(hooks[0], "__module__", "") == _CHECKPOINT
    frame = sys._getframe()  # torch 2.5: look who called
    while frame is not None:
        if frame.f_globals.get("__name__") == _CHECKPOINT:
            return True
        frame = cast(types.FrameType, frame.f_back)
    return False


def explained_failure(error: Exception) -> UnsupportedModelError | None:
    """What to do about an exception of torch's, if it is one of those that models cause."""
    text = str(error)
    told = next((told for part, told in _FAILURES.items() if part in text), None)
    name = _failed_function(error)
    if told is None and name is not None:
        told = (
            f"The backward pass of the custom autograd function {name} of the model fails "
            f"({type(error).__name__}: {text}), and no rule can see into it. Let the model call "
            "the operations that the function stands for, one by one, with gradients."
        )
    return None if told is None else UnsupportedModelError(told)


def _failed_function(error: Exception) -> str | None:
    """The custom autograd function in whose backward pass an exception was raised, if any."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is BackwardCFunction.apply.__code__:
            function = getattr(trace.tb_frame.f_locals["self"], "_forward_cls", None)
            if function is not None and not function.__module__.startswith("captum_lrp_tx."):
                return str(function.__name__)
        trace = trace.tb_next
    return None
