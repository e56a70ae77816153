"""Relevance of token ids by where they went, against the gradients of the rows looked up for them.

With ids that are all different, every row of a table belongs to one id, so row times gradient of
the row, by torch's own autograd, is the relevance that the preset ``gi`` must give to that id.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_lrp_tx import ConservativeGI, ConservativeLRP, audit
from captum_lrp_tx.errors import InputError

VOCABULARY, WIDTH, RESERVED = 48, 5, 8  # ids below RESERVED are pads and start tokens of models


def distinct(*shape: int, seed: int = 0, start: int = RESERVED) -> Tensor:
    count = torch.Size(shape).numel()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return (order + start).view(shape)


class Plumbing(nn.Module):
    """Looks up what some plumbing makes of the ids, and reads it out place by place."""

    def __init__(self, run: Callable[..., Tensor], tables: int = 1, rows: int = VOCABULARY) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tables = nn.ModuleList(nn.Embedding(rows, WIDTH) for _ in range(tables))
        self.run = run
        self.double()

    def forward(self, *ids: Tensor) -> Tensor:
        x = self.run(self, *ids)
        weights = torch.linspace(-2, 2, x.numel(), dtype=x.dtype).view(x.shape)
        return (torch.tanh(x + weights) * weights.flip(0)).sum().view(1)


def by_rows(model: Plumbing, *ids: Tensor) -> list[Tensor]:
    """Relevance of ids by autograd on the tables; row ``r`` is of the id ``r % VOCABULARY``."""
    model.zero_grad()
    model(*ids).sum().backward()
    of_id = torch.zeros(VOCABULARY, dtype=torch.float64)
    for table in model.tables:
        if table.weight.grad is not None:
            rows = (table.weight * table.weight.grad).sum(-1).detach()
            of_id.index_add_(0, torch.arange(len(rows)) % VOCABULARY, rows)
    return [of_id[i.long()] for i in ids]


def check(model: Plumbing, *ids: Tensor) -> None:
    expected = by_rows(model, *ids)
    got = ConservativeGI(model, rules="gi").attribute(ids, strict=False)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def shifted(ids: Tensor) -> Tensor:
    result = ids.new_zeros(ids.shape)
    result[:, 1:] = ids[:, :-1].clone()
    result[:, 0] = 2
    return result


def in_a_view(ids: Tensor) -> Tensor:
    result = torch.full((len(ids), ids.shape[1] + 2), 3)
    window = result[:, 1:-1]
    window.copy_(ids)
    return result


def bigrams(ids: Tensor) -> Tensor:
    return torch.stack([ids[:, :-1], ids[:, 1:]], -1)


ZERO = torch.zeros(1, dtype=torch.long)
MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda i: i.view(-1, 2, i.shape[-1] // 2),
    "reshape of a transposition": lambda i: i.t().reshape(-1),
    "sequence first": lambda i: i.t(),
    "T": lambda i: i.T,
    "slice": lambda i: i[:, 1:-1],
    "every other": lambda i: i[:, ::2],
    "unfold": lambda i: i.unfold(1, 3, 2),
    "flip": lambda i: i.flip(1),
    "roll": lambda i: i.roll(2, 1),
    "expand": lambda i: i.unsqueeze(1).expand(-1, 3, -1),
    "repeat": lambda i: i.repeat(1, 2),
    "repeat_interleave": lambda i: i.repeat_interleave(2, 0),
    "cat": lambda i: torch.cat([torch.ones_like(i[:, :1]), i], 1),
    "overlapping windows": lambda i: torch.cat([i[:, :4], i[:, 2:]], 1),
    "stack": lambda i: torch.stack([i, i.flip(0)], 1),
    "pad": lambda i: F.pad(i, (1, 2), value=1),
    "reflecting pad": lambda i: F.pad(i.double().unsqueeze(1), (2, 1), mode="reflect").long(),
    "where": lambda i: torch.where(i % 3 == 0, torch.tensor(4), i),
    "masked_fill": lambda i: i.masked_fill(i > 14, 5),
    "masked_fill_": lambda i: i.clone().masked_fill_(i > 14, 5),
    "int32": lambda i: i.int(),
    "uint8 and back": lambda i: i.to(torch.uint8).long(),
    "through floats": lambda i: (i.float() + 0.2).floor().long(),
    "clone": lambda i: i.clone().contiguous(),
    "shift": shifted,
    "into a view": in_a_view,
    "bigrams": bigrams,
    "index_select": lambda i: i.index_select(1, torch.tensor([3, 0, 0, 2])),
    "gather": lambda i: i.gather(1, i.argsort(1)),
    "take_along_dim": lambda i: torch.take_along_dim(i, i.argsort(1), 1),
    "advanced": lambda i: i[torch.arange(len(i))[:, None], torch.tensor([[2, 1], [0, 3]])],
    "boolean": lambda i: i[i > 10],
    "sort": lambda i: i.sort(1).values,
    "sort of the last axis": lambda i: i.sort().values,
    "sort descending": lambda i: torch.sort(i, dim=0, descending=True)[0],
    "topk": lambda i: i.topk(3, dim=1)[0],
    "topk of the last axis": lambda i: i.topk(3).values,
    "columns": lambda i: torch.stack([i[:, k] for k in range(i.shape[1])][::-1], 1),
    "split": lambda i: torch.cat(i.split(2, 1)[::-1], 1),
    "index_put": lambda i: torch.zeros(30, dtype=torch.long).index_put((i - RESERVED,), i),
    "scatter": lambda i: torch.ones(2, 9, dtype=torch.long).scatter(
        1, torch.arange(6).flip(0).expand(2, 6) + 1, i
    ),
    "offset": lambda i: i + VOCABULARY,
    "offsets of columns": lambda i: i + VOCABULARY * (torch.arange(i.shape[1]) % 2),
    "offset in place": lambda i: i.clone().add_(VOCABULARY),
    "clamp": lambda i: i.clamp(min=0, max=VOCABULARY - 1),
    "renumbered": lambda i: torch.arange(2 * VOCABULARY)[i],
    "masked by a product": lambda i: i * (i % 4 != 0),
    "tril": lambda i: i.expand(2, *i.shape).tril(),
    "pad_sequence": lambda i: nn.utils.rnn.pad_sequence([i[0], i[1, :3]], True, 1),
    "packed": lambda i: nn.utils.rnn.pad_packed_sequence(
        nn.utils.rnn.pack_padded_sequence(i, torch.tensor([6, 4]), batch_first=True)
    )[0],
    "meshgrid": lambda i: torch.meshgrid(i[0], i[1], indexing="ij")[0],
    "modulo": lambda i: (i + VOCABULARY) % VOCABULARY,
    "a mesh with a constant": lambda i: torch.meshgrid(i[0], i.new_zeros(3), indexing="ij")[0],
    "masked by truth": lambda i: i * (i % 4).to(torch.bool),
    "masked by vmap": lambda i: i.masked_fill(torch.vmap(lambda k: i + k > 14)(ZERO)[0], 5),
    "chosen by ids": lambda i: i.gather(1, i % i.shape[1]),
    "compared with a word": lambda i: i + VOCABULARY if i == "text" else i,
}


@pytest.mark.parametrize("how", list(MOVES))
def test_ids_are_followed(how: str) -> None:
    model = Plumbing(lambda m, i: m.tables[0](MOVES[how](i)), rows=2 * VOCABULARY)
    check(model, distinct(2, 6))


def lookup(model: Plumbing, ids: Tensor, how: str) -> Tensor:
    table = model.tables[0]
    weight: Tensor = table.weight
    if how == "module":
        return table(ids)
    if how == "functional":
        return F.embedding(ids, weight=weight)
    if how == "indexing":
        return weight[ids.long()]
    if how == "indexing behind":
        return weight.T[:, ids.long()].movedim(0, -1)
    if how == "indexing after an ellipsis":
        return weight.T[..., ids.long()].movedim(0, -1)
    if how == "indexing in the middle":
        return weight[None][:, ids.long(), None][0, ..., 0, :]
    if how == "index_select":
        return weight.index_select(0, ids.reshape(-1)).view(*ids.shape, -1)
    if how == "gather":
        flat = ids.long().reshape(-1, 1).expand(-1, WIDTH)
        return weight.gather(0, flat).view(*ids.shape, -1)
    if how == "one-hot":
        return F.one_hot(ids.long(), len(weight)).to(weight.dtype) @ weight
    if how == "compared":
        return (ids.unsqueeze(-1) == torch.arange(len(weight))).to(weight.dtype) @ weight
    if how == "scattered":
        hot = torch.zeros(*ids.shape, len(weight), dtype=weight.dtype)
        hot.scatter_(-1, ids.long().unsqueeze(-1), 1.0)
        return hot @ weight
    if how == "scattered from ones and zeros":
        places = torch.stack([ids.long(), torch.zeros_like(ids)], -1)  # zeros leave what is there
        hot = torch.zeros(*ids.shape, len(weight), dtype=weight.dtype)
        ones = torch.tensor([1.0, 0.0], dtype=weight.dtype).expand(places.shape)
        return hot.scatter(-1, places.flip(-1), ones.flip(-1)) @ weight
    if how == "scattered integers":
        hot = torch.zeros(*ids.shape, len(weight), dtype=torch.long)
        hot = hot.scatter(-1, ids.long().unsqueeze(-1), torch.ones_like(ids.long()).unsqueeze(-1))
        return hot.to(weight.dtype) @ weight
    if how == "one-hot rows in an einsum":
        hot = F.one_hot(ids.long(), len(weight)).to(weight.dtype)
        return torch.einsum("...v,vd->...d", hot * 2, weight / 2)
    if how == "identity":
        return torch.eye(len(weight), dtype=weight.dtype)[ids.long()] @ weight
    if how == "times the table":
        return (F.one_hot(ids.long(), len(weight)).unsqueeze(-1) * weight).sum(-2)
    if how == "without gradients":
        with torch.no_grad():
            return table(ids)
    if how == "unique":
        rows, places = ids.unique(return_inverse=True)
        return table(rows)[places]
    if how == "aten":
        return torch.ops.aten.embedding.default(weight, ids.long())
    raise AssertionError(how)


LOOKUPS = [
    "module", "functional", "indexing", "indexing behind", "indexing in the middle", "index_select",
    "gather", "one-hot", "compared", "scattered", "identity", "times the table", "unique", "aten",
    "scattered from ones and zeros", "scattered integers", "one-hot rows in an einsum",
    "indexing after an ellipsis",
]  # fmt: skip


@pytest.mark.parametrize("how", LOOKUPS)
def test_any_spelling_of_a_lookup(how: str) -> None:
    check(Plumbing(lambda m, i: lookup(m, i, how)), distinct(2, 6))


@pytest.mark.parametrize("how", LOOKUPS)
def test_repeated_ids_keep_their_places(how: str) -> None:
    """Equal ids at several places: against a model whose table has a row for each place."""
    ids = torch.tensor([[9, 12, 9], [12, 9, 20]])
    model = Plumbing(lambda m, i: lookup(m, i, how))
    apart = Plumbing(lambda m, i: m.tables[0](i))
    places = distinct(2, 3)
    with torch.no_grad():
        apart.tables[0].weight[places] = model.tables[0].weight[ids]
    (expected,) = by_rows(apart, places)
    got = ConservativeGI(model, rules="gi").attribute(ids)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


def test_a_lookup_without_gradients_counts() -> None:
    model, ids = Plumbing(lambda m, i: lookup(m, i, "without gradients")), distinct(2, 6)
    expected = ConservativeGI(Plumbing(lambda m, i: m.tables[0](i)), rules="gi").attribute(ids)
    torch.testing.assert_close(ConservativeGI(model, rules="gi").attribute(ids), expected)


def test_a_lookup_without_gradients_in_what_was_computed_is_a_constant() -> None:
    """Only the table's own rows are leaves: what comes out of a layer has lost its gradient."""

    def run(m: Plumbing, ids: Tensor) -> Tensor:
        computed = torch.tanh(m.tables[0](ids))
        with torch.no_grad():
            chosen = computed[ids % 2, ids % 6]
        return torch.cat([chosen, m.tables[0](ids)])

    ids = distinct(2, 6)
    got = ConservativeGI(Plumbing(run), rules="gi").attribute(ids, strict=False)
    torch.testing.assert_close(got, *by_rows(Plumbing(run), ids), rtol=1e-8, atol=1e-10)


