"""Ways that give the same numbers: from which size on each of them is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from captum_lrp_tx import ConservativeGI
from captum_lrp_tx.propagation.autograd.functions import Stabilize


def bytes_saved(run: Callable[[], Any]) -> int:
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        run()
    return total


@pytest.mark.parametrize(
    "size, small, dense",
    [
        (2**14, 1, True),  # few calls for small tensors
        (2**14 + 8, 1, False),
        (2**15, 2**12 - 1, False),
        (2**15, 2**12, True),  # an index takes twice the room of a factor
    ],
)
def test_factors_of_the_epsilon_rule(size: int, small: int, dense: bool) -> None:
    z = torch.ones(size)
    z[:small] = 1e-6
    saved = bytes_saved(lambda: Stabilize.call(z.requires_grad_(), 1e-9))
    assert saved == (4 * size if dense else (4 + 8) * small)


@pytest.mark.parametrize("activation", [F.gelu, F.silu])
@pytest.mark.parametrize("size, each", [(2**18 - 1, 4), (2**18, 3)])
def test_slopes_of_activations(activation: Any, size: int, each: int) -> None:
    model = ConservativeGI(lambda x: activation(x).sum(1))
    x = torch.randn(1, size)
    assert each * size <= bytes_saved(lambda: model.attribute(x)) < each * size + 100


@pytest.mark.parametrize(
    "shape, leaves_out_rows",
    [((63, 4), False), ((64, 4), True), ((2, 31, 4), False), ((2, 32, 4), True), ((64,), False)],
)
def test_products_that_leave_out_rows(shape: tuple[int, ...], leaves_out_rows: bool) -> None:
    weight, names = torch.randn(5, shape[-1]), list[str]()

    def forward(x: Tensor) -> Tensor:
        y = F.linear(x[0], weight)
        names.append(y.grad_fn.name())  # type: ignore[union-attr]
        return y.sum()[None]

    ConservativeGI(forward, rules="gi").attribute(torch.randn(1, *shape))
    assert ("LinearValue" in names[0]) is leaves_out_rows


@pytest.mark.parametrize("width, again", [(64, False), (63, True)])
def test_what_is_small_beside_the_input_of_a_block(
    width: int, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deviation for each token is a 64th of it, and then no second run is needed."""
    net = nn.Sequential(nn.Sequential(*(nn.LayerNorm(width) for _ in range(3))), nn.Flatten())
    calls = 0
    plain = nn.LayerNorm.forward

    def forward(self: nn.LayerNorm, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return plain(self, x)

    low = ConservativeGI(net, memory="low")
    x = torch.randn(1, 5, width)
    low.attribute(x, target=0)
    monkeypatch.setattr(nn.LayerNorm, "forward", forward)
    low.attribute(x, target=0)
    assert calls == (5 if again else 3)
