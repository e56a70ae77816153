"""Perturbation functions for ``captum.metrics``: hidden tokens or patches, and noise, with seeds.

``infidelity`` compares what an explanation says about a perturbation with what the model does: the
sum of relevance times perturbation against the change of the output.  Which perturbation goes with
which relevance:

================================ =================================================================
relevance of                     perturbation
================================ =================================================================
tokens ``(batch, tokens)``       :class:`RandomMasking` of token ids: 1 where a token is hidden
pixels, gradient x input         :class:`RandomMasking` of patches: 1 at the pixels that are hidden
patches ``(batch, tokens)``      the same, after :func:`~captum_lrp_tx.metrics.spread_over_pixels`
pixels or embeddings, gradients  :class:`GaussianNoise`: the noise itself
================================ =================================================================

The relevance of this package is gradient *times input*: what a feature contributes by being there.
So a perturbation is counted in units of the whole feature, as Captum's
``infidelity_perturb_func_decorator`` does by default: (input - perturbed) / (input - baseline).
For noise on such relevance pass ``multiply_by_inputs=True`` to :class:`GaussianNoise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from captum._utils.common import safe_div
from torch import Tensor

from captum_lrp_tx.attr.conservative import AttributionInputs
from captum_lrp_tx.attr.random import generator_of
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.metrics.batches import Batch
from captum_lrp_tx.metrics.masking import Masker


class RandomMasking:
    r"""
    Hides random tokens or patches: a ``perturb_func`` for ``captum.metrics.infidelity``.

    For each example and sample a number of features is drawn, then that many of them.  The
    perturbation is 1 where a feature is hidden and 0 elsewhere, in the shape of the inputs; it is 1
    also where the hidden feature looked like its replacement before.

    Samples are drawn one after the other, and for each example by its content, so they depend
    neither on how many Captum puts into a batch (``max_examples_per_batch``) nor on what else is in
    it.  An object goes on where it stopped: make a new one, or
    call :meth:`restart`, to perturb the inputs of another method in the same way.

    Args:
        masker (Masker): What can be hidden and how, e.g. ``MaskTokens.from_tokenizer(tokenizer,
            "mask", keep_special=True)``, which never hides padding and special tokens.
        inputs (Tensor or mapping): The examples that ``infidelity`` is called with; for text all
            that the tokenizer returned, so that padding is known.
        share (float, optional): Hide this share of the features, at least one; unless given,
            every number of features from one to all is equally likely.
        seed (int): Of the random choices.

    Raises:
        InputError: Nothing to hide in some example, a masker that changes more than the inputs
            themselves (such as the attention mask), or a share out of range.

    Example::

        >>> from captum.metrics import infidelity
        >>> from captum_lrp_tx import ConservativeLRP
        >>> from captum_lrp_tx.metrics.captum_arguments import captum_inputs
        >>> from captum_lrp_tx.metrics.masking import MaskTokens
        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> inputs = tokenizer(["a moving film", "a mess"], return_tensors="pt", padding=True)
        >>> relevance = ConservativeLRP(model).attribute(inputs, target=1)
        >>> forward, ids, more = captum_inputs(model, inputs)
        >>> masker = MaskTokens.from_tokenizer(tokenizer, "mask", keep_special=True)
        >>> perturb = RandomMasking(masker, inputs, seed=1)
        >>> scores = infidelity(
        ...     forward, perturb, ids, relevance, additional_forward_args=more, target=1
        ... )
    """

    def __init__(
        self,
        masker: Masker,
        inputs: AttributionInputs,
        *,
        share: float | None = None,
        seed: int = 0,
    ) -> None:
        if share is not None and not 0 < share <= 1:
            raise InputError(f"share must be above 0 and at most 1, not {share}")
        if type(masker).run is not Masker.run:
            raise InputError(_only_replaced(masker))
        self.masker = masker
        self.share = share
        self.seed = seed
        self._batch = Batch.of(inputs)
        self._features = masker.features(self._batch).cpu()
        if not bool(self._features.any(1).all()):
            raise InputError(
                f"{masker!r} finds nothing to hide in some of the examples; leave these out"
            )
        self.restart()

    def restart(self) -> None:
        """Draw the same samples again."""
        main = self._batch.main.cpu()
        own = zip(main, self._features, strict=True)
        # the tokens that can be hidden; pixels all
        contents = [x[some] if x.shape == some.shape else x for x, some in own]
        self._generators = [generator_of(content, self.seed) for content in contents]

    def __call__(self, inputs: Any, baselines: Any = None) -> tuple[Tensor, Tensor]:
        """Perturbations and perturbed inputs.

        Args:
            inputs (Tensor): The examples, each repeated as Captum does it: ``(examples * samples,
                ...)`` with the samples of one example next to each other.
            baselines: Not used: the masker says what hidden features look like.

        Returns:
            2-element tuple of **perturbations** (float, 1 where hidden), **perturbed inputs**.

        Raises:
            InputError: Not the examples that this object was made for.
        """
        if isinstance(inputs, tuple):
            if len(inputs) != 1:
                raise InputError(f"RandomMasking perturbs one input, not {len(inputs)}")
            inputs = inputs[0]
        examples = len(self._batch)
        samples, rest = divmod(len(inputs), examples)
        if rest or not samples or inputs.shape[1:] != self._batch.main.shape[1:]:
            raise InputError(
                f"this perturbation was made for inputs of shape {tuple(self._batch.main.shape)} "
                f"and cannot be used for {tuple(inputs.shape)}; make a new one for other examples"
            )
        hidden = torch.stack([self._draw() for _ in range(samples)], 1).flatten(0, 1)
        rows = torch.arange(examples).repeat_interleave(samples)
        batch = self._batch.take(rows).with_main(inputs)
        masked = self.masker.masked(batch, hidden)
        if any(value is not batch.named[name] for name, value in masked.named.items()):
            raise InputError(_only_replaced(self.masker))
        return self._indicator(hidden, batch), masked.main

    def _draw(self) -> Tensor:
        """One sample for each example: which of its features are hidden."""
        hidden = torch.zeros_like(self._features)
        for row, generator in enumerate(self._generators):
            places = self._features[row].nonzero()[:, 0]
            count = len(places)
            if self.share is None:
                wanted = int(torch.rand((), generator=generator) * count) + 1
            else:
                wanted = int(count * self.share + 0.5)
            order = torch.rand(count, generator=generator).argsort()
            hidden[row, places[order[: min(max(wanted, 1), count)]]] = True
        return hidden

    def _indicator(self, hidden: Tensor, batch: Batch) -> Tensor:
        inputs = batch.main
        dtype = inputs.dtype if inputs.is_floating_point() else torch.get_default_dtype()
        if hidden.shape == inputs.shape:
            return hidden.to(inputs.device, dtype)
        # what is hidden looks the same whatever was there before
        empty, full = (
            self.masker.masked(batch.with_main(fill(inputs)), hidden).main
            for fill in (torch.zeros_like, torch.ones_like)
        )
        return (empty == full).to(dtype)


class GaussianNoise:
    r"""
    Gaussian noise with a seed: a ``perturb_func`` for ``captum.metrics.infidelity``.

    Args:
        stdev (float): Standard deviation of the noise.
        multiply_by_inputs (bool): For relevance that is gradient times input: divide the noise by
            the input (by input minus baseline where Captum passes baselines), as Captum's
            ``infidelity_perturb_func_decorator`` does. For gradients (``TokenSaliency``,
            ``multiply_by_inputs=False``) leave it as it is.
        seed (int): Of the noise. An object goes on where it stopped; see :meth:`restart`.

    Raises:
        InputError: A standard deviation that is not positive.

    Example::

        >>> from captum_lrp_tx.metrics.captum_arguments import embedded_inputs
        >>> forward, embeddings, more = embedded_inputs(model, inputs)
        >>> relevance = ConservativeGI(forward).attribute(embeddings, 1, more)
        >>> scores = infidelity(
        ...     forward, GaussianNoise(0.01), embeddings, relevance,
        ...     additional_forward_args=more, target=1,
        ... )
    """

    def __init__(
        self, stdev: float = 0.01, *, multiply_by_inputs: bool = True, seed: int = 0
    ) -> None:
        if not stdev > 0:
            raise InputError(f"stdev must be positive, not {stdev}")
        self.stdev = stdev
        self.multiply_by_inputs = multiply_by_inputs
        self.seed = seed
        self.restart()

    def restart(self) -> None:
        """Draw the same noise again."""
        self._generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, inputs: Any, baselines: Any = None) -> tuple[Any, Any]:
        """Perturbations and perturbed inputs, tuples of them for a tuple of inputs.

        Raises:
            InputError: Inputs that are no floats.
        """
        several = isinstance(inputs, tuple)
        tensors = inputs if several else (inputs,)
        starts = baselines if isinstance(baselines, tuple) else (baselines,) * len(tensors)
        perturbations, perturbed = [], []
        for x, start in zip(tensors, starts, strict=True):
            _check_float(x)
            noise = torch.randn(x.shape, generator=self._generator).to(x.device, x.dtype)
            noise *= self.stdev
            perturbed.append(x - noise)
            if self.multiply_by_inputs:
                whole = x if start is None else x - start
                noise = safe_div(noise, whole, default_denom=1.0)
            perturbations.append(noise)
        if several:
            return tuple(perturbations), tuple(perturbed)
        return perturbations[0], perturbed[0]


class UniformNoise:
    r"""
    Uniform noise with a seed: a ``perturb_func`` for ``captum.metrics.sensitivity_max``.

    What Captum does by default, from a generator of its own instead of the global one.

    Args:
        seed (int): Of the noise. An object goes on where it stopped; see :meth:`restart`.

    Example::

        >>> from captum.metrics import sensitivity_max
        >>> from captum_lrp_tx import ConservativeLRP
        >>> from captum_lrp_tx.models import digit_samples, digits
        >>> pixels, labels = digit_samples()
        >>> changes = sensitivity_max(
        ...     ConservativeLRP(digits()).attribute, pixels[:2], UniformNoise(1),
        ...     perturb_radius=0.05, target=labels[:2],
        ... )
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.restart()

    def restart(self) -> None:
        """Draw the same noise again."""
        self._generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, inputs: Any, perturb_radius: float = 0.02) -> Any:
        """Inputs with noise of at most ``perturb_radius`` on each entry.

        Raises:
            InputError: Inputs that are no floats.
        """
        if isinstance(inputs, tuple):
            return tuple(self(x, perturb_radius) for x in inputs)
        _check_float(inputs)
        noise = torch.rand(inputs.shape, generator=self._generator) * 2 - 1
        return inputs + perturb_radius * noise.to(inputs.device, inputs.dtype)


