"""What is looked up for explained ids, and the tables whose rows are added to it.

Any constant table of floats counts, in any spelling: a lookup whose indices come from explained ids
becomes a leaf, with the trace of the indices.  Rows of other tables (positions, segments) are
constants until they are added to embedded tokens; there they become leaves of these tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.propagation.autograd.functions import LinearValue
from captum_lrp_tx.propagation.interception.calls import Call, Handler, by_name, depends
from captum_lrp_tx.propagation.recognition import axes
from captum_lrp_tx.propagation.state.tracing import INTEGERS, WAY_OUT, Lost, united

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context

Arguments = tuple[Any, ...]


#: Calls that look up, also where gradients are switched off.
_LOOKUPS = frozenset(("embedding", "__getitem__", "index_select", "gather", "embedding_bag"))


def is_lookup(context: Context, call: Call) -> bool:
    """Whether a call reads a constant table at explained ids."""
    name, args = call.name, call.args
    if name not in _LOOKUPS or not context.inputs.has_ids:
        return False
    if any(depends(a) and not a.is_leaf for a in args):  # leaves are parameters here
        return False
    traces = context.inputs.traces
    indices = [i for a in args for i in (a if isinstance(a, tuple) else (a,))]
    return name == "embedding" or any(traces.of(i) is not None for i in indices)


def learned_tables(context: Context, original: Any, constant: Any) -> tuple[Tensor, ...]:
    """The learned tables that an argument is, or was read from."""
    if isinstance(original, nn.Parameter):
        return (original,) if original.dim() > 1 else ()
    return context.inputs.traces.tables(constant)


def _read(context: Context, table: Any, original: Any, index: Any, result: Any, trace: Any) -> Any:
    """The result of a lookup: a leaf if its indices come from explained ids.

    Args:
        context (Context): The context.
        table (Tensor): What was looked up in, as a constant.
        original (Tensor): The same as the model passed it.
        index (Tensor): The indices.
        result (Tensor): What was read.
        trace (callable): From the trace of the indices to that of the result.
    """
    traces = context.inputs.traces
    if depends(table) or not isinstance(result, Tensor):
        return result
    found = traces.of(index)
    if found is None:
        if result.is_floating_point():
            traces.note_tables(result, learned_tables(context, original, table))
        return result
    if isinstance(found, Tensor) and (result.is_floating_point() or result.dtype in INTEGERS):
        traces.resolve(index)
        found = trace(found)
    if not result.is_floating_point():
        if result.dtype in INTEGERS and traces.of(result) is None and traces.of(table) is None:
            traces.note(result, found)  # a table that renumbers the vocabulary
        return result
    if isinstance(found, Lost):
        if "unique" in found.operation:  # its inverse hands the rows out
            traces.unresolved = found.operation
            return result
        raise InputError(
            f"The token ids went through {found.operation!r} before they were looked up, so what "
            f"was looked up belongs to no single token. {WAY_OUT}"
        )
    name = context.name_of(original if isinstance(original, Tensor) else table)
    return context.inputs.look_up(result, found, name, context)


def _embedding(context: Context, call: Call) -> Any:
    result = call.run()
    if not context.inputs.has_ids:
        return result
    first, second = call.bind(("input", "weight"))
    given = (call.original or call).bind(("input", "weight"))
    # torch.embedding(weight, indices), F.embedding(indices, weight)
    swapped = first.is_floating_point()
    indices, weight = (second, first) if swapped else (first, second)
    return _read(
        context, weight, given[0] if swapped else given[1], indices, result,
        lambda trace: trace.unsqueeze(-1).expand(result.shape),
    )  # fmt: skip


def _getitem(context: Context, call: Call) -> Any:
    result = call.run()
    if not context.inputs.has_ids or len(call.args) != 2 or depends(call.args[0]):
        return result
    table, index = call.args
    items = index if isinstance(index, tuple) else (index,)
    held = [i for i in items if context.inputs.traces.of(i) is not None]
    if not held:
        return _read(context, table, call.passed(0), None, result, None)
    return _read(
        context, table, call.passed(0), held[0], result,
        lambda trace: _indexed(context, table, items, result.shape),
    )  # fmt: skip


def _indexed(context: Context, table: Tensor, items: Arguments, shape: torch.Size) -> Tensor | Lost:
    """The trace of ``table[items]``: every index in turn reads its own trace."""
    traces = context.inputs.traces
    taken = sum(_dimensions(i) for i in items)
    found, dim = [], 0
    for position, item in enumerate(items):
        if item is Ellipsis:
            dim += table.dim() - taken
            continue
        trace = traces.of(item)
        if isinstance(trace, Tensor):
            sizes = [*table.shape]
            sizes[dim] = trace.numel()
            places = [1] * table.dim()
            places[dim] = trace.numel()
            source = trace.reshape(places).expand(sizes)
            own = torch.arange(trace.numel(), device=trace.device).view(trace.shape)
            index = (*items[:position], own, *items[position + 1 :])
            found.append(source[index])
        dim += _dimensions(item)
    trace = united(found, shape)
    return Lost("indexing by several ids") if trace is None else trace


def _passed(call: Call, position: int, constant: Tensor) -> Any:
    """An argument as the model passed it, or the same as a constant if it has no position."""
    original = call.passed(position)
    return constant if original is None else original


def _dimensions(item: Any) -> int:
    """How many dimensions of a table an index takes."""
    if item is None or item is Ellipsis or isinstance(item, bool):
        return 0
    is_mask = isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8)
    return item.dim() if is_mask else 1


def _index_select(context: Context, call: Call) -> Any:
    result = call.run()
    if not context.inputs.has_ids:
        return result
    source, dim, index = call.bind(("input", "dim", "index"))
    shape = [1] * source.dim()
    shape[dim] = -1
    return _read(
        context, source, _passed(call, 0, source), index, result,
        lambda trace: trace.reshape(shape).expand(result.shape),
    )  # fmt: skip


def _gather(context: Context, call: Call) -> Any:
    result = call.run()
    if not context.inputs.has_ids:
        return result
    if "take" in call.name:
        source, index, _ = call.bind(("input", "index", "dim"))
        index = call.kwargs.get("indices", index)
    else:
        source, _, index = call.bind(("input", "dim", "index"))
    return _read(
        context, source, _passed(call, 0, source), index, result,
        lambda trace: trace.expand(result.shape),
    )  # fmt: skip


# ---- rows with a single one ------------------------------------------------------------------
def _one_hot(context: Context, call: Call) -> Any:
    result = call.run()
    if context.inputs.has_ids:
        trace = context.inputs.traces.of(call.args[0] if call.args else call.kwargs.get("tensor"))
        if isinstance(trace, Tensor):
            trace = trace.unsqueeze(-1) * result
        if trace is not None:
            context.inputs.traces.note(result, trace, is_one_hot=True)
    return result


def _equal(context: Context, call: Call) -> Any:
    """Ids compared with all numbers of a vocabulary, along an axis of their own."""
    result, args = call.run(), call.args
    if not context.inputs.has_ids or call.kwargs or len(args) != 2:
        return result
    if not isinstance(result, Tensor):
        return result
    traces = context.inputs.traces
    held = [(a, t) for a in args if isinstance(t := traces.of(a), Tensor)]
    if len(held) != 1 or result.dim() == 0:
        return result
    ids, trace = held[0]
    widened = [i for i in range(-result.dim(), 0)
               if result.shape[i] > 1 and (-i > ids.dim() or ids.shape[i] == 1)]  # fmt: skip
    if len(widened) == 1 and bool((result.sum(widened[0]) == 1).all()):
        traces.note(result, trace * result, is_one_hot=True)
    return result


def _scatter(context: Context, call: Call) -> Any:
    """Ones written at ids into zeros."""
    target, dim, index, value = call.bind(("input", "dim", "index", "value"))
    value = call.kwargs.get("src", value)
    traces = context.inputs.traces
    trace = traces.of(index) if context.inputs.has_ids else None
    empty = (
        isinstance(trace, Tensor)
        and not depends(target)
        and "reduce" not in call.kwargs
        and not bool(target.any())
    )
    result = call.run()
    if not isinstance(trace, Tensor) or not empty or depends(value):
        return result
    with torch.no_grad():
        places = torch.zeros(result.shape, dtype=torch.int64, device=result.device)
        if isinstance(value, Tensor):
            trace = trace * (value.expand(trace.shape) != 0)
        places.scatter_(dim, index.long(), trace)
    if not result.is_floating_point():
        traces.note(result, places, is_one_hot=True)
        return result
    rows = context.inputs.look_up(result, places, "one-hot rows", context)
    return target.copy_(rows) if call.is_inplace else rows


def as_floats(context: Context, call: Call) -> Call:
    """A product, its rows with a single one as floats if the other factor is of floats."""
    traces, args = context.inputs.traces, call.args
    if len(args) != 2 or not all(isinstance(a, Tensor) for a in args):
        return call
    result = []
    for this, other in (args, args[::-1]):
        if not this.is_floating_point() and other.is_floating_point() and traces.is_one_hot(this):
            trace = traces.of(this)
            assert isinstance(trace, Tensor)
            this = context.inputs.look_up(this.to(other.dtype), trace, "one-hot rows", context)
        result.append(this)
    return call.replaced(tuple(result), call.kwargs)


# ---- bags ------------------------------------------------------------------------------------
BAG = ("input", "weight", "offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode",
       "sparse", "per_sample_weights", "include_last_offset", "padding_idx")  # fmt: skip


def embedding_bag(context: Context, call: Call) -> Any:
    """Sums, means or maxima of rows: each row is a leaf, the value is the stock kernel's."""
    result = call.run()
    given = dict(zip(BAG, call.bind(BAG), strict=True))
    ids, weight = given["input"], given["weight"]
    if not context.inputs.has_ids or not isinstance(result, Tensor) or not isinstance(ids, Tensor):
        return result
    swapped = ids.is_floating_point()  # the old order of arguments
    if swapped:
        ids, weight = weight, ids
    trace = context.inputs.traces.of(ids)
    if trace is None or depends(weight):
        return result
    flat = ids.reshape(-1)
    read = weight[flat]
    rows = _read(
        context, weight, _passed(call, 0 if swapped else 1, weight), ids, read,
        lambda t: t.reshape(-1, 1).expand(read.shape),
    )  # fmt: skip
    bags = _bags(ids, given["offsets"], result.shape[0])
    weights = given["per_sample_weights"]
    shares = read.new_ones(len(flat)) if weights is None else weights.reshape(-1).detach()
    if given["padding_idx"] is not None:
        shares = shares * (flat != given["padding_idx"] % len(weight))
    how = given["mode"] or "mean"
    if how == "mean":
        counts = torch.zeros(len(result), dtype=shares.dtype, device=shares.device)
        shares = shares / counts.index_add(0, bags, (shares != 0).to(shares.dtype))[bags].clamp(1)
    if how == "max":
        return _largest(rows, bags, shares != 0, result)
    return LinearValue.call(
        rows, lambda: result, lambda grad: grad[bags] * shares.unsqueeze(-1).to(grad.dtype)
    )


