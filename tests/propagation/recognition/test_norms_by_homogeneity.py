"""Norms in every spelling: the statistic is constant if it makes the degree zero, else plain."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_lrp_tx import ConservativeGI, ConservativeLRP
from captum_lrp_tx.errors import NoRuleAppliedWarning, UncoveredOperationError
from captum_lrp_tx.propagation.recognition import homogeneity
from captum_lrp_tx.propagation.recognition.degrees import Degrees

EPS, WIDTH, TOKENS = 1e-5, 8, 6
Freeze = Callable[[Tensor], Tensor]


def mean_square(x: Tensor) -> Tensor:
    return x.square().mean(-1, keepdim=True) + EPS


SAME: dict[str, Callable[[Tensor, Freeze], Tensor]] = {
    "rsqrt": lambda x, n: x * n(mean_square(x).rsqrt()),
    "power": lambda x, n: x * n(mean_square(x).pow(-0.5)),
    "power by a tensor": lambda x, n: x * n(mean_square(x).pow(torch.tensor(-0.5))),
    "exponential of a logarithm": lambda x, n: x * n((-0.5 * mean_square(x).log()).exp()),
    "division": lambda x, n: x / n(mean_square(x).sqrt()),
    "sum in a loop": lambda x, n: (
        x / n((sum(x[..., i : i + 1] ** 2 for i in range(WIDTH)) / WIDTH + EPS).sqrt())
    ),
    "einsum": lambda x, n: (
        x * n((torch.einsum("btd,btd->bt", x, x)[..., None] / WIDTH + EPS).rsqrt())
    ),
    "matrix product": lambda x, n: (
        x * n((x.square() @ torch.full((WIDTH, 1), 1 / WIDTH) + EPS).rsqrt())
    ),
    "applied by einsum": lambda x, n: torch.einsum(
        "btd,bt->btd", x, n(mean_square(x).squeeze(-1).rsqrt())
    ),
    "applied by an overload": lambda x, n: torch.ops.aten.mul.Tensor(x, n(mean_square(x).rsqrt())),
    "applied by addcdiv": lambda x, n: torch.addcdiv(
        torch.zeros(WIDTH), x, n(mean_square(x).sqrt())
    ),
    "applied by a diagonal matrix": lambda x, n: (
        torch.diag_embed(n(mean_square(x)[..., 0].rsqrt())) @ x
    ),
    "sum of exponentials of logarithms": lambda x, n: (
        x / n(((2 * x.abs().log()).logsumexp(-1, keepdim=True).exp() / WIDTH + EPS).sqrt())
    ),
    "spectrum": lambda x, n: (
        x / n((torch.fft.fft(x, norm="ortho").abs().square().mean(-1, keepdim=True) + EPS).sqrt())
    ),
    "added by index": lambda x, n: (
        x / n((torch.zeros(2, TOKENS, 1).index_add(2, torch.zeros(WIDTH, dtype=torch.long),
            x.square()) / WIDTH + EPS).sqrt())
    ),
    "trace": lambda x, n: torch.stack([torch.stack(
        [t / n((torch.outer(t, t).trace() / WIDTH + EPS).sqrt()) for t in one]) for one in x]),
    "in units of the greatest": lambda x, n: (lambda m: x / n(
        m * (x / m).square().mean(-1, keepdim=True).sqrt()
    ))(x.abs().amax(-1, keepdim=True)),
}  # fmt: skip
OTHERS: dict[str, Callable[[Tensor, Freeze], Tensor]] = {
    "sum of moduli": lambda x, n: x / n(x.abs().sum(-1, keepdim=True)),
    "sum of both sides": lambda x, n: x / n((F.relu(x) + F.relu(-x)).sum(-1, keepdim=True)),
    "sum of chosen sides": lambda x, n: x / n(torch.where(x > 0, x, -x).sum(-1, keepdim=True)),
    "sum of clamped sides": lambda x, n: x
    / n((x.clamp(min=0) - x.clamp(max=0)).mean(-1, keepdim=True)),
    "twice one side": lambda x, n: x * n(1 / (2 * F.relu(x) - x).sum(-1, keepdim=True)),
    "slope of minus one": lambda x, n: x / n(F.leaky_relu(x, -1.0).sum(-1, keepdim=True)),
    "greatest modulus": lambda x, n: x / n(x.abs().amax(-1, keepdim=True)),
    "running mean": lambda x, n: x / n((x.square().sum(-1, keepdim=True).cumsum(1) + EPS).sqrt()),
    "neighbours": lambda x, n: x
    * n((F.conv1d(x.square(), torch.full((TOKENS, 1, 3), 1 / 3), padding=1, groups=TOKENS) + EPS)
        .rsqrt()),
    "cubes": lambda x, n: x / n(x.abs().pow(3).sum(-1, keepdim=True).pow(1 / 3)),
    "variance by moments": lambda x, n: (x - x.mean(-1, keepdim=True))
    / n((x.square().mean(-1, keepdim=True) - x.mean(-1, keepdim=True).square() + EPS).sqrt()),
    "complex": lambda x, n: torch.view_as_real(
        (lambda z: z / n(z.abs() + EPS))(torch.view_as_complex(x.unflatten(-1, (-1, 2))))
    ).flatten(2),
    "of a gated map": lambda x, n: (lambda y: y * n(mean_square(y).rsqrt()))(
        gated(x)),
    "of a gated map, centred": lambda x, n: (lambda y: (y - y.mean(-1, keepdim=True))
        / n(y.var(-1, keepdim=True).sqrt()))(gated(x)),
    "of the largest of neighbours": lambda x, n: (lambda y: (y - y.mean(-1, keepdim=True))
        / n((y.var(-1, keepdim=True) + EPS).sqrt()))(F.max_pool1d(x, 2)),
    "of the largest of groups, by a factor": lambda x, n: (lambda y: y * n(mean_square(y).rsqrt()))(
        x.unflatten(-1, (-1, 2)).amax(-1)),
    "of norms": lambda x, n: (lambda y: y / n(mean_square(y).sqrt()))(
        x.unflatten(-1, (-1, 2)).norm(dim=-1)),
    "of values with a sigmoid gate": lambda x, n: (lambda y: y * n(mean_square(y).rsqrt()))(
        x * torch.sigmoid(x @ MATRIX)),
    "of values mixed by a softmax": lambda x, n: (lambda y: y / n(mean_square(y).sqrt()))(
        ((x @ MATRIX).softmax(-1)[..., :3, None] * torch.stack([x, x.sin(), x.cos()], -2)).sum(-2)),
    "of a linear map": lambda x, n: (x @ MATRIX) / n(mean_square(x).sqrt()),
    "of a distance from a constant": lambda x, n: (lambda y: y / n(y.norm(dim=-1, keepdim=True)))(
        MATRIX[0] - x),
    "of norms by their mean, laid out anew": lambda x, n: (
        lambda y: y * n(relative(y.norm(dim=1))).unsqueeze(1))(x.tanh()),
    "of norms of a product by their mean": lambda x, n: (
        x * n(relative(x.norm(dim=1, keepdim=True)))),
    "of norms by their mean, by a reciprocal": lambda x, n: (lambda y: (lambda g: y * n(
        g * g.mean(-1, keepdim=True).reciprocal()))(y.norm(dim=1, keepdim=True)))(x.tanh()),
    "of norms by their mean, weighted": lambda x, n: (
        lambda y: y * (MATRIX[0] * n(relative(y.norm(dim=1, keepdim=True)))))(x.tanh()),
    # what is no norm
    "activations by their sum": lambda x, n: (lambda p: p / (p.sum(-1, keepdim=True) + EPS))(
        F.relu(x)),
    "by products of neighbours": lambda x, n: x.square() / (1e-3 + torch.matmul(
        x[..., None, :], x.roll(1, -1)[..., None])[..., 0]),
    "by products of neighbours, with a summand": lambda x, n: x.square() / torch.baddbmm(
        torch.full((1,), 1e-3), x.flatten(0, 1)[:, None], x.roll(1, -1).flatten(0, 1)[..., None]
    ).view(*x.shape[:2], 1),
    "by squares and moduli": lambda x, n: x
    / (x.square() + x.abs()).sum(-1, keepdim=True).sqrt(),
    "a length by its own entries": lambda x, n: x.norm(dim=-1, keepdim=True) / x,
    "by a signed sum": lambda x, n: x / x.sum(-1, keepdim=True),
    "multiplied": lambda x, n: x * x.norm(dim=-1, keepdim=True),
    "scaled back": lambda x, n: (x / n(x.std(1, keepdim=True))).tanh() * x.std(1, keepdim=True),
    "of something else": lambda x, n: x / (x.tanh().norm(dim=-1, keepdim=True) + 1e-3),
    "distances": lambda x, n: x / (1 + x.norm(dim=-1, keepdim=True)),
    "weights by their sum": lambda x, n: (lambda p: p / p.sum(-1, keepdim=True))(
        x.softmax(-1)[..., :4]),
    "weights by their norm": lambda x, n: (lambda p: p / p.norm(dim=-1, keepdim=True))(
        x.softmax(-1)[..., :4]),
}  # fmt: skip


def relative(norms: Tensor) -> Tensor:
    return norms / norms.mean(-1, keepdim=True)


def gated(x: Tensor) -> Tensor:
    """Both factors are parts of one map, so that their product is one of a thing with itself."""
    gate, value = (x @ MATRIX).chunk(2, -1)
    return (gate * value) @ MATRIX[: WIDTH // 2]


MATRIX = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(2))
WEIGHT = torch.randn(TOKENS * WIDTH, generator=torch.Generator().manual_seed(3))


def inputs() -> Tensor:
    return torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


def source(x: Tensor) -> Tensor:
    return x * (1.5 + (x @ MATRIX).sin())


def read(y: Tensor) -> Tensor:
    y = y.flatten(1)
    return (y * WEIGHT[: y.shape[1]]).sum(1, keepdim=True)


def expected(spelling: Callable[[Tensor, Freeze], Tensor], preset: str) -> Tensor:
    freeze: Freeze = (lambda t: t.detach()) if "ln" in preset else (lambda t: t)
    x = inputs().requires_grad_()
    (gradient,) = torch.autograd.grad(read(spelling(source(x), freeze)).sum(), x)
    return (x * gradient).detach()


def relevance(spelling: Callable[[Tensor, Freeze], Tensor], preset: Any) -> Tensor:
    explainer = ConservativeGI(lambda x: read(spelling(source(x), lambda t: t)), rules=preset)
    result = explainer.attribute(inputs(), target=0)
    assert isinstance(result, Tensor)
    return result


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("preset", ["ah", "ln", "ah+ln"])
@pytest.mark.parametrize("name", [*SAME, *OTHERS])
def test_the_statistic_of_a_norm_is_constant_and_nothing_else(name: str, preset: str) -> None:
    spelling = {**SAME, **OTHERS}[name]
    want = expected(spelling, preset)
    assert (relevance(spelling, preset) - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("preset", ["ln", "ah+ln"])
@pytest.mark.parametrize("name", SAME)
def test_one_norm_in_every_spelling(name: str, preset: str) -> None:
    want = relevance(SAME["rsqrt"], preset)
    assert (relevance(SAME[name], preset) - want).abs().max() <= 1e-5 * want.abs().max()


#: Norms that are told from other quotients, but not held constant.
NOT_HELD: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "in two steps": (lambda x: x * mean_square(x) ** -0.25 * mean_square(x) ** -0.25, "at once"),
    "root by root": (
        lambda x: x / mean_square(x) ** 0.25 / mean_square(x).sqrt().sqrt(), "at once"),
    "determinant": (
        lambda x: x / torch.linalg.det(x[..., None, :] @ x[..., None])[..., None].sqrt(),
        "own size"),
    "of a view": (
        lambda x: x.mT.flatten(1) / torch.linalg.det(
            x.flatten(1)[:, None] @ x.flatten(1)[..., None])[:, None].sqrt(), "own size"),
    "multiplied": (
        lambda x: x * torch.linalg.det(x[..., None, :] @ x[..., None])[..., None].rsqrt(),
        "own size"),
    "of norms by their mean, and these beside": (
        lambda x: (lambda y: (lambda g: y * g + g)(relative(y.norm(dim=1, keepdim=True))))(
            x.tanh()), "own mean"),
    "moduli by masks": (
        lambda x: x / (x * (x > 0) - x * (x < 0)).sum(-1, keepdim=True), "own size"),
    "mean of moduli by masks": (
        lambda x: x / (x * (x > 0) - x * (x < 0)).mean(-1, keepdim=True), "own size"),
}  # fmt: skip


@pytest.mark.parametrize("preset", ["ln", "ah+ln"])
@pytest.mark.parametrize("name", NOT_HELD)
def test_a_norm_that_is_not_held_constant_is_refused(name: str, preset: str) -> None:
    """Also beside norms that are."""
    spelling, why = NOT_HELD[name]
    explainer = ConservativeGI(lambda x: read(spelling(F.normalize(source(x), dim=-1))), preset)
    with pytest.raises(UncoveredOperationError, match=why):
        explainer.attribute(inputs(), target=0, strict=True)
    plain = ConservativeGI(lambda x: read(spelling(source(x))), "gi")
    plain.attribute(inputs(), target=0, strict=True)


@pytest.mark.parametrize("preset", ["ln", "ah+ln"])
@pytest.mark.parametrize("name", [*SAME, *OTHERS])
def test_no_false_alarm(name: str, preset: str) -> None:
    def forward(x: Tensor) -> Tensor:
        return read({**SAME, **OTHERS}[name](F.normalize(source(x), dim=-1), lambda t: t))

    if name == "of something else":
        pytest.skip("a norm of something else, which divides, is a fault")
    ConservativeGI(forward, preset).attribute(inputs(), target=0, strict=True)


@pytest.mark.parametrize("examples", [1, 2])
def test_a_single_number_that_is_no_size_is_no_false_alarm(examples: int) -> None:
    def forward(x: Tensor) -> Tensor:
        unit = F.normalize(source(x), dim=-1)
        return read(unit / unit.sin().exp().sum((1, 2), keepdim=True))

    ConservativeGI(forward, "ln").attribute(inputs()[:examples], target=0, strict=True)


def test_strict_where_no_rule_acted() -> None:
    explainer = ConservativeGI(lambda x: read(source(x)), "ln")
    with pytest.raises(UncoveredOperationError, match=r"No operation .* matched"):
        explainer.attribute(inputs(), target=0, strict=True)
    with pytest.warns(NoRuleAppliedWarning):
        explainer.attribute(inputs(), target=0)


def test_weights_by_their_own_sum_hide_no_norm() -> None:
    """What attention gives may be normalised, however its weights were written."""
    values = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(3)).double()

    def forward(x: Tensor, weights: Callable[[Tensor], Tensor]) -> Tensor:
        read = weights(x @ x.mT / WIDTH) @ (x @ values)
        return (read * (1 / (read**2).mean(-1, keepdim=True).sqrt())).mean(1)

    x = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(4)).double()
    by_sum, softmax = (
        ConservativeLRP(functools.partial(forward, weights=w), "ln").attribute(x, target=1)
        for w in (lambda s: (lambda e: e / e.norm(1, -1, keepdim=True))(s.exp()),
                  lambda s: s.softmax(-1))
    )  # fmt: skip
    torch.testing.assert_close(by_sum, softmax)


def test_degrees_are_found_however_deep_the_graph_is() -> None:
    x = torch.ones(3, requires_grad=True)
    deep = x * 1.0
    for _ in range(3000):
        deep = -deep
    degrees = Degrees()
    assert set(degrees.deep.degree(deep.grad_fn, 0).of.values()) == {1.0}
    statistic = (deep * deep).sum().sqrt()
    found = homogeneity.normalises(degrees, statistic, (deep,), quotient=True)
    assert found is homogeneity.Normalising.WHOLE


def test_what_is_known_of_a_graph_keeps_none_of_it() -> None:
    """A norm whose statistic is a constant frees what it was computed from, in the forward pass."""

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor.detach()  # a result holds the node that saves it

    alive: list[weakref.ref[Saved]] = []

    def pack(tensor: Tensor) -> Saved:
        saved = Saved(tensor)
        alive.append(weakref.ref(saved))
        return saved

    degrees, x = Degrees(), torch.randn(3, 4, requires_grad=True) * 2
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        statistic = x.pow(2).mean(-1, keepdim=True).sqrt()
    for search in (degrees.shallow, degrees.deep, degrees.through_norms):
        assert set(search.degree(statistic.grad_fn, 0).of.values()) == {1.0}
    assert any(ref() is not None for ref in alive)
    del statistic
    assert alive and all(ref() is None for ref in alive)


@pytest.mark.filterwarnings("ignore::captum_lrp_tx.errors.NoRuleAppliedWarning")
@pytest.mark.parametrize("ordered", [True, False])
def test_entries_are_a_spread_if_they_are_chosen_by_their_order(ordered: bool) -> None:
    """Two entries at fixed places have the same graph and say nothing of the size."""
    x = torch.randn(2, 3, 8, dtype=torch.float64).sort(-1).values
    places = torch.arange(8).expand(2, 3, 8)

    def model(x: Tensor, hold: bool = False) -> Tensor:
        order = x.argsort(-1) if ordered else places
        spread = x.gather(-1, order[..., 6:7]) - x.gather(-1, order[..., 1:2])
        return (x / (spread.detach() if hold else spread)).square().flatten(1).sum(1)

    found = ConservativeLRP(model, "ln").attribute(x)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf, hold=ordered).sum(), leaf)
    torch.testing.assert_close(found, x * gradient)


def test_a_buffer_that_held_an_order_is_not_marked_for_good() -> None:
    """The next pass may keep what is in it: then its entries are at fixed places."""
    x = torch.randn(2, 3, 8, dtype=torch.float64).sort(-1).values

    class Keeping(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("order", torch.arange(8).expand(2, 3, 8).clone())
            self.is_first = True

        def forward(self, x: Tensor) -> Tensor:
            if self.is_first:
                self.order.copy_(x.argsort(-1))
            spread = x.gather(-1, self.order[..., 6:7]) - x.gather(-1, self.order[..., 1:2])
            return (x / spread).square().flatten(1).sum(1)

    model = Keeping().eval()
    first = ConservativeLRP(model, "ln").attribute(x)
    model.is_first = False
    with pytest.warns(NoRuleAppliedWarning):
        second = ConservativeLRP(model, "ln").attribute(x)
    torch.testing.assert_close(second, ConservativeGI(model, "gi").attribute(x))
    assert not torch.allclose(first, second) and not vars(model.order)
