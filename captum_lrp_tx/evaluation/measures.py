"""What is measured of an explanation, by the names that it has in tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Union

from torch import Tensor

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.metrics import curves, eraser
from captum_lrp_tx.metrics.curves import Curve, Fractions
from captum_lrp_tx.metrics.perturbation import Perturbation

Measured = Union[Curve, Tensor]


@dataclass(frozen=True)
class Measure:
    """A metric of the tables.

    Attributes:
        name (str): To ask for it.
        title (str): In tables.
        higher (bool): Whether more is better.
        is_curve (bool): Whether it is the area of a curve, or one number for each example.
        axis (str): What a curve shows.
        steps (str): What the fractions of a curve are, in words.
        compute (callable): From perturbation, attributions and fractions.
    """

    name: str
    title: str
    higher: bool
    is_curve: bool
    axis: str
    steps: str
    compute: Callable[[Perturbation, Any, Fractions], Measured]


MEASURES: tuple[Measure, ...] = (
    Measure(
        "activation", "AUAC", True, True, "probability of the target", "inserted",
        lambda p, a, f: curves.activation_curve(p, attributions=a, fractions=f),
    ),
    Measure(
        "pruning", "AU-MSE", False, True, "squared change of the logits", "removed",
        lambda p, a, f: curves.pruning_curve(p, attributions=a, fractions=f),
    ),
    Measure(
        "deletion", "deletion (MoRF)", False, True, "probability of the target", "removed",
        lambda p, a, f: curves.deletion_curve(p, attributions=a, fractions=f),
    ),
    Measure(
        "deletion-lerf", "deletion (LeRF)", True, True, "probability of the target", "removed",
        lambda p, a, f: curves.deletion_curve(p, attributions=a, fractions=f, order="lerf"),
    ),
    Measure(
        "insertion-lerf", "insertion (LeRF)", False, True, "probability of the target", "inserted",
        lambda p, a, f: curves.insertion_curve(p, attributions=a, fractions=f, order="lerf"),
    ),
    Measure(
        "comprehensiveness", "comprehensiveness", True, False, "", "",
        lambda p, a, f: eraser.comprehensiveness(p, attributions=a),
    ),
    Measure(
        "sufficiency", "sufficiency", False, False, "", "",
        lambda p, a, f: eraser.sufficiency(p, attributions=a),
    ),
    Measure(
        "log-odds", "log-odds", False, False, "", "",
        lambda p, a, f: eraser.log_odds(p, attributions=a),
    ),
)  # fmt: skip


def find_measure(name: str) -> Measure:
    """The metric of a name.

    Args:
        name (str): As in ``MEASURES``.

    Raises:
        InputError: There is none.

    Example::

        >>> find_measure("activation").title
        'AUAC'
    """
    for measure in MEASURES:
        if name in (measure.name, measure.title):
            return measure
    names = ", ".join(measure.name for measure in MEASURES)
    raise InputError(f"unknown metric {name!r}; the metrics are: {names}")
