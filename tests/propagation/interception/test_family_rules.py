"""Operations that families of transformers needed: against the oracle, or an independent loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from captum_lrp_tx import ConservativeGI, ConservativeLRP, audit
from closeness import close_to_largest
from families.common import Case, check

WIDTH = zoo.WIDTH


def verify(model: nn.Module, inputs: Tensor, preset: str, target: Any = 1) -> None:
    case = Case("", "", "", "", zoo.randomise(model), model, inputs, target)
    outcome = check(case, preset)
    assert outcome.status == "verified", outcome


class Routed(nn.Module):
    """Experts whose router picks, sums, joins or transforms its weights before they are used."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.style = style
        self.router, self.head = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def weights(self, x: Tensor) -> Tensor:
        scores = self.router(x)
        if self.style == "largest":
            return scores.softmax(-1).max(-1, keepdim=True).values.expand(-1, 4)
        if self.style == "one-hot sums":
            picked = F.one_hot(scores.argmax(-1), 4).to(x.dtype)
            return (scores.softmax(-1) * picked).sum(-1, keepdim=True) * picked
        if self.style == "scattered":
            top, places = scores.topk(2)
            return torch.full_like(scores, float("-inf")).scatter(1, places, top).sigmoid()
        if self.style == "root":
            return F.softplus(scores).sqrt()
        logs = F.logsigmoid(scores)
        return (logs - torch.logsumexp(logs, -1, keepdim=True)).exp()

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x)
        return self.head(sum(weights[:, i, None] * e(x) for i, e in enumerate(self.experts)))


@pytest.mark.parametrize("style", ["largest", "one-hot sums", "scattered", "root", "logs"])
def test_routers_are_gates(style: str) -> None:
    verify(Routed(style), zoo.floats(3, WIDTH), "lrp")


class Idle(nn.Module):
    """Experts of which the first gets no tokens: its products and sums have no entries."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.up, self.attention = nn.Linear(WIDTH, WIDTH), nn.MultiheadAttention(WIDTH, 2)
        self.norm, self.head = nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 3)

    def expert(self, x: Tensor) -> Tensor:
        if self.kind == "attention":
            return self.attention(x[None], x[None], x[None])[0][0]
        return self.norm(self.up(x)) if self.kind == "batch norm" else self.up(x)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for tokens in (torch.arange(0), torch.arange(len(x))):
            y[tokens] += self.expert(x[tokens])
        return self.head(y)


@pytest.mark.parametrize("kind", ["linear", "batch norm", "attention"])
@pytest.mark.parametrize("preset", ["lrp", "language-ah"])
def test_experts_without_tokens(kind: str, preset: str) -> None:
    """They were an IndexError or a RuntimeError."""
    model, x = zoo.randomise(Idle(kind)), zoo.floats(3, WIDTH)
    report = audit.explainability(model, x, target=1, rules=preset, file=None)
    assert abs(report.conservation_error) < 1e-4
    relevance = ConservativeLRP(model, preset).attribute(x, target=1)
    alone = ConservativeLRP(lambda x: model.head(model.expert(x)), preset).attribute(x, target=1)
    torch.testing.assert_close(relevance, alone)


@pytest.mark.parametrize("function", ["expm1", "log1p", "sin", "atan", "asinh"])
def test_further_activations_hand_relevance_on(function: str) -> None:
    class Bent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(WIDTH, 24), nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            up = self.up(x)
            return self.down(getattr(torch, function)(up.sigmoid() if function[0] == "l" else up))

    verify(Bent(), zoo.floats(3, WIDTH), "lrp")


class Deformable(nn.Module):
    """Values sampled at places of the inputs, weighed by a pattern (deformable) or not."""

    def __init__(self, weighed: bool) -> None:
        super().__init__()
        self.values, self.places = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 2, 4)
        self.weights, self.head, self.weighed = nn.Conv2d(3, 1, 4), nn.Linear(6, 3), weighed

    def forward(self, x: Tensor) -> Tensor:
        grid = self.places(x).tanh().permute(0, 2, 3, 1)
        sampled = F.grid_sample(self.values(x), grid, mode="bilinear", align_corners=False)
        if self.weighed:
            pattern = self.weights(x).flatten(2).softmax(-1)
            return self.head((sampled.flatten(2) * pattern).sum(-1))
        return self.head(sampled.mean((2, 3)))


@pytest.mark.parametrize("preset", ["ah+ln", "lrp"])
def test_places_are_part_of_the_pattern_that_weighs_what_is_found_there(preset: str) -> None:
    verify(Deformable(weighed=True), zoo.floats(2, 3, 8, 8), preset)


def test_places_alone_are_constant_where_products_have_a_rule_and_plain_where_not() -> None:
    model, x = Deformable(weighed=False), zoo.floats(2, 3, 8, 8)
    verify(model, x, "lrp")
    got, plain = (ConservativeLRP(model, rules).attribute(x, target=1) for rules in ("ah+ln", "gi"))
    torch.testing.assert_close(got, plain)


class Frozen(nn.Module):
    """Positions of a table that is not trained, looked up without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(zoo.WORDS, WIDTH)
        self.places = nn.Embedding(16, WIDTH)
        self.places.weight.requires_grad_(False)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            places = self.places(torch.arange(ids.shape[1]))
        return self.head(torch.tanh(self.words(ids) + places).mean(1))


