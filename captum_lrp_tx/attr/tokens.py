"""Which tokens of an image model are patches, and where they are in the image.

Vision transformers put tokens of their own before the patches.  They are counted from what the
model declares:

=========================== ================================ ===========================
model                       prefix                           declared by
=========================== ================================ ===========================
ViT, BEiT, DINOv2           ``[CLS]``                        ``cls_token``
CLIP                        ``[CLS]``                        ``class_embedding``
torchvision ViT             ``[CLS]``                        ``class_token``
DeiT with distillation      ``[CLS]``, distillation          ``distillation_token``
DINOv2/v3 with registers    ``[CLS]``, registers             ``register_tokens``
timm                        any of these                     ``num_prefix_tokens``
SigLIP, average-pooled ViTs none                             no such parameter
=========================== ================================ ===========================

In all of them the prefix comes first and the patches follow row by row.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from captum_lrp_tx.errors import InputError

_ONE_TOKEN = ("cls_token", "class_token", "class_embedding", "distillation_token", "dist_token")
_MANY_TOKENS = ("register_tokens", "reg_token")


def prefix_tokens(model: nn.Module | Iterable[nn.Module]) -> int:
    """Number of tokens before the patches: class, distillation and register tokens.

    Args:
        model (nn.Module or iterable of nn.Module): The model, or the modules of one.

    Returns:
        int: 0 if the model declares none.

    Example::

        >>> from captum_lrp_tx.attr.tokens import prefix_tokens
        >>> from captum_lrp_tx.models import digits
        >>> prefix_tokens(digits())
        1
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else list(model)
    for module in modules:
        declared = getattr(module, "num_prefix_tokens", None)
        if isinstance(declared, int):
            return declared
    for module in modules:
        own = dict(module.named_parameters(recurse=False))
        count = sum(name in own for name in _ONE_TOKEN)
        count += sum(own[name].shape[-2] for name in _MANY_TOKENS if name in own)
        if count:
            return count
    return 0


def pools_patches(modules: Iterable[nn.Module]) -> bool:
    """Whether the model averages its patches instead of reading its class token."""
    for module in modules:
        if isinstance(getattr(module, "num_prefix_tokens", None), int):
            return getattr(module, "global_pool", "token") not in ("", "token", None)
    return False


def patch_grid(
    relevance: Tensor,
    image_size: int | tuple[int, int],
    patch_size: int | tuple[int, int],
) -> Tensor:
    """Relevance of patches as an image: every pixel has the relevance of its patch.

    Args:
        relevance (Tensor): Shape ``(batch, tokens)`` or ``(tokens,)``. More tokens than patches
            are taken for a prefix and dropped. For a stage of a Swin transformer ``patch_size`` is
            the stride of that stage (4, 8, 16, 32).
        image_size (int or (int, int)): Height and width of the model's input.
        patch_size (int or (int, int)): Height and width of a patch. Pixels beyond the last whole
            patch get 0.

    Returns:
        Tensor: shape ``(batch, height, width)``, or ``(height, width)``.

    Raises:
        InputError: fewer tokens than patches, or sizes that are not positive.

    Example::

        >>> patch_grid(torch.arange(5.0)[None], image_size=4, patch_size=2)[0, 0]
        tensor([1., 1., 2., 2.])
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    down, across = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    if min(height, width, down, across) < 1 or relevance.dim() not in (1, 2):
        raise InputError(
            f"patch_grid needs relevance of shape (batch, tokens) and positive sizes, got "
            f"{tuple(relevance.shape)}, image {height} x {width}, patches {down} x {across}."
        )
    rows, columns = height // down, width // across
    patches = rows * columns
    if relevance.shape[-1] < patches or not patches:
        raise InputError(
            f"An image of {height} x {width} pixels has {rows} x {columns} patches of {down} x "
            f"{across}, but relevance holds {relevance.shape[-1]} tokens. Give the sizes that the "
            "model works with (after the image processor)."
        )
    grid = relevance[..., -patches:].reshape(*relevance.shape[:-1], rows, columns)
    pixels = grid.repeat_interleave(down, -2).repeat_interleave(across, -1)
    padding = (0, width - pixels.shape[-1], 0, height - pixels.shape[-2])
    return nn.functional.pad(pixels, padding)
