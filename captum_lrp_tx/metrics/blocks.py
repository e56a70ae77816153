"""The repeated blocks of a transformer: where relevance is looked at between layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from captum_lrp_tx.errors import InputError, UnsupportedModelError
from captum_lrp_tx.propagation.model.modules import find_modules


def transformer_blocks(model: Callable[..., Any]) -> list[nn.Module]:
    """The longest chain of modules of one class that a model holds in a list.

    Encoder layers of BERT, blocks of a ViT, decoder layers of a language model: every common
    implementation keeps them in an ``nn.ModuleList`` or ``nn.Sequential``. Of chains of the same
    length the one with the most parameters is taken; a model in stages gives the blocks of its
    longest stage.

    Args:
        model (nn.Module or callable): A model, or a function that runs one.

    Returns:
        list of nn.Module: In the order in which they run.

    Raises:
        InputError: There is no such list.

    Example::

        >>> from captum_lrp_tx.models import sentiment
        >>> len(transformer_blocks(sentiment()[0]))
        2
    """
    found: list[tuple[tuple[int, int], list[nn.Module]]] = []
    for _, module in find_modules(model):
        if not isinstance(module, (nn.ModuleList, nn.Sequential)):
            continue
        children = list(module)
        # a block is made of several modules, and all blocks are alike
        is_chain = len({type(child) for child in children}) == 1 and all(
            len(list(child.modules())) > 3 for child in children
        )
        if is_chain:
            size = sum(p.numel() for p in module.parameters())
            found.append(((len(children), size), children))
    if not found:
        raise InputError(
            "no list of blocks (nn.ModuleList or nn.Sequential of modules of one class) was found "
            "in the model; name the layers yourself"
        )
    return max(found, key=lambda entry: entry[0])[1]


def common_blocks(model: Callable[..., Any], way_out: str) -> list[nn.Module]:
    """:func:`transformer_blocks` of a model in which everything goes through them.

    Args:
        model (nn.Module or callable): A model, or a function that runs one.
        way_out (str): What to do about other models.

    Raises:
        InputError: There is no list of blocks.
        UnsupportedModelError: An encoder and a decoder, each with blocks of its own.
    """
    modules = find_modules(model)
    configs = [getattr(module, "config", None) for _, module in modules]
    has_both = any(isinstance(module, nn.Transformer) for _, module in modules) or (
        any(getattr(config, "is_encoder_decoder", False) for config in configs)
        and any(name.rpartition(".")[2] == "decoder" for name, _ in modules)
    )
    if has_both:
        raise UnsupportedModelError(
            "the model has an encoder and a decoder, and what one takes from the other by "
            f"cross-attention does not go through the blocks before; {way_out}"
        )
    return transformer_blocks(model)


def rows_first(relevance: Tensor, examples: int) -> Tensor | None:
    """Relevance at a block with the examples in the first dimension.

    XLNet, and ``nn.TransformerEncoder`` by default, have the tokens there and the examples second.

    Args:
        relevance (Tensor): Shape ``(examples, ...)`` or ``(tokens, examples, ...)``.
        examples (int): How many there are.

    Returns:
        Tensor or None: shape ``(examples, ...)``; ``None`` if as many tokens as examples leave open
        which is which. Another number of examples tells.

    Example::

        >>> rows_first(torch.zeros(7, 2, 16), 2).shape
        torch.Size([2, 7, 16])
    """
    first, second = (*relevance.shape[:2], 1, 1)[:2]
    if first == second == examples and examples > 1:
        return None
    return relevance.movedim(1, 0) if first != examples and second == examples else relevance
