"""The oracle's part for full LRP: activations, gates and products in the second forward.

From the definitions, on aten operations and recorded values, sharing nothing with the package:

* an activation ``y = f(x)`` becomes ``x * c`` with the constant ``c = f(x) / x`` (0 where x is 0);
* a product of two factors that depend on the inputs keeps the gate constant. The gate is the
  factor that comes, entry by entry, from a bounded function (softmax or sigmoid before tanh and
  the like) or an exponential; without such a difference, and where one is an activation without
  bounds (the gated MLP of a Llama), each factor has half;
* a divisor is a constant; a matrix product without an attention pattern gives half to each factor,
  but to the experts alone if the other factor is a softmax that routes them.

Linear maps are plain gradients: epsilon is 1e-9 in the presets.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

HALVES = "lrp: a product of two signals without a gate gives half to each"
HALVES_OF_MATRICES = "lrp: a matrix product without a pattern gives half to each factor"

#: Element-wise functions, without those for which gradient x input already is the identity rule.
_ACTIVATIONS = {
    "gelu", "silu", "mish", "tanh", "sigmoid", "elu", "hardtanh", "hardswish", "hardsigmoid",
    "softplus", "log_sigmoid_forward", "hardshrink", "softshrink", "threshold", "erf", "clamp",
    "clamp_min", "clamp_max", "expm1", "log1p", "sin", "atan", "asinh",
}  # fmt: skip
_BOUNDED = {"_softmax": 3, "_safe_softmax": 3, "softmax": 3, "sigmoid": 3, "hardsigmoid": 3,
            "tanh": 2, "erf": 2, "hardtanh": 2, "softplus": 2}  # fmt: skip
_SELF_GATED = {"silu", "gelu", "relu", "leaky_relu", "elu", "mish", "hardswish", "exp"}
_ENTRYWISE = set(
    """view _unsafe_view reshape _reshape_alias alias expand permute transpose t unsqueeze squeeze
    clone contiguous _to_copy to slice select index gather index_select masked_fill nan_to_num
    split split_with_sizes unbind diagonal flip roll repeat tril triu neg copy dropout detach
    native_dropout constant_pad_nd as_strided unfold convert_element_type
    add sub rsub mul div clamp clamp_min sqrt cumsum topk sort max amax min amin sum mean
    cat stack where scatter scatter_add index_put index_add""".split()
)
_PRODUCTS = {"mul", "bmm", "mm", "matmul", "dot", "mv"}


def base_name(node: fx.Node) -> str:
    """The operation without namespace and without the underscore of its in-place form."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return "getitem"
    name = target._schema.name.split("::")[-1]
    return name.rstrip("_") if not name.startswith("_") else name


def gate_strength(node: Any, depends: set[fx.Node], depth: int = 60) -> int:
    """How clearly the values at a node are gates: 3 and 2 bounded, 1 self-gated, 0 none."""
    if not isinstance(node, fx.Node) or node not in depends or depth == 0:
        return 0
    name = base_name(node)
    if name in _BOUNDED:
        return _BOUNDED[name]
    if name in _SELF_GATED:
        return 1
    if name == "mul" and _is_self_gated(node, depends):
        return 1
    if name not in _ENTRYWISE and name != "getitem":
        return 0
    parents = [n for n in node.all_input_nodes if n in depends]
    if name == "div":
        parents = [n for n in node.args[:1] if n in depends]
    strength = min((gate_strength(n, depends, depth - 1) for n in parents), default=0)
    if strength == 1 and (
        name in ("sum", "mean", "cumsum") or (len(parents) > 1 and name != "cat")
    ):
        return 0  # a sum of self-gated values is a signal
    return strength


def _is_self_gated(node: fx.Node, depends: set[fx.Node]) -> bool:
    """Whether a product is ``x * f(x)`` with an activation in ``f``: one written by hand."""
    first, second = node.args[:2]
    for signal, gate in ((first, second), (second, first)):
        if not isinstance(signal, fx.Node) or not isinstance(gate, fx.Node):
            return False
        while base_name(signal) in ("mul", "div") and len(_live(signal, depends)) == 1:
            (signal,) = _live(signal, depends)
        todo, seen, is_active = [gate], set(), False
        while todo:
            one = todo.pop()
            if one is signal or one in seen:
                continue
            seen.add(one)
            active = base_name(one) in _SELF_GATED or base_name(one) in _BOUNDED
            known = active or base_name(one) in ("mul", "div", "add", "sub", "rsub", "pow", "neg")
            before = _live(one, depends)
            if not known or not before or "softmax" in base_name(one):
                is_active = False
                break
            is_active = is_active or active
            todo.extend(before)
        if is_active:
            return True
    return False


