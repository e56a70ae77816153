"""Seeing every torch call of a forward pass and handing it to the handler of its name.

A ``TorchFunctionMode`` is active for the explaining thread only.  Parameters enter every call as
constants (:mod:`~.constants`); calls that a rule may govern go to a handler (:mod:`~.handlers`),
which makes an :class:`~.operations.Operation` of them; everything else runs as it is.
"""

from __future__ import annotations

from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.overrides import TorchFunctionMode

from captum_lrp_tx.propagation.interception import underived, writing
from captum_lrp_tx.propagation.interception.booking import Pending, keep_names
from captum_lrp_tx.propagation.interception.calls import (
    OPERATORS,
    Call,
    depends,
    of_torch,
    operands_first,
    tensors_in,
)
from captum_lrp_tx.propagation.interception.composites import drops_out
from captum_lrp_tx.propagation.interception.context import Context
from captum_lrp_tx.propagation.interception.cuts import CUTTING, READING
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
from captum_lrp_tx.propagation.recognition import undecided

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
#: What makes Python numbers of ids.
_NUMBERS = frozenset(["item", "tolist"])
_PRODUCTS = frozenset("mul __mul__ __rmul__ multiply".split())
#: Calls whose numbers and flags decide what they are.
_TOLD_BY_VALUE = frozenset(["batch_norm", "instance_norm", "einsum", "pow", "__pow__", "norm"])
#: What draws numbers: noise, or stochastic depth written out.
_DRAWING = frozenset(
    """rand randn randint rand_like randn_like randint_like randperm bernoulli bernoulli_ normal
    normal_ uniform_ random_ exponential_ cauchy_ geometric_ log_normal_ multinomial poisson
    binomial rrelu rrelu_""".split()
)
#: Calls that :func:`_prepared` looks at; nearly all others need none of it.
_PREPARED = _TOLD_BY_VALUE | _PRODUCTS | ADDITIONS | CUTTING | _DRAWING
#: What may be, or hold, a parameter.
_HOLDS = (Tensor, list, tuple)

_is_grad_enabled = torch.is_grad_enabled
_are_transforms_active = torch._C._are_functorch_transforms_active


class Interception(TorchFunctionMode):
    """The function mode of one explained forward pass.

    Args:
        context (Context): What its handlers have at hand.
    """

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        context.serve(self)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        context, kwargs = self.context, kwargs or {}
        name: str = getattr(func, "__name__", "")
        if "." in name:  # an operation of torch.ops.aten
            name = name.partition(".")[0]
        if name in _WRITING or (kwargs and "out" in kwargs):
            _keep_written(context, name, args, kwargs)
        if name in _UNTOUCHED:
            result = func(*args, **kwargs)
            if name == "__get__":
                if isinstance(result, Tensor) and context.scope.is_current():
                    return _property(context, func, args[0], result)
            elif name in READING:
                _read(context, name, args[0], result)
            return result
        if kwargs:
            args, kwargs = operands_first(func, args, kwargs)
        call, grad_enabled = Call(func, args, kwargs, name), _is_grad_enabled()
        if (
            not grad_enabled  # the model has decided that nothing propagates
            or _are_transforms_active()  # where rules cannot be expressed
            or not context.scope.is_current()
        ):
            return _passed_on(context, call, grad_enabled)
        result = _handled(context, call)
        return follow(context, call, result) if context.inputs.has_ids else result


