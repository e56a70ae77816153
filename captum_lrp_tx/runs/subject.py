"""The model of a run: which one it is, where it is, and that it is ready."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_tx.attr.captum_rules import translate
from captum_lrp_tx.errors import InputError, RuleError
from captum_lrp_tx.propagation.model.modules import find_modules

#: What says where a model comes from, how it is called, and in which mode it is.
_NO_SETTINGS = ("training", "transformers_version", "id2label", "label2id")
_CONTAINERS = ("torch.nn.modules.container", "torch.nn.parallel.")


def model_fingerprint(model: Callable[..., Any]) -> str:
    """A hash of a model: its weights, the numbers and functions that its modules hold (the epsilon
    of a norm, how many heads, an activation), and the rules set on them (``module.rule``).

    Of a function that runs a model its code counts as well, numbers in it, and the functions of its
    own file that it calls; of an object that is called, all its methods.

    Args:
        model (nn.Module or callable): A model, or a function that runs one.

    Example::

        >>> model_fingerprint(torch.nn.Linear(2, 1)) == model_fingerprint(torch.nn.Linear(2, 1))
        False
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, module in find_modules(model):
        digest.update(f"{name} {type(module).__name__}".encode())
        digest.update("".join(_settings_of(module)).encode())
        with suppress(RuleError):  # no rule for this package, which then says so itself
            if rule := translate(vars(module).get("rule"), name):
                digest.update(f"{name}.rule {rule!r}".encode())
        for key, value in [
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ]:
            digest.update(f"{name}.{key} {value.dtype} {tuple(value.shape)}".encode())
            if value.is_meta:  # kept elsewhere until it is needed (accelerate's offloading)
                continue
            digest.update(content_of(value))
    if not isinstance(model, nn.Module):
        owner = getattr(model, "__self__", model)  # of a method, or an object that is called
        held = {} if isinstance(owner, nn.Module) else getattr(owner, "__dict__", {})
        parts = [*_code_of((model, _methods(owner), held), {}), *_contents(held.values())]
        digest.update("".join(parts).encode())
    return digest.hexdigest()[:16]


def _settings_of(module: nn.Module) -> Iterator[str]:
    """What a module computes with beside weights.

    What begins with ``_`` and the lists of a module may be of the last run.
    """
    fixed = (bool, int, float, str, tuple)
    for owner, kinds in ((module, fixed), (getattr(module, "config", None), (*fixed, list, dict))):
        for key, value in sorted(getattr(owner, "__dict__", {}).items()):
            if key.startswith("_") or key in _NO_SETTINGS:
                continue
            if isinstance(value, kinds):
                yield f"{key} {value!r}" if _is_plain(value) else ""
            elif callable(value) and not isinstance(value, nn.Module):
                yield f"{key} {getattr(value, '__qualname__', '')}"


def _is_plain(value: Any) -> bool:
    """Whether something is made of numbers and texts, and looks the same in every process."""
    if isinstance(value, dict):
        return all(map(_is_plain, (*value.keys(), *value.values())))
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, str, type(None)))


def content_of(value: Tensor) -> bytes:
    """The bytes of a tensor, of any type and on any device."""
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _methods(owner: Any) -> list[Any]:
    """What the class of an object that is called gives it, but for modules and special methods."""
    if isinstance(owner, nn.Module):
        return []
    named = [item for kind in type(owner).__mro__ for item in vars(kind).items()]
    return [value for name, value in named if name == "__call__" or not name.startswith("__")]


def _code_of(value: Any, seen: dict[int, Any]) -> Iterator[str]:
    """What a function does beside the modules that it runs: its code, and the numbers it holds.

    Args:
        value: A function, or whatever belongs to one.
        seen (dict): What was looked at, by identity: a function may call itself.
    """
    if isinstance(value, (str, bytes, int, float, complex, type(None))):
        yield repr(value)
        return
    if id(value) in seen:
        return
    seen[id(value)] = value
    if isinstance(value, (set, frozenset)):
        yield repr(sorted(map(repr, value)))
    elif isinstance(value, dict):
        yield from _code_of([*value.items()], seen)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _code_of(part, seen)
    elif isinstance(value, CodeType):
        yield f"{value.co_code!r} {value.co_names}"
        yield from _code_of(value.co_consts, seen)
    elif isinstance(value, partial):
        yield from _code_of((value.func, value.args, value.keywords), seen)
    elif isinstance(value, (MethodType, staticmethod, classmethod)):
        yield from _code_of(value.__func__, seen)
    elif isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        read = [value.__globals__.get(name) for name in value.__code__.co_names]
        numbers = [one for one in read if isinstance(one, (str, int, float))]
        helpers = [one for one in read if getattr(one, "__module__", "") == value.__module__
                   and isinstance(one, FunctionType)]  # fmt: skip
        given = (value.__defaults__ or (), value.__kwdefaults__ or {})
        yield from _code_of((value.__code__, *given, cells, numbers, helpers), seen)
        yield from _contents([*cells, *read])


def _contents(values: Iterable[Any]) -> Iterator[str]:
    """What tensors hold that are no weights of a module; those in lists may be of the last run."""
    for value in values:
        if isinstance(value, Tensor) and not value.is_meta:
            yield hashlib.sha256(content_of(value)).hexdigest()


def in_training(model: Callable[..., Any]) -> str | None:
    """The first module in training mode, by its name or class; None if there is none.

    Containers of torch do not look at their own mode: one that was put around a model in
    evaluation mode is in training mode as it was made.

    Args:
        model (nn.Module or callable): A model, or a function that runs one.
    """
    for name, module in find_modules(model):
        if module.training and not type(module).__module__.startswith(_CONTAINERS):
            return name or type(module).__name__
    return None


def refuse_training(model: Callable[..., Any]) -> None:
    """Complains about a model whose results would be random.

    Raises:
        InputError: It is in training mode.
    """
    if (where := in_training(model)) is not None:
        raise InputError(f"the model is in training mode ({where}); call model.eval() first")


def device_of(model: Callable[..., Any]) -> torch.device | None:
    """Where the inputs go: to the first weights that are on a device at all.

    Args:
        model (nn.Module or callable): A model, which may be spread over devices, or a function
            that runs one.

    Returns:
        torch.device or None: None if there are no weights.
    """
    for _, module in find_modules(model):
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if not tensor.is_meta:
                return tensor.device
    return None


def placed(inputs: Any, device: torch.device | None) -> Any:
    """A tensor, or a mapping with tensors, on a device; unchanged without one."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
