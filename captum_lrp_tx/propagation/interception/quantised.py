"""Linear maps with quantised weights: what a claim to be one is checked by.

A layer whose weights are stored as codes is the map ``x @ W.T + b`` of the weights that the codes
stand for, however the package that made it spells that: a tensor class of its own, an autograd
function, an operation without a derivative. Nothing here goes by such names. The layer is run on
drawn numbers instead, and its derivative is compared with a product, once for each layer of a pass.

Rounding to codes of 8 bits or less, as of activations that are quantised while a layer runs, leaves
differences of more than :data:`ROUNDING` between such numbers and their product; the rounding of
numbers in 16 bits leaves less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from captum_lrp_tx.errors import UnsupportedModelError
from captum_lrp_tx.propagation.graph import node_name, walk
from captum_lrp_tx.propagation.operations import LinearMap

#: Relative differences (root mean squares) from which on numbers are not the same map's, by dtype.
ROUNDING: dict[torch.dtype, float] = {torch.float16: 2.0**-8, torch.bfloat16: 2.0**-8}
_ROUNDING_WIDE = 2.0**-10
#: The same between a forward pass that rounds its activations and its derivative.
STRAIGHT_THROUGH = 2.0**-4
#: The same between derivatives: layers may compute in 16 bits whatever they are given.
DERIVATIVE = 2.0**-6
#: Drawn rows of each kind.
_ROWS = 4
#: Ordinary tensors, which need no look.
PLAIN = frozenset([Tensor, torch.nn.Parameter])


def is_wrapped(x: Any) -> bool:
    """Whether a tensor is of a class that keeps its numbers in other tensors."""
    return type(x) not in PLAIN and is_traceable_wrapper_subclass(x)


class QuantisedMap(LinearMap):
    """A linear map whose weights are computed from their codes when a rule asks for them.

    ``weight`` may be given as a function. It is called every time: weights that are kept would take
    the memory that quantisation saves.
    """

    def __init__(self, *args: Any, weight: Tensor | Callable[[], Tensor], **fields: Any) -> None:
        super().__init__(*args, weight=cast(Tensor, weight), **fields)

    @property
    def weight(self) -> Tensor:
        """The weights that the codes stand for."""
        return self._weight() if callable(self._weight) else self._weight

    @weight.setter
    def weight(self, value: Tensor | Callable[[], Tensor]) -> None:
        self._weight = value


def refuse(where: str, what: str) -> NoReturn:
    """Raise for a layer that has no derivative that relevance could follow.

    Args:
        where (str): The name of the layer; empty outside of all.
        what (str): What was seen, as the end of the first sentence.

    Raises:
        UnsupportedModelError: always.
    """
    layer = f"Layer {where!r}" if where else "The forward function"
    raise UnsupportedModelError(
        f"{layer} {what}, so no relevance can pass it. If it quantises its activations while it "
        "runs (dynamic or static quantisation), use weight-only quantisation, or explain the model "
        "as it was before. If it is a product with weights, let a module of its own run it."
    )


def rounding(dtype: torch.dtype) -> float:
    """The largest relative difference between two computations of one map in this dtype."""
    return ROUNDING.get(dtype, _ROUNDING_WIDE)


def differs(x: Tensor, y: Tensor) -> float:
    """The root mean square of ``x - y``, relative to that of ``y``; infinite if not finite."""
    first, second = x.double(), y.double()
    size = float(second.square().mean().sqrt())
    difference = float((first - second).square().mean().sqrt())
    if not difference <= torch.finfo(torch.float64).max:
        return float("inf")
    return difference / size if size > 0 else float("inf") if difference > 0 else 0.0


def drawn(x: Tensor, rows: int | None = None) -> Tensor:
    """Numbers to try a layer on: normal ones, and one larger one in each row.

    The large one is what a code for the row must reach, so that the others are rounded coarsely.
    The numbers are the same every time, and no generator of the user's is touched.

    Args:
        x (Tensor): The shape, unless ``rows`` is given, the dtype and the device.
        rows (int, optional): How many vectors to draw.
    """
    generator = torch.Generator().manual_seed(0)
    shape = x.shape if rows is None else (rows, x.shape[-1])
    probe = torch.randn(shape, generator=generator)
    probe[..., 0] = float(shape[-1]) ** 0.5
    return probe.to(x.device, x.dtype)


def constant_weight(weight: Tensor) -> Tensor:
    """A quantised weight without its graph, if that leads to parameters only.

    Weights that are quantised anew in every call do: their codes are computed by functions that
    nothing sees into.
    """
    if not weight.requires_grad or weight.grad_fn is None:
        return weight.detach() if weight.requires_grad else weight
    for node in walk([weight.grad_fn]):
        is_leaf = node_name(node) == "AccumulateGrad"
        if is_leaf and not isinstance(node.variable, torch.nn.Parameter):
            return weight
    return weight.detach()


def dequantised(weight: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The ordinary tensor that a wrapped one stands for.

    Returns:
        Tensor or None: ``None`` if its class does not say, as of weights spread over machines.
    """
    try:
        with torch.no_grad():
            plain = weight.dequantize()
    except (RuntimeError, NotImplementedError, TypeError, AttributeError):
        return None
    return None if is_wrapped(plain) else plain.detach().to(dtype)


