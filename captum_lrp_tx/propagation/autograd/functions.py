"""Autograd functions: the forward pass is the stock operation, the backward pass is a rule.

Relevance travels as *modified gradient*: with ``g`` arriving at an output ``y`` its relevance is
``y * g``, and a rule is whatever turns that into the ``g`` of the inputs.  Every forward result
here is that of the stock kernel, bit for bit.  Backward passes touch nothing thread-local, so
they also run on autograd's own device threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from captum_lrp_tx.propagation.autograd import compact
from captum_lrp_tx.propagation.autograd.copies import passed_on
from captum_lrp_tx.propagation.autograd.pattern_product import (
    LOW_PRECISION,
    attention_with_logsumexp,
    transposed_pattern_product,
)
from captum_lrp_tx.propagation.autograd.rows import is_packed


def safe_ratio(
    numerator: Tensor, denominator: Tensor, epsilon: float = 0.0, wide: bool = False
) -> Tensor:
    """``numerator / (denominator + epsilon * sign(denominator))`` with 0/0 := 0 and x/0 := 0.

    ``sign(0)`` counts as +1, as in Captum.  Half-precision arguments are divided in float32, where
    a small epsilon does not vanish; the result has the dtype of ``numerator``, or stays in float32
    if ``wide`` (softplus(x) / x and the like exceed the range of float16).
    """
    dtype = numerator.dtype
    if dtype in LOW_PRECISION:
        dtype = torch.float32 if wide else dtype
        numerator, denominator = numerator.float(), denominator.float()
    if epsilon:
        denominator = denominator + torch.where(denominator < 0, -epsilon, epsilon)
    tiny = torch.finfo(denominator.dtype).tiny
    is_large = denominator.numel() >= compact.LARGE and denominator.device.type == "cpu"
    if is_large and not is_packed(denominator) and denominator.abs().amin() >= tiny:
        return (numerator / denominator).to(dtype)  # a look takes a third of the time of a mask
    ratio = numerator / denominator
    return ratio.masked_fill_(denominator.abs() < tiny, 0.0).to(dtype)


def nonzero(x: Tensor) -> Tensor:
    """``x`` with exact zeros replaced by a tiny number, to divide relevance by an input.

    Rules that give relevance to inputs of value zero (flat, z-box) express it as ``R / x``; the
    attribution multiplies by the same replaced input, so nothing is lost.
    """
    return torch.where(x == 0, torch.full_like(x, 1e-18 if x.dtype != torch.float16 else 1e-4), x)


class RuleFunction(Function):
    """Base of the functions of this module: ``call`` is ``apply`` with a type."""

    @classmethod
    def call(cls, *args: Any) -> Tensor:
        """Apply the function; the result is a tensor that carries the rule's backward pass."""
        return cast(Tensor, cls.apply(*args))  # type: ignore[no-untyped-call]


class ScaleGradient(RuleFunction):
    """Identity whose gradient is multiplied by a constant (uniform rule: 1/2 to each factor)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x) if x.layout is torch.strided else x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Any) -> Any:
        return grad[0] * ctx.factor, None


class Stabilize(RuleFunction):
    """Identity on ``z``; gradient multiplied by ``z / (z + epsilon sign(z))`` (epsilon rule).

    For a small epsilon the factor is one up to rounding almost everywhere, and of large tensors
    only the entries where it is not are kept.
    """

    #: Tensors up to this size keep all their factors, which takes fewer calls.
    SMALL: ClassVar[int] = 1 << 14
    #: Deviations of the factor from one that are below rounding in the working precision.
    _UNSEEN: ClassVar[dict[torch.dtype, float]] = {torch.float64: 2.0**-52}

    @staticmethod
    def forward(ctx: Any, z: Tensor, epsilon: float) -> Tensor:
        where, part = None, z
        if z.numel() > Stabilize.SMALL:
            largest = epsilon / Stabilize._UNSEEN.get(z.dtype, 2.0**-22)
            is_close = (z < largest).logical_and_(z > -largest)
            where = _true_entries(is_close.flatten())
            where = where if where.numel() * 8 < z.numel() else None
        if where is not None:
            part = z.flatten()[where]
        magnitude = part.abs() if z.dtype not in LOW_PRECISION else part.abs().float()
        factor = magnitude / (magnitude + epsilon)
        ctx.save_for_backward(factor, where)
        return passed_on(z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Any) -> Any:
        factor, where = ctx.saved_tensors
        if where is None:
            return (grad[0] * factor).to(grad[0].dtype), None
        flat = grad[0].flatten()
        changed = (flat[where] * factor).to(flat.dtype)
        return flat.index_copy(0, where, changed).view(grad[0].shape), None


def _true_entries(mask: Tensor) -> Tensor:
    """Indices of the few true entries of a mask: eight are read at once, as one number."""
    odd = mask.numel() % 8 or mask.storage_offset() % 8 or mask.stride(0) != 1
    if odd or mask.device.type != "cpu":
        return mask.nonzero().squeeze(1)
    words = mask.view(torch.int64).nonzero()
    within = mask.view(-1, 8)[words.squeeze(1)].nonzero()
    return words.squeeze(1)[within[:, 0]] * 8 + within[:, 1]


class Substitute(RuleFunction):
    """Value of ``y``, relevance through ``z``: gives ``z`` the gradient ``share * y g / z``.

    ``z`` is the layer computed with modified weights or inputs; its plain gradient then carries
    the rule.  ``share`` (a tensor or a number) picks the part of the relevance that takes this
    way, e.g. the outputs of one sign.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor, share: Tensor | float, epsilon: float) -> Tensor:
        ctx.save_for_backward(y, z, *([share] if isinstance(share, Tensor) else []))
        ctx.share, ctx.epsilon = share if not isinstance(share, Tensor) else None, epsilon
        return y.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Any) -> Any:
        y, z, *rest = ctx.saved_tensors
        share = rest[0] if rest else ctx.share
        return None, share_of_way(grad[0], y, z, share, ctx.epsilon), None, None


