"""Backward passes that leave out rows without gradient."""

import math

import pytest
import torch

from captum_lrp_tx.propagation.autograd.rows import product_of_rows, rows_with_entries

pytestmark = pytest.mark.core


def test_rows_with_entries() -> None:
    x = torch.zeros(2, 3, 20, 12)
    x[1, 2, 7, 11] = 1e-30
    x[0, 0, 3, 0] = math.nan
    found = rows_with_entries(x)
    assert found is not None and found.tolist() == [3, 7]
    assert rows_with_entries(torch.randn(2, 20, 12)) is None
    late = torch.randn(2, 20, 12)
    late[..., :8] = 0  # the first channels tell nothing here
    assert rows_with_entries(late) is None
    ragged = torch.zeros(4, 20, 12)  # few rows of each example, many of all
    for example in range(4):
        ragged[example, 5 * example : 5 * example + 5] = 1
    assert rows_with_entries(ragged) is None


def test_rows_are_few_up_to_a_quarter() -> None:
    x = torch.zeros(1, 16, 4)
    x[0, :4, 3] = 1
    found = rows_with_entries(x)
    assert found is not None and found.tolist() == [0, 1, 2, 3]
    x[0, 4, 2] = 1
    assert rows_with_entries(x) is None


@pytest.mark.parametrize("shape", [(40, 12), (5, 8, 12), (2, 5, 8, 12)])
@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_product_of_rows(shape: tuple[int, ...], count: int) -> None:
    torch.manual_seed(0)
    grad = torch.zeros(shape).view(-1, 12)
    grad[torch.randperm(len(grad))[:count]] = torch.randn(min(count, len(grad)), 12)
    grad = grad.view(shape)
    weight = torch.randn(12, 9)
    result = product_of_rows(grad, weight)
    assert result.shape == (*shape[:-1], 9)
    torch.testing.assert_close(result, (grad.double() @ weight.double()).float())
