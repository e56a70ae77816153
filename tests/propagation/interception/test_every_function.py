"""Every differentiable function of torch, with constants in every place in turn.

Under ``lrp`` the relevance of what depends on the inputs and that of named constants add up to the
output, or the audit says that the function is not covered.  What is affine in the inputs, which is
told by its values alone, is never called uncovered.
"""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from captum_lrp_tx import audit

pytest.importorskip("expecttest", reason="torch's own sample inputs need the package expecttest")

PARTS = 12
DOUBLE = torch.float64
#: Called random or not differentiable by torch itself, rounded to fewer digits, or an error there.
LEFT_OUT = frozenset(
    """bfloat16 half chalf normal bernoulli exponential nextafter geometric log_normal cauchy
    nn.functional.alpha_dropout nn.functional.feature_alpha_dropout as_strided_scatter
    _native_batch_norm_legit _batch_norm_with_update""".split()
)
#: Affine by luck of the sample: one factor or one entry only, or what is asked is where it is so.
AFFINE_BY_LUCK = frozenset(
    """scatter_reduce index_reduce nn.functional.multi_head_attention_forward cdist masked.prod
    masked.logsumexp logsumexp logcumsumexp nn.functional.pdist linalg.det linalg.pinv linalg.vander
    nn.functional.margin_ranking_loss nn.functional.hinge_embedding_loss _softmax_backward_data
    nn.functional.binary_cross_entropy_with_logits nn.functional.multilabel_margin_loss
    nn.functional.multi_margin_loss nn.functional.smooth_l1_loss linalg.norm
    lu_solve round linalg.lstsq""".split()
)
Call = Callable[..., Tensor]
ROWS, MATRIX = torch.randn(3, 4, dtype=DOUBLE), torch.randn(4, 4, dtype=DOUBLE)
IMAGE = torch.randn(2, 4, 6, 6, dtype=DOUBLE)
#: Public functions that torch has no samples for.
FURTHER: dict[str, tuple[Call, tuple[Any, ...]]] = {
    "affine_grid": (lambda t: F.affine_grid(t, [2, 1, 3, 3]), (torch.randn(2, 2, 3).double(),)),
    "fold": (lambda t: F.fold(t, (4, 4), (2, 2)), (torch.randn(1, 8, 9).double(),)),
    "lp_pool": (lambda t: F.lp_pool2d(t, 3.0, 2), (IMAGE,)),
    "max_pool_with_indices": (lambda t: F.max_pool2d(t, 2, return_indices=True)[0], (IMAGE,)),
    "channel_shuffle": (lambda t: torch.channel_shuffle(t, 2), (IMAGE,)),
    "conv_tbc": (torch.conv_tbc, (ROWS[:, None], MATRIX[None], MATRIX[0])),
    "convolution": (
        lambda t, w: torch.convolution(t, w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
        (IMAGE, torch.randn(3, 4, 2, 2).double()),
    ),
    "chain_matmul": (lambda a, b, c: torch.linalg.multi_dot([a, b, c]), (ROWS, MATRIX, MATRIX)),
    "grid_sampler": (
        lambda t, g: torch.grid_sampler(t, g, 0, 0, False), (IMAGE, IMAGE[:, :, :, :2] / 4),
    ),
    "norm_except_dim": (lambda t: torch.norm_except_dim(t, 2, 0), (ROWS,)),
    "nuclear_norm": (torch.nuclear_norm, (ROWS,)),
    "copy_": (lambda a, b: (a * 1).copy_(b) + a, (ROWS, ROWS + 1)),
    "fill_diagonal_": (lambda a: (a * 1).fill_diagonal_(0.7), (MATRIX,)),
    "setitem": (lambda a, b: _with_item(a * 1, b), (ROWS, ROWS[:, 0] + 1)),
    "setitem of a number": (lambda a: _with_item(a * 1, 0.7), (ROWS,)),
    "setitem into a constant": (lambda a: _with_item(torch.ones(3, 4).double(), a), (ROWS[:, 0],)),
    "into a view": (lambda a, b: _added_to_view(a * 1, b), (ROWS, ROWS[:, 0])),
    "into a view of a constant": (
        lambda b: _added_to_view(torch.ones(3, 4).double(), b), (ROWS[:, 0],)
    ),
    "function into a view": (lambda a: _exp_of_view(a * 1), (ROWS,)),
    "iadd": (lambda a, b: _augmented(a * 1, b), (ROWS, ROWS + 1)),
    "maximum in place": (
        lambda a, b: (a * 1).scatter_reduce_(1, torch.zeros(3, 4).long(), b, "amax"),
        (ROWS, ROWS.flip(0)),
    ),
    "rtruediv": (lambda a: 2.0 / a, (ROWS,)),
    "sparse product": (lambda a: torch.sparse.mm(MATRIX[:, :3].to_sparse(), a), (ROWS,)),
    "sparse addmm": (
        lambda c, a: torch.sparse.addmm(c, MATRIX[:, :3].to_sparse(), a), (MATRIX, ROWS),
    ),
    "sparse @": (lambda a: MATRIX[:, :3].to_sparse_csr() @ a, (ROWS,)),
    "float_power": (lambda a: torch.float_power(a, 1), (ROWS,)),
    "power of zero": (lambda a: a**0 + a, (ROWS,)),
    "weights of a bag": (
        lambda w, t: F.embedding_bag(
            torch.arange(3).expand(3, 3), t, mode="sum", per_sample_weights=w
        ),
        (ROWS[:, :3], MATRIX),
    ),
    "rounded division": (lambda a: torch.div(a, 0.3, rounding_mode="floor") + a, (ROWS,)),
    "addcdiv": (torch.addcdiv, (ROWS, ROWS.flip(0), ROWS.abs() + 1)),
    "complex": (lambda a, b: torch.complex(a, b) + (1 + 2j), (ROWS, ROWS + 1)),
}  # fmt: skip


def _with_item(target: Tensor, value: Any) -> Tensor:
    target[:, 1] = value
    return target


def _added_to_view(target: Tensor, value: Tensor) -> Tensor:
    target[:, 0].add_(1.5)
    target[:, 1:2].squeeze(1).add_(value)
    return target


def _exp_of_view(target: Tensor) -> Tensor:
    target[:, 0].exp_()
    return target


def _augmented(target: Tensor, value: Tensor) -> Tensor:
    target += value
    target *= 2
    target -= 0.5
    return target


def of_torch(part: int) -> Iterator[tuple[str, Call, tuple[Any, ...]]]:
    """``(name, function, arguments)`` of every function that torch has sample inputs for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    for info in op_db[part::PARTS]:
        usable = info.supports_autograd and DOUBLE in info.supported_dtypes("cpu")
        if not usable or info.name in LEFT_OUT:
            continue
        # as info.sample_inputs draws them, which looks at the stack for the name of the test
        torch.default_generator.manual_seed(1234)
        random.seed(1234)
        samples = itertools.islice(
            info.sample_inputs_func(info, "cpu", DOUBLE, requires_grad=False), 1
        )
        for number, sample in enumerate(samples):
            leaves, spec = tree_flatten((sample.input, sample.args, sample.kwargs))
            calls = {"": info.op}
            if number == 0 and info.inplace_variant is not None and not sample.broadcasts_input:
                calls["_"] = lambda x, *args, _f=info.inplace_variant, **kw: _f(x * 1, *args, **kw)

            for suffix, call in calls.items():

                def function(*values: Any, _call: Any = call, _spec: Any = spec) -> Any:
                    first, args, kwargs = tree_unflatten(list(values), _spec)
                    return _call(first, *args, **kwargs)

                yield info.name + suffix, function, tuple(leaves)


def one_number(function: Call, values: tuple[Any, ...], places: tuple[int, ...]) -> Call:
    """A weighted sum of all that a function returns, of the arguments at these places."""

    def explained(*inputs: Tensor) -> Tensor:
        called = [v.clone() if isinstance(v, Tensor) and not v.is_sparse else v for v in values]
        for place, x in zip(places, inputs, strict=True):
            called[place] = x[0]
        torch.default_generator.manual_seed(0)  # without the stack that torch keeps of each seed
        total = torch.zeros((), dtype=DOUBLE)
        for seed, out in enumerate(tree_flatten(function(*called))[0]):
            if isinstance(out, Tensor) and (out.is_floating_point() or out.is_complex()):
                dense = out.to_dense() if out.layout is not torch.strided else out
                dense = torch.view_as_real(dense) if out.is_complex() else dense
                weight = torch.randn(dense.shape, generator=torch.Generator().manual_seed(seed))
                total = total + (dense * weight).sum()
        return total.reshape(1)

    return explained


def variants(values: tuple[Any, ...]) -> list[tuple[int, ...]]:
    """Every tensor alone, and all."""
    places = [
        i
        for i, v in enumerate(values)
        if isinstance(v, Tensor)
        and (v.is_floating_point() or v.is_complex())
        and v.layout is torch.strided
        and v.numel()
    ]
    sizes = {1, len(places)} if places else set()
    return [chosen for size in sizes for chosen in itertools.combinations(places, size)]


def is_differentiable(explained: Call, inputs: tuple[Tensor, ...]) -> bool:
    leaves = [x.clone().requires_grad_() for x in inputs]
    try:
        output = explained(*leaves)
        grads = torch.autograd.grad(output.sum(), leaves, allow_unused=True)
    except (RuntimeError, NotImplementedError, ValueError, IndexError):
        return False
    return bool(output.isfinite().all()) and all(g is not None for g in grads)


def is_affine(explained: Call, inputs: tuple[Tensor, ...]) -> bool:
    """Whether the function is additive and homogeneous up to a constant, at random points."""
    zeros, others = [torch.zeros_like(x) for x in inputs], [torch.randn_like(x) for x in inputs]
    try:
        base = explained(*zeros)
        first, second = explained(*inputs) - base, explained(*others) - base
        both = explained(*(x + y for x, y in zip(inputs, others, strict=True))) - base
        scaled = explained(*(-2.5 * x for x in inputs)) - base
    except (RuntimeError, ValueError):
        return False
    size = 1e-7 * (1 + base.abs() + first.abs() + second.abs())
    return bool(((both - first - second).abs() < size) & ((scaled + 2.5 * first).abs() < size))


def complaints(name: str, function: Call, values: tuple[Any, ...]) -> list[str]:
    found = []
    for places in variants(values):
        explained = one_number(function, values, places)
        inputs = tuple(values[i].detach().clone()[None] for i in places)
        finite = all(bool(x.isfinite().all()) for x in inputs)
        if not finite or not is_differentiable(explained, inputs):
            continue
        report = audit.explainability(explained, inputs, file=None)
        where = f"{name} of the arguments {places}"
        if report.is_covered and abs(report.conservation_error) > 1e-6 * max(1, abs(report.output)):
            found.append(f"{where}: {report.conservation_error} of {report.output} is missing")
        by_luck = name.rstrip("_") in AFFINE_BY_LUCK
        if not report.is_covered and not by_luck and is_affine(explained, inputs):
            found.append(f"{where}: affine, but {[str(f) for f in report.findings]}")
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(PARTS))
def test_relevance_and_constants_account_for_the_output_or_it_is_said(part: int) -> None:
    found = [text for one in of_torch(part) for text in complaints(*one)]
    assert not found, "\n".join(found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FURTHER)
def test_so_it_is_for_functions_without_samples(name: str) -> None:
    function, values = FURTHER[name]
    assert not complaints(name, function, values)


def test_the_walk_sees_what_is_lost_and_what_is_affine() -> None:
    """The oracle itself: a straight-through function and a plain sum."""

    def clipped(x: Tensor) -> Tensor:
        return torch.minimum(x, torch.tensor([1.0, 2.0, 1.0], dtype=DOUBLE))

    x = torch.tensor([[0.5, -2.0, 4.0]], dtype=DOUBLE)
    assert is_affine(lambda t: t.cumsum(-1).sum(1) + 3, (x,))
    assert not is_affine(lambda t: clipped(t).sum(1), (x,))
    report = audit.explainability(lambda t: clipped(t).sum(1), x, file=None)
    assert report.absorbed == {"constant": pytest.approx(1.0)}
    assert report.relevance == pytest.approx(-1.5)


@pytest.mark.parametrize("name", ["sigmoid", "softplus", "hardsigmoid"])
def test_what_an_activation_is_at_zero_is_named(name: str) -> None:
    """Nothing can be given to an input of zero: the value at zero is a constant."""
    function = getattr(torch, name, None) or getattr(F, name)
    x = torch.tensor([[0.0, 1.0, -2.0, 0.0]])
    report = audit.explainability(lambda t: function(t).sum(1), x, file=None)
    expected = 2 * float(function(torch.zeros(())))
    assert report.absorbed == {"constant": pytest.approx(expected)}
    assert report.conservation_error == pytest.approx(0.0, abs=1e-6)
