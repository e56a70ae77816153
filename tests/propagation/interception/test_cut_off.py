"""Values that lose their gradient inside a model: a loss is said, what is no loss is not.

The oracle of a loss is the same function without the cut: where its relevance differs, the cut is
refused under ``strict``; where the rule holds the value constant anyway, both agree.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from captum_lrp_tx import ConservativeLRP
from captum_lrp_tx.errors import UncoveredOperationError, UncoveredOperationWarning

N, TOKENS, WIDTH = 2, 5, 6
PRESETS = ("ah", "ln", "ah+ln", "lrp", "attnlrp")
Cut = Callable[[Tensor], Tensor]


def under_no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.clone()


CUTS: dict[str, tuple[Cut, str]] = {
    "detach": (lambda x: x.detach(), r"detach\(\)"),
    "torch.detach": (torch.detach, r"detach\(\)"),
    "data": (lambda x: x.data, r"\.data"),
    "new_tensor": (lambda x: x.new_tensor(x), r"new_tensor\(\)"),
    "no_grad": (under_no_grad, r"torch\.no_grad\(\)"),
    "in place": (lambda x: (x * 1.0).detach_(), r"detach_\(\)"),
}


class Model(nn.Module):
    """Attention and a norm, so that every preset finds something to do; then ``joined``."""

    def __init__(self, joined: Callable[[nn.Module, Tensor, Cut], Tensor], cut: Cut) -> None:
        super().__init__()
        self.q, self.k, self.v, self.a = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.head, self.joined, self.cut = nn.Linear(WIDTH, 3), joined, cut

    def forward(self, x: Tensor) -> Tensor:
        pattern = (self.q(x) @ self.k(x).mT).softmax(-1)
        x = F.layer_norm(x + pattern @ self.v(x), (WIDTH,))
        return self.head(self.joined(self, x, self.cut)).mean(1)


Joined = Callable[[nn.Module, Tensor, Cut], Tensor]
LOST: dict[str, Joined] = {
    "sum": lambda m, x, cut: m.a(x) + cut(x) * 2,
    "behind views": lambda m, x, cut: torch.cat([m.a(x)[..., :3], cut(x).flip(-1)[..., :3]], -1),
    "rounded, gradient passed on": lambda m, x, cut: x + cut(x.round() - x),
    "written into": lambda m, x, cut: _written(m.a(x) * 1, cut(x)),
    "into a constant first": lambda m, x, cut: m.a(x) + _written(torch.zeros(N, TOKENS, WIDTH),
                                                                 cut(x)),
    "product of signals": lambda m, x, cut: m.a(x) * cut(x),
    "no norm, its square": lambda m, x, cut: m.a(x) * cut(m.v(x).square().mean(-1, keepdim=True)),
    "chosen": lambda m, x, cut: torch.where(x > 0, m.a(x), cut(x)),
    "through a layer": lambda m, x, cut: m.a(x) + m.q(cut(x)),
    "values of fused attention": lambda m, x, cut: m.a(x)
    + F.scaled_dot_product_attention(m.q(x), m.k(x), cut(m.v(x))),
}  # fmt: skip


def _written(target: Tensor, value: Tensor) -> Tensor:
    target[..., 1] = value[..., 1]
    return target


def model_of(joined: Joined, cut: Cut) -> Model:
    torch.manual_seed(0)
    return Model(joined, cut).eval()


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", LOST)
def test_a_loss_is_warned_about_and_refused(name: str, cut: str) -> None:
    call, how = CUTS[cut]
    x = zoo.floats(N, TOKENS, WIDTH)
    for preset in PRESETS:
        model = model_of(LOST[name], call)
        with pytest.warns(UncoveredOperationWarning, match=how):
            lost = ConservativeLRP(model, preset).attribute(x, target=1)
        with pytest.raises(UncoveredOperationError, match=how):
            ConservativeLRP(model, preset).attribute(x, target=1, strict=True)
        whole = ConservativeLRP(model_of(LOST[name], lambda t: t), preset)
        assert not torch.allclose(lost, whole.attribute(x, target=1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("cut", CUTS)
def test_the_plain_gradient_promises_nothing(cut: str) -> None:
    x = zoo.floats(N, TOKENS, WIDTH)
    model = model_of(LOST["sum"], CUTS[cut][0])
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    got = ConservativeLRP(model, "gi").attribute(x, target=1, strict=True)
    torch.testing.assert_close(got, x * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("read", ["item", "float", "tolist", "nested tolist"])
def test_numbers_read_out_of_the_inputs(read: str) -> None:
    def joined(m: nn.Module, x: Tensor, _: Cut) -> Tensor:
        mean = x.detach().abs().mean()
        if read == "nested tolist":
            return m.a(x) + x.abs().mean(-1, keepdim=True).tolist()[1][2][0]
        number = {"item": mean.item, "float": mean.__float__, "tolist": mean.tolist}[read]()
        return m.a(x) + number

    with pytest.raises(UncoveredOperationError, match="Python number"):
        ConservativeLRP(model_of(joined, torch.detach)).attribute(
            zoo.floats(N, TOKENS, WIDTH), target=1, strict=True
        )


# ---- what is no loss ----------------------------------------------------------------------------
def _numbers(x: Tensor) -> float:
    return 2.0 if x.detach().abs().max().item() > 0 else 1.0


def _straight_through_router(m: nn.Module, x: Tensor, cut: Cut) -> Tensor:
    soft = m.q(x).softmax(-1)
    hard = F.one_hot(soft.argmax(-1), WIDTH).to(x.dtype)
    choice = hard - cut(soft) + soft
    return choice @ m.a(x).mT @ x


def _shifted_softmax(m: nn.Module, x: Tensor, cut: Cut) -> Tensor:
    scores = m.q(x) @ m.k(x).mT
    weights = (scores - cut(scores.amax(-1, keepdim=True))).exp()
    return weights / weights.sum(-1, keepdim=True) @ m.v(x)


#: Made of a parameter before the pass.
BEFORE = nn.Parameter(torch.eye(WIDTH)) * 2
HARMLESS: dict[str, tuple[Joined, set[str]]] = {
    # what is computed, and the presets for which it is no loss
    "mask": (lambda m, x, cut: m.a(x) * (cut(x) > 0), set(PRESETS)),
    "mask of numbers": (lambda m, x, cut: m.a(x) + (cut(x) > 0).float(), set(PRESETS)),
    "best": (
        lambda m, x, cut: m.a(x).gather(-1, cut(x).argmax(-1, keepdim=True).expand_as(x)),
        set(PRESETS),
    ),
    "shape": (lambda m, x, cut: m.a(x) + torch.zeros_like(cut(x)), set(PRESETS)),
    "number for a choice": (lambda m, x, cut: m.a(x) * _numbers(x), set(PRESETS)),
    "largest of the scores": (_shifted_softmax, {"ah", "ah+ln", "lrp"}),
    "divisor": (
        lambda m, x, cut: m.a(x) / cut(x.norm(dim=-1, keepdim=True)), {"ln", "ah+ln", "lrp"}
    ),
    "divisor from cut values": (
        lambda m, x, cut: m.a(x) * torch.rsqrt(cut(x).square().mean(-1, keepdim=True) + 1e-5),
        {"ln", "ah+ln", "lrp"},
    ),
    "pattern": (
        lambda m, x, cut: cut((m.q(x) @ m.k(x).mT).softmax(-1)) @ m.v(x), {"ah", "ah+ln", "lrp"}
    ),
    "pattern from cut values": (
        lambda m, x, cut: (m.q(cut(x)) @ m.k(cut(x)).mT).softmax(-1) @ m.v(x),
        {"ah", "ah+ln", "lrp"},
    ),
    "scores and mask of fused attention": (
        lambda m, x, cut: F.scaled_dot_product_attention(
            m.q(cut(x)), m.k(cut(x)), m.v(x), attn_mask=cut(x) @ x.detach().mT
        ),
        {"ah", "ah+ln", "lrp"},
    ),
    "places where values are read": (
        lambda m, x, cut: m.a(x) + F.grid_sample(
            m.v(x)[:, None], cut(m.q(x).tanh())[:, None, :, :2], align_corners=False
        )[:, 0, 0, :, None],
        {"lrp"},
    ),
    "any divisor": (
        lambda m, x, cut: m.a(x) / cut(2 + x.sin().square().mean(-1, keepdim=True)), {"lrp"}
    ),
    "weights that were computed before": (
        lambda m, x, cut: m.a(x) @ cut(BEFORE), set(PRESETS),
    ),
    "gate": (lambda m, x, cut: m.a(x) * cut(m.q(x).sigmoid()), {"lrp"}),
    "hard choice": (_straight_through_router, {"lrp"}),
}  # fmt: skip


@pytest.mark.parametrize("cut", ["detach", "data", "no_grad"])
@pytest.mark.parametrize("name", HARMLESS)
def test_what_the_rule_holds_constant_anyway_is_no_loss(name: str, cut: str) -> None:
    joined, presets = HARMLESS[name]
    x = zoo.floats(N, TOKENS, WIDTH)
    for preset in sorted(presets):
        got = ConservativeLRP(model_of(joined, CUTS[cut][0]), preset).attribute(
            x, target=1, strict=True
        )
        whole = ConservativeLRP(model_of(joined, lambda t: t), preset).attribute(x, target=1)
        torch.testing.assert_close(got, whole, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("preset", ["ah", "ah+ln"])
def test_places_where_values_are_read_are_no_pattern_without_a_rule_for_products(
    preset: str,
) -> None:
    joined, _ = HARMLESS["places where values are read"]
    with pytest.raises(UncoveredOperationError, match=r"grid_sample.*cut off"):
        ConservativeLRP(model_of(joined, torch.detach), preset).attribute(
            zoo.floats(N, TOKENS, WIDTH), target=1, strict=True
        )


@pytest.mark.parametrize("preset", ["ah", "ah+ln"])
def test_a_hard_choice_of_experts_is_a_loss_where_routers_are_no_constants(preset: str) -> None:
    model = model_of(_straight_through_router, torch.detach)
    with pytest.raises(UncoveredOperationError, match="cut off"):
        ConservativeLRP(model, preset).attribute(
            zoo.floats(N, TOKENS, WIDTH), target=1, strict=True
        )


@pytest.mark.parametrize("preset", PRESETS)
def test_a_side_output_is_no_loss(preset: str) -> None:
    """What does not lead to the explained output: caches, statistics, a loss beside."""
    kept: list[Tensor] = []

    def joined(m: nn.Module, x: Tensor, cut: Cut) -> Tensor:
        kept.append((m.q(x) - cut(x)).square().mean())
        kept.append(cut(m.a(x)))
        return m.a(x)

    model = model_of(joined, torch.detach)
    ConservativeLRP(model, preset).attribute(zoo.floats(N, TOKENS, WIDTH), target=1, strict=True)
    assert len(kept) == 2