def check_wrapped(
    run: Callable[[Tensor], Tensor],
    reference: Callable[[Tensor], Tensor],
    probe: Tensor,
    where: str,
    kind: str,
) -> None:
    """Make sure that a call with a wrapped weight is the map of the dequantised weight.

    Either its own derivative is that map's (the library passes gradients straight through what it
    rounds), or its results are.

    Args:
        run (callable): The call, from its input.
        reference (callable): The same with the dequantised weight.
        probe (Tensor): What to try it on.
        where (str): The name of the layer.
        kind (str): The class of the weight, for the message.

    Raises:
        UnsupportedModelError: neither is so.
    """
    with torch.enable_grad():
        x, leaf = probe.detach().requires_grad_(), probe.detach().requires_grad_()
        got, expected = run(x), reference(leaf)
        allowed = rounding(got.dtype)
        distance = differs(got.detach(), expected.detach())
        if distance <= allowed:
            return
        grad = drawn(expected.detach()).to(got.dtype)
        back = _back(got, x, grad)
        (wanted,) = torch.autograd.grad(expected, leaf, grad)
    if distance <= STRAIGHT_THROUGH and back is not None and differs(back, wanted) <= DERIVATIVE:
        return
    refuse(
        where,
        f"(weight of class {kind}) differs from the product with its dequantised weight by "
        f"{distance:.1%}, and its derivative is not that product's",
    )


def _back(output: Tensor, x: Tensor, grad: Tensor) -> Tensor | None:
    """The derivative of a result, applied to ``grad``; ``None`` if there is none."""
    if not output.requires_grad:
        return None
    try:
        (back,) = torch.autograd.grad(output, x, grad, allow_unused=True, retain_graph=True)
    except (RuntimeError, NotImplementedError):
        return None
    return back


class Claim:
    """A layer that was found to be ``x @ W.T + b``, whatever it does inside.

    Args:
        run (callable): The layer, from rows ``(n, inputs)`` to rows ``(n, outputs)``.
        like (Tensor): An input of it: dtype, device and number of inputs.
        constant (Tensor): ``b``.
        has_derivative (bool): Whether autograd gives the product with ``W``; else ``W`` is what
            unit vectors are mapped to.
    """

    def __init__(
        self, run: Callable[[Tensor], Tensor], like: Tensor, constant: Tensor, has_derivative: bool
    ) -> None:
        self._run, self._inputs = run, like.shape[-1]
        self._dtype, self._device = like.dtype, like.device
        self.constant = constant
        self.has_derivative = has_derivative

    def back(self, grad: Tensor) -> Tensor:
        """``grad @ W`` by the layer's own derivative, which is the same everywhere.

        A graph of the explained pass would show the way to hooks that are to run once.
        """
        with torch.enable_grad():
            shape = (*grad.shape[:-1], self._inputs)
            x = torch.zeros(shape, dtype=self._dtype, device=self._device, requires_grad=True)
            made = self._run(x)
            (result,) = torch.autograd.grad(made, x, grad.to(made.dtype))
        return result

    def weight(self) -> Tensor:
        """The weights, shape ``(outputs, inputs)``, computed anew."""
        if self.has_derivative:
            like = self.constant
            return self.back(torch.eye(like.shape[-1], dtype=like.dtype, device=like.device))
        return mapped_units(self._run, self._inputs, self._dtype, self._device)


#: Unit vectors are lengthened by so much, for the bias to take less of the digits of a result.
_LENGTH = 64.0


def mapped_units(
    run: Callable[[Tensor], Tensor], inputs: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The weights of a map from what it makes of unit vectors and of zero."""
    units = torch.eye(inputs, dtype=dtype, device=device) * _LENGTH
    rows = torch.cat([units, torch.zeros_like(units[:1])]).requires_grad_()
    made = run(rows).detach()
    wide = made.to(torch.promote_types(made.dtype, torch.float32))
    return ((wide[:-1] - wide[-1:]) / _LENGTH).T.to(dtype)


def claim(run: Callable[[Tensor], Tensor], like: Tensor) -> Claim | None:
    """Try whether a layer is a linear map of each vector by itself.

    With a derivative of its own: that must be the same everywhere, linear in what arrives, and give
    what the layer does to its inputs (up to the rounding of activations to codes).  Without one:
    the layer must give what the images of unit vectors add up to.

    Args:
        run (callable): The layer, from rows to rows, each of dtype and device of ``like``.
        like (Tensor): An input of the layer.

    Returns:
        Claim or None: ``None`` if it is something else, or nothing that can be told.
    """
    probe = drawn(like, 2 * _ROWS)
    first, second = probe[:_ROWS], probe[_ROWS:]
    rows = torch.cat([first, second, second, first, torch.zeros_like(first[:1])])
    with torch.enable_grad():
        leaf = rows.detach().requires_grad_()
        made = run(leaf)
        if made.shape[:-1] != rows.shape[:-1] or not made.is_floating_point():
            return None
        constant = made.detach()[-1]
        one, other = drawn(made.detach(), 2 * _ROWS).chunk(2)
        back = _back(made, leaf, torch.cat([one, one, other, one + other, one[:1]]))
    if not bool(torch.isfinite(constant).all()):
        return None
    change = (made.detach().double() - constant.double())[:-1]
    allowed = rounding(made.dtype)
    if back is None:
        weight = mapped_units(run, like.shape[-1], like.dtype, like.device)
        if differs(change, rows[:-1].double() @ weight.double().T) > allowed:
            return None
        return Claim(run, like, constant, has_derivative=False)
    grads = torch.cat([one, one, other, one + other]).double()
    a, b, c, d = back[:-1].double().chunk(4)
    if differs(a, b) > allowed or differs(d, a + c) > DERIVATIVE:
        return None
    forward, backward = (change * grads).sum(-1), (rows[:-1].double() * back[:-1]).sum(-1)
    scale = float((change.norm(dim=-1) * grads.norm(dim=-1)).square().mean().sqrt())
    scale /= change.shape[-1] ** 0.5  # the size of a product of vectors that have no relation
    distance = float((forward - backward).square().mean().sqrt())
    if not distance <= STRAIGHT_THROUGH * scale:
        return None
    return Claim(run, like, constant, has_derivative=True)
