"""``memory="low"``: keep the inputs of each block of a model, and run the block again when needed.

A transformer repeats one block many times.  With this switched on nothing that a block saves for
the backward pass is kept; when the backward pass first asks for any of it, the block is run once
more, under the rules that were in force, and what it saves is handed over.  The relevance is the
same to the last bit, for about one more forward pass.

It works through hooks: the block itself is called by the model as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import get_device_states, set_device_states

from captum_lrp_tx.errors import UnsupportedModelError
from captum_lrp_tx.propagation.hooks import Hooks
from captum_lrp_tx.propagation.inputs import Inputs
from captum_lrp_tx.propagation.operations import RuleTable
from captum_lrp_tx.propagation.scope import Scope

#: The state of the CPU's generator, and of those of devices.
_Random = tuple[Tensor, list[int], list[Tensor]]
_PLAIN = (int, float, str, bool, bytes, type(None), torch.dtype, torch.device, torch.Size)


def repeated_blocks(modules: Sequence[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """The blocks that a model repeats: outermost lists with several modules of one class.

    Args:
        modules (sequence of (str, Module)): Named modules, outermost first.

    Returns:
        list of (str, Module): The modules in such lists.

    Example::

        >>> layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        >>> [name for name, _ in repeated_blocks(list(layers.named_modules("layers")))]
        ['layers.0', 'layers.1']
    """
    names = {id(module): name for name, module in modules}
    found: list[tuple[str, nn.Module]] = []
    inside: set[int] = set()
    for _, module in modules:
        if id(module) in inside or not isinstance(module, (nn.ModuleList, nn.Sequential)):
            continue
        children = [c for c in module.children() if any(True for _ in c.parameters())]
        kinds = [type(child) for child in children]
        chosen = [c for c in children if kinds.count(type(c)) > 1]
        if not chosen:
            continue
        found.extend((names.get(id(c), type(c).__name__), c) for c in chosen)
        inside.update(id(m) for c in chosen for m in c.modules())
    return found


@dataclass
class _Call:
    """One call of a block, and what its second run has saved so far."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    versions: list[int]
    tables: list[RuleTable]
    random: _Random | None
    lookups: int
    count: int = 0
    shapes: list[tuple[torch.Size, torch.dtype]] = field(default_factory=list)
    saved: dict[int, Tensor] = field(default_factory=dict)
    hooks: saved_tensors_hooks | None = None