#: What takes any rectangle of ids to ids that are rows of one table.
STEPS = sorted(
    set(MOVES)
    - set("view advanced index_put scatter pad_sequence meshgrid packed T gather offset".split())
    - {"uint8 and back", "offsets of columns", "offset in place", "renumbered", "take_along_dim"}
)


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[list[str], str, str]:
    steps = draw(st.lists(st.sampled_from(STEPS), max_size=4))
    return steps, draw(st.sampled_from(LOOKUPS)), draw(st.sampled_from(["one", "cat", "where"]))


@settings(max_examples=80, deadline=None)
@given(pipelines(), st.integers(0, 100))
def test_any_plumbing_of_ids(pipeline: tuple[list[str], str, str], seed: int) -> None:
    steps, how, joined = pipeline

    def run(model: Plumbing, ids: Tensor, other: Tensor) -> Tensor:
        if joined == "cat":
            ids = torch.cat([other[:, 2:], ids], 1)
        elif joined == "where":
            ids = torch.where(torch.arange(ids.shape[1]) % 2 == 0, ids, other)
        for step in steps:
            flat = ids if ids.dim() == 2 else ids.reshape(2, -1) if ids.numel() % 2 == 0 else None
            if flat is None or flat.shape[1] < 5 or flat.numel() > 200:
                break
            ids = MOVES[step](flat)
        if ids.numel() == 0:
            ids = other
        return lookup(model, ids, how) if joined != "one" else torch.cat(
            [lookup(model, ids, how).reshape(-1, WIDTH), model.tables[1](other).reshape(-1, WIDTH)]
        )  # fmt: skip

    first, second = distinct(2, 6, seed=seed), distinct(2, 6, seed=seed + 1, start=RESERVED + 12)
    model = Plumbing(run, tables=2)
    expected = by_rows(model, first, second)
    if any(not e.abs().any() for e in expected):
        return  # one input is not looked up at all
    check(model, first, second)


