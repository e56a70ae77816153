"""Properties that hold for every network: value, conservation, batches, determinism, rules.

The rules for linear maps are compared with sums over single connections, spelled out from their
formulas in double precision: each layer is turned into its matrix by autograd's Jacobian first.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captum_lrp_tx import Composite, ConservativeGI, ConservativeLRP, LayerConservativeLRP
from captum_lrp_tx.rules import (
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

pytestmark = pytest.mark.filterwarnings("ignore::captum_lrp_tx.errors.NoRuleAppliedWarning")
# the fixture `untouched` keeps nothing between examples
FEW = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
SEEDS = st.integers(0, 10_000)
ACTIVATIONS: list[Any] = [
    nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.LeakyReLU, nn.ELU, nn.Hardswish, nn.Mish,
]  # fmt: skip
INPLACE: list[Any] = [
    lambda: nn.ReLU(inplace=True), lambda: nn.SiLU(inplace=True), lambda: nn.ELU(inplace=True),
    lambda: nn.Hardswish(inplace=True), lambda: nn.LeakyReLU(0.1, inplace=True),
]  # fmt: skip
ATTENTION = ["sdpa", "explicit", "einsum", "module"]
NORMS = ["layer", "rms", "hand"]


class RMS(nn.Module):
    """Root-mean-square norm as Llama writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Hand(nn.Module):
    """Layer norm as early BERT code writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return self.gain * centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def make_norm(kind: str, width: int, bias: bool) -> nn.Module:
    if kind == "rms":
        return RMS(width)
    if kind == "hand":
        return Hand(width)
    norm = nn.LayerNorm(width, bias=bias)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm


class Block(nn.Module):
    """Pre-norm transformer block with a choice of spellings."""

    def __init__(
        self, width: int, heads: int, attention: str, norm: str, act: Any, bias: bool, gated: bool
    ) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.norm1, self.norm2 = make_norm(norm, width, bias), make_norm(norm, width, bias)
        if attention == "module":
            self.mha = nn.MultiheadAttention(width, heads, bias=bias, batch_first=True)
        else:
            self.qkv = nn.Linear(width, 3 * width, bias=bias)
            self.proj = nn.Linear(width, width, bias=bias)
        self.up = nn.Linear(width, 2 * width, bias=bias)
        self.gate = nn.Linear(width, 2 * width, bias=bias) if gated else None
        self.act = act()
        self.down = nn.Linear(2 * width, width, bias=bias)

    def attend(self, x: Tensor) -> Tensor:
        if self.attention == "module":
            return self.mha(x, x, x, need_weights=False)[0]
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.attention == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.attention == "explicit":
            y = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        else:
            scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
            y = torch.einsum("bhij,bhjd->bhid", F.softmax(scores, dim=-1), v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        hidden = self.norm2(x)
        inner = self.up(hidden)
        inner = self.act(inner) if self.gate is None else inner * self.act(self.gate(hidden))
        return x + self.down(inner)


class Pool(nn.Module):
    """Mean over tokens and a linear head."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.head = nn.Linear(width, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean(1))


class Residual(nn.Module):
    """A convolutional block whose sum and activation are made in place."""

    def __init__(self, channels: int, act: Any, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(channels) if bias else nn.Identity()
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        out += x
        return self.act(out)


@st.composite
def networks(draw: Any, bias: bool | None = None) -> tuple[nn.Module, Tensor]:
    """A small network in eval mode and a batch for it."""
    torch.manual_seed(draw(SEEDS))
    with_bias = draw(st.booleans()) if bias is None else bias
    batch = draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["mlp", "cnn", "transformer"]))
    if kind == "mlp":
        widths = draw(st.lists(st.integers(1, 9), min_size=2, max_size=4))
        parts: list[nn.Module] = []
        for first, second in itertools.pairwise(widths):
            act = draw(st.sampled_from(ACTIVATIONS + INPLACE))
            parts += [nn.Linear(first, second, bias=with_bias), act()]
        model = nn.Sequential(*parts, nn.Linear(widths[-1], 3, bias=with_bias))
        x = torch.randn(batch, widths[0])
    elif kind == "cnn":
        channels = draw(st.integers(1, 4))
        act = draw(st.sampled_from(ACTIVATIONS + INPLACE))
        pool = draw(st.sampled_from([nn.AvgPool2d, nn.MaxPool2d]))
        size = draw(st.sampled_from([6, 8]))
        model = nn.Sequential(
            nn.Conv2d(2, channels, 3, stride=draw(st.integers(1, 2)), padding=1, bias=with_bias),
            act(), Residual(channels, act, with_bias), pool(2), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(channels, 3, bias=with_bias),
        )  # fmt: skip
        x = torch.randn(batch, 2, size, size)
    else:
        heads = draw(st.sampled_from([1, 2]))
        width = heads * draw(st.sampled_from([2, 4]))
        blocks = [
            Block(
                width, heads, draw(st.sampled_from(ATTENTION)), draw(st.sampled_from(NORMS)),
                draw(st.sampled_from(ACTIVATIONS)), with_bias, draw(st.booleans()),
            )
            for _ in range(draw(st.integers(1, 2)))
        ]  # fmt: skip
        model = nn.Sequential(*blocks, Pool(width, with_bias))
        x = torch.randn(batch, draw(st.integers(1, 6)), width)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval(), x


