"""Which rule is in force right now: rule tables pushed and popped by forward hooks on modules.

A scope lives for one explained forward pass of one thread.  Its hooks sit on the model's modules
for that time only and do nothing for any other thread or for a pass nested inside this one, so the
model itself is never changed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from captum_lrp_tx.propagation.hygiene.hooks import Hooks, guard
from captum_lrp_tx.propagation.model.nested import mapped
from captum_lrp_tx.propagation.operations import Kind, PropagationRule, RuleTable
from captum_lrp_tx.propagation.state.ledger import Ledger, relevance_sum
from captum_lrp_tx.propagation.state.tracing import carry

#: Where the node of an alias keeps what its relevance is added to (see :func:`tap`).
TAP = "captum_lrp_tx.tap"


class _Active(threading.local):
    def __init__(self) -> None:
        self.scopes: list[Scope | None] = []


_ACTIVE = _Active()


def current() -> Scope | None:
    """The scope whose forward pass this thread is in, if there is one."""
    return _ACTIVE.scopes[-1] if _ACTIVE.scopes else None


class suspended(guard):
    """No scope of this thread is current: what happens here is none of its model's doing.

    An explanation started inside a hook of an explained model runs under this.  Scopes and hooks
    that an interruption has left open inside are closed with it.
    """

    def __enter__(self) -> None:
        super().__enter__()
        self._scopes = len(_ACTIVE.scopes)
        _ACTIVE.scopes.append(None)

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        del _ACTIVE.scopes[self._scopes :]


@contextlib.contextmanager
def trial(device: torch.device) -> Iterator[None]:
    """A layer is run to find out what it is: no call of the model's, and none that leaves a trace.

    Args:
        device (torch.device): Whose random numbers are given back, with those of the CPU.
    """
    devices = [device] if device.type == "cuda" else []
    with suspended(), torch.random.fork_rng(devices), saved_tensors_hooks(_same, _same):
        yield


def _same(saved: Tensor) -> Tensor:
    return saved


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module: the autograd nodes it made are numbered ``start`` up to ``stop``."""

    module: str
    start: int
    stop: int


@dataclass
class Boundary:
    """Relevance that entered (at the outputs) and left (at the inputs) one call of a module."""

    module: str
    at_output: float = 0.0
    at_input: float = 0.0
    #: What passed, without its graph, and its version then.
    passed: list[tuple[Tensor, int]] = field(default_factory=list, repr=False)

    @property
    def written(self) -> bool:
        """Whether the model wrote into what passed: torch then forgets the hooks of a view."""
        return any(value._version != version for value, version in self.passed)

    def tapped(self, x: Any, add: Callable[[float], None]) -> Any:
        """An alias of a tensor that passes, see :func:`tap`."""
        alias = tap(x, add)
        if alias is not x:
            with torch._C.DisableTorchFunction():  # the model has not cut this off
                self.passed.append((alias.detach(), alias._version))
        return alias

    def leave(self, relevance: float) -> None:
        """Add relevance that arrives at an output."""
        self.at_output += relevance

    def enter(self, relevance: float) -> None:
        """Add relevance that goes on to an input."""
        self.at_input += relevance


