"""What the benchmark of time and memory compares: all presets and options, and Captum's methods."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from captum.attr import InputXGradient, IntegratedGradients
from torch import Tensor, nn

from captum_lrp_tx import ConservativeLRP
from captum_lrp_tx.rules import PRESETS

REFERENCE, FORWARD = "InputXGradient", "forward"
#: Presets that distribute biases if asked to, and those measured with less memory as well.
_WITH_BIASES = ("lrp", "lrp-gamma", "attnlrp", "attnlrp-gamma")
_WITH_LESS_MEMORY = ("ah+ln", "lrp", "lrp-gamma", "attnlrp", "attnlrp-gamma")
#: Steps of integrated gradients.
STEPS = (5, 10, 20, 50)


@dataclass
class Method:
    """Something to measure: ``call()`` does ``1 / times`` of the work, and is run ``turns`` times.

    ``turns`` is ``None`` for what is measured in every turn; ``memory()`` tells the bytes of a call
    that runs in another process.
    """

    call: Callable[[], Any]
    times: float = 1.0
    turns: int | None = None
    memory: Callable[[], int] | None = None


def distributed(preset: str) -> str:
    """The name of a preset with distributed biases."""
    return f"{preset}, bias='distribute'"


def low(preset: str) -> str:
    """The name of a preset with less memory."""
    return f"{preset}, memory='low'"


def options() -> dict[str, dict[str, Any]]:
    """Every preset and option by name, as arguments of ``ConservativeLRP``."""
    found: dict[str, dict[str, Any]] = {name: {"rules": name} for name in PRESETS}
    found |= {distributed(name): {"rules": name, "bias": "distribute"} for name in _WITH_BIASES}
    found |= {low(name): {"rules": name, "memory": "low"} for name in _WITH_LESS_MEMORY}
    return found


def methods(model: nn.Module, x: Tensor, ig_steps: int) -> dict[str, Method]:
    """Everything that is compared on one model and input.

    Args:
        model (Module): Called with ``x``, returns ``(batch, classes)``.
        x (Tensor): What is explained.
        ig_steps (int): Of integrated gradients no more steps than these are measured, once.
    """
    target = torch.zeros(x.shape[0], dtype=torch.long)

    def forward() -> None:
        with torch.no_grad():
            model(x)

    found = {FORWARD: Method(forward)}
    explained: dict[str, Any] = {REFERENCE: InputXGradient(model)}
    explained |= {name: ConservativeLRP(model, **chosen) for name, chosen in options().items()}
    for name, method in explained.items():
        found[name] = Method(functools.partial(method.attribute, x, target=target))
    for steps in STEPS:
        measured = min(steps, ig_steps)
        integrated = functools.partial(
            IntegratedGradients(model).attribute, x, target=target, n_steps=measured,
            internal_batch_size=x.shape[0],
        )  # fmt: skip
        name = f"IG, {steps} steps" + (f" ({measured} measured)" if measured < steps else "")
        found[name] = Method(integrated, steps / measured, turns=1)
    return found
