"""What is in the zoo: a tiny model, what to explain of it, and what the oracle expects.

All weights are random, the biases and the weights of norms included: libraries start biases at 0
and norms at 1, which would hide mistakes.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from oracle import (
    OracleTrace,
    Rules,
    oracle_relevance,
    oracle_token_relevance,
    trace_function,
)

Kind = Literal["tokens", "floats"]

BATCH, TOKENS, WIDTH, HEADS, CLASSES, WORDS, PAD = 3, 7, 16, 4, 5, 41, 0
LENGTHS = (7, 5, 3)


@dataclass
class Case:
    """A model together with what to explain.

    ``model(*inputs, **kwargs)`` is the call; :meth:`forward` is the same, read at ``.logits``
    where the output is not a tensor. ``target`` has Captum's meaning. ``patterns`` and ``norms``
    say how many attention patterns and norms lie on the way from the inputs to the output.
    """

    name: str
    model: nn.Module
    kind: Kind
    inputs: tuple[Tensor, ...]
    target: int | tuple[int, ...]
    patterns: int
    norms: int
    kwargs: dict[str, Any] = field(default_factory=dict)
    needs: str | None = None
    _traced: Any = None

    def forward(self, *inputs: Tensor) -> Tensor:
        output = self.model(*inputs, **self.kwargs)
        return output if isinstance(output, Tensor) else output.logits

    def select(self, output: Tensor) -> Tensor:
        for index in self.target if isinstance(self.target, tuple) else (self.target,):
            output = output[:, index]
        return output

    def expected(self, rules: Rules, *, double: bool = False) -> tuple[Tensor, ...]:
        """The oracle's relevance: one tensor for each input ((batch, tokens) for ids)."""
        options: Any = {"double": double, "trace": self.trace()}
        if self.kind == "tokens":
            ids = self.inputs[0]
            return (oracle_token_relevance(self.forward, ids, rules, self.select, **options),)
        return oracle_relevance(self.forward, self.inputs, rules, self.select, **options)

    def trace(self) -> OracleTrace:
        """What the oracle records of the model at these inputs, once for all rules and targets."""
        key = (id(self.model), *map(id, self.inputs))
        if self._traced is None or self._traced[0] != key:
            self._traced = key, trace_function(self.forward, self.inputs)
        return self._traced[1]


@dataclass(frozen=True)
class Entry:
    """A case that has not been built yet."""

    name: str
    kind: Kind
    builder: Callable[[], Case]
    needs: str | None = None
    tags: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.name

    def missing(self) -> str | None:
        """Why this case cannot be built here; None if it can."""
        if self.needs is None or importlib.util.find_spec(self.needs) is not None:
            return None
        return f"{self.name} needs the package {self.needs}"

    def build(self) -> Case:
        reason = self.missing()
        if reason is not None:
            pytest.skip(reason)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            case = self.builder()
        case.name, case.needs = self.name, self.needs
        case.model.eval()
        return case


_ENTRIES: dict[str, Entry] = {}


def cases(
    *tags: str, kind: Kind | None = None, without: tuple[str, ...] = ("slow",)
) -> list[Entry]:
    """The entries that have all ``tags`` and none of ``without``.

    Tags: ``hf bert llama gpt2 vit lm eager sdpa padded torch encoder mha custom norm router
    kernel timm swin torchvision slow``.
    """
    return [
        entry
        for entry in _ENTRIES.values()
        if entry.tags.issuperset(tags)
        and not entry.tags.intersection(without)
        and (kind is None or entry.kind == kind)
    ]


def case(name: str) -> Case:
    """Build one case by its name."""
    return _ENTRIES[name].build()


def add(
    name: str,
    tags: str,
    kind: Kind,
    builder: Callable[..., Case],
    *args: Any,
    needs: str | None = None,
    **options: Any,
) -> None:
    """Put a case into the list, which ``builder(*args, **options)`` makes when it is needed."""
    assert name not in _ENTRIES, name
    made = functools.partial(builder, *args, **options)
    _ENTRIES[name] = Entry(name, kind, made, needs, frozenset(tags.split()))


def randomise(model: nn.Module, seed: int = 1) -> nn.Module:
    """Random values for every parameter, such that activations are of the order of one."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if id(parameter) in embeddings:
                parameter.copy_(0.7 * noise)
            elif parameter.ndim > 1:
                parameter.copy_(noise / math.sqrt(max(1, math.prod(parameter.shape[1:]))))
            elif name.rsplit(".", 1)[-1] in ("weight", "gain", "gamma"):
                parameter.copy_(1.0 + 0.3 * noise)
            else:
                parameter.copy_(0.3 * noise)
    return model.eval()


def token_ids(padded: bool, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Ids (batch, tokens) and their attention mask; padded on the right where asked for."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(PAD + 1, WORDS, (BATCH, TOKENS), generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        mask = (torch.arange(TOKENS) < torch.tensor(LENGTHS)[:, None]).long()
        ids = ids.masked_fill(mask == 0, PAD)
    return ids, mask


def floats(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