# ---- what counts for a token -----------------------------------------------------------------
class Text(nn.Module):
    """Tokens, positions and segments, mixed over tokens."""

    def __init__(self, embed: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.words, self.kinds = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(3, WIDTH)
        self.places = nn.Embedding(12, WIDTH)
        self.norm, self.mix = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 2)
        self.row, self.streams = (nn.Parameter(torch.randn(n, WIDTH)) for n in (1, 2))
        self.embed = embed
        self.double()

    def read(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.mix(x)).cumsum(1)
        return self.head(torch.tanh(x).mean(1))

    def forward(self, ids: Tensor) -> Tensor:
        return self.read(self.embed(self, ids))


def all_places(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1])


def before(m: Any, ids: Tensor) -> Tensor:
    x = m.places(all_places(ids))
    return x + m.words(ids)


def in_place_first(m: Any, ids: Tensor) -> Tensor:
    x = m.places(all_places(ids)).expand(len(ids), -1, -1).clone()
    x += m.words(ids)
    return x


def in_place_both(m: Any, ids: Tensor) -> Tensor:
    x = in_place_first(m, ids)
    x += m.kinds(torch.ones_like(ids))
    return x


def into_zeros(m: Any, ids: Tensor) -> Tensor:
    x = torch.zeros(*ids.shape, WIDTH).double()
    x.add_(m.words(ids))
    return x + m.places(all_places(ids))


