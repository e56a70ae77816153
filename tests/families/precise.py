"""Judging a case again where float32, or epsilon, may be to blame for a difference."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

import oracle
from captum_lrp_tx import Composite, ConservativeLRP
from families.common import TOLERANCE, Case, Outcome, check


def settled(case: Case, preset: str) -> Outcome:
    """:func:`~families.common.check`, and where it finds a difference, float64 without epsilon.

    Rounding moves some activations across the kink of a ReLU or exchanges the largest of a pooling
    window, however large the difference then is, and epsilon damps the relevance of pre-activations
    of its own size, which the oracle's LRP-0 does not. In float64 without epsilon neither happens,
    and only mistakes are left. The case is left in the dtype in which it came.
    """
    inputs = case.inputs
    try:
        outcome = check(case, preset)
        if outcome.status == "wrong" and inputs.is_floating_point():
            case.model.double()
            outcome = _without_rounding(case, preset, inputs.double())
    finally:
        if inputs.is_floating_point():
            case.model.to(inputs.dtype)
        case.inputs = inputs
    return outcome


def _without_rounding(case: Case, preset: str, inputs: Tensor) -> Outcome:
    composite = Composite(base=preset)
    if preset == "lrp":
        composite = composite.with_epsilon(0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        relevance = ConservativeLRP(case.forward, composite).attribute(
            inputs, target=case.target, strict=True
        )
    (expected,) = oracle.oracle_relevance(case.forward, (inputs,), preset, case.select)
    assert isinstance(relevance, torch.Tensor)
    error = float((relevance - expected).abs().max() / expected.abs().max())
    # ten thousand times stricter, for there is no rounding to allow for
    return Outcome("verified" if error <= 1e-4 * TOLERANCE else "wrong", "", error)
