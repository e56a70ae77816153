"""What torch keeps of a forward pass outside of its graph, and how a pass stays out of it."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

#: Hooks of torch that compute a weight before every call and store it as a plain attribute.
_OLD_NORMS = ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm")


class isolated:
    """The explained pass neither takes from nor leaves in torch's stores beside the model.

    * ``torch.nn.utils.parametrize.cached()`` keeps computed weights, which are constants in an
      explained pass; a training step in the same block needs them with their graph.
    * ``torch.nn.utils.weight_norm`` of old stores the weight that it computes in the module.

    Args:
        modules (sequence of (str, Module)): The modules of the model.
    """

    def __init__(self, modules: Sequence[tuple[str, nn.Module]]) -> None:
        self._modules = modules

    def __enter__(self) -> None:
        self._stored = [
            (module, _name_of(hook), vars(module)[_name_of(hook)])
            for _, module in self._modules
            if module._forward_pre_hooks
            for hook in list(module._forward_pre_hooks.values())
            if type(hook).__module__ in _OLD_NORMS and _name_of(hook) in vars(module)
        ]
        self._cached = set(_cache())

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for key in set(_cache()) - self._cached:
            _cache().pop(key, None)
        for module, name, value in self._stored:
            vars(module)[name] = value


def _name_of(hook: Any) -> str:
    return str(getattr(hook, "name", ""))


def _cache() -> dict[Any, Any]:
    cache: dict[Any, Any] = getattr(parametrize, "_cache", {})
    return cache
