"""What named constants absorb: the part of an output that no token has."""

from __future__ import annotations

from typing import Any

from captum_lrp_tx.attr.conservative import Conservative, forward_of
from captum_lrp_tx.attr.mappings import inputs_of
from captum_lrp_tx.propagation.engine import propagate


def absorbed_by_constants(
    explainer: Conservative, inputs: Any, target: Any, additional: Any = None, **options: Any
) -> float:
    """Relevance that named constants take between the output and where the pass ends.

    Args:
        explainer (Conservative): With its rules.
        inputs (Tensor or mapping): One example.
        target: As for ``attribute``.
        additional (Any, optional): Further arguments of the model.
        options: Of the pass: the layers where it ends, if not at the inputs.

    Returns:
        float: In units of the explained output.
    """
    job = explainer._pass(forward_of(explainer), target, additional, keep_ledger=True, **options)
    ledger = propagate(job, inputs_of(inputs)).scope.ledger
    assert ledger is not None
    return sum(ledger.by_name().values())
