"""Heads, MLPs, neurons and directions: what goes through them, and what they do.

Nothing is asked of the model's class or of its names: heads are found where a pattern weighs
values, branches where something computed from the residual stream is added to it.
"""

from captum_lrp_tx.attr.parts.masked import MaskedLRP
from captum_lrp_tx.attr.parts.part_relevance import Directions, PartRelevance, PartRelevances
from captum_lrp_tx.attr.parts.patching import PartEffect, PatchingEffects, RelevancePatching

__all__ = [
    "Directions",
    "MaskedLRP",
    "PartEffect",
    "PartRelevance",
    "PartRelevances",
    "PatchingEffects",
    "RelevancePatching",
]
