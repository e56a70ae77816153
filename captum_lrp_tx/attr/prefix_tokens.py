"""Which tokens of an image model are patches.

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

In all of them the prefix comes first and the patches follow row by row.  YOLOS has tokens of its
queries, ``detection_tokens``, behind them.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

_ONE_TOKEN = ("cls_token", "class_token", "class_embedding", "distillation_token", "dist_token")
_MANY_TOKENS = ("register_tokens", "reg_token")
_BEHIND = "detection_tokens"


def prefix_tokens(model: nn.Module | Iterable[nn.Module]) -> int:
    """Number of tokens before the patches: class, distillation and register tokens.

    Args:
        model (nn.Module or iterable of nn.Module): The model, or the modules of one.

    Returns:
        int: 0 if the model declares none.

    Example::

        >>> from captum_lrp_tx.attr.prefix_tokens import prefix_tokens
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


def tokens_behind(modules: Iterable[nn.Module]) -> int:
    """Number of tokens behind the patches: those of the queries of YOLOS."""
    found = (dict(module.named_parameters(recurse=False)).get(_BEHIND) for module in modules)
    return next((tokens.shape[-2] for tokens in found if tokens is not None), 0)


def pools_patches(modules: Iterable[nn.Module]) -> bool:
    """Whether the model averages its patches instead of reading its class token.

    Models of timm say so themselves, BEiT and Data2Vec in their configuration.
    """
    modules = list(modules)
    for module in modules:
        if isinstance(getattr(module, "num_prefix_tokens", None), int):
            return getattr(module, "global_pool", "token") not in ("", "token", None)
    configs = (getattr(module, "config", None) for module in modules)
    return any(getattr(config, "use_mean_pooling", False) is True for config in configs)