def column_by_column(m: Any, ids: Tensor) -> Tensor:
    x = torch.zeros(*ids.shape, WIDTH).double()
    for i in range(ids.shape[1]):
        x[:, i] += m.words(ids[:, i])
    return x + m.places(all_places(ids))


def into_a_slice(m: Any, ids: Tensor) -> Tensor:
    x = torch.zeros(len(ids), 7, WIDTH).double()
    x[:, 1 : 1 + ids.shape[1]].add_(m.words(ids))
    return x[:, 1 : 1 + ids.shape[1]] + m.places(all_places(ids))


def taken_away(m: Any, ids: Tensor) -> Tensor:
    x = m.places(all_places(ids)) - m.words(ids)
    return x.subtract(m.kinds(torch.ones_like(ids)))


def taken_away_in_place(m: Any, ids: Tensor) -> Tensor:
    x = m.places(all_places(ids)).repeat(len(ids), 1, 1)
    x -= m.words(ids)
    x.sub_(m.kinds(torch.ones_like(ids)), alpha=2)
    return x


def from_mask(m: Any, ids: Tensor) -> Tensor:
    mask = (ids != 1).long()
    return m.words(ids) + m.places(mask.cumsum(1) * mask - 1)


ADDED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "one row for the batch": lambda m, i: m.words(i) + m.places(all_places(i)[None]),
    "for each example": lambda m, i: m.words(i) + m.places(all_places(i).expand(len(i), -1)),
    "without a batch": lambda m, i: m.words(i) + m.places(all_places(i)),
    "before the tokens": before,
    "in place": in_place_first,
    "in place, both": in_place_both,
    "into zeros": into_zeros,
    "column by column": column_by_column,
    "into a slice": into_a_slice,
    "taken away": taken_away,
    "taken away in place": taken_away_in_place,
    "from the mask": from_mask,
    "a slice of the table": lambda m, i: m.words(i) + m.places.weight[: i.shape[1]],
    "narrow": lambda m, i: m.words(i) + m.places.weight.narrow(0, 0, i.shape[1]).unsqueeze(0),
    "scaled words": lambda m, i: 3 * m.words(i) + m.places(all_places(i)),
    "transposed": lambda m, i: (m.words(i).mT + m.places(all_places(i)).T).mT,
    "sequence first": lambda m, i: (m.words(i.t()) + m.places(all_places(i))[:, None]).transpose(
        0, 1
    ),
    "interpolated": lambda m, i: m.words(i) + F.interpolate(
        m.places.weight[None].mT, size=i.shape[1], mode="linear"
    ).mT,
    "normed before": lambda m, i: m.words(i) + m.norm(m.places(all_places(i))),
    "flat": lambda m, i: (m.words(i.reshape(-1)) + m.places(all_places(i)).repeat(len(i), 1)).view(
        *i.shape, WIDTH
    ),
    "torch.add": lambda m, i: torch.add(m.words(i), m.places(all_places(i)), alpha=2),
    "sum": lambda m, i: sum([m.words(i), m.places(all_places(i)), m.kinds(torch.zeros_like(i))]),
    "a parameter in between": lambda m, i: m.words(i) + m.row + m.places(all_places(i)),
    "both others first": lambda m, i: (m.places(all_places(i)) + m.kinds.weight[1]) + m.words(i),
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("how", list(ADDED))
@pytest.mark.parametrize("rules", ["gi", "lrp"])
def test_rows_added_to_a_token_count_for_it(how: str, batch: int, rules: str) -> None:
    model, ids = Text(ADDED[how]).eval(), distinct(batch, 5)
    with torch.no_grad():
        embedded = model.embed(model, ids)
    expected = ConservativeLRP(model.read, rules).attribute(embedded, target=1).sum(-1)
    got = ConservativeLRP(model, rules).attribute(ids, target=1)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-12)
    parts = ConservativeLRP(model, rules).attribute(ids, target=1, positions="separate")
    assert "words" in parts and len(parts) > 1
    torch.testing.assert_close(sum(parts.values()), got, rtol=1e-8, atol=1e-12)


