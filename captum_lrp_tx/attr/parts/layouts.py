"""Which axis of a tensor counts examples, heads, tokens and features."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.propagation.operations import FusedAttention, PatternProduct

#: Moves the entries of a tensor.
Shaped = Callable[[Tensor], Tensor]


def row_layout(shape: torch.Size, batch: int) -> Callable[[Tensor], Tensor]:
    """What brings a residual stream into the shape ``(batch, tokens, features)``.

    Args:
        shape (torch.Size): Of the stream; its last dimension holds the features. Tokens may come
            before examples, unless there are as many of both (:func:`check_examples`).
        batch (int): Number of examples.
    """
    if len(shape) == 1:  # one example without its dimension
        return lambda x: x[None, None]
    if len(shape) == 3 and shape[0] != batch and shape[1] == batch:
        return lambda x: x.transpose(0, 1)
    if len(shape) == 2 and shape[0] != batch and shape[0] % batch == 0:
        return lambda x: x.reshape(batch, -1, x.shape[-1])
    if len(shape) == 2:
        return lambda x: x.unsqueeze(1)
    return lambda x: x.flatten(1, -2)


def check_examples(streams: Sequence[Tensor], batch: int, leaves: Sequence[Tensor]) -> None:
    """Look where shapes do not tell the examples of residual streams whether they were told right.

    What was taken for the first example must come from the first example of the inputs alone.

    Args:
        streams (sequence of Tensor): With their graph.
        batch (int): Number of examples.
        leaves (sequence of Tensor): What is explained.

    Raises:
        InputError: It comes from others.
    """
    leaves = [leaf for leaf in leaves if leaf.shape[:1] == (batch,)]
    unsure = [x for x in streams if batch > 1 and not _is_clear(x.shape, batch)]
    if not unsure or not leaves:
        return
    first = [row_layout(x.shape, batch)(x)[0] for x in unsure]
    # weights, since the outputs of a norm may sum up to a constant
    weights = [torch.arange(1, x.numel() + 1, device=x.device).sin().view_as(x) for x in first]
    grads = torch.autograd.grad(
        first, leaves, [w.to(x) for w, x in zip(weights, first, strict=True)],
        retain_graph=True, allow_unused=True,
    )  # fmt: skip
    if any(grad is not None and bool(grad[1:].any()) for grad in grads):
        raise InputError(
            f"{batch} examples cannot be told from tokens in a residual stream of shape "
            f"{tuple(unsure[0].shape)}: what seems to be its first example depends on others. "
            "Explain one at a time."
        )


def _is_clear(shape: torch.Size, batch: int) -> bool:
    """Whether examples come first, and no other dimension has as many entries."""
    return list(shape[:-1]).count(batch) == 1 and shape[0] == batch


def head_layouts(
    operation: FusedAttention | PatternProduct, result: Tensor, batch: int, tokens: int
) -> list[Shaped]:
    """What may bring a result of attention into the shape ``(batch, heads, tokens, channels)``.

    Examples, heads and windows come in any order, also two of them in one axis, and shapes do not
    tell which is which: :func:`told_layout` does.  Windows of one example stand behind each other
    along the tokens.

    Args:
        operation (FusedAttention or PatternProduct): The attention.
        result (Tensor): Its result.
        batch (int): Number of examples.
        tokens (int): Of each example.

    Returns:
        list of callable: Those with fewer windows come first; none where heads cannot be told
        (attention written entry by entry).
    """
    order = list(range(result.dim()))
    if isinstance(operation, PatternProduct):
        found = _axes(operation)
        if found is None:
            return []
        order = found or order
    if not 2 <= len(order) <= 5:
        return []
    *leading, queries, _ = (result.shape[axis] for axis in order)
    # no axis for examples: heads that all of them share
    axes: list[int | None] = [i for i, size in enumerate(leading) if size % batch == 0]
    axes = axes or [None]
    layouts = []
    for axis in axes[:1] if batch == 1 else axes:
        sizes = [size // batch if i == axis else size for i, size in enumerate(leading)]
        wide = [i + 1 for i, size in enumerate(sizes) if size > 1]
        for inner in (False, True) if axis is not None and 1 < batch < leading[axis] else (False,):
            for count in range(len(wide) + 1 if queries != tokens else 1):
                for windows in itertools.combinations(wide, count):
                    layouts.append(_layout(order, batch, axis, inner, windows))
    return layouts


def _layout(
    order: list[int], batch: int, axis: int | None, inner: bool, windows: tuple[int, ...]
) -> Shaped:
    """Examples in an axis, outside or inside of what else it holds; the rest is heads or windows.

    Args:
        order (list of int): Of the axes, tokens and channels last.
        batch (int): Number of examples.
        axis (int, optional): That has the examples in it.
        inner (bool): Whether neighbours in it are of different examples.
        windows (tuple of int): Axes of windows, once the examples are in axis 0.
    """

    def shaped(x: Tensor) -> Tensor:
        x = x.permute(order)
        if axis is None:
            x = x.unsqueeze(0)
        else:
            sizes = (-1, batch) if inner else (batch, -1)
            x = torch.unflatten(x, axis, sizes).movedim(axis + inner, 0)
        heads = [i for i in range(1, x.dim() - 2) if i not in windows]
        x = x.permute(0, *heads, *windows, -2, -1).flatten(1 + len(heads), -2)
        return x.flatten(1, len(heads)) if heads else x.unsqueeze(1)

    return shaped


def told_layout(
    layouts: list[Shaped], result: Tensor, written: Tensor, rows: Shaped
) -> Shaped | None:
    """The layout in which heads write to their example, each to the same tokens and once.

    Where a result writes to shows in gradients: those of tokens that are multiplied by powers of
    two arrive multiplied by the same.

    Args:
        layouts (list of callable): See :func:`head_layouts`.
        result (Tensor): Of the attention.
        written (Tensor): What the branch writes, computed from the result.
        rows (callable): Brings that into the shape ``(batch, tokens, features)``.
    """
    if len(layouts) < 2:
        return layouts[0] if layouts else None
    batch, tokens = rows(written.detach()).shape[:2]
    numbers = torch.arange(batch * tokens, device=written.device).view(batch, tokens)
    own = numbers[:, :1, None] // tokens
    example = _numbers(own[..., 0], batch, result, written, rows)
    layouts = [
        shaped for shaped in layouts
        if len(shaped(result)) != batch or _fits(example(shaped), own)
    ]  # fmt: skip
    if len({shaped(result).shape[1] for shaped in layouts}) < 2:  # no windows
        return layouts[0] if layouts else None
    token = _numbers(numbers, batch * tokens, result, written, rows)
    for shaped in layouts:
        places = token(shaped)
        ordered = places.sort(-1).values
        is_twice = bool(((ordered.diff() == 0) & (ordered[..., 1:] >= 0)).any())
        is_known = bool((places >= 0).any())
        if is_known and not is_twice and _fits(places, places.amax(1, keepdim=True)):
            return shaped
    return None


def _fits(found: Tensor, expected: Tensor) -> bool:
    """Whether the numbers that are known are as expected."""
    return bool(((found == expected) | (found < 0)).all())


def _numbers(
    places: Tensor, count: int, result: Tensor, written: Tensor, rows: Shaped
) -> Callable[[Shaped], Tensor]:
    """The numbers of the places that a result writes to, in a layout; -1 for several at once.

    Args:
        places (Tensor): Numbers from 0 below ``count``, to be expanded to ``(batch, tokens)``.
        result, written, rows: See :func:`told_layout`.
    """
    like = rows(written.detach())
    weights = torch.arange(1, like.shape[-1] + 1, device=like.device).sin().to(like)
    base = 8 if like.dtype == torch.float16 else 32
    digits = range(next(n for n in itertools.count(1) if base**n >= count))
    powers = [0 * places, *(places // base**i % base for i in digits)]
    grads: list[Tensor] = []
    for power in powers:
        seeds = (weights * 2.0 ** power.unsqueeze(-1)).to(like).expand_as(like)
        arriving = moved_back(seeds, rows, written)
        grads += torch.autograd.grad(written, result, arriving, retain_graph=True)

    def numbers(shaped: Shaped) -> Tensor:
        plain, *larger = (shaped(grad).double().square().sum(-1) for grad in grads)
        number, known = torch.zeros_like(plain), plain > 0
        for i, size in enumerate(larger):
            power = (size / plain).log2() / 2
            known = known & ((power - power.round()).abs() < 0.1)
            number = number + power.round() * base**i
        return torch.where(known, number, -1.0)

    return numbers


def moved_back(kept: Tensor, shaped: Shaped, like: Tensor) -> Tensor:
    """Entries where they were before, by the transpose of what moved them.

    Args:
        kept (Tensor): In the shape that ``shaped`` gives.
        shaped (callable): Moves entries only.
        like (Tensor): Has the shape that they had.
    """
    with torch.enable_grad():
        leaf = torch.zeros_like(like, requires_grad=True)
        (back,) = torch.autograd.grad(shaped(leaf), leaf, kept)
    return back


def _axes(operation: PatternProduct) -> list[int] | None:
    """Order of the axes of a product; empty if it is as it should be, ``None`` if unknown."""
    equation = operation.args[0]
    if not isinstance(equation, str):
        matrix = {"matmul", "bmm", "__matmul__", "baddbmm", "mm"}
        name = getattr(operation.func, "__name__", "")
        is_first = len(operation.patterns) == 1 and operation.patterns[0] == min(operation.operands)
        return [] if name in matrix and is_first else None
    terms, _, after = equation.replace(" ", "").partition("->")
    first, _, second = terms.partition(",")
    if not after or "." in equation or "," in second or len(operation.patterns) != 1:
        return None
    own, other = (first, second) if operation.patterns[0] == 1 else (second, first)
    rows = [c for c in after if c in own and c not in other]
    channels = [c for c in after if c in other and c not in own]
    shared = [c for c in after if c in own and c in other]
    if len(rows) != 1 or len(channels) != 1 or len(shared) > 2:
        return None
    return [after.index(c) for c in (*shared, *rows, *channels)]
