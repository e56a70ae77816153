"""Layers of quantised weights that run as one operation of a package's own.

Function modes do not see ``torch.autograd.Function.apply``, so such a layer is known by its module:
one that torch did not define, with nothing of torch's inside and codes of its own.  What it does is
then checked (:mod:`~.quantised`), and a linear map is handed to the rule in force.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lrp_tx.propagation.autograd.functions import LinearValue
from captum_lrp_tx.propagation.autograd.handing_over import spread_last
from captum_lrp_tx.propagation.autograd.rows import is_packed
from captum_lrp_tx.propagation.graph import Node
from captum_lrp_tx.propagation.hygiene.hooks import Hooks
from captum_lrp_tx.propagation.interception import quantised
from captum_lrp_tx.propagation.interception.constant_weights import apply_linear
from captum_lrp_tx.propagation.interception.linear_maps import fold_last
from captum_lrp_tx.propagation.interception.underived import has_no_derivative
from captum_lrp_tx.propagation.judging.coverage import is_ours, made_since
from captum_lrp_tx.propagation.state.scope import next_sequence_number, suspended

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context

#: Numbers of these types are weights; others are codes.
_NUMBERS = frozenset([torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool])

#: Differences from a product that are the arithmetic's own, in units of its smallest step.
_OWN_ROUNDING = 64


def candidates(modules: Sequence[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """Modules that may be a linear map of a package's own, by what they store."""
    return [
        (name, module)
        for name, module in modules
        if not _is_torchs(type(module))
        and _is_leaf(module)
        and any(_stores(part) for part in (module, *module._modules.values()))
    ]


def _is_torchs(kind: type) -> bool:
    return kind.__module__.startswith("torch.nn.")


def _is_leaf(module: nn.Module) -> bool:
    """Whether no module inside is a layer; one that only stores something is none."""
    return not any(
        child is not None and (child._parameters or child._modules or _is_torchs(type(child)))
        for child in module._modules.values()
    )


def _stores(module: nn.Module | None) -> bool:
    """Whether there are codes, or what may hold some: a tensor of another class, a C++ object."""
    if module is None:
        return False
    for store in (module._parameters, module._buffers, module.__dict__):
        for value in store.values():
            if isinstance(value, Tensor):
                if _is_code(value):
                    return True
            elif isinstance(value, torch.ScriptObject):
                return True
    return False


def _is_code(tensor: Tensor) -> bool:
    # weights may be packed into tensors of any type
    return tensor.dtype not in _NUMBERS or type(tensor) not in quantised.PLAIN


class OpaqueMaps:
    """Hooks on modules that may be opaque linear maps, for one forward pass.

    Args:
        context (Context): Of the pass. The hooks have to be put on after those of the
            scope: they see inputs as the module gets them, and outputs before all others.
        modules (sequence of (str, Module)): What :func:`candidates` found.
    """

    def __init__(self, context: Context, modules: Sequence[tuple[str, nn.Module]]) -> None:
        self._context, self._modules = context, modules
        self._hooks = Hooks()

    def again(self, context: Context) -> OpaqueMaps:
        """The same for a second run of a part of the model."""
        return OpaqueMaps(context, self._modules)

    def __enter__(self) -> OpaqueMaps:
        self._hooks.__enter__()
        for name, module in self._modules:
            self._hook(name, module)
        return self

    def __exit__(self, *exc: Any) -> None:
        self._hooks.__exit__(*exc)

    def _hook(self, name: str, module: nn.Module) -> None:
        started: list[tuple[Tensor | None, int, int]] = []
        context = self._context

        # another thread may call them without kwargs: see Hooks.before
        def enter(_module: nn.Module, args: Any, kwargs: Any = None) -> None:
            if context.scope.is_current():
                x = args[0] if len(args) == 1 and not kwargs else None
                start, underived = next_sequence_number(), len(context.underived)
                started.append((x if _is_signal(x) else None, start, underived))

        def leave(_module: nn.Module, args: Any, kwargs: Any = None, output: Any = None) -> Any:
            if not context.scope.is_current():
                return None
            x, start, underived = started.pop()
            if x is None or not isinstance(output, Tensor) or not torch.is_grad_enabled():
                return None
            if not _is_opaque(output, start, module):
                return None
            found = _claim(context, name, module, x, output)
            if found is None:
                return None
            del context.underived[underived:]
            return _as_linear_map(context, name, module, x, output, found)

        self._hooks.before(module, enter, with_kwargs=True)
        self._hooks.after(module, leave, with_kwargs=True, always_call=True, prepend=True)


