"""Every method with all that is known of it, by the names of the papers' tables."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, Union

from captum_lrp_tx.attr.attention_alone import AttentionFlow, AttentionLast, AttentionRollout
from captum_lrp_tx.attr.conservative_gi import ConservativeGI
from captum_lrp_tx.attr.conservative_lrp import ConservativeLRP
from captum_lrp_tx.attr.gradient_attention import GenericAttention
from captum_lrp_tx.attr.layer import LayerConservativeGI, LayerConservativeLRP
from captum_lrp_tx.attr.random import RandomAttribution
from captum_lrp_tx.attr.token_gradients import (
    TokenGradientShap,
    TokenIntegratedGradients,
    TokenSaliency,
)
from captum_lrp_tx.attr.transformer_attribution import TransformerAttribution
from captum_lrp_tx.errors import InputError

#: Colour, dashes and width of a line.
Style = tuple[str, str, float]
#: What a method can be given when it is made.
Setting = Literal["baseline", "seed"]
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Method:
    """An attribution method.

    Attributes:
        name (str): In tables.
        make (callable): Its class: ``make(model, **options)``.
        options (mapping): Keyword arguments of the class.
        about (str): What it is, in one line.
        style (tuple, optional): Colour, dashes and width of its line in figures.
        signed (bool, optional): Whether relevance can speak against the output; None if it is so
            where relevance accounts for the output (``has_convergence_delta()``) or is negative.
        uses_target (bool): Whether relevance depends on the explained output.
        takes (tuple of str): Which settings (``"baseline"``, ``"seed"``) the class has as keyword
            arguments.
        at_layer (callable, optional): The class for relevance at a layer.
        aliases (tuple of str): Other names.
    """

    name: str
    make: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""
    style: Style | None = None
    signed: bool | None = None
    uses_target: bool = True
    takes: tuple[Setting, ...] = ()
    at_layer: Callable[..., Any] | None = None
    aliases: tuple[str, ...] = ()

    def attribution(self, model: Any, *, baseline: Any = None, seed: int = 0) -> Any:
        """The attribution of a model.

        Args:
            model (nn.Module or callable): What is explained.
            baseline, seed: For the methods that take them.
        """
        settings = {"baseline": baseline, "seed": seed}
        return self.make(model, **self.options, **{name: settings[name] for name in self.takes})


#: A method: its name, an entry of ``METHODS``, or a name with a function from model to attribution.
Chosen = Union[str, Method, tuple[str, Callable[[Any], Any]]]

# Hue tells the families apart, lightness and dashes the members: attention is blue, gradients are
# gold to red, LRP is teal and violet, Captum's path methods are brown. All are of middle lightness,
# so that they can be read on white and on black.
#: In the order of the tables of Ali et al. 2022, then what came later, then Captum's own.
METHODS: tuple[Method, ...] = (
    Method(
        "Random", RandomAttribution, takes=("seed",), uses_target=False,
        about="normal random numbers: what a method without information gives",
        style=("#8f8f8f", ":", 1.5),
    ),
    Method(
        "A-Last", AttentionLast, signed=False, uses_target=False,
        about="attention of the last layer, mean over heads",
        style=("#8cb8d9", "-", 1.3), aliases=("last", "attention last", "attn last"),
    ),
    Method(
        "Rollout", AttentionRollout, signed=False, uses_target=False,
        about="attention multiplied over layers (Abnar & Zuidema 2020)",
        style=("#4a90c8", "--", 1.3), aliases=("attention rollout", "attn rollout", "a-rollout"),
    ),
    Method(
        "A-Flow", AttentionFlow, signed=False, uses_target=False,
        about="maximum flow through the attention graph (Abnar & Zuidema 2020)",
        style=("#4a90c8", ":", 1.3), aliases=("flow", "attention flow", "attn flow"),
    ),
    Method(
        "GAE", GenericAttention,
        about="attention weighted by its gradient, layer by layer (Chefer et al. 2021a)",
        style=("#2a6fb0", "-", 1.5),
        aliases=("generic attention", "generic attention explainability"),
    ),
    Method(
        "GI", ConservativeGI, {"rules": "gi"}, signed=True, at_layer=LayerConservativeGI,
        about="gradient times input", style=("#c9a227", "-", 1.4),
        aliases=("gradient x input", "input x gradient", "gxi", "ixg"),
    ),
    Method(
        "LRP(AH)", ConservativeGI, {"rules": "ah"}, signed=True, at_layer=LayerConservativeGI,
        about="gradient times input, attention patterns constant (Ali et al. 2022)",
        style=("#f0934e", "--", 1.3), aliases=("ah",),
    ),
    Method(
        "LRP(LN)", ConservativeGI, {"rules": "ln"}, signed=True, at_layer=LayerConservativeGI,
        about="gradient times input, divisors of norms constant (Ali et al. 2022)",
        style=("#dd6b20", "-.", 1.5), aliases=("ln",),
    ),
    Method(
        "LRP(AH+LN)", ConservativeGI, {"rules": "ah+ln"}, signed=True,
        at_layer=LayerConservativeGI,
        about="attention patterns and divisors of norms constant (Ali et al. 2022)",
        style=("#c0392b", "-", 2.2), aliases=("ah+ln", "conservative gi"),
    ),
    Method(
        "LRP", ConservativeLRP, signed=True, at_layer=LayerConservativeLRP,
        about="conservative LRP: AH and LN rules, identity on activations, LRP-0 on linear "
        "layers",
        style=("#0b8277", "-", 2.2), aliases=("conservative lrp",),
    ),
    Method(
        "LRP-gamma", ConservativeLRP, {"rules": "lrp-gamma", "bias": "distribute"}, signed=True,
        at_layer=LayerConservativeLRP,
        about="LRP with the generalised gamma rule on linear layers, biases spread over inputs",
        style=("#7241a8", "-", 2.2), aliases=("lrp gamma",),
    ),
    Method(
        "AttnLRP", ConservativeLRP, {"rules": "attnlrp"}, signed=True,
        at_layer=LayerConservativeLRP,
        about="LRP through the softmax (Achtibat et al. 2024)", style=("#5bb5a6", "-", 1.4),
    ),
    Method(
        "Chefer", TransformerAttribution,
        about="Deep-Taylor relevance of attention times its gradient (Chefer et al. 2021b)",
        style=("#2a6fb0", "--", 1.3),
        aliases=("transformer attribution", "trans attribution", "chefer 2021b", "ta"),
    ),
    Method(
        "IG", TokenIntegratedGradients, signed=True, takes=("baseline",),
        about="integrated gradients from the baseline, 50 steps (Sundararajan et al. 2017)",
        style=("#7d5a3c", "--", 1.7), aliases=("integrated gradients",),
    ),
    Method(
        "GradientShap", TokenGradientShap, signed=True, takes=("baseline", "seed"),
        about="gradients at random points from the baseline (Lundberg & Lee 2017)",
        style=("#7d5a3c", ":", 1.5), aliases=("gradient shap", "gradshap", "gradient-shap"),
    ),
    Method(
        "Saliency", TokenSaliency, signed=False,
        about="length of the gradient (Simonyan et al. 2014)",
        style=("#c9a227", ":", 1.4), aliases=("gradient", "grad"),
    ),
)  # fmt: skip
ALL: tuple[str, ...] = tuple(method.name for method in METHODS)
#: The methods of the tables of Ali et al. 2022, in their order.
PAPER: tuple[str, ...] = (
    "Random", "A-Last", "A-Flow", "Rollout", "GAE", "GI", "LRP(AH)", "LRP(LN)", "LRP(AH+LN)",
)  # fmt: skip
#: What a text in the place of a list of methods can stand for, beside a single method.
SELECTIONS: Mapping[str, tuple[str, ...]] = {"all": ALL, "paper": PAPER}


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
    wanted = plain(name)
    for method in METHODS:
        if wanted in map(plain, (method.name, *method.aliases)):
            return method
    raise InputError(f"unknown method {name!r}; the methods are: {', '.join(ALL)}")


def result_of(name: str, results: Mapping[str, Result]) -> Result:
    """What was found by a method, whose name may be in any spelling.

    Args:
        name (str): Name in tables, or an alias.
        results (mapping): By the names of the methods.

    Raises:
        KeyError: If there is none; the message lists the names.

    Example::

        >>> result_of("ig", {"GI": 1, "IG": 2})
        2
    """
    if name in results:  # names of one's own may differ by a dot (1.0 and 10)
        return results[name]
    wanted = {plain(name)}
    with contextlib.suppress(InputError):
        wanted.add(plain(find_method(name).name))
    for known, result in results.items():
        if plain(known) in wanted:
            return result
    raise KeyError(f"{name!r}; there are: {', '.join(results)}")


def choose_methods(methods: str | Sequence[Chosen]) -> list[Method]:
    """The methods that are asked for, each once.

    Args:
        methods (str or sequence): ``"all"``, ``"paper"`` (the tables of Ali et al.) or the name of
            one method; or a list of these, in any spelling, of methods, and of pairs of a name and
            a function that gets the model and returns an attribution.

    Raises:
        InputError: A name that is unknown or stands for two methods, something else than a method,
            or none at all.

    Example::

        >>> mine = ("mine", lambda model: ConservativeLRP(model, "attnlrp", bias="distribute"))
        >>> [method.name for method in choose_methods(["gi", "GI", mine])]
        ['GI', 'mine']
    """
    asked = [methods] if isinstance(methods, str) else methods
    selected = [
        chosen
        for item in asked
        for chosen in (
            SELECTIONS.get(item.strip().casefold(), (item,)) if isinstance(item, str) else (item,)
        )
    ]
    found: dict[str, Method] = {}
    for item in selected:
        if isinstance(item, str):
            method = find_method(item)
        elif isinstance(item, Method):
            method = item
        elif isinstance(item, tuple) and len(item) == 2 and callable(item[1]):
            method = Method(str(item[0]), item[1])
        else:
            raise InputError(
                f"{item!r} is no method: use a name, or a pair of a name and a function that makes "
                "an attribution from the model"
            )
        if found.setdefault(method.name, method) is not method:
            raise InputError(f"two methods are called {method.name!r}; give one another name")
    if not found:
        raise InputError(f"no method is named; the methods are: {', '.join(ALL)}")
    return list(found.values())


def plain(name: str) -> str:
    """A name without case, spaces and brackets, to compare it with others."""
    return re.sub(r"[^a-z0-9+]", "", name.casefold())
