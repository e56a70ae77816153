"""Faithfulness curves: what a model does as features appear or disappear in order of relevance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union

import numpy as np
import torch
from torch import Tensor

from captum_lrp_tx.attr.conservative import AttributionInputs, TargetType
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.metrics import perturbation as measures
from captum_lrp_tx.metrics.bootstrap import Interval, bootstrap_interval
from captum_lrp_tx.metrics.masking import Masker
from captum_lrp_tx.metrics.perturbation import Measure, Perturbation

#: Fractions of the features, or ``"all"`` for one step after each feature.
Fractions = Union[Sequence[float], Literal["all"]]
Order = Literal["morf", "lerf"]
Ranking = Literal["signed", "absolute"]
#: As in the published code of Ali et al.: ``numpy.linspace(0, 1, 11)``.
FRACTIONS: tuple[float, ...] = tuple(float(f) for f in np.linspace(0.0, 1.0, 11))
_MEASURES: dict[str, Measure] = {
    "probability": measures.probability,
    "sigmoid": measures.sigmoid,
    "logit": measures.logit,
    "log probability": measures.log_probability,
    "squared change": measures.squared_change,
}
#: What they are of models that answer for every class by itself.
_MULTI_LABEL: dict[str, Measure] = {
    "probability": measures.sigmoid,
    "log probability": measures.log_sigmoid,
}


@dataclass(frozen=True, eq=False)
class Curve:
    """What was measured at each step, for each example.

    Attributes:
        name (str): Of the curve.
        fractions (Tensor): Fraction of the features that were inserted or removed, ``(steps,)``;
            ``(examples, steps)`` if every feature is a step, where short examples repeat their
            last step.
        values (Tensor): Shape ``(examples, steps)``, float64.

    Example::

        >>> curve = Curve("activation", torch.tensor([0.0, 0.5, 1.0]), torch.tensor([[0.0, 1, 1]]))
        >>> curve.area
        tensor([0.7500], dtype=torch.float64)
    """

    name: str
    fractions: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "fractions", torch.as_tensor(self.fractions).double())
        object.__setattr__(self, "values", torch.as_tensor(self.values).double())
        if self.values.dim() != 2 or self.fractions.shape not in (
            self.values.shape,
            self.values.shape[1:],
        ):
            raise InputError(
                f"values of shape {tuple(self.values.shape)} do not fit fractions of shape "
                f"{tuple(self.fractions.shape)}"
            )

    def __len__(self) -> int:
        return self.values.shape[0]

    @property
    def area(self) -> Tensor:
        """Area under the curve of each example by the trapezoidal rule, ``(examples,)``."""
        return torch.trapezoid(self.values, self.fractions.expand_as(self.values), dim=1)

    @property
    def mean(self) -> float:
        """Mean area: AUAC of an activation curve, AU-MSE of a pruning curve."""
        return float(self.area.mean())

    def interval(
        self, confidence: float = 0.95, *, resamples: int = 10_000, seed: int = 0
    ) -> Interval:
        """Bootstrap interval of the mean area over the examples.

        Args:
            confidence (float): Of the interval.
            resamples (int): How many bootstrap samples.
            seed (int): Of the samples.
        """
        return bootstrap_interval(self.area, confidence=confidence, resamples=resamples, seed=seed)

    def at(self, fractions: Sequence[float] | Tensor) -> Tensor:
        """Values at other fractions, by linear interpolation: ``(examples, len(fractions))``.

        Args:
            fractions (sequence of float or Tensor): Between 0 and 1, shape ``(n,)``.
        """
        wanted = torch.as_tensor(fractions, dtype=torch.float64).numpy()
        own = self.fractions.expand_as(self.values).numpy()
        rows = [np.interp(wanted, x, y) for x, y in zip(own, self.values.numpy(), strict=True)]
        return torch.from_numpy(np.stack(rows))

    @classmethod
    def joined(cls, curves: Sequence[Curve]) -> Curve:
        """One curve of all examples of several.

        Args:
            curves (sequence of Curve): With the same steps, or with every feature as a step.

        Raises:
            InputError: None, or with different steps.
        """
        if not curves:
            raise InputError("there are no curves to join; give at least one")
        first = curves[0]
        values = [curve.values for curve in curves]
        if all(c.fractions.dim() == 1 for c in curves):
            if any(not torch.equal(c.fractions, first.fractions) for c in curves):
                raise InputError(
                    "the curves have different fractions; measure them with the same ones"
                )
            return cls(first.name, first.fractions, torch.cat(values))
        steps = max(value.shape[1] for value in values)
        fractions = [curve.fractions.expand_as(curve.values) for curve in curves]
        return cls(
            first.name,
            torch.cat([_lengthened(f, steps) for f in fractions]),
            torch.cat([_lengthened(v, steps) for v in values]),
        )


def perturbation_curve(
    model: Callable[..., Any] | Perturbation,
    inputs: AttributionInputs | None = None,
    attributions: Any = None,
    target: TargetType = None,
    additional_forward_args: Any = None,
    *,
    masker: Masker | None = None,
    start: Literal["masked", "whole"],
    order: Order = "morf",
    ranking: Ranking = "signed",
    measure: str | Measure = "probability",
    fractions: Fractions = FRACTIONS,
    batch_size: int | None = None,
    show_progress: bool = False,
    name: str = "",
) -> Curve:
    r"""
    The general curve, of which the others in this module are special cases.

    At fraction ``f`` of ``n`` features, ``ceil(f * n)`` of them have been inserted or removed.
    Among equal relevance the earlier feature comes first.

    Args:
        model (nn.Module, callable or Perturbation): The model as for ``attribute``; or a
            :class:`Perturbation`, which holds the arguments ``inputs``, ``target``,
            ``additional_forward_args``, ``masker``, ``batch_size`` and ``show_progress``.
        inputs (Tensor or mapping): A batch of examples; a tokenizer's output may be padded.
        attributions (Tensor): Relevance of the features, or of tokens and pixels that the masker
            adds up to features.
        target (int, tuple, Tensor or list, optional): Captum's targets; the predicted classes
            unless given.
        additional_forward_args (Any, optional): Further positional arguments of the model.
        masker (Masker): What is hidden, and how.
        start (str): ``"masked"``: begin with everything hidden and insert; ``"whole"``: begin with
            the whole input and remove.
        order (str): ``"morf"``: the most relevant features first; ``"lerf"``: the least relevant.
        ranking (str): ``"signed"`` relevance, or its ``"absolute"`` value.
        measure (str or callable): ``"probability"`` (softmax, or sigmoid where the configuration
            of a model says ``multi_label_classification``), ``"sigmoid"``, ``"logit"``, ``"log
            probability"``, ``"squared change"`` (of the logits, summed over the classes), or a
            function of the variants' outputs, the whole inputs' outputs (both ``(n, classes)``)
            and the target classes ``(n,)`` that returns one number for each.
        fractions (sequence of float or str): Rising, between 0 and 1; or ``"all"`` for a step
            after each feature.
        batch_size (int, optional): How many variants run through the model at once; unless given
            so many that they have 2,048 tokens together, or 64 images.
        show_progress (bool): Show a progress bar on standard error if it takes long.
        name (str): Of the curve.

    Returns:
        Curve: One row for each example.

    Raises:
        InputError, TargetError, NonFiniteError, OutputError: Arguments that do not fit.

    Example::

        >>> curve = perturbation_curve(model, inputs, relevance, 1, masker=MaskTokens(100),
        ...     start="whole", order="lerf", measure="logit")  # doctest: +SKIP
    """
    _one_of("start", start, ("masked", "whole"))
    _one_of("order", order, ("morf", "lerf"))
    _one_of("ranking", ranking, ("signed", "absolute"))
    if isinstance(measure, str):
        _one_of("measure", measure, tuple(_MEASURES))
    if isinstance(model, Perturbation):
        if any(
            given is not None
            for given in (inputs, target, additional_forward_args, masker, batch_size)
        ):
            raise InputError(
                "a Perturbation holds inputs, target, masker and batch_size already; give only "
                "attributions=... beside it"
            )
        used = model
    else:
        if masker is None or inputs is None:
            raise InputError("inputs and masker are needed, e.g. masker=MaskTokens(token_id)")
        used = Perturbation(
            model, inputs, target, additional_forward_args, masker=masker, batch_size=batch_size,
            show_progress=show_progress,
        )  # fmt: skip
    if attributions is None:
        raise InputError("attributions are missing; give attributions=")
    if measure in _MULTI_LABEL:
        used.check_probabilities()
    named = {**_MEASURES, **(_MULTI_LABEL if used.is_multi_label else {})}
    measured = named[measure] if isinstance(measure, str) else measure
    steps = _steps(fractions)
    scores = used.scores(attributions)
    counts = used.counts
    ranks = _ranks(scores, used.features, order, ranking)
    if steps is None:
        moved = torch.minimum(torch.arange(int(counts.max()) + 1)[None], counts[:, None])
        at = moved / counts[:, None].double()
    else:
        # float64, as numpy.ceil(fraction * n) in the published code
        moved = torch.from_numpy(np.ceil(steps[None] * counts.numpy()[:, None])).long()
        at = torch.from_numpy(steps)
    if start == "whole":
        hidden = moved
    else:  # the features that come last are those still hidden
        hidden = counts[:, None] - moved
        ranks = counts[:, None] - 1 - ranks
    return Curve(name, at, used.values(ranks, hidden, measured, name))


def activation_curve(
    model: Callable[..., Any] | Perturbation,
    inputs: AttributionInputs | None = None,
    attributions: Any = None,
    target: TargetType = None,
    additional_forward_args: Any = None,
    *,
    measure: str | Measure = "probability",
    **options: Any,
) -> Curve:
    r"""
    Activation task: features are inserted into a fully masked input, the most relevant first.

    The area of the target's probability is the AUAC: higher is better.

    Source: Ali et al., "XAI for Transformers", ICML 2022, section 5 (after Schnake et al. 2021);
    steps and counts as in their published code. There the target is the label of the example.

    Args:
        model, inputs, attributions, target, additional_forward_args: See
            :func:`perturbation_curve`.
        measure (str or callable): See :func:`perturbation_curve`.
        options: ``masker``, ``fractions``, ``batch_size``, ``show_progress``: see
            :func:`perturbation_curve`.

    Returns:
        Curve: ``curve.mean`` is the AUAC, ``curve.interval()`` its bootstrap interval.

    Raises:
        InputError, TargetError, NonFiniteError, OutputError: Arguments that do not fit.

    Example::

        >>> from captum_lrp_tx import ConservativeGI
        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> inputs = tokenizer(["a charming film", "dull"], padding=True, return_tensors="pt")
        >>> relevance = ConservativeGI(model).attribute(inputs, target=[1, 0])
        >>> masker = MaskTokens.from_tokenizer(tokenizer)  # doctest: +SKIP
        >>> activation_curve(model, inputs, relevance, [1, 0], masker=masker)  # doctest: +SKIP
    """
    return perturbation_curve(
        model, inputs, attributions, target, additional_forward_args,
        **own_options("activation", options, start="masked"), measure=measure,
    )  # fmt: skip


def pruning_curve(
    model: Callable[..., Any] | Perturbation,
    inputs: AttributionInputs | None = None,
    attributions: Any = None,
    target: TargetType = None,
    additional_forward_args: Any = None,
    *,
    measure: str | Measure = "squared change",
    **options: Any,
) -> Curve:
    r"""
    Pruning task: features are removed, those of the smallest absolute relevance first.

    The area of the squared change of the logits, summed over the classes, is the AU-MSE: lower is
    better.

    Source: Ali et al., "XAI for Transformers", ICML 2022, section 5; the sum over the classes as
    in their published code.

    Args:
        model, inputs, attributions, target, additional_forward_args: See
            :func:`perturbation_curve`.
        measure (str or callable): See :func:`perturbation_curve`.
        options: ``masker``, ``fractions``, ``batch_size``, ``show_progress``: see
            :func:`perturbation_curve`.

    Returns:
        Curve: ``curve.mean`` is the AU-MSE, ``curve.interval()`` its bootstrap interval.

    Raises:
        InputError, TargetError, NonFiniteError, OutputError: Arguments that do not fit.

    Example::

        >>> pruning_curve(model, inputs, relevance, 1, masker=masker).mean  # doctest: +SKIP
    """
    chosen = own_options("pruning", options, start="whole", order="lerf", ranking="absolute")
    return perturbation_curve(
        model, inputs, attributions, target, additional_forward_args, measure=measure, **chosen
    )


def insertion_curve(
    model: Callable[..., Any] | Perturbation,
    inputs: AttributionInputs | None = None,
    attributions: Any = None,
    target: TargetType = None,
    additional_forward_args: Any = None,
    **options: Any,
) -> Curve:
    r"""
    Features are inserted into a fully masked input (``order="morf"`` or ``"lerf"``).

    Source: Petsiuk, Das and Saenko, "RISE", BMVC 2018.

    Args:
        model, inputs, attributions, target, additional_forward_args: See
            :func:`perturbation_curve`.
        options: ``masker``, ``order``, ``ranking``, ``measure``, ``fractions``, ``batch_size``,
            ``show_progress``: see :func:`perturbation_curve`.

    Returns:
        Curve: With ``"morf"`` a larger area is better, with ``"lerf"`` a smaller one.

    Raises:
        InputError, TargetError, NonFiniteError, OutputError: Arguments that do not fit.

    Example::

        >>> insertion_curve(model, inputs, relevance, 1, masker=masker).mean  # doctest: +SKIP
    """
    return perturbation_curve(
        model, inputs, attributions, target, additional_forward_args,
        **own_options("insertion", options, start="masked"),
    )  # fmt: skip


def deletion_curve(
    model: Callable[..., Any] | Perturbation,
    inputs: AttributionInputs | None = None,
    attributions: Any = None,
    target: TargetType = None,
    additional_forward_args: Any = None,
    **options: Any,
) -> Curve:
    r"""
    Features are removed from the whole input (``order="morf"`` or ``"lerf"``).

    Source: Samek et al., "Evaluating the Visualization of What a Deep Neural Network Has Learned",
    IEEE TNNLS 2017 (MoRF and LeRF); Petsiuk, Das and Saenko, "RISE", BMVC 2018.

    Args:
        model, inputs, attributions, target, additional_forward_args: See
            :func:`perturbation_curve`.
        options: ``masker``, ``order``, ``ranking``, ``measure``, ``fractions``, ``batch_size``,
            ``show_progress``: see :func:`perturbation_curve`.

    Returns:
        Curve: With ``"morf"`` a smaller area is better, with ``"lerf"`` a larger one.

    Raises:
        InputError, TargetError, NonFiniteError, OutputError: Arguments that do not fit.

    Example::

        >>> deletion_curve(model, inputs, relevance, 1, masker=masker, order="lerf")
        ... # doctest: +SKIP
    """
    return perturbation_curve(
        model, inputs, attributions, target, additional_forward_args,
        **own_options("deletion", options, start="whole"),
    )  # fmt: skip


def own_options(name: str, options: dict[str, Any], **own: Any) -> dict[str, Any]:
    """The options of a special case, which are refused where it has its own.

    Raises:
        InputError: One of them would have no effect.
    """
    for option in own.keys() & options.keys():
        raise InputError(
            f"{name} has {option}={own[option]!r} and takes no other; perturbation_curve() does"
        )
    return {"name": name, **options, **own}


def _ranks(scores: Tensor, features: Tensor, order: Order, ranking: Ranking) -> Tensor:
    """Position of each feature in its example's order; features that stay come last."""
    keys = scores.abs() if ranking == "absolute" else scores
    keys = -keys if order == "morf" else keys
    keys = keys.masked_fill(~features, math.inf)
    return torch.argsort(torch.argsort(keys, dim=1, stable=True), dim=1)


def _steps(fractions: Fractions) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    if isinstance(fractions, str):
        _one_of("fractions", fractions, ("all",))
        return None
    steps = np.asarray(fractions, dtype=np.float64)
    if steps.ndim != 1 or len(steps) < 1 or not (np.diff(steps) > 0).all() or not (
        steps[0] >= 0 and steps[-1] <= 1
    ):  # fmt: skip
        raise InputError(
            f"fractions must be 'all' or rising numbers between 0 and 1, not {fractions!r}"
        )
    return steps


def _lengthened(values: Tensor, steps: int) -> Tensor:
    return torch.cat([values, values[:, -1:].expand(-1, steps - values.shape[1])], dim=1)


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{name} must be one of {', '.join(map(repr, known))}, not {value!r}")
