"""The rule for state space models: the coefficients of the scan are constants (MambaLRP)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from captum_lrp_tx.propagation.operations import Kind, ScanProduct
from captum_lrp_tx.rules.rule import Rule


@dataclass(frozen=True)
class StateSpaceRule(Rule):
    r"""Selective scan: the coefficients that are computed from the input are constants.

    .. math:: h_t = [\bar A(x_t)]_{cst}\, h_{t-1} + [\bar B(x_t)]_{cst}\, x_t, \qquad
              y_t = [C(x_t)]_{cst}\, h_t

    with :math:`\bar A = \exp(\Delta A)`, :math:`\bar B = \Delta B` and the step size
    :math:`\Delta = \mathrm{softplus}(\cdot)`.  The scan becomes linear in its signal and conserves
    relevance; so does the equivalent attention-like form of Mamba-2, whose kernel
    :math:`C_t (\prod \bar A) \bar B_s` is constant as an attention pattern is under the AH-rule.
    The initial state, if one is handed in, is a constant that absorbs its share.

    MambaLRP has two more rules, which are in this package anyway: SiLU by
    :class:`~captum_lrp_tx.rules.PassActivationRule` (section 4.1) and the multiplicative gate by
    halves, :class:`~captum_lrp_tx.rules.UniformRule` (section 4.3).  The preset ``"mambalrp"`` puts
    them together (attention, as in Jamba, by the AH-rule), and so does ``"lrp"``;
    ``"lrp-gated"`` treats the gate as a constant.

    Source: Jafari et al., NeurIPS 2024 (MambaLRP), section 4.2.
    """

    kinds = frozenset({Kind.SCAN})

    def propagate(self, operation: ScanProduct) -> Tensor:
        constants = {i: operation.args[i].detach() for i in operation.coefficients}
        return operation.with_operands(constants)
