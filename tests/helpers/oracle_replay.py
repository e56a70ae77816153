"""Running a graph again with the recorded values of some nodes put in as constants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

import oracle_lrp
from oracle_graph import FUSED_NORM, OracleError, OracleTrace, name_of, schema_name

LINEAR_ATTENTION = "attention without a softmax: the factors that weigh the values are constant"
_BATCH_NORM = {"aten::native_batch_norm", "aten::cudnn_batch_norm"}
_EVAL_BATCH_NORM = "aten::_native_batch_norm_legit_no_training"
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


class _Run(fx.Interpreter):
    """Run the graph; keep the values of ``record``, put ``constants`` in their place."""

    def __init__(
        self,
        trace: OracleTrace,
        *,
        record: set[fx.Node],
        constants: dict[fx.Node, Any],
        leaves: dict[fx.Node, Tensor] | None,
        double: bool,
        full: bool = False,
        notes: set[str] | None = None,
        weights: dict[fx.Node, fx.Node] | None = None,
    ) -> None:
        super().__init__(trace.root, graph=trace.graph)
        self.notes: set[str] = set() if notes is None else notes
        self.full, self.depends, self.weights = full, trace.depends, weights or {}
        self.lookups = set(trace.lookups)
        self.record, self.constants = record, constants
        self.leaves, self.double = leaves, double
        self.recorded: dict[fx.Node, Any] = {}

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        if not isinstance(value, Tensor):
            return value
        value = cast(value, self.double)
        return value if isinstance(value, nn.Parameter) else value.clone()

    def run_node(self, n: fx.Node) -> Any:
        if n in self.constants:
            arguments, keywords = self.fetch_args_kwargs_from_env(n)
            return _frozen(name_of(n), arguments, keywords, self.constants[n])
        if n in self.record and name_of(n) in FUSED_NORM:
            arguments, _ = self.fetch_args_kwargs_from_env(n)
            self.recorded[n] = _fused_norm_scale(name_of(n), arguments)
        weight = self.weights.get(n)
        if weight is not None:
            weighing = self.env[weight]
            self.env[weight] = weighing.detach()
            self.notes.add(LINEAR_ATTENTION)
        result = NotImplemented
        if self.full and n in self.depends and n.op == "call_function":
            arguments, keywords = self.fetch_args_kwargs_from_env(n)
            result = oracle_lrp.propagate(n, arguments, keywords, self.depends, self.notes)
        if result is NotImplemented:
            result = super().run_node(n)
        if weight is not None:
            self.env[weight] = weighing
        if n in self.record and n not in self.recorded:
            # A copy: an in-place operation may follow.
            self.recorded[n] = tree_map_only(Tensor, lambda value: value.detach().clone(), result)
        if n in self.lookups and self.leaves is not None:
            leaf = self.leaves[n] = result.detach().clone().requires_grad_()
            result = leaf.clone()  # the model may go on in place
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.double:
            args, kwargs = tree_map_only(
                torch.dtype,
                lambda dtype: torch.float64 if dtype.is_floating_point else dtype,
                (args, kwargs),
            )
            if isinstance(target, torch._ops.OpOverload) and target._schema.name == (
                "aten::_softmax"
            ):
                args = (*args[:2], False)  # no half_to_float: all floats are float64 already
        name = schema_name(target)
        if name == _EVAL_BATCH_NORM or (name in _BATCH_NORM and not args[5]):
            # torch's own gradient is wrong for some arriving gradients that are not contiguous
            x, weight, bias, mean, variance = args[:5]
            shape = (1, -1, *(1,) * (x.ndim - 2))
            y = (x - mean.reshape(shape)) * (variance + args[-1]).rsqrt().reshape(shape)
            weight = None if weight is None else weight.reshape(shape)
            return _affine(y, weight, None if bias is None else bias.reshape(shape)), None, None
        if target in _VIEWS:
            # The strides of constants and of norms computed in parts may differ from the trace.
            shape = args[1]
            try:
                return args[0].view(shape)
            except RuntimeError:
                return args[0].reshape(shape)
        return super().call_function(target, args, kwargs)


def replayed(
    trace: OracleTrace,
    inputs: tuple[Tensor, ...],
    frozen: set[fx.Node],
    *,
    double: bool = False,
    leaves: dict[fx.Node, Tensor] | None = None,
    full: bool = False,
    notes: set[str] | None = None,
) -> Tensor:
    # In-place operations of the model act on these copies, never on the caller's tensors.
    weights = {product: trace.weights[product] for product in frozen & trace.weights.keys()}
    first = _Run(trace, record=frozen - weights.keys(), constants={}, leaves=None, double=double)
    with torch.no_grad():
        first.run(*(x.detach().clone() for x in inputs))
    second = _Run(
        trace,
        record=set(),
        constants=first.recorded,
        leaves=leaves,
        double=double,
        full=full,
        notes=notes,
        weights=weights,
    )
    with torch.enable_grad():
        output = second.run(*(x.clone() if x.is_floating_point() else x for x in inputs))
    scale = trace.output.abs().max().clamp_min(1e-6)
    if not (output.detach() - trace.output).abs().max() <= 1e-3 * scale:
        raise OracleError("the second forward differs from the first: is there randomness in it?")
    return output


def _fused_norm_scale(name: str, args: tuple[Any, ...]) -> Tensor:
    """Reciprocal standard deviation (or root mean square) of a fused norm, shaped to broadcast."""
    x: Tensor = args[0]
    if name == "aten::native_layer_norm":
        dims = tuple(range(-len(args[1]), 0))
        return (x.var(dims, unbiased=False, keepdim=True) + args[4]).rsqrt()
    if name == "aten::_fused_rms_norm":
        dims = tuple(range(-len(args[1]), 0))
        eps = args[3] if len(args) > 3 and args[3] is not None else torch.finfo(x.dtype).eps
        return ((x * x).mean(dims, keepdim=True) + eps).rsqrt()
    batch, channels, groups, eps = args[3], args[4], args[6], args[7]
    grouped = x.reshape(batch, groups, -1)
    scale = (grouped.var(-1, unbiased=False, keepdim=True) + eps).rsqrt()
    scale = scale.expand(batch, groups, channels // groups).reshape(batch, channels)
    return scale.reshape(batch, channels, *([1] * (x.ndim - 2)))


def _frozen(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], constant: Any) -> Any:
    """Value of a node that is held constant, or of a fused norm with a constant normaliser."""
    if name not in FUSED_NORM:
        return tree_map_only(Tensor, lambda value: value.clone(), constant)
    x: Tensor = args[0]
    if name == "aten::native_layer_norm":
        dims = tuple(range(-len(args[1]), 0))
        return _affine((x - x.mean(dims, keepdim=True)) * constant, args[2], args[3]), None, None
    if name == "aten::_fused_rms_norm":
        return _affine(x * constant, args[2], None), None
    batch, channels, groups = args[3], args[4], args[6]
    grouped = x.reshape(batch, groups, -1)
    centred = (grouped - grouped.mean(-1, keepdim=True)).reshape(x.shape)
    shape = (1, channels, *([1] * (x.ndim - 2)))
    weight = None if args[1] is None else args[1].reshape(shape)
    bias = None if args[2] is None else args[2].reshape(shape)
    return _affine(centred * constant, weight, bias), None, None


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return (x if bias is None else x + bias).contiguous()


def cast(x: Tensor, double: bool) -> Tensor:
    return x.double() if double and x.is_floating_point() else x