class NoiseOfEach:
    """:class:`UniformNoise` that each example has from its own generator, and none on padding.

    Args:
        contents (sequence of Tensor): Of the examples, without padding.
        seed (int): Of the noise.
        lengths (sequence of int, optional): How many tokens of each example get noise.
    """

    def __init__(
        self, contents: Sequence[Tensor], seed: int, lengths: Sequence[int] | None = None
    ) -> None:
        self._generators = [generator_of(content, seed) for content in contents]
        self._lengths = lengths

    def __call__(self, inputs: Tensor, perturb_radius: float = 0.02) -> Tensor:
        """Inputs with noise, the samples of one example next to each other."""
        noise = torch.zeros(inputs.shape)
        samples = len(inputs) // len(self._generators)
        for place, row in enumerate(noise):
            example = place // samples
            own = row if self._lengths is None else row[: self._lengths[example]]
            own.copy_(torch.rand(own.shape, generator=self._generators[example]) * 2 - 1)
        return inputs + perturb_radius * noise.to(inputs.device, inputs.dtype)


def _only_replaced(masker: Masker) -> str:
    return (
        f"{masker!r} does not hide features by replacing them in the inputs, which is all that "
        "Captum's metrics do; use MaskTokens or MaskPatches"
    )


def _check_float(x: Any) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = f"{x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(
            f"noise cannot be added to {kind}; for token ids use RandomMasking, or embedded_inputs "
            "and noise on the embeddings"
        )
