"""Ways through the rules and the engine that no other model here takes, each by hand.

Attention with dropout, gated linear units under each rule for products, layers that return lists
or mappings, caches of any make, quotients, products with something added.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from captum_lrp_tx import ConservativeGI, ConservativeLRP, LayerConservativeGI, audit
from captum_lrp_tx.errors import UnreachedInputError, UnsupportedModelError
from captum_lrp_tx.propagation import graph
from captum_lrp_tx.propagation.hygiene.arguments import fresh
from captum_lrp_tx.propagation.judging import diagnosis, obstacles
from captum_lrp_tx.propagation.recognition import homogeneity, patterns
from captum_lrp_tx.propagation.recognition.degrees import Degrees
from captum_lrp_tx.propagation.state.scope import Boundary
from closeness import close_to_largest

TOKENS, WIDTH = 5, 4


# ---- attention with dropout ---------------------------------------------------------------------
class Dropped(nn.Module):
    """Grouped heads with dropout: queries, keys and values are parts of the input."""

    def __init__(self, causal: bool, mask: Tensor | None) -> None:
        super().__init__()
        self.causal, self.mask = causal, mask
        self.head = torch.randn(4 * WIDTH)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = x.split((4 * WIDTH, 2 * WIDTH, 2 * WIDTH), -1)
        shaped = [t.unflatten(-1, (-1, WIDTH)).transpose(1, 2) for t in (q, k, v)]
        return shaped[0], shaped[1], shaped[2]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        y = F.scaled_dot_product_attention(
            q, k, v, self.mask, dropout_p=0.4, is_causal=self.causal, enable_gqa=True
        )
        return y.transpose(1, 2).flatten(2).sum(1) @ self.head

    def spelled(self, x: Tensor, query: float, value: float, constant: bool) -> Tensor:
        """The same with the pattern in sight and shares of the gradient for the factors."""

        def part(t: Tensor, share: float) -> Tensor:
            return t * share + t.detach() * (1 - share)

        q, k, v = self.parts(x)
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        scores = part(q, query) @ part(k, query).mT / WIDTH**0.5
        if self.causal:
            scores = scores.masked_fill(~torch.ones(TOKENS, TOKENS).tril().bool(), -torch.inf)
        if self.mask is not None and self.mask.dtype == torch.bool:
            scores = scores.masked_fill(~self.mask, -torch.inf)
        elif self.mask is not None:
            scores = scores + self.mask
        pattern = F.dropout(scores.softmax(-1), 0.4)
        y = (pattern.detach() if constant else pattern) @ part(v, value)
        return y.transpose(1, 2).flatten(2).sum(1) @ self.head


MASKS: dict[str, Tensor | None] = {
    "none": None,
    "flags": torch.arange(TOKENS) < 3,
    "numbers": torch.linspace(-2, 1, TOKENS),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("causal, mask", [(False, "none"), (True, "none"), (False, "flags"),
                                          (False, "numbers")])  # fmt: skip
@pytest.mark.parametrize("rules, query, value", [("ah", 1.0, 1.0), ("attnlrp", 0.25, 0.5)])
def test_attention_with_dropout(
    causal: bool, mask: str, rules: str, query: float, value: float
) -> None:
    given = MASKS[mask]
    model = Dropped(causal, None if given is None else given.expand(TOKENS, TOKENS))
    x = zoo.floats(1, TOKENS, 8 * WIDTH)
    torch.manual_seed(3)
    relevance = ConservativeGI(model, rules=rules).attribute(x)
    leaf = x.clone().requires_grad_()
    torch.manual_seed(3)
    output = model.spelled(leaf, query, value, constant=rules == "ah")
    torch.manual_seed(3)
    close_to_largest(model(x), output.detach())  # the same entries are dropped
    (gradient,) = torch.autograd.grad(output.sum(), leaf)
    close_to_largest(relevance, x * gradient)


# ---- products -----------------------------------------------------------------------------------
@pytest.mark.parametrize("given", [(-1,), (1,), ()], ids=str)
@pytest.mark.parametrize("rules, share", [("attnlrp", 0.5), ("lrp", 1.0)])
def test_gated_linear_units(rules: str, share: float, given: tuple[int, ...]) -> None:
    x, weight = zoo.floats(2, 6, 6), torch.randn(18)
    dim = given[0] if given else -1
    signal, control = x.chunk(2, dim)
    each = weight * (signal * control.sigmoid()).flatten(1)
    explainer = ConservativeLRP(lambda t: F.glu(t, *given).flatten(1) @ weight, rules)
    got = explainer.attribute(x).chunk(2, dim)
    close_to_largest(got[0].flatten(1), share * each)
    torch.testing.assert_close(got[1].flatten(1), (1 - share) * each, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rules", ["lrp", "attnlrp"])
def test_the_relevance_of_a_quotient_is_its_numerators(rules: str) -> None:
    x, y, weight = zoo.floats(2, WIDTH), zoo.floats(2, WIDTH) + 5, torch.randn(WIDTH)
    of_x, of_y = ConservativeLRP(lambda a, b: (a / b) @ weight, rules).attribute((x, y))
    close_to_largest(of_x, x / y * weight)
    assert not of_y.any()


@pytest.mark.parametrize(
    "product",
    [
        lambda x, y: torch.mul(x, y),
        lambda x, y: torch.mul(input=x, other=y),
        lambda x, y: torch.multiply(x, other=y),
        lambda x, y: x.mul(other=y),
        lambda x, y: (x * 1.0).mul_(other=y),
    ],
)
def test_products_by_keyword(product: Any) -> None:
    x, y, weight = zoo.floats(2, WIDTH), zoo.floats(2, WIDTH) + 5, torch.randn(WIDTH)
    for got in ConservativeLRP(lambda a, b: product(a, b) @ weight).attribute((x, y)):
        close_to_largest(got, 0.5 * x * y * weight)


@pytest.mark.filterwarnings("ignore:.*Div in the forward function:UserWarning")
@pytest.mark.parametrize("rounding", [None, "floor", "trunc"])
def test_quotients_by_keyword(rounding: str | None) -> None:
    x, y, weight = zoo.floats(2, WIDTH), zoo.floats(2, WIDTH) + 5, torch.randn(WIDTH)

    def forward(a: Tensor, b: Tensor) -> Tensor:
        return (torch.div(a, other=b, rounding_mode=rounding) + a + b) @ weight

    of_x, of_y = ConservativeLRP(forward).attribute((x, y))
    close_to_largest(
        of_x, (x + (x / y if rounding is None else 0.0)) * weight
    )  # steps have no slope
    close_to_largest(of_y, y * weight)


def test_a_product_of_a_tensor_with_itself_is_shared() -> None:
    x, weight = zoo.floats(2, WIDTH), torch.randn(WIDTH)
    close_to_largest(ConservativeLRP(lambda t: (t * t) @ weight).attribute(x), x * x * weight)


# ---- products with something added ---------------------------------------------------------------
def test_a_product_with_something_added_is_attention() -> None:
    def spelled(x: Tensor, plain: bool) -> Tensor:
        pattern = (x @ x.mT).softmax(-1)
        if plain:
            return (1.0 + pattern.detach() @ x).sum((1, 2))
        return torch.baddbmm(torch.ones(2, TOKENS, WIDTH), pattern, x).sum((1, 2))

    x = zoo.floats(2, TOKENS, WIDTH)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(spelled(leaf, True).sum(), leaf)
    close_to_largest(
        ConservativeGI(lambda t: spelled(t, False), rules="ah").attribute(x), x * gradient
    )


def test_a_pattern_of_values_that_do_not_depend_on_the_input() -> None:
    """All relevance would go to constants: the inputs get none, and the audit says so."""
    values = torch.randn(2, TOKENS, WIDTH)
    x = zoo.floats(2, TOKENS, WIDTH)

    def forward(t: Tensor) -> Tensor:
        return ((t @ t.mT).softmax(-1) @ values + 0 * t).sum((1, 2))

    assert not ConservativeGI(forward, rules="ah").attribute(x).any()
    assert ConservativeGI(forward, rules="gi").attribute(x).abs().max() > 1e-3
    report = audit.explainability(forward, x, rules="ah+ln", file=None)
    assert any(rule.kind == "attention" for rule in report.applied)


@pytest.mark.parametrize("spelling", ["list", "arguments"])
def test_operands_of_einsum_in_a_list(spelling: str) -> None:
    def forward(x: Tensor) -> Tensor:
        pattern = torch.einsum("bic,bjc->bij", x, x).softmax(-1)
        operands = ([pattern, x],) if spelling == "list" else (pattern, x)
        return torch.einsum("bij,bjc->bic", *operands).sum((1, 2))

    x = zoo.floats(2, TOKENS, WIDTH)
    pattern = (x @ x.mT).softmax(-1)
    expected = x * pattern.sum(1)[..., None]
    close_to_largest(ConservativeGI(forward, rules="ah").attribute(x), expected)


# ---- layers -------------------------------------------------------------------------------------
class Container(nn.Module):
    """A layer that returns two tensors and a note in some container."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.inner = kind, nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Any:
        first, second = self.inner(x), x.tanh()
        if self.kind == "list":
            return [first, second, "note"]
        if self.kind == "tuple":
            return first, second, "note"
        if self.kind == "dict":
            return {"first": first, "second": second, "note": "note"}
        raise ValueError(self.kind)