def share_of_way(
    grad: Tensor, y: Tensor, z: Tensor, share: Tensor | float, epsilon: float
) -> Tensor:
    """``share * grad * y / z`` within the range of the gradient's dtype."""
    if y.dtype not in LOW_PRECISION:
        return grad * share * safe_ratio(y, z, epsilon)
    # y / epsilon is beyond float16 where z is 0; nothing can go to z there in any precision
    ratio = safe_ratio(y.float(), z.float(), epsilon).masked_fill(z == 0, 0.0)
    largest = torch.finfo(y.dtype).max
    return (grad.float() * share * ratio).clamp(-largest, largest).to(y.dtype)


class Combine(RuleFunction):
    """Sum of gradients over several :class:`Substitute` ways that share one value."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, *ways: Tensor) -> Tensor:
        ctx.count = len(ways)
        return y.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Any) -> Any:
        return (None, *(grad[0] for _ in range(ctx.count)))


class WithValue(RuleFunction):
    """Value of ``y``, gradient to ``z``: one function computed in two ways."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor) -> Tensor:
        ctx.stands_for = "Alias"
        return y.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Any) -> Any:
        return None, grad[0]


class SignedPart(RuleFunction):
    """Positive or negative part of ``x``; the gradient passes where the part is not zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, positive: bool) -> Tensor:
        part = x.clamp(min=0) if positive else x.clamp(max=0)
        ctx.save_for_backward(part != 0)
        return part

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Any) -> Any:
        (passes,) = ctx.saved_tensors
        return grad[0] * passes, None


class Flatten(RuleFunction):
    """``ones_like(x)``; gradient divided by ``x`` so that ``x * g`` is the relevance itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.clone())
        return torch.ones_like(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grad[0] / nonzero(x)


class PassThrough(RuleFunction):
    """``value()``; relevance of an output goes to the input in its place: ``g_x = g y / x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Callable[[], Tensor], stands_for: str) -> Tensor:
        ctx.stands_for = stands_for
        y = value()
        ratio = safe_ratio(y, x, wide=True)
        is_packed = compact.packs(compact.RATIOS, stands_for, x)
        ctx.save_for_backward(*(compact.pack(ratio) if is_packed else (ratio, None)))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Any) -> Any:
        ratio, rest = ctx.saved_tensors
        if rest is not None:
            return compact.times(grad[0], ratio, rest), None, None
        return (grad[0] * ratio).to(grad[0].dtype), None, None


class PackedSlope(RuleFunction):
    """``value()`` with the plain gradient of an activation, whose slope is kept in three bytes.

    ``slope(x)`` gives the derivative.  For large tensors of known activations only: the input of
    the activation is what gradient x input keeps most of.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        value: Callable[[], Tensor],
        slope: Callable[[Tensor], Tensor],
        stands_for: str,
    ) -> Tensor:
        ctx.stands_for = stands_for
        ctx.save_for_backward(*compact.pack(slope(x)))
        return value()  # last, when the temporary tensors are gone

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Any) -> Any:
        return compact.times(grad[0], *ctx.saved_tensors), None, None, None


