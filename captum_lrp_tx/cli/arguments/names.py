"""Names that help texts list, in the order of the tables that own them.

The tables themselves hold classes and need torch; ``tests`` hold these names to them.
"""

from __future__ import annotations

#: Of :data:`captum_lrp_tx.rules.PRESETS`.
PRESETS: tuple[str, ...] = (
    "gi", "ah", "ln", "ah+ln", "lrp", "lrp-gated", "lrp-gamma", "mambalrp", "attnlrp",
    "attnlrp-gamma", "language", "language-ah",
)  # fmt: skip
#: Of :data:`captum_lrp_tx.methods.METHODS`.
METHODS: tuple[str, ...] = (
    "Random", "A-Last", "Rollout", "A-Flow", "GAE", "GI", "LRP(AH)", "LRP(LN)", "LRP(AH+LN)", "LRP",
    "LRP-gamma", "AttnLRP", "Chefer", "IG", "GradientShap", "Saliency",
)  # fmt: skip
#: Of what stands for several methods.
SELECTIONS: dict[str, tuple[str, ...]] = {
    "all": METHODS,
    "paper": ("Random", "A-Last", "A-Flow", "Rollout", "GAE", "GI", "LRP(AH)", "LRP(LN)",
              "LRP(AH+LN)"),
}  # fmt: skip
#: Of the methods that a report shows unless told otherwise.
REPORTED: tuple[str, ...] = ("LRP", "LRP(AH+LN)", "GI", "GAE", "Rollout", "Random")
#: Of :data:`captum_lrp_tx.evaluation.MEASURES`.
METRICS: tuple[str, ...] = (
    "activation", "pruning", "deletion", "deletion-lerf", "insertion-lerf", "comprehensiveness",
    "sufficiency", "log-odds",
)  # fmt: skip
