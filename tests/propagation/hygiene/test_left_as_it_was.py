"""Buffers, caches and what depends on them are after an explanation what they were before."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

from captum_lrp_tx import ConservativeLRP, LayerConservativeLRP, audit
from captum_lrp_tx.errors import CaptumLRPWarning

Untouched = Callable[[nn.Module], Any]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CaptumLRPWarning)
        yield


class Caching(nn.Module):
    """Keeps what it saw: written in place, exchanged, added, and counted beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("cache", torch.zeros(6, 4))
        self.register_buffer("inverse", torch.ones(3), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.filled = 0
        self.longest = 3

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        with torch.no_grad():
            self.cache[: len(y)] = y
            self.cache[:2].mul_(2)
            self.cache.data[5:].add_(1)
            torch.add(self.steps, 1, out=self.steps)
        self.filled += len(y)
        self.register_buffer("inverse", torch.ones(9), persistent=False)
        self.longest = 9
        if not hasattr(self, "extra"):
            self.register_buffer("extra", torch.ones(1), persistent=False)
        return y + self.inverse.sum()


class Counting(nn.Module):
    """Writes into a buffer, and an attribute says what is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(4))
        self.filled = 0

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.cache.add_(1)
        self.filled += 1
        return x + self.cache + self.filled


class Exchanging(nn.Module):
    """Puts another tensor into the place of a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.last
        self.last = self.last + 1
        return y


class Centering(nn.Module):
    """Moves a parameter of its own, as some codebooks do."""

    def __init__(self) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.zeros(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.centre.lerp_(x.mean(0), 0.1)
        return x - self.centre


MODELS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm1d(4),
    "batch norm without momentum": lambda: nn.BatchNorm1d(4, momentum=None),
    "instance norm": lambda: nn.Sequential(
        nn.Unflatten(1, (4, 1)), nn.Upsample(3), nn.InstanceNorm1d(4, track_running_stats=True),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(),
    ),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
    "spectral norm of old": lambda: spectral_norm(nn.Linear(4, 4)),
    "cache": Caching,
    "counter": Counting,
    "exchanged buffer": Exchanging,
    "centre": Centering,
}  # fmt: skip


def built(name: str, train: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    part = MODELS[name]()
    model = nn.Sequential(nn.Linear(4, 4), part, nn.Tanh(), nn.Linear(4, 2)).train(train)
    x = torch.randn(5, 4)
    if "norm" in name:
        with torch.no_grad():
            model(x)
    return model, x


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", MODELS)
def test_nothing_moves(name: str, train: bool, untouched: Untouched) -> None:
    model, x = built(name, train)
    plain = copy.deepcopy(model)
    attributes = {k: v for k, v in vars(model[1]).items() if isinstance(v, (int, float))}
    with untouched(model):
        ConservativeLRP(model).attribute(x, target=0)
        LayerConservativeLRP(model, model[0]).attribute_targets(x, "all")
        audit.explainability(model, x, target=0, file=None)
    assert attributes == {k: v for k, v in vars(model[1]).items() if isinstance(v, (int, float))}
    assert torch.equal(model(x), plain(x)), "the next call is what it would have been"
    assert list(model.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("name", MODELS)
def test_nothing_moves_if_the_model_raises(name: str, untouched: Untouched) -> None:
    model, x = built(name, train=True)

    def broken(x: Tensor) -> Tensor:
        model(x)
        raise KeyError("late")

    with untouched(model), pytest.raises(KeyError):
        ConservativeLRP(broken).attribute(x, target=0)


def test_a_graph_from_before_can_still_be_differentiated() -> None:
    model, x = built("batch norm", train=True)
    expected = copy.deepcopy(model)
    loss, twin = model(x).square().sum(), expected(x).square().sum()
    ConservativeLRP(model).attribute(x, target=0)
    loss.backward()
    twin.backward()
    torch.testing.assert_close(model[0].weight.grad, expected[0].weight.grad, rtol=0, atol=0)


def test_nothing_is_copied_for_models_that_write_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = built("batch norm", train=False)
    real, sizes = Tensor.clone, []

    def counted(self: Tensor, **more: Any) -> Tensor:
        sizes.append(tuple(self.shape))
        return real(self, **more)

    monkeypatch.setattr(Tensor, "clone", counted)
    ConservativeLRP(model).attribute(x, target=0)
    assert (4,) not in sizes and () not in sizes


def test_what_is_written_elsewhere_stays_as_after_any_forward_pass() -> None:
    seen: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        seen.append(x.detach())
        x = F.relu_(x.clone())
        return x.sum(1)

    ConservativeLRP(forward).attribute(torch.randn(2, 3))
    assert len(seen) == 1