def _is_of_softmax(node: Any, depends: set[fx.Node]) -> bool:
    """Whether the entries of a factor are those of a softmax, moved, scaled or renormalised."""
    while isinstance(node, fx.Node) and node in depends:
        name = base_name(node)
        if "softmax" in name and "log" not in name:
            return True
        live = _live(node, depends)
        if name == "div":
            live = [n for n in node.args[:1] if n in depends]
        if len(live) != 1 or (name not in _ENTRYWISE and name != "getitem"):
            return False
        (node,) = live
    return False


def _live(node: fx.Node, depends: set[fx.Node]) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if n in depends]


def propagate(
    node: fx.Node,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    depends: set[fx.Node],
    notes: set[str],
) -> Any:
    """The node's value with the graph that carries LRP; ``NotImplemented`` for plain gradient.

    ``notes`` collects the conventions that were needed beyond the rules of the papers.
    """
    name = base_name(node)
    live = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]
    if name in _ACTIVATIONS and live == [0]:
        return _activation(node, args, kwargs)
    if name == "pow" and live == [0] and isinstance(args[1], (int, float)) and args[1] >= 1:
        return _activation(node, args, kwargs)
    if name == "glu" and live:
        signal, control = args[0].chunk(2, args[1] if len(args) > 1 else -1)
        return signal * control.detach().sigmoid()
    if name == "div" and 1 in live:
        return _call(node, (args[0], args[1].detach(), *args[2:]), kwargs)
    if name in _PRODUCTS and len(live) == 2:
        return _product(node, name, args, kwargs, depends, notes)
    if name in ("baddbmm", "addmm") and {1, 2} <= set(live):
        halves = (args[0], *(_half(a) for a in args[1:3]), *args[3:])
        return _noted(_call(node, halves, kwargs), HALVES_OF_MATRICES, notes)
    return NotImplemented


def _call(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    operation: Any = node.target
    return operation(*args, **kwargs)


def _noted(x: Tensor, note: str, notes: set[str]) -> Tensor:
    """Take the note once relevance really passes here."""
    x.register_hook(lambda _: notes.add(note))  # type: ignore[no-untyped-call]
    return x


def _is_of_exponential(node: Any, depends: set[fx.Node]) -> bool:
    """Whether the activation that makes a gate, entry by entry, is an exponential."""
    while isinstance(node, fx.Node) and node in depends:
        if base_name(node) in _SELF_GATED:
            return base_name(node) == "exp"
        node = next((n for n in node.all_input_nodes if n in depends), None)
    return False


def _half(x: Tensor) -> Tensor:
    return 0.5 * x + 0.5 * x.detach()


def _product(
    node: fx.Node,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    depends: set[fx.Node],
    notes: set[str],
) -> Any:
    first, second = args[:2]
    note = ""
    strengths = [gate_strength(a, depends) for a in node.args[:2]]
    softmaxes = [_is_of_softmax(a, depends) for a in node.args[:2]]
    if name != "mul" and softmaxes[0] != softmaxes[1]:  # the router of a mixture
        side = softmaxes.index(True)
        replaced = (first.detach(), second) if side == 0 else (first, second.detach())
    elif name != "mul" or strengths[0] == strengths[1] or first is second:
        replaced = (_half(first), _half(second))
        note = HALVES if name == "mul" else HALVES_OF_MATRICES
    elif max(strengths) == 1 and not any(_is_of_exponential(a, depends) for a in node.args[:2]):
        replaced = (_half(first), _half(second))
    elif strengths[0] > strengths[1]:
        replaced = (first.detach(), second)
    else:
        replaced = (first, second.detach())
    if _is_inplace(node):
        return first.copy_(replaced[0] * replaced[1])
    result = _call(node, (*replaced, *args[2:]), kwargs)
    return _noted(result, note, notes) if note and first is not second else result


def _is_inplace(node: fx.Node) -> bool:
    schema: str = node.target._schema.name  # type: ignore[union-attr]
    return schema.endswith("_")


def _activation(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    with torch.no_grad():
        value = _call(node, (x.detach().clone(), *args[1:]), kwargs)
        y = value[0] if isinstance(value, tuple) else value
        tiny = torch.finfo(x.dtype).tiny
        ratio = torch.where(x.abs() < tiny, torch.zeros_like(y), y / x)
        ratio = torch.where(x.isfinite(), ratio, torch.zeros_like(ratio))
    finite = x.clone().nan_to_num(0.0, 0.0, 0.0)  # an in-place activation changes x
    carried = (finite - finite.detach()) * ratio + y  # the value exactly, also where x is zero
    if _is_inplace(node):
        return x.copy_(carried)
    return (carried, *value[1:]) if isinstance(value, tuple) else carried
