"""Relevance of each atom, by every method of the papers' tables.

The model is explained as it is: atom ids are looked up in eight embedding tables (type, six
features, degree), and an atom's relevance is the sum over them.  Integrated Gradients and its like
interpolate, so they get the embedded atoms and start where all atoms are masked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_lrp_tx import ConservativeLRP
from captum_lrp_tx.attr.token_gradients import OnTokens
from captum_lrp_tx.methods import METHODS, Method, choose_methods, find_method, run
from experiments.ali2022.graphormer.model import FromEmbeddings, Graphormer
from experiments.ali2022.graphormer.molecules import Graphs

#: The preset that did best on validation examples of texts and digits, beside the package's own.
_SEARCHED = (
    "AttnLRP-gamma", lambda model: ConservativeLRP(model, "attnlrp-gamma", bias="distribute")
)  # fmt: skip
#: Names of all methods, in the order of the table.
ALL: tuple[str, ...] = (*(method.name for method in METHODS), _SEARCHED[0])


def method_of(name: str) -> Method:
    """A method of the table, by its name.

    Raises:
        InputError: If there is none.
    """
    return choose_methods([_SEARCHED])[0] if name == _SEARCHED[0] else find_method(name)


def relevance_of(
    model: Graphormer, method: Method, graphs: Graphs, target: Tensor, seed: int = 0
) -> Tensor:
    """Relevance of each token for the logit of a class.

    Args:
        model (Graphormer): In evaluation mode.
        method (Method): See :func:`method_of`.
        graphs (Graphs): A batch.
        target (Tensor): Class of each molecule, shape ``(batch,)``.
        seed (int): Of methods that are random.

    Returns:
        Tensor: shape ``(batch, T)``; the virtual node, where it has relevance, is token 0.

    Example::

        >>> relevance_of(model, find_method("LRP"), graph_of("CCO"), torch.tensor([1])).shape
        torch.Size([1, 4])
    """
    if not isinstance(method.make, type) or not issubclass(method.make, OnTokens):
        return run(method, model, graphs.atoms, target, graphs.structure, seed=seed).relevance
    with torch.no_grad():
        embedded = embed(model, graphs)
        baseline = embed(model, graphs.masked(torch.ones_like(graphs.attention_mask)))
    structure = (graphs.distances, graphs.paths, graphs.attention_mask)
    subject = FromEmbeddings(model).eval()
    found = run(method, subject, embedded, target, structure, baseline=baseline, seed=seed)
    return found.relevance.sum(-1) * graphs.attention_mask


def embed(model: Graphormer, graphs: Graphs) -> Tensor:
    """What a :class:`~.model.FromEmbeddings` takes, shape ``(batch, T, width)``."""
    return model.embed(graphs.atoms, graphs.features, graphs.degrees)
