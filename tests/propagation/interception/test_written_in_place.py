"""Models that write into the result of a layer: constants are booked for what it was before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_lrp_tx import Composite, audit

pytestmark = pytest.mark.core

TOKENS, WIDTH = 5, 6
OTHER = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).double()


def add(y: Tensor) -> Tensor:
    return y.add_(OTHER)


def scale(y: Tensor) -> Tensor:
    return y.mul_(2.0)


def set_row(y: Tensor) -> Tensor:
    y[:, 0] = 0.0
    return y


def add_row(y: Tensor) -> Tensor:
    y[:, 1] += OTHER[1]
    return y


def rectify(y: Tensor) -> Tensor:
    return F.relu_(y)


def add_to_part(y: Tensor) -> Tensor:
    y[:, 1:].add_(1.0)
    return y


def copy_row(y: Tensor) -> Tensor:
    y[:, 2].copy_(y[:, 3] * 2)
    return y


def mask(y: Tensor) -> Tensor:
    return y.masked_fill_(OTHER > 1, 0.0)


def layers() -> dict[str, Callable[[Tensor], Tensor]]:
    torch.manual_seed(0)
    linear, norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
    attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
    convolution, recurrent = nn.Conv1d(TOKENS, TOKENS, 3, padding=1), nn.GRU(WIDTH, WIDTH)
    for module in (linear, norm, attention, convolution, recurrent):
        module.double()
        for name, parameter in module.named_parameters():
            if "bias" in name:
                nn.init.normal_(parameter)
    weight, bias = linear.weight.detach(), linear.bias.detach()
    return {
        "linear": linear,
        "linear of four dimensions": lambda x: linear(x[:, None]).squeeze(1),
        "linear of another layout": lambda x: linear(x.transpose(0, 1)).transpose(0, 1),
        "heads": lambda x: linear(x).unflatten(-1, (2, 3)).flatten(-2),
        "rows": lambda x: linear(x.flatten(0, 1)).view(2, TOKENS, WIDTH),
        "product and sum": lambda x: x @ weight + bias,
        "baddbmm": lambda x: torch.baddbmm(bias.expand_as(x), x, weight.expand(2, -1, -1)),
        "convolution": convolution,
        "attention": lambda x: attention(x, x, x, need_weights=False)[0],
        "recurrent": lambda x: recurrent(x)[0],
        "norm": norm,
        "sum": lambda x: x + bias,
        "masked": lambda x: x.masked_fill(OTHER > 1, 3.0),
        "joined": lambda x: torch.cat([linear(x)[:, :2], (x + bias)[:, 2:]], 1),
    }


@pytest.mark.parametrize("preset", ["lrp", "attnlrp", "lrp-gamma"])
@pytest.mark.parametrize(
    "write", [add, scale, set_row, add_row, rectify, add_to_part, copy_row, mask]
)
@pytest.mark.parametrize("layer", layers())
def test_relevance_and_constants_are_the_output(
    layer: str, write: Callable[[Tensor], Tensor], preset: str
) -> None:
    run = layers()[layer]
    torch.manual_seed(2)
    inputs, head = torch.randn(2, TOKENS, WIDTH).double(), torch.randn(WIDTH, 3).double()

    def model(x: Tensor) -> Tensor:
        return (write(run(x * 1.0)) @ head).sum(1)

    report = audit.explainability(model, inputs, 1, rules=Composite(base=preset), file=None)
    scale_of_terms = abs(report.output) + sum(abs(v) for v in report.absorbed.values())
    assert abs(report.conservation_error) <= 1e-7 * scale_of_terms


class Residual(nn.Module):
    """``y += x`` into the result of a layer, as in residual networks, or ``y + x``."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        z: Tensor = self.second(y)
        if self.in_place:
            z += y
        else:
            z = z + y
        result: Tensor = self.head(self.norm(z)).sum(1)
        return result


@pytest.mark.parametrize("in_place", [True, False])
def test_the_audit_says_which_modules_it_cannot_tell(in_place: bool) -> None:
    torch.manual_seed(0)
    model, inputs = Residual(in_place).double(), torch.randn(2, TOKENS, WIDTH).double()
    report = audit.explainability(model, inputs, 1, file=None)
    assert abs(report.conservation_error) <= 1e-9
    assert report.written == (("second",) if in_place else ())
    told = [layer.module for layer in report.layers]
    assert told == [name for name in ("first", "second", "norm", "head", "")
                    if name not in report.written]  # fmt: skip
    assert all(abs(layer.error) <= 1e-9 for layer in report.layers)
    assert ("1 more cannot be told" in str(report)) == in_place
