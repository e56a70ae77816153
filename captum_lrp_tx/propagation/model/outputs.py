"""What goes into a forward function and what it returns: messages that name both."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from captum_lrp_tx.errors import InputError, OutputError

#: What to do with a model on the meta device.
LOAD = (
    "Load the weights onto a device first: from_pretrained(...), or model.to_empty(device='cpu') "
    "and model.load_state_dict(...)."
)


def output_tensor(returned: Any) -> Tensor:
    """The tensor in what a forward function returned: itself, or ``.logits`` of a model output.

    Raises:
        OutputError: no floating-point tensor can be told, or one without values.
    """
    if isinstance(returned, Tensor):
        tensor = returned
    elif isinstance(getattr(returned, "logits", None), Tensor):
        tensor = returned.logits
    elif isinstance(returned, Mapping) and isinstance(returned.get("logits"), Tensor):
        tensor = returned["logits"]
    elif isinstance(returned, (tuple, list)) and len(returned) == 1:
        return output_tensor(returned[0])
    else:
        raise OutputError(
            f"The forward function returned {type(returned).__name__} without .logits, "
            f"{_way_out(returned)}"
        )
    if not tensor.is_floating_point():
        raise OutputError(
            f"The forward function returned a tensor of dtype {tensor.dtype}; only floating-point "
            "scores can be explained (return logits, not predicted classes)."
        )
    if tensor.is_meta:
        raise OutputError(
            f"The forward function returned a tensor on the meta device, without values. {LOAD}"
        )
    return tensor


def _way_out(returned: Any) -> str:
    """How to choose a tensor of what was returned, for tensors and mappings as inputs."""
    if isinstance(returned, Mapping):
        is_object = hasattr(returned, "to_tuple")  # a ModelOutput
        fields = {f".{k}" if is_object else f"[{k!r}]": v for k, v in returned.items()}
    elif isinstance(returned, (tuple, list)):
        fields = {f"[{i}]": v for i, v in enumerate(returned)}
    else:
        fields = {f".{k}": v for k, v in getattr(returned, "__dict__", {}).items()}
    found = {k: v for k, v in fields.items() if isinstance(v, Tensor) and v.is_floating_point()}
    if not found:
        return "and it holds no floating-point tensor; return one, e.g. the logits."
    shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in found.items())
    chosen = next((key for key, value in found.items() if value.dim() > 1), next(iter(found)))
    return (
        f"but with {shapes}. Say which to explain, for tensors and mappings alike: "
        f"lambda *args, **kwargs: model(*args, **kwargs){chosen}"
    )


@contextlib.contextmanager
def call_explained(
    forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[None]:
    """Around the call of a forward function: say so if it does not take what a mapping holds.

    Raises:
        InputError: in place of the ``TypeError`` of Python.
    """
    try:
        yield
    except TypeError as error:
        if not kwargs:
            raise
        function = forward.forward if isinstance(forward, nn.Module) else forward
        try:
            inspect.signature(function).bind(*args, **kwargs)
        except TypeError as unfit:
            if args and _takes(function, kwargs):
                raise InputError(
                    "The entries of a mapping are passed by keyword, and additional_forward_args "
                    "by position, from the first parameter on; the forward function does not take "
                    f"both ({unfit}). Put these arguments into the mapping, too, by the names that "
                    "the model has for them, and float tensors that need no relevance into "
                    "functools.partial(model, name=value)."
                ) from error
            raise InputError(
                f"Every entry of a mapping is passed to the forward function by keyword, and it "
                f"does not take {', '.join(kwargs)} ({unfit}). Write lambda **kwargs: "
                "model(**kwargs).logits, or leave out the entries that the model does not take. If "
                "it takes the mapping as a whole: lambda **kwargs: model(kwargs)['its output']."
            ) from error
        raise


def _takes(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether nothing is wrong with what is passed by keyword, where that is all there is."""
    try:
        inspect.signature(function).bind_partial(**kwargs)
    except TypeError:
        return False
    return True