@pytest.mark.filterwarnings("ignore")  # nothing to recognise under "ah"
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("rules", ["ah", "lrp"])
def test_rows_added_to_copies_of_tokens_do_not_make_positions_of_them(
    batch: int, rules: str
) -> None:
    """Residual streams in the axis of the examples: one read the next as linear attention."""

    def mixed(m: Text, rows: Tensor) -> Tensor:
        x = rows[:, None].expand(-1, 2, -1, -1) + m.streams[:, None]
        for _ in range(2):
            gates = torch.tanh(m.mix(x))[..., :2]
            x = torch.einsum("bsnt,bsnd->btnd", gates, x).flatten(0, 1).unflatten(0, (-1, 2))
        return x.sum(1)

    model, ids = Text(lambda m, i: mixed(m, m.words(i))).eval(), distinct(batch, 5)
    explainer = ConservativeLRP(lambda rows: model.read(mixed(model, rows)), rules)
    expected = explainer.attribute(model.words(ids).detach(), target=1).sum(-1)
    got = ConservativeLRP(model, rules).attribute(ids, target=1, positions="separate")
    torch.testing.assert_close(got["words"], expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("watched", ["audit", "hook", "alias"])
def test_positions_count_where_modules_are_watched(watched: str) -> None:
    model, ids = Text(ADDED["one row for the batch"]).float(), distinct(1, 5)
    expected = ConservativeLRP(model).attribute(ids, target=1)
    if watched == "alias":
        model.words.register_forward_hook(lambda _, __, rows: rows.view_as(rows))
    if watched == "audit":
        report = audit.explainability(model, ids, target=1, file=None)
        assert all(name.endswith("bias") for name in report.absorbed)
        assert report.output - sum(report.absorbed.values()) == pytest.approx(float(expected.sum()))
        return
    handle = model.words.register_full_backward_hook(lambda *_: None)
    got = ConservativeLRP(model).attribute(ids, target=1)
    handle.remove()
    torch.testing.assert_close(got, expected)


def after_a_residual_in_place(m: Any, ids: Tensor) -> Tensor:
    x = m.words(ids)
    x += torch.tanh(x.flip(1))
    return x + m.places(all_places(ids))


def after_an_activation_in_place(m: Any, ids: Tensor) -> Tensor:
    return m.words(ids).clone().tanh_() + m.places(all_places(ids))


def features(m: Any, ids: Tensor) -> Tensor:
    """A vector of another model that began with learned rows."""
    x = torch.cat([m.kinds.weight[:1], torch.linspace(-1, 1, 4 * WIDTH).double().view(4, WIDTH)])
    x = x + m.places.weight[:5]
    x = x + (x @ x.mT).softmax(-1) @ x
    return m.words(ids) + torch.tanh(m.mix(x))[:1]


NOT_ADDED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "prompts": lambda m, i: torch.cat([m.places(torch.zeros_like(i)), m.words(i)], 1),
    "concatenated": lambda m, i: torch.cat(
        [m.words(i)[..., :3], m.places(all_places(i)).expand(len(i), -1, -1)[..., :2]], -1
    ),
    "multiplied": lambda m, i: m.words(i) * m.places(all_places(i)),
    "features of an image": features,
    "after a residual in place": after_a_residual_in_place,
    "after an activation in place": after_an_activation_in_place,
    "another text": lambda m, i: torch.cat([m.words(torch.full_like(i, 7)), m.words(i)], 1),
    "as one-hot rows": lambda m, i: m.words(i) + F.one_hot(
        all_places(i), 12
    ).double() @ m.places.weight,
    "a bag of other ids": lambda m, i: m.words(i) + F.embedding_bag(
        torch.tensor([[0, 2]]), m.kinds.weight
    ),
    "added later": lambda m, i: torch.tanh(m.mix(m.words(i))) + m.places(all_places(i)),
}  # fmt: skip


