"""What is handed in beside the inputs is after an explanation what it was before, also if empty."""

from __future__ import annotations

import enum
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from captum_lrp_tx import ConservativeLRP, LayerConservativeLRP, audit
from captum_lrp_tx.errors import CaptumLRPWarning, InputError, NonFiniteError
from captum_lrp_tx.propagation.hygiene.arguments import fresh

CONFIG = LlamaConfig(
    vocab_size=30, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
    num_attention_heads=2, pad_token_id=0,
)  # fmt: skip
TARGET = (-1, 4)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CaptumLRPWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).eval()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, 30, (1, 6))


def by_mapping(model: Any, ids: Tensor, cache: Any) -> Any:
    inputs = {"input_ids": ids, "past_key_values": cache}
    return ConservativeLRP(model).attribute(inputs, target=TARGET)


def by_position(model: Any, ids: Tensor, cache: Any) -> Any:
    more = (None, None, cache)
    return ConservativeLRP(model).attribute(ids, target=TARGET, additional_forward_args=more)


def in_little_memory(model: Any, ids: Tensor, cache: Any) -> Any:
    inputs = {"input_ids": ids, "past_key_values": cache}
    return ConservativeLRP(model, memory="low").attribute(inputs, target=TARGET)


def at_a_layer(model: Any, ids: Tensor, cache: Any) -> Any:
    layer = LayerConservativeLRP(model, model.get_input_embeddings())
    return layer.attribute({"input_ids": ids, "past_key_values": cache}, target=TARGET)


def by_audit(model: Any, ids: Tensor, cache: Any) -> Any:
    inputs = {"input_ids": ids, "past_key_values": cache}
    report = audit.explainability(model, inputs, target=TARGET, file=None)
    return torch.tensor(report.relevance)


@pytest.mark.parametrize(
    "explain", [by_mapping, by_position, in_little_memory, at_a_layer, by_audit]
)
@pytest.mark.parametrize("make", [DynamicCache, lambda: DynamicCache(config=CONFIG)])
def test_an_empty_cache_stays_empty(
    explain: Callable[..., Any], make: Callable[[], Any], model: Any, ids: Tensor
) -> None:
    cache = make()
    first, second = explain(model, ids, cache), explain(model, ids, cache)
    assert int(cache.get_seq_length()) == 0
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    without = explain(model, ids, None)
    torch.testing.assert_close(first, without, rtol=1e-5, atol=1e-7)


def test_each_step_of_a_generation_is_explained_with_one_cache(model: Any, ids: Tensor) -> None:
    cache, step, text = DynamicCache(), ids[:, :3], ids[:, :3]
    for _ in range(3):
        found = by_mapping(model, step, cache)
        whole = ConservativeLRP(model).attribute(text, target=TARGET)
        torch.testing.assert_close(found, whole[:, -step.shape[1] :], rtol=1e-3, atol=1e-6)
        with torch.no_grad():
            logits = model(step, past_key_values=cache, use_cache=True).logits
        step = logits[:, -1:].argmax(-1)
        text = torch.cat([text, step], 1)


class Own:
    """A cache that nobody knows, with nothing in it."""

    def __init__(self) -> None:
        self.sums: Any = None

    def add(self, value: Tensor) -> None:
        self.sums = value if self.sums is None else self.sums + value


WRITTEN: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], Any]]] = {
    "list": (list, lambda store, x: store.append(x)),
    "dict": (dict, lambda store, x: store.update(seen=x)),
    "set": (set, lambda store, x: store.add(float(x))),
    "deque": (deque, lambda store, x: store.append(x)),
    "list in a tuple": (lambda: ([],), lambda store, x: store[0].append(x)),
    "list of numbers": (lambda: [1, 2], lambda store, x: store.append(x)),
    "namespace": (SimpleNamespace, lambda store, x: setattr(store, "seen", x)),
    "object": (Own, lambda store, x: store.add(x)),
}


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("by_name", [False, True])
def test_what_is_empty_is_not_written_to(kind: str, by_name: bool) -> None:
    make, write = WRITTEN[kind]
    linear, x = nn.Linear(3, 2), torch.randn(2, 3)

    def forward(x: Tensor, store: Any) -> Tensor:
        before = repr(vars(store) if isinstance(store, Own) else store)
        write(store, x.detach().sum())
        assert before == kept  # what it was called with, each time
        result: Tensor = linear(x)
        return result

    store = make()
    kept = repr(vars(store) if isinstance(store, Own) else store)
    lrp = ConservativeLRP(forward)
    for _ in range(2):
        if by_name:
            lrp.attribute({"x": x, "store": store}, target=1)
        else:
            lrp.attribute(x, target=1, additional_forward_args=(store,))
    assert repr(vars(store) if isinstance(store, Own) else store) == kept


class Mark:
    """Told by what it is."""


class Colour(enum.Enum):
    RED = 1


class Tokens:
    """Stands for a tokenizer: has attributes, and is called."""

    def __init__(self) -> None:
        self.vocabulary = {"a": 1}

    def __call__(self, text: str) -> list[int]:
        return [self.vocabulary[text]]


@pytest.mark.parametrize(
    "value",
    [Mark(), Colour.RED, Tokens(), nn.Linear(2, 2), "a", 1, 1.5, None, len, Own, torch.ones(2),
     threading.Lock(), [threading.Lock()]],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_not_written_to_is_handed_on(value: Any) -> None:
    assert fresh(value) is value


@pytest.mark.parametrize("value", [Tokens(), nn.Linear(2, 2), len], ids=["tool", "model", "built"])
@pytest.mark.parametrize("tensor", [None, torch.ones(2)])
def test_what_is_handed_on_also_inside_of_a_copied_list(value: Any, tensor: Any) -> None:
    given = [value, tensor]
    copied = fresh(given)
    assert copied is not given and copied[0] is value


def test_a_bound_method_goes_with_its_copied_cache() -> None:
    given = Own()
    given.sums = [torch.zeros(())]
    both = [given, given.add]
    copied = fresh(both)
    assert copied[1].__self__ is copied[0] is not given


def test_a_failing_pass_does_not_fill_a_cache_either(model: Any, ids: Tensor) -> None:
    cache = DynamicCache()
    with pytest.raises(InputError, match="unsqueeze"):
        by_mapping(model, ids[0], cache)
    assert int(cache.get_seq_length()) == 0
    store: list[Tensor] = []

    def infinite(x: Tensor, store: list[Tensor]) -> Tensor:
        store.append(x)
        return x / 0

    for kind in ("mapping", "tuple"):
        with pytest.raises(NonFiniteError, match="outside of every submodule"):
            if kind == "mapping":
                ConservativeLRP(infinite).attribute({"x": torch.ones(1, 2), "store": store}, 0)
            else:
                ConservativeLRP(infinite).attribute(torch.ones(1, 2), 0, (store,))
    assert store == []
