"""Judging a case again where float32, or epsilon, may be to blame for a difference."""

from __future__ import annotations

import dataclasses
import warnings

import torch

import oracle
from captum_lrp_tx import Composite, ConservativeLRP
from families.common import TOLERANCE, Case, Outcome, check


def settled(case: Case, preset: str) -> Outcome:
    """:func:`~families.common.check`, and where it finds a difference, the same in float64.

    Rounding moves some activations across the kink of a ReLU or exchanges the largest of a pooling
    window, and epsilon damps the relevance of pre-activations of its own size, which the oracle's
    LRP-0 does not.  In float64 without epsilon neither happens, and only mistakes are left.
    """
    outcome = check(case, preset)
    if outcome.status != "wrong" or not case.inputs.is_floating_point():
        return outcome
    composite = Composite(base=preset)
    if preset == "lrp":
        composite = composite.with_epsilon(0.0)
    case.model.double()
    try:
        precise = dataclasses.replace(case, inputs=case.inputs.double())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            relevance = ConservativeLRP(case.forward, composite).attribute(
                precise.inputs, target=case.target, strict=True
            )
        (expected,) = oracle.oracle_relevance(case.forward, (precise.inputs,), preset, case.select)
    finally:
        case.model.float()
    assert isinstance(relevance, torch.Tensor)
    error = float((relevance - expected).abs().max() / expected.abs().max())
    # ten thousand times stricter, for there is no rounding to allow for
    return Outcome("verified" if error <= 1e-4 * TOLERANCE else "wrong", outcome.reason, error)
