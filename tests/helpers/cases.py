"""How a model of the zoo is explained, and what its errors are relative to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import oracle


def dict_inputs(case: Any) -> Any:
    return case.inputs if len(case.inputs) > 1 else case.inputs[0]


def forward(case: Any) -> Any:
    model, kwargs = case.model, case.kwargs
    if not kwargs:
        return model
    return lambda *args: model(*args, **kwargs)


def scale(case: Any, rules: str, expected: Tensor) -> Tensor:
    """What 1e-5 is relative to; sums over a token that cancel exactly need that of their terms."""
    if case.kind == "tokens":
        parts = oracle.oracle_lookup_relevance(
            case.forward, case.inputs[0], rules, case.select, double=True, trace=case.trace()
        )
        return torch.stack([p.abs().max() for p in parts]).max().float()
    return expected.abs().max().float()
