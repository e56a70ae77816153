"""Propagation rules and the composites that say which rule acts where.

A rule is a small immutable object; what it does is the backward pass of the operation it is given.

============================== ==================================== ============================
rule                           governs                              source
============================== ==================================== ============================
:class:`AHRule`                attention: the pattern is constant   Ali et al. 2022, sec. 4
:class:`LNRule`                norms: the divisor is constant       Ali et al. 2022, sec. 4
:class:`ZeroRule`              linear maps, LRP-0                   Bach et al. 2015
:class:`EpsilonRule`           linear maps                          Bach et al. 2015
:class:`GammaRule`             linear maps of inputs >= 0           Montavon et al. 2019
:class:`GeneralizedGammaRule`  linear maps, both signs              Andeol et al. 2021
:class:`ZPlusRule`             linear maps, positive contributions  Montavon et al. 2017
:class:`AlphaBetaRule`         linear maps                          Bach et al. 2015
:class:`PositiveWeightRule`    linear maps, positive weights        Captum
:class:`FlatRule`              linear maps, by connection only      Lapuschkin et al. 2019
:class:`WSquareRule`           linear maps of unbounded inputs      Montavon et al. 2017
:class:`ZBoxRule`              linear maps of bounded inputs        Montavon et al. 2017
:class:`PassRule`              any: output to input, same place     Bach et al. 2015
:class:`PassActivationRule`    element-wise activations             Achtibat et al. 2024, eq. 9
:class:`GateRule`              products with a gate                 Arras et al. 2017
:class:`SharedActivationRule`  gates held, gated MLPs shared        see there
:class:`UniformRule`           products, half to each factor        Achtibat et al. 2024, eq. 13
:class:`UniformAttentionRule`  attention, as AttnLRP                Achtibat et al. 2024
:class:`SinkRule`              attention: sinks hand on             see there
:class:`StateSpaceRule`        scans: coefficients are constant     Jafari et al. 2024, sec. 4.2
:class:`ByDepthRule`           any: one below, another above        see there
:class:`GradientRule`          any: plain gradient                  Shrikumar et al. 2016
============================== ==================================== ============================

Other packages call some by other names: zennit's ``Pass`` and Captum's ``IdentityRule`` are
:class:`PassRule`, on activations :class:`PassActivationRule`, which LXT calls ``IdentityRule``;
Captum's ``Alpha1_Beta0_Rule`` is :class:`PositiveWeightRule`.
"""

from captum_lrp_tx.propagation.operations import Kind
from captum_lrp_tx.rules.activation import PassActivationRule
from captum_lrp_tx.rules.attention import AHRule, UniformAttentionRule
from captum_lrp_tx.rules.composite import PRESETS, Composite
from captum_lrp_tx.rules.depth import ByDepthRule
from captum_lrp_tx.rules.gating import GateRule, UniformRule
from captum_lrp_tx.rules.linear import (
    AlphaBetaRule,
    EpsilonRule,
    FlatRule,
    GammaRule,
    GeneralizedGammaRule,
    LinearRule,
    PositiveWeightRule,
    WSquareRule,
    ZBoxRule,
    ZeroRule,
    ZPlusRule,
)
from captum_lrp_tx.rules.normalization import LNRule
from captum_lrp_tx.rules.rule import Bias, GradientRule, PassRule, Rule
from captum_lrp_tx.rules.shared_activation import SharedActivationRule
from captum_lrp_tx.rules.sink import SinkRule
from captum_lrp_tx.rules.state_space import StateSpaceRule

__all__ = [
    "PRESETS",
    "AHRule",
    "AlphaBetaRule",
    "Bias",
    "ByDepthRule",
    "Composite",
    "EpsilonRule",
    "FlatRule",
    "GammaRule",
    "GateRule",
    "GeneralizedGammaRule",
    "GradientRule",
    "Kind",
    "LNRule",
    "LinearRule",
    "PassActivationRule",
    "PassRule",
    "PositiveWeightRule",
    "Rule",
    "SharedActivationRule",
    "SinkRule",
    "StateSpaceRule",
    "UniformAttentionRule",
    "UniformRule",
    "WSquareRule",
    "ZBoxRule",
    "ZPlusRule",
    "ZeroRule",
]
