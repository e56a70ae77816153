"""Seeing every torch call of a forward pass and handing operations to the rules in force.

A ``TorchFunctionMode`` is active for the explaining thread only.  It does three things:

* parameters enter every call as constants, so autograd keeps nothing for weight gradients and a
  tensor requires a gradient exactly if it depends on the explained inputs;
* calls that a rule may govern become an :class:`~.operations.Operation`, by what they compute;
* everything else runs as it is.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import grad as autograd_grad
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from captum_lrp_tx.propagation import compact, delta_rule, graph, linear_attention, recurrence
from captum_lrp_tx.propagation.functions import LinearValue, PackedSlope, safe_ratio
from captum_lrp_tx.propagation.inputs import Inputs
from captum_lrp_tx.propagation.obstacles import refuse_checkpointing
from captum_lrp_tx.propagation.operations import (
    Activation,
    FusedAttention,
    FusedGate,
    FusedNorm,
    Kind,
    LinearMap,
    NormalizerProduct,
    Operation,
    PatternProduct,
    Product,
    Residual,
    ScanProduct,
)
from captum_lrp_tx.propagation.rows import product_of_rows
from captum_lrp_tx.propagation.scope import Scope

_LOW = (torch.float16, torch.bfloat16)
Handler = Callable[["Interception", Any, tuple[Any, ...], dict[str, Any]], Any]

#: Queries and bookkeeping, which must see parameters as they are.
_UNTOUCHED = frozenset(
    """__get__ __set__ __delete__ requires_grad_ backward register_hook retain_grad size dim stride
    is_floating_point is_complex numel __len__ __hash__ __repr__ __format__ data_ptr item tolist
    __bool__ is_contiguous element_size get_device storage_offset untyped_storage is_inference
    register_post_accumulate_grad_hook is_shared is_nonzero __deepcopy__
    __reduce_ex__""".split()
)

#: Linear in their input-dependent tensors up to an additive constant, which a ledger books.
_AFFINE = frozenset(
    """add add_ sub sub_ subtract rsub __rsub__ __radd__ cat concat concatenate stack hstack vstack
    where masked_fill masked_fill_ lerp index_put index_put_ masked_scatter masked_scatter_ scatter
    scatter_ index_copy index_add addcmul index_fill __setitem__ copy_ pad""".split()
)

_ACTIVATIONS = {
    "relu": "Relu", "relu6": "Hardtanh", "gelu": "Gelu", "silu": "Silu", "mish": "Mish",
    "tanh": "Tanh", "sigmoid": "Sigmoid", "elu": "Elu", "selu": "Elu", "celu": "Elu",
    "leaky_relu": "LeakyRelu", "hardtanh": "Hardtanh", "hardswish": "Hardswish",
    "hardsigmoid": "HardSigmoid", "softplus": "Softplus", "softsign": "Softsign",
    "logsigmoid": "LogSigmoid", "tanhshrink": "Tanhshrink", "hardshrink": "Hardshrink",
    "softshrink": "Softshrink", "threshold": "Threshold", "erf": "Erf", "square": "Pow",
    "pow": "Pow", "prelu": "Prelu", "clamp": "Clamp", "clip": "Clamp", "clamp_min": "Clamp",
    "clamp_max": "Clamp", "expm1": "Expm1", "log1p": "Log1P", "sin": "Sin", "atan": "Atan",
    "arctan": "Atan", "asinh": "Asinh",
}  # fmt: skip


class Interception(TorchFunctionMode):
    """The function mode of one explained forward pass (see the module's description)."""

    def __init__(self, scope: Scope, inputs: Inputs, name_of: Callable[[Tensor], str]) -> None:
        super().__init__()
        self.scope = scope
        self.inputs = inputs
        self.name_of = name_of
        #: Positional arguments of the call being handled, parameters as they are.
        self.as_called: tuple[Any, ...] = ()
        #: Whether there was a softplus: no step size, no state space model.
        self.has_steps = False
        #: Whether a delta rule has been seen, whose sums of values are told by their origin.
        self.has_memory = False
        # constants computed from parameters that require a gradient outside of this mode
        self._trainable: WeakIdKeyDictionary = WeakIdKeyDictionary()
        #: Whether anything was computed from the inputs without a gradient, and what.
        self.has_cut = False
        self._cut: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def again(self) -> Interception:
        """A mode for a second run of a part of the model, which finds no inputs of its own."""
        inputs = self.inputs.again()
        inputs.stop_looking_up()
        mode = Interception(self.scope, inputs, self.name_of)
        mode._trainable = self._trainable
        return mode

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name: str = getattr(func, "__name__", "")
        grad_enabled = torch.is_grad_enabled()
        if (
            name in _UNTOUCHED
            or not grad_enabled  # the model has decided that nothing propagates
            or torch._C._are_functorch_transforms_active()  # where rules cannot be expressed
            or not self.scope.is_current()
        ):
            if not grad_enabled and name == "embedding" and self.scope.is_current():
                # a table of positions that is not trained: still looked up at each token
                with torch.enable_grad():
                    return _constant_call(self, func, args, kwargs, name)
            result = func(*args, **kwargs)
            if name not in _UNTOUCHED and self.scope.is_current():
                self._note_cut((args, kwargs), result)
            if name == "__get__" and isinstance(result, Tensor) and result.requires_grad:
                # weight.T and the like: a view of a parameter is a constant, too
                (owner,) = args[:1]
                if self._is_foreign(owner) and self.scope.is_current():
                    return self.mark_trainable(result.detach())
            return result
        return _constant_call(self, func, args, kwargs, name)

    # ---- parameters as constants --------------------------------------------------------------
    def constant(self, x: Any) -> Any:
        """A parameter, or what was computed from one before this pass, as a constant."""
        if isinstance(x, Tensor):
            if x.is_inference():  # made under inference_mode: autograd refuses to save it
                x = x.clone()
            if x.requires_grad and self._is_foreign(x):
                return self.mark_trainable(x.detach())
            return x
        if type(x) in (list, tuple) and any(isinstance(i, Tensor) for i in x):
            return type(x)([self.constant(i) for i in x])
        return x

    def _is_foreign(self, x: Tensor) -> bool:
        """A parameter, or a tensor of a graph that was there before this pass."""
        node: Any = x.grad_fn
        return node is None or node._sequence_nr() < self.inputs.first_node

    def mark_trainable(self, x: Any) -> Any:
        """Remember that a constant would require a gradient in the plain model."""
        if isinstance(x, Tensor):
            if not x.requires_grad:
                self._trainable[x] = True
        elif isinstance(x, (list, tuple)):
            for item in x:
                self.mark_trainable(item)
        return x

    def _note_cut(self, arguments: Any, result: Any) -> None:
        """Without gradients: remember values that were computed from the inputs."""
        known = _tensors(arguments)
        if any((t.requires_grad and not t.is_leaf) or t in self._cut for t in known):
            self.has_cut = True
            for t in _tensors(result):
                if t.is_floating_point():
                    self._cut[t] = True

    def check_cut(self, name: str, arguments: Any, result: Any) -> None:
        """With gradients again: note the first operations that such values go into."""
        if not any(t in self._cut and not t.requires_grad for t in _tensors(arguments)):
            return
        outputs = _tensors(result)
        if any(t.requires_grad for t in outputs):
            self.scope.cut[name, self.scope.module] = None
            return
        for t in outputs:
            if t.is_floating_point():
                self._cut[t] = True

    def is_trainable(self, x: Any) -> bool:
        """Whether a constant would require a gradient in the plain model."""
        return isinstance(x, Tensor) and x in self._trainable

    # ---- what handlers use --------------------------------------------------------------------
    def apply(self, kind: Kind, operation: Operation) -> Any:
        """Let the rule in force carry out the operation, or run it plainly."""
        rule = self.scope.rule(kind)
        if rule is None:
            return operation.plain()
        self.scope.note(kind, rule)
        return rule.propagate(operation)

    def absorb(self, output: Tensor, constant: Tensor, *sources: Any) -> None:
        """Book an additive constant in the ledger, if there is one."""
        ledger = self.scope.ledger
        if ledger is not None and isinstance(output, Tensor):
            ledger.absorb(output, constant, ledger.name_of(*sources), self.scope.module)

    def absorber(self, *sources: Any) -> Callable[[Tensor, Tensor], None]:
        """``absorb`` bound to the named tensors that an operation took its constants from."""
        return lambda output, constant: self.absorb(output, constant, *sources)


def _constant_call(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str
) -> Any:
    originals = (args, kwargs)
    args = tuple([mode.constant(a) for a in args])
    if kwargs:
        kwargs = {k: mode.constant(v) for k, v in kwargs.items()}
    handler = _HANDLERS.get(name)
    if handler is not None:
        refuse_checkpointing()
        if mode.scope.ledger is not None:
            _keep_names(mode, originals, (args, kwargs))
        mode.as_called = originals[0]
        result = handler(mode, func, args, kwargs)
    else:
        result = func(*args, **kwargs)
    if not _depends(result) and any(mode.is_trainable(a) for a in args):
        mode.mark_trainable(result)
    if mode.has_cut:
        mode.check_cut(name, (args, kwargs), result)
    ledger = mode.scope.ledger
    if ledger is not None:
        _keep_names(mode, originals, (args, kwargs))
        tensors = _tensors(originals)
        if not any(t.requires_grad and not t.is_leaf for t in tensors):
            ledger.inherit(result, *tensors)
        elif name in _AFFINE:
            _book_affine(mode, func, args, kwargs, name, result)
    return result


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in _tensors(item)]
    if isinstance(value, dict):
        return [t for item in value.values() for t in _tensors(item)]
    return []