@pytest.mark.parametrize("how", list(NOT_ADDED))
def test_rows_that_are_not_added_are_constants(how: str) -> None:
    model, ids = Text(NOT_ADDED[how]), distinct(2, 5)
    model.zero_grad()
    model(ids)[:, 1].sum().backward()
    assert model.words.weight.grad is not None
    expected = (model.words.weight * model.words.weight.grad).sum(-1)[ids].detach()
    got = ConservativeGI(model, rules="gi").attribute(ids, target=1)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-12)


def test_a_deep_tower_of_constants_costs_nothing() -> None:
    """Sums of constants with themselves would double what is remembered of their tables."""

    def embed(m: Any, ids: Tensor) -> Tensor:
        x = m.places(all_places(ids))
        for _ in range(60):
            x = x + torch.tanh(x) / 60
        return m.words(ids) + x

    model, ids = Text(embed), distinct(1, 5)
    parts = ConservativeGI(model, rules="gi").attribute(ids, target=1, positions="separate")
    assert set(parts) == {"words", "places"}


def test_a_start_token_is_no_token_of_the_text() -> None:
    def embed(m: Any, ids: Tensor) -> Tensor:
        return m.words(shifted(ids)) + m.places(all_places(ids))

    model, ids = Text(embed), distinct(1, 5)
    with torch.no_grad():
        embedded = embed(model, ids)
    rows = ConservativeGI(model.read, rules="gi").attribute(embedded, target=1).sum(-1)
    got = ConservativeGI(model, rules="gi").attribute(ids, target=1)
    torch.testing.assert_close(got[:, :-1], rows[:, 1:], rtol=1e-8, atol=1e-12)
    assert float(got[0, -1]) == 0.0


