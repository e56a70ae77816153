"""``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` and their cells: one call of torch, many equations.

The value of such a call is that of torch's own kernel.  Where rules act on what is inside, its
gradient comes from the equations in torch's documentation, run step by step under the rules in
force, as if the model had written them out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from captum_lrp_tx.propagation.autograd.functions import WithValue
from captum_lrp_tx.propagation.interception.calls import Call, Handler, depends, tensors_in
from captum_lrp_tx.propagation.operations import Kind

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context

#: The state of a layer: ``(h,)``, or ``(h, c)`` of an LSTM.
State = tuple[Tensor, ...]
#: From the two linear maps (of the input, of the state) and the state to the next state.
Step = Callable[[Tensor, Tensor, State], State]
#: Kinds of operation that the equations are made of.
_INSIDE = (Kind.LINEAR, Kind.ACTIVATION, Kind.PRODUCT, Kind.RESIDUAL)
_CELL = ("input", "hx", "w_ih", "w_hh", "b_ih", "b_hh")


def _tanh(x: Tensor, h: Tensor, state: State) -> State:
    return ((x + h).tanh(),)


def _relu(x: Tensor, h: Tensor, state: State) -> State:
    return ((x + h).relu(),)


def _lstm(x: Tensor, h: Tensor, state: State) -> State:
    i, f, g, o = (x + h).chunk(4, 1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, h: Tensor, state: State) -> State:
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, 1), h.chunk(3, 1)
    r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
    n = (xn + r * hn).tanh()
    return ((1 - z) * n + z * state[0],)


_STEPS: dict[str, Step] = {"rnn_tanh": _tanh, "rnn_relu": _relu, "lstm": _lstm, "gru": _gru}


def _next(step: Step, x: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    """One step; ``weights`` are those of the state, its bias and the projection, or ``None``."""
    w_hh, b_hh, w_hr = weights
    assert w_hh is not None
    h, *rest = step(x, F.linear(state[0], w_hh, b_hh), state)
    return (h if w_hr is None else F.linear(h, w_hr), *rest)


def _direction(
    step: Step, data: Tensor, sizes: list[int], state: State, weights: list[Tensor], biases: bool,
    backwards: bool,
) -> tuple[Tensor, State]:  # fmt: skip
    """One layer in one direction.

    Args:
        step (callable): The equations of the layer.
        data (Tensor): shape ``(sum(sizes), features)``, time step after time step.
        sizes (list of int): How many sequences have each time step, never more than the step
            before.
        state (tuple of Tensor): Initial states, shape ``(sizes[0], ...)`` each.
        weights (list of Tensor): As in ``nn.LSTM.all_weights``.
        biases (bool): Whether there are biases among them.
        backwards (bool): From the last time step to the first.

    Returns:
        tuple: the outputs, laid out as ``data``, and the final states.
    """
    w_ih, w_hh, *rest = weights
    b_ih, b_hh = rest[:2] if biases else (None, None)
    w_hr = rest[-1] if len(rest) % 2 else None
    inputs = torch.split(F.linear(data, w_ih, b_ih), sizes)
    initial, ended = state, list[State]()
    state = tuple(s[:0] for s in initial)
    outputs: list[Tensor] = []
    for t in reversed(range(len(sizes))) if backwards else range(len(sizes)):
        running = state[0].shape[0]
        if sizes[t] < running:
            ended.append(tuple(s[sizes[t] :] for s in state))
            state = tuple(s[: sizes[t]] for s in state)
            running = sizes[t]
        # sequences that begin here have a constant state, which is another equation
        begins = tuple(s[running : sizes[t]] for s in initial)
        parts = [
            _next(step, x, s, (w_hh, b_hh, w_hr))
            for x, s in zip(
                torch.split(inputs[t], [running, sizes[t] - running]), (state, begins), strict=True
            )
            if x.shape[0]
        ]
        state = parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))
        outputs.append(state[0])
    if ended:
        state = tuple(torch.cat(parts) for parts in zip(state, *reversed(ended), strict=True))
    return torch.cat(outputs[::-1] if backwards else outputs), state


def _layers(
    step: Step, data: Tensor, sizes: list[int], states: State, flat: list[Tensor],
    options: tuple[Any, ...],
) -> tuple[Tensor, ...]:  # fmt: skip
    """All layers: the outputs of the last one, and the final states stacked."""
    biases, layers, dropout, training, bidirectional = options
    directions = 2 if bidirectional else 1
    each = len(flat) // (layers * directions)
    finals: list[State] = []
    for layer in range(layers):
        if layer and dropout:
            data = F.dropout(data, dropout, training)
        found = []
        for backwards in range(directions):
            n = layer * directions + backwards
            state = tuple(s[n] for s in states)
            weights = flat[n * each : (n + 1) * each]
            found.append(_direction(step, data, sizes, state, weights, biases, bool(backwards)))
        data = found[0][0] if directions == 1 else torch.cat([f[0] for f in found], -1)
        finals += [state for _, state in found]
    return data, *(torch.stack(parts) for parts in zip(*finals, strict=True))


def _equations(call: Call) -> tuple[Tensor, ...]:
    """What a call computes: a cell, packed sequences or padded ones."""
    name, args = call.name, call.args
    step = _STEPS[name.removesuffix("_cell")]
    if name.endswith("_cell"):
        x, state, w_ih, w_hh, b_ih, b_hh = call.bind(_CELL)
        return _next(step, F.linear(x, w_ih, b_ih), _as_state(state), (w_hh, b_hh, None))
    if isinstance(args[3], (list, tuple)):
        data, sizes, states, flat, *options = args
        return _layers(step, data, sizes.tolist(), _as_state(states), flat, tuple(options))
    x, states, flat, *options, batch_first = args
    x = x.transpose(0, 1) if batch_first else x
    steps, batch = x.shape[:2]
    data = x.reshape(steps * batch, -1)
    data, *finals = _layers(step, data, [batch] * steps, _as_state(states), flat, tuple(options))
    output = data.reshape(steps, batch, -1)
    return output.transpose(0, 1) if batch_first else output, *finals


def _as_state(state: Any) -> State:
    return tuple(state) if isinstance(state, (list, tuple)) else (state,)


def _recurrent(context: Context, call: Call) -> Any:
    rule, name, args = context.scope.rule, call.name, call.args
    reached = any(depends(t) for t in tensors_in(args))
    acts = any(rule(kind) is not None for kind in _INSIDE) or context.scope.ledger is not None

    def as_in_the_model(x: Any) -> Any:
        # torch picks its kernels by whether weights require a gradient
        if context.constants.is_trainable(x):
            return x.detach().requires_grad_()
        return x.detach() if acts and isinstance(x, Tensor) else x

    drops = not name.endswith("_cell") and _dropout(args)
    if drops:
        context.scope.random.add("dropout")
    before = torch.get_rng_state() if acts and reached and drops else None
    value = call.replaced(tree_map(as_in_the_model, args), call.kwargs).run()
    if reached and not acts:
        return value
    value = tree_map(torch.Tensor.detach, value)
    if not reached:
        context.constants.mark_trainable(value)
        return value
    with context.watching():
        results = _with_the_same_noise(before, lambda: _equations(call))
    if drops and args[0].device.type != "cpu":
        return results  # the noise of the kernel cannot be drawn again
    if isinstance(value, Tensor):
        return WithValue.call(value, *results)
    return tuple(WithValue.call(v, r) for v, r in zip(value, results, strict=True))


def _dropout(args: tuple[Any, ...]) -> bool:
    """Whether a call drops anything between its layers."""
    flat = 3 if isinstance(args[3], (list, tuple)) else 2
    layers, dropout, training = args[flat + 2 : flat + 5]
    return bool(training and dropout and layers > 1)


def _with_the_same_noise(
    before: Tensor | None, run: Callable[[], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """``run()`` with the random numbers that followed the state ``before``."""
    if before is None:
        return run()
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    try:
        return run()
    finally:
        torch.set_rng_state(after)


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(_STEPS, _recurrent),
    **{name + "_cell": _recurrent for name in _STEPS},
}
