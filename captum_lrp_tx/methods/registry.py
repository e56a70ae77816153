"""The methods by the names that they have in the papers' tables."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from captum_lrp_tx.errors import InputError


@dataclass(frozen=True)
class Method:
    """An attribution class and how it is called in tables.

    Attributes:
        name (str): Name in tables.
        module (str): Where its class is; imported when it is used.
        cls (str): Name of the class: ``cls(model, **options)``.
        options (mapping): Its keyword arguments.
        signed (bool, optional): Whether relevance can speak against the output; None to judge by
            the values.
        aliases (tuple of str): Other names.
        takes (tuple of str): Which settings of a comparison (``baseline``, ``seed``) the class
            takes as keyword arguments.
    """

    name: str
    module: str
    cls: str
    options: Mapping[str, Any] = field(default_factory=dict)
    signed: bool | None = True
    aliases: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()

    def load(self) -> Callable[..., Any]:
        """The class.

        Raises:
            ImportError: If it is not part of this installation, or needs something that is not.
        """
        module = importlib.import_module(self.module)
        try:
            found: Callable[..., Any] = getattr(module, self.cls)
        except AttributeError as error:
            raise ImportError(f"{self.module} has no {self.cls}") from error
        return found


_ATTR = "captum_lrp_tx.attr."
_MAPS = _ATTR + "attention_maps"
_WEIGHTED = _ATTR + "gradient_attention"
_GI = _ATTR + "conservative_gi"
_LRP = _ATTR + "conservative_lrp"
_CAPTUM = _ATTR + "token_gradients"

#: In the order of the tables of Ali et al. 2022, then what came later, then Captum's own.
METHODS: tuple[Method, ...] = (
    Method("Random", _ATTR + "random", "RandomAttribution", signed=None, takes=("seed",)),
    Method("A-Last", _MAPS, "AttentionLast", signed=False,
           aliases=("last", "attention last", "attn last")),
    Method("Rollout", _MAPS, "AttentionRollout", signed=False,
           aliases=("attention rollout", "attn rollout", "a-rollout")),
    Method("A-Flow", _MAPS, "AttentionFlow", signed=False,
           aliases=("flow", "attention flow", "attn flow")),
    Method("GAE", _WEIGHTED, "GenericAttention", signed=None,
           aliases=("generic attention", "generic attention explainability")),
    Method("GI", _GI, "ConservativeGI", {"rules": "gi"},
           aliases=("gradient x input", "input x gradient", "gxi", "ixg")),
    Method("LRP(AH)", _GI, "ConservativeGI", {"rules": "ah"}, aliases=("ah",)),
    Method("LRP(LN)", _GI, "ConservativeGI", {"rules": "ln"}, aliases=("ln",)),
    Method("LRP(AH+LN)", _GI, "ConservativeGI", {"rules": "ah+ln"},
           aliases=("ah+ln", "conservative gi")),
    Method("LRP", _LRP, "ConservativeLRP", aliases=("conservative lrp",)),
    Method("LRP-gamma", _LRP, "ConservativeLRP", {"rules": "lrp-gamma", "bias": "distribute"},
           aliases=("lrp gamma",)),
    Method("AttnLRP", _LRP, "ConservativeLRP", {"rules": "attnlrp"}),
    Method("Chefer", _WEIGHTED, "TransformerAttribution", signed=None,
           aliases=("transformer attribution", "trans attribution", "chefer 2021b", "ta")),
    Method("IG", _CAPTUM, "TokenIntegratedGradients", takes=("baseline",),
           aliases=("integrated gradients",)),
    Method("GradientShap", _CAPTUM, "TokenGradientShap", takes=("baseline", "seed"),
           aliases=("gradient shap", "gradshap", "gradient-shap")),
    Method("Saliency", _CAPTUM, "TokenSaliency", signed=False, aliases=("gradient", "grad")),
)  # fmt: skip


def find_method(name: str) -> Method:
    """The method of a name; upper and lower case, spaces and brackets do not matter.

    Args:
        name (str): Name in tables, or an alias.

    Raises:
        InputError: If there is none; the message lists the names.

    Example::

        >>> find_method("lrp (ah + ln)").name
        'LRP(AH+LN)'
    """
    wanted = _plain(name)
    for method in METHODS:
        if wanted in map(_plain, (method.name, *method.aliases)):
            return method
    names = ", ".join(method.name for method in METHODS)
    raise InputError(f"unknown method {name!r}; the methods are: {names}")


def unavailable_methods() -> dict[str, str]:
    """Methods whose class cannot be imported, with the reason.

    Example::

        >>> "LRP" in unavailable_methods()
        False
    """
    missing = {}
    for method in METHODS:
        try:
            method.load()
        except ImportError as error:
            missing[method.name] = str(error)
    return missing


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name.casefold())
