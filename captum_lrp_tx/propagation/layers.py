"""Making the activations at chosen layers the leaves of a pass (Captum's layer attribution)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_tx.errors import UnreachedInputError
from captum_lrp_tx.propagation.hooks import Hooks


class LayerProbe:
    """Captures the input or output tensors of layers during a forward pass of this thread.

    A tensor that nothing captured precedes becomes a leaf, so nothing below it is differentiated.
    If a layer runs more than once, its last call counts, as in Captum.

    Args:
        layers (sequence of Module): The layers, in the order of the result.
        at_input (bool): Capture positional tensor inputs instead of outputs.
    """

    def __init__(self, layers: Sequence[nn.Module], at_input: bool) -> None:
        self._layers = list(layers)
        self._at_input = at_input
        self._captured: list[list[Tensor]] = [[] for _ in self._layers]
        self._hooks = Hooks()
        self._thread = threading.get_ident()

    def captured(self) -> list[list[Tensor]]:
        """Captured tensors of each layer."""
        return self._captured

    def tensors(self) -> list[Tensor]:
        """All captured tensors, layer by layer.

        Raises:
            UnreachedInputError: a layer did not run or has no floating-point tensor there.
        """
        for layer, captured in zip(self._layers, self._captured, strict=True):
            if not captured:
                what = "input" if self._at_input else "output"
                raise UnreachedInputError(
                    f"No floating-point tensor was seen at the {what} of the layer "
                    f"{type(layer).__name__}: it did not run in the forward pass, or takes only "
                    "keyword or integer arguments (attribute to its output then)."
                )
        return [tensor for captured in self._captured for tensor in captured]

    def __enter__(self) -> LayerProbe:
        self._hooks.__enter__()
        try:
            for position, layer in enumerate(self._layers):
                if self._at_input:
                    self._hooks.before(layer, self._pre_hook(position))
                else:
                    self._hooks.after(layer, self._hook(position))
        except BaseException:
            self._hooks.remove()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(exc_type, exc, traceback)

    def _pre_hook(self, position: int) -> Any:
        def capture(_module: nn.Module, args: Any) -> Any:
            if threading.get_ident() != self._thread:
                return None
            self._captured[position] = []
            return tuple(self._capture(position, a) for a in args)

        return capture

    def _hook(self, position: int) -> Any:
        def capture(_module: nn.Module, _args: Any, output: Any) -> Any:
            if threading.get_ident() != self._thread:
                return None
            self._captured[position] = []
            if isinstance(output, Tensor):
                return self._capture(position, output)
            if isinstance(output, tuple) and not hasattr(output, "_fields"):
                return tuple(self._capture(position, item) for item in output)
            if isinstance(output, list):
                return [self._capture(position, item) for item in output]
            if isinstance(output, dict):  # a ModelOutput is an ordered dictionary
                for key, item in output.items():
                    output[key] = self._capture(position, item)
                return output
            return None

        return capture

    def _capture(self, position: int, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        # this runs inside the model's forward pass, but is no operation of the model
        with torch._C.DisableTorchFunction():
            leaf = value if value.requires_grad else value.detach().clone().requires_grad_()
            self._captured[position].append(leaf)
            # a copy goes on, so that in-place operations cannot reach the captured values
            return leaf.clone()
