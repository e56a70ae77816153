"""What a forward pass leaves behind beside its graph, and how an explained pass takes it back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch.nn.utils import parametrize

from captum_lrp_tx.propagation.hygiene.hooks import Hooks

#: Hooks of torch that compute a weight before every call and store it as a plain attribute.
_OLD_NORMS = ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm")


class isolated:
    """The model and torch's stores beside it are after the explained pass what they were before.

    * Buffers: running statistics, vectors of spectral norm, counters, caches. Those of modules in
      training mode are copied before the pass; in other modules a buffer or parameter is copied
      when a call of torch is about to write to it (:meth:`before_write`), so that nothing is
      copied for models that write nothing. Buffers that were exchanged or added are put back by
      identity. The plain attributes of a module whose buffers changed go back with them: they
      often say what is in the buffers (``max_seq_len_cached``).
    * ``torch.nn.utils.parametrize.cached()`` keeps computed weights, which are constants in an
      explained pass; a training step in the same block needs them with their graph.
    * ``torch.nn.utils.weight_norm`` of old stores the weight that it computes in the module.

    What the forward function itself stores elsewhere (attributes of modules without buffers, lists,
    globals) stays, as after any forward pass.

    Args:
        modules (sequence of (str, Module)): The modules of the model.
    """

    def __init__(self, modules: Sequence[tuple[str, nn.Module]]) -> None:
        #: The modules of the model, by name.
        self.modules = modules
        self._hooks = Hooks(also=self._restore)
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._by_storage: dict[int, list[Tensor]] | None = None
        self._buffers: set[int] | None = None
        self._copied: set[int] = set()

    def __enter__(self) -> isolated:
        self._stored = [
            (module, _name_of(hook), vars(module)[_name_of(hook)])
            for _, module in self.modules
            if module._forward_pre_hooks
            for hook in list(module._forward_pre_hooks.values())
            if type(hook).__module__ in _OLD_NORMS and _name_of(hook) in vars(module)
        ]
        self._cached = set(_cache())
        with_buffers = [module for _, module in self.modules if module._buffers]
        self._kept = [
            (module, dict(module._buffers), dict(vars(module)), set(_unsaved(module)))
            for module in with_buffers
        ]
        for module in with_buffers:
            if module.training:
                self._copy(b for b in module._buffers.values() if b is not None)
        self._hooks.__enter__()  # an interruption cannot keep it from being undone
        return self

    def __exit__(self, *exc: Any) -> None:
        self._hooks.__exit__(*exc)

    def before_write(self, target: Any) -> None:
        """Keep a copy of the buffers and parameters in whose memory a call is about to write."""
        if not isinstance(target, Tensor) or (target.requires_grad and not target.is_leaf):
            return
        place = _storage(target)
        if place is not None and place not in self._copied:
            self._copied.add(place)
            self._copy(self._tensors_at(place))

    def is_buffer(self, x: Tensor) -> bool:
        """Whether a tensor is a buffer of the model itself."""
        if self._buffers is None:
            buffers = (b for _, module in self.modules for b in module._buffers.values())
            self._buffers = {id(b) for b in buffers}
        return id(x) in self._buffers

    def is_stored(self, x: Tensor) -> bool:
        """Whether a tensor is the whole of a parameter or buffer of the model, or a view of it."""
        place = _storage(x)
        return place is not None and any(t.numel() == x.numel() for t in self._tensors_at(place))

    def _tensors_at(self, place: int) -> list[Tensor]:
        """The parameters and buffers that lie in a storage."""
        if self._by_storage is None:
            self._by_storage = {}
            for _, module in self.modules:
                for tensor in (*module._parameters.values(), *module._buffers.values()):
                    if tensor is not None and (at := _storage(tensor)) is not None:
                        self._by_storage.setdefault(at, []).append(tensor)
        return self._by_storage.get(place, [])

    def _copy(self, tensors: Any) -> None:
        # what was made under inference_mode cannot be written to outside of it
        self._copies += [(t, t.detach().clone()) for t in tensors if not t.is_inference()]

    def _restore(self) -> None:
        for key in set(_cache()) - self._cached:
            _cache().pop(key, None)
        for module, name, value in self._stored:
            vars(module)[name] = value
        written = set()
        with torch._C.DisableTorchFunction(), torch.no_grad():
            for tensor, copy in self._copies:
                if not torch.equal(tensor, copy):
                    written.add(id(tensor))
                    tensor.data.copy_(copy)  # .data: graphs that hold it see the same values again
        for module, buffers, attributes, unsaved in self._kept:
            now = module._buffers
            same = now.keys() == buffers.keys() and all(now[k] is b for k, b in buffers.items())
            if same and not any(id(b) in written for b in buffers.values()):
                continue
            now.clear()
            now.update(buffers)
            vars(module).clear()
            vars(module).update(attributes)
            _unsaved(module).clear()
            _unsaved(module).update(unsaved)


def _storage(tensor: Tensor) -> int | None:
    """What tells the memory of a tensor from others; None for layouts without one."""
    while _functorch.is_functorch_wrapped_tensor(tensor):  # inside torch.vmap
        tensor = _functorch.get_unwrapped(tensor)
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else None


def _unsaved(module: nn.Module) -> set[str]:
    """Names of the buffers that are no part of the state of a module."""
    return module._non_persistent_buffers_set


def _name_of(hook: Any) -> str:
    return str(getattr(hook, "name", ""))


def _cache() -> dict[Any, Any]:
    cache: dict[Any, Any] = getattr(parametrize, "_cache", {})
    return cache
