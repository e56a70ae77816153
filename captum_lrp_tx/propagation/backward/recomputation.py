"""``memory="low"``: keep the inputs of each block of a model, and run the block again when needed.

A transformer repeats one block many times.  With this switched on hardly anything that a block
saves for the backward pass is kept; when the backward pass first asks for any of it, the block is
run once more, under the rules that were in force, and what it saves is handed over.  The relevance
is the same to the last bit, for less than one more forward pass:

- what is small (normalisers) or there anyway (weights) is kept from the first run, and the second
  one stops where nothing else is left to be saved, in most blocks before the last matrix product;
- the last block is not run again: the backward pass begins with it, so it may keep everything.

It works through hooks: the block itself is called by the model as ever.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.utils.checkpoint import get_device_states, set_device_states

from captum_lrp_tx.errors import UnsupportedModelError
from captum_lrp_tx.propagation.hygiene.hooks import Hooks
from captum_lrp_tx.propagation.hygiene.snapshots import CannotCopy, Snapshot, reads_placeholder
from captum_lrp_tx.propagation.operations import RuleTable
from captum_lrp_tx.propagation.state.inputs import Inputs
from captum_lrp_tx.propagation.state.scope import Scope

#: The state of the CPU's generator, and of those of devices.
_Random = tuple[Tensor, list[int], list[Tensor]]
#: A saved tensor is kept if it has at most this part of the elements of the block's largest input.
_SMALL = 1 / 64
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


@dataclass(frozen=True)
class _Sight:
    """What is remembered of a saved tensor, to see whether the second run saves the same."""

    shape: torch.Size
    dtype: torch.dtype
    entry: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> _Sight:
        """Shape, dtype, and the entry in the middle."""
        with torch._C.DisableTorchFunction():
            middle = tensor.detach()[tuple(n // 2 for n in tensor.shape)] if tensor.numel() else 0.0
            entry = torch.as_tensor(middle, device=tensor.device).to(torch.float64, copy=True)
        return cls(tensor.shape, tensor.dtype, entry)

    def is_of_same(self, other: _Sight) -> bool:
        """Whether both may be of the same tensor; sums on accelerators vary in the last bits."""
        if (self.shape, self.dtype) != (other.shape, other.dtype):
            return False
        error = 0.0 if self.entry.device.type == "cpu" else 1e-2
        return torch.allclose(self.entry, other.entry, rtol=error, atol=error, equal_nan=True)


@dataclass(frozen=True)
class _Saved:
    """A saved tensor, and its version when it was saved."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Saved:
        with torch._C.DisableTorchFunction():
            return cls(tensor.detach(), tensor._version)


@dataclass
class _Call:
    """One call of a block, and what it has saved.

    Args:
        name (str): Of the block.
        module (Module): The block.
        args (tuple), kwargs (dict): Its arguments, as they were when it began.
        versions (list of int): Versions of the tensors among them.
        tables (list of RuleTable): The rules in force.
        random (optional): State of the random generators, if the block may draw from them.
        lookups (int): How many inputs had been looked up.
        small (float): Greatest number of elements of a tensor that is kept.
        weights (set of int): Where the block's parameters and buffers lie.
        seen (list): Of everything that the first run saved, in order, what is remembered.
        kept (dict): Of that, by position, what stays until the end.
        saved (dict): The rest, by position: of the last block, or of a second run.
        hooks (saved_tensors_hooks, optional): While the block runs for the first time.
        is_unasked (bool): Whether the backward pass has not asked for anything yet.
    """

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    versions: list[int]
    tables: list[RuleTable]
    random: _Random | None
    lookups: int
    small: float
    weights: set[int]
    seen: list[_Sight] = field(default_factory=list)
    kept: dict[int, _Saved] = field(default_factory=dict)
    saved: dict[int, _Saved] = field(default_factory=dict)
    hooks: saved_tensors_hooks | None = None
    is_unasked: bool = True

    def keeps(self, tensor: Tensor) -> bool:
        """Whether it costs next to nothing to keep a tensor."""
        if tensor.numel() <= self.small:
            return True
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
        return plain and tensor.untyped_storage().data_ptr() in self.weights


class _Enough(BaseException):
    """All that a second run was needed for is there.  No ``Exception``: blocks may catch those."""


