"""Factors kept in three bytes against the same relevance with all of float32."""

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_tx import ConservativeGI, ConservativeLRP
from captum_lrp_tx.propagation.autograd import compact

ACTIVATIONS = (nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Tanh(), nn.Mish(), nn.Hardswish())


@pytest.mark.parametrize("transposed", [False, True])
def test_a_factor_times_a_gradient(transposed: bool) -> None:
    torch.manual_seed(0)
    factor = torch.linspace(-0.49, 1.49, 1 << 14).reshape(128, 128)
    factor = factor.t() if transposed else factor
    grad = torch.randn(128, 128)
    low, high = compact.pack(factor.clone())
    assert low.element_size() + high.element_size() == 3
    error = compact.times(grad, low, high).double() - grad.double() * factor.double()
    assert float((error.abs() / grad.abs()).max()) < 2.5e-7


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("method", [ConservativeGI, ConservativeLRP])
def test_relevance_with_and_without(
    activation: nn.Module, method: type[ConservativeGI], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), activation, nn.Linear(64, 3)).eval()
    x = torch.randn(2, 9, 32) * 3

    def forward(v: Tensor) -> Tensor:
        out: Tensor = model(v)
        return out.mean(1)

    def explain() -> list[Tensor]:
        explainer = method(forward)
        together = explainer.attribute_targets(x, [0, 2], targets_per_pass=2)
        one = explainer.attribute(x, target=1)
        assert isinstance(one, Tensor) and isinstance(together, Tensor)
        return [one, *together]

    whole = explain()
    packed: list[int] = []
    pack = compact.pack

    def spy(factor: Tensor) -> tuple[Tensor, Tensor]:
        packed.append(factor.numel())
        return pack(factor)

    monkeypatch.setattr(compact, "LARGE", 1)
    monkeypatch.setattr(compact, "pack", spy)
    for got, want in zip(explain(), whole, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6 * float(want.abs().max()))
    known = compact.RATIOS if method is ConservativeLRP else compact.SLOPES
    assert bool(packed) == (type(activation).__name__.lower() in {name.lower() for name in known})
