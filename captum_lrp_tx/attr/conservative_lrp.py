"""``ConservativeLRP``: layer-wise relevance propagation through any transformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from captum_lrp_tx.attr.captum_rules import assigned_rules
from captum_lrp_tx.attr.conservative import Memory, forward_of
from captum_lrp_tx.attr.conservative_gi import ConservativeGI
from captum_lrp_tx.propagation.model.modules import find_modules
from captum_lrp_tx.rules.composite import Composite
from captum_lrp_tx.rules.rule import Bias


class ConservativeLRP(ConservativeGI):
    r"""
    Layer-wise relevance propagation with conservative rules for every part of a transformer.

    Attention heads by the AH-rule, norms by the LN-rule, activations by the identity rule, gates
    as constants (in gated MLPs gate and signal get half each), linear and convolution layers by
    LRP-0, the epsilon rule without epsilon.  The relevance of the inputs plus what biases and other
    additive constants absorb equals the explained output.

    A rule set on a module by Captum's convention, ``module.rule = GammaRule(0.1)`` (Captum's rules
    or this package's), is honoured and stays where it is.

    Source: Ali et al., ICML 2022; Bach et al., PLoS ONE 2015; see ``captum_lrp_tx.rules`` for the
    source of each rule.

    Args:
        model (nn.Module or callable): See :class:`~captum_lrp_tx.ConservativeGI`.
        rules (str or Composite): ``"lrp"`` (default), another preset, or a
            :class:`~captum_lrp_tx.Composite`.
        bias (str): What happens to the relevance of biases of linear layers and norms.
            ``"absorb"``: they keep it, and the convergence delta shows it. ``"distribute"``: it is
            spread over the inputs of the layer in proportion to their squares, so that the input
            relevance alone sums to the output; a constant that is added to something else than one
            layer's result (a norm written out, a sum of two maps) keeps its share.
            ``"ignore"``: the rules' denominators leave the bias out, as ``set_bias_to_zero`` of
            Captum's rules; in deep models this needs a large ``epsilon`` (0.1 to 0.3) to be stable;
            you are warned if it is not.
        epsilon (float, optional): Stabiliser of the rule for linear layers. Without it
            presets have none (LRP-0): a modified gradient divides by no pre-activation, and so
            needs none. The gamma presets have 1e-9.
        memory (str): See :class:`~captum_lrp_tx.ConservativeGI`.

    Raises:
        RuleError: unknown preset or bias, or a ``module.rule`` that cannot be used.

    Example::

        >>> from captum_lrp_tx import ConservativeLRP
        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> inputs = tokenizer("a charming and funny film", return_tensors="pt")
        >>> lrp = ConservativeLRP(model, bias="distribute")
        >>> relevance, delta = lrp.attribute(inputs, target=1, return_convergence_delta=True)
        >>> bool(delta.abs() < 1e-3)
        True
    """

    _title = "Conservative LRP"

    _honours_module_rules = True

    def __init__(
        self,
        model: Callable[..., Any],
        rules: str | Composite = "lrp",
        *,
        bias: Bias = "absorb",
        epsilon: float | None = None,
        memory: Memory = "standard",
    ) -> None:
        ConservativeGI.__init__(self, model, rules, memory=memory)
        self.model = model
        self._set_rules(rules, bias, epsilon)
        assigned_rules(find_modules(forward_of(self)))  # complain now, as Captum's LRP does