class _Elsewhere(BaseException):
    """A second run reads what is not there."""


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
            and that cannot be copied; while it runs again, if it changed its inputs in place, reads
            what other blocks wrote to such an object, or does something else the second time.
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
        # not the call itself: its arguments lead to the graph, and that leads here
        self._latest: dict[int, _Saved] = {}
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

    def __exit__(self, *exc: Any) -> None:
        self._hooks.__exit__(*exc)

    def _hook(self, name: str, block: nn.Module) -> None:
        # another thread may call it without kwargs: see Hooks.before
        def enter(module: nn.Module, args: Any, kwargs: Any = None) -> None:
            if self._scope.is_current() and not self._open and torch.is_grad_enabled():
                call = self._call(name, module, args, kwargs)
                self._latest.clear()
                self._latest = call.saved
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
        args, kwargs = _held(tuple(args), name), _held(dict(kwargs), name)
        tensors = _tensors((args, kwargs))
        return _Call(
            name, module, args, kwargs, [t._version for t in tensors],
            self._scope.tables(), _random_state(module, tensors), self._inputs.count_lookups(),
            _SMALL * max((t.numel() for t in tensors if t.is_floating_point()), default=0),
            set() if _is_wrapped(module) else _storages(module),
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
        index = len(call.seen)
        call.seen.append(_Sight.of(tensor))
        (call.kept if call.keeps(tensor) else call.saved)[index] = _Saved.of(tensor)
        return index

    # ---- the second run ----------------------------------------------------------------------
    def _unpack(self, call: _Call, index: int) -> Tensor:
        # already for what is kept, the first time: gradients grow wider within a block
        early = call.is_unasked and not call.saved and len(call.kept) < len(call.seen)
        if early or (index not in call.kept and index not in call.saved):
            self._run_again(call)
        call.is_unasked = False
        saved = call.kept[index] if index in call.kept else call.saved.pop(index)
        if saved.tensor._version != saved.version:
            raise UnsupportedModelError(
                f"{call_of(call.name)} saves a tensor for the backward pass that is changed in "
                "place afterwards; compute a new one there (x = x + y for x += y)."
            )
        return saved.tensor

    def _run_again(self, call: _Call) -> None:
        tensors = _tensors((call.args, call.kwargs))
        if [t._version for t in tensors] != call.versions:
            raise UnsupportedModelError(
                f"{call_of(call.name)} changes its inputs in place, so it cannot be run a second "
                "time; use memory='standard'."
            )
        seen: list[_Sight] = []
        saved: dict[int, _Saved] = {}
        last = max(i for i in range(len(call.seen)) if i not in call.kept)
        stops = _may_stop(call.module)

        def keep(tensor: Tensor) -> Tensor | None:
            index = len(seen)
            if reads_placeholder(tensor):
                raise _Elsewhere
            seen.append(_Sight.of(tensor))
            if index not in call.kept:
                saved[index] = _Saved.of(tensor)
            if stops and index == last:
                raise _Enough
            return None if tensor.requires_grad else tensor  # factors of maps are looked at

        with torch.enable_grad():
            args, kwargs = _fresh(call.args), _fresh(call.kwargs)
        with (
            contextlib.suppress(_Enough), torch.enable_grad(), _kept_random(call.random),
            self._scope.again(call.tables), self._rules(), saved_tensors_hooks(keep, _constant),
        ):  # fmt: skip
            _set_random(call.random)
            try:
                call.module(*args, **kwargs)
            except (_Elsewhere, RuntimeError, NotImplementedError) as error:
                if not any(t.is_meta for t in _tensors((call.args, call.kwargs))):
                    raise
                raise UnsupportedModelError(
                    f"{call_of(call.name)} cannot be run a second time: it reads what other blocks "
                    "have written to an object that is handed to all of them, such as a cache, and "
                    "that is not kept; use memory='standard'."
                ) from error
        expected = call.seen[: last + 1] if stops else call.seen
        if len(seen) != len(expected) or not all(map(_Sight.is_of_same, seen, expected)):
            raise UnsupportedModelError(
                f"{call_of(call.name)} does something else when it is run a second time; use "
                "memory='standard'."
            )
        call.saved.update(saved)


def _constant(constant: Tensor | None) -> Tensor:
    if constant is None:
        raise AssertionError("the graph of a second run is not walked")
    return constant


def _may_stop(block: nn.Module) -> bool:
    """Whether a run of a block may be left halfway: not if hooks count on its end.

    Nor if something has been put in the place of a ``forward``, which may count on it, too.
    """
    hooks = _global_forward_hooks or _global_forward_pre_hooks
    return not (
        hooks
        or _is_wrapped(block)
        or any(m._forward_hooks or m._forward_pre_hooks for m in block.modules())
    )


def _is_wrapped(block: nn.Module) -> bool:
    """Whether a ``forward`` has been replaced, as by packages that move weights to and fro."""
    return any("forward" in vars(module) for module in block.modules())


def _storages(block: nn.Module) -> set[int]:
    """Where parameters and buffers lie."""
    return {
        tensor.untyped_storage().data_ptr()
        for tensor in (*block.parameters(), *block.buffers())
        if type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    }


def _held(value: Any, name: str) -> Any:
    """An argument of a block, in a form that what the block writes to it does not reach.

    Raises:
        UnsupportedModelError: an object that cannot be copied.
    """
    is_cache = isinstance(value, nn.Module) and next(value.parameters(), None) is None
    if isinstance(value, (Tensor, *_PLAIN)) or (callable(value) and not is_cache):
        return value  # caches of earlier versions of transformers are modules
    if type(value) in (tuple, list):
        return type(value)([_held(item, name) for item in value])
    if type(value) is dict:
        return {k: _held(item, name) for k, item in value.items()}
    if isinstance(value, (dict, tuple, list)):
        return value
    try:
        return Snapshot(value)
    except CannotCopy as error:
        raise UnsupportedModelError(
            f"memory='low' runs the blocks of the model twice, and {call_of(name)} gets an "
            f"argument, which it may change, of type {error}; use memory='standard'."
        ) from error


def _tensors(value: Any) -> list[Tensor]:
    """Every tensor in the arguments of a block."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Snapshot):
        return value.tensors
    if isinstance(value, dict):
        return [t for item in value.values() for t in _tensors(item)]
    if isinstance(value, (tuple, list)):
        return [t for item in value for t in _tensors(item)]
    return []


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
    if isinstance(value, Snapshot):
        return value.restored()
    if isinstance(value, dict):
        return {k: _fresh(v) for k, v in value.items()}
    if type(value) in (tuple, list):
        return type(value)([_fresh(item) for item in value])
    return value


def _random_state(module: nn.Module, tensors: list[Tensor]) -> _Random | None:
    """The state of the random generators, if the block may draw from them."""
    if not any(m.training for m in module.modules()):
        return None
    devices, states = get_device_states(*(t for t in tensors if not t.is_meta))
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