class Contained(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.head = Container(kind), nn.Linear(WIDTH, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(x)
        if isinstance(found, dict):
            assert found.pop("note") == "note"
            found = list(found.values())
        return self.head(found[0] * 2 + found[1])


@pytest.mark.parametrize("kind", ["list", "tuple", "dict"])
def test_layers_that_return_several_tensors(kind: str, untouched: Any) -> None:
    model, x = Contained(kind), zoo.floats(2, WIDTH)
    with untouched(model):
        first, second = LayerConservativeGI(model, model.layer, rules="gi").attribute(x, target=1)
    weight = model.head.weight[1].detach()
    close_to_largest(first, model.layer.inner(x).detach() * 2 * weight)
    close_to_largest(second, x.tanh() * weight)


def test_a_layer_that_returns_no_tensor_is_named(untouched: Any) -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return object()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.silent = Silent()

        def forward(self, x: Tensor) -> Tensor:
            self.silent(x)
            return x.sum(1)

    model = Model()
    with untouched(model), pytest.raises(UnreachedInputError, match="output of the layer Silent"):
        LayerConservativeGI(model, model.silent, rules="gi").attribute(zoo.floats(2, WIDTH))


# ---- checkpointing on versions of torch that do not tell ----------------------------------------
@pytest.mark.parametrize("told", [True, False])
def test_checkpointing_is_refused(monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
    if not told:
        monkeypatch.setattr(obstacles, "_top_hooks", None)  # as in torch 2.5
    inner = nn.Linear(WIDTH, 1)

    def checkpointed(x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(inner, x, use_reentrant=False)

    x = zoo.floats(2, WIDTH)
    close_to_largest(ConservativeLRP(lambda t: inner(t)).attribute(x), x * inner.weight.detach())
    with pytest.raises(UnsupportedModelError, match="checkpointing"):
        ConservativeLRP(checkpointed).attribute(x)


# ---- caches -------------------------------------------------------------------------------------
class Box:
    def __init__(self, **content: Any) -> None:
        vars(self).update(content)


class Locked(Box):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot be copied")


class Keeper(nn.Module):
    """A cache of earlier versions of transformers: a module without parameters."""

    def __init__(self, content: Tensor) -> None:
        super().__init__()
        self.content = [content]


def test_caches_of_any_make_are_copied() -> None:
    made = torch.ones(2, requires_grad=True) * 2  # a result of autograd has no deep copy
    box = Box(content={"keys": [(made,)], "again": [made]})
    copied = fresh(box)
    assert copied is not box and copied.content["keys"][0][0] is copied.content["again"][0]
    assert not copied.content["again"][0].requires_grad
    copied.content["again"][0].zero_()
    assert made.detach().tolist() == [2.0, 2.0]
    keeper = Keeper(torch.ones(2))
    assert fresh(keeper).content[0] is not keeper.content[0]
    box.itself = box
    assert fresh(box).itself.itself is not box


def test_what_belongs_to_the_model_or_cannot_be_copied_is_handed_on() -> None:
    for value in (
        torch.ones(2), "text", 3, None, len, int, nn.Linear(2, 2), Locked(content=torch.ones(2)),
    ):  # fmt: skip
        assert fresh(value) is value
    box = Box(model=nn.Linear(2, 2))
    assert fresh(box) is not box and fresh(box).model is box.model


# ---- reading the graph -------------------------------------------------------------------------
def leaf(*shape: int) -> Tensor:
    return torch.rand(*shape, requires_grad=True)


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda s: s.softmax(-1), True),
        (lambda s: s.softmax(-1).half().transpose(0, 1) * 2, True),
        (lambda s: s.softmax(-1) + s.softmax(0), True),
        (lambda s: s.softmax(-1) + s, False),
        (lambda s: s.log_softmax(-1), False),
        (lambda s: s.softmax(-1) / s.softmax(-1).sum(-1, keepdim=True), True),
        (lambda s: s.exp() / s.exp().sum(-1, keepdim=True), False),  # two exponentials
        (lambda s: (e := s.exp()) / e.sum(-1, keepdim=True), True),
        (lambda s: (e := s.exp()) / (e.sum(-1, keepdim=True) + 1), True),
        (lambda s: (e := s.exp()) / e.mean(-1, keepdim=True), True),
        (lambda s: (e := s.sigmoid()) / e.sum(-1, keepdim=True), True),
        (lambda s: (e := s.exp()) * e.sum(-1, keepdim=True).reciprocal(), True),
        (lambda s: (e := s.exp()) * (1 / e.sum(-1, keepdim=True)), True),
        (lambda s: s.log_softmax(-1).exp(), True),
        (lambda s: (s - s.logsumexp(-1, keepdim=True)).exp(), True),
        (lambda s: (s - (s * 2).logsumexp(-1, keepdim=True)).exp(), False),
        (lambda s: 1 / s.softmax(-1), False),
        (lambda s: torch.zeros(3, 3).copy_(s.softmax(-1)), True),
        (lambda s: (s * 2).copy_(s.softmax(-1)), True),  # only what was copied is left
        (lambda s: s.softmax(-1).copy_(s * 2), False),
        (lambda s: s.softmax(-1) / s.exp().sum(), True),
        (lambda s: torch.cat([s.softmax(-1), s]), False),
        (lambda s: torch.where(s > 0, s.softmax(-1), s.softmax(0)), True),
        (lambda s: s, False),
    ],
)
def test_what_is_an_attention_pattern(make: Any, expected: bool) -> None:
    assert patterns.is_pattern(make(leaf(3, 3))) is expected


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda x: (x.square().mean(-1) + 1e-5).rsqrt(), True),
        (lambda x: x.var(-1).sqrt() + 1e-5, True),
        (lambda x: (x.square().mean(-1) - x.mean(-1).square()).sqrt(), True),
        (lambda x: x.var(-1).pow(-0.5), True),
        (lambda x: x.var(-1).pow(2.0), False),
        (lambda x: x.std(-1), True),
        (lambda x: x.norm(dim=-1) / x.norm(dim=-1).mean(), True),
        (lambda x: x.norm(dim=-1) / x.exp().mean(), False),
        (lambda x: x.mean(-1), False),
        (lambda x: x.sqrt(), False),
        (lambda x: x.exp().sqrt(), False),
        (lambda x: x, False),
    ],
)
def test_what_is_a_normaliser(make: Any, expected: bool) -> None:
    x = leaf(3, 3) * 1.0
    statistic = make(x)
    degrees, whole = Degrees(), homogeneity.Normalising.WHOLE
    ways = [
        homogeneity.normalises(degrees, statistic, (x,), quotient) is whole
        for quotient in (True, False)
    ]
    assert any(ways) is expected


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda x: x.softmax(-1), 3),
        (lambda x: (x.sigmoid() * 2 - 1).clamp(min=0), 3),
        (lambda x: x.tanh()[:2], 2),
        (lambda x: F.silu(x), 1),
        (lambda x: F.silu(x).sum(-1), 0),  # a sum of self-gated values is a signal
        (lambda x: x.sigmoid().sum(-1), 3),
        (lambda x: F.silu(x) + F.silu(x * 2), 0),
        (lambda x: torch.cat([F.silu(x), F.silu(x * 2)]), 1),
        (lambda x: x.sigmoid() + x, 0),
        (lambda x: x.sigmoid() / x, 3),  # by the numerator
        (lambda x: x.log(), 0),
        (lambda x: x, 0),
    ],
)
def test_how_much_like_a_gate(make: Any, expected: int) -> None:
    assert graph.gate_strength(make(leaf(3, 3))) == expected


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda s: (s.logsumexp(-1) - 1).sigmoid(), True),
        (lambda s: (s.logsumexp(-1) - 1).sigmoid()[..., None], True),
        (lambda s: s.logsumexp(-1) - 1, False),  # no sigmoid
        (lambda s: (s.logsumexp(-1) * s.sum()).sigmoid(), False),
        (lambda s: s.sigmoid(), False),
        (lambda s: s.exp().sigmoid(), False),
        (lambda s: 1 / (1 + (1 - s.logsumexp(-1)).exp()), True),
        (lambda s: (s.logsumexp(-1) - 1).sigmoid() + s.sum(), False),
        (lambda s: s.sum(), False),
    ],
)
def test_what_is_the_gate_of_a_sink(make: Any, expected: bool) -> None:
    assert patterns.is_sink_gate(make(leaf(3, 3)).grad_fn) is expected