def _keep_written(
    context: Context, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Keep a copy of what of the model a call is about to write to."""
    if name in _WRITING:  # torch.nn.init names its tensor
        written = args[0] if args else next(iter(kwargs.values()), None)
        context.isolation.before_write(written)
    for target in tensors_in(kwargs.get("out")):
        context.isolation.before_write(target)


def _property(context: Context, func: Any, owner: Any, result: Tensor) -> Tensor:
    """``weight.T`` and the like: a view of a parameter is a constant, too."""
    if not result.requires_grad:
        context.cuts.follow(context.cuts.origin("data", (owner,)), result)
    result = context.constants.read_from(owner, result)
    if context.inputs.has_ids:
        traces = context.inputs.traces
        traces.note_tables(result, learned_tables(context, owner, owner))
        rows = traces.rows(owner)
        if rows is not None and result.is_floating_point():
            traces.note_rows(result, func(rows))
    return result


def _read(context: Context, name: str, tensor: Any, result: Any) -> None:
    """A number of Python was read out of a tensor: rules and ids do not follow it."""
    if context.scope.is_current():
        context.cuts.read(tensor, result)
    inputs = context.inputs
    if name in _NUMBERS and inputs.has_ids and inputs.traces.of(tensor) is not None:
        inputs.traces.left[name] = None


def _passed_on(context: Context, call: Call, grad_enabled: bool) -> Any:
    """A call that no rule governs: it runs as it is, and what it cuts off is noted."""
    if not context.scope.is_current():
        return call.run()
    if not grad_enabled and is_lookup(context, call):
        # a table that is not trained: still looked up at each token
        with torch.enable_grad():
            return follow(context, call, _handled(context, call))  # is_lookup: there are ids
    _note_draw(context, call)  # what is drawn without gradients is random, too
    result = call.run()
    if grad_enabled and isinstance(result, Tensor) and _functorch.is_batchedtensor(result):
        context.scope.is_transformed |= _functorch.get_unwrapped(result).requires_grad
    context.cuts.without_gradients(call.name, (call.args, call.kwargs), result)
    return follow(context, call, result) if context.inputs.has_ids else result


def _handled(context: Context, made: Call) -> Any:
    """A call with parameters as constants, by the handler of its name if there is one."""
    constants, ledger = context.constants, context.scope.ledger
    constant = constants.constant
    args = tuple([constant(a) if isinstance(a, _HOLDS) else a for a in made.args])
    kwargs, call, name = made.kwargs, made, made.name
    if kwargs:
        kwargs = {k: constant(v) if isinstance(v, _HOLDS) else v for k, v in kwargs.items()}
    if kwargs or not all(map(is_, args, made.args)):
        call = Call(made.func, args, kwargs, name, made)
    context.ran = hash((context.ran, name, constants.live))
    written = pending = origin = None
    if name in _PREPARED or isinstance(made.func, OPERATORS):
        call, written = _prepared(context, call)
        if name in CUTTING:
            origin = context.cuts.origin(name, (made.args, made.kwargs))
        name = call.name
    if ledger is not None:
        pending = Pending(context, call)
    handler = HANDLERS.get(name)
    if name[-1:] == "_" and (handler is None or name == "exp_") and writing.hides(call):
        result = writing.beside(call)
    elif handler is not None:
        refuse_checkpointing()
        if ledger is not None:
            keep_names(context, call)
        result = handler(context, call)
    else:
        result = call.run()
        underived.note(context, call, result)
    if written is not None:
        result = written.copy_(result)
    context.ordering.note(call, result)
    if not depends(result):
        constants.note(call, result)
    elif context.undecided:
        undecided.settle(result)
    if origin is not None:
        context.cuts.follow(origin, result)
    elif context.cuts.any and name not in CUTTING:
        context.cuts.check(context, call, result)
    if pending is not None:
        _book(context, made, call, pending, result)
    return result


def _prepared(context: Context, call: Call) -> tuple[Call, Tensor | None]:
    """A call of which something is to be known before it runs, or which another takes the place of.

    Returns:
        tuple: the call, and the tensor that its result is to be written into, if there is one.
    """
    inputs, written = context.inputs, None
    _note_draw(context, call)
    if call.name in _TOLD_BY_VALUE:
        told = [a for a in call.args if isinstance(a, (int, float, str))]
        context.ran = hash((context.ran, *told))
    if isinstance(call.func, OPERATORS):
        call = of_torch(call)
    if inputs.has_ids and call.name in ADDITIONS and len(call.args) > 1:
        call, written = with_added_rows(context, call)
    if inputs.traces.has_one_hot and call.name in _PRODUCTS:
        call = as_floats(context, call)
    return call, written


def _note_draw(context: Context, call: Call) -> None:
    if drops_out(call):
        context.scope.random.add("dropout")
    elif call.name in _DRAWING:
        draws = call.args[3:4] or (call.kwargs.get("training"),)  # slopes of a leaky ReLU
        if not call.name.startswith("rrelu") or draws[0]:
            context.scope.random.add(f"torch.{call.name}")


def _book(context: Context, made: Call, call: Call, pending: Pending, result: Any) -> None:
    """What the ledger keeps of a call: names, and what its constants add."""
    ledger = context.scope.ledger
    assert ledger is not None
    keep_names(context, call)
    tensors = tensors_in((made.args, made.kwargs))
    if any(t.requires_grad and not t.is_leaf for t in tensors):
        pending.book(context, result)
    else:
        ledger.inherit(result, *tensors)
