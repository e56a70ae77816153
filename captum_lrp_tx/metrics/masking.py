"""How features are taken away from an input: tokens and patches, replaced or removed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, Union

import torch
from torch import Tensor

from captum_lrp_tx.attr.embedding_rows import shifts_ids
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.metrics.batches import Batch
from captum_lrp_tx.visualization.wording import special_ids

Kept = Union[Sequence[int], Tensor]


class Masker(ABC):
    """What can be hidden of an example, and what it looks like when it is.

    Subclass it for other kinds of inputs: :meth:`features` says what there is to hide,
    :meth:`scores` brings relevance to one number for each feature, and :meth:`masked` builds the
    inputs with some of the features hidden.
    """

    #: Forward passes take so many variants at once if no batch size is given.
    default_batch_size = 64

    @abstractmethod
    def features(self, batch: Batch) -> Tensor:
        """Which features may be hidden: booleans of shape ``(examples, features)``."""

    @abstractmethod
    def scores(self, attributions: Tensor, batch: Batch) -> Tensor:
        """Relevance of each feature: shape ``(examples, features)``.

        Raises:
            InputError: The shape does not fit the inputs.
        """

    @abstractmethod
    def masked(self, batch: Batch, hidden: Tensor) -> Batch:
        """The examples of ``batch`` with the features ``hidden`` taken away.

        Args:
            batch (Batch): Examples, possibly cropped to their first tokens.
            hidden (Tensor): Booleans ``(examples, features)`` for these examples.
        """

    def lengths(self, batch: Batch) -> Tensor | None:
        """How many tokens to keep of each example: shape ``(examples,)``; None for all."""
        return None

    def run(self, model: Callable[..., Any], batch: Batch, hidden: Tensor) -> Tensor:
        """The model's output with the features ``hidden`` taken away."""
        return self.masked(batch, hidden).call(model)


class MaskTokens(Masker):
    """Replaces tokens by another token, such as ``[UNK]``, ``[MASK]`` or padding.

    Padding, which the inputs declare by their ``attention_mask``, is never touched and counts for
    nothing. Ali et al. (ICML 2022) replace every other token by ``[UNK]``, ``[CLS]`` and ``[SEP]``
    among them; so does this class unless ``keep`` says otherwise.

    Args:
        token_id (int): What tokens are replaced by.
        keep (sequence of int or Tensor): Ids of tokens that stay, such as those of ``[CLS]`` and
            ``[SEP]``; or booleans in the shape of the ids (a tokenizer's
            ``special_tokens_mask``), True for tokens that stay.
        pad_id (int, optional): Id of padding, for inputs without an ``attention_mask``.

    Example::

        >>> masker = MaskTokens(100, keep=(101, 102))
        >>> batch = Batch.of(torch.tensor([[101, 7, 8, 102]]))
        >>> masker.features(batch)
        tensor([[False,  True,  True, False]])
        >>> masker.masked(batch, torch.tensor([[False, True, False, False]])).main
        tensor([[101, 100,   8, 102]])
    """

    def __init__(self, token_id: int, *, keep: Kept = (), pad_id: int | None = None) -> None:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
            raise InputError(f"token_id must be the id of a token, not {token_id!r}")
        self.token_id = token_id
        self.pad_id = pad_id
        self._keep = keep

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: Any,
        token: Literal["unk", "mask", "pad"] = "unk",
        *,
        keep_special: bool = False,
    ) -> MaskTokens:
        """With the ids of a tokenizer.

        Args:
            tokenizer (PreTrainedTokenizerBase): Of transformers.
            token (str): Which of its tokens replaces others: ``"unk"`` as in Ali et al.,
                ``"mask"`` or ``"pad"``.
            keep_special (bool): Never replace ``[CLS]``, ``[SEP]`` and their like.

        Raises:
            InputError: The tokenizer has no such token.
        """
        token_id = getattr(tokenizer, f"{token}_token_id", None)
        if token_id is None:
            known = [k for k in ("unk", "mask", "pad") if getattr(tokenizer, f"{k}_token_id", None)
                     is not None]  # fmt: skip
            others = f"it has: {', '.join(known)}" if known else "give an id: MaskTokens(3)"
            raise InputError(f"the tokenizer has no {token} token; {others}")
        return cls(
            int(token_id),
            keep=tuple(sorted(special_ids(tokenizer))) if keep_special else (),
            pad_id=tokenizer.pad_token_id,
        )

    @property
    def _named_keep(self) -> str:
        return f"keep={'a mask' if isinstance(self._keep, Tensor) else tuple(self._keep)}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.token_id}, {self._named_keep})"

    def features(self, batch: Batch) -> Tensor:
        ids = _ids(batch)
        return self._real(batch) & ~self._kept(ids)

    def _real(self, batch: Batch) -> Tensor:
        """Which tokens are no padding."""
        if batch.attention_mask is not None:
            return batch.attention_mask
        if self.pad_id is not None:
            return batch.main != self.pad_id
        return torch.ones_like(batch.main, dtype=torch.bool)

    def _kept(self, ids: Tensor) -> Tensor:
        if isinstance(self._keep, Tensor):
            if self._keep.shape != ids.shape:
                raise InputError(
                    f"keep has the shape {tuple(self._keep.shape)}, the token ids "
                    f"{tuple(ids.shape)}"
                )
            return self._keep.to(ids.device).bool()
        return torch.isin(ids, torch.tensor([*self._keep], dtype=ids.dtype, device=ids.device))

    def scores(self, attributions: Tensor, batch: Batch) -> Tensor:
        ids = _ids(batch)
        if attributions.dim() == 3:  # at embeddings
            attributions = attributions.sum(-1)
        if attributions.shape != ids.shape:
            raise InputError(
                f"attributions of shape {tuple(attributions.shape)} do not fit token ids of shape "
                f"{tuple(ids.shape)}"
            )
        return attributions

    def masked(self, batch: Batch, hidden: Tensor) -> Batch:
        hidden = hidden[:, : batch.main.shape[1]].to(batch.main.device)
        return batch.with_main(batch.main.masked_fill(hidden, self.token_id))

    def lengths(self, batch: Batch) -> Tensor | None:
        if not batch.can_be_cropped or batch.main.dim() != 2:
            return None
        mask = self._real(batch)
        found = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1).cpu()
        # without a mask, what ends every text may be the end of a text as well
        is_told = batch.attention_mask is not None or int(found.max()) == mask.shape[1]
        return found if is_told else None


