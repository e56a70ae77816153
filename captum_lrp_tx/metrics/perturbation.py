"""Running a model on many masked variants of its inputs, a few large batches at a time."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from captum_lrp_tx.attr.class_names import is_multi_label, numbers_of_regression
from captum_lrp_tx.attr.conservative import AttributionInputs, TargetType
from captum_lrp_tx.errors import InputError, NonFiniteError, OutputError, TrainingModeWarning
from captum_lrp_tx.metrics.batches import Batch
from captum_lrp_tx.metrics.masking import Masker
from captum_lrp_tx.metrics.targets import (
    counts_from_end,
    split_target,
    target_classes,
    target_outputs,
    wide,
)
from captum_lrp_tx.propagation.model.modules import find_modules

#: From the outputs of masked variants ``(n, classes)``, those of the whole inputs, and the target
#: class of each: one number for each variant.
Measure = Callable[[Tensor, Tensor, Tensor], Tensor]
_TOKENS_AT_ONCE = 2048


def probability(outputs: Tensor, whole: Tensor, target: Tensor) -> Tensor:
    """Softmax probability of the target class."""
    if outputs.shape[1] == 1:
        raise OutputError(
            "the model has a single output, whose softmax is always 1; pass measure='sigmoid' or "
            "measure='logit', or evaluate with metrics=['pruning'] (--metrics pruning) only"
        )
    return outputs.softmax(1).gather(1, target[:, None])[:, 0]


def sigmoid(outputs: Tensor, whole: Tensor, target: Tensor) -> Tensor:
    """Sigmoid of the target's logit: for binary and multi-label models."""
    return outputs.gather(1, target[:, None])[:, 0].sigmoid()


def log_sigmoid(outputs: Tensor, whole: Tensor, target: Tensor) -> Tensor:
    """Logarithm of the sigmoid of the target's logit."""
    return torch.nn.functional.logsigmoid(outputs.gather(1, target[:, None])[:, 0])


def logit(outputs: Tensor, whole: Tensor, target: Tensor) -> Tensor:
    """The target's logit."""
    return outputs.gather(1, target[:, None])[:, 0]


def log_probability(outputs: Tensor, whole: Tensor, target: Tensor) -> Tensor:
    """Logarithm of the softmax probability of the target class."""
    probability(outputs[:0], whole[:0], target[:0])  # a single output is refused
    return outputs.log_softmax(1).gather(1, target[:, None])[:, 0]


def squared_change(outputs: Tensor, whole: Tensor, target: Tensor) -> Tensor:
    """Squared change of the logits, summed over the classes as in the code of Ali et al."""
    return (outputs - whole).square().sum(1)


