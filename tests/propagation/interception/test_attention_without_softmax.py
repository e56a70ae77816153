"""Attention in other spellings: heads that talk, linear attention, sigmoids; and norms as gates."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import oracle
import zoo
from captum_lrp_tx import ConservativeLRP, audit
from captum_lrp_tx.errors import NoRuleAppliedWarning, TrainingModeWarning
from closeness import close_to_largest

TOKENS, WIDTH, HEADS = 6, 12, 3


class Block(nn.Module):
    """Queries, keys and values, one of the ways below to mix the tokens, and a projection."""

    def __init__(self, mix: str) -> None:
        super().__init__()
        self.mix = mix
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.before, self.after = nn.Linear(HEADS, HEADS), nn.Linear(HEADS, HEADS)
        self.conv = nn.Conv2d(HEADS, HEADS, 1)
        self.table = nn.Parameter(torch.empty(HEADS, HEADS))
        self.gate = nn.Parameter(torch.empty(HEADS, 1, 1))
        zoo.randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3 * HEADS, -1)).transpose(1, 2)
        mixed = getattr(self, self.mix)(*heads.chunk(3, 1))
        output: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return output

    def pattern(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.mT).softmax(-1)

    # heads that talk to each other
    def talking(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = self.before((q @ k.mT).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.after(scores.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2) @ v

    def talking_by_convolution(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.conv(self.pattern(q, k)) @ v

    def talking_by_einsum(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("bhij,hg->bgij", self.pattern(q, k), self.table) @ v

    # a gate between content and position, renormalised in place
    def gated(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        gate = self.gate.sigmoid()
        position = torch.eye(TOKENS).softmax(-1)
        pattern = (1 - gate) * self.pattern(q, k) + gate * position
        pattern /= pattern.sum(-1).unsqueeze(-1)
        return pattern @ v

    # differential attention
    def difference(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (self.pattern(q, k) - 0.3 * self.pattern(k, q)) @ v

    # linear attention
    def factorised(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q @ (k.softmax(-2).mT @ v) * 0.5

    def relu_features(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.relu() @ (k.relu().mT @ F.pad(v, (0, 1), value=1.0))
        return out[..., :-1] / (out[..., -1:] + 1e-3)

    def elu_features(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = F.elu(q) + 1, F.elu(k) + 1
        return q @ (k.mT @ v) / (q @ k.sum(-2, keepdim=True).mT)

    def elu_einsum(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = F.elu(q) + 1, F.elu(k) + 1
        values = torch.einsum("bhnd,bhnm->bhmd", k, v)
        rescale = 1 / (torch.einsum("bhld,bhd->bhl", q, k.sum(2)) + 1e-3)
        return torch.einsum("bhld,bhmd,bhl->bhlm", q, values, rescale)

    def quadratic_features(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pattern = q.relu() @ k.relu().mT
        return (pattern / (pattern.sum(-1, keepdim=True) + 1e-3)) @ v

    # no softmax over scores
    def sigmoid_scores(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).sigmoid() @ v

    def relu_scores(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ((q @ k.mT).relu() / TOKENS) @ F.gelu(v)

    # what is no attention
    def bare_scores(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT) @ v

    def activated_values(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT) @ F.silu(v)


VERIFIED = """talking talking_by_convolution talking_by_einsum gated difference factorised
relu_features elu_features elu_einsum quadratic_features sigmoid_scores relu_scores""".split()


def explain(block: nn.Module, x: Tensor, preset: str, **options: Any) -> Tensor:
    result = ConservativeLRP(block, rules=preset).attribute(x, target=(2, 1), **options)
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize("preset", ["ah", "ah+ln", "lrp"])
@pytest.mark.parametrize("mix", VERIFIED)
def test_pattern_is_constant(mix: str, preset: Any) -> None:
    block, x = Block(mix), zoo.floats(2, TOKENS, WIDTH)
    relevance = explain(block, x, preset, strict=True)
    (expected,) = oracle.oracle_relevance(block, (x,), preset, lambda y: y[:, 2, 1])
    close_to_largest(relevance, expected)


@pytest.mark.parametrize("mix", VERIFIED)
def test_queries_and_keys_get_nothing(mix: str) -> None:
    """By finite differences: the relevance is that of the values for the pattern at hand."""
    block, x = Block(mix).double(), zoo.floats(1, TOKENS, WIDTH).double()

    def values_only(moved: Tensor) -> Tensor:
        heads = block.qkv(x).unflatten(-1, (3 * HEADS, -1)).transpose(1, 2)
        q, k, _ = heads.chunk(3, 1)
        changed = block.qkv(moved).unflatten(-1, (3 * HEADS, -1)).transpose(1, 2)
        mixed = getattr(block, mix)(q, k, changed.chunk(3, 1)[2])
        output: Tensor = block.proj(mixed.transpose(1, 2).flatten(2))
        return output[:, 2, 1]

    relevance = explain(block, x, "ah")
    step, expected = 1e-6, torch.zeros_like(x)
    for i in range(x.numel()):
        shift = torch.zeros_like(x).flatten()
        shift[i] = step
        shift = shift.reshape(x.shape)
        slope = (values_only(x + shift) - values_only(x - shift)) / (2 * step)
        expected.view(-1)[i] = slope.detach() * x.view(-1)[i]
    torch.testing.assert_close(relevance, expected, rtol=1e-5, atol=1e-7)


#: Positively homogeneous throughout, so that sharing uniformly conserves as well.
HOMOGENEOUS = "relu_features quadratic_features relu_scores bare_scores activated_values".split()


@pytest.mark.parametrize(
    ("mix", "preset"),
    [(mix, "lrp") for mix in [*VERIFIED, "bare_scores", "activated_values"]]
    + [(mix, "attnlrp") for mix in HOMOGENEOUS],
)
def test_relevance_is_conserved(mix: str, preset: str) -> None:
    report = audit.explainability(
        Block(mix), zoo.floats(2, TOKENS, WIDTH), target=(2, 1), rules=preset, file=None
    )
    assert report.is_covered
    scale = abs(report.output) + sum(abs(v) for v in report.absorbed.values())
    assert abs(report.conservation_error) <= 1e-5 * scale


@pytest.mark.parametrize("mix", ["bare_scores", "activated_values"])
def test_scores_without_weights_are_plain_products(mix: str) -> None:
    """Nothing sums to one: the gradient, under rules for attention and norms."""
    x = zoo.floats(2, TOKENS, WIDTH)
    with pytest.warns(NoRuleAppliedWarning):
        got = ConservativeLRP(Block(mix), "ah").attribute(x, target=(2, 1))
    plain = ConservativeLRP(Block(mix), "gi").attribute(x, target=(2, 1))
    torch.testing.assert_close(got, plain)
    assert all(
        not f.is_fault
        for f in audit.explainability(Block(mix), x, (2, 1), rules="ah", file=None).findings
    )


class ResponseNorm(nn.Module):
    """Global response norm: every channel in units of the mean channel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(WIDTH))
        self.bias = nn.Parameter(torch.empty(WIDTH))
        zoo.randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        length = x.norm(p=2, dim=1, keepdim=True)
        relative = length / (length.mean(dim=-1, keepdim=True) + 1e-6)
        return x + torch.addcmul(self.bias, self.weight, x * relative)