def test_a_frozen_table_of_positions_belongs_to_the_tokens() -> None:
    model, (ids, _) = Frozen(), zoo.token_ids(False)
    verify(model, ids, "lrp")
    parts = ConservativeGI(model).attribute(ids, target=1, positions="separate")
    assert set(parts) == {"words", "places"}
    assert bool(parts["places"].abs().sum() > 0)


@pytest.mark.parametrize("preset", ["ah+ln", "lrp"])
def test_a_mask_computed_from_the_input_is_part_of_the_pattern(preset: str) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts, self.bias = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 1)
            self.head = nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.parts(x).unsqueeze(1).chunk(3, -1)
            mask = F.softplus(self.bias(x)).exp().mT.unsqueeze(1)
            return self.head(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[:, 0].mean(1))

    verify(Masked(), zoo.floats(2, 5, WIDTH), preset)


def test_parameters_handed_to_modules_are_constants() -> None:
    class Add(nn.Module):
        def forward(self, x: Tensor, bias: Tensor) -> Tensor:
            return x + bias

    class Handing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.add = nn.Linear(WIDTH, 3, bias=False), Add()
            self.bias = nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.add(self.up(x), self.bias)

    report = audit.explainability(Handing(), zoo.floats(2, WIDTH), target=1, file=None, strict=True)
    assert report.absorbed.keys() == {"bias"}
    assert abs(report.conservation_error) < 1e-5


def test_the_largest_of_a_group_is_homogeneous() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            groups = (torch.arange(x.shape[1]) // 2)[None, :, None].expand(*x.shape)
            into = x.new_zeros(len(x), 4, WIDTH)
            pooled = into.scatter_reduce(1, groups, self.up(x), "amax", include_self=False)
            return self.head(pooled.sum(1))

    verify(Grouped(), zoo.floats(2, 8, WIDTH), "lrp")


# ---- gated delta rule ---------------------------------------------------------------------------
class Delta(nn.Module):
    """The gated delta rule in chunks (Yang et al. 2024), or ``looped`` over the tokens.

    The loop is the definition, with queries, keys, decays and the share of old values constant.
    """

    def __init__(self, looped: bool = False, chunk: int = 4, constant_gates: bool = True) -> None:
        super().__init__()
        self.looped, self.chunk, self.constant_gates = looped, chunk, constant_gates
        self.q, self.k, self.v = (nn.Linear(WIDTH, 8, bias=False) for _ in range(3))
        self.rate, self.share, self.head = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.normalize(self.q(x), dim=-1), F.normalize(self.k(x), dim=-1), self.v(x)
        decay, share = -F.softplus(self.rate(x)).squeeze(-1), self.share(x).sigmoid()
        out = (self._loop if self.looped else self._chunks)(q, k, v, decay, share)
        return self.head(out.mean(1))

    def _loop(self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, share: Tensor) -> Tensor:
        written = v * (share.detach() if self.constant_gates else share)
        q, k, decay, share = q.detach(), k.detach(), decay.detach(), share.detach()
        memory, outputs = torch.zeros(len(q), 8, 8), []
        for t in range(q.shape[1]):
            memory = memory * decay[:, t].exp()[:, None, None]
            old = (k[:, t, None] @ memory).squeeze(1)
            memory = memory + k[:, t, :, None] * (written[:, t] - share[:, t] * old)[:, None]
            outputs.append((q[:, t, None] @ memory).squeeze(1))
        return torch.stack(outputs, 1)

    def _chunks(self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, share: Tensor) -> Tensor:
        batch, size = len(q), self.chunk
        v_share, k_share = v * share, k * share
        q, k, v_share, k_share = (z.reshape(batch, -1, size, 8) for z in (q, k, v_share, k_share))
        sums = decay.reshape(batch, -1, size).cumsum(-1)
        between = (
            (sums.unsqueeze(-1) - sums.unsqueeze(-2))
            .masked_fill(torch.ones(size, size, dtype=torch.bool).triu(1), float("-inf"))
            .exp()
        )
        system = (k_share @ k.mT) * between
        scores = (q @ k.mT) * between
        solve = torch.linalg.solve_triangular
        new = solve(system, v_share, upper=False, unitriangular=True)
        read = solve(system, k_share * sums.exp().unsqueeze(-1), upper=False, unitriangular=True)
        q = q * sums.exp().unsqueeze(-1)
        k = k * (sums[..., -1:] - sums).exp().unsqueeze(-1)
        memory, outputs = torch.zeros(batch, 8, 8), torch.zeros_like(new)
        for i in range(new.shape[1]):
            values = new[:, i] - read[:, i] @ memory
            outputs[:, i] = q[:, i] @ memory + scores[:, i] @ values
            memory = memory * sums[:, i, -1].exp()[:, None, None] + k[:, i].mT @ values
        return outputs.reshape(batch, -1, 8)


@pytest.mark.parametrize("chunk", [4, 12])
@pytest.mark.parametrize("preset", ["ah+ln", "lrp"])
def test_the_delta_rule_follows_its_definition(preset: str, chunk: int) -> None:
    x = zoo.floats(2, 12, WIDTH)
    model = zoo.randomise(Delta(chunk=chunk))
    loop = zoo.randomise(Delta(looped=True, constant_gates=preset == "lrp"))
    torch.testing.assert_close(model(x), loop(x), rtol=1e-4, atol=1e-5)
    relevance = ConservativeLRP(model, preset).attribute(x, target=1, strict=True)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loop(leaf)[:, 1].sum(), leaf)
    expected = x * grad
    assert isinstance(relevance, Tensor)
    close_to_largest(relevance, expected, 1e-4)


