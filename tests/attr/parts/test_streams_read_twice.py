"""Hidden states of several layers in one sum: they are no branches of each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_tx import EdgeRelevance, PartRelevance

MAPS = {name: nn.Linear(8, 8).double() for name in ("start", "v1", "mlp1", "v2", "mlp2", "end")}


class Joined(nn.Module):
    """Two layers, and a function of what is in front of, between and behind them."""

    def __init__(self, join: Any) -> None:
        super().__init__()
        self.maps, self.join = nn.ModuleDict(MAPS), join

    def layer(self, x: Tensor, attention: str, mlp: str) -> Tensor:
        """Attention and an MLP."""
        x = x + (x @ x.mT / 9).softmax(-1) @ self.maps[attention](x)
        return x + torch.relu(self.maps[mlp](x))

    def forward(self, x: Tensor) -> Tensor:
        """One number for each example."""
        states: Tensor = self.join(self, self.maps["start"](x))
        return states.flatten(1).sum(1)


def at_once(join: Any) -> Any:
    """A function of what all layers give."""

    def run(model: Joined, x: Tensor) -> Any:
        y = model.layer(x, "v1", "mlp1")
        return join(x, y, model.layer(y, "v2", "mlp2"))

    return run


def meanwhile(model: Joined, x: Tensor) -> Tensor:
    """A weighted sum that grows from layer to layer."""
    y = model.layer(x, "v1", "mlp1")
    total = y * 0.5
    return total + model.layer(y, "v2", "mlp2") * 2


@pytest.mark.parametrize(
    "join",
    [
        at_once(lambda a, b, c: b + c), at_once(lambda a, b, c: c + b),
        at_once(lambda a, b, c: a + b + c), at_once(lambda a, b, c: c + a),
        at_once(lambda a, b, c: a + MAPS["end"](c)), at_once(lambda a, b, c: MAPS["end"](c) + b),
        at_once(lambda a, b, c: 2 * b + 3 * c), at_once(lambda a, b, c: torch.cat((a, b, c), -1)),
        meanwhile,
    ],
)  # fmt: skip
def test_every_layer_counts_once(join: Any) -> None:
    """A state was attention beside the layers that had made it, which got nothing."""
    model, x = Joined(join), torch.randn(2, 3, 8).double()
    graph = EdgeRelevance(model).attribute(x, strict=True)
    inner = [i for i, n in enumerate(graph.nodes) if n.kind in ("head", "mlp")]
    assert len(inner) == 4
    torch.testing.assert_close(graph.read[:, inner], graph.written[:, inner])
    assert bool(graph.written[:, inner].any(0).all())
    parts = PartRelevance(model).attribute(x).parts
    assert [part.kind for part in parts] == ["attention", "mlp"] * 2
    for i, part in zip(inner, parts, strict=True):
        constants = graph.edges[
            :, [n.name.startswith("constants of") and n.module == part.module for n in graph.nodes]
        ]
        torch.testing.assert_close(
            graph.written[:, i] + constants.sum((1, 2)), part.relevance.sum(1)
        )