def _bags(ids: Tensor, offsets: Tensor | None, count: int) -> Tensor:
    """Which bag each id is in."""
    if ids.dim() == 2:
        return torch.arange(count, device=ids.device).repeat_interleave(ids.shape[1])
    assert offsets is not None
    places = torch.arange(len(ids), device=ids.device)
    return torch.searchsorted(offsets[:count].contiguous(), places, right=True) - 1


def _largest(rows: Tensor, bags: Tensor, counts: Tensor, result: Tensor) -> Tensor:
    """Maxima of bags: the gradient goes to the first row that has the value."""
    chosen = torch.zeros_like(rows)
    for bag in range(len(result)):
        members = ((bags == bag) & counts).nonzero().squeeze(1)
        if len(members):
            best = members[rows.detach()[members].argmax(0)]
            chosen.scatter_(0, best.unsqueeze(0), 1.0)
    return LinearValue.call(rows, lambda: result, lambda grad: grad[bags] * chosen)


# ---- rows that are added to embedded tokens --------------------------------------------------
ADDITIONS = frozenset(
    """add add_ __add__ __radd__ __iadd__ sub sub_ __sub__ __rsub__ __isub__ rsub subtract
    subtract_""".split()
)
#: Of these the ones that write into their first operand, and what they compute.
_WRITTEN_INTO = {
    **dict.fromkeys(("add_", "__iadd__"), torch.add),
    **dict.fromkeys(("sub_", "__isub__", "subtract_"), torch.sub),
}


