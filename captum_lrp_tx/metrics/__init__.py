"""How faithful explanations are, and whether relevance is conserved.

* Perturbation: :func:`activation_curve` (AUAC), :func:`pruning_curve` (AU-MSE),
  :func:`insertion_curve`, :func:`deletion_curve`, :func:`comprehensiveness`,
  :func:`sufficiency`, :func:`log_odds`; what is hidden, and how, says a :class:`Masker`.
* Captum's infidelity and sensitivity of several methods: :func:`captum_scores`, and what they need
  for text and patches.
* Conservation, end to end and layer by layer: :func:`conservation`, :func:`conservation_figure`.
* Intervals: :func:`bootstrap_interval`, :func:`paired_bootstrap`.

Whole data sets with many methods: :mod:`captum_lrp_tx.evaluation`.
"""

from captum_lrp_tx.metrics.bootstrap import (
    Difference,
    Interval,
    bootstrap_interval,
    paired_bootstrap,
)
from captum_lrp_tx.metrics.captum_arguments import (
    captum_inputs,
    embedded_inputs,
    explanation,
    spread_over_pixels,
)
from captum_lrp_tx.metrics.captum_perturbations import GaussianNoise, RandomMasking, UniformNoise
from captum_lrp_tx.metrics.captum_scoring import captum_scores
from captum_lrp_tx.metrics.captum_table import CaptumScore, CaptumScores
from captum_lrp_tx.metrics.curves import (
    Curve,
    activation_curve,
    deletion_curve,
    insertion_curve,
    perturbation_curve,
    pruning_curve,
)
from captum_lrp_tx.metrics.eraser import comprehensiveness, log_odds, sufficiency
from captum_lrp_tx.metrics.masking import Masker, MaskTokens, RemoveTokens
from captum_lrp_tx.metrics.patches import MaskPatches, RemovePatches
from captum_lrp_tx.metrics.perturbation import Perturbation
from captum_lrp_tx.metrics.sums import Conservation, LevelConservation, conservation
from captum_lrp_tx.metrics.sums_figure import conservation_figure

__all__ = [
    "CaptumScore",
    "CaptumScores",
    "Conservation",
    "Curve",
    "Difference",
    "GaussianNoise",
    "Interval",
    "LevelConservation",
    "MaskPatches",
    "MaskTokens",
    "Masker",
    "Perturbation",
    "RandomMasking",
    "RemovePatches",
    "RemoveTokens",
    "UniformNoise",
    "activation_curve",
    "bootstrap_interval",
    "captum_inputs",
    "captum_scores",
    "comprehensiveness",
    "conservation",
    "conservation_figure",
    "deletion_curve",
    "embedded_inputs",
    "explanation",
    "insertion_curve",
    "log_odds",
    "paired_bootstrap",
    "perturbation_curve",
    "pruning_curve",
    "spread_over_pixels",
    "sufficiency",
]
