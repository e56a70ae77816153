"""Following ids, and the embedded tokens made of them, through everything that moves entries.

What a call does to a tensor it does to the tensor's trace: the same function is called with traces
in the place of the values.  So a function needs one word in a table here: which of its arguments
are *values* (the others, shapes and indices, stay as they are).  Functions of single ids keep the
trace, and whatever else makes integers of ids loses it, which is an error once such an integer is
looked up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lrp_tx.propagation.interception.calls import Call, depends, tensors_in
from captum_lrp_tx.propagation.state.tracing import INTEGERS, Lost, Traces, may_be_rows, united

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context

#: Functions that move, copy or choose entries: positions of the arguments that hold values.
_MOVES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        """view reshape flatten unflatten ravel view_as reshape_as expand expand_as broadcast_to
        transpose permute movedim moveaxis swapaxes swapdims t adjoint squeeze unsqueeze select
        narrow narrow_copy unfold as_strided diagonal split split_with_sizes chunk unbind
        tensor_split hsplit vsplit dsplit flip fliplr flipud roll rot90 repeat tile
        repeat_interleave index_select gather take take_along_dim getitem masked_select tril triu
        diag diag_embed clone contiguous detach alias cpu cuda pin_memory cat concat concatenate
        stack hstack vstack dstack column_stack row_stack atleast_1d atleast_2d atleast_3d
        broadcast_tensors pixel_shuffle channel_shuffle block_diag cartesian_prod combinations
        resize_as constant_pad_nd pack_padded_sequence pad_packed_sequence""".split(),
        (0,),
    ),
    "pad": (0, 3), "where": (1, 2), "masked_fill": (0, 2), "setitem": (0, 2), "copy": (0, 1),
    "scatter": (0, 3), "index_put": (0, 2), "index_copy": (0, 3), "index_fill": (0, 3),
    "masked_scatter": (0, 2), "slice_scatter": (0, 1), "select_scatter": (0, 1),
    "diagonal_scatter": (0, 1), "pad_sequence": (0, 2), "fill": (0, 1), "zero": (0,),
    "fill_diagonal": (0, 1), "meshgrid": tuple(range(8)),
}  # fmt: skip
#: Keyword arguments that hold values.
_VALUES = frozenset(
    """input self tensors tensor other value values src source fill_value padding_value""".split()
)
#: Casts and copies that keep the shape.
_CASTS = frozenset(
    """to long int short char byte float double half bfloat16 type type_as as_tensor asarray tensor
    dropout dropout_ feature_dropout alpha_dropout nan_to_num requires_grad_""".split()
)
#: Functions of one integer, entry by entry: the result comes from the id that it was computed of.
_EACH = frozenset(
    """add sub subtract rsub radd iadd isub imul mul multiply rmul floor_divide floordiv rfloordiv
    ifloordiv div divide true_divide remainder mod rmod imod fmod clamp clip clamp_min clamp_max
    abs absolute neg negative minimum maximum fmin fmax bitwise_and bitwise_or bitwise_xor
    bitwise_not bitwise_left_shift bitwise_right_shift and or xor iand ior ixor lshift rshift
    ilshift irshift invert pow square gcd round floor ceil trunc relu sign""".split()
)
_PRODUCTS = frozenset("mul multiply rmul imul and bitwise_and iand".split())
#: Sums and products of embedded tokens with constants.
_LINEAR = frozenset("add sub subtract radd iadd isub mul multiply rmul imul div divide".split())
_SCALING = frozenset("mul multiply rmul imul div divide".split())
#: Products that mix rows, as attention does.
_MIXING = frozenset("matmul rmatmul mm bmm baddbmm einsum scaled_dot_product_attention".split())
#: New tensors like one of ids, and places among ids: of no id themselves.
_NONE = frozenset(
    """zeros_like ones_like full_like empty_like rand_like randn_like randint_like new_zeros
    new_ones new_full new_empty new_tensor argmax argmin argsort nonzero argwhere
    count_nonzero bincount searchsorted bucketize histc size stride random uniform bernoulli
    eq ne lt le gt ge isin isnan isinf logical_and logical_or logical_not""".split()
)
#: What is made at places that ids give has its trace from the lookup.
_AT_IDS = frozenset("one_hot scatter".split())
#: The values that these choose come with their places.
_ORDERED = frozenset("sort topk msort kthvalue cummax cummin".split())


def bare(name: str) -> str:
    """The name of a call without the underscores of in-place and operator forms.

    Example::

        >>> bare("__setitem__"), bare("scatter_"), bare("cat.default")
        ('setitem', 'scatter', 'cat')
    """
    return name.partition(".")[0].strip("_")


def _is_inplace(call: Call) -> bool:
    return call.is_inplace or call.name == "__setitem__"


def follow(context: Context, call: Call, result: Any) -> Any:
    """Give the result of a call the traces of its arguments.

    Returns:
        The result, or a leaf in its place if it is the cast of rows with a single one.
    """
    traces = context.inputs.traces
    if depends(result) and not traces.has_floats and not _carry_rows(call):
        return result  # nearly every call: neither ids nor embedded tokens
    name, args = bare(call.name), call.args
    if isinstance(result, Tensor) and not result.requires_grad and result.is_floating_point():
        _follow_tables(traces, name, args, result)
    if name in _AT_IDS and any(traces.of(a) is not None for a in args[2:3] or args[:1]):
        return result
    if name in _MOVES or name in _CASTS:
        return _moved(context, call, name, result)
    if name in _LINEAR and _follow_sum(traces, args, result):
        return result
    if isinstance(result, Tensor):
        if args and result is args[0]:  # overwritten by what is no sum of embedded tokens
            traces.forget_rows(result)
        if result.dtype in INTEGERS or traces.has_floats:
            _computed(traces, call, name, result)
    elif isinstance(result, tuple) and name not in _NONE:
        _several(traces, call, name, result)
    return result


def _carry_rows(call: Call) -> bool:
    """Whether some argument of a call may be, or hold, a sum of embedded tokens."""
    for value in call.args:
        if isinstance(value, Tensor):
            if may_be_rows(value):
                return True
        elif isinstance(value, (list, tuple)) and any(map(may_be_rows, value)):
            return True
    return bool(call.kwargs) and any(map(may_be_rows, tensors_in(call.kwargs)))


def _held(traces: Traces, values: Any) -> list[Tensor | Lost]:
    """Traces of the ids among the arguments of a call."""
    found: list[Tensor | Lost] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            found.extend(_held(traces, value))
        else:
            trace = traces.of(value)
            if trace is not None:
                found.append(trace)
    return found


# ---- moving ----------------------------------------------------------------------------------
def _moved(context: Context, call: Call, name: str, result: Any) -> Any:
    traces, args = context.inputs.traces, call.args
    places = (0,) if name in _CASTS else _MOVES[name]
    values = [args[i] for i in places if i < len(args)]
    values += [v for k, v in call.kwargs.items() if k in _VALUES]
    if any(_has_rows(traces, v) for v in values):
        if name in _CASTS:
            traces.note_rows(result, traces.rows(args[0] if args else values[0]))
        else:
            _moved_rows(traces, call, places, result)
        return result
    held = _held(traces, values)
    if not held:
        return result
    known = [trace for trace in held if isinstance(trace, Tensor)]
    if len(known) < len(held):
        lost = next(trace for trace in held if isinstance(trace, Lost))
        for tensor in tensors_in(args[0] if _is_inplace(call) else result):
            traces.note(tensor, lost)
        return result
    if name in _CASTS:
        return _cast(context, traces, values[0], known[0], result)
    if _is_inplace(call) and args:  # what is written is moved into the trace
        written = traces.target(args[0])
        assert isinstance(written, Tensor)  # else it was among those that are held
        with torch.no_grad():
            _replay(traces, call, places, first=written)
        return result
    todo = [t for t in tensors_in(result) if traces.may_hold(t) and traces.of(t) is None]
    if not todo:  # views of the storages that the ids are in
        return result
    replayed = tensors_in(_replay(traces, call, places))
    is_one_hot = any(isinstance(v, Tensor) and traces.is_one_hot(v) for v in values)
    if "pack" in name:  # lengths come with them
        replayed = replayed[:1]
    for tensor, trace in zip(tensors_in(result), replayed, strict=False):
        # what is of no id need not be noted: it may be an expanded constant, as of a mesh
        if any(tensor is t for t in todo) and tensor.shape == trace.shape and bool(trace.any()):
            traces.note(tensor, trace, is_one_hot)
    return result


def _cast(context: Context, traces: Traces, source: Any, trace: Tensor, result: Any) -> Any:
    if not isinstance(result, Tensor) or traces.of(result) is not None:
        return result
    if not isinstance(source, Tensor) or result.shape != source.shape:
        return result
    trace = trace.to(result.device)
    if result.is_floating_point() and traces.is_one_hot(source):
        return context.inputs.look_up(result, trace, "one-hot rows", context)
    if result.dtype in INTEGERS or result.is_floating_point():
        traces.note(result, trace)
    return result


def _of_ids(traces: Traces, value: Any) -> Any:
    """What stands for a value in a call on traces: its trace, or zeros."""
    if isinstance(value, Tensor):
        trace = traces.of(value)
        if isinstance(trace, Tensor):
            return trace
        return torch.zeros((), dtype=torch.int64, device=value.device).expand(value.shape)
    return _others_as(_of_ids, traces, value)


def _of_rows(traces: Traces, value: Any) -> Any:
    """The same for embedded tokens."""
    if isinstance(value, Tensor):
        trace = traces.rows(value)
        if trace is None:
            trace = torch.zeros((), dtype=torch.int64, device=value.device)
        return trace.expand(value.shape)
    return _others_as(_of_rows, traces, value)


def _others_as(one: Callable[[Traces, Any], Any], traces: Traces, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)([one(traces, item) for item in value])
    return 0 if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _replay(
    traces: Traces, call: Call, places: tuple[int, ...], first: Tensor | None = None,
    of: Callable[[Traces, Any], Any] = _of_ids,
) -> Any:  # fmt: skip
    """The same call on traces."""
    called = [of(traces, a) if i in places else a for i, a in enumerate(call.args)]
    if first is not None:
        called[0] = first
    named = {k: of(traces, v) if k in _VALUES else v for k, v in call.kwargs.items() if k != "out"}
    with torch.no_grad(), torch._C.DisableTorchFunction():
        try:
            return call.func(*called, **named)
        except (RuntimeError, NotImplementedError):  # not for integers: reflecting pads
            wide = [a.double() if i in places and isinstance(a, Tensor) else a
                    for i, a in enumerate(called)]  # fmt: skip
            return call.func(*wide, **named)


# ---- functions of ids ------------------------------------------------------------------------
def _computed(traces: Traces, call: Call, name: str, result: Tensor) -> None:
    """The trace of integers that were computed from ids."""
    held = _held(traces, (*call.args, *call.kwargs.values()))
    if not held or result.requires_grad or result.dtype is torch.bool or name in _NONE:
        return
    known = [trace for trace in held if isinstance(trace, Tensor)]
    if name in _EACH and len(known) == len(held):
        if name in _PRODUCTS:  # what is multiplied by zero is of no id any more
            known = [
                t * (o != 0)
                for t in known
                for o in _others(traces, call.args) or [torch.ones((), device=t.device)]
            ]
        trace = united(known, result.shape)
        traces.note(result, Lost(name) if trace is None else trace)
        return
    traces.note(result, next((t for t in held if isinstance(t, Lost)), Lost(name)))


def _others(traces: Traces, args: tuple[Any, ...]) -> list[Tensor]:
    return [a for a in args if isinstance(a, Tensor) and traces.of(a) is None]


def _several(traces: Traces, call: Call, name: str, result: tuple[Any, ...]) -> None:
    """Functions of ids with several results."""
    args, kwargs = call.args, call.kwargs
    held = _held(traces, (*args, *kwargs.values()))
    if not held:
        return
    trace, values = held[0], result[0]
    if name in _ORDERED and isinstance(trace, Tensor) and len(result) == 2:
        dim = kwargs.get("dim", args[-1] if name != "sort" and len(args) > 2 else None)
        if name == "sort" and len(args) > 1 and not isinstance(args[1], bool):
            dim = args[1]
        dim = -1 if dim is None or isinstance(dim, bool) else dim
        if result[1].dim() == trace.dim():
            traces.note(values, trace.gather(dim, result[1]))
            return
    if "unique" in name and isinstance(trace, Tensor):
        inverse = [r for r in result[1:] if r.shape == trace.shape]
        if inverse:
            traces.note_inverse(inverse[0], trace)
            traces.note(values, Lost("unique"))
            return
    for tensor in tensors_in(result):
        if tensor.dtype in INTEGERS:
            traces.note(tensor, Lost(name))


# ---- embedded tokens -------------------------------------------------------------------------
def _has_rows(traces: Traces, value: Any) -> bool:
    if isinstance(value, Tensor):
        return traces.rows(value) is not None
    return isinstance(value, (list, tuple)) and any(_has_rows(traces, v) for v in value)


def _moved_rows(traces: Traces, call: Call, places: tuple[int, ...], result: Any) -> None:
    if _is_inplace(call):  # so the trace must not overlap itself
        written = _of_rows(traces, call.args[0]).clone()
        _replay(traces, call, places, first=written, of=_of_rows)
        traces.note_rows(call.args[0], written)
        traces.note_rows(result, written)
        return
    replayed = _replay(traces, call, places, of=_of_rows)
    for tensor, trace in zip(tensors_in(result), tensors_in(replayed), strict=False):
        if tensor.shape == trace.shape:
            traces.note_rows(tensor, trace)


def _follow_sum(traces: Traces, args: tuple[Any, ...], result: Any) -> bool:
    """Sums of embedded tokens, and products with constants, are embedded tokens."""
    known = [t for a in args[:2] if (t := traces.rows(a)) is not None]
    if not known or not isinstance(result, Tensor):
        return False
    live = [a for a in args[:2] if depends(a) and not isinstance(a, nn.Parameter)]
    are_all = len(known) == len(live)
    trace = united(known, result.shape) if are_all else None
    if trace is None:
        traces.forget_rows(result)  # of the first summand, if it was added in place
    traces.note_rows(result, trace)
    return True


def _follow_tables(traces: Traces, name: str, args: tuple[Any, ...], result: Tensor) -> None:
    """Constants that are rows of learned tables and of nothing else, row by row."""
    if name in _MIXING:
        return
    first = args[:2] if name in _LINEAR else args[:1]
    sources = [t for s in first for t in (s if isinstance(s, (list, tuple)) else (s,))]
    found: dict[int, Tensor] = {}  # each once: sums of a constant with itself would double them
    for one in sources:
        of = (one,) if isinstance(one, nn.Parameter) else traces.tables(one)
        of = tuple(table for table in of if table.dim() > 1)
        if not of and name not in _SCALING and isinstance(one, Tensor) and one.dim() > 1:
            return  # joined with, or added to, what comes from elsewhere: features of an image
        found.update({id(table): table for table in of})
    traces.note_tables(result, tuple(found.values()))
