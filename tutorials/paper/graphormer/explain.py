"""Relevance of each atom, by every method of the papers' tables.

The model is explained as it is: atom ids are looked up in eight embedding tables (type, six
features, degree), and an atom's relevance is the sum over them.  Integrated Gradients and its like
interpolate, so they get the embedded atoms and start where all atoms are masked.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_lrp_tx.methods import METHODS
from captum_lrp_tx.methods.registry import Method
from tutorials.paper.graphormer.model import FromEmbeddings, Graphormer
from tutorials.paper.graphormer.molecules import Graphs

#: Names of all methods, in the order of the table.
ALL: tuple[str, ...] = tuple(method.name for method in METHODS)
_INTERPOLATING = frozenset({"IG", "GradientShap", "Saliency"})


def relevance_of(
    model: Graphormer, method: Method, graphs: Graphs, target: Tensor, seed: int = 0
) -> Tensor:
    """Relevance of each token for the logit of a class.

    Args:
        model (Graphormer): In evaluation mode.
        method (Method): Of :data:`captum_lrp_tx.methods.METHODS`.
        graphs (Graphs): A batch.
        target (Tensor): Class of each molecule, shape ``(batch,)``.
        seed (int): Of methods that are random.

    Returns:
        Tensor: shape ``(batch, T)``; the virtual node, where it has relevance, is token 0.

    Example::

        >>> relevance_of(model, find_method("LRP"), graph_of("CCO"), torch.tensor([1])).shape
        torch.Size([1, 4])
    """
    settings: dict[str, Any] = {"seed": seed, "baseline": None}
    if method.name not in _INTERPOLATING:
        explainer = method.load()(model, **method.options, **_wanted(method, settings))
        found: Tensor = explainer.attribute(graphs.atoms, target, graphs.structure)
        return found.detach()
    with torch.no_grad():
        embedded = embed(model, graphs)
        settings["baseline"] = embed(model, graphs.masked(torch.ones_like(graphs.attention_mask)))
    structure = (graphs.distances, graphs.paths, graphs.attention_mask)
    subject = FromEmbeddings(model).eval()
    explainer = method.load()(subject, **method.options, **_wanted(method, settings))
    found = explainer.attribute(embedded, target, structure)
    return found.detach().sum(-1) * graphs.attention_mask


def embed(model: Graphormer, graphs: Graphs) -> Tensor:
    """What a :class:`~.model.FromEmbeddings` takes, shape ``(batch, T, width)``."""
    return model.embed(graphs.atoms, graphs.features, graphs.degrees)


def _wanted(method: Method, settings: dict[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in method.takes}
