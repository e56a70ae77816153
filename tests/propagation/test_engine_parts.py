"""Parts of the engine on their own: sums of branches, owners of operations, modules, lookups."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_tx import Composite, ConservativeGI
from captum_lrp_tx.attr.mappings import inputs_of
from captum_lrp_tx.attr.prefix_tokens import pools_patches, prefix_tokens
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.propagation.backward.packing import gradients
from captum_lrp_tx.propagation.model.modules import find_modules
from captum_lrp_tx.propagation.operations import (
    FusedAttention,
    Kind,
    PatternProduct,
    PropagationRule,
    Residual,
)
from captum_lrp_tx.propagation.state.inputs import Inputs
from captum_lrp_tx.propagation.state.scope import Boundary, ModuleCall, Scope, relevance_sum
from captum_lrp_tx.rules.deep_taylor import ResidualRule, SeenAttention, deep_taylor
from captum_lrp_tx.rules.spelled_attention import explicit_pattern

BATCH, TOKENS, WIDTH = 2, 3, 4


# ---- residual sums ------------------------------------------------------------------------------
def shares(first: Tensor, second: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of the two branches of one example (Chefer et al. 2021, eq. 8 and 9)."""
    parts = first * g, second * g
    sizes = [part.sum().abs() for part in parts]
    total = parts[0].sum() + parts[1].sum()
    made = [p * size / sum(sizes) * total / p.sum() for p, size in zip(parts, sizes, strict=True)]
    return made[0], made[1]


@pytest.mark.parametrize(
    "shape, first_dim, example",
    [
        ((BATCH, TOKENS, WIDTH), False, 0),
        ((TOKENS, BATCH, WIDTH), True, 1),
        ((TOKENS, BATCH, WIDTH), False, 1),  # there is no other dimension of that size
        ((BATCH, WIDTH), False, 0),
        ((BATCH, WIDTH), True, 0),
        ((BATCH, BATCH, WIDTH), False, 0),
        ((BATCH, BATCH, WIDTH), True, 1),
        ((TOKENS, TOKENS, WIDTH), False, None),
        ((TOKENS, WIDTH), False, None),
        ((WIDTH, BATCH), False, None),
        ((BATCH, 1, TOKENS, WIDTH), False, None),
        ((BATCH,), False, None),
    ],
)
@pytest.mark.parametrize("past", [True, False])
def test_a_residual_sum_shares_by_the_size_of_the_branches(
    shape: tuple[int, ...], first_dim: bool, example: int | None, past: bool
) -> None:
    seen = SeenAttention()
    rule = ResidualRule(BATCH, first_dim, seen)
    if past:
        seen.is_past = True
    leaves = [torch.randn(shape, requires_grad=True) for _ in range(2)]
    operation = Residual(torch.add, tuple(leaves), {}, first=leaves[0], second=leaves[1])
    output = rule.propagate(operation)
    assert torch.equal(output, leaves[0] + leaves[1])
    g = torch.randn(shape)
    got = [t * r for t, r in zip(leaves, torch.autograd.grad(output, leaves, g), strict=True)]
    if example is None or not past:
        expected = [leaf * g for leaf in leaves]
    else:
        examples = [t.detach().unbind(example) for t in (*leaves, g)]
        made = [shares(a, b, c) for a, b, c in zip(*examples, strict=True)]
        expected = [torch.stack([one[i] for one in made], example) for i in range(2)]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


SUMS: dict[str, tuple[Any, bool]] = {
    # how a sum is written, and whether it is of two branches
    "operator": (lambda a, b: a + b, True),
    "function": (lambda a, b: torch.add(a, b), True),
    "in place": (lambda a, b: (a * 1).add_(b), True),
    "scaled": (lambda a, b: torch.add(a, b, alpha=2), False),
    "of other shapes": (lambda a, b: a + b[:, :1], False),
    "of the batch": (lambda a, b: a + b[:1].detach(), False),
    "of a constant and a branch": (lambda a, b: torch.add(b.detach(), a), False),
    "with a number": (lambda a, b: a + 1.0 + b.detach(), False),
    "three times": (lambda a, b: sum([a, b.detach()], torch.zeros(())), False),
}