def test_the_audit_names_rows_of_no_explained_id() -> None:
    model, ids = Text(lambda m, i: m.words(shifted(i))).float(), distinct(1, 5)
    report = audit.explainability(model, ids, target=1, file=None)
    named = [name for name in report.absorbed if "no explained id" in name]
    assert named and report.absorbed[named[0]] != 0.0
    prompts = Text(NOT_ADDED["prompts"]).float()
    assert "places.weight" in audit.explainability(prompts, ids, target=1, file=None).absorbed


# ---- several inputs ----------------------------------------------------------------------------
def test_inputs_with_equal_values_are_two_inputs() -> None:
    def run(m: Plumbing, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([m.tables[0](a), m.tables[1](b)], -1)

    model, ids = Plumbing(run, tables=2), distinct(2, 4)
    model.zero_grad()
    model(ids, ids).sum().backward()
    expected = [(t.weight * t.weight.grad).sum(-1)[ids].detach() for t in model.tables]  # type: ignore[operator]
    for second in (ids, ids.clone()):
        got = ConservativeGI(model, rules="gi").attribute((ids, second))
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other)


def test_the_same_tensor_in_a_closure_is_a_constant() -> None:
    ids = distinct(1, 4)
    model = Plumbing(lambda m, i: torch.cat([m.tables[0](i), m.tables[1](ids)]), tables=2)
    plain = Plumbing(lambda m, i: torch.cat([m.tables[0](i), m.tables[1](ids).detach()]), tables=2)
    (expected,) = by_rows(plain, ids)
    torch.testing.assert_close(ConservativeGI(model, rules="gi").attribute(ids), expected)


def test_the_ids_of_the_caller_are_left_alone() -> None:
    ids = distinct(2, 4)
    kept = ids.clone()
    model = Plumbing(lambda m, i: m.tables[0](i.add_(1)))
    check(Plumbing(lambda m, i: m.tables[0](i.clone() + 0)), ids)
    ConservativeGI(model, rules="gi").attribute(ids)
    assert torch.equal(ids, kept) and not vars(ids)


# ---- tables ------------------------------------------------------------------------------------
def test_a_table_for_each_column() -> None:
    def run(m: Plumbing, c: Tensor) -> Tensor:
        return torch.cat([t(c[:, k]) for k, t in enumerate(m.tables)], 1)

    check(Plumbing(run, tables=4), distinct(3, 4))


def test_tables_of_single_numbers() -> None:
    model = Plumbing(lambda m, i: m.tables[0].weight[:, 0][i] * 2 + m.tables[0].weight[i, 1])
    check(model, distinct(2, 4))
    model = Plumbing(lambda m, i: torch.stack([m.tables[0].weight[k, 1] for k in i[0]]))
    check(model, distinct(2, 4))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize(
    "shape", ["offsets", "rectangle", "last offset", "padding", "the table first"]
)
@pytest.mark.filterwarnings("ignore:Argument order of nn.functional.embedding_bag")
def test_bags(mode: str, shape: str) -> None:
    options = {"padding_idx": RESERVED + 2} if shape == "padding" else {}

    def run(m: Plumbing, ids: Tensor) -> Tensor:
        weight = m.tables[0].weight
        if shape == "rectangle":
            return F.embedding_bag(ids.view(3, 4), weight, mode=mode)
        if shape == "the table first":  # the order of old
            return F.embedding_bag(weight, ids, torch.tensor([0, 4]), mode=mode)
        offsets = torch.tensor([0, 2, 2, 7, *([12] if shape == "last offset" else [])])
        return F.embedding_bag(
            ids, weight, offsets, mode=mode, include_last_offset=shape == "last offset", **options
        )

    model, ids = Plumbing(run), distinct(12)
    check(model, ids)
    explainer = ConservativeGI(model, rules="gi")
    assert set(explainer.attribute(ids, positions="separate")) == {"tables.0"}
    got = explainer.attribute(ids)
    assert model(ids).equal(model(ids)) and got.abs().sum() > 0