# ---- where a NaN comes from ---------------------------------------------------------------------
def test_the_module_nearest_to_the_output_is_named() -> None:
    nan = float("nan")
    inner, outer = Boundary("a.b", 1.0, nan), Boundary("a", 1.0, nan)
    later = Boundary("c", 1.0, 1.0)
    assert "'a.b'" in diagnosis.of_relevance([inner, outer, later])
    assert "'a'" in diagnosis.of_relevance([Boundary("ab", 1.0, 1.0), outer, later])
    assert "'d'" in diagnosis.of_relevance([inner, Boundary("d", 0.0, nan), later])
    assert "outside" in diagnosis.of_relevance([later, Boundary("e", nan, nan)])
    assert "(the model)" in diagnosis.of_relevance([Boundary("", 1.0, nan)])


def test_a_parameter_that_is_not_finite_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()

    def found(broken: nn.Module) -> str:
        return diagnosis.of_output(list(broken.named_modules()), lambda: broken(torch.ones(1, 2)))

    assert "outside" in found(model)
    broken = copy.deepcopy(model)
    broken[1].running_mean[0] = float("nan")
    assert "'1.running_mean'" in found(broken)
    broken = copy.deepcopy(model)
    broken[0].weight.data[0] = float("inf")
    assert "'0.weight'" in found(broken)
    broken = copy.deepcopy(model)
    broken[0].register_buffer("mask", torch.tensor([0.0, float("-inf")]))  # masks are by design
    assert "outside" in found(broken)
    broken[0].register_forward_hook(lambda *_: torch.full((1, 2), float("nan")))
    assert "first module with such an output is '0'" in found(broken)