PRESETS = st.sampled_from(
    ["gi", "ah", "ln", "ah+ln", "lrp", "lrp-gamma", "attnlrp", "attnlrp-gamma"]
)
BIASES: Any = st.sampled_from(["absorb", "distribute", "ignore"])


@FEW
@given(networks(), PRESETS)
def test_the_forward_value_is_that_of_the_plain_model(
    network: tuple[nn.Module, Tensor], preset: str
) -> None:
    model, x = network
    seen: list[Tensor] = []

    def forward(v: Tensor) -> Tensor:
        seen.append(model(v))
        return seen[-1]

    ConservativeLRP(forward, rules=preset).attribute(x, target=0)
    with torch.enable_grad():  # the same kernels: nn.MultiheadAttention has another without
        expected = model(x.clone().requires_grad_())
    assert torch.equal(seen[0], expected)


@FEW
@given(networks(), st.sampled_from([GammaRule(), GeneralizedGammaRule(), ZPlusRule(), FlatRule()]))
def test_the_forward_value_under_linear_rules(
    network: tuple[nn.Module, Tensor], rule: LinearRule
) -> None:
    model, x = network
    seen: list[Tensor] = []

    def forward(v: Tensor) -> Tensor:
        seen.append(model(v))
        return seen[-1]

    composite = Composite({nn.Module: rule}, base="lrp")
    ConservativeLRP(forward, rules=composite).attribute(x, target=0)
    assert torch.equal(seen[0], model(x.clone().requires_grad_()))


@FEW
@given(networks(bias=False))
def test_lrp_conserves_without_biases(network: tuple[nn.Module, Tensor]) -> None:
    model, x = network[0].double(), network[1].double()
    relevance, delta = ConservativeLRP(model).attribute(x, target=1, return_convergence_delta=True)
    scale = relevance.abs().flatten(1).sum(1) + model(x)[:, 1].abs()
    assert bool((delta.abs() <= 1e-6 * scale + 1e-6).all()), (delta, scale)


@FEW
@given(networks(bias=True), st.sampled_from(["distribute", "absorb"]))
def test_what_is_missing_from_the_sum_is_the_delta(
    network: tuple[nn.Module, Tensor], bias: Any
) -> None:
    model, x = network[0].double(), network[1].double()
    relevance, delta = ConservativeLRP(model, bias=bias).attribute(
        x, target=1, return_convergence_delta=True
    )
    torch.testing.assert_close(
        model(x)[:, 1] - relevance.flatten(1).sum(1), delta, rtol=1e-6, atol=1e-9
    )


@FEW
@given(networks(), PRESETS, BIASES)
def test_a_batch_equals_its_examples(
    network: tuple[nn.Module, Tensor], preset: str, bias: Any
) -> None:
    model, x = network[0].double(), network[1].double()
    method = ConservativeLRP(model, rules=preset, bias=bias)
    targets = [i % 3 for i in range(len(x))]
    together = method.attribute(x, target=targets)
    for i, target in enumerate(targets):
        alone = method.attribute(x[i : i + 1], target=target)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-6, atol=1e-9)


@FEW
@given(networks(), PRESETS, BIASES)
def test_determinism_and_the_model_as_it_was(
    untouched: Any, network: tuple[nn.Module, Tensor], preset: str, bias: Any
) -> None:
    model, x = network
    before = x.clone()
    with untouched(model):
        first = ConservativeLRP(model, rules=preset, bias=bias).attribute(x, target=2)
        second = ConservativeLRP(model, rules=preset, bias=bias).attribute(x, target=2)
    assert torch.equal(first, second)
    assert torch.equal(x, before)
    assert first.shape == x.shape and first.dtype == x.dtype


