"""After a NaN or infinity: which module made it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_tx.propagation.hygiene.hooks import Hooks, guard
from captum_lrp_tx.propagation.model.modules import named_tensors
from captum_lrp_tx.propagation.state.scope import Boundary


def of_output(modules: Sequence[tuple[str, nn.Module]], run: Callable[[], Any]) -> str:
    """Run a forward pass again and name the first parameter or module that is not finite.

    Args:
        modules (sequence of (str, Module)): The modules of the model, by name.
        run (callable): Repeats the forward pass.
    """
    for name, tensor in named_tensors(modules):
        if _is_bad(tensor) and not _is_mask(tensor):
            return f"The parameter {name!r} is not finite."
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            values = output if isinstance(output, (tuple, list)) else (output,)
            if not found and any(_is_bad(v) for v in values):
                found.append(name)

        return hook

    with guard(), Hooks() as hooks, torch.no_grad():
        for name, module in modules:
            hooks.after(module, watch(name))
        run()
    if found and found[0]:
        return f"The first module with such an output is {found[0]!r}."
    return "It arises outside of every submodule, in the forward function itself."


def of_relevance(boundaries: Sequence[Boundary]) -> str:
    """Name the module nearest to the output through which finite relevance became non-finite."""
    for boundary in reversed(boundaries):
        inside = [b for b in boundaries if b.module.startswith(boundary.module + ".")]
        if inside and boundary.module:
            continue
        if math.isfinite(boundary.at_output) and not math.isfinite(boundary.at_input):
            return f"It arises in module {boundary.module or '(the model)'!r}."
    return "It arises outside of every submodule, in the forward function itself."


def _is_bad(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and not bool(torch.isfinite(value).all())
    )


def _is_mask(buffer: Tensor) -> bool:
    """Additive masks hold minus infinity by design."""
    return not bool(torch.isnan(buffer).any() or torch.isposinf(buffer).any())
