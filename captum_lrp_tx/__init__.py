"""Truthful explanations of transformer predictions, as Captum attribution classes."""

from captum_lrp_tx import audit, rules
from captum_lrp_tx._version import __version__
from captum_lrp_tx.attr.conservative_gi import ConservativeGI
from captum_lrp_tx.attr.conservative_lrp import ConservativeLRP
from captum_lrp_tx.attr.layer import LayerConservativeGI, LayerConservativeLRP
from captum_lrp_tx.rules.composite import Composite

__all__ = [
    "Composite",
    "ConservativeGI",
    "ConservativeLRP",
    "LayerConservativeGI",
    "LayerConservativeLRP",
    "__version__",
    "audit",
    "rules",
]