@pytest.mark.parametrize("preset", ["ln", "ah+ln", "lrp"])
def test_global_response_norm_is_a_constant_factor(preset: Any) -> None:
    model, x = ResponseNorm(), zoo.floats(2, TOKENS, WIDTH)
    relevance = explain(model, x, preset, strict=True)
    length = x.norm(dim=1, keepdim=True)
    factor = 1 + model.weight * length / (length.mean(-1, keepdim=True) + 1e-6)
    expected = torch.zeros_like(x)
    expected[:, 2, 1] = (x * factor)[:, 2, 1].detach()
    torch.testing.assert_close(relevance, expected)


class Positioned(nn.Module):
    """A position table handed to a module as an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Adding()
        self.table = nn.Parameter(torch.randn(TOKENS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.inner(x, self.table)
        return output


class Adding(nn.Module):
    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return x + table


def test_parameters_handed_to_modules_are_constants() -> None:
    model, x = Positioned(), zoo.floats(2, TOKENS, WIDTH)
    report = audit.explainability(model, x, target=(2, 1), file=None, strict=True)
    assert report.absorbed == pytest.approx({"table": 2 * float(model.table[2, 1].detach())})
    assert abs(report.conservation_error) < 1e-6


class Standardised(nn.Module):
    """A convolution whose weights are standardised by batch_norm, as in BiT and NFNets."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, 4, -1), None, None, training=True)
        return F.conv2d(x, weight.reshape_as(self.weight)).mean((2, 3))


def test_statistics_of_weights_are_not_random() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrainingModeWarning)
        model, x = Standardised(), zoo.floats(2, 3, 4, 4)
        relevance = ConservativeLRP(model).attribute(x, target=1)
    torch.testing.assert_close(relevance.sum((1, 2, 3)), model(x)[:, 1].detach())