class RemoveTokens(MaskTokens):
    """Hides tokens by the attention mask: nothing attends to them, positions stay as they are.

    The inputs must be a mapping with an ``attention_mask``. Some token must stay (the class token,
    from which the model reads); tokens that nothing attends to still run through the model.
    Models that read their ids again in a decoder (classifiers of BART and T5) are refused.

    Args:
        keep (sequence of int or Tensor): Tokens that are never removed; see :class:`MaskTokens`.

    Example::

        >>> masker = RemoveTokens(keep=(101, 102))
    """

    def __init__(self, keep: Kept) -> None:
        MaskTokens.__init__(self, 0, keep=keep)
        self._checked: Any = None

    def __repr__(self) -> str:  # no token takes the place of others
        return f"{type(self).__name__}({self._named_keep})"

    @classmethod
    def from_tokenizer(  # type: ignore[override]
        cls, tokenizer: Any
    ) -> RemoveTokens:
        """Keeps the tokenizer's special tokens.

        Args:
            tokenizer (PreTrainedTokenizerBase): Of transformers.
        """
        return cls(tuple(sorted(special_ids(tokenizer))))

    def features(self, batch: Batch) -> Tensor:
        mask = batch.attention_mask
        if mask is None:
            raise InputError(
                "RemoveTokens needs a mapping with an attention_mask in the shape of the token ids"
            )
        free = MaskTokens.features(self, batch)
        if not bool((mask & ~free).any(1).all()):
            raise InputError(
                "RemoveTokens would remove every token of an example; name tokens that stay in keep"
            )
        return free

    def masked(self, batch: Batch, hidden: Tensor) -> Batch:
        mask = batch.named["attention_mask"]
        hidden = hidden[:, : mask.shape[1]].to(mask.device)
        return batch.with_main(batch.main, attention_mask=mask.masked_fill(hidden, 0))

    def run(self, model: Callable[..., Any], batch: Batch, hidden: Tensor) -> Tensor:
        if self._checked is not model:
            if shifts_ids(lambda ids: batch.with_main(ids).call(model), batch.main):
                raise InputError(
                    "RemoveTokens hides tokens by the attention_mask, which the decoder of the "
                    "model does not heed: it reads the token ids again, shifted. Use MaskTokens"
                )
            self._checked = model
        return MaskTokens.run(self, model, batch, hidden)


def _ids(batch: Batch) -> Tensor:
    ids = batch.main
    if ids.is_floating_point() or ids.dim() != 2:
        raise InputError(
            f"tokens are masked in token ids of shape (examples, tokens), not in {ids.dtype} of "
            f"shape {tuple(ids.shape)}; use MaskPatches for images, or a Masker of your own"
        )
    return ids