def test_a_module_that_returns_several_tensors_is_named() -> None:
    model = nn.Sequential(nn.LSTM(2, 2)).eval()
    modules, x = list(model.named_modules()), torch.ones(1, 2)
    assert "outside" in diagnosis.of_output(modules, lambda: model(x))
    model[0].register_forward_hook(lambda _, __, out: (out[0], torch.full((2,), float("nan"))))
    assert "such an output is '0'" in diagnosis.of_output(modules, lambda: model(x))
    assert len(model[0]._forward_hooks) == 1


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_norm_whose_bias_is_ignored_shares_all_of_its_relevance(norm: str) -> None:
    """By hand: ``z = A x`` with the deviation constant gets the relevance of ``z + b``."""
    torch.manual_seed(0)
    layer: Any = nn.LayerNorm(WIDTH) if norm == "layer" else nn.BatchNorm1d(WIDTH).eval()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    x, v = zoo.floats(2, WIDTH), torch.randn(WIDTH)
    got = ConservativeLRP(lambda t: layer(t) @ v, bias="ignore").attribute(x)
    for example, relevance in zip(x, got, strict=True):
        centred = torch.eye(WIDTH)
        deviation = torch.ones(WIDTH)
        if norm == "layer":
            centred = centred - 1 / WIDTH
            deviation = (example.var(unbiased=False) + layer.eps).sqrt() * torch.ones(WIDTH)
        else:
            deviation = (layer.running_var + layer.eps).sqrt()
        matrix = (weight / deviation)[:, None] * centred
        z = matrix @ example
        shares = matrix * example / z[:, None]
        torch.testing.assert_close(relevance, ((z + bias) * v) @ shares, rtol=1e-3, atol=1e-4)
        assert float(relevance.sum()) == pytest.approx(float((z + bias) @ v), abs=1e-3)
