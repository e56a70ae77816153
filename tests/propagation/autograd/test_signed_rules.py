"""Rules for signed contributions in closed form, against the same rules by signed sums."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from captum_lrp_tx import Composite, ConservativeLRP, audit
from captum_lrp_tx.propagation.autograd import signed
from captum_lrp_tx.rules import AlphaBetaRule, GeneralizedGammaRule, ZPlusRule

pytestmark = pytest.mark.filterwarnings("ignore::captum_lrp_tx.errors.NoRuleAppliedWarning")


@dataclass(frozen=True)
class GammaBySums(GeneralizedGammaRule):
    """With ways of its own, so that the closed form is left out."""

    def ways(self, operation: Any, output: Tensor) -> Any:
        return super().ways(operation, output)


@dataclass(frozen=True)
class AlphaBetaBySums(AlphaBetaRule):
    def ways(self, operation: Any, output: Tensor) -> Any:
        return super().ways(operation, output)


def by_sums(rule: Any) -> Any:
    if isinstance(rule, GeneralizedGammaRule):
        return GammaBySums(gamma=rule.gamma, epsilon=rule.epsilon, bias=rule.bias)
    return AlphaBetaBySums(alpha=rule.alpha, beta=rule.beta, epsilon=rule.epsilon, bias=rule.bias)


BIASES = st.sampled_from(["absorb", "distribute", "ignore"])
RULES = st.one_of(
    st.builds(
        GeneralizedGammaRule, gamma=st.sampled_from([0.0, 0.01, 0.25, 3.0, 1e4]),
        epsilon=st.sampled_from([0.0, 2.0**-30, 0.125]),
    ),
    st.builds(ZPlusRule, epsilon=st.sampled_from([0.0, 2.0**-30, 0.125])),
    st.builds(AlphaBetaRule, epsilon=st.sampled_from([2.0**-30, 0.125])),
)  # fmt: skip
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda bias: nn.Linear(5, 4, bias=bias), (5,)),
    "wide": (lambda bias: nn.Linear(64, 48, bias=bias), (3, 64)),
    "rows": (lambda bias: nn.Linear(24, 24, bias=bias), (80, 24)),
    "conv1d": (lambda bias: nn.Conv1d(4, 6, 3, stride=2, groups=2, bias=bias), (4, 9)),
    "conv2d": (lambda bias: nn.Conv2d(3, 4, 3, padding=1, bias=bias), (3, 6, 5)),
    "conv3d": (lambda bias: nn.Conv3d(2, 3, 2, dilation=2, bias=bias), (2, 4, 5, 4)),
    "transposed1d": (lambda bias: nn.ConvTranspose1d(3, 4, 3, stride=2, bias=bias), (3, 5)),
    "transposed2d": (lambda bias: nn.ConvTranspose2d(3, 2, 2, stride=2, bias=bias), (3, 4, 3)),
    "transposed3d": (lambda bias: nn.ConvTranspose3d(2, 2, 2, bias=bias), (2, 3, 3, 2)),
}


def explained(
    layer: nn.Module, x: Tensor, rule: Any, bias: Any, readout: Tensor
) -> tuple[Tensor, Tensor]:
    """Relevance of ``x`` and what the ledger lacks."""

    def forward(v: Tensor) -> Tensor:
        return (layer(v) * readout).flatten(1).sum(1)

    composite = Composite({type(layer): rule}, base="gi")
    return ConservativeLRP(forward, rules=composite, bias=bias).attribute(
        x, return_convergence_delta=True
    )


def close(got: Any, want: Any, tolerance: float) -> None:
    for a, b in zip(got, want, strict=True):
        assert torch.isfinite(a).all()
        assert (a - b).abs().max() <= tolerance * want[0].abs().max().clamp(min=1e-6)


@settings(max_examples=80)
@given(
    st.sampled_from(list(LAYERS)), RULES, BIASES, st.booleans(), st.integers(0, 10**6),
    st.sampled_from(["mixed", "positive", "zeros", "one row"]),
)  # fmt: skip
def test_closed_form_equals_signed_sums(
    name: str, rule: Any, bias: Any, has_bias: bool, seed: int, kind: str
) -> None:
    torch.manual_seed(seed)
    build, shape = LAYERS[name]
    layer = build(has_bias).double()
    x = torch.randn(2, *shape, dtype=torch.float64)
    readout = torch.randn(layer(x).shape[1:], dtype=torch.float64)
    if kind == "positive":
        x = x.relu()
    elif kind == "zeros":
        x[..., ::2] = 0.0
        x[0] = 0.0  # outputs of value zero, but for the bias
        with torch.no_grad():
            layer.weight.flatten()[::3] = 0.0
    elif kind == "one row" and len(shape) > 1:
        readout[1:] = 0.0
    got = explained(layer, x, rule, bias, readout)
    close(got, explained(layer, x, by_sums(rule), bias, readout), 1e-9)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rule", [GeneralizedGammaRule(), ZPlusRule(), AlphaBetaRule()], ids=repr)
def test_single_precision(name: str, rule: Any) -> None:
    torch.manual_seed(1)
    build, shape = LAYERS[name]
    layer = build(True)
    x = torch.randn(4, *shape)
    readout = torch.rand(layer(x).shape[1:])
    for bias in ("absorb", "distribute"):
        want = explained(layer.double(), x.double(), by_sums(rule), bias, readout.double())
        got = explained(layer.float(), x, rule, bias, readout)
        close([t.double() for t in got], want, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", [GeneralizedGammaRule(), ZPlusRule()], ids=repr)
def test_half_precision(dtype: torch.dtype, rule: Any) -> None:
    torch.manual_seed(1)
    layer = nn.Linear(48, 32).to(dtype)
    x, readout = torch.randn(4, 48, dtype=dtype), torch.rand(32, dtype=dtype)
    want = explained(layer.double(), x.double(), rule, "absorb", readout.double())
    got = explained(layer.to(dtype), x, rule, "absorb", readout)
    close([t.double() for t in got], want, 0.01 if dtype == torch.float16 else 0.06)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_that_cancel_in_half_precision(dtype: torch.dtype) -> None:
    """All contributions but a small one are negative: the difference of two large sums is lost."""
    x = torch.full((1, 9), 4.0, dtype=dtype)
    x[0, 0] = 1.0
    layer = nn.Linear(9, 1, bias=False).to(dtype)
    with torch.no_grad():
        layer.weight.fill_(-3.3125)
        layer.weight[0, 0] = 0.03
    readout = torch.ones(1, dtype=dtype)
    output = float(layer.double()(x.double()))
    for rule, share in ((ZPlusRule(), 1.0), (AlphaBetaRule(), 2.0)):
        got, _ = explained(layer.to(dtype), x, rule, "absorb", readout)
        # what is positive gets its share of the output by itself
        assert float(got[0, 0]) == pytest.approx(share * output, rel=0.02)


def test_magnitudes_beyond_the_range_of_half_precision() -> None:
    layer = nn.Linear(64, 2, bias=False).half()
    signs = torch.ones(64)
    signs[::2] = -1.0
    with torch.no_grad():
        layer.weight.copy_(torch.stack([signs, signs.roll(1)]) * 40.0)
    x = torch.full((1, 64), 40.0).half()
    x[0, 0] = 41.0
    readout = torch.ones(2).half()
    want = explained(layer.double(), x.double(), GeneralizedGammaRule(), "absorb", readout.double())
    got = explained(layer.half(), x, GeneralizedGammaRule(), "absorb", readout)
    close([got[0].double()], [want[0]], 0.01)
    assert float((x.abs() @ layer.weight.abs().mT)[0, 0]) == float("inf"), "or this tests nothing"


def test_sums_that_cancel_are_taken_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1e-6, 1e-6]]))
    x = torch.tensor([[-1.0, 1.0, 2.0]])
    taken = []
    plain = signed._by_ways
    monkeypatch.setattr(signed, "_by_ways", lambda *a: taken.append(1) or plain(*a))
    readout = torch.ones(1)
    got = explained(layer, x, ZPlusRule(epsilon=0.0), "absorb", readout)[0]
    want = layer(x).item() * torch.tensor([[0.0, 1.0 / 3.0, 2.0 / 3.0]])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=0.0)
    assert taken


def test_weights_of_one_layer_at_a_time() -> None:
    """No matrix of magnitudes is kept for the backward pass."""
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Linear(96, 96) for _ in range(4)))
    alive: list[int] = []
    known = {layer.weight.data_ptr() for layer in layers}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape == (96, 96) and tensor.data_ptr() not in known:
            alive.append(tensor.numel())
        return tensor

    explainer = ConservativeLRP(layers, rules="lrp-gamma")
    explainer.attribute(torch.randn(2, 96), target=0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = []
        layers.register_forward_hook(lambda *_: out.append(len(alive)))
        explainer.attribute(torch.randn(2, 96), target=0)
    assert out[-1] == 0


def test_biases_are_booked() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Conv1d(1, 2, 3), nn.Flatten(),
                        nn.Linear(60, 3))  # fmt: skip
    model = nn.Sequential(net[0], net[1], nn.Unflatten(1, (1, 32)), *net[2:])
    report = audit.explainability(model, torch.randn(2, 32), target=1, rules="lrp-gamma")
    assert set(report.absorbed) >= {"0.bias", "3.bias", "5.bias"}
    assert abs(report.conservation_error) < 1e-5


def test_packed_targets_and_low_memory() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, activation="gelu")
    net = nn.Sequential(nn.TransformerEncoder(layer, 3), nn.Flatten(), nn.Linear(80, 3)).eval()
    x = torch.randn(2, 5, 16)
    for rules in ("lrp-gamma", Composite({nn.Linear: ZPlusRule()}, base="attnlrp")):
        for bias in ("absorb", "distribute"):
            explainer = ConservativeLRP(net, rules=rules, bias=bias)
            alone = torch.stack([explainer.attribute(x, target=t) for t in range(3)])
            packed = explainer.attribute_targets(x, "all", targets_per_pass=3)
            torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-6)
            low = ConservativeLRP(net, rules=rules, bias=bias, memory="low")
            assert torch.equal(low.attribute(x, target=0), alone[0])


def test_inputs_that_change_in_place_afterwards() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    x = torch.randn(2, 8)

    def forward(v: Tensor, in_place: bool) -> Tensor:
        h = v * 1.0
        first = layer(h)
        h = h.add_(first) if in_place else h + first
        return layer(h)

    rules = Composite(base="lrp-gamma")
    got, want = (
        ConservativeLRP(lambda v, p=p: forward(v, p), rules=rules).attribute(x, target=1)
        for p in (True, False)
    )
    assert torch.equal(got, want)


def test_a_subclass_with_ways_of_its_own_goes_by_them() -> None:
    @dataclass(frozen=True)
    class Plain(GeneralizedGammaRule):
        def ways(self, operation: Any, output: Tensor) -> Any:
            return [(operation.apply(operation.input, operation.weight), operation.bias, 1.0)]

    torch.manual_seed(0)
    layer, x, readout = nn.Linear(6, 3), torch.randn(2, 6), torch.ones(3)
    got = explained(layer, x, Plain(), "absorb", readout)[0]
    torch.testing.assert_close(got, x * (readout @ layer.weight))
    assert replace(Plain(), gamma=1.0).gamma == 1.0
