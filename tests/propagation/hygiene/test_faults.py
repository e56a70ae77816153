"""Whatever goes wrong, wherever it does: the model and the thread are as they were before.

An exception is injected at every call of a module, at every torch call and at every line of the
package that an attribution runs through, one after the other.  A line that runs a thousand times is
interrupted the first and the last time for every chain of callers that leads to it.
"""

from __future__ import annotations

import dis
import functools
import gc
import itertools
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as module_globals
from torch.overrides import TorchFunctionMode

import captum_lrp_tx
from captum_lrp_tx import (
    AttentionRollout,
    Composite,
    ConservativeGI,
    ConservativeLRP,
    GenericAttention,
    LayerConservativeLRP,
    TransformerAttribution,
    audit,
)
from captum_lrp_tx.attr.dataloader import LoaderAttribution
from captum_lrp_tx.propagation.hygiene import hooks as hooks_module
from captum_lrp_tx.propagation.state import scope as scope_module
from captum_lrp_tx.rules import AHRule, GammaRule

pytestmark = [
    pytest.mark.core, pytest.mark.thorough,
    pytest.mark.filterwarnings("error:module forward hook"),  # ours do not fail after a failure
]  # fmt: skip

THOROUGH = bool(os.environ.get("CAPTUM_LRP_TX_THOROUGH"))  # every place; every few otherwise
PACKAGE = os.path.dirname(os.path.abspath(captum_lrp_tx.__file__)) + os.sep


class OutOfMemory(RuntimeError):
    """Stands in for torch.OutOfMemoryError, which is a RuntimeError, where torch has none."""


class Boom(Exception):
    """Raised by the test."""


KINDS: list[type[BaseException]] = [
    Boom, KeyboardInterrupt, MemoryError, getattr(torch, "OutOfMemoryError", OutOfMemory),
]  # fmt: skip