def _depends(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


# ---- ledger -------------------------------------------------------------------------------------
def _keep_names(mode: Interception, originals: Any, constants: Any) -> None:
    ledger = mode.scope.ledger
    assert ledger is not None
    for before, after in zip(_tensors(originals), _tensors(constants), strict=True):
        if before is not after:
            ledger.inherit(after, before)


def _book_affine(
    mode: Interception,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    name: str,
    result: Any,
) -> None:
    """``f(0, constants)`` is what the constants add to the result of an affine call."""
    output = args[0] if name == "__setitem__" else result
    if not _depends(output):
        return

    with torch.no_grad():
        zero_args = tuple(_zeroed(a) for a in args)
        constant = func(*zero_args, **{k: _zeroed(v) for k, v in kwargs.items()})
        if name == "__setitem__":
            constant = zero_args[0]
    if isinstance(constant, Tensor) and bool(constant.any()):
        sources = [t for t in _tensors((args, kwargs)) if not t.requires_grad]
        mode.absorb(output, constant, *sources)


def _zeroed(x: Any) -> Any:
    """Zeros in place of what depends on the inputs."""
    if isinstance(x, Tensor) and x.requires_grad:
        return torch.zeros_like(x)
    if type(x) in (list, tuple) and any(isinstance(i, Tensor) for i in x):
        return type(x)([_zeroed(i) for i in x])
    return x


# ---- linear maps --------------------------------------------------------------------------------
def _bind(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    values = list(args) + [None] * (len(names) - len(args))
    for i, name in enumerate(names):
        if name in kwargs:
            values[i] = kwargs[name]
    return values


def _spread_last(x: Tensor, relevance: Tensor) -> Tensor:
    """Bias relevance of a token to its features, in proportion to their squares."""
    wide = x.float() if x.dtype in _LOW else x  # squares exceed the range of float16
    total = relevance.to(wide.dtype).sum(-1, keepdim=True)
    return (wide * safe_ratio(total, (wide * wide).sum(-1, keepdim=True))).to(x.dtype)


def _spread_through(
    apply: Callable[[Tensor, Tensor], Tensor], weight: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """The same for any linear map: every output place spreads over the inputs that it sees."""

    def spread(x: Tensor, relevance: Tensor) -> Tensor:
        dtype = torch.float32 if x.dtype in _LOW else x.dtype
        ones, wide = torch.ones_like(weight, dtype=dtype), x.detach().to(dtype)
        with torch.enable_grad():
            squares = (wide * wide).requires_grad_()
            energy = apply(squares, ones)
        share = safe_ratio(relevance.to(dtype), energy.detach())
        (grad,) = autograd_grad(energy, squares, share)
        return (wide * grad).to(x.dtype)

    return spread


#: From so many tokens on, a backward pass that leaves out rows without gradient pays.
_MANY_ROWS = 64


def _linear(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, weight, bias = _bind(("input", "weight", "bias"), args, kwargs)
    if _depends(weight):
        return _contraction(mode, func, (x, weight, bias), {})
    if not _depends(x):
        return func(x, weight, bias)
    call = func
    folds = _folds(mode, x, weight)
    if folds or (weight.dim() == 2 and x.numel() >= _MANY_ROWS * x.shape[-1]):

        def call(i: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
            value = w.detach().requires_grad_() if folds else w
            run = functools.partial(func, i.detach(), value, b)
            return LinearValue.call(i, run, lambda g: product_of_rows(g, w))

    operation = LinearMap(
        call, (x, weight, bias), {}, mode.absorber(bias),
        input=x, weight=weight, bias=bias,
        apply=lambda i, w: func(i, w), distribute=_spread_last,
    )  # fmt: skip
    return _apply_linear(mode, operation)


def _folds(mode: Interception, x: Tensor, weight: Tensor) -> bool:
    """Whether torch's choice of matrix product depends on the weight requiring a gradient."""
    if not x.dim() > 2 >= weight.dim() or not mode.is_trainable(weight):
        return False
    shape, stride = x.shape, x.stride()  # is_contiguous() overlooks strides of dimensions of size 1
    return any(stride[i] != stride[i + 1] * shape[i + 1] for i in range(x.dim() - 2))


def _folded_product(
    mode: Interception, func: Any, x: Tensor, weight: Tensor, weight_first: bool
) -> Callable[..., Any]:
    """``func`` for the matrix product of ``x`` and a constant, with the plain model's value."""
    if weight_first:  # torch folds for trainable weights only, whatever the strides
        if not x.dim() > 2 >= weight.dim() or not mode.is_trainable(weight):
            return cast(Callable[..., Any], func)
    elif not _folds(mode, x, weight):
        return cast(Callable[..., Any], func)

    def call(first: Tensor, second: Tensor) -> Tensor:
        w, i = (first, second) if weight_first else (second, first)
        trainable, value = w.detach().requires_grad_(), i.detach()
        operands = (trainable, value) if weight_first else (value, trainable)

        def back(grad: Tensor) -> Tensor:
            return w.mT @ grad if weight_first else grad @ w.mT

        return LinearValue.call(i, functools.partial(func, *operands), back)

    return call


def _apply_linear(mode: Interception, operation: LinearMap) -> Any:
    if mode.scope.rule(Kind.LINEAR) is None:
        output = operation.plain()
        if operation.bias is not None:
            operation.absorb(output, operation.bias)
    else:
        output = mode.apply(Kind.LINEAR, operation)
    if _is_head(mode, operation.input):  # heads that talk to each other
        graph.mark(output, graph.Role.PATTERN)
    return output


_CONVOLUTION = ("input", "weight", "bias")


def _convolution(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    x, weight, bias = _bind(_CONVOLUTION, args[:3], kwargs)
    rest = args[3:]
    more = {k: v for k, v in kwargs.items() if k not in _CONVOLUTION}
    if not _depends(x) or _depends(weight):
        return func(*args, **kwargs)
    spatial = weight.dim() - 2

    def apply(i: Tensor, w: Tensor) -> Tensor:
        result: Tensor = func(i, w, None, *rest, **more)
        return result

    operation = LinearMap(
        func, (x, weight, bias, *rest), more, mode.absorber(bias),
        input=x, weight=weight,
        bias=None if bias is None else bias.reshape(-1, *(1,) * spatial),
        apply=apply, distribute=_spread_through(apply, weight),
    )  # fmt: skip
    return _apply_linear(mode, operation)


def _addmm(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if len(args) < 3 or kwargs or not _depends(args[1]) or _depends(args[0]) or _depends(args[2]):
        return func(*args, **kwargs)
    bias, x, weight = args[:3]
    operation = LinearMap(
        func, args, kwargs, mode.absorber(bias),
        input=x, weight=weight, bias=bias,
        apply=lambda i, w: i @ w, distribute=_spread_last,
    )  # fmt: skip
    return _apply_linear(mode, operation)


def _batch_norm(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    names = (
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "training",
        "momentum",
        "eps",
    )
    x, mean, variance, weight, bias, training, _, eps = _bind(names, args, kwargs)
    if not _depends(x):  # weights standardised by batch_norm, for instance
        return func(*args, **kwargs)
    if training or mean is None:
        mode.scope.random.add("batch statistics")
        return func(*args, **kwargs)
    shape = (-1, *(1,) * (x.dim() - 2))
    scale = (variance + (1e-5 if eps is None else eps)).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale

    def apply(i: Tensor, w: Tensor) -> Tensor:
        return i * w

    factor = scale.reshape(shape)

    def call(*_: Any, **__: Any) -> Tensor:
        fixed = {**kwargs, "input": x.detach()} if "input" in kwargs else kwargs
        run = functools.partial(func, *((x.detach(), *args[1:]) if args else ()), **fixed)
        return LinearValue.call(x, run, lambda g: g * factor)

    operation = LinearMap(
        call, args, kwargs, mode.absorber(bias, mean),
        input=x, weight=factor, bias=shift.reshape(shape),
        apply=apply, distribute=_spread_through(apply, factor),
    )  # fmt: skip
    return _apply_linear(mode, operation)


# ---- products -----------------------------------------------------------------------------------
def _contraction(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """matmul, bmm, einsum, ...: a linear map, a pattern times values, or another product."""
    if kwargs:  # torch.matmul(input=..., other=...)
        named = [kwargs[k] for k in ("input", "tensor1", "other", "mat2", "mat1") if k in kwargs]
        if not args and len(named) == len(kwargs):
            args, kwargs = tuple(named), {}
    dependent = [i for i, a in enumerate(args) if _depends(a)]
    if len(dependent) >= 2:
        return _dependent_contraction(mode, func, args, kwargs, dependent)
    tensors = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
    if (
        mode.has_memory
        and len(dependent) == 1
        and mode.scope.rule(Kind.ATTENTION) is not None
        and delta_rule.is_key(args[dependent[0]])
    ):  # the memory is still empty: a constant, like the key that would read it
        return func(*(a.detach() if _depends(a) else a for a in args), **kwargs)
    if len(dependent) == 1 and len(tensors) == 2:
        (i,) = dependent
        j = tensors[1] if tensors[0] == i else tensors[0]
        if args[i].dim() > 2 and args[j].dim() > 2 and _is_head(mode, args[i]):
            # values that do not depend on the inputs; a plain weight would have two dimensions
            return mode.apply(
                Kind.ATTENTION,
                PatternProduct(func, args, kwargs, patterns=(i,), operands=(i,)),
            )
        call = func
        if "mul" in getattr(func, "__name__", ""):
            call = _folded_product(mode, func, args[i], args[j], weight_first=j < i)

        def apply(x: Tensor, w: Tensor) -> Tensor:
            called = list(args)
            called[i], called[j] = x, w
            result: Tensor = func(*called, **kwargs)
            return result

        operation = LinearMap(
            call, args, kwargs, mode.absorber(),
            input=args[i], weight=args[j], bias=None,
            apply=apply, distribute=_spread_through(apply, args[j]),
        )  # fmt: skip
        return _apply_linear(mode, operation)
    return func(*args, **kwargs)


def _is_head(mode: Interception, pattern: Tensor) -> bool:
    return mode.scope.rule(Kind.ATTENTION) is not None and graph.is_pattern(pattern)


def _dependent_contraction(
    mode: Interception,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dependent: list[int],
) -> Any:
    if mode.has_memory and mode.scope.rule(Kind.ATTENTION) is not None:
        values = [i for i in dependent if delta_rule.is_sum_of_values(args[i])]
        if len(values) == 1:
            weights = tuple(i for i in dependent if i != values[0])
            return _weighted_values(mode, func, args, kwargs, weights)
    if mode.has_steps:
        scanned = _scan(mode, func, args, kwargs, dependent, elementwise=False)
        if scanned is not None:
            return scanned
    features = False
    if mode.scope.rule(Kind.ATTENTION) is not None:
        patterns = tuple(i for i in dependent if graph.is_pattern(args[i]))
        if not patterns:
            patterns, features = linear_attention.weights(args, dependent)
        if patterns and len(patterns) < len(dependent):
            result = mode.apply(
                Kind.ATTENTION,
                PatternProduct(func, args, kwargs, patterns=patterns, operands=tuple(dependent)),
            )
            graph.mark(result, graph.Role.SUMMARY)
            return result
    result = _unweighted(mode, func, args, kwargs, dependent)
    if features:
        graph.mark(result, graph.Role.PATTERN)
    return result


def _weighted_values(
    mode: Interception,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    weights: tuple[int, ...],
) -> Any:
    operands = tuple(i for i, a in enumerate(args) if _depends(a))
    result = mode.apply(
        Kind.ATTENTION, PatternProduct(func, args, kwargs, patterns=weights, operands=operands)
    )
    delta_rule.note(result, of_values=True)
    return result


def _solve(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A triangular system of scores, as in the delta rule: the scores weigh the right-hand side."""
    matrix, right = _bind(("A", "B"), args, kwargs)
    if not (_depends(matrix) and _depends(right)) or mode.scope.rule(Kind.ATTENTION) is None:
        return func(*args, **kwargs)
    of_values = delta_rule.is_system(matrix, right)
    if of_values is None:
        return func(*args, **kwargs)
    mode.has_memory = True
    rest = {k: v for k, v in kwargs.items() if k not in ("A", "B")}
    if of_values:
        return _weighted_values(mode, func, (matrix, right), rest, (0,))
    result = func(matrix, right, **rest)
    delta_rule.note(result, of_values=False)
    return result


def _unweighted(
    mode: Interception,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dependent: list[int],
) -> Any:
    if len(dependent) == 2 and mode.scope.rule(Kind.PRODUCT) is not None:
        return mode.apply(
            Kind.PRODUCT,
            Product(func, args, kwargs, first=dependent[0], second=dependent[1], elementwise=False),
        )
    return func(*args, **kwargs)


def _baddbmm(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``input + batch1 @ batch2``: a product with something added."""
    if len(args) == 3 and _depends(args[1]) and _depends(args[2]):
        return _dependent_contraction(mode, func, args, kwargs, [1, 2])
    return func(*args, **kwargs)


def _einsum(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if len(args) == 2 and isinstance(args[1], (list, tuple)):
        args = (args[0], *args[1])
    return _contraction(mode, func, args, kwargs)


def _product(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name: str = func.__name__
    inplace = name.endswith("_") and not name.startswith("__")
    if kwargs or len(args) != 2 or not (_depends(args[0]) and _depends(args[1])):
        if mode.has_memory and mode.scope.rule(Kind.ATTENTION) is not None and not inplace:
            # how much is kept of a memory that holds nothing yet: a constant
            args = tuple(a.detach() if _depends(a) and delta_rule.is_decay(a) else a for a in args)
        return func(*args, **kwargs)
    quotient = "div" in name
    if mode.has_steps and not quotient:
        plain = getattr(torch, name.strip("_")) if inplace else func
        scanned = _scan(mode, plain, args, {}, [0, 1], elementwise=True)
        if scanned is not None:
            return args[0].copy_(scanned) if inplace else scanned
    # in-place calls keep their meaning: the result is copied into the first argument
    plain = getattr(torch, name.strip("_")) if inplace else func
    result: Any = None
    if mode.has_memory and mode.scope.rule(Kind.ATTENTION) is not None and not quotient:
        decays = tuple(i for i in (0, 1) if delta_rule.is_decay(args[i]))
        if len(decays) == 1 and delta_rule.is_sum_of_values(args[1 - decays[0]]):
            kept = _weighted_values(mode, plain, args, {}, decays)
            return args[0].copy_(kept) if inplace else kept
    if mode.scope.rule(Kind.ATTENTION) is not None and not quotient:
        sinks = tuple(i for i in (0, 1) if graph.is_sink_gate(args[i]))
        if len(sinks) == 1:
            result = mode.apply(
                Kind.ATTENTION,
                PatternProduct(plain, args, {}, patterns=sinks, operands=(0, 1)),
            )
    if quotient and graph.is_quotient_by_own_sum(args[0], args[1]):
        return func(*args, **kwargs)  # a softmax by hand: what is done with it decides
    if result is None and mode.scope.rule(Kind.ATTENTION) is not None:
        rescaling = linear_attention.renormalizer(args, quotient)
        if rescaling is not None:
            result = mode.apply(
                Kind.ATTENTION,
                PatternProduct(
                    plain, args, {}, patterns=(rescaling,), operands=(0, 1), rescales=True
                ),
            )
    if result is None and mode.scope.rule(Kind.NORM) is not None:
        for i in (1,) if quotient else (1, 0):
            if graph.is_normalizer(args[i]):
                operation = NormalizerProduct(plain, args, {}, normalizer=i)
                result = mode.apply(Kind.NORM, operation)
                break
    if result is None and mode.scope.rule(Kind.PRODUCT) is not None:
        operation_ = Product(
            plain, args, {}, first=0, second=1, elementwise=True, quotient=quotient
        )
        result = mode.apply(Kind.PRODUCT, operation_)
    if result is None:
        return func(*args, **kwargs)
    return args[0].copy_(result) if inplace else result


def _scan(
    mode: Interception,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dependent: list[int],
    elementwise: bool,
) -> Any:
    """A product of a state space model under the rule in force; None for any other product."""
    if mode.scope.rule(Kind.SCAN) is None:
        return None
    resolved = recurrence.resolve(
        [args[i] for i in dependent], _einsum_labels(args, dependent), elementwise
    )
    if resolved is None:
        return None
    signal, role = resolved
    if signal is None:  # plain, so that the audit finds it
        result = func(*args, **kwargs)
    else:
        coefficients = tuple(i for i in dependent if i != dependent[signal])
        result = mode.apply(Kind.SCAN, ScanProduct(func, args, kwargs, coefficients=coefficients))
    recurrence.mark(result, role)
    return result


def _einsum_labels(args: tuple[Any, ...], dependent: list[int]) -> list[frozenset[str]] | None:
    """Letters of the dependent operands and of the result, if this is an einsum by equation."""
    if not isinstance(args[0], str) or "->" not in args[0] or "." in args[0]:
        return None
    inputs, output = args[0].replace(" ", "").split("->")
    letters = [frozenset(term) for term in inputs.split(",")]
    return [*(letters[i - 1] for i in dependent), frozenset(output)]


def _glu(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, dim = _bind(("input", "dim"), args, kwargs)
    if not _depends(x):
        return func(*args, **kwargs)
    return mode.apply(
        Kind.PRODUCT, FusedGate(func, args, kwargs, input=x, dim=-1 if dim is None else dim)
    )


# ---- attention ----------------------------------------------------------------------------------
_SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def _fused_attention(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    query, key, value, mask, dropout_p, is_causal = _bind(_SDPA, args, kwargs)
    rest = {k: v for k, v in kwargs.items() if k not in _SDPA}
    scale = rest.pop("scale", None)
    if dropout_p:
        mode.scope.random.add("attention dropout")
    if not any(_depends(t) for t in (query, key, value, mask)):
        return func(*args, **kwargs)
    if mode.is_trainable(mask):
        # the kernel that torch picks depends on whether the mask requires a gradient
        mask = mask.detach().requires_grad_()
    call = functools.partial(func, query, key, value, mask, dropout_p or 0.0, bool(is_causal))
    return mode.apply(
        Kind.ATTENTION,
        FusedAttention(
            call, (), {**rest, "scale": scale},
            query=query, key=key, value_=value, mask=mask,
            dropout_p=dropout_p or 0.0, is_causal=bool(is_causal), scale=scale, rest=rest,
        ),
    )  # fmt: skip


def _grid_sample(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Values sampled at places that depend on the inputs: the places are a pattern."""
    values, grid = _bind(("input", "grid"), args, kwargs)
    if not _depends(grid):
        return func(*args, **kwargs)
    rest = {k: v for k, v in kwargs.items() if k not in ("input", "grid")}
    return mode.apply(
        Kind.ATTENTION,
        PatternProduct(func, (values, grid, *args[2:]), rest, patterns=(1,), operands=(0,)),
    )


# ---- norms --------------------------------------------------------------------------------------
def _layer_norm(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    x, shape, weight, bias, eps = _bind(names, args, kwargs)
    if not _depends(x):
        return func(*args, **kwargs)

    dims = tuple(range(-len(shape), 0))

    def run() -> tuple[Tensor, Tensor]:
        epsilon = 1e-5 if eps is None else eps
        if torch.is_autocast_enabled(x.device.type):  # which knows layer_norm by this name only
            variance = x.float().var(dims, unbiased=False, keepdim=True)
            return func(*args, **kwargs), (variance + epsilon).rsqrt()
        y, _, inv_std = torch.native_layer_norm(x, shape, weight, bias, epsilon)
        return y, inv_std

    return _apply_norm(
        mode,
        FusedNorm(
            func, args, kwargs, mode.absorber(bias),
            input=x, weight=weight, bias=bias, shape=tuple(x.shape),
            dims=dims, center=True, run=run,
        ),
    )  # fmt: skip


def _rms_norm(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    names = ("input", "normalized_shape", "weight", "eps")
    x, shape, weight, eps = _bind(names, args, kwargs)
    if not _depends(x):
        return func(*args, **kwargs)
    dims = tuple(range(-len(shape), 0))

    def run() -> tuple[Tensor, Tensor]:
        wide = x.float() if x.dtype in _LOW else x
        epsilon = torch.finfo(wide.dtype).eps if eps is None else eps
        return func(*args, **kwargs), (wide.square().mean(dims, keepdim=True) + epsilon).rsqrt()

    return _apply_norm(
        mode,
        FusedNorm(
            func, args, kwargs, mode.absorber(),
            input=x, weight=weight, bias=None, shape=tuple(x.shape), dims=dims, center=False,
            run=run,
        ),
    )  # fmt: skip


def _group_norm(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    names = ("input", "num_groups", "weight", "bias", "eps")
    x, groups, weight, bias, eps = _bind(names, args, kwargs)
    if not _depends(x):
        return func(*args, **kwargs)
    channel = (-1, *(1,) * (x.dim() - 2))
    shape = (x.shape[0], groups, -1)

    def run() -> tuple[Tensor, Tensor]:
        variance = x.reshape(shape).var(-1, unbiased=False, keepdim=True)
        return func(*args, **kwargs), (variance + (1e-5 if eps is None else eps)).rsqrt()

    return _apply_norm(
        mode,
        FusedNorm(
            func, args, kwargs, mode.absorber(bias),
            input=x,
            weight=None if weight is None else weight.reshape(channel),
            bias=None if bias is None else bias.reshape(channel),
            shape=shape, dims=(-1,), center=True, run=run,
        ),
    )  # fmt: skip


def _apply_norm(mode: Interception, operation: FusedNorm) -> Any:
    if mode.scope.rule(Kind.NORM) is None:
        output = operation.plain()
        if operation.bias is not None:
            operation.absorb(output, operation.bias)
        return output
    return mode.apply(Kind.NORM, operation)


# ---- activations --------------------------------------------------------------------------------
def _activation(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    x = args[0] if args else kwargs.get("input")
    rule = mode.scope.rule(Kind.ACTIVATION)
    name: str = func.__name__
    if name == "softplus" and _depends(x):
        mode.has_steps = True
    if rule is None and isinstance(x, Tensor) and x.requires_grad and mode.scope.has_rules:
        return _packed_slope(func, x, args, kwargs, name)
    if rule is None or not isinstance(x, Tensor) or not x.requires_grad:
        return func(*args, **kwargs)
    bare = name.rstrip("_")
    if bare == "pow" and not _positive_power(args[1] if len(args) > 1 else kwargs.get("exponent")):
        return func(*args, **kwargs)
    inplace = name.endswith("_") or bool(kwargs.get("inplace"))
    if inplace:
        # out of place first, then into the argument, so that aliases see the new value
        kwargs = {k: v for k, v in kwargs.items() if k != "inplace"}
        source = x.clone()
        out_of_place = (
            func if not name.endswith("_") else getattr(torch, bare, None) or getattr(F, bare)
        )
        operation = Activation(
            out_of_place, (source, *args[1:]), kwargs, input=x, name=_ACTIVATIONS[bare]
        )
        return x.copy_(mode.apply(Kind.ACTIVATION, operation))
    operation = Activation(func, args, kwargs, input=x, name=_ACTIVATIONS[bare])
    return mode.apply(Kind.ACTIVATION, operation)


def _gelu_slope(x: Tensor, **kwargs: Any) -> Tensor:
    ones = torch.ones_like(x)  # overwritten by the result
    slope: Tensor = torch.ops.aten.gelu_backward.grad_input(ones, x, grad_input=ones, **kwargs)
    return slope


def _silu_slope(x: Tensor) -> Tensor:
    ones = torch.ones_like(x)
    slope: Tensor = torch.ops.aten.silu_backward.grad_input(ones, x, grad_input=ones)
    return slope


_SLOPES: dict[str, Callable[..., Tensor]] = {"gelu": _gelu_slope, "silu": _silu_slope}


def _packed_slope(
    func: Any, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], name: str
) -> Any:
    """The plain gradient of an activation, in less memory where that is much."""
    options = {k: v for k, v in kwargs.items() if k != "input"}
    known = name in _SLOPES and len(args) <= 1 and not options.get("inplace")
    if not known or compact.packing(compact.SLOPES, _ACTIVATIONS[name], x) is None:
        return func(*args, **kwargs)
    approximate = {k: v for k, v in options.items() if k == "approximate"}
    return PackedSlope.call(
        x,
        Activation(func, args, kwargs, input=x, name=_ACTIVATIONS[name]).value,
        functools.partial(_SLOPES[name], **approximate),
        _ACTIVATIONS[name],
    )


def _exponential(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if mode.has_steps and args and _depends(args[0]):
        recurrence.confirm_steps(args[0])
    return func(*args, **kwargs)


def _positive_power(exponent: Any) -> bool:
    return isinstance(exponent, (int, float)) and exponent >= 1


# ---- token lookups, sums, dropout, composites ---------------------------------------------------
def _holds_parameter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a lookup is in a learned table; tables of sines and cosines are no evidence."""
    return "weight" in kwargs or any(isinstance(a, nn.Parameter) for a in args)


def _embedding(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not mode.inputs.has_ids:
        return func(*args, **kwargs)
    learned = _holds_parameter(mode.as_called, kwargs)
    result = func(*args, **kwargs)
    first, second = _bind(("input", "weight"), args[:2], kwargs)
    # torch.embedding(weight, indices), F.embedding(indices, weight)
    indices, weight = (second, first) if first.is_floating_point() else (first, second)
    return mode.inputs.lookup(indices, result, mode.name_of(weight), mode.scope.module, learned)


def _getitem(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    learned = _holds_parameter(mode.as_called, {})
    result = func(*args, **kwargs)
    if mode.inputs.has_ids and len(args) == 2 and args[0].dim() == 2:
        index = args[1][0] if isinstance(args[1], tuple) and len(args[1]) == 1 else args[1]
        if isinstance(index, Tensor) and not index.is_floating_point() and index.dim() > 0:
            return mode.inputs.lookup(
                index, result, mode.name_of(args[0]), mode.scope.module, learned
            )
    return result


def _index_select(
    mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    learned = _holds_parameter(mode.as_called, {})
    result = func(*args, **kwargs)
    source, dim, index = _bind(("input", "dim", "index"), args, kwargs)
    if mode.inputs.has_ids and dim == 0 and source.dim() == 2:
        return mode.inputs.lookup(index, result, mode.name_of(source), mode.scope.module, learned)
    return result


def _addition(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if mode.inputs.has_shared and len(args) >= 2:
        shapes = [a.shape for a in args[:2] if isinstance(a, Tensor)]
        if len(shapes) == 2 and shapes[0] != shapes[1]:
            shape = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
            module = mode.scope.module
            split = [mode.inputs.split_shared(a, shape, module) for a in args[:2]]
            args = (*(s if s is not None else a for s, a in zip(split, args[:2], strict=True)),
                    *args[2:])  # fmt: skip
    initial = _initial_state(mode, args)
    if initial is not None:
        args = tuple(a.detach() if i == initial else a for i, a in enumerate(args))
        result = func(*args, **kwargs)
        mode.absorb(result, args[initial])
        return result
    if mode.scope.rule(Kind.RESIDUAL) is not None:
        return _residual(mode, func, args, kwargs)
    return func(*args, **kwargs)


def _initial_state(mode: Interception, args: tuple[Any, ...]) -> int | None:
    """The first step of a scan adds ``decay * initial state``, a constant under the rule."""
    if not mode.has_steps or mode.scope.rule(Kind.SCAN) is None or len(args) != 2:
        return None
    if not (_depends(args[0]) and _depends(args[1])):
        return None
    roles = [recurrence.role(a) for a in args]
    return roles.index("decay") if set(roles) == {"decay", "state"} else None


def _residual(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    rule = mode.scope.rule(Kind.RESIDUAL)
    if (
        rule is None or kwargs or len(args) != 2 or not (_depends(args[0]) and _depends(args[1]))
        or args[0].shape != args[1].shape
    ):  # fmt: skip
        return func(*args, **kwargs)
    inplace = func.__name__ in ("add_", "__iadd__")
    operation = Residual(
        torch.add if inplace else func, args, {}, first=args[0], second=args[1]
    )  # fmt: skip
    result = rule.propagate(operation)
    return args[0].copy_(result) if inplace else result


def _softmax(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    rule = mode.scope.rule(Kind.SOFTMAX)
    x = args[0] if args else kwargs.get("input")
    if rule is None or not isinstance(x, Tensor) or not x.requires_grad:
        return func(*args, **kwargs)
    return rule.propagate(Activation(func, args, kwargs, input=x, name="Softmax"))


def _dropout(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    probability = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    default = func.__name__ != "feature_dropout"
    training = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", default))
    if training and probability:
        mode.scope.random.add("dropout")
    return func(*args, **kwargs)


_ENTERED: dict[Any, Any] = {}


def _enter(mode: Interception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a composite Python function of torch with this mode active inside it."""
    inner = _ENTERED.get(func)
    if inner is None:
        if not isinstance(func, types.FunctionType):
            return func(*args, **kwargs)
        # the function asks has_torch_function first and would call the mode again without end
        scope = dict(func.__globals__)
        for check in (
            "has_torch_function",
            "has_torch_function_unary",
            "has_torch_function_variadic",
        ):
            scope[check] = _no_torch_function
        inner = types.FunctionType(
            func.__code__, scope, func.__name__, func.__defaults__, func.__closure__
        )
        inner.__kwdefaults__ = func.__kwdefaults__
        _ENTERED[func] = inner
    with mode:
        return inner(*args, **kwargs)


def _no_torch_function(*_: Any) -> bool:
    return False


def _names(handler: Handler, names: str) -> dict[str, Handler]:
    return dict.fromkeys(names.split(), handler)


_HANDLERS: dict[str, Handler] = {
    **_names(_linear, "linear"),
    **_names(
        _convolution,
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    ),
    **_names(_addmm, "addmm"),
    **_names(_batch_norm, "batch_norm"),
    **_names(_contraction, "matmul __matmul__ __rmatmul__ mm bmm mv dot inner tensordot"),
    **_names(_solve, "linalg_solve_triangular solve_triangular"),
    **_names(_baddbmm, "baddbmm addbmm"),
    **_names(_einsum, "einsum"),
    **_names(_product, "mul mul_ multiply multiply_ div div_ divide divide_ true_divide"),
    **_names(_glu, "glu"),
    **_names(_fused_attention, "scaled_dot_product_attention"),
    **_names(_grid_sample, "grid_sample"),
    **_names(_layer_norm, "layer_norm"),
    **_names(_rms_norm, "rms_norm"),
    **_names(_group_norm, "group_norm"),
    **dict.fromkeys(_ACTIVATIONS, _activation),
    **{name + "_": _activation for name in _ACTIVATIONS},
    **_names(_embedding, "embedding"),
    **_names(_getitem, "__getitem__"),
    **_names(_index_select, "index_select"),
    **_names(_addition, "add add_ __add__ __radd__ __iadd__"),
    **_names(_softmax, "softmax"),
    **_names(_exponential, "exp exp_"),
    **_names(_dropout, "dropout dropout_ feature_dropout alpha_dropout dropout2d dropout1d"),
    **_names(_enter, "multi_head_attention_forward normalize local_response_norm gumbel_softmax"),
}
