"""Captum's infidelity and sensitivity of several methods on the same perturbations: a table."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor, nn
from tqdm import tqdm

from captum_lrp_tx.attr.class_names import by_number
from captum_lrp_tx.attr.conservative import AttributionInputs, TargetType, select_target
from captum_lrp_tx.attr.token_gradients import Baseline
from captum_lrp_tx.errors import InputError, NonFiniteError, TargetError
from captum_lrp_tx.methods.registry import Chosen, Method, choose_methods
from captum_lrp_tx.methods.running import ROUNDING, reason
from captum_lrp_tx.metrics.batches import Batch, of_one_length
from captum_lrp_tx.metrics.bootstrap import Interval, bootstrap_interval
from captum_lrp_tx.metrics.captum_arguments import (
    EmbeddedInputs,
    embedded_inputs,
    explanation,
    spread_over_pixels,
)
from captum_lrp_tx.metrics.captum_perturbations import NoiseOfEach, RandomMasking
from captum_lrp_tx.metrics.captum_table import CaptumScore, CaptumScores
from captum_lrp_tx.metrics.masking import Masker
from captum_lrp_tx.metrics.targets import counts_from_end, target_classes, target_outputs
from captum_lrp_tx.propagation.model.modules import find_modules

#: The rules of Ali et al. 2022 one by one and together, and Integrated Gradients.
RULES_AND_IG: tuple[str, ...] = ("GI", "LRP(AH)", "LRP(LN)", "LRP(AH+LN)", "LRP", "IG")
_EXAMPLES_AT_ONCE = 16


def captum_scores(
    model: Callable[..., Any],
    inputs: AttributionInputs,
    methods: str | Sequence[Chosen] = RULES_AND_IG,
    *,
    masker: Masker,
    target: TargetType = None,
    additional_forward_args: Any = None,
    n_perturb_samples: int = 50,
    n_noise_samples: int = 10,
    perturb_radius: float = 0.1,
    share: float | None = None,
    baseline: Baseline = None,
    batch_size: int = 64,
    confidence: float = 0.95,
    seed: int = 0,
    show_progress: bool = False,
) -> CaptumScores:
    r"""
    Infidelity and sensitivity by ``captum.metrics`` of several methods, for text and images.

    **Infidelity**: tokens or patches are hidden at random (:class:`RandomMasking`); the sum of the
    relevance of what was hidden is compared with the change of the output. All methods see the same
    perturbations, which for each example depend on the seed and on its content only. Relevance of
    patches counts for all their pixels in equal shares.
    What hidden features are replaced by matters: gradient x input and LRP explain against an input
    of zeros, Integrated Gradients against its baseline, so ``MaskPatches(4, value=0.0)`` suits the
    former even where the background has another value.

    **Sensitivity**: uniform noise is added to the pixels or, for text, to the word embeddings, and
    the relevance of the tokens, pixels or patches is compared with that of the original. Methods
    that do not look at embeddings (random relevance) do not change on text.

    Source: Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019.

    Args:
        model (nn.Module or callable): As for every attribution class of this package. Call
            ``model.eval()`` before.
        inputs (Tensor or mapping): A batch of token ids, of images ``(batch, channels, height,
            width)``, or what a tokenizer returns (padded).
        methods (str or sequence): See :func:`captum_lrp_tx.methods.choose_methods`.
        masker (Masker): What is hidden: ``MaskTokens.from_tokenizer(tokenizer, "mask",
            keep_special=True)``, ``MaskPatches(4, value=-1.0)``.
        target (int, str, tuple, Tensor, list or Target, optional): As for ``attribute``, or names
            of classes; the predicted classes unless given. A place counted from the end,
            ``(-1, token)``, counts padding, as it does there.
        additional_forward_args (Any, optional): Further positional arguments of the model.
        n_perturb_samples (int): Random maskings for each example.
        n_noise_samples (int): Noisy copies of each example.
        perturb_radius (float): Largest noise, in standard deviations of the inputs (of the word
            embeddings for text) over all examples.
        share (float, optional): Share of the features to hide; see :class:`RandomMasking`.
        baseline (int, float or Tensor, optional): Of the methods that have one; unless given the
            inputs with everything hidden that the masker can hide, which suits their infidelity.
        batch_size (int): How many inputs go through a model or method at once.
        confidence (float): Of the bootstrap intervals.
        seed (int): Of perturbations, noise, random methods and bootstrap.
        show_progress (bool): Show a progress bar on standard error if it takes more than a second.

    Returns:
        CaptumScores: One row for each method; a method that does not apply has the reason instead
        of numbers.

    Raises:
        InputError: Unknown methods, inputs that do not fit the masker, or numbers out of range.
        TargetError: The target does not fit, or is missing for an output of more dimensions.
        NonFiniteError: The output is NaN or infinite.

    Example::

        >>> from captum_lrp_tx.metrics.patches import MaskPatches
        >>> from captum_lrp_tx.models import digit_samples, digits
        >>> images, labels = digit_samples()
        >>> scores = captum_scores(
        ...     digits(), images[:4], ["GI", "LRP"], target=labels[:4],
        ...     masker=MaskPatches(4, value=-1.0),
        ... )
        >>> print(scores)  # doctest: +SKIP
    """
    chosen = choose_methods(methods)
    for name, number in (
        ("n_perturb_samples", n_perturb_samples), ("n_noise_samples", n_noise_samples),
        ("batch_size", batch_size), ("perturb_radius", perturb_radius),
    ):  # fmt: skip
        if not number > 0:
            raise InputError(f"{name} must be positive, not {number}")
    whole = Batch.of(inputs, additional_forward_args)
    chunks = list(_chunks(model, whole, masker, target, batch_size))
    radius = perturb_radius * _deviation(chunks)
    settings = _Settings(
        n_perturb_samples, n_noise_samples, radius, share, baseline, batch_size, seed
    )
    reference = torch.cat([c.infidelity(torch.zeros_like(c.main), settings)[0] for c in chunks])
    rows = []
    with tqdm(
        total=len(chosen) * len(chunks), desc="scores", unit="batch", delay=1, leave=False,
        disable=not (show_progress and sys.stderr.isatty()),
    ) as bar:  # fmt: skip
        for method in chosen:
            bar.set_postfix_str(method.name)
            found: list[dict[str, Tensor]] = []
            try:
                for chunk in chunks:
                    found.append(chunk.scores(method, settings))
                    bar.update()
            except Exception as error:
                bar.update(len(chunks) - len(found))
                rows.append(CaptumScore(method.name, None, None, None, 0, error=reason(error)))
                continue
            values = {key: torch.cat([part[key] for part in found]) for key in found[0]}
            rows.append(_row(method.name, values, confidence, seed))
    what = "tokens" if chunks[0].is_ids else "patches"
    noise = "word embeddings" if chunks[0].is_ids else "inputs"
    said = (
        f"{len(whole)} examples; mean [{confidence * 100:g} % bootstrap interval]; infidelity: "
        f"{n_perturb_samples} random sets of hidden {what}, {masker!r}; sensitivity: "
        f"{n_noise_samples} noisy copies, uniform noise of {perturb_radius:g} standard deviations "
        f"({radius:.2g}) of the {noise}; seed {seed}"
    )
    shown = bootstrap_interval(reference, confidence=confidence, seed=seed)
    return CaptumScores(tuple(rows), shown, said)


@dataclass(frozen=True)
class _Settings:
    samples: int
    noise_samples: int
    radius: float
    share: float | None
    baseline: Baseline
    batch_size: int
    seed: int


class _Chunk:
    """Some examples, with their targets and what the model says about them."""

    def __init__(
        self,
        model: Callable[..., Any],
        batch: Batch,
        masker: Masker,
        lengths: Sequence[int] | None,
        targets: Sequence[Any] | None,
    ) -> None:
        self.model = model
        self.batch = batch
        self.masker = masker
        self.lengths = lengths
        self.main = batch.main
        self.targets = [None] * len(batch) if targets is None else list(targets)
        if targets is None:
            self.targets = self._predicted()
        self.is_ids = not batch.main.is_floating_point()
        self.embedded = self._embedded() if self.is_ids else None
        self._outputs: dict[bytes, Tensor] = {}
        self.output = self.forward(batch.main)
        if not bool(torch.isfinite(self.output).all()):
            raise NonFiniteError(
                "the explained output is NaN or infinite; look at the inputs and the weights"
            )

    def parts(self, main: Tensor) -> Iterator[tuple[Tensor, Batch, Tensor, list[Any]]]:
        """Every example so many times, as Captum repeats them, those of one length together.

        Padding is left out, for some models see it.

        Args:
            main (Tensor): Token ids, pixels or embedded tokens, each example as often.

        Yields:
            tuple: rows of ``main``, what else the model gets for them, these rows, their targets.
        """
        count = len(self.batch)
        times = torch.arange(len(main) // count)
        for numbers in of_one_length(self.lengths or [0] * count, count):
            rows = (torch.tensor(numbers)[:, None] * len(times) + times).flatten()
            owners = rows // len(times)
            tokens = None if self.lengths is None else self.lengths[numbers[0]]
            own = main[rows] if tokens is None else main[rows][:, :tokens]
            yield rows, self.batch.take(owners, tokens), own, [self.targets[i] for i in owners]

    def _joined(self, parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """What was found for some of the rows, in their order and filled up with zeros."""
        values = [value for _, value in parts]
        if self.lengths is not None and values[0].dim() > 1:
            width = self.main.shape[1]
            values = [
                nn.functional.pad(v, (0, 0) * (v.dim() - 2) + (0, width - v.shape[1]))
                for v in values
            ]
        order = torch.cat([rows for rows, _ in parts]).argsort()
        return torch.cat(values)[order.to(values[0].device)]

    @torch.no_grad()
    def _predicted(self) -> list[Any]:
        found = self.targets
        for rows, batch, main, _ in self.parts(self.main):
            output = batch.with_main(main).call(self.model)
            if output.dim() > 1:
                classes = target_classes(None, target_outputs(output, None, rows), self.model)
                for row, one in zip(rows.tolist(), classes.tolist(), strict=True):
                    found[row] = one
        return found

    def _embedded(self) -> EmbeddedInputs:
        found, parts = None, []
        for rows, batch, _, _ in self.parts(self.main):
            found = embedded_inputs(self.model, batch.inputs, batch.extra or None)
            parts.append((rows, found.inputs))
        assert found is not None
        return found._replace(inputs=self._joined(parts))

    def _fresh_outputs(self, main: Tensor) -> Tensor:
        parts = []
        for rows, batch, own, targets in self.parts(main):
            output = select_target(batch.with_main(own).call(self.model), targets)
            parts.append((rows, output.detach().reshape(len(rows))))
        return self._joined(parts)

    @torch.no_grad()
    def forward(self, main: Tensor) -> Tensor:
        """Explained output of perturbed inputs; computed once for all methods."""
        content = main.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        key = hashlib.blake2b(content, digest_size=16).digest()
        if key not in self._outputs:
            self._outputs[key] = self._fresh_outputs(main)
        return self._outputs[key]

    def infidelity(self, relevance: Tensor, settings: _Settings) -> tuple[Tensor, Tensor]:
        """Captum's infidelity as it is and scaled, of each example.

        In double precision: the scaled one is the small rest of sums of squares.
        """
        count = len(self.batch)
        found = []
        for normalize in (False, True):
            perturb = RandomMasking(
                self.masker, self.batch.inputs, share=settings.share, seed=settings.seed
            )
            at_once = min(max(settings.batch_size, count), count * settings.samples)
            score = infidelity(
                lambda main: self.forward(main).double(), perturb, self.main, relevance.double(),
                normalize=normalize,
                n_perturb_samples=settings.samples, max_examples_per_batch=at_once,
            )  # fmt: skip
            found.append(score.detach().cpu().reshape(count).clamp(min=0.0))
        return found[0], found[1]

    def explain(self, method: Method, settings: _Settings, inputs: Any) -> tuple[Tensor, ...]:
        """Relevance of the (perturbed) inputs: of tokens, pixels or patches."""
        main = inputs[0] if isinstance(inputs, tuple) else inputs
        parts = []
        for rows, batch, own, targets in self.parts(main):
            relevance = self._explain(method, settings, batch, own, targets)
            if not bool(torch.isfinite(relevance).all()):
                raise NonFiniteError("the relevance is NaN or infinite")
            parts.append((rows, relevance))
        return (self._joined(parts),)

    def _explain(
        self, method: Method, settings: _Settings, batch: Batch, main: Tensor, targets: list[Any]
    ) -> Tensor:
        attribution = self._attribution(method, settings, batch)
        options: dict[str, Any] = {"target": targets}
        if self.is_ids and main.is_floating_point():
            assert self.embedded is not None
            more = (batch.main, *batch.extra, *batch.named.values())
            found = self.embedded.forward.explanation(attribution)(
                main, additional_forward_args=more, **options
            )
        else:
            options["additional_forward_args"] = batch.extra or None
            found = explanation(attribution)(batch.with_main(main).inputs, **options)
        if len(found) != 1:
            raise InputError(f"the method explains {len(found)} tensors, not one")
        relevance = found[0].detach()
        # at embedded tokens or patches
        return relevance.sum(-1) if relevance.dim() == 3 else relevance

    def _attribution(self, method: Method, settings: _Settings, batch: Batch) -> Any:
        baseline = settings.baseline
        if baseline is None and "baseline" in method.takes:
            baseline = self.masker.masked(batch, self.masker.features(batch)).main
        return method.attribution(self.model, baseline=baseline, seed=settings.seed)

    def scores(self, method: Method, settings: _Settings) -> dict[str, Tensor]:
        """All scores of one method, of each example."""
        relevance = self.explain(method, settings, self.main)[0]
        entries = relevance
        if relevance.dim() == 2 and self.main.dim() == 4:
            entries = spread_over_pixels(relevance, self.main)
        if entries.shape != self.main.shape:
            raise InputError(
                f"relevance of shape {tuple(relevance.shape)} does not fit inputs of shape "
                f"{tuple(self.main.shape)}"
            )
        plain, scaled = self.infidelity(entries, settings)
        count = len(self.batch)
        start = self.main if self.embedded is None else self.embedded.inputs
        at_once = min(max(settings.batch_size, count), count * settings.noise_samples)
        lengths = self.lengths or [self.main.shape[1]] * count
        own = [x[:length] for x, length in zip(self.main, lengths, strict=True)]
        noise = NoiseOfEach(own, settings.seed, self.lengths)
        changes = sensitivity_max(
            lambda inputs: self.explain(method, settings, inputs), start, noise,
            perturb_radius=settings.radius, n_perturb_samples=settings.noise_samples,
            max_examples_per_batch=at_once,
        ).detach().double().cpu().reshape(count)  # fmt: skip
        # an output may happen to be near zero; rounding errors are those of the usual size
        size = self.output.abs().cpu()
        size = size.maximum(size.mean())
        zero = relevance.flatten(1).abs().amax(1).cpu() <= ROUNDING * size
        return {
            "infidelity": plain,
            "scaled_infidelity": scaled.masked_fill(zero, float("nan")),
            "sensitivity": changes.masked_fill(zero, float("nan")),
        }


def _chunks(
    model: Callable[..., Any], whole: Batch, masker: Masker, target: TargetType, batch_size: int
) -> Iterator[_Chunk]:
    """A few examples at a time, without padding that none of them needs."""
    targets = _targets(by_number(target, find_modules(model)), len(whole))
    lengths = None if counts_from_end(target) else masker.lengths(whole)
    portion = min(_EXAMPLES_AT_ONCE, batch_size)
    for start in range(0, len(whole), portion):
        rows = torch.arange(start, min(start + portion, len(whole)))
        own = None if lengths is None else lengths[rows].tolist()
        batch = whole.take(rows, None if own is None else max(own))
        chosen = None if targets is None else [targets[i] for i in rows.tolist()]
        yield _Chunk(model, batch, masker, own, chosen)


def _targets(target: Any, count: int) -> list[Any] | None:
    if target is None:
        return None
    if isinstance(target, Tensor):
        target = int(target) if target.numel() == 1 else target.tolist()
    if not isinstance(target, list):
        return [target] * count
    if len(target) != count:
        raise TargetError(f"{len(target)} targets for {count} examples; give one for each")
    return target


def _deviation(chunks: Sequence[_Chunk]) -> float:
    """Standard deviation of what noise is added to; padding does not count."""
    parts = []
    for chunk in chunks:
        if chunk.embedded is None:
            parts.append(chunk.main.flatten())
            continue
        rows = chunk.embedded.inputs
        shown = chunk.batch.attention_mask
        if shown is None:
            lengths = chunk.lengths or [rows.shape[1]] * len(rows)
            ends = torch.tensor(lengths, device=rows.device)[:, None]
            shown = torch.arange(rows.shape[1], device=rows.device) < ends
        parts.append(rows[shown].flatten())
    return float(torch.cat(parts).double().std(correction=0)) or 1.0


def _row(name: str, values: dict[str, Tensor], confidence: float, seed: int) -> CaptumScore:
    def interval(key: str) -> Interval | None:
        known = values[key][~values[key].isnan()]
        if not len(known):
            return None
        return bootstrap_interval(known, confidence=confidence, seed=seed)

    count = len(values["infidelity"])
    zero = int(values["sensitivity"].isnan().sum())
    note = ""
    if zero:
        which = "the relevance" if zero == count else f"the relevance of {zero} examples"
        note = f"{which} is zero up to rounding, which has no scale and no sensitivity"
    return CaptumScore(
        name,
        interval("infidelity"),
        interval("scaled_infidelity"),
        interval("sensitivity"),
        count,
        note=note,
        values=values,
    )
