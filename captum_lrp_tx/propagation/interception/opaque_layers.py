"""Layers that run as one operation of a package's own.

Function modes do not see ``torch.autograd.Function.apply``, so such a layer is known by its module:
one that torch did not define, with nothing of torch's inside. One with codes may be a linear map
(:mod:`~.opaque_maps`), one without any tensor an activation (:mod:`~.opaque_activations`). Which it
is, and whether, its results tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lrp_tx.propagation.graph import Node
from captum_lrp_tx.propagation.hygiene.hooks import Hooks
from captum_lrp_tx.propagation.interception import opaque_activations, opaque_maps, quantised
from captum_lrp_tx.propagation.interception.underived import has_no_derivative
from captum_lrp_tx.propagation.judging.coverage import is_ours, made_since
from captum_lrp_tx.propagation.state.scope import next_sequence_number

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context

#: Numbers of these types are weights; others are codes.
_NUMBERS = frozenset([torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool])


def candidates(modules: Sequence[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """Modules that may be an operation of a package's own, by what they store."""
    return [
        (name, module)
        for name, module in modules
        if not _is_torchs(type(module)) and _is_leaf(module) and (_holds(module) or _bare(module))
    ]


def _is_torchs(kind: type) -> bool:
    return kind.__module__.startswith("torch.nn.")


def _is_leaf(module: nn.Module) -> bool:
    """Whether no module inside is a layer; one that only stores something is none."""
    return not any(
        child is not None and (child._parameters or child._modules or _is_torchs(type(child)))
        for child in module._modules.values()
    )


def _bare(module: nn.Module) -> bool:
    """Whether a module has nothing but its code."""
    return not (module._parameters or module._buffers or module._modules)


def _holds(module: nn.Module) -> bool:
    return any(_stores(part) for part in (module, *module._modules.values()))


def _stores(module: nn.Module | None) -> bool:
    """Whether there are codes, or what may hold some: a tensor of another class, a C++ object."""
    if module is None:
        return False
    for store in (module._parameters, module._buffers, module.__dict__):
        for value in store.values():
            if isinstance(value, Tensor):
                if _is_code(value):
                    return True
            elif isinstance(value, torch.ScriptObject):
                return True
    return False


def _is_code(tensor: Tensor) -> bool:
    # weights may be packed into tensors of any type
    return tensor.dtype not in _NUMBERS or type(tensor) not in quantised.PLAIN


class OpaqueLayers:
    """Hooks on modules that may be opaque, for one forward pass.

    Args:
        context (Context): Of the pass. The hooks have to be put on after those of the
            scope: they see inputs as the module gets them, and outputs before all others.
        modules (sequence of (str, Module)): What :func:`candidates` found.
    """

    def __init__(self, context: Context, modules: Sequence[tuple[str, nn.Module]]) -> None:
        self._context, self._modules = context, modules
        self._hooks = Hooks()

    def again(self, context: Context) -> OpaqueLayers:
        """The same for a second run of a part of the model."""
        return OpaqueLayers(context, self._modules)

    def __enter__(self) -> OpaqueLayers:
        self._hooks.__enter__()
        for name, module in self._modules:
            self._hook(name, module)
        return self

    def __exit__(self, *exc: Any) -> None:
        self._hooks.__exit__(*exc)

    def _hook(self, name: str, module: nn.Module) -> None:
        started: list[tuple[Tensor | None, int, int]] = []
        context = self._context

        # another thread may call them without kwargs: see Hooks.before
        def enter(_module: nn.Module, args: Any, kwargs: Any = None) -> None:
            if context.scope.is_current():
                x = args[0] if len(args) == 1 and not kwargs else None
                start, underived = next_sequence_number(), len(context.underived)
                started.append((x if _is_signal(x) else None, start, underived))

        def leave(_module: nn.Module, args: Any, kwargs: Any = None, output: Any = None) -> Any:
            if not context.scope.is_current() or not started:  # a hook before ours raised
                return None
            x, start, underived = started.pop()
            if x is None or not isinstance(output, Tensor) or not torch.is_grad_enabled():
                return None
            if not _is_opaque(output, start, module):
                return None
            if _bare(module):
                return opaque_activations.known(context, module, x, output)
            found = opaque_maps.claim(context, name, module, x, output)
            if found is None:
                return None
            del context.underived[underived:]
            return opaque_maps.as_linear_map(context, name, module, x, output, found)

        self._hooks.before(module, enter, with_kwargs=True)
        self._hooks.after(module, leave, with_kwargs=True, always_call=True, prepend=True)


def _is_signal(x: Any) -> bool:
    with torch._C.DisableTorchFunction():  # not to be asked by the mode: this runs in every pass
        return isinstance(x, Tensor) and x.requires_grad and x.dim() > 0


def _is_opaque(output: Tensor, start: int, module: nn.Module) -> bool:
    """Whether an autograd function that nothing sees into made a result, or one without any."""
    with torch._C.DisableTorchFunction():
        if not output.is_floating_point():
            return False
        if output.requires_grad:
            return any(_is_foreign(node) for node in made_since(output.grad_fn, start))
        return any(_is_code(t) for t in (*module.parameters(), *module.buffers()))


def _is_foreign(node: Node) -> bool:
    if hasattr(type(node), "_forward_cls"):
        return not is_ours(node)
    return has_no_derivative(node)