@pytest.mark.parametrize("how", SUMS)
def test_sums_that_are_residual_connections(how: str) -> None:
    function, is_residual = SUMS[how]
    weight = torch.randn(BATCH, TOKENS, WIDTH)

    class Model(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (function(a, b) * weight).sum((1, 2)) + 0 * b.sum((1, 2))

    seen = SeenAttention()
    seen.is_past = True
    rules = Composite({Model: ResidualRule(BATCH, False, seen)}, base="gi")
    inputs = torch.randn(BATCH, TOKENS, WIDTH), torch.randn(BATCH, TOKENS, WIDTH)
    got = ConservativeGI(Model(), rules=rules).attribute(inputs)
    if is_residual:
        made = [shares(a, b, w) for a, b, w in zip(*inputs, weight, strict=True)]
        expected = [torch.stack([one[i] for one in made]) for i in range(2)]
    else:
        leaves = [t.clone().requires_grad_() for t in inputs]
        gradients = torch.autograd.grad(Model()(*leaves).sum(), leaves)
        expected = [x * g for x, g in zip(inputs, gradients, strict=True)]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_rules_of_a_deep_taylor_pass_share_what_they_have_seen() -> None:
    table = deep_taylor(5, SeenAttention(), True)
    residual, attention = table[Kind.RESIDUAL][1], table[Kind.ATTENTION][1]
    assert isinstance(residual, ResidualRule)
    assert (residual.batch, residual.sequence_first) == (5, True)
    assert not residual.seen.is_past
    factors = torch.ones(5, 2, 3, 3), torch.ones(5, 2, 3, 4)
    product = PatternProduct(torch.matmul, factors, {}, patterns=(0,), operands=(0, 1))
    attention.propagate(product)  # type: ignore[union-attr]
    assert residual.seen.is_past
    assert not deep_taylor(5, SeenAttention())[Kind.RESIDUAL][1].seen.is_past  # type: ignore[union-attr]
    assert {priority for priority, _ in table.values()} == {float("inf")}


# ---- patterns without a batch -------------------------------------------------------------------
@pytest.mark.parametrize(
    "shapes",
    [((3, 4), (5, 4)), ((6, 3, 4), (6, 5, 4)), ((6, 3, 4), (2, 5, 4)), ((6, 3, 4), (1, 5, 4))],
)
def test_patterns_without_a_batch(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    query, key = torch.randn(shapes[0]), torch.randn(shapes[1])
    operation = FusedAttention(
        torch.nn.functional.scaled_dot_product_attention, (), {}, query=query, key=key, value_=key,
        mask=None, dropout_p=0.0, is_causal=False, scale=None, rest={},
    )  # fmt: skip
    keys = key
    if len(shapes[0]) == 3 and shapes[1][0] not in (1, shapes[0][0]):
        keys = torch.stack([key[i * shapes[1][0] // shapes[0][0]] for i in range(shapes[0][0])])
    expected = (query @ keys.mT / 2).softmax(-1)
    torch.testing.assert_close(explicit_pattern(operation), expected)


# ---- scopes -------------------------------------------------------------------------------------
def test_the_innermost_call_owns_an_operation() -> None:
    scope = Scope({})
    assert scope.owner(3) == "" and not scope.has_rules
    named = {"a.b": (2, 4), "a.c": (4, 4), "a": (1, 6), "": (0, 9), "d": (7, 8), "d.e": (7, 8)}
    scope.calls = [ModuleCall(name, *numbers) for name, numbers in named.items()]
    owners = [scope.owner(i) for i in range(10)]
    assert owners == ["", "a", "a.b", "a.b", "a", "a", "", "d.e", "", ""]


def test_the_lowest_number_wins_and_what_was_in_force_comes_back() -> None:
    class Named(PropagationRule):
        def __init__(self, name: str) -> None:
            self.name = name

        def propagate(self, operation: Any) -> Tensor:
            raise AssertionError

        def __str__(self) -> str:
            return self.name

    inner = nn.Sequential(nn.Identity())
    outer = nn.Sequential(inner)
    base, first, second = Named("base"), Named("first"), Named("second")
    seen: list[tuple[str, str]] = []

    def look(name: str) -> Any:
        def hook(*_: Any) -> None:
            rule = scope.rule(Kind.LINEAR)
            seen.append((name, str(rule)))
            assert rule is not None
            scope.note(Kind.LINEAR, rule)

        return hook

    for low, high, expected in ((1, 2, "first"), (2, 1, "second"), (1, 1, "first")):
        seen.clear()
        scope = Scope(
            {Kind.LINEAR: (float("inf"), base)},
            [(outer, {Kind.LINEAR: (low, first)}), (inner, {Kind.LINEAR: (high, second)})],
            [("outer", outer), ("outer.0", inner)],
        )
        assert scope.has_rules
        with scope:
            handles = [inner.register_forward_pre_hook(look("inner")),
                       outer.register_forward_pre_hook(look("outer"))]  # fmt: skip
            outer(torch.ones(1))
            assert scope.is_current() and scope.rule(Kind.LINEAR) is base
            for handle in handles:
                handle.remove()
        assert not scope.is_current() and len(scope.tables()) == 1
        for count in (1, 2, 3):
            scope.note(Kind.NORM, base)
            assert scope.applied.pop(("", Kind.NORM, "base")) == 1
            scope.applied["", Kind.NORM, "base"] = count
            scope.note(Kind.NORM, base)
            assert scope.applied.pop(("", Kind.NORM, "base")) == count + 1
        assert seen == [("outer", "first"), ("inner", expected)]
        assert scope.rule(Kind.NORM) is None
        assert scope.applied == {
            ("outer", Kind.LINEAR, "first"): 1, ("outer.0", Kind.LINEAR, expected): 1,
        }  # fmt: skip
        assert [call.module for call in scope.calls] == ["outer.0", "outer"]


def test_sums_of_relevance() -> None:
    infinite = torch.tensor([float("inf"), 2.0, float("nan")])
    assert relevance_sum(infinite, torch.tensor([0.0, 3.0, 0.0])) == 6.0
    boundary = Boundary("a")
    for amount in (1.0, 2.0):
        boundary.leave(amount)
        boundary.enter(3 * amount)
    assert (boundary.at_output, boundary.at_input) == (3.0, 9.0)


# ---- modules behind a function ------------------------------------------------------------------
LINEAR = nn.Linear(2, 2)


class Holder:
    def __init__(self, *held: Any) -> None:
        self.held = held

    def run(self, x: Tensor) -> Tensor:
        return x


def found(function: Any) -> list[str]:
    return [f"{name}:{type(module).__name__}" for name, module in find_modules(function)]


def test_modules_are_found_wherever_a_function_has_them() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    names = [":Sequential", "0:Linear", "1:ReLU"]

    def closure(x: Tensor) -> Tensor:
        return model(x)

    def default(x: Tensor, used: nn.Module = model) -> Tensor:
        return used(x)

    @functools.wraps(closure)
    def wrapped(x: Tensor) -> Tensor:
        return x

    for function in (
        model, model.forward, closure, default, functools.partial(closure), wrapped,
        functools.partial(lambda m, x: m(x), model),
        functools.partial(lambda x, m: m(x), m=model),
        Holder(model).run, Holder(model), lambda x: [closure(y) for y in x], Holder([model]),
        lambda x: model[0](model(x)), lambda x: model(model[0](x)),
    ):  # fmt: skip
        assert found(function) == names
    assert found(lambda x: LINEAR(x)) == [":Linear"]
    assert found(lambda x: x) == [] and found(len) == [] and found(Holder) == []
    part = model[0]
    two = nn.Tanh()
    assert found(lambda x: two(part(x))) in (
        ["0:Linear", "1:Tanh"], ["0:Tanh", "1:Linear"],
    )  # fmt: skip
    deep: Any = model
    for _ in range(8):
        deep = [deep]
    assert found(Holder(deep)) == []
    round_about = Holder(model)
    round_about.held = (round_about, model)
    assert found(round_about) == names

    def not_yet(x: Tensor) -> Tensor:
        return later(x)

    assert found(not_yet) == []
    later = model
    assert found(not_yet) == names


# ---- tokens that are no patches -----------------------------------------------------------------
def test_tokens_before_the_patches() -> None:
    plain, declared, named = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    declared.num_prefix_tokens, declared.global_pool = 3, "avg"  # type: ignore[assignment]
    named.cls_token = nn.Parameter(torch.zeros(1, 1, 2))
    assert prefix_tokens(plain) == 0 and not pools_patches([plain])
    assert prefix_tokens(nn.Sequential(plain, declared)) == 3
    assert prefix_tokens([plain, named]) == 1 and not pools_patches([named])
    for pool, expected in (("avg", True), ("token", False), ("", False), (None, False)):
        declared.global_pool = pool  # type: ignore[assignment]
        assert pools_patches([plain, declared]) is expected


# ---- several targets ----------------------------------------------------------------------------
def test_packed_targets_are_single_targets() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    output = (x @ torch.randn(3, 4)).sin()
    selected = [output[:, i] for i in range(4)]
    expected = [torch.autograd.grad(s.sum(), x, retain_graph=True)[0] for s in selected]
    for count in (1, 2, 3, 4, 9):
        got = list(gradients(output, selected, [x], count, Scope({})))
        assert len(got) == 4
        for (one,), other in zip(got, expected, strict=True):
            assert one is not None
            torch.testing.assert_close(one, other)
        output = (x @ torch.randn(3, 4)).sin()
        selected = [output[:, i] for i in range(4)]
        expected = [torch.autograd.grad(s.sum(), x, retain_graph=True)[0] for s in selected]


# ---- token ids ----------------------------------------------------------------------------------
IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


class Looking:
    """What look_up asks of the mode."""

    def __init__(self) -> None:
        self.scope: Any = SimpleNamespace(module="here")
        self.absorbed: list[tuple[str, Tensor]] = []

    def absorb(self, output: Tensor, constant: Tensor, *sources: Any, name: str) -> None:
        self.absorbed.append((name, constant))


def numbers(*given: int) -> Tensor:
    return torch.tensor(given).unsqueeze(-1)


def test_what_is_looked_up_becomes_a_leaf() -> None:
    inputs, mode, table = Inputs(IDS), Looking(), torch.randn(20, WIDTH)
    trace = torch.arange(1, 7).view(2, 3, 1).expand(2, 3, WIDTH)
    assert inputs.has_ids and inputs.count_lookups() == 0
    got = inputs.look_up(table[IDS], trace, "words", mode)
    assert torch.equal(got, table[IDS]) and got.requires_grad and not mode.absorbed
    (lookup,) = inputs.leaves[0].lookups
    assert (lookup.name, lookup.module, lookup.first) == ("words", "here", 1)
    assert lookup.leaf.is_leaf and lookup.trace.shape == (2, 3, 1)
    inputs.check_lookups()
    inputs.stop_looking_up()
    assert not inputs.has_ids


def test_rows_of_no_id_are_constants() -> None:
    inputs, mode, rows = Inputs(IDS), Looking(), torch.randn(4, WIDTH)
    got = inputs.look_up(rows, numbers(0, 3, 3, 0).expand(4, WIDTH), "words", mode)
    assert torch.equal(got, rows)
    ((name, constant),) = mode.absorbed
    assert name == "words (rows of no explained id)"
    assert torch.equal(constant[[0, 3]], rows[[0, 3]]) and not constant[1:3].any()
    (lookup,) = inputs.leaves[0].lookups
    (grad,) = torch.autograd.grad(got.sum(), lookup.leaf)
    assert torch.equal(grad, numbers(0, 1, 1, 0).expand(4, WIDTH).float())
    relevance = lookup.relevance(grad, 6)
    torch.testing.assert_close(relevance[2], rows[1:3].sum())
    assert not relevance[[0, 1, 3, 4, 5]].any()


def test_ids_without_a_lookup_are_refused() -> None:
    inputs = Inputs(IDS)
    with pytest.raises(InputError, match="did not look them up"):
        inputs.check_lookups()


def test_parts_of_one_input() -> None:
    inputs, mode = Inputs(IDS), Looking()
    trace = torch.arange(1, 7).view(2, 3, 1).expand(2, 3, WIDTH)
    for name in ("words", "positions", "words"):
        inputs.look_up(torch.randn(2, 3, WIDTH), trace, name, mode)
    leaf = inputs.leaves[0]
    grads: list[Tensor | None] = [torch.randn(2, 3, WIDTH), None, torch.randn(2, 3, WIDTH)]
    (first, words), (second, positions), (third, more) = inputs.parts(leaf, grads, False)
    assert (first, second, third) == ("words", "positions", "words")
    for part, lookup, grad in (
        (words, leaf.lookups[0], grads[0]),
        (more, leaf.lookups[2], grads[2]),
    ):
        assert grad is not None
        torch.testing.assert_close(part, (lookup.leaf.detach() * grad).sum(-1))
    assert positions.shape == IDS.shape and not positions.any()


def test_parts_of_float_inputs() -> None:
    x = torch.tensor([[0.0, 2.0]])
    inputs = Inputs(x)
    grad = torch.tensor([[1e18, 3.0]])
    (leaf,) = inputs.leaves
    assert inputs.parts(leaf, [grad], False)[0][1].tolist() == [[0.0, 6.0]]
    (part,) = inputs.parts(leaf, [grad], True)
    torch.testing.assert_close(part[1], torch.tensor([[1.0, 6.0]]))
    assert inputs.parts(leaf, [None], True)[0][1].tolist() == [[0.0, 0.0]]


def test_two_inputs_of_ids_are_told_apart() -> None:
    inputs, mode = Inputs((IDS, IDS.clone())), Looking()
    assert [leaf.first for leaf in inputs.leaves] == [1, 7]
    rows = torch.randn(4, WIDTH)
    got = inputs.look_up(rows, numbers(2, 8, 0, 12).expand(4, WIDTH), "words", mode)
    assert torch.equal(got, rows)
    first, second = (leaf.lookups[0] for leaf in inputs.leaves)
    grads = torch.autograd.grad(got.sum(), (first.leaf, second.leaf))
    one, other = (k.relevance(g, 6) for k, g in zip((first, second), grads, strict=True))
    torch.testing.assert_close(one[1], rows[0].sum())
    torch.testing.assert_close(other[[1, 5]], rows[[1, 3]].sum(-1))
    assert one.count_nonzero() == 1 and other.count_nonzero() == 2


def test_what_of_a_mapping_is_attributed_to() -> None:
    given = {
        "input_ids": IDS, "decoder_input_ids": IDS, "pixels": torch.ones(2, 3),
        "attention_mask": torch.ones(2, 3), "labels": torch.ones(2), "token_type_ids": IDS * 0,
        "count": 3,
    }  # fmt: skip
    inputs = inputs_of(given)
    assert inputs.keys == ["input_ids", "decoder_input_ids", "pixels"]
    args, kwargs = inputs.call_arguments()
    assert args == () and set(kwargs) == set(given) and kwargs["count"] == 3
    assert torch.equal(kwargs["input_ids"], IDS) and kwargs["input_ids"] is not IDS
    assert (
        kwargs["token_type_ids"] is given["token_type_ids"]
        and kwargs["pixels"] is not given["pixels"]
    )
    with pytest.raises(InputError, match=r"keys: \['attention_mask', 'count'\]"):
        inputs_of({k: given[k] for k in ("attention_mask", "count")})
    with pytest.raises(InputError, match="Say which entries"):
        Inputs(given)
