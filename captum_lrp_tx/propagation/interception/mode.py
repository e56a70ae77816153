"""Seeing every torch call of a forward pass and handing it to the handler of its name.

A ``TorchFunctionMode`` is active for the explaining thread only.  Parameters enter every call as
constants (:mod:`~.constants`); calls that a rule may govern go to a handler (:mod:`~.handlers`),
which makes an :class:`~.operations.Operation` of them; everything else runs as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from captum_lrp_tx.propagation.interception import underived, writing
from captum_lrp_tx.propagation.interception.booking import Pending, keep_names
from captum_lrp_tx.propagation.interception.calls import (
    OPERATORS,
    Call,
    depends,
    of_torch,
    tensors_in,
)
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
        grad_enabled = _is_grad_enabled()
        if name in _WRITING:  # torch.nn.init names its tensor
            written = args[0] if args else next(iter(kwargs.values()), None)
            context.isolation.before_write(written)
        if kwargs and "out" in kwargs:
            for target in tensors_in(kwargs["out"]):
                context.isolation.before_write(target)
        if name in _UNTOUCHED:
            result = func(*args, **kwargs)
            if name == "__get__":
                if isinstance(result, Tensor) and context.scope.is_current():
                    return _property(context, func, args[0], result)
            elif name in READING:
                _read(context, name, args[0], result)
            return result
        call = Call(func, args, kwargs, name)
        if (
            not grad_enabled  # the model has decided that nothing propagates
            or _are_transforms_active()  # where rules cannot be expressed
            or not context.scope.is_current()
        ):
            return _passed_on(context, call, grad_enabled)
        return _followed(context, call)


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
            return _followed(context, call)
    result = call.run()
    context.cuts.without_gradients(call.name, (call.args, call.kwargs), result)
    return follow(context, call, result) if context.inputs.has_ids else result


def _followed(context: Context, call: Call) -> Any:
    """A call under the rules; ids are followed through it as the model made it."""
    result = _handled(context, call)
    return follow(context, call, result) if context.inputs.has_ids else result


def _handled(context: Context, made: Call) -> Any:
    """A call with parameters as constants, by the handler of its name if there is one."""
    constants, ledger = context.constants, context.scope.ledger
    constant = constants.constant
    args = tuple([constant(a) if isinstance(a, _HOLDS) else a for a in made.args])
    kwargs = made.kwargs
    if kwargs:
        kwargs = {k: constant(v) if isinstance(v, _HOLDS) else v for k, v in kwargs.items()}
    call = Call(made.func, args, kwargs, made.name, made)
    context.ran = hash((context.ran, call.name, constants.live))
    if call.name in _TOLD_BY_VALUE:
        told = [a for a in args if isinstance(a, (int, float, str))]
        context.ran = hash((context.ran, *told))
    if isinstance(call.func, OPERATORS):
        call = of_torch(call)
    written, origin = None, None
    if context.inputs.has_ids and call.name in ADDITIONS and len(args) > 1:
        call, written = with_added_rows(context, call)
    handler = HANDLERS.get(call.name)
    if context.inputs.traces.has_one_hot and call.name in _PRODUCTS:
        call = as_floats(context, call)
    pending = None if ledger is None else Pending(context, call)
    if call.name in CUTTING:
        origin = context.cuts.origin(call.name, (made.args, made.kwargs))
    if (handler is None or call.name == "exp_") and writing.hides(call):
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
    _note(context, call, origin, result)
    if ledger is not None:
        keep_names(context, call)
        tensors = tensors_in((made.args, made.kwargs))
        if not any(t.requires_grad and not t.is_leaf for t in tensors):
            ledger.inherit(result, *tensors)
        elif pending is not None:
            pending.book(context, result)
    return result


def _note(context: Context, call: Call, origin: Any, result: Any) -> None:
    """What is remembered of the result of a call."""
    constants = context.constants
    if not depends(result):
        if any(constants.is_trainable(a) for a in call.args):
            constants.mark_trainable(result)
        constants.mark_of_model(result, (call.args, call.kwargs))
    elif context.undecided:
        undecided.settle(result)
    if call.name in CUTTING:
        context.cuts.follow(origin, result)
    elif context.cuts.any:
        context.cuts.check(context, call, result)