# ---- models -------------------------------------------------------------------------------------
class Block(nn.Module):
    """Pre-norm block with fused or spelled-out attention."""

    def __init__(self, width: int, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 6), nn.GELU(), nn.Linear(6, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        if self.fused:
            y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        else:
            y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + self.proj(y)
        return x + self.mlp(x)


class Net(nn.Module):
    """Token ids, three blocks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(7, 4), nn.Embedding(5, 4)
        self.blocks = nn.ModuleList([Block(4, True), Block(4, True), Block(4, False)])
        self.head = nn.Linear(4, 3)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.word(ids) + self.position(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1)) * self.scale


@pytest.fixture
def net() -> Net:
    model = Net().eval()
    model.head.weight.requires_grad_(False)
    model.word.weight.grad = torch.ones_like(model.word.weight)
    model.blocks[0].register_forward_hook(lambda *_: None)  # the user's own
    return model


IDS = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 0]])


def methods(net: Net) -> dict[str, Callable[[], Any]]:
    composite = Composite({nn.Linear: GammaRule(), "blocks.1": AHRule()}, base="lrp")
    layer: Any = LayerConservativeLRP(net, [net.blocks[0], net.blocks[1].mlp], rules=composite)
    return {
        "gi": lambda: ConservativeGI(net).attribute(IDS, target=1),
        "lrp": lambda: ConservativeLRP(net).attribute(IDS, target=1),
        "strict": lambda: ConservativeLRP(net).attribute(IDS, target=1, strict=True),
        "distribute": lambda: ConservativeLRP(net, bias="distribute").attribute(IDS, target=1),
        "composite": lambda: ConservativeLRP(net, composite).attribute(IDS, target=1),
        "low": lambda: ConservativeLRP(net, memory="low").attribute(IDS, target=1),
        "targets": lambda: ConservativeLRP(net).attribute_targets(IDS, [0, 1, 2]),
        "layers": lambda: layer.attribute(IDS, target=1),
        "layer inputs": lambda: layer.attribute(IDS, target=1, attribute_to_layer_input=True),
        "audit": lambda: audit.explainability(net, IDS, target=1, file=None),
        "rollout": lambda: AttentionRollout(net).attribute(IDS),
        "gae": lambda: GenericAttention(net).attribute(IDS, target=1),
        "chefer": lambda: TransformerAttribution(net).attribute(IDS, target=1),
    }


NAMES = list(methods(Net()))


# ---- what must be the same ----------------------------------------------------------------------
def _of_module(module: nn.Module) -> dict[str, Any]:
    """Every attribute by identity, dictionaries (of hooks, parameters, ...) entry by entry."""
    return {
        key: [(k, id(v)) for k, v in value.items()] if isinstance(value, dict) else id(value)
        for key, value in vars(module).items()
    }


def _saves() -> bool:
    """Whether autograd keeps what it saves, untouched by hooks."""
    x = torch.ones(2, requires_grad=True)
    y = x.exp()  # saves its result
    return y.grad_fn._saved_result.data_ptr() == y.data_ptr()


def state(model: nn.Module) -> dict[str, Any]:
    """All that an attribution could leave behind, in the model and in the thread."""
    tensors = [*model.named_parameters(), *model.named_buffers(), ("ids", IDS)]
    return {
        "modules": {name: _of_module(module) for name, module in model.named_modules()},
        "classes": {name: vars(type(module)).keys() for name, module in model.named_modules()},
        "bytes": {name: t.detach().numpy().tobytes() for name, t in tensors},
        "versions": {name: t._version for name, t in tensors},
        "flags": {name: (t.requires_grad, id(t.grad), t._backward_hooks) for name, t in tensors},
        "global hooks": [
            list(value)
            for key, value in sorted(vars(module_globals).items())
            if key.startswith("_global") and isinstance(value, dict)
        ],
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "hooks of saved tensors": _saves(),
        "random": torch.get_rng_state().numpy().tobytes(),
        "filters": list(warnings.filters),
        "scopes": [scope for scope in scope_module._ACTIVE.scopes if scope is not None],
        "hooks of ours": len(hooks_module._OPEN.hooks),
    }


@contextmanager
def same_state(model: nn.Module) -> Iterator[None]:
    before = state(model)
    try:
        yield
    finally:
        after = state(model)
        for key, value in before.items():
            assert after[key] == value, key


# ---- where to raise -----------------------------------------------------------------------------
def _callers(frame: types.FrameType | None) -> Iterator[tuple[types.CodeType, int]]:
    """The places in the package that a frame stands at."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            yield frame.f_code, frame.f_lasti
        frame = frame.f_back


class Counter:
    """Raises ``kind`` at the ``at``-th step (never for None)."""

    def __init__(self, at: int | None, kind: type[BaseException] = Boom) -> None:
        self.at, self.kind, self.steps = at, kind, 0
        self.first: dict[Any, int] = {}  # when a chain of callers came to a line
        self.last: dict[Any, int] = {}

    def step(self, frame: types.FrameType | None = None) -> None:
        if self.at is None and frame is not None:
            way = tuple(_callers(frame))
            self.first.setdefault(way, self.steps)
            self.last[way] = self.steps
        self.steps += 1
        if self.steps - 1 == self.at:
            raise self.kind("injected")


@contextmanager
def at_module_calls(counter: Counter) -> Iterator[None]:
    handle = module_globals.register_module_forward_pre_hook(lambda *_: counter.step())
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def after_module_calls(counter: Counter) -> Iterator[None]:
    handle = module_globals.register_module_forward_hook(lambda *_: counter.step())
    try:
        yield
    finally:
        handle.remove()


class _Calls(TorchFunctionMode):
    def __init__(self, counter: Counter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counter.step()
        return func(*args, **(kwargs or {}))


@contextmanager
def at_torch_calls(counter: Counter) -> Iterator[None]:
    """Every operation that the interception handles or passes on, and the engine's own."""
    with _Calls(counter):
        yield


@functools.cache
def _exits(code: types.CodeType) -> frozenset[int]:
    """Where the three Nones for an ``__exit__`` are loaded, or nothing is done."""
    found = [*dis.get_instructions(code)]
    nones = {i.offset for i in found if i.opname == "LOAD_CONST" and i.argval is None}
    # with a value to return, which is put aside first
    swaps = {
        i.offset for i, j in itertools.pairwise(found) if i.opname == "SWAP" and j.offset in nones
    }
    idle = {i.offset for i in found if i.opname in ("POP_BLOCK", "NOP")}
    return frozenset(idle | nones | swaps)


@contextmanager
def at_lines(counter: Counter) -> Iterator[None]:
    """As a signal handler does: between any two lines of the package.

    Not at a ``try`` that opens a ``with`` block, nor at the end of one before its ``__exit__`` is
    called, where Python lets no signal handler run; on the first line of an ``__exit__`` it does.
    """

    def local(frame: Any, event: str, arg: Any) -> Any:
        if event == "line" and frame.f_lasti not in _exits(frame.f_code):
            counter.step(frame)
        return local

    def trace(frame: Any, event: str, arg: Any) -> Any:
        return local if frame.f_code.co_filename.startswith(PACKAGE) else None

    before = sys.gettrace()
    gc.disable()  # what is raised while the collector closes an old generator goes nowhere
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
        gc.enable()


PLACES: dict[str, Any] = {
    "before modules": at_module_calls,
    "after modules": after_module_calls,
    "torch calls": at_torch_calls,
    "lines": at_lines,
}


def inject(
    model: Net, name: str, place: str, kinds: Any, at_most: int | None = None
) -> tuple[int, int]:
    """Raise at places evenly spread; returns how many there are, and at how many it raised."""
    run, inside = methods(model)[name], PLACES[place]
    expected = run()
    counter = Counter(None)
    with same_state(model), inside(counter):
        run()
    before = state(model)
    ways = {*counter.first.values(), *counter.last.values()}
    places: Sequence[int] = sorted(ways) or range(counter.steps)
    places = places[:: 1 if at_most is None else -(-len(places) // at_most)]
    for at, kind in zip(places, itertools.cycle(kinds)):
        try:
            with inside(Counter(at, kind)):
                result = run()
        except kind as error:
            assert "injected" in str(error)
        else:  # backward passes that do not fit into memory together are run one by one
            what = f"{kind.__name__} at {at} of {counter.steps} was swallowed"
            assert name == "targets" and kind is torch.OutOfMemoryError, what
            torch.testing.assert_close(result, expected)
        after = state(model)
        for key, value in before.items():
            assert after[key] == value, f"{key} after {kind.__name__} at {at}"
    again = run()
    if isinstance(expected, Tensor):
        assert torch.equal(again, expected)
    return counter.steps, len(places)


@pytest.mark.parametrize("place", ["before modules", "after modules", "torch calls"])
@pytest.mark.parametrize("name", NAMES)
def test_exceptions_at_every_module_and_every_operation(
    net: Net, name: str, place: str, record_property: Callable[[str, object], None]
) -> None:
    places, raised = inject(net, name, place, KINDS, None if THOROUGH or "modules" in place else 25)
    record_property("faults", raised)
    assert places >= (12 if "modules" in place else 60)


@pytest.mark.skipif(sys.gettrace() is not None, reason="another tracer is active")
@pytest.mark.parametrize(
    "name", ["strict", "composite", "low", "layers", "layer inputs", "audit", "gae"]
)
def test_interruption_at_any_line(
    net: Net, name: str, record_property: Callable[[str, object], None]
) -> None:
    places, raised = inject(net, name, "lines", [KeyboardInterrupt], None if THOROUGH else 30)
    record_property("faults", raised)
    assert places > 500


@pytest.mark.parametrize("hook", ["pre", "post", "backward", "parameter"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_of_the_users_that_raises(net: Net, hook: str, kind: type[BaseException]) -> None:
    def fail(*_: Any) -> None:
        raise kind("injected")

    for run in methods(net).values():  # torch imports more when it is first used
        run()
    part = net.blocks[1].mlp
    if hook == "pre":
        part.register_forward_pre_hook(fail)
    elif hook == "post":
        part.register_forward_hook(fail)
    elif hook == "backward":
        part.register_full_backward_hook(fail)
    else:
        part[0].weight.register_hook(fail)  # never runs: parameters are constants here
    for name, run in methods(net).items():
        with same_state(net):
            if hook == "parameter" or (hook == "backward" and name == "rollout"):
                run()
                continue
            with pytest.raises(kind, match="injected"):
                run()


def test_a_generator_that_is_dropped(net: Net) -> None:
    """Batches that are never asked for, and a generator of the user's around an explanation."""

    def own() -> Iterator[Tensor]:
        with torch.no_grad():
            for ids in (IDS, IDS):
                yield ConservativeLRP(net).attribute(ids, target=1)

    expected = ConservativeLRP(net).attribute(IDS, target=1)
    with same_state(net):
        for generator in (
            LoaderAttribution(ConservativeLRP(net)).batches([IDS, IDS, IDS], target=1),
            own(),
        ):
            assert torch.equal(next(generator), expected)
            torch.set_grad_enabled(True)
            del generator