class Perturbation:
    """A model and inputs whose features are hidden in some order.

    Build one to draw several curves of the same inputs: the outputs of the whole and of the fully
    masked inputs are then computed only once.

    Args:
        model (nn.Module or callable): Anything that returns a tensor, or something with
            ``.logits``, whose first dimension counts the examples. It is run as it is: call
            ``model.eval()`` before.
        inputs (Tensor or mapping): A batch of examples, or what a tokenizer returns; padded.
        target (int, tuple, Tensor or list, optional): Captum's targets; the predicted classes
            unless given. A tuple indexes all dimensions of the output but the first; its last
            entry is the class.
        additional_forward_args (Any, optional): Further positional arguments of the model.
        masker (Masker): What is hidden, and how.
        batch_size (int, optional): How many variants run through the model at once; unless given
            so many that they have 2,048 tokens together, or 64 images.
        show_progress (bool): Show a progress bar on standard error if it takes more than a second.

    Attributes:
        whole (Tensor): Outputs of the whole inputs, ``(examples, classes)``.
        target (Tensor): Class of each example.
        is_multi_label (bool): Whether the model's configuration says that it answers for every
            class by itself, so that its probabilities are sigmoids.

    Raises:
        InputError: The inputs do not fit the masker.
        TargetError: The target is out of range or missing.
        NonFiniteError: The output for the whole inputs is NaN or infinite.

    Example::

        >>> used = Perturbation(model, inputs, targets, masker=masker)  # doctest: +SKIP
        >>> auac = activation_curve(used, attributions=relevance).mean  # doctest: +SKIP
        >>> au_mse = pruning_curve(used, attributions=relevance).mean  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Callable[..., Any],
        inputs: AttributionInputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
        *,
        masker: Masker,
        batch_size: int | None = None,
        show_progress: bool = False,
    ) -> None:
        if not isinstance(masker, Masker):
            raise InputError(f"masker must be a Masker, not {type(masker).__name__}")
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size must be positive, not {batch_size}")
        self._model = model
        self.is_multi_label = is_multi_label(find_modules(model))
        self._numbers = numbers_of_regression(find_modules(model))
        self.batch = Batch.of(inputs, additional_forward_args)
        self.masker = masker
        self._batch_size = batch_size
        self._show_progress = show_progress
        self.features = masker.features(self.batch).cpu()
        self._lengths = masker.lengths(self.batch)
        if self.features.dim() != 2 or not bool(self.features.any(1).all()):
            raise InputError(
                f"{masker!r} finds nothing to hide in some of the examples; leave these out"
            )
        self._position, classes = split_target(target, len(self.batch), model)
        if counts_from_end(target):
            self._lengths = None
        rows = torch.arange(len(self.batch))
        nothing = torch.zeros_like(self.features)
        drawn = _state_of_random_numbers(self.batch.main.device)
        self.whole = self._outputs(rows, lambda chunk: nothing[chunk], lambda out, _: out, "whole")
        _warn_if_random(model, drawn, _state_of_random_numbers(self.batch.main.device))
        if not bool(torch.isfinite(self.whole).all()):
            raise NonFiniteError(
                "the output of the whole inputs is NaN or infinite; "
                "look at the inputs and the weights"
            )
        self.target = target_classes(classes, self.whole, model)
        self._blank: Tensor | None = None

    def __len__(self) -> int:
        return len(self.batch)

    def check_probabilities(self) -> None:
        """Complains if the outputs are no classes that could have probabilities.

        Raises:
            OutputError: The configuration says that the model is a regression with several numbers.
        """
        if self._numbers:
            raise OutputError(
                "the model is a regression, whose numbers have no probability; pass "
                "measure='logit', or evaluate with metrics=['pruning'] (--metrics pruning) only"
            )

    def take(self, rows: Sequence[int]) -> Perturbation:
        """The same of some of the examples, without running the model for each of them again.

        Args:
            rows (sequence of int): Numbers of the examples.
        """
        chosen = torch.tensor(list(rows))
        part = copy.copy(self)
        part.batch = self.batch.take(chosen)
        part.features, part.whole = self.features[chosen], self.whole[chosen]
        part.target = self.target[chosen]
        part._lengths = None if self._lengths is None else self._lengths[chosen]
        part._position = None if self._position is None else [self._position[row] for row in rows]
        part._blank = self.blank[chosen]
        return part

    @property
    def counts(self) -> Tensor:
        """How many features each example has: shape ``(examples,)``."""
        return self.features.sum(1)

    def scores(self, attributions: Tensor) -> Tensor:
        """Relevance of each feature, in double precision on the CPU: ``(examples, features)``.

        Raises:
            InputError: The shape does not fit.
            NonFiniteError: NaN or infinity in the relevance of a feature.
        """
        if isinstance(attributions, tuple) and len(attributions) == 1:
            attributions = attributions[0]
        if not isinstance(attributions, Tensor):
            try:
                attributions = torch.as_tensor(attributions)
            except (TypeError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"attributions must be a tensor, not {type(attributions).__name__}"
                ) from error
        if attributions.is_complex() or attributions.is_meta:
            raise InputError(
                f"attributions must be real numbers, not {attributions.dtype} on "
                f"{attributions.device}"
            )
        if attributions.layout != torch.strided:
            attributions = attributions.to_dense()
        found = self.masker.scores(attributions.detach(), self.batch).double().cpu()
        if not bool(torch.isfinite(found[self.features]).all()):
            raise NonFiniteError("the attributions are NaN or infinite; there is no order in them")
        return found

    @property
    def blank(self) -> Tensor:
        """Outputs with every feature hidden, ``(examples, classes)``."""
        if self._blank is None:
            rows = torch.arange(len(self))
            self._blank = self._outputs(
                rows, lambda chunk: self.features[chunk], lambda out, _: out, "fully masked"
            )
        return self._blank

    def values(self, ranks: Tensor, hidden: Tensor, measure: Measure, name: str = "") -> Tensor:
        """What is measured with the first features of an order hidden.

        Args:
            ranks (Tensor): Position of each feature in the order, ``(examples, features)``.
            hidden (Tensor): How many features are hidden at each step, ``(examples, steps)``.
            measure (callable): From outputs to one number each.
            name (str): For the progress bar.

        Returns:
            Tensor: Shape ``(examples, steps)``, float64.

        Raises:
            NonFiniteError: The model's output for a variant is NaN or infinite.
        """
        examples, steps = hidden.shape
        counts = self.counts
        rows = torch.arange(examples)[:, None].expand_as(hidden)
        # every different variant runs once; the ends are the same for all orders
        key = rows * (int(counts.max()) + 1) + hidden
        variants, where = torch.unique(key, return_inverse=True)
        row, count = variants // (int(counts.max()) + 1), variants % (int(counts.max()) + 1)
        result = torch.zeros(len(variants), dtype=torch.float64)

        def measured(outputs: Tensor, chunk: Tensor) -> Tensor:
            return measure(outputs, self.whole[chunk], self.target[chunk]).double()

        is_whole, is_blank = count == 0, count == counts[row]
        result[is_whole] = measured(self.whole[row[is_whole]], row[is_whole])
        is_blank &= ~is_whole
        if bool(is_blank.any()):
            result[is_blank] = measured(self.blank[row[is_blank]], row[is_blank])
        left = (~is_whole & ~is_blank).nonzero()[:, 0]

        def features(chunk: Tensor) -> Tensor:
            first: Tensor = ranks[row[chunk]] < count[chunk][:, None]
            return self.features[row[chunk]] & first

        if len(left):
            result[left] = self._outputs(row[left], lambda c: features(left[c]), measured, name)
        if not bool(torch.isfinite(result).all()):
            raise NonFiniteError(
                "the model's output is NaN or infinite for some of the masked inputs"
            )
        return result[where].reshape(examples, steps)

    @torch.inference_mode()
    def _outputs(
        self,
        rows: Tensor,
        hidden: Callable[[Tensor], Tensor],
        finish: Callable[[Tensor, Tensor], Tensor],
        name: str,
    ) -> Tensor:
        """Runs the variants, long ones first, and only those of one length together.

        Padding is left out: some models see it (FNet mixes all places, GPT-like classifiers read
        the last place that holds no padding token of theirs).
        """
        lengths = None if self._lengths is None else self._lengths[rows]
        order = torch.arange(len(rows))
        if lengths is not None:
            order = torch.argsort(lengths, descending=True, stable=True)
        results: Tensor | None = None
        start = 0
        with tqdm(
            total=len(rows), desc=name, unit="input", delay=1, leave=False,
            disable=not (self._show_progress and sys.stderr.isatty()),
        ) as bar:  # fmt: skip
            while start < len(rows):
                tokens = None if lengths is None else int(lengths[order[start]])
                chunk = order[start : start + self._portion(tokens)]
                if lengths is not None:
                    chunk = chunk[lengths[chunk] == tokens]
                batch = self.batch.take(rows[chunk], tokens)
                outputs = self.masker.run(self._model, batch, hidden(chunk)).detach()
                chosen = wide(target_outputs(outputs, self._position, rows[chunk])).cpu()
                finished = finish(chosen, rows[chunk])
                if results is None:
                    results = finished.new_zeros(len(rows), *finished.shape[1:])
                results[chunk] = finished
                start += len(chunk)
                bar.update(len(chunk))
        assert results is not None
        return results

    def _portion(self, tokens: int | None) -> int:
        if self._batch_size is not None:
            return self._batch_size
        if self.batch.main.dim() == 2:
            return max(_TOKENS_AT_ONCE // (tokens or self.batch.main.shape[1]), 1)
        return self.masker.default_batch_size


def _state_of_random_numbers(device: torch.device) -> list[Tensor]:
    kinds = [torch, *([torch.get_device_module(device)] if device.type != "cpu" else [])]
    return [kind.get_rng_state() for kind in kinds if hasattr(kind, "get_rng_state")]


def _warn_if_random(model: Callable[..., Any], before: list[Tensor], after: list[Tensor]) -> None:
    """Dropout, stochastic depth and batch statistics would make the curves random.

    Not all of it is done by modules for it, and some models draw in evaluation mode, so random
    numbers that were drawn tell, too; another thread can have drawn them.
    """
    kinds = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
    training = [(name, module) for name, module in find_modules(model) if module.training]
    active = [name for name, module in training if isinstance(module, kinds)]
    told = f"Active while the model is measured: {', '.join(active[:5])}. The results are random"
    if not active and not all(map(torch.equal, before, after)):
        told = (
            "Random numbers were drawn while the model was measured. If the model drew them, the "
            "results are random"
        )
    elif not active:
        return
    mode = "call model.eval() first" if training else "call torch.manual_seed() in it"
    warnings.warn(f"{told}; {mode}.", TrainingModeWarning, stacklevel=3)
