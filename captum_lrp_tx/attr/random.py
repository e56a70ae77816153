"""``RandomAttribution``: the baseline that every method must beat."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import torch
from captum.log import log_usage
from torch import Tensor

from captum_lrp_tx.attr.captum_method import CaptumMethod
from captum_lrp_tx.attr.conservative import AttributionInputs, TargetType, TensorOrTuple, formatted
from captum_lrp_tx.attr.mappings import inputs_of
from captum_lrp_tx.attr.padding import mask_of
from captum_lrp_tx.errors import InputError


class RandomAttribution(CaptumMethod):
    r"""
    Standard normal random numbers: relevance without information.

    The numbers depend on the seed and on the content of the example, not on what else is in the
    batch or how it is padded.  The model is never run.

    Source: the random baseline of Ali et al., ICML 2022, section 5.

    Args:
        model (nn.Module or callable): Not used; for the signature of attribution classes.
        seed (int): The same seed gives the same numbers for the same example.

    Example::

        >>> relevance = RandomAttribution(model, seed=1).attribute(ids)
        >>> relevance.shape == ids.shape
        True
    """

    _title = "Random"

    def __init__(self, model: Callable[..., Any], seed: int = 0) -> None:
        CaptumMethod.__init__(self, model)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise InputError(f"seed must be an integer, not {seed!r}.")
        self.seed = seed

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: AttributionInputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
    ) -> TensorOrTuple:
        r"""
        Random relevance in the shape of the inputs.

        Args:
            inputs (Tensor, tuple of Tensor, or mapping): As for
                :meth:`~captum_lrp_tx.ConservativeGI.attribute`.
            target, additional_forward_args: Not used.

        Returns:
            Tensor or tuple of Tensor: float tensors in the shape of the inputs: ``(batch,
            tokens)`` for token ids. Tokens that an ``attention_mask`` in a mapping hides get 0.

        Raises:
            InputError: nothing to attribute to, or an unsupported type.

        Example::

            >>> RandomAttribution(model).attribute(tokenizer("a film", return_tensors="pt"))
        """
        prepared = inputs_of(inputs)
        values: list[Tensor] = []
        for position, leaf in enumerate(prepared.leaves):
            x = leaf.original.detach()
            key = prepared.keys[position] if prepared.keys else ""
            mask = mask_of(inputs, key, x)
            rows = x if x.dim() > 1 else x[None]
            masks = None if mask is None else mask.reshape(rows.shape)
            drawn = [
                self._draw(row, None if masks is None else masks[i], position)
                for i, row in enumerate(rows)
            ]
            dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
            values.append(torch.stack(drawn).reshape(x.shape).to(x.device, dtype))
        return formatted(values, prepared.is_tuple)

    def _draw(self, row: Tensor, mask: Tensor | None, position: int) -> Tensor:
        row = row.cpu()
        shown = torch.ones(row.shape, dtype=torch.bool) if mask is None else mask.cpu()
        content = row[shown].contiguous()
        generator = generator_of(content, self.seed, position)
        numbers = torch.zeros(row.shape)
        numbers[shown] = torch.randn(content.shape, generator=generator)
        return numbers


def generator_of(content: Tensor, seed: int, position: int = 0) -> torch.Generator:
    """Random numbers of an example, whatever is in the batch beside it.

    Args:
        content (Tensor): Of the example, without padding.
        seed (int): The same seed gives the same numbers for the same content.
        position (int): Of several inputs of the example.
    """
    flat = content.detach().cpu().contiguous().flatten()
    flat = flat if flat.is_floating_point() else flat.long()  # the same ids in another type
    digest = zlib.crc32(flat.view(torch.uint8).numpy().tobytes(), position)
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + digest) % 2**63)