def _is_signal(x: Any) -> bool:
    with torch._C.DisableTorchFunction():  # not to be asked by the mode: this runs in every pass
        return isinstance(x, Tensor) and x.requires_grad and x.dim() > 0


def _is_opaque(output: Tensor, start: int, module: nn.Module) -> bool:
    """Whether an autograd function that nothing sees into made a result, or one without any."""
    with torch._C.DisableTorchFunction():
        if not output.is_floating_point():
            return False
        if output.requires_grad:
            return any(_is_foreign(node) for node in made_since(output.grad_fn, start))
        return any(_is_code(t) for t in (*module.parameters(), *module.buffers()))


def _is_foreign(node: Node) -> bool:
    if hasattr(type(node), "_forward_cls"):
        return not is_ours(node)
    return has_no_derivative(node)


def _claim(
    context: Context, name: str, module: nn.Module, x: Tensor, output: Tensor
) -> quantised.Claim | None:
    """Whether the module is a linear map, asked once in a pass."""
    if id(module) not in context.claims:

        def run(rows: Tensor) -> Tensor:
            # its inputs require a gradient: some packages repack weights for calls without
            made: Tensor = module.forward(rows)
            return made

        devices = [x.device] if x.is_cuda else []
        with suspended(), torch.random.fork_rng(devices):  # our own calls are none of the model's
            try:
                tried = quantised.claim(run, x.detach())
            except Exception:  # whatever a layer raises that takes other inputs only
                tried = None
        context.claims[id(module)] = tried
    claim: quantised.Claim | None = context.claims[id(module)]
    if claim is None and not output.requires_grad:
        quantised.refuse(
            name or context.running(),
            f"({type(module).__name__}) gives results without a derivative that are not those of "
            "a linear map",
        )
    return claim


def _as_linear_map(
    context: Context,
    name: str,
    module: nn.Module,
    x: Tensor,
    output: Tensor,
    claim: quantised.Claim,
) -> Any:
    """The result once more, with the backward pass of the rule in force."""
    dtype = x.dtype
    with suspended():  # our own calls are none of the model's
        value = output.detach()
        bias = claim.constant.to(value.dtype) if bool(claim.constant.any()) else None
        source = None if bias is None else _source(module, bias)

    def back(grad: Tensor) -> Tensor:
        if claim.has_derivative and not is_packed(grad):
            return claim.back(grad)
        return (grad @ weight().to(grad.dtype)).to(dtype)

    def weight() -> Tensor:
        with suspended():
            return claim.weight().to(dtype)

    def call(i: Tensor, *_: Any) -> Tensor:
        return LinearValue.call(i, lambda: value, back)

    with suspended():
        operation = quantised.QuantisedMap(
            call, (x,), {}, context.absorber(source),
            input=x, weight=weight, bias=bias,
            apply=_product, distribute=spread_last, by_row=True, channel=-1, fold=fold_last,
        )  # fmt: skip
        result = apply_linear(context, operation)
        if context.scope.ledger is not None:
            plain = torch.nn.functional.linear(x.detach(), weight(), bias)
            if quantised.differs(value, plain) > _OWN_ROUNDING * torch.finfo(value.dtype).eps:
                name = f"{name or 'the model'}: rounding of its activations"
                context.absorb(result, value - plain, name=name)
    return result


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, weight)


def _source(module: nn.Module, bias: Tensor) -> Tensor | None:
    """The parameter or buffer that a bias is, which gives it its name."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.shape != bias.shape or not tensor.is_floating_point():
            continue
        if quantised.differs(bias, tensor.detach()) <= quantised.DERIVATIVE:  # rounded, maybe
            return tensor
    return None