class NormalizedSum(RuleFunction):
    """``first + second``; each gets a share of the relevance by the size of what it would get.

    With ``r_a = first * g`` and ``r_b = second * g`` summed over one example, the relevance ``R``
    of the sum is split as ``|r_a| : |r_b|`` and each part keeps its distribution over the entries.
    ``value`` is the sum as the model computes it, ``batch_dim`` tells the examples apart.
    """

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, value: Tensor, batch_dim: int) -> Tensor:
        ctx.stands_for = "Add"
        # copies: residual connections may go on in place
        ctx.save_for_backward(first.clone(), second.clone())
        ctx.dims = [i for i in range(first.dim()) if i != batch_dim]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Any) -> Any:
        g = grad[0]
        wide = torch.float32 if g.dtype in LOW_PRECISION else g.dtype
        parts = [(x.to(wide) * g.to(wide)).sum(ctx.dims, keepdim=True) for x in ctx.saved_tensors]
        sizes = parts[0].abs() + parts[1].abs()
        total = parts[0] + parts[1]
        # |r| / sizes * R / r
        factors = [safe_ratio(p.sign() * total, sizes) for p in parts]
        return *((g * f).to(g.dtype) for f in factors), None, None


class LinearValue(RuleFunction):
    """A linear map: value from ``run()``, gradient from ``back(g)``.

    For maps whose stock operation will not do with constant weights: torch picks another matrix
    product for weights that require a gradient, which differs in the last bit, and its batch norm
    in eval mode has wrong gradients on the CPU for arriving gradients that are not contiguous
    (seen with torch 2.13 and 2.15).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, run: Callable[[], Tensor], back: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.back = back
        with torch.enable_grad():  # torch looks at the flag of the transposed weight
            return run().detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Any) -> Any:
        return ctx.back(grad[0]), None, None


class GatedLinearUnit(RuleFunction):
    """``F.glu`` with the gate ``sigmoid(b)`` constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.dim = dim
        return torch.nn.functional.glu(x, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Any) -> Any:
        (x,) = ctx.saved_tensors
        signal, gate = x.chunk(2, ctx.dim)
        return torch.cat([grad[0] * gate.sigmoid(), torch.zeros_like(signal)], ctx.dim), None


class ConstantNormalizer(RuleFunction):
    """A fused norm with its divisor constant: ``y = (x - mean) * inv_std * w + b``.

    ``dims`` are the dimensions normalised over in the view ``shape`` of ``x`` (groups), ``center``
    says whether the mean is subtracted (layer and group norm) or not (RMS norm).  ``run()`` gives
    ``y`` and ``inv_std``; only the latter and the weight are kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        run: Callable[[], tuple[Tensor, Tensor]],
        weight: Tensor | None,
        shape: tuple[int, ...],
        dims: tuple[int, ...],
        center: bool,
    ) -> Tensor:
        y, inv_std = run()
        ctx.save_for_backward(inv_std, weight)
        ctx.shape, ctx.dims, ctx.center = shape, dims, center
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Any) -> Any:
        inv_std, weight = ctx.saved_tensors
        # in place from the first copy on: less to allocate and to write
        g = grad[0] if weight is None else grad[0] * weight
        if g.shape != ctx.shape:
            g = g.reshape(ctx.shape)
        if ctx.center:
            mean = g.mean(ctx.dims, keepdim=True)
            g = g - mean if weight is None else g.sub_(mean)
        is_own = (weight is not None or ctx.center) and g.dtype == inv_std.dtype
        g = g.mul_(inv_std) if is_own else g * inv_std
        return g.reshape(grad[0].shape).to(grad[0].dtype), None, None, None, None, None


class ConstantPattern(RuleFunction):
    """Fused attention with the pattern constant: backward is ``dV = P^T G`` and nothing else.

    The forward pass runs the stock kernel on the same arguments; memory of the backward pass stays
    linear in the number of tokens (:mod:`~.pattern_product`).
    """

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        scale: float | None,
        kwargs: dict[str, Any],
    ) -> Tensor:
        output, logsumexp = attention_with_logsumexp(
            query, key, value, mask, is_causal, scale, kwargs
        )
        ctx.save_for_backward(query, key, mask, logsumexp)
        ctx.is_causal, ctx.scale = is_causal, scale
        ctx.value_shape = value.shape
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Any) -> Any:
        query, key, mask, logsumexp = ctx.saved_tensors
        result = transposed_pattern_product(
            query, key, grad[0], mask, ctx.is_causal, ctx.scale, logsumexp
        )
        return result.sum_to_size(ctx.value_shape).to(grad[0].dtype), *(None,) * 6