@FEW
@given(networks(), PRESETS)
def test_relevance_is_linear_in_the_explained_output(
    network: tuple[nn.Module, Tensor], preset: str
) -> None:
    model, x = network[0].double(), network[1].double()
    method = ConservativeGI(model, rules=preset)
    parts = [method.attribute(x, target=t) for t in (0, 1)]
    both = ConservativeGI(lambda v: 2.0 * model(v)[:, 0] - 3.0 * model(v)[:, 1], rules=preset)
    expected = 2.0 * parts[0] - 3.0 * parts[1]
    torch.testing.assert_close(both.attribute(x), expected, rtol=1e-6, atol=1e-9)


@FEW
@given(networks(bias=False))
def test_every_layer_holds_the_same_relevance(network: tuple[nn.Module, Tensor]) -> None:
    model, x = network[0].double(), network[1].double()
    if not isinstance(model, nn.Sequential):
        return
    layers = list(model)[:-1]
    _, deltas = LayerConservativeLRP(model, layers).attribute(
        x, target=0, return_convergence_delta=True
    )
    value = model(x)[:, 0].abs()
    assert all(bool((delta.abs() <= 1e-5 * value + 1e-5).all()) for delta in deltas)


# ---- rules against sums over connections --------------------------------------------------------
Spelled = Literal["absorb", "ignore", "distribute"]