def with_added_rows(context: Context, call: Call) -> tuple[Call, Tensor | None]:
    """A sum in which rows of learned tables that meet embedded tokens are leaves.

    Returns:
        tuple: the call, and the tensor that its result is to be written into, where tokens are
        added in place to what was a constant.
    """
    args = call.args
    traces = context.inputs.traces
    for i in (0, 1):
        rows, other = args[i], args[1 - i]
        if not depends(rows) or not isinstance(other, Tensor) or other.requires_grad:
            continue
        trace = traces.rows(rows)
        if trace is None:
            break
        into = _WRITTEN_INTO.get(call.name) if i == 1 else None
        if into is not None:  # what was a constant holds tokens from now on
            traces.note_written(other, trace.expand(other.shape))
        tables = learned_tables(context, call.passed(1 - i), other)
        if not tables or not other.is_floating_point():
            break
        shape = torch.broadcast_shapes(trace.shape, other.shape)  # type: ignore[no-untyped-call]
        names = " + ".join(dict.fromkeys(context.name_of(table) for table in tables))
        leaf = context.inputs.look_up(other.expand(shape), trace.expand(shape), names, context)
        axes.note_weighed(leaf, [None] * len(shape))  # what axes count, the tokens tell
        replaced = [*args]
        replaced[1 - i] = leaf
        if into is not None:
            return call.replaced(tuple(replaced), call.kwargs, into), other
        return call.replaced(tuple(replaced), call.kwargs), None
    return call, None


HANDLERS: dict[str, Handler] = {
    **by_name(_embedding, "embedding"),
    **by_name(_getitem, "__getitem__"),
    **by_name(_index_select, "index_select"),
    **by_name(_gather, "gather take take_along_dim"),
    **by_name(_one_hot, "one_hot"),
    **by_name(_equal, "eq __eq__"),
    **by_name(_scatter, "scatter scatter_"),
}