class Scope:
    """Rule tables by module, for one forward pass.

    Args:
        base (mapping of Kind to rule): What holds outside every module with a table of its own.
        assigned (sequence): ``(module, table)`` pairs, in force while the module runs. Tables
            hold a priority with every rule; the lowest number that is in force wins.
        trace (sequence of (str, Module), optional): Modules whose calls are recorded by name.
        ledger (Ledger, optional): Books what additive constants absorb and, at the boundary of
            every traced module, the relevance that enters and leaves.
    """

    def __init__(
        self,
        base: RuleTable,
        assigned: Sequence[tuple[nn.Module, RuleTable]] = (),
        trace: Sequence[tuple[str, nn.Module]] = (),
        ledger: Ledger | None = None,
    ) -> None:
        self._stack: list[RuleTable] = [dict(base)]
        #: Whether anything but the plain gradient is asked for.
        self.has_rules = bool(base) or bool(assigned)
        self._assigned = assigned
        self._trace = trace
        self._hooks = Hooks()
        self._open: list[tuple[str, int]] = []
        self.ledger = ledger
        self.calls: list[ModuleCall] = []
        self.boundaries: list[Boundary] = []
        self.applied: dict[tuple[str, Kind, str], int] = {}
        self._texts: dict[int, str] = {}
        #: What was recognised, by module, and how often; see :meth:`find`.
        self.found: dict[tuple[str, str], int] = {}
        #: How often a rule has acted.
        self.noted = 0
        #: Autograd's counter when a constant was booked last.
        self.last_booked = -1
        self.random: set[str] = set()
        #: Whether a norm took its statistics over several examples.
        self.mixes_examples = False
        #: Whether something inside a function transform (``torch.vmap``) depends on the inputs.
        self.is_transformed = False
        #: Operations on values that lost their gradient, by name, module and what cut them off,
        #: and autograd's numbers of their nodes.
        self.cut: dict[tuple[str, str, str], set[int]] = {}
        self.gives_to_zero_inputs = False
        #: Modules that a rule leaves to the plain gradient on purpose.
        self.left_plain: set[str] = set()
        #: Whether a rule that looks for attention sinks has seen parts of patterns only.
        self.hides_sinks = False
        #: How far attention of one query has seen, in keys, by module: a loop has several numbers.
        self.keys_of_queries: dict[str, set[int]] = {}
        #: Whether rules held constant all that leads from the inputs to the output.
        self.holds_everything = False
        #: What tells passes apart that ran other operations, whatever the size of their inputs.
        self.ran = 0

    # ---- rules -------------------------------------------------------------------------------
    def rule(self, kind: Kind) -> PropagationRule | None:
        """The rule in force for operations of this kind, ``None`` for the plain gradient."""
        entry = self._stack[-1].get(kind)
        return None if entry is None else entry[1]

    def note(self, kind: Kind, rule: PropagationRule, module: str | None = None) -> None:
        """Remember that ``rule`` acted here (the audit and the 'no rule applied' warning ask)."""
        text = self._texts.get(id(rule))
        if text is None:  # rules live as long as the tables that they are in
            text = self._texts[id(rule)] = str(rule)
        self.noted += 1
        key = (self.module if module is None else module, kind, text)
        self.applied[key] = self.applied.get(key, 0) + 1
        self.gives_to_zero_inputs |= rule.gives_to_zero_inputs
        if rule.is_plain_gradient:
            self.left_plain.add(key[0])

    def find(self, what: str, module: str | None = None) -> None:
        """Remember what was recognised here; conventions beyond the papers say so in their name."""
        key = (self.module if module is None else module, what)
        self.found[key] = self.found.get(key, 0) + 1

    @property
    def module(self) -> str:
        """Name of the innermost traced module that is running."""
        return self._open[-1][0] if self._open else ""

    def running(self) -> list[str]:
        """Names of the traced modules that are running, outermost first."""
        return [name for name, _ in self._open]

    def owner(self, sequence: int) -> str:
        """Name of the innermost traced module whose call made the node with this number."""
        inside = [call for call in self.calls if call.start <= sequence < call.stop]
        if not inside:
            return ""
        return min(inside, key=lambda call: (call.stop - call.start, -len(call.module))).module

    def tables(self) -> list[RuleTable]:
        """The rule tables in force, outermost first."""
        return list(self._stack)

    @contextlib.contextmanager
    def again(self, tables: list[RuleTable]) -> Iterator[None]:
        """Run a part of the model once more, from where these tables were in force.

        What that part applies and draws is not recorded a second time.
        """
        kept = self._stack, self.applied, self.found, self.random, self._hooks
        self._stack, self.applied, self.found = list(tables), {}, {}
        self.random, self._hooks = set(), Hooks()
        try:
            with suspended(), self._hooks:
                for module, table in self._assigned:
                    self._hook_table(module, table)
                _ACTIVE.scopes.append(self)
                yield
        finally:
            self._stack, self.applied, self.found, self.random, self._hooks = kept

    # ---- hooks -------------------------------------------------------------------------------
    def __enter__(self) -> Scope:
        self._hooks.__enter__()
        try:
            for name, module in self._trace:
                self._hook_trace(name, module)
            for module, table in self._assigned:
                self._hook_table(module, table)
        except BaseException:
            self._hooks.remove()
            raise
        _ACTIVE.scopes.append(self)
        return self

    def __exit__(self, *exc: Any) -> None:
        self._hooks.__exit__(*exc)
        _ACTIVE.scopes.remove(self)

    def is_current(self) -> bool:
        """Whether this thread is in the forward pass of this scope, not of one nested in it."""
        return bool(_ACTIVE.scopes) and _ACTIVE.scopes[-1] is self

    def _hook_table(self, module: nn.Module, table: RuleTable) -> None:
        def enter(_module: nn.Module, *_: Any) -> None:
            if self.is_current():
                merged = dict(self._stack[-1])
                for kind, entry in table.items():
                    if kind not in merged or entry[0] < merged[kind][0]:
                        merged[kind] = entry
                self._stack.append(merged)

        def leave(_module: nn.Module, *_: Any) -> None:
            if self.is_current():
                self._stack.pop()

        # before the user's own hooks, so that entering and leaving pair up if one of them raises
        self._hooks.before(module, enter, prepend=True)
        self._hooks.after(module, leave, always_call=True)

    def _hook_trace(self, name: str, module: nn.Module) -> None:
        open_boundaries: list[Boundary] = []

        def enter(_module: nn.Module, args: Any, kwargs: Any = None) -> Any:
            if not self.is_current():
                return None
            self._open.append((name, next_sequence_number()))
            if self.ledger is None:
                return None
            boundary = Boundary(name)
            open_boundaries.append(boundary)
            # gradients of these aliases count the use inside this module only
            args = tuple(boundary.tapped(a, boundary.enter) for a in args)
            named = (kwargs or {}).items()
            return args, {k: boundary.tapped(v, boundary.enter) for k, v in named}

        def leave(_module: nn.Module, args: Any, kwargs: Any = None, output: Any = None) -> Any:
            if not self.is_current():
                return None
            if not self._open or self._open[-1][0] != name:
                return None  # a hook before ours raised: this module was not entered
            opened, start = self._open.pop()
            self.calls.append(ModuleCall(opened, start, next_sequence_number()))
            if self.ledger is None:
                return None
            boundary = open_boundaries.pop()
            self.boundaries.append(boundary)
            # and of these the uses outside of it
            return mapped(output, lambda tensor: boundary.tapped(tensor, boundary.leave))

        self._hooks.before(module, enter, with_kwargs=True, prepend=True)
        self._hooks.after(module, leave, with_kwargs=True, always_call=True)


def next_sequence_number() -> int:
    """The number that autograd will give to the next node of this thread."""
    return int(torch._C._autograd._get_sequence_nr())


def tap(x: Any, add: Callable[[float], None]) -> Any:
    """An alias of a tensor, whose relevance ``add`` gets in the backward pass."""
    if not isinstance(x, Tensor) or not x.requires_grad or isinstance(x, nn.Parameter):
        return x  # a parameter handed to a module as an argument is a constant like any other
    if not torch.is_grad_enabled():
        return x  # nothing of this module leads back to it
    with torch._C.DisableTorchFunction():  # our own calls are none of the model's
        alias = x.view_as(x)
        value = alias.detach()
        alias.register_hook(  # type: ignore[no-untyped-call]
            lambda grad: add(0.0 if grad is None else relevance_sum(value, grad))
        )
        node: Any = alias.grad_fn
        node.metadata[TAP] = add
    carry(x, alias)
    return alias