class Recomputation:
    """A context for the forward pass in which blocks keep their inputs only.

    Args:
        blocks (sequence of (str, Module)): What is run again.
        scope (Scope): The rules of the pass.
        inputs (Inputs): Which must not be looked up inside a block.
        rules (callable): Gives the context that a second run needs beside the scope: the function
            mode, which must not look for inputs again.

    Raises:
        UnsupportedModelError: while the model runs, if a block gets an object that it may change
            (a cache of keys and values); while it runs again, if it changed its inputs in place or
            does something else the second time.
    """

    def __init__(
        self,
        blocks: Sequence[tuple[str, nn.Module]],
        scope: Scope,
        inputs: Inputs,
        rules: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._blocks = blocks
        self._scope = scope
        self._inputs = inputs
        self._rules = rules
        self._hooks = Hooks(also=self._close)
        self._open: list[_Call] = []
        self._probing = self._is_there = False

    def __enter__(self) -> Recomputation:
        self._hooks.__enter__()
        try:
            for name, block in self._blocks:
                self._hook(name, block)
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

    def _hook(self, name: str, block: nn.Module) -> None:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._scope.is_current() and not self._open and torch.is_grad_enabled():
                call = self._call(name, module, args, kwargs)
                call.hooks = saved_tensors_hooks(
                    lambda tensor: self._pack(call, tensor), lambda i: self._unpack(call, i)
                )
                self._open.append(call)  # first: Ctrl-C may come before the hooks are in force
                call.hooks.__enter__()

        def leave(module: nn.Module, *_: Any) -> None:
            if self._open and self._open[-1].module is module and self._scope.is_current():
                call = self._open[-1]
                self._close()
                if self._inputs.count_lookups() != call.lookups:
                    raise UnsupportedModelError(
                        f"{call_of(name)} looks up token ids, which must not happen twice; use "
                        "memory='standard'."
                    )

        self._hooks.before(block, enter, with_kwargs=True)
        self._hooks.after(block, leave, always_call=True)

    def _call(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> _Call:
        tensors = _tensors((args, kwargs), name)
        return _Call(
            name, module, tuple(args), dict(kwargs), [t._version for t in tensors],
            self._scope.tables(), _random_state(module, tensors), self._inputs.count_lookups(),
        )  # fmt: skip

    def _close(self) -> None:
        """End the open call, wherever an interruption came; does nothing if there is none."""
        for call in self._open:  # one at most
            if call.hooks is not None and self._packs():
                call.hooks.__exit__()
            call.hooks = None
        self._open.clear()

    def _packs(self) -> bool:
        """Whether our hooks are in force: torch does not tell, so something is saved to see."""
        self._probing, self._is_there = True, False
        try:
            with torch._C.DisableTorchFunction(), torch.enable_grad():
                torch.ones((), requires_grad=True).exp()
        finally:
            self._probing = False
        return self._is_there

    def _pack(self, call: _Call, tensor: Tensor) -> Any:
        if self._probing:
            self._is_there = True
            return None  # the result itself would keep its own node alive
        call.shapes.append((tensor.shape, tensor.dtype))
        call.count += 1
        return call.count - 1

    # ---- the second run ----------------------------------------------------------------------
    def _unpack(self, call: _Call, index: int) -> Tensor:
        if index not in call.saved:
            self._run_again(call)
        return call.saved.pop(index)

    def _run_again(self, call: _Call) -> None:
        tensors = _tensors((call.args, call.kwargs), call.name)
        if [t._version for t in tensors] != call.versions:
            raise UnsupportedModelError(
                f"{call.name} changes its inputs in place, so it cannot be run a second time; use "
                "memory='standard'."
            )
        saved: list[Tensor] = []

        def keep(tensor: Tensor) -> None:
            saved.append(tensor.detach())

        with torch.enable_grad():
            args, kwargs = _fresh(call.args), _fresh(call.kwargs)
        with (
            torch.enable_grad(), _kept_random(call.random), self._scope.again(call.tables),
            self._rules(), saved_tensors_hooks(keep, _never),
        ):  # fmt: skip
            _set_random(call.random)
            call.module(*args, **kwargs)
        if [(t.shape, t.dtype) for t in saved] != call.shapes:
            raise UnsupportedModelError(
                f"{call.name} does something else when it is run a second time. If it fills a "
                "cache of keys and values, switch that off (use_cache=False); or use "
                "memory='standard'."
            )
        call.saved = dict(enumerate(saved))


def _never(_: Any) -> Tensor:
    raise AssertionError("the graph of a second run is not walked")


def _tensors(value: Any, name: str) -> list[Tensor]:
    """Every tensor in the arguments of a block.

    Raises:
        UnsupportedModelError: an argument that is none of the plain types.
    """
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for item in value.values() for t in _tensors(item, name)]
    if isinstance(value, (tuple, list)):
        return [t for item in value for t in _tensors(item, name)]
    if isinstance(value, _PLAIN) or callable(value):
        return []
    raise UnsupportedModelError(
        f"memory='low' runs the blocks of the model twice, and {call_of(name)} gets an argument of "
        f"type {type(value).__name__}, which it may change. If it is a cache of keys and values, "
        "switch that off (use_cache=False, or model.config.use_cache = False); or use "
        "memory='standard'."
    )


def call_of(name: str) -> str:
    """How messages speak of a block."""
    return f"the block {name!r}" if name else "a block"


def _fresh(value: Any) -> Any:
    """The same arguments, cut off from the graph of the first run."""
    if isinstance(value, Tensor):
        if not value.requires_grad:
            return value
        # no leaf: leaves are taken for parameters
        return value.detach().requires_grad_().view_as(value)
    if isinstance(value, dict):
        return {k: _fresh(v) for k, v in value.items()}
    if type(value) in (tuple, list):
        return type(value)([_fresh(item) for item in value])
    return value


def _random_state(module: nn.Module, tensors: list[Tensor]) -> _Random | None:
    """The state of the random generators, if the block may draw from them."""
    if not any(m.training for m in module.modules()):
        return None
    devices, states = get_device_states(*tensors)
    return torch.get_rng_state(), list(devices), states


def _kept_random(state: _Random | None) -> AbstractContextManager[Any]:
    """Random generators are afterwards as they are now, if the block may draw from them."""
    return nullcontext() if state is None else torch.random.fork_rng(state[1])


def _set_random(state: _Random | None) -> None:
    """Random generators as they were at the first run."""
    if state is not None:
        cpu, devices, states = state
        torch.set_rng_state(cpu)
        set_device_states(devices, states)
