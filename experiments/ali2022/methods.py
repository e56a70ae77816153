"""Which methods the experiments compare.

A further method is one more line in ``METHODS``: a name of ``captum_lrp_tx.methods.METHODS``, or a
name with a function that makes an attribution from the model::

    ("winner", lambda model: ConservativeLRP(model, rules="my preset")),

The next run of an experiment computes only what is not there yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from captum_lrp_tx import (
    ConservativeGI,
    ConservativeLRP,
    LayerConservativeGI,
    TokenIntegratedGradients,
)
from captum_lrp_tx.attr.layer import LayerConservativeLRP
from captum_lrp_tx.methods import Chosen

#: In the order of the tables: those of the paper, then the others. Gradient x input and LRP take
#: relevance at the output of the embedding block, as in the published code of the paper, unless
#: their name says otherwise.
METHODS: tuple[Chosen, ...] = (
    "Random",
    "A-Last",
    "A-Flow",
    "Rollout",
    "GAE",
    "GI",
    "LRP(AH)",
    "LRP(LN)",
    "LRP(AH+LN)",
    "LRP",
    "LRP-gamma",
    "AttnLRP",
    ("AttnLRP-gamma",
     lambda model: ConservativeLRP(model, "attnlrp-gamma", bias="distribute")),
    "Chefer",
    ("GI at inputs", lambda model: ConservativeGI(model, rules="gi")),
    ("LRP(AH+LN) at inputs", lambda model: ConservativeGI(model, rules="ah+ln")),
    ("LRP at inputs", lambda model: ConservativeLRP(model)),
    ("LRP at inputs, words only", lambda model: WordsOnly(ConservativeLRP(model))),
    ("LRP-gamma, words only",
     lambda model: WordsOnly(ConservativeLRP(model, "lrp-gamma", bias="distribute"))),
)  # fmt: skip
#: Slow methods see only so many examples; fewer where these are long.
LIMITS: dict[str, int] = {"A-Flow": 20}
LIMITS_OF_LONG: dict[str, int] = {"A-Flow": 2}
#: What all data sets get; SST-2 gets everything.
EVERYWHERE = (
    "Random", "A-Last", "A-Flow", "Rollout", "GAE", "GI", "LRP(AH)", "LRP(LN)", "LRP(AH+LN)", "LRP",
    "LRP-gamma", "AttnLRP", "AttnLRP-gamma", "IG [UNK]", "IG black",
)  # fmt: skip
#: Steps of Integrated Gradients.
IG_STEPS = 50


def integrated(name: str, baseline: int | float) -> Chosen:
    """Integrated Gradients from a baseline.

    Args:
        name (str): In tables.
        baseline (int or float): A token id, or the value of a pixel.
    """

    def make(model: Any) -> Any:
        return TokenIntegratedGradients(model, baseline=baseline, n_steps=IG_STEPS)

    return name, make


class AtEmbeddings:
    """Relevance of tokens at the output of the embedding block, summed over its dimensions.

    Args:
        model (nn.Module): With a ``base_model`` that has ``embeddings``.
        rules (str): A preset of ``ConservativeGI``, or ``"lrp"``.
        options: Of the attribution class.

    Example::

        >>> AtEmbeddings(model, "ah+ln").attribute(inputs, target=1)  # doctest: +SKIP
    """

    def __init__(self, model: Any, rules: str, **options: Any) -> None:
        cls = LayerConservativeLRP if rules == "lrp" else LayerConservativeGI
        self._attribution = cls(model, model.base_model.embeddings, rules=rules, **options)

    def attribute(self, inputs: Any, target: Any = None) -> Tensor:
        """Shape ``(batch, tokens)``."""
        relevance = self._attribution.attribute(inputs, target=target)
        assert isinstance(relevance, Tensor)
        return relevance.detach().sum(-1)


class WordsOnly:
    """Relevance of word embeddings alone, without that of the positions and segments of the tokens.

    The other methods at inputs add it, which is what Bakish et al. (NeurIPS 2025) ask for where
    positions are learned embeddings.

    Args:
        attribution (ConservativeGI): Of a model with token ids and position embeddings.
    """

    def __init__(self, attribution: ConservativeGI) -> None:
        self._attribution = attribution

    def attribute(self, inputs: Any, target: Any = None) -> Tensor:
        """Shape ``(batch, tokens)``; of images, which have no words, the relevance as it is."""
        if isinstance(inputs, Tensor) and inputs.is_floating_point():
            relevance = self._attribution.attribute(inputs, target=target)
            assert isinstance(relevance, Tensor)
            return relevance
        parts = self._attribution.attribute(inputs, target=target, positions="separate")
        (words,) = [part for name, part in parts.items() if name.endswith("word_embeddings")]
        return words.detach()


class AtBlock:
    """Relevance of tokens at the input of a block of a BERT, summed over its dimensions.

    Args:
        model (nn.Module): A Hugging Face ``BertForSequenceClassification``.
        rules (str): A preset of ``ConservativeGI``.
        block (int): Which block, from 0.
    """

    def __init__(self, model: Any, rules: str, block: int) -> None:
        layer = model.base_model.encoder.layer[block]
        self._attribution = LayerConservativeGI(model, layer, rules=rules)

    def attribute(self, inputs: Any, target: Any = None) -> Tensor:
        """Shape ``(batch, tokens)``."""
        relevance = self._attribution.attribute(
            inputs, target=target, attribute_to_layer_input=True
        )
        assert isinstance(relevance, Tensor)
        return relevance.detach().sum(-1)


def by_depth(blocks: int) -> tuple[Chosen, ...]:
    """Gradient x input and LRP(AH+LN) at the input of every block.

    Args:
        blocks (int): How many the model has.

    Example::

        >>> [name for name, _ in by_depth(2)]
        ['GI, block 1', 'GI, block 2', 'LRP(AH+LN), block 1', 'LRP(AH+LN), block 2']
    """

    def maker(rules: str, block: int) -> Any:
        return lambda model: AtBlock(model, rules, block)

    return tuple(
        (f"{name}, block {block + 1}", maker(rules, block))
        for name, rules in (("GI", "gi"), ("LRP(AH+LN)", "ah+ln"))
        for block in range(blocks)
    )


def named(chosen: Sequence[Chosen], names: Sequence[str] | None) -> list[Chosen]:
    """Some of the methods.

    Args:
        chosen (sequence): Methods.
        names (sequence of str, optional): Which; all unless given.

    Raises:
        SystemExit: A name that is not there.

    Example::

        >>> named(METHODS, ["GI", "Random"])
        ['Random', 'GI']
    """
    known = {method if isinstance(method, str) else method[0]: method for method in chosen}
    unknown = set(names or ()) - set(known)
    if unknown:
        raise SystemExit(f"unknown methods {sorted(unknown)}; there are: {', '.join(known)}")
    return [method for name, method in known.items() if not names or name in names]
