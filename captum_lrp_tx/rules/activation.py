"""The rule for element-wise activations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_lrp_tx.propagation.autograd.functions import PassThrough
from captum_lrp_tx.propagation.operations import Activation, Kind
from captum_lrp_tx.rules.rule import Rule

#: Positively homogeneous: gradient x input already is the identity rule, and cheaper.
_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "Prelu"})


@dataclass(frozen=True)
class PassActivationRule(Rule):
    """An activation hands its relevance on unchanged: ``R(x) = R(f(x))``, factor ``f(x) / x``.

    Where ``x`` is exactly zero no relevance passes (0/0 := 0): the constant ``f(0)`` takes it.

    Achtibat et al. and LXT call this the identity rule, zennit ``Pass``. Captum's ``IdentityRule``
    is for any module with outputs in the shape of its inputs; here that is
    :class:`~captum_lrp_tx.rules.PassRule`.

    Source: Bach et al. 2015; Achtibat et al. 2024, eq. 9.
    """

    kinds = frozenset({Kind.ACTIVATION})

    def propagate(self, operation: Activation) -> Tensor:
        if operation.name in _HOMOGENEOUS:
            return operation.plain()
        output = PassThrough.call(operation.input, operation.value, operation.name)
        if operation.books:
            tiny = torch.finfo(operation.input.dtype).tiny
            operation.absorb(output, output.detach() * (operation.input.detach().abs() < tiny))
        return output
