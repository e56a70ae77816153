"""What named constants absorb: the part of an output that no token has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Union

from torch import nn

from captum_lrp_tx.attr.conservative import forward_of
from captum_lrp_tx.attr.conservative_gi import ConservativeGI
from captum_lrp_tx.attr.layer import LayerConservativeGI, LayerConservativeLRP
from captum_lrp_tx.attr.mappings import inputs_of
from captum_lrp_tx.metrics.batches import Batch
from captum_lrp_tx.propagation.engine import propagate
from captum_lrp_tx.rules.composite import Composite
from captum_lrp_tx.rules.rule import Bias

#: A preset or composite, or one with a treatment of biases for ``ConservativeLRP``.
Rules = Union[str, Composite, tuple[Union[str, Composite], Bias]]


def at_layers(
    model: Callable[..., Any], layers: list[nn.Module], rules: Rules
) -> LayerConservativeGI:
    """The attribution at some layers that a rule set stands for.

    Args:
        model (nn.Module or callable): What is explained.
        layers (list of Module): Of the model.
        rules (str, Composite or pair): See ``Rules``.
    """
    if isinstance(rules, tuple):
        return LayerConservativeLRP(model, layers, rules[0], bias=rules[1])
    return LayerConservativeGI(model, layers, rules)


def called(batch: Batch) -> tuple[Any, Any]:
    """Inputs and additional arguments of ``attribute`` for a batch."""
    inputs: Any = batch.main
    if batch.key is not None:
        inputs = {batch.key: batch.main, **batch.named}
    return inputs, batch.extra or None


def absorbed_behind(
    model: Callable[..., Any], batch: Batch, target: Any, rules: Rules, block: nn.Module
) -> float:
    """Relevance that named constants take between the output and the input of a block.

    Args:
        model (nn.Module or callable): What is explained.
        batch (Batch): One example.
        target: Its target, as for ``attribute``.
        rules (str, Composite or pair): See ``Rules``.
        block (Module): The first block.

    Returns:
        float: In units of the explained output.
    """
    explainer = at_layers(model, [block], rules)
    inputs, additional = called(batch)
    job = explainer._pass(
        forward_of(explainer), target, additional, layers=[block], at_layer_input=True,
        keep_ledger=True,
    )  # fmt: skip
    ledger = propagate(job, inputs_of(inputs)).scope.ledger
    assert ledger is not None
    return sum(ledger.by_name().values())


def absorbed_in_all(explainer: ConservativeGI, inputs: Any, target: Any) -> float:
    """Relevance that named constants take between the output and the inputs.

    Args:
        explainer (ConservativeGI): With its rules.
        inputs (Tensor or mapping): One example.
        target: As for ``attribute``.

    Returns:
        float: In units of the explained output.
    """
    job = explainer._pass(forward_of(explainer), target, None, keep_ledger=True)
    ledger = propagate(job, inputs_of(inputs)).scope.ledger
    assert ledger is not None
    return sum(ledger.by_name().values())
