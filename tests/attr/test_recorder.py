"""The recorder of attention maps: which patterns are maps of tokens, and of which sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_tx import AttentionRollout
from captum_lrp_tx.attr.attention_recorder import AttentionMap, Recorder
from captum_lrp_tx.errors import LeftOutPatternWarning, UnsupportedModelError
from captum_lrp_tx.propagation.operations import PatternProduct

BATCH, HEADS, TOKENS, WIDTH = 2, 3, 5, 4


class Attention(nn.Module):
    """Hands a pattern of any shape to the recorder."""

    def __init__(self, recorder: Recorder, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.recorder, self.shape = recorder, shape
        self.pattern: Tensor | None = None

    def forward(self, x: Tensor, context: Tensor | None = None, note: Any = None) -> Tensor:
        scores = torch.randn(self.shape) + 0 * x.sum()
        self.pattern = scores.softmax(-1)
        value = torch.randn(*self.shape[:-2], self.shape[-1], WIDTH)
        operation = PatternProduct(
            torch.matmul, (self.pattern, value), {}, patterns=(0,), operands=(0, 1)
        )
        return self.recorder.propagate(operation)


class Model(nn.Module):
    def __init__(self, recorder: Recorder, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention(recorder, shape) for shape in shapes)

    def forward(self, *calls: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Tensor]:
        pairs = zip(self.layers, calls, strict=True)
        return [layer(*args, **kwargs) for layer, (args, kwargs) in pairs]


def sequence(batch: int = BATCH, tokens: int = TOKENS) -> Tensor:
    return torch.randn(batch, tokens, WIDTH, requires_grad=True) * 1


def record(
    shape: tuple[int, ...], *args: Any, batch: int = BATCH, **kwargs: Any
) -> tuple[Recorder, list[AttentionMap], Tensor]:
    recorder = Recorder(batch)
    model = Model(recorder, shape)
    with recorder.watching(list(model.named_modules())):
        model((args, kwargs))
    pattern = model.layers[0].pattern
    assert pattern is not None
    return recorder, recorder.finished(False, False), pattern


@pytest.mark.parametrize(
    "shape, batch, expected",
    [
        ((BATCH, HEADS, TOKENS, TOKENS), BATCH, (BATCH, HEADS)),
        ((BATCH * HEADS, TOKENS, TOKENS), BATCH, (BATCH, HEADS)),
        ((BATCH, TOKENS, TOKENS), BATCH, (BATCH, 1)),
        ((HEADS, TOKENS, TOKENS), 1, (1, HEADS)),
        ((TOKENS, TOKENS), 1, (1, 1)),
        ((1, HEADS, TOKENS, TOKENS), 1, (1, HEADS)),
    ],
)
def test_maps_have_a_batch_and_heads(
    shape: tuple[int, ...], batch: int, expected: tuple[int, int]
) -> None:
    _, (found,), pattern = record(shape, sequence(batch), batch=batch)
    assert found.module == "layers.0" and not found.is_cross and not found.is_parallel
    assert torch.equal(found.pattern, pattern.detach().reshape(*expected, TOKENS, TOKENS))


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_a_key_or_two_may_be_no_tokens(extra: int) -> None:
    _, (found,), _ = record((BATCH, HEADS, TOKENS, TOKENS + extra), sequence())
    assert found.pattern.shape[-1] == TOKENS + extra and not found.is_cross


@pytest.mark.parametrize(
    "shape, args, batch, why",
    [
        ((TOKENS, TOKENS), (sequence(),), BATCH, "is not .batch, heads"),
        ((1, BATCH, HEADS, TOKENS, TOKENS), (sequence(),), BATCH, "is not .batch, heads"),
        ((HEADS, TOKENS, TOKENS), (sequence(),), BATCH, "is not .batch, heads"),
        ((6, HEADS, TOKENS, TOKENS), (sequence(),), BATCH, "not one map for each of the 2"),
        ((1, HEADS, TOKENS, TOKENS), (sequence(),), BATCH, "not one map for each of the 2"),
        ((BATCH, HEADS, TOKENS, TOKENS), (sequence(6),), BATCH, "are not the examples"),
        ((BATCH, HEADS, TOKENS, TOKENS + 3), (sequence(),), BATCH, "no row and column for each"),
        ((BATCH, HEADS, TOKENS + 1, TOKENS), (sequence(),), BATCH, "no row and column for each"),
        ((BATCH, HEADS, WIDTH, WIDTH), (sequence(),), BATCH, "no row and column for each"),
    ],
)
def test_what_is_no_map_between_tokens_is_refused(
    shape: tuple[int, ...], args: tuple[Any, ...], batch: int, why: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=why) as raised:
        record(shape, *args, batch=batch)
    assert "layers.0" in str(raised.value) and str(tuple(shape)) in str(raised.value)


def test_a_router_is_no_map() -> None:
    recorder, maps, _ = record((BATCH * HEADS, TOKENS, WIDTH + 5), sequence())
    assert not maps
    assert recorder.left_out == [f"layers.0 {(BATCH * HEADS, TOKENS, WIDTH + 5)}"]


def test_without_a_module_any_pattern_is_taken_for_a_map() -> None:
    recorder = Recorder(BATCH)
    attention = Attention(recorder, (BATCH, HEADS, WIDTH, WIDTH))
    attention(sequence())
    (found,) = recorder.finished(False, False)
    assert found.module == "" and recorder.stream is None


def test_sequences_may_come_first() -> None:
    _, (found,), _ = record((BATCH, HEADS, TOKENS, TOKENS), torch.randn(TOKENS, BATCH, WIDTH))
    assert not found.is_cross


@pytest.mark.parametrize(
    "keys, args, kwargs, crossed",
    [
        (TOKENS, (), {"x": sequence()}, False),
        (TOKENS, (sequence(), None, sequence()), {}, False),  # as long, and called neither
        (TOKENS, (sequence(), sequence()), {}, True),  # called context
        (TOKENS, (sequence(),), {"context": sequence()}, True),
        (7, (sequence(), sequence(BATCH, 7)), {}, True),
        (9, (sequence(), None, sequence(BATCH, 9)), {}, True),  # by its length
        (9, (sequence(), None, torch.randn(9, BATCH, WIDTH)), {}, True),
        (TOKENS + 1, (sequence(), None, sequence(BATCH, TOKENS + 1)), {}, False),  # added keys
        (TOKENS, (sequence(),), {"context": torch.ones(BATCH, TOKENS, WIDTH).long()}, False),
        (TOKENS, (sequence(),), {"context": torch.ones(BATCH, TOKENS)}, False),
    ],
)
def test_keys_that_come_from_another_sequence(
    keys: int, args: tuple[Any, ...], kwargs: dict[str, Any], crossed: bool
) -> None:
    _, (found,), _ = record((BATCH, HEADS, TOKENS, keys), *args, **kwargs)
    assert found.is_cross is crossed and not found.is_parallel


def test_one_tensor_twice_is_no_other_sequence() -> None:
    x = sequence()
    _, (found,), _ = record((BATCH, HEADS, TOKENS, TOKENS), x, x)
    assert not found.is_cross


def test_the_two_directions_of_co_attention() -> None:
    a, b, c = sequence(), sequence(BATCH, 7), sequence(BATCH, 7)
    there, back = (BATCH, HEADS, TOKENS, 7), (BATCH, HEADS, 7, TOKENS)

    def parallel(*calls: tuple[tuple[int, ...], Tensor, Tensor]) -> list[bool]:
        recorder = Recorder(BATCH)
        model = Model(recorder, *(shape for shape, _, _ in calls))
        with recorder.watching(list(model.named_modules())):
            model(*(((x, context), {}) for _, x, context in calls))
        maps = recorder.finished(False, False)
        assert all(m.is_cross for m in maps) and len(maps) == len(calls)
        return [m.is_parallel for m in maps]

    assert parallel((there, a, b), (back, b, a)) == [False, True]
    assert parallel((there, a, b), (there, a * 1, b)) == [False, False]
    assert parallel((there, a, b), (back, c, a)) == [False, False]
    assert parallel((back, b, a), (there, a, b), (back, b, a)) == [False, True, True]


def test_gradients_and_relevance_of_the_patterns() -> None:
    recorder = Recorder(BATCH, watch_gradients=True)
    shapes = [(BATCH * HEADS, TOKENS, TOKENS), (BATCH, HEADS, TOKENS, TOKENS)]
    model = Model(recorder, *shapes)
    x = sequence()
    with recorder.watching(list(model.named_modules())):
        first, _ = model(((x,), {}), ((x * 1,), {}))
    weight = torch.randn(first.shape)
    pattern = model.layers[0].pattern
    assert pattern is not None
    (expected,) = torch.autograd.grad((first * weight).sum(), pattern, retain_graph=True)
    (first * weight).sum().backward()
    maps = recorder.finished(True, True)
    shaped = expected.reshape(BATCH, HEADS, TOKENS, TOKENS)
    torch.testing.assert_close(maps[0].gradient, shaped)
    torch.testing.assert_close(maps[0].relevance, maps[0].pattern * shaped)
    assert maps[1].gradient is not None and not maps[1].gradient.any()  # not on the way
    assert maps[1].relevance is not None and not maps[1].relevance.any()
    assert recorder.stream is x
    assert recorder.stream_gradient is not None and recorder.stream_gradient.shape == x.shape
    plain = recorder.finished(False, False)
    assert [m.module for m in plain] == ["layers.0", "layers.1"]


@pytest.mark.parametrize(
    "x, found",
    [
        (sequence(), True),
        (torch.randn(BATCH, TOKENS, WIDTH), False),  # does not depend on the input
        (torch.randn(TOKENS, BATCH, WIDTH, requires_grad=True) * 1, False),  # batch is not first
    ],
)
def test_the_stream_is_what_enters_with_a_row_for_each_token(x: Tensor, found: bool) -> None:
    recorder, _, _ = record((BATCH, HEADS, TOKENS, TOKENS), x)
    assert (recorder.stream is x) is found and (recorder.stream is None) is not found


def test_hooks_of_the_recorder_go_away() -> None:
    recorder = Recorder(BATCH)
    model = Model(recorder, (BATCH, HEADS, WIDTH, TOKENS))
    before = {name: len(m._forward_hooks) + len(m._forward_pre_hooks)
              for name, m in model.named_modules()}  # fmt: skip
    with pytest.raises(ZeroDivisionError), recorder.watching(list(model.named_modules())):
        raise ZeroDivisionError
    after = {name: len(m._forward_hooks) + len(m._forward_pre_hooks)
             for name, m in model.named_modules()}  # fmt: skip
    assert before == after and str(recorder) == "Recorder()"


class Pooling(nn.Module):
    """Attention to pairs of tokens, by matrices of three dimensions, behind attention to tokens."""

    def __init__(self, pools: bool) -> None:
        super().__init__()
        self.pools, self.first, self.head = pools, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
        self.second = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + (self.first(x) @ x.mT).softmax(-1) @ x
        if self.pools:
            x = self.block(x)
        return self.head(x[:, 0])

    def block(self, x: Tensor) -> Tensor:
        pooled = x.unflatten(1, (-1, 2)).mean(2)
        return x + (self.second(x) @ pooled.mT).softmax(-1) @ pooled


def test_attention_to_pooled_tokens_is_not_left_out_silently(recwarn: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(BATCH, 6, WIDTH)
    whole, pooling = Pooling(False).eval(), Pooling(True).eval()
    AttentionRollout(whole).attribute(x)
    assert not [w for w in recwarn if issubclass(w.category, LeftOutPatternWarning)]
    with pytest.warns(LeftOutPatternWarning, match=r"\(2, 6, 3\).*ConservativeLRP"):
        AttentionRollout(pooling).attribute(x)
