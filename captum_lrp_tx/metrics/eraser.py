"""Comprehensiveness, sufficiency and log-odds: what a prediction loses with its rationale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from captum_lrp_tx.attr.conservative import AttributionInputs, TargetType
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.metrics.curves import deletion_curve, insertion_curve, own_options
from captum_lrp_tx.metrics.perturbation import Perturbation

#: Shares of the tokens that are taken as rationale (DeYoung et al. 2020, section 4).
BINS: tuple[float, ...] = (0.01, 0.05, 0.1, 0.2, 0.5)


def comprehensiveness(
    model: Callable[..., Any] | Perturbation,
    inputs: AttributionInputs | None = None,
    attributions: Any = None,
    target: TargetType = None,
    additional_forward_args: Any = None,
    *,
    bins: Sequence[float] = BINS,
    **options: Any,
) -> Tensor:
    r"""
    How much probability the target loses without the most relevant features: higher is better.

    The mean over the bins of p(whole) - p(without the ``ceil(bin * n)`` most relevant features).

    Source: DeYoung et al., "ERASER", ACL 2020, section 4, with the five bins given there and the
    mean over the bins as in their published code. They delete tokens; here ``masker`` says what
    takes their place.

    Args:
        model, inputs, attributions, target, additional_forward_args: See
            :func:`~captum_lrp_tx.metrics.curves.perturbation_curve`.
        bins (sequence of float): Rising shares of the features.
        options: ``masker``, ``measure``, ``ranking``, ``batch_size``, ``show_progress``: see
            :func:`~captum_lrp_tx.metrics.curves.perturbation_curve`.

    Returns:
        Tensor: Shape ``(examples,)``, float64.

    Raises:
        InputError, TargetError, NonFiniteError, OutputError: Arguments that do not fit.

    Example::

        >>> scores = comprehensiveness(model, inputs, relevance, 1, masker=masker)
        ... # doctest: +SKIP
    """
    curve = deletion_curve(
        model, inputs, attributions, target, additional_forward_args,
        **own_options("comprehensiveness", options, fractions=_with_zero(bins)),
    ).values  # fmt: skip
    return (curve[:, :1] - curve[:, 1:]).mean(1)


def sufficiency(
    model: Callable[..., Any] | Perturbation,
    inputs: AttributionInputs | None = None,
    attributions: Any = None,
    target: TargetType = None,
    additional_forward_args: Any = None,
    *,
    bins: Sequence[float] = BINS,
    **options: Any,
) -> Tensor:
    r"""
    How much probability the target loses with only the most relevant features: lower is better.

    The mean over the bins of p(whole) - p(only the ``ceil(bin * n)`` most relevant features).

    Source: DeYoung et al., "ERASER", ACL 2020, section 4; see :func:`comprehensiveness`.

    Args:
        model, inputs, attributions, target, additional_forward_args, bins, options: See
            :func:`comprehensiveness`.

    Returns:
        Tensor: Shape ``(examples,)``, float64.

    Raises:
        InputError, TargetError, NonFiniteError, OutputError: Arguments that do not fit.

    Example::

        >>> scores = sufficiency(model, inputs, relevance, 1, masker=masker)  # doctest: +SKIP
    """
    shares = _with_zero(bins)[1:]
    # at fraction 1 everything is inserted: the whole input
    steps = shares if shares[-1] == 1 else (*shares, 1.0)
    curve = insertion_curve(
        model, inputs, attributions, target, additional_forward_args,
        **own_options("sufficiency", options, fractions=steps),
    ).values  # fmt: skip
    return (curve[:, -1:] - curve[:, : len(shares)]).mean(1)


def log_odds(
    model: Callable[..., Any] | Perturbation,
    inputs: AttributionInputs | None = None,
    attributions: Any = None,
    target: TargetType = None,
    additional_forward_args: Any = None,
    *,
    fraction: float = 0.2,
    **options: Any,
) -> Tensor:
    r"""
    Log of the target's probability without the most relevant features, minus that of the whole.

    Lower (more negative) is better.

    Source: Chen, Zheng and Ji, "Generating Hierarchical Explanations on Text Classification via
    Feature Interaction Detection", ACL 2020, section 4.3, after Shrikumar, Greenside and Kundaje,
    "Learning Important Features Through Propagating Activation Differences", ICML 2017. They
    replace tokens by padding; here ``masker`` says what takes their place.

    Args:
        model, inputs, attributions, target, additional_forward_args, options: See
            :func:`comprehensiveness`.
        fraction (float): Share of the features that is hidden, between 0 and 1.

    Returns:
        Tensor: Shape ``(examples,)``, float64.

    Raises:
        InputError, TargetError, NonFiniteError, OutputError: Arguments that do not fit.

    Example::

        >>> scores = log_odds(model, inputs, relevance, 1, masker=masker)  # doctest: +SKIP
    """
    curve = deletion_curve(
        model, inputs, attributions, target, additional_forward_args,
        **{"measure": "log probability",
           **own_options("log_odds", options, fractions=_with_zero((fraction,)))},
    ).values  # fmt: skip
    return curve[:, 1] - curve[:, 0]


def _with_zero(bins: Sequence[float]) -> tuple[float, ...]:
    found = tuple(float(share) for share in bins)
    if not found or not found[0] > 0 or not found[-1] <= 1:
        raise InputError(f"shares of the features must be above 0 and at most 1, not {bins!r}")
    return (0.0, *found)
