"""Activation and pruning curves of the methods of a report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_lrp_tx.attr.conservative import AttributionInputs
from captum_lrp_tx.attr.token_gradients import padding_id, padding_in_words
from captum_lrp_tx.errors import CaptumLRPError
from captum_lrp_tx.metrics.curves import Curve, activation_curve, pruning_curve
from captum_lrp_tx.metrics.masking import Masker, MaskTokens
from captum_lrp_tx.metrics.patches import MaskPatches, RemovePatches, patch_size_of
from captum_lrp_tx.metrics.perturbation import Perturbation
from captum_lrp_tx.reporting.results import Explanations
from captum_lrp_tx.reporting.samples import Samples


class Faithfulness:
    """Measures the methods on the same examples, each for its predicted class.

    Args:
        model (nn.Module or callable): Gives ``(examples, classes)``.
        samples (Samples): The examples.
        predictions (Tensor): Of the model, ``(examples,)``.
        tokenizer (PreTrainedTokenizerBase, optional): For the token that hides others.
        value (float, optional): That hides pixels if patches cannot be taken out; 0 unless given.

    Attributes:
        masking (str): What hides tokens or patches, in words.
        unavailable (str): Why nothing can be measured; empty if it can.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        samples: Samples,
        predictions: Tensor,
        tokenizer: Any,
        value: float | None = None,
    ) -> None:
        self._samples = samples
        self._predictions = predictions
        self._parts: list[tuple[list[int], Perturbation]] = []
        self.masking = ""
        self.unavailable = ""
        if samples.kind == "text":
            maskers = [_token_masker(model, tokenizer)]
        else:
            maskers = _patch_maskers(model, samples, float(value or 0.0))
        for masker, masking in maskers:
            try:
                # runs the model on the whole and on the masked inputs, once for all methods
                self._parts = [
                    (rows, Perturbation(
                        model, _padded(samples, rows), predictions[rows], masker=masker
                    )) for rows in self._portions()
                ]  # fmt: skip
                for _, part in self._parts:
                    _ = part.blank
            except (CaptumLRPError, RuntimeError, ValueError) as error:
                self.unavailable = self.unavailable or " ".join(str(error).split())
            else:
                self.masking, self.unavailable = masking, ""
                break

    def curves(self, method: Explanations, advance: Callable[[int], object]) -> dict[str, Any]:
        """The fields of :class:`Explanations` that say how faithful a method is.

        Args:
            method (Explanations): The method.
            advance (callable): Told how many examples were measured.
        """
        if self.unavailable:
            return {"unmeasured": self.unavailable}
        if method.error:
            return {"unmeasured": method.error}
        try:
            return self._curves(method, advance)
        except (CaptumLRPError, RuntimeError, ValueError) as error:
            return {"unmeasured": " ".join(str(error).split())}

    def _curves(self, method: Explanations, advance: Callable[[int], object]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, curve_of in (("activation", activation_curve), ("pruning", pruning_curve)):
            curves = []
            for rows, perturbation in self._parts:
                curves.append(curve_of(perturbation, attributions=self._relevance(method, rows)))
                advance(len(rows) if name == "pruning" else 0)
            joined = Curve.joined(curves)
            values = torch.empty_like(joined.values)
            values[[row for rows, _ in self._parts for row in rows]] = joined.values
            values[list(method.errors)] = torch.nan  # nothing was explained, so nothing is known
            found[name] = Curve(joined.name, joined.fractions, values)
        return found

    def _portions(self) -> list[list[int]]:
        """All examples at once if padding can be masked, else those of each length."""
        items = self._samples.items
        if self._samples.kind == "image" or all("attention_mask" in i.others for i in items):
            return [list(range(len(items)))]
        return self._samples.groups()

    def _relevance(self, method: Explanations, rows: list[int]) -> Tensor:
        """Relevance for the predicted class, as the masker takes it."""
        found = []
        width = max(self._samples.items[row].main.shape[0] for row in rows)
        for row in rows:
            shape = self._samples.items[row].main.shape
            values = method.relevance.get((row, int(self._predictions[row])))
            if self._samples.kind == "text":
                values = torch.zeros(shape) if values is None else values
                found.append(torch.nn.functional.pad(values, (0, width - len(values))))
            else:
                values = torch.zeros(shape[-2:]) if values is None else values
                found.append(_spread(values, shape[-2], shape[-1]))
        return torch.stack(found)


def _token_masker(model: Any, tokenizer: Any) -> tuple[Masker, str]:
    for kind in ("unk", "mask", "pad"):  # the first as in Ali et al.
        index = getattr(tokenizer, f"{kind}_token_id", None)
        if index is not None:
            name = getattr(tokenizer, f"{kind}_token")
            return MaskTokens(int(index)), f"tokens replaced by {name}"
    index = padding_id(model)
    return MaskTokens(index), f"tokens replaced by {padding_in_words(model)}"


def _patch_maskers(model: Any, samples: Samples, value: float) -> list[tuple[Masker, str]]:
    """Patches removed as in Ali et al.; replaced where a model does not allow that.

    They are a fourteenth of the image where the model does not say how large they are.
    """
    height, width = samples.items[0].main.shape[-2:]
    size = patch_size_of(model) or (max(height // 14, 1), max(width // 14, 1))
    named = f"{size[0]} \u00d7 {size[1]} pixels"
    removed = (RemovePatches(size), f"patches of {named} taken out of the sequence")
    return [removed, (MaskPatches(size, value), f"patches of {named} set to {value:g}")]


def _padded(samples: Samples, rows: list[int]) -> AttributionInputs:
    """Examples in one batch; what is added is hidden by the attention mask."""
    items = [samples.items[row] for row in rows]
    if len({tuple(item.main.shape) for item in items}) == 1:
        return samples.batch(rows)
    width = max(item.main.shape[0] for item in items)

    def wide(value: Tensor, length: int) -> Tensor:
        if value.dim() == 0 or value.shape[0] != length:
            return value
        padding = (0, 0) * (value.dim() - 1) + (0, width - length)
        return torch.nn.functional.pad(value, padding)

    assert samples.key is not None
    batch = {samples.key: torch.stack([wide(i.main, len(i.main)) for i in items])}
    for name in items[0].others:
        batch[name] = torch.stack([wide(i.others[name], len(i.main)) for i in items])
    return {**batch, **samples.shared}


def _spread(values: Tensor, height: int, width: int) -> Tensor:
    """Relevance of patches over their pixels, so that those of a patch sum to it."""
    down, across = height // values.shape[0], width // values.shape[1]
    return values.repeat_interleave(down, 0).repeat_interleave(across, 1) / (down * across)
