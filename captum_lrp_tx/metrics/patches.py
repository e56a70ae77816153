"""Masking images: patches or pixels replaced by a value, or patches taken out of the sequence."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Union

import torch
from torch import Tensor, nn

from captum_lrp_tx.errors import InputError, UnsupportedModelError
from captum_lrp_tx.metrics.batches import Batch
from captum_lrp_tx.metrics.blocks import transformer_blocks
from captum_lrp_tx.metrics.masking import Masker
from captum_lrp_tx.propagation.hygiene.hooks import Hooks, guard
from captum_lrp_tx.propagation.model.modules import find_modules

Size = Union[int, tuple[int, int]]
#: Class and distillation token, and registers.
_PREFIX = 16


class MaskPatches(Masker):
    """Replaces patches of an image by a value.

    Args:
        patch_size (int or (int, int)): Height and width; 1 for pixels. Patches at the lower and
            right border may be smaller.
        value (float or Tensor): What pixels are replaced by, in the units of the inputs: a number,
            or a tensor that broadcasts to ``(channels, height, width)``. For inputs scaled to
            -1..1 black is -1.

    Example::

        >>> masker = MaskPatches(2, value=-1.0)
        >>> batch = Batch.of(torch.zeros(1, 1, 4, 4))
        >>> masker.features(batch).shape
        torch.Size([1, 4])
        >>> masker.masked(batch, torch.tensor([[True, False, False, False]])).main[0, 0, 0]
        tensor([-1., -1.,  0.,  0.])
    """

    def __init__(self, patch_size: Size, value: float | Tensor = 0.0) -> None:
        self.patch_size = patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size)
        if min(self.patch_size) < 1:
            raise InputError(f"patch_size must be positive, not {patch_size}")
        self.value = value

    def __repr__(self) -> str:
        value = "a tensor" if isinstance(self.value, Tensor) else f"{self.value:g}"
        down, across = self.patch_size
        size = str(down) if down == across else f"({down}, {across})"
        return f"{type(self).__name__}({size}, value={value})"

    def _grid(self, batch: Batch) -> tuple[int, int]:
        images = batch.main
        if images.dim() != 4 or not images.is_floating_point():
            raise InputError(
                "patches are masked in float images of shape (examples, channels, height, width), "
                f"not in {images.dtype} of shape {tuple(images.shape)}"
            )
        (height, width), (down, across) = images.shape[2:], self.patch_size
        return -(-height // down), -(-width // across)

    def features(self, batch: Batch) -> Tensor:
        rows, columns = self._grid(batch)
        return torch.ones(len(batch), rows * columns, dtype=torch.bool)

    def scores(self, attributions: Tensor, batch: Batch) -> Tensor:
        rows, columns = self._grid(batch)
        (height, width), (down, across) = batch.main.shape[2:], self.patch_size
        shape = tuple(attributions.shape)
        if shape[:1] != (len(batch),):
            raise InputError(f"attributions of shape {shape} for {len(batch)} images")
        if attributions.dim() == 4:
            attributions = attributions.sum(1)
        if attributions.dim() == 3 and tuple(attributions.shape[1:]) == (height, width):
            edge = (0, columns * across - width, 0, rows * down - height)
            pixels = nn.functional.pad(attributions, edge)
            blocks = pixels.reshape(len(batch), rows, down, columns, across)
            return blocks.sum((2, 4)).flatten(1)
        if attributions.dim() == 3 and tuple(attributions.shape[1:]) == (rows, columns):
            return attributions.flatten(1)
        if attributions.dim() == 2:  # tokens: the class token and its like come first
            # a model drops what is no whole patch, or fills it up
            grids = [(rows, columns), (height // down, width // across)]
            fitting = [g for g in dict.fromkeys(grids) if _fits(attributions.shape[1], *g)]
            if len(fitting) == 1:
                down, across = fitting[0]
                found = attributions[:, attributions.shape[1] - down * across :]
                edge = (0, columns - across, 0, rows - down)
                return nn.functional.pad(found.reshape(-1, down, across), edge).flatten(1)
        raise InputError(
            f"attributions of shape {shape} are neither those of pixels nor, beyond doubt, of the "
            f"{rows} x {columns} patches of images of {height} x {width}; give the patch size of "
            "the model and images whose sides are multiples of it, or relevance of pixels"
        )

    def masked(self, batch: Batch, hidden: Tensor) -> Batch:
        rows, columns = self._grid(batch)
        (height, width), (down, across) = batch.main.shape[2:], self.patch_size
        grid = hidden.to(batch.main.device).reshape(len(batch), 1, rows, columns)
        pixels = grid.repeat_interleave(down, 2).repeat_interleave(across, 3)
        value = torch.as_tensor(self.value, dtype=batch.main.dtype, device=batch.main.device)
        try:
            images = torch.where(pixels[..., :height, :width], value, batch.main)
        except RuntimeError:
            images = batch.main[:0]
        if images.shape != batch.main.shape:
            raise InputError(
                f"the value has the shape {tuple(value.shape)}, which does not fit images of shape "
                f"{tuple(batch.main.shape)}"
            )
        return batch.with_main(images)


class RemovePatches(MaskPatches):
    """Takes patches out of the sequence, behind the embedding: the model never sees them.

    Works for transformers whose blocks take any number of tokens, with the position already added
    before the first of them (ViT, DeiT, DINOv2, CLIP; not Swin). Class and register tokens, which
    come first, stay.

    Args:
        patch_size (int or (int, int)): Height and width of the model's patches.
        value (float or Tensor): Stands for a patch where there must be pixels, as in the baseline
            of Integrated Gradients in an evaluation; see :class:`MaskPatches`.
        layer (nn.Module, optional): Module whose first input are the embedded tokens ``(examples,
            tokens, dim)``; the first of the model's blocks unless given.

    Example::

        >>> masker = RemovePatches(7)
        >>> activation_curve(model, images, relevance, labels, masker=masker)  # doctest: +SKIP
    """

    def __init__(
        self,
        patch_size: Size,
        value: float | Tensor = 0.0,
        layer: nn.Module | None = None,
    ) -> None:
        MaskPatches.__init__(self, patch_size, value)
        self._layer = layer

    def _grid(self, batch: Batch) -> tuple[int, int]:
        rows, columns = super()._grid(batch)
        height, width = batch.main.shape[2:]
        if (rows * self.patch_size[0], columns * self.patch_size[1]) != (height, width):
            raise InputError(
                f"images of {height} x {width} are not made of whole patches of "
                f"{self.patch_size[0]} x {self.patch_size[1]}, which RemovePatches needs; resize "
                "them, or use MaskPatches"
            )
        return rows, columns

    def run(self, model: Callable[..., Any], batch: Batch, hidden: Tensor) -> Tensor:
        layer = self._layer or transformer_blocks(model)[0]
        counts = hidden.sum(1)
        outputs: list[Tensor] = []
        rows: list[Tensor] = []
        for count in sorted(set(counts.tolist())):  # one length of sequence at a time
            some = (counts == count).nonzero()[:, 0]
            rows.append(some)
            outputs.append(self._run(model, layer, batch.take(some), ~hidden[some]))
        found = torch.cat(outputs)
        return found[torch.cat(rows).argsort().to(found.device)]

    def _run(
        self, model: Callable[..., Any], layer: nn.Module, batch: Batch, shown: Tensor
    ) -> Tensor:
        seen: list[bool] = []
        thread = threading.get_ident()

        def cut(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            if threading.get_ident() != thread or kwargs is None:
                return None
            tokens: Any = args[0] if args else None
            fits = isinstance(tokens, Tensor) and tokens.dim() == 3 and len(tokens) == len(shown)
            prefix = tokens.shape[1] - shown.shape[1] if fits else -1
            if not fits or not _fits(tokens.shape[1], *self._grid(batch)):
                raise UnsupportedModelError(
                    f"{type(module).__name__} does not take (examples, tokens, dim) with "
                    f"{shown.shape[1]} patches last and no others; give the patch size of the "
                    "model, name the layer that does, or use MaskPatches"
                )
            if _knows_places((*args[1:], *kwargs.values()), (tokens.shape[1], shown.shape[1])):
                raise UnsupportedModelError(
                    f"{type(module).__name__} gets the positions of all tokens, or a mask, beside "
                    "the tokens, which would be those of others where patches are taken out; use "
                    "MaskPatches"
                )
            if prefix == 0 and not bool(shown.any(1).all()):
                raise UnsupportedModelError(
                    f"{type(module).__name__} takes patches only, so that nothing is left where "
                    "all are taken out; use MaskPatches"
                )
            seen.append(True)
            stay = nn.functional.pad(shown.to(tokens.device), (prefix, 0), value=True)
            kept = tokens[stay].reshape(len(tokens), -1, tokens.shape[2])
            return (kept, *args[1:]), kwargs

        with guard(), Hooks() as hooks:
            hooks.before(layer, cut, with_kwargs=True)
            output = batch.call(model)
        if not seen:
            raise UnsupportedModelError(
                f"{type(layer).__name__} did not run, so no patch was removed; use MaskPatches"
            )
        return output


def _knows_places(values: Any, lengths: tuple[int, int]) -> bool:
    """Whether tensors beside the tokens have an entry for each of them, or for each patch."""
    if isinstance(values, tuple):
        return any(_knows_places(value, lengths) for value in values)
    return isinstance(values, Tensor) and any(size in lengths for size in values.shape)


def _fits(tokens: int, rows: int, columns: int) -> bool:
    """Whether so many tokens are those of a grid, and not of a finer one, with few before it."""
    finer = range(1, tokens + 1)
    return [n for n in finer if 0 <= tokens - rows * columns * n**2 <= _PREFIX] == [1]


def patch_size_of(model: Callable[..., Any]) -> tuple[int, int] | None:
    """Height and width of patches, as a model or its configuration names them.

    Args:
        model (nn.Module or callable): A model, or a function that runs one.

    Example::

        >>> from captum_lrp_tx.models import digits
        >>> patch_size_of(digits())
        (4, 4)
    """
    for _, module in find_modules(model):
        for owner in (getattr(module, "config", None), module):
            size = getattr(owner, "patch_size", None)
            pair = size if isinstance(size, (tuple, list)) else (size, size)
            if len(pair) == 2 and all(type(side) is int and side > 0 for side in pair):
                return pair[0], pair[1]
    return None
