"""The attribution classes in the form that Captum Insights calls them.

Insights builds ``cls(model)`` and passes what was chosen on the page to ``attribute``, where the
classes of this package take it at construction; and it draws one number for each entry of a
feature, where methods that read attention maps give one for each token. The subclasses here bridge
both, for every class of ``captum_lrp_tx.methods``. Called without the extra arguments they do what
their base class does by default.

The layer classes are left out, because Insights has no place to choose a layer, and so are the
token versions of Integrated Gradients, GradientShap and Saliency, because Insights has Captum's
own for float features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar

from captum.log import log_usage
from torch import Tensor, nn

from captum_lrp_tx.attr.attention_alone import AttentionFlow, AttentionLast, AttentionRollout
from captum_lrp_tx.attr.conservative import TargetType
from captum_lrp_tx.attr.conservative_gi import ConservativeGI
from captum_lrp_tx.attr.conservative_lrp import ConservativeLRP
from captum_lrp_tx.attr.gradient_attention import GenericAttention
from captum_lrp_tx.attr.random import RandomAttribution
from captum_lrp_tx.attr.token_gradients import OnTokens
from captum_lrp_tx.attr.transformer_attribution import TransformerAttribution
from captum_lrp_tx.errors import InputError, UnsupportedModelError
from captum_lrp_tx.methods import METHODS
from captum_lrp_tx.metrics.captum_arguments import spread_over_pixels
from captum_lrp_tx.propagation.operations import Kind
from captum_lrp_tx.rules.composite import PRESETS, Composite
from captum_lrp_tx.rules.linear import GeneralizedGammaRule
from captum_lrp_tx.rules.rule import Bias
from captum_lrp_tx.visualization.patch_maps import token_grid


@dataclass(frozen=True)
class Field:
    """An argument on the page.

    Numbers with decimals are drop-downs too: the number fields of Insights cut them off.

    Attributes:
        value (str or int): What is chosen at first.
        choices (tuple of str): Of a drop-down; a field for a whole number from 0 on if empty.
        convert (callable, optional): From what the page sends to the argument.
    """

    value: str | int
    choices: tuple[str, ...] = ()
    convert: Callable[[Any], Any] | None = None


def whole_number(value: Any) -> int:
    """The value of a number field, which is ``None`` if the field was left empty.

    Raises:
        InputError: It holds no whole number.
    """
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and float(value).is_integer()
    ):
        return int(value)
    raise InputError(f"a whole number is needed, not {value!r}")


_QUERY = Field("auto", ("auto", "cls", "last", "mean"))
_START = Field(0, convert=whole_number)
_EPSILON = 0.0
_GRADIENT_PRESETS = tuple(name for name, table in PRESETS.items() if Kind.LINEAR not in table)


def composite_of(
    rules: str | Composite, epsilon: float = _EPSILON, gamma: float = 0.0
) -> Composite:
    """The rule set that the choices on the page stand for.

    Args:
        rules (str or Composite): Preset.
        epsilon (float): Of the rule for linear layers, if there is one: without effect for a
            preset that leaves these to the gradient, unless ``gamma`` is positive.
        gamma (float): If positive, the generalised gamma rule on all linear layers.

    Returns:
        Composite: for ``ConservativeLRP(model, rules=...)``.

    Example::

        >>> composite_of("lrp", gamma=0.25)
        Composite({Module: GeneralizedGammaRule(epsilon=0.0, bias=None, gamma=0.25)}, base='lrp')
    """
    composite = Composite(base=rules)
    if gamma:
        return composite.extend([(nn.Module, GeneralizedGammaRule(gamma=gamma, epsilon=epsilon))])
    return composite.with_epsilon(epsilon) if Kind.LINEAR in composite.base else composite


class OnPage:
    """A class in its form for the page: with the arguments of its fields in ``attribute``."""

    forward_func: Callable[..., Any]
    fields: ClassVar[dict[str, Field]]
    make: ClassVar[Callable[..., Any]]

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: Any = None,
        **arguments: Any,
    ) -> Any:
        """
        Relevance in the shape of the features.

        Args:
            inputs (Tensor or tuple of Tensor): Embedded tokens ``(batch, tokens, dim)`` or images
                ``(batch, channels, height, width)``.
            target, additional_forward_args: As for the base class.
            arguments: Those of the fields; others are for ``attribute`` of the base class.

        Returns:
            Tensor or tuple of Tensor: in the shape of each input. The relevance of a token is
            spread evenly over its embedding, that of a patch over its pixels and channels, so
            that sums are kept; prefix tokens of an image model are left out.

        Raises:
            UnsupportedModelError: The tokens are not those of the inputs. Otherwise as the base
                class.
        """
        chosen = {name: arguments.pop(name) for name in self.fields if name in arguments}
        made = type(self).make(self.forward_func, inputs, **chosen)
        found = made.attribute(inputs, target, additional_forward_args, **arguments)
        if arguments.get("return_convergence_delta"):
            return found
        if isinstance(inputs, Tensor):
            return spread_evenly(found, inputs)
        return tuple(spread_evenly(f, x) for f, x in zip(found, inputs, strict=True))


def form_of(cls: type) -> Any:
    """The form of an attribution class for the page.

    Args:
        cls (type): One of the classes of ``captum_lrp_tx.methods.METHODS``.

    Example::

        >>> form_of(ConservativeGI).fields["rules"].value
        'ah+ln'
    """
    fields, make = _PAGES.get(cls, ({}, None))
    content = {
        "fields": fields, "make": staticmethod(make or _maker(cls)),
        "__doc__": f":class:`~captum_lrp_tx.{cls.__name__}` on features.",
    }  # fmt: skip
    return type(f"Insights{cls.__name__}", (OnPage, cls), content)


def _maker(cls: Callable[..., Any]) -> Callable[..., Any]:
    patches = {"patches_only": True} if "patches_only" in signature(cls).parameters else {}
    return lambda forward, inputs, **arguments: cls(forward, **arguments, **patches)


def _conservative_lrp(
    forward: Any, _: Any, rules: str | Composite = "lrp", epsilon: float = _EPSILON,
    gamma: float = 0.0, bias: Bias = "absorb",
) -> ConservativeLRP:  # fmt: skip
    return ConservativeLRP(forward, composite_of(rules, epsilon, gamma), bias=bias)


def _transformer_attribution(
    forward: Any, inputs: Tensor | tuple[Tensor, ...], form: Any = "auto", **arguments: Any
) -> TransformerAttribution:
    """``"auto"`` is the form of the published code for images, and otherwise that for texts."""
    first = inputs if isinstance(inputs, Tensor) else inputs[0]
    if form == "auto":
        form = "vit" if first.dim() == 4 else "bert"
    return TransformerAttribution(forward, **arguments, form=form, patches_only=True)


#: What the page offers of the arguments of a class, and how it is made if not by them alone.
_PAGES: dict[type, tuple[dict[str, Field], Callable[..., Any] | None]] = {
    ConservativeLRP: (
        {
            "rules": Field("lrp", ("lrp", *(name for name in PRESETS if name != "lrp"))),
            "epsilon": Field("0", ("0", "1e-9", "1e-6", "1e-4", "0.01", "0.1", "0.3"), float),
            "gamma": Field("0", ("0", "0.05", "0.1", "0.25", "0.5", "1"), float),
            "bias": Field("absorb", ("absorb", "distribute", "ignore")),
        },
        _conservative_lrp,
    ),
    ConservativeGI: (
        {"rules": Field("ah+ln", ("ah+ln", *(n for n in _GRADIENT_PRESETS if n != "ah+ln")))},
        None,
    ),
    AttentionLast: ({"query": _QUERY}, None),
    AttentionRollout: (
        {
            "head_fusion": Field("mean", ("mean", "max", "min")),
            "discard_ratio": Field("0", ("0", "0.5", "0.9"), float),
            "start_layer": _START,
            "query": _QUERY,
        },
        None,
    ),
    AttentionFlow: ({"query": _QUERY}, None),
    GenericAttention: (
        {
            "variant": Field("chefer", ("chefer", "ali")),
            "start_layer": _START,
            "query": _QUERY,
        },
        None,
    ),
    TransformerAttribution: (
        {
            "variant": Field(
                "transformer_attribution",
                ("transformer_attribution", "rollout", "last_layer", "full_lrp", "attn_gradcam"),
            ),
            "form": Field("auto", ("auto", "bert", "vit")),
            "start_layer": _START,
            "query": _QUERY,
        },
        _transformer_attribution,
    ),
    RandomAttribution: ({"seed": Field(0, convert=whole_number)}, None),
}


def spread_evenly(relevance: Tensor, features: Tensor) -> Tensor:
    """Relevance of tokens, spread evenly over the features that each token stands for.

    Args:
        relevance (Tensor): Shape ``(batch, tokens)``; that of the features is returned as it is.
        features (Tensor): Embedded tokens ``(batch, tokens, dim)`` or images ``(batch, channels,
            height, width)``, whose patches the tokens are.

    Returns:
        Tensor: in the shape of ``features``, with the sum of ``relevance``.

    Raises:
        UnsupportedModelError: The number of tokens does not fit the features.

    Example::

        >>> spread_evenly(torch.tensor([[2.0, 4.0]]), torch.zeros(1, 2, 2))
        tensor([[[1., 1.],
                 [2., 2.]]])
    """
    if relevance.shape == features.shape:
        return relevance
    if features.dim() == 3 and relevance.shape == features.shape[:2]:
        return (relevance[..., None] / features.shape[-1]).expand_as(features).contiguous()
    if features.dim() == 4:
        height, width = features.shape[-2:]
        try:
            grid = token_grid(relevance, (height, width))
        except InputError as error:
            raise UnsupportedModelError(str(error)) from error
        if grid[0].numel() < relevance.shape[1] - 1:  # more than a class token would be left out
            raise UnsupportedModelError(
                f"the relevance of {relevance.shape[1]} tokens fits no grid of patches on an image "
                f"of {height} x {width}"
            )
        return spread_over_pixels(relevance, features)
    raise UnsupportedModelError(
        f"the relevance of tokens, of shape {tuple(relevance.shape)}, cannot be shown on features "
        f"of shape {tuple(features.shape)}"
    )


#: The form of each class of the registry, in the order in which they are put into the list of
#: Insights, which has Captum's own methods already.
FORMS: dict[type, Any] = {
    cls: form_of(cls)
    for cls in (*_PAGES, *(method.make for method in METHODS))
    if isinstance(cls, type) and not issubclass(cls, OnTokens)
}