def matrix_of(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The layer as ``W x + b`` on the flattened example, and which connections it has."""

    def flat(v: Tensor) -> Tensor:
        return layer(v.reshape(x.shape)[None])[0].flatten()

    zero = torch.zeros_like(x).flatten()
    weights = torch.autograd.functional.jacobian(flat, zero).detach()
    kept = {k: v.clone() for k, v in layer.state_dict().items()}
    with torch.no_grad():
        layer.weight.fill_(1.0)
    connected = torch.autograd.functional.jacobian(flat, zero).detach()
    layer.load_state_dict(kept)
    return weights, flat(zero).detach(), connected


def by_connection(
    rule: LinearRule, x: Tensor, weights: Tensor, b: Tensor, connected: Tensor, relevance: Tensor,
    bias: Spelled,
) -> Tensor:  # fmt: skip
    """Relevance of the inputs of one linear map, one connection after the other."""
    outputs, inputs = weights.shape
    result = [0.0] * inputs

    def divide(a: float, d: float) -> float:
        d += rule.epsilon if d >= 0 else -rule.epsilon
        return 0.0 if d == 0.0 else a / d

    for j in range(outputs):
        r, bj = float(relevance[j]), float(b[j])
        xs = [float(v) for v in x]
        zs = [float(x[i] * weights[j, i]) for i in range(inputs)]
        links = [i for i in range(inputs) if float(connected[j, i]) != 0.0]
        plus, minus = [max(z, 0.0) for z in zs], [min(z, 0.0) for z in zs]
        ways: list[tuple[list[float], float, float]]
        if isinstance(rule, GammaRule):
            boosted = [
                float(x[i] * (weights[j, i] + rule.gamma * max(float(weights[j, i]), 0.0)))
                for i in range(inputs)
            ]
            ways = [(boosted, bj, 1.0)]
        elif isinstance(rule, GeneralizedGammaRule):
            agreeing, limit = (plus, max(bj, 0.0)) if sum(zs) + bj > 0 else (minus, min(bj, 0.0))
            boosted = [z + rule.gamma * a for z, a in zip(zs, agreeing, strict=True)]
            ways = [(boosted, bj + rule.gamma * limit, 1.0)]
        elif isinstance(rule, AlphaBetaRule):
            ways = [(plus, max(bj, 0.0), rule.alpha), (minus, min(bj, 0.0), -rule.beta)]
        elif isinstance(rule, PositiveWeightRule):
            ways = [([xs[i] * max(float(weights[j, i]), 0.0) for i in range(inputs)], bj, 1.0)]
        elif isinstance(rule, FlatRule):
            counts = [float(connected[j, i]) for i in range(inputs)]
            ways = [(counts, 0.0, 1.0)]
        elif isinstance(rule, WSquareRule):
            ways = [([float(w) ** 2 for w in weights[j]], 0.0, 1.0)]
        elif isinstance(rule, ZBoxRule):
            boxed = [
                z - rule.low * max(float(w), 0.0) - rule.high * min(float(w), 0.0)
                for z, w in zip(zs, weights[j], strict=True)
            ]
            ways = [(boxed, 0.0, 1.0)]
        else:
            ways = [(zs, bj, 1.0)]
        for contributions, b_way, share in ways:
            denominator = sum(contributions) + (0.0 if bias == "ignore" else b_way)
            for i in links:
                result[i] += contributions[i] * divide(share * r, denominator)
            if bias == "distribute" and b_way:
                absorbed = b_way * divide(share * r, denominator)
                energy = sum(float(connected[j, i]) * xs[i] ** 2 for i in links)
                for i in links if energy else ():
                    result[i] += float(connected[j, i]) * xs[i] ** 2 * absorbed / energy
    return torch.tensor(result, dtype=x.dtype)


def rules() -> Any:
    epsilon = st.sampled_from([1e-9, 0.05, 0.5])
    gamma = st.sampled_from([0.0, 0.1, 0.25, 2.0])
    return st.one_of(
        st.builds(EpsilonRule, epsilon=epsilon),
        st.just(ZeroRule()),
        st.builds(GammaRule, epsilon=epsilon, gamma=gamma),
        st.builds(GeneralizedGammaRule, epsilon=epsilon, gamma=gamma),
        st.builds(ZPlusRule, epsilon=epsilon),
        st.sampled_from([1.0, 1.5, 2.0, 3.0]).flatmap(
            lambda a: st.builds(
                AlphaBetaRule, epsilon=epsilon, alpha=st.just(a), beta=st.just(a - 1.0)
            )
        ),
        st.builds(PositiveWeightRule, epsilon=epsilon),
        st.builds(FlatRule, epsilon=epsilon),
        st.builds(WSquareRule, epsilon=epsilon),
        st.builds(ZBoxRule, epsilon=epsilon, low=st.sampled_from([-9.0, 0.0]), high=st.just(9.0)),
    )


@st.composite
def linear_maps(draw: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(draw(SEEDS))
    bias, batch = draw(st.booleans()), draw(st.integers(1, 2))
    kind = draw(st.sampled_from(["linear", "tokens", "conv1d", "conv2d", "transposed"]))
    if kind in ("linear", "tokens"):
        layer: nn.Module = nn.Linear(draw(st.integers(1, 5)), draw(st.integers(1, 4)), bias=bias)
        middle = [draw(st.integers(1, 3))] if kind == "tokens" else []
        x = torch.randn(batch, *middle, layer.in_features)
    elif kind == "conv1d":
        groups = draw(st.sampled_from([1, 2]))
        layer = nn.Conv1d(
            2, 4, draw(st.integers(1, 3)), stride=draw(st.integers(1, 2)),
            padding=draw(st.integers(0, 1)), dilation=draw(st.integers(1, 2)), groups=groups,
            bias=bias,
        )  # fmt: skip
        x = torch.randn(batch, 2, 6)
    elif kind == "conv2d":
        layer = nn.Conv2d(2, 2, (2, 3), stride=(1, 2), padding=draw(st.integers(0, 1)), bias=bias)
        x = torch.randn(batch, 2, 3, 4)
    else:
        layer = nn.ConvTranspose1d(2, 2, 2, stride=draw(st.integers(1, 2)), bias=bias)
        x = torch.randn(batch, 2, 3)
    if draw(st.booleans()):
        x = x.abs()
    if draw(st.booleans()):
        x[..., -1] = 0.0  # inputs of value zero
    return layer.double(), x.double()


@settings(max_examples=120)
@given(linear_maps(), rules(), BIASES)
def test_rules_of_linear_maps_connection_by_connection(
    pair: tuple[nn.Module, Tensor], rule: LinearRule, bias: Spelled
) -> None:
    layer, x = pair
    z = layer(x).detach()
    readout = torch.randn(z.shape[1:], dtype=torch.float64)
    composite = Composite({type(layer): rule}, base="gi")

    def forward(v: Tensor) -> Tensor:
        return (layer(v) * readout).flatten(1).sum(1)

    got = ConservativeLRP(forward, rules=composite, bias=bias).attribute(x)
    weights, b, connected = matrix_of(layer, x[0])
    for i in range(len(x)):
        relevance = (z[i] * readout).flatten()
        want = by_connection(rule, x[i].flatten(), weights, b, connected, relevance, bias)
        torch.testing.assert_close(
            got[i].flatten(), want, rtol=1e-6, atol=1e-8,
            msg=lambda m: f"{rule} {layer} bias={bias}: {m}",
        )  # fmt: skip
