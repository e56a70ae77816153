"""Finding the modules behind a forward function, and refusing those that hide their operations."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from captum_lrp_tx.errors import UnsupportedModelError

_DEPTH = 4
#: Larger dictionaries (vocabularies, data) are not searched for modules.
_SMALL = 256
#: Where ``torch.compile`` keeps the function that it was given.
_ORIGINAL = "_torchdynamo_orig_callable"
_UNCOMPILED = (
    f"Explain the function it was made from, which torch keeps as its attribute {_ORIGINAL}, or "
    "compile after the explanation."
)


def find_modules(forward: Callable[..., Any]) -> list[tuple[str, nn.Module]]:
    """Named modules that a forward function runs, each once, outermost first.

    Looks at the callable itself, at what a method is bound to, and at the closure, defaults,
    partial arguments and the globals that a function names; if no module is there, into
    dictionaries as well.  One root keeps its plain names
    (``"encoder.layer.0"``); with several roots each name is preceded by the root's position.
    """
    roots: list[nn.Module] = []
    found = list(_roots(forward, _DEPTH, set())) or list(_roots(forward, _DEPTH, set(), dicts=True))
    for module in found:
        if not any(module is m for root in roots for m in root.modules()):
            roots = [r for r in roots if not any(r is m for m in module.modules())] + [module]
    named: list[tuple[str, nn.Module]] = []
    for position, root in enumerate(roots):
        prefix = "" if len(roots) == 1 else str(position)
        named.extend(root.named_modules(prefix=prefix))
    return named


def _roots(value: Any, depth: int, seen: set[int], dicts: bool = False) -> Iterator[nn.Module]:
    if depth == 0 or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, types.MethodType):
        yield from _roots(value.__self__, depth, seen, dicts)
    elif isinstance(value, functools.partial):
        for item in (value.func, *value.args, *value.keywords.values()):
            yield from _roots(item, depth - 1, seen, dicts)
    elif isinstance(value, types.FunctionType):
        for item in _reached_by(value):
            yield from _roots(item, depth - 1, seen, dicts)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _roots(item, depth - 1, seen, dicts)
    elif type(value) is dict:
        for item in list(value.values()) if dicts and len(value) <= _SMALL else ():
            yield from _roots(item, depth - 1, seen, dicts)
    elif hasattr(value, "__dict__") and not isinstance(value, (type, types.ModuleType)):
        for item in list(vars(value).values()):
            yield from _roots(item, depth - 1, seen, dicts)


def _reached_by(function: types.FunctionType) -> list[Any]:
    reached = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            reached.append(cell.cell_contents)
        except ValueError:  # a variable not yet assigned
            continue
    reached += [
        function.__globals__[n] for n in _names(function.__code__) if n in function.__globals__
    ]
    return [*reached, getattr(function, "__wrapped__", None)]


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def named_tensors(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of named modules, module by module, by their full names."""
    for prefix, module in modules:
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for name, tensor in own:
            yield f"{prefix}.{name}" if prefix else name, tensor


def refuse_opaque(modules: list[tuple[str, nn.Module]], forward: Any = None) -> None:
    """Raise for a function or modules whose operations no function mode can see.

    Args:
        modules (list of (str, Module)): The modules of the model.
        forward (callable, optional): The forward function, where it is none of them.

    Raises:
        UnsupportedModelError: compiled, scripted or replicated modules, with the way out.
    """
    if _is_compiled(forward) and not isinstance(forward, nn.Module):
        raise UnsupportedModelError(
            "The forward function is compiled by torch.compile, so rules cannot see its "
            f"operations. {_UNCOMPILED}"
        )
    for name, module in modules:
        if _is_plain(module):
            continue
        where = f"Module {name!r}" if name else "The model"
        if type(module).__name__ == "OptimizedModule":
            raise UnsupportedModelError(
                f"{where} is compiled by torch.compile, so rules cannot see its operations. "
                "Explain the module it was made from: model._orig_mod."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                f"{where} is a TorchScript module, so rules cannot see its operations. Explain "
                "the Python module it was made from."
            )
        if module._compiled_call_impl is not None:
            raise UnsupportedModelError(
                f"{where} was compiled in place by module.compile(), so rules cannot see its "
                "operations. Explain copy.deepcopy(model), which is not compiled, or undo it: for "
                "m in model.modules(): m._compiled_call_impl = None."
            )
        if _is_compiled(_forward_of(module)):
            raise UnsupportedModelError(
                f"{where} has a forward method compiled by torch.compile, so rules cannot see its "
                f"operations. {_UNCOMPILED}"
            )
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise UnsupportedModelError(
                f"{where} is nn.DataParallel over several devices, whose replicas run in other "
                "threads. Explain model.module on one device."
            )


def _is_compiled(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    marks = getattr(function, "__dict__", {})
    return _ORIGINAL in marks and "_torchdynamo_disable" not in marks


def _forward_of(module: nn.Module) -> Any:
    return vars(module).get("forward", type(module).forward)


@functools.lru_cache(maxsize=1024)
def _is_plain_kind(kind: Any) -> bool:
    hides = issubclass(kind, (torch.jit.ScriptModule, nn.DataParallel))
    return not hides and kind.__name__ != "OptimizedModule" and not _is_compiled(kind.forward)


def _is_plain(module: nn.Module) -> bool:
    own, kind = module.__dict__, cast(Any, type(module))
    if own.get("_compiled_call_impl") is not None or not _is_plain_kind(kind):
        return False
    return "forward" not in own or not _is_compiled(own["forward"])


def refuse_transforms() -> None:
    """Raise inside ``torch.vmap`` and the transforms of ``torch.func``.

    Raises:
        UnsupportedModelError: they cannot transform a backward pass with rules.
    """
    if torch._C._are_functorch_transforms_active():
        raise UnsupportedModelError(
            "An explanation cannot run inside torch.vmap, torch.func.grad, jvp or another function "
            "transform. Pass a batch instead: attribute() explains every example of it on its own."
        )
