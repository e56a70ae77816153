"""Attribution over a data loader, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from captum_lrp_tx.attr.conservative import TargetType, TensorOrTuple
from captum_lrp_tx.errors import InputError

#: Captum's ``InputRole``: explained, not passed to the model, passed without being explained.
EXPLAINED, NOT_PASSED, PASSED = 0, 1, 2


class LoaderAttribution:
    r"""
    Any attribution of this package over a ``DataLoader``.

    Captum's ``DataLoaderAttribution`` takes no method but ``FeatureAblation``: it explains one
    metric of a whole data set by features that are switched off everywhere at once.  This class
    explains every example by itself, with the same ``input_roles``, and can add up relevance over
    the examples as it goes, which by linearity explains the sum of the outputs.

    Args:
        attribution (Attribution): Of this package or of Captum.

    Raises:
        InputError: Something without an ``attribute`` method.

    Example::

        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from captum_lrp_tx import ConservativeLRP
        >>> from captum_lrp_tx.models import digit_samples, digits
        >>> loader = DataLoader(TensorDataset(*digit_samples()), batch_size=8)
        >>> explainer = LoaderAttribution(ConservativeLRP(digits()))
        >>> relevance = explainer.attribute(loader, input_roles=(0, 1), target=lambda b: b[1])
        >>> relevance.shape
        torch.Size([20, 1, 28, 28])
    """

    def __init__(self, attribution: Any) -> None:
        if not callable(getattr(attribution, "attribute", None)):
            raise InputError(f"{type(attribution).__name__} has no attribute method")
        self.attribution = attribution

    def batches(
        self,
        dataloader: Iterable[Any],
        input_roles: Sequence[int] | None = None,
        target: TargetType | Callable[[Any], TargetType] = None,
        *,
        show_progress: bool = False,
        **options: Any,
    ) -> Iterator[TensorOrTuple]:
        """Relevance of one batch after the other, without keeping any.

        Args:
            dataloader (iterable): Of tensors, of tuples or lists of tensors, or of mappings (what a
                tokenizer returns), which are passed on as they are.
            input_roles (sequence of int, optional): For each element of a tuple or list whether it
                is explained (0), not passed to the model such as a label (1), or passed without
                being explained (2); those of role 2 come after the others, as
                ``additional_forward_args``. All 0 unless given.
            target (optional): As for ``attribute``, the same for all batches; or a function that
                gets a batch as the loader gives it and returns the target.
            show_progress (bool): Show a progress bar on standard error.
            **options: Passed to ``attribute``.

        Yields:
            Tensor or tuple of Tensor: What ``attribute`` returns for the batch.

        Raises:
            InputError: Roles that do not fit the batches.
        """
        loader = tqdm(dataloader, desc="explaining", unit="batch", disable=not show_progress)
        for batch in loader:
            inputs, additional = _split(batch, input_roles)
            found: TensorOrTuple = self.attribution.attribute(
                inputs,
                target=target(batch) if callable(target) else target,
                additional_forward_args=additional,
                **options,
            )
            yield found

    def attribute(
        self,
        dataloader: Iterable[Any],
        input_roles: Sequence[int] | None = None,
        target: TargetType | Callable[[Any], TargetType] = None,
        *,
        reduce: str = "concatenate",
        show_progress: bool = False,
        **options: Any,
    ) -> TensorOrTuple:
        """Relevance of all examples, or its sum or mean over them.

        Args:
            dataloader, input_roles, target, show_progress: See :meth:`batches`.
            reduce (str): ``"concatenate"``, ``"sum"`` or ``"mean"`` over the examples. Texts padded
                to different lengths cannot be concatenated; use :meth:`batches`.
            **options: Passed to ``attribute``.

        Returns:
            Tensor or tuple of Tensor: Shape ``(examples, ...)``; ``(1, ...)`` for a sum or mean.

        Raises:
            InputError: An empty loader, batches of different shapes, or no such ``reduce``.
        """
        if reduce not in ("concatenate", "sum", "mean"):
            raise InputError(f"reduce must be 'concatenate', 'sum' or 'mean', not {reduce!r}")
        parts: list[tuple[Tensor, ...]] = []
        count, is_tuple = 0, False
        for found in self.batches(
            dataloader, input_roles, target, show_progress=show_progress, **options
        ):
            is_tuple = isinstance(found, tuple)
            tensors = found if isinstance(found, tuple) else (found,)
            if parts and [t.shape[1:] for t in tensors] != [t.shape[1:] for t in parts[0]]:
                raise InputError(
                    f"batches of shape {[tuple(t.shape[1:]) for t in parts[0]]} and "
                    f"{[tuple(t.shape[1:]) for t in tensors]} for each example cannot be put "
                    "together; pad them to one length, or use batches()"
                )
            count += len(tensors[0])
            if reduce == "concatenate":
                parts.append(tensors)
                continue
            sums = tuple(t.sum(0, keepdim=True) for t in tensors)
            parts = [tuple(a + b for a, b in zip(parts[0], sums, strict=True)) if parts else sums]
        if not parts:
            raise InputError("the data loader is empty")
        joined = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        if reduce == "mean":
            joined = tuple(t / count for t in joined)
        return joined if is_tuple else joined[0]


def _split(batch: Any, roles: Sequence[int] | None) -> tuple[Any, tuple[Any, ...] | None]:
    """What is explained and what else goes to the model."""
    if isinstance(batch, (Tensor, Mapping)):
        if roles is not None and tuple(roles) != (EXPLAINED,):
            raise InputError("input_roles are for batches that are tuples or lists")
        return batch, None
    items = tuple(batch)
    if roles is None:
        return items, None
    if len(roles) != len(items) or not set(roles) <= {EXPLAINED, NOT_PASSED, PASSED}:
        raise InputError(f"input_roles {tuple(roles)} do not fit batches of {len(items)} elements")
    inputs = tuple(x for x, role in zip(items, roles, strict=True) if role == EXPLAINED)
    more = tuple(x for x, role in zip(items, roles, strict=True) if role == PASSED)
    if not inputs:
        raise InputError("input_roles must contain a 0: something to explain")
    return (inputs[0] if len(inputs) == 1 else inputs), more or None
