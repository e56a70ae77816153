"""Gates that choose are constants, activations of gated MLPs share: against loops by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_tx import Composite, ConservativeLRP, audit
from captum_lrp_tx.rules import GateRule, SharedActivationRule, UniformRule

WIDTH = 5


class Gated(nn.Module):
    """``down(f(gate(x)) * up(x))`` without biases."""

    def __init__(self, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = gate
        self.gate, self.up = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.down = nn.Linear(WIDTH, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.f(self.gate(x)) * self.up(x))


def relevance(model: nn.Module, x: Tensor, rule: GateRule | UniformRule) -> Tensor:
    composite = Composite({"": rule}, base="lrp")
    found = ConservativeLRP(model, composite, epsilon=1e-12).attribute(x, target=1)
    report = audit.explainability(model, x, 1, rules=composite, file=None)
    assert abs(report.conservation_error) < 1e-4 * abs(report.output)
    return found


def by_hand(model: Gated, x: Tensor, share_of_gate: float) -> Tensor:
    """LRP-0 by loops over the neurons of the one row of ``x``."""
    total = torch.zeros_like(x)
    with torch.no_grad():
        g, u = model.gate(x), model.up(x)
        for j in range(WIDTH):
            part = float(model.f(g)[0, j] * u[0, j] * model.down.weight[1, j])
            for i in range(WIDTH):
                through_gate = x[0, i] * model.gate.weight[j, i] / g[0, j]
                through_up = x[0, i] * model.up.weight[j, i] / u[0, j]
                total[0, i] += part * share_of_gate * through_gate
                total[0, i] += part * (1 - share_of_gate) * through_up
    return total


@pytest.mark.parametrize(
    "gate, share",
    [(F.silu, 0.5), (F.gelu, 0.5), (F.relu, 0.5), (torch.sigmoid, 0.0), (torch.tanh, 0.0),
     (torch.exp, 0.0), (lambda x: x.exp2()[:, None].squeeze(1), 0.0)],
)  # fmt: skip
def test_against_loops(gate: Callable[[Tensor], Tensor], share: float) -> None:
    torch.manual_seed(0)
    model, x = Gated(gate).double(), torch.randn(1, WIDTH, dtype=torch.float64)
    found = relevance(model, x, SharedActivationRule())
    torch.testing.assert_close(found, by_hand(model, x, share), rtol=1e-6, atol=1e-9)
    same = UniformRule() if share else GateRule()
    torch.testing.assert_close(found, relevance(model, x, same), rtol=0, atol=0)


@pytest.mark.parametrize("preset, share", [("lrp", 0.5), ("lrp-gated", 0.0)])
def test_the_default_shares(preset: str, share: float) -> None:
    torch.manual_seed(0)
    model, x = Gated(F.silu).double(), torch.randn(1, WIDTH, dtype=torch.float64)
    found = ConservativeLRP(model, preset, epsilon=1e-12).attribute(x, target=1)
    torch.testing.assert_close(found, by_hand(model, x, share), rtol=1e-6, atol=1e-9)
    if preset == "lrp":
        default = ConservativeLRP(model, epsilon=1e-12).attribute(x, target=1)
        torch.testing.assert_close(default, found, rtol=0, atol=0)


def test_recurrent_layers_and_glu_are_as_under_the_gate_rule() -> None:
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(WIDTH, 2 * WIDTH, batch_first=True)
            self.read = nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.read(F.glu(self.lstm(x)[0][:, -1]))

    model, x = Model().double().eval(), torch.randn(2, 3, WIDTH, dtype=torch.float64)
    given = [
        ConservativeLRP(model, Composite({"": rule}, base="lrp")).attribute(x, target=1)
        for rule in (SharedActivationRule(), GateRule(), UniformRule())
    ]
    torch.testing.assert_close(given[0], given[1], rtol=0, atol=0)
    assert not torch.allclose(given[0], given[2])


def test_gelu_by_hand_stays_an_activation() -> None:
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.read = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            return self.read(hidden * torch.sigmoid(1.702 * hidden))

    model, x = Model().double(), torch.randn(1, WIDTH, dtype=torch.float64)
    rules = [Composite({"": r}, base="lrp") for r in (SharedActivationRule(), GateRule())]
    first, second = (ConservativeLRP(model, r).attribute(x, target=1) for r in rules)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
