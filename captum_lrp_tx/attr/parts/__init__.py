"""Heads, MLPs, neurons and directions: what goes through them, from which to which, what they do.

Nothing is asked of the model's class or of its names: heads are found where a pattern weighs
values, branches where something computed from the residual stream is added to it.
"""

from captum_lrp_tx.attr.parts.edge_relevance import EdgeRelevance
from captum_lrp_tx.attr.parts.masked import MaskedLRP
from captum_lrp_tx.attr.parts.part_graph import PartGraph, PartNode
from captum_lrp_tx.attr.parts.part_relevance import Directions, PartRelevance, PartRelevances
from captum_lrp_tx.attr.parts.patching import PartEffect, PatchingEffects, RelevancePatching

__all__ = [
    "Directions",
    "EdgeRelevance",
    "MaskedLRP",
    "PartEffect",
    "PartGraph",
    "PartNode",
    "PartRelevance",
    "PartRelevances",
    "PatchingEffects",
    "RelevancePatching",
]
