from . import (
    attr,
    audit,
    comparing,
    datasets,
    errors,
    evaluation,
    explaining,
    insights,
    methods,
    metrics,
    models,
    reporting,
    rules,
    support,
    visualization,
)
from ._version import __version__
from .attr import targets
from .attr.answer import AnswerLRP, AnswerRelevance
from .attr.attention_alone import AttentionFlow, AttentionLast, AttentionRollout
from .attr.bilrp import BiLRP
from .attr.conservative_gi import ConservativeGI
from .attr.conservative_lrp import ConservativeLRP
from .attr.dataloader import LoaderAttribution
from .attr.gradient_attention import GenericAttention
from .attr.layer import LayerConservativeGI, LayerConservativeLRP
from .attr.parts import (
    Directions,
    EdgeRelevance,
    MaskedLRP,
    PartGraph,
    PartNode,
    PartRelevance,
    PartRelevances,
    PatchingEffects,
    RelevancePatching,
)
from .attr.random import RandomAttribution
from .attr.token_gradients import (
    TokenGradientShap,
    TokenIntegratedGradients,
    TokenSaliency,
)
from .attr.transformer_attribution import TransformerAttribution
from .comparing import compare
from .datasets import attribute_dataset, read_dataset
from .explaining import Explanation, Explanations, explain
from .reporting import report
from .rules.composite import Composite
from .support import supported

__all__ = [
    "AnswerLRP",
    "AnswerRelevance",
    "AttentionFlow",
    "AttentionLast",
    "AttentionRollout",
    "BiLRP",
    "Composite",
    "ConservativeGI",
    "ConservativeLRP",
    "Directions",
    "EdgeRelevance",
    "Explanation",
    "Explanations",
    "GenericAttention",
    "LayerConservativeGI",
    "LayerConservativeLRP",
    "LoaderAttribution",
    "MaskedLRP",
    "PartGraph",
    "PartNode",
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
    "attr",
    "attribute_dataset",
    "audit",
    "compare",
    "comparing",
    "datasets",
    "errors",
    "evaluation",
    "explain",
    "explaining",
    "insights",
    "methods",
    "metrics",
    "models",
    "read_dataset",
    "report",
    "reporting",
    "rules",
    "support",
    "supported",
    "targets",
    "visualization",
]