PLACES = torch.tensor([[0, 1, 2, 3, 0, 2], [1, 2, 3, 0, 3, 0]])
FIXED = torch.sparse_coo_tensor(PLACES, torch.rand(6), (4, 4), check_invariants=False)
SPARSE: dict[str, Any] = {
    "compressed": lambda m, x: m.to_sparse_csr() @ x,
    "compressed, transposed": lambda m, x: m.t().to_sparse_csr() @ x,
    "compressed, a constant added": lambda m, x: (m + FIXED).to_sparse_csr() @ x,
    "a constant added": lambda m, x: (m + FIXED) @ x,
}


@pytest.mark.parametrize("way", SPARSE)
def test_sparse_matrices_whose_entries_come_from_the_inputs(way: str) -> None:
    """They died of operations that torch lacks for them, also in a part that is not explained."""
    score, x = zoo.randomise(nn.Linear(WIDTH, 1)), zoo.floats(4, WIDTH)

    def forward(x: Tensor, dense: bool = False) -> Tensor:
        values = score(x)[PLACES[0], 0]
        matrix = torch.sparse_coo_tensor(PLACES, values, (4, 4), check_invariants=False)
        if not dense:
            return SPARSE[way](matrix, x).sum(0, keepdim=True)
        full = matrix.to_dense().t() if "transposed" in way else matrix.to_dense()
        return ((full + FIXED.to_dense() if "added" in way else full) @ x).sum(0, keepdim=True)

    for rules in ("ah", "lrp"):
        explainer = ConservativeLRP(forward, rules)
        expected = explainer.attribute(x, target=1, additional_forward_args=True)
        torch.testing.assert_close(explainer.attribute(x, target=1), expected)
    report = audit.explainability(forward, x, target=1, file=None)
    assert report.is_covered and abs(report.conservation_error) < 1e-5


class Outer(torch.autograd.Function):
    """A weight made of two vectors, as LoHa makes its own of matrices."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(first, second)
        return torch.outer(first, second)

    @staticmethod
    def backward(ctx: Any, *grad: Any) -> Any:
        first, second = ctx.saved_tensors
        return grad[0] @ second, grad[0].t() @ first


@pytest.mark.parametrize("twice", [False, True])
def test_weights_that_an_autograd_function_makes_are_constants(twice: bool) -> None:
    first, second = (nn.Parameter(zoo.floats(WIDTH)) for _ in range(2))
    x = zoo.floats(3, WIDTH)

    def forward(x: Tensor, is_spelled: bool = False) -> Tensor:
        if is_spelled:
            vector = torch.outer(first, second) @ second if twice else first
            return torch.relu(x @ torch.outer(vector, second) + second)
        weight = Outer.apply(first, second)
        if twice:
            weight = Outer.apply(weight.detach() @ second, second)
        return torch.relu(x @ weight + second)

    got = ConservativeLRP(forward).attribute(x, target=1, strict=True)
    spelled = ConservativeLRP(forward).attribute(x, target=1, additional_forward_args=True)
    torch.testing.assert_close(got, spelled)
    assert first.grad is None and first.requires_grad
