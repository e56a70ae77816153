"""Numbers of the paper, as far as they could be found, and where.

Source: the AUAC table in A. Airaud, F. Estignard and N. Toumi, "XAI for Transformers", a summary of
the paper published on 28 March 2025 by the Institut Polytechnique de Paris
(responsible-ai-datascience-ipparis.github.io/posts/xai_transformers).  The paper itself was not at
hand when this table was made, so these are second-hand numbers.  The summary has neither AU-MSE
nor the rows LRP(AH), LRP(LN) and A-Flow nor the data sets from Twitter, MELD and Semaine: those
cells are marked as not found instead of being filled from anywhere else.
"""

from __future__ import annotations

#: AUAC by data set of the paper, then method.
AUAC: dict[str, dict[str, float]] = {
    "IMDB": {"Random": 0.673, "A-Last": 0.708, "Rollout": 0.738, "GAE": 0.872, "GI": 0.920,
             "LRP(AH+LN)": 0.939},
    "SST-2": {"Random": 0.664, "A-Last": 0.712, "Rollout": 0.713, "GAE": 0.821, "GI": 0.847,
              "LRP(AH+LN)": 0.908},
    "BACE": {"Random": 0.624, "A-Last": 0.620, "Rollout": 0.653, "GAE": 0.675, "GI": 0.646,
             "LRP(AH+LN)": 0.707},
    "MNIST": {"Random": 0.324, "A-Last": 0.862, "Rollout": 0.358, "GAE": 0.426, "GI": 0.942,
              "LRP(AH+LN)": 0.948},
}  # fmt: skip

#: Which data set of the paper stands beside which of ours.
COUNTERPARTS: dict[str, str] = {
    "sst2": "SST-2",
    "long": "IMDB",
    "emotion": "T-Emotions",
    "hate": "T-Hate",
    "sentiment": "T-Sentiment",
    "meld": "MELD-S",
    "mnist": "MNIST",
    "mnist-black": "MNIST",
    "bace": "BACE",
}

#: Methods that the paper's tables have.
OF_THE_PAPER = (
    "Random", "A-Last", "A-Flow", "Rollout", "GAE", "GI", "LRP(AH)", "LRP(LN)", "LRP(AH+LN)",
)  # fmt: skip
NOT_FOUND = "not found"


def find(metric: str, dataset: str, method: str) -> str:
    """The paper's number as text.

    Args:
        metric (str): ``"auac"`` or ``"au_mse"``.
        dataset (str): Ours.
        method (str): As in the tables.

    Returns:
        str: The number, ``"not found"``, or nothing if the paper has no such method.

    Example::

        >>> find("auac", "sst2", "GI"), find("au_mse", "sst2", "GI"), find("auac", "sst2", "IG")
        ('0.847', 'not found', '')
    """
    if method not in OF_THE_PAPER or dataset not in COUNTERPARTS:
        return ""
    value = AUAC.get(COUNTERPARTS[dataset], {}).get(method) if metric == "auac" else None
    return NOT_FOUND if value is None else f"{value:.3f}"
