"""Seeing every torch call of a forward pass and handing operations to the rules in force.

A ``TorchFunctionMode`` is active for the explaining thread only.  It does three things:

* parameters enter every call as constants, so autograd keeps nothing for weight gradients and a
  tensor requires a gradient exactly if it depends on the explained inputs;
* calls that a rule may govern become an :class:`~.operations.Operation`, by what they compute;
* everything else runs as it is.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from captum_lrp_tx.propagation.graph import Node
from captum_lrp_tx.propagation.hygiene.isolation import isolated
from captum_lrp_tx.propagation.interception import underived, writing
from captum_lrp_tx.propagation.interception.biases import Maps
from captum_lrp_tx.propagation.interception.booking import Pending, keep_names
from captum_lrp_tx.propagation.interception.calls import (
    OPERATORS,
    depends,
    of_torch,
    tensors_in,
)
from captum_lrp_tx.propagation.interception.cuts import CUTTING, READING, Cuts
from captum_lrp_tx.propagation.interception.following import follow
from captum_lrp_tx.propagation.interception.handlers import HANDLERS
from captum_lrp_tx.propagation.interception.lookups import (
    ADDITIONS,
    as_floats,
    is_lookup,
    learned_tables,
    with_added_rows,
)
from captum_lrp_tx.propagation.judging.obstacles import refuse_checkpointing
from captum_lrp_tx.propagation.model.strangers import Strangers, running
from captum_lrp_tx.propagation.operations import (
    AbsorbFn,
    Kind,
    Operation,
)
from captum_lrp_tx.propagation.recognition import undecided
from captum_lrp_tx.propagation.state.inputs import Inputs
from captum_lrp_tx.propagation.state.scope import Scope, next_sequence_number

#: Queries and bookkeeping, which must see parameters as they are.
_UNTOUCHED = frozenset(
    """__get__ __set__ __delete__ requires_grad_ backward register_hook retain_grad size dim stride
    is_floating_point is_complex numel __len__ __hash__ __repr__ __format__ data_ptr item tolist
    __float__
    __bool__ is_contiguous element_size get_device storage_offset untyped_storage is_inference
    register_post_accumulate_grad_hook is_shared is_nonzero __deepcopy__
    __reduce_ex__""".split()
)


#: Methods that write into their tensor.
_WRITING = frozenset(
    name
    for name in dir(Tensor)
    if name == "__setitem__"
    or (name.startswith("__i") and f"__{name[3:]}" in dir(Tensor))
    or (name.endswith("_") and not name.endswith("__") and name not in _UNTOUCHED)
)
#: What makes Python numbers of tensors.
_PYTHON = frozenset("item tolist __int__ __index__ numpy".split())

_is_grad_enabled = torch.is_grad_enabled
_are_transforms_active = torch._C._are_functorch_transforms_active
#: Calls whose numbers and flags decide what they are.
_TOLD_BY_VALUE = frozenset(["batch_norm", "instance_norm", "einsum", "pow", "__pow__", "norm"])
#: So many arguments are remembered by whether they depended on the inputs.
_LAST = 0xFFFF
#: The attribute of constants made from trainable parameters.
_TRAINABLE = "_captum_lrp_tx_trainable"
#: The attribute of constants that the model made of nothing but its own.
_OF_MODEL = "_captum_lrp_tx_of_model"


class Interception(TorchFunctionMode):
    """The function mode of one explained forward pass (see the module's description)."""

    def __init__(
        self,
        scope: Scope,
        inputs: Inputs,
        name_of: Callable[[Tensor], str],
        isolation: isolated,
        strangers: Strangers | None = None,
    ) -> None:
        super().__init__()
        self.isolation = isolation
        self.strangers = strangers
        self.scope = scope
        self.inputs = inputs
        self.name_of = name_of
        #: Linear maps whose bias may follow.
        self.maps = Maps()
        #: Positional arguments of the call being handled, parameters as they are.
        self.as_called: tuple[Any, ...] = ()
        self.named_as_called: dict[str, Any] = {}
        #: Whether there was a softplus: no step size, no state space model.
        self.has_steps = False
        #: Whether a delta rule has been seen, whose sums of values are told by their origin.
        self.has_memory = False
        #: Products that may turn out to be attention; the graph holds them.
        self.undecided: list[weakref.ref[undecided.Weighed]] = []
        # what constants carry that were computed from parameters that require a gradient
        # outside of this mode; those that are not this pass's own are noted in the dictionary
        self._token = object()
        #: Hash of the calls so far, in order, by name and by which arguments depended on the
        #: inputs; no sizes, which differ from text to text.
        self.ran = 0
        #: Whether the last arguments depended on the inputs, one bit each.
        self.live = 0
        self._trainable: WeakIdKeyDictionary = WeakIdKeyDictionary()
        #: What was computed from the inputs and has lost its gradient.
        self.cuts = Cuts(scope)
        #: What was found out about weights and modules in this pass, by ``id`` (they are kept).
        self.claims: dict[int, Any] = {}
        #: Calls without a derivative: their nodes, names and layers.
        self.underived: list[tuple[Node | None, str, str]] = []

    def again(self) -> Interception:
        """A mode for a second run of a part of the model, which finds no inputs of its own."""
        inputs = self.inputs.again()
        inputs.stop_looking_up()
        mode = Interception(self.scope, inputs, self.name_of, self.isolation, self.strangers)
        mode._token, mode._trainable = self._token, self._trainable
        mode.claims = self.claims
        return mode

    def running(self) -> str:
        """The name of the innermost module that is running; asked rarely."""
        return self.scope.module or running(self.isolation.modules)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name: str = getattr(func, "__name__", "")
        if "." in name:  # an operation of torch.ops.aten
            name = name.partition(".")[0]
        grad_enabled = _is_grad_enabled()
        if name in _WRITING:  # torch.nn.init names its tensor
            self.isolation.before_write(args[0] if args else next(iter(kwargs.values()), None))
        if kwargs and "out" in kwargs:
            for target in tensors_in(kwargs["out"]):
                self.isolation.before_write(target)
        if (
            name in _UNTOUCHED
            or not grad_enabled  # the model has decided that nothing propagates
            or _are_transforms_active()  # where rules cannot be expressed
            or not self.scope.is_current()
        ):
            if not grad_enabled and self.scope.is_current() and is_lookup(self, name, args):
                # a table that is not trained: still looked up at each token
                with torch.enable_grad():
                    return self._followed(func, name, args, kwargs)
            result = func(*args, **kwargs)
            if name not in _UNTOUCHED:
                if self.scope.is_current():
                    self.cuts.without_gradients(name, (args, kwargs), result)
                    if self.inputs.has_ids:
                        return follow(self, func, name, args, kwargs, result)
                return result
            if name == "__get__" and isinstance(result, Tensor) and self.scope.is_current():
                return self._property(func, args[0], result)
            if name in READING and self.scope.is_current():
                self.cuts.read(args[0], result)
            if (
                name in _PYTHON
                and self.inputs.has_ids
                and self.inputs.traces.of(args[0]) is not None
            ):
                self.inputs.traces.left[name] = None
            return result
        return self._followed(func, name, args, kwargs)

    def _followed(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = _constant_call(self, func, args, kwargs, name)
        if self.inputs.has_ids:
            return follow(self, func, name, args, kwargs, result)
        return result

    def _property(self, func: Any, owner: Any, result: Tensor) -> Any:
        """weight.T and the like: a view of a parameter is a constant, too."""
        if result.requires_grad and self._is_foreign(owner):
            result = self._trainable_constant(result)
        elif not result.requires_grad:
            self.cuts.follow(self.cuts.origin("data", (owner,)), result)
        if not result.requires_grad and self.is_of_model(owner):
            setattr(result, _OF_MODEL, self._token)
        if self.inputs.has_ids:
            traces = self.inputs.traces
            traces.note_tables(result, learned_tables(self, owner, owner))
            rows = traces.rows(owner)
            if rows is not None and result.is_floating_point():
                traces.note_rows(result, func(rows))
        return result

    # ---- parameters as constants --------------------------------------------------------------
    def constant(self, x: Any) -> Any:
        """A parameter, or what was computed from one before this pass, as a constant."""
        if isinstance(x, Tensor):
            if x.requires_grad and not x.is_leaf and not self._is_foreign(x):
                self.live = self.live << 1 & _LAST | 1
                return x
            self.live = self.live << 1 & _LAST
            if type(x) is not Tensor and self.strangers is not None:
                self.strangers.look(x)
            if x.is_inference():  # made under inference_mode: autograd refuses to save it
                x = x.clone()
            if x.requires_grad and self._is_foreign(x):
                return self._trainable_constant(x)
            return x
        if type(x) in (list, tuple) and any(isinstance(i, Tensor) for i in x):
            return type(x)([self.constant(i) for i in x])
        return x

    def _is_foreign(self, x: Tensor) -> bool:
        """A parameter, or a tensor of a graph that was there before this pass."""
        node: Any = x.grad_fn
        return node is None or node._sequence_nr() < self.inputs.first_node

    def _trainable_constant(self, x: Tensor) -> Tensor:
        constant = x.detach()
        setattr(constant, _TRAINABLE, self._token)  # nobody else has this tensor
        if x.is_leaf:
            setattr(constant, _OF_MODEL, self._token)
        return constant

    def is_of_model(self, x: Any) -> bool:
        """Whether a constant is the model's own: a parameter, a buffer or made of such alone.

        Other constants are data: another text, what another model made.
        """
        return (
            getattr(x, _OF_MODEL, None) is self._token
            or isinstance(x, torch.nn.Parameter)
            or self.isolation.is_buffer(x)
        )

    def mark_of_model(self, x: Any, made_of: Any) -> None:
        """Remember of a constant that only the model's own went into it."""
        if isinstance(x, Tensor):
            if (
                x.dim()
                and x.is_floating_point()
                and all(map(self.is_of_model, tensors_in(made_of)))
            ):
                setattr(x, _OF_MODEL, self._token)
        elif isinstance(x, (list, tuple)):
            for item in x:
                self.mark_of_model(item, made_of)

    def mark_trainable(self, x: Any) -> None:
        """Remember that a constant would require a gradient in the plain model."""
        if isinstance(x, Tensor):
            if not x.requires_grad:
                self._trainable[x] = True
        elif isinstance(x, (list, tuple)):
            for item in x:
                self.mark_trainable(item)

    def is_stored(self, x: Tensor) -> bool:
        """Whether a constant is a parameter or buffer of the model; asked rarely."""
        return self.isolation.is_stored(x)

    def is_trainable(self, x: Any) -> bool:
        """Whether a constant would require a gradient in the plain model."""
        if not isinstance(x, Tensor) or x.requires_grad:
            return False
        if getattr(x, _TRAINABLE, None) is self._token:
            return True
        return len(self._trainable) > 0 and x in self._trainable

    # ---- what handlers use --------------------------------------------------------------------
    def apply(self, kind: Kind, operation: Operation) -> Any:
        """Let the rule in force carry out the operation, or run it plainly."""
        rule = self.scope.rule(kind)
        if rule is None:
            return operation.plain()
        self.scope.note(kind, rule)
        return rule.propagate(operation)

    def absorb(
        self,
        output: Tensor,
        constant: Tensor | Callable[[], Tensor],
        *sources: Any,
        name: str | None = None,
    ) -> None:
        """Book an additive constant in the ledger, if there is one, by its name or its source's."""
        ledger = self.scope.ledger
        if ledger is not None and isinstance(output, Tensor):
            self.scope.last_booked = next_sequence_number()
            constant = constant() if callable(constant) else constant
            name = name or ledger.name_of(*sources)
            ledger.absorb(output, constant, name, self.scope.module)

    def absorber(self, *sources: Any) -> AbsorbFn:
        """``absorb`` bound to the named tensors that an operation took its constants from."""
        return lambda output, constant: self.absorb(output, constant, *sources)


#: What may be, or hold, a parameter.
_HOLDS = (Tensor, list, tuple)


def _constant_call(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str
) -> Any:
    originals = (args, kwargs)
    constant = mode.constant
    args = tuple([constant(a) if isinstance(a, _HOLDS) else a for a in args])
    if kwargs:
        kwargs = {k: mode.constant(v) if isinstance(v, _HOLDS) else v for k, v in kwargs.items()}
    mode.ran = hash((mode.ran, name, mode.live))
    if name in _TOLD_BY_VALUE:
        mode.ran = hash((mode.ran, *[a for a in args if isinstance(a, (int, float, str))]))
    if isinstance(func, OPERATORS):
        func, name, kwargs = of_torch(func, kwargs)
    written = None
    if mode.inputs.has_ids and name in ADDITIONS and len(args) > 1:
        func, name, args, written = with_added_rows(mode, func, name, args, originals[0])
    handler, origin = HANDLERS.get(name), None
    if mode.inputs.traces.has_one_hot and name in ("mul", "__mul__", "__rmul__", "multiply"):
        args = as_floats(mode, args)
    ledger = mode.scope.ledger
    pending = None if ledger is None else Pending(mode, func, args, kwargs, name)
    if name in CUTTING:
        origin = mode.cuts.origin(name, originals)
    if (handler is None or name == "exp_") and writing.hides(name, args):
        result = writing.beside(func, args, kwargs)
    elif handler is not None:
        refuse_checkpointing()
        if mode.scope.ledger is not None:
            keep_names(mode, originals, (args, kwargs))
        mode.as_called, mode.named_as_called = originals
        result = handler(mode, func, args, kwargs)
    else:
        result = func(*args, **kwargs)
        underived.note(mode, func, (args, kwargs), result)
    if written is not None:
        result = written.copy_(result)
    if not depends(result):
        if any(mode.is_trainable(a) for a in args):
            mode.mark_trainable(result)
        mode.mark_of_model(result, (args, kwargs))
    elif mode.undecided:
        undecided.settle(result)
    if name in CUTTING:
        mode.cuts.follow(origin, result)
    elif mode.cuts.any:
        mode.cuts.check(mode, name, (args, kwargs), result)
    if ledger is not None:
        keep_names(mode, originals, (args, kwargs))
        tensors = tensors_in(originals)
        if not any(t.requires_grad and not t.is_leaf for t in tensors):
            ledger.inherit(result, *tensors)
        elif pending is not None:
            pending.book(mode, result)
    return result