def test_bags_with_weights() -> None:
    weights = torch.linspace(-1, 2, 6, dtype=torch.float64)

    def run(m: Plumbing, ids: Tensor) -> Tensor:
        return F.embedding_bag(
            ids, m.tables[0].weight, torch.tensor([0, 4]), mode="sum", per_sample_weights=weights
        )

    check(Plumbing(run), distinct(6))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_bag_of_nothing_but_padding(mode: str) -> None:
    """Its mean divides by no rows; padding gets nothing, and the other bag all that is there."""

    def run(m: Plumbing, ids: Tensor) -> Tensor:
        return F.embedding_bag(
            ids, m.tables[0].weight, torch.tensor([0, 2]), mode=mode, padding_idx=1
        )

    model, ids = Plumbing(run), torch.tensor([1, 1, 4, 1, 6])
    (expected,) = by_rows(model, ids)
    got = ConservativeGI(model, rules="gi").attribute(ids)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-12)
    assert got.ne(0).tolist() == [False, False, True, False, True]


# ---- what cannot be followed -------------------------------------------------------------------
def sorted_into_sums(ids: Tensor) -> Tensor:
    sums = ids.cumsum(1)
    torch.sort(ids, dim=1, out=(sums, torch.empty_like(ids)))
    return sums


LOST: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "hashed pairs": (lambda i: (i[:, 1:] * 31 + i[:, :-1]) % VOCABULARY, "add"),
    "summed": (lambda i: i.cumsum(1) % VOCABULARY, "cumsum"),
    "sampled": (lambda i: torch.multinomial(i.float(), 3), "multinomial"),
    "distinct": (lambda i: i.unique(), "unique"),
    "distinct, with their counts": (lambda i: i.unique(return_counts=True)[0], "unique"),
    "summed and moved": (lambda i: i.cumsum(1).flip(1) % VOCABULARY, "cumsum"),
    "summed and written": (lambda i: i.clone().copy_(i.cumsum(1)) % VOCABULARY, "cumsum"),
    "written into sums": (sorted_into_sums, "cumsum"),
    "the second": (lambda i: i.kthvalue(2, 1).values, "kthvalue"),
    "exponents": (lambda i: torch.frexp(i.double())[1].long(), "frexp"),
    "numbers of a list": (lambda i: torch.as_tensor(list(i[0])), "did not look them up"),
    "bytes": (lambda i: i.view(torch.uint8).long(), r"view\(dtype\)"),
    "one-hot rows of sums": (
        lambda i: F.one_hot(i.cumsum(1) % VOCABULARY).argmax(-1),
        "did not look them up",
    ),
}


@pytest.mark.parametrize("how", list(LOST))
def test_lost_traces_are_refused_by_name(how: str) -> None:
    run, name = LOST[how]
    model = Plumbing(lambda m, i: m.tables[0](run(i)))
    with pytest.raises(InputError, match=f"(?s){name}.*LayerConservativeGI"):
        ConservativeGI(model, rules="gi").attribute(distinct(2, 6))


def test_numbers_of_python_are_named() -> None:
    model = Plumbing(lambda m, i: torch.stack([m.tables[0].weight[k] for k in i[0].tolist()]))
    with pytest.raises(InputError, match="tolist"):
        ConservativeGI(model, rules="gi").attribute(distinct(1, 6))
