"""Truthful explanations of transformer predictions, as Captum attribution classes."""

from captum_lrp_tx import audit, insights, methods, metrics, rules, visualization
from captum_lrp_tx._version import __version__
from captum_lrp_tx.attr import targets
from captum_lrp_tx.attr.attention_alone import AttentionFlow, AttentionLast, AttentionRollout
from captum_lrp_tx.attr.bilrp import BiLRP
from captum_lrp_tx.attr.conservative_gi import ConservativeGI
from captum_lrp_tx.attr.conservative_lrp import ConservativeLRP
from captum_lrp_tx.attr.dataloader import LoaderAttribution
from captum_lrp_tx.attr.gradient_attention import GenericAttention
from captum_lrp_tx.attr.layer import LayerConservativeGI, LayerConservativeLRP
from captum_lrp_tx.attr.parts import (
    Directions,
    MaskedLRP,
    PartRelevance,
    PartRelevances,
    PatchingEffects,
    RelevancePatching,
)
from captum_lrp_tx.attr.random import RandomAttribution
from captum_lrp_tx.attr.token_gradients import (
    TokenGradientShap,
    TokenIntegratedGradients,
    TokenSaliency,
)
from captum_lrp_tx.attr.transformer_attribution import TransformerAttribution
from captum_lrp_tx.comparing import compare
from captum_lrp_tx.datasets import attribute_dataset, read_dataset
from captum_lrp_tx.explaining import Explanation, Explanations, explain
from captum_lrp_tx.reporting import report
from captum_lrp_tx.rules.composite import Composite
from captum_lrp_tx.support import supported

__all__ = [
    "AttentionFlow",
    "AttentionLast",
    "AttentionRollout",
    "BiLRP",
    "Composite",
    "ConservativeGI",
    "ConservativeLRP",
    "Directions",
    "Explanation",
    "Explanations",
    "GenericAttention",
    "LayerConservativeGI",
    "LayerConservativeLRP",
    "LoaderAttribution",
    "MaskedLRP",
    "PartRelevance",
    "PartRelevances",
    "PatchingEffects",
    "RandomAttribution",
    "RelevancePatching",
    "TokenGradientShap",
    "TokenIntegratedGradients",
    "TokenSaliency",
    "TransformerAttribution",
    "__version__",
    "attribute_dataset",
    "audit",
    "compare",
    "explain",
    "insights",
    "methods",
    "metrics",
    "read_dataset",
    "report",
    "rules",
    "supported",
    "targets",
    "visualization",
]
