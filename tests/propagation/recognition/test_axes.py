"""Axes of reshaped tensors, against the places of the entries themselves."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from captum_lrp_tx.propagation.recognition import axes

Shape = tuple[int, ...]
SHAPES = [
    shape
    for dims in (1, 2, 3)
    for shape in itertools.product((1, 2, 3, 4, 6, 12), repeat=dims)
    if math.prod(shape) == 12
]


def tells(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether the place along one axis tells the place along another."""
    known: dict[int, int] = {}
    return all(known.setdefault(a, b) == b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("old", SHAPES, ids=str)
def test_where_an_axis_is_after_a_reshape(old: Shape) -> None:
    before = np.indices(old).reshape(len(old), -1)
    for new, axis in itertools.product(SHAPES, range(len(old))):
        if old[axis] == 1 or old == new:
            continue
        after = np.indices(new).reshape(len(new), -1)
        node = torch.ones(old, requires_grad=True).view(new).grad_fn
        same = [i for i in range(len(new)) if np.array_equal(after[i], before[axis])]
        joint = [
            i for i, size in enumerate(new)
            if size > 1 and (tells(after[i], before[axis]) or tells(before[axis], after[i]))
        ]  # fmt: skip
        assert axes.forwards(node, axis, old, new) == (same[0] if same else None)
        found = axes.forwards(node, axis, old, new, exactly=False)
        assert found in joint if joint else found is None


def test_empty_tensors_have_axes() -> None:
    node = torch.ones(0, 2, 3, requires_grad=True).view(0, 6).grad_fn
    assert axes.forwards(node, 0, (0, 2, 3), (0, 6)) == 0
    assert axes.forwards(node, 1, (0, 2, 3), (0, 6), exactly=False) == 1
