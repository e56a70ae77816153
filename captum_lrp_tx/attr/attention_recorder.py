"""Reading attention maps through the engine: patterns, their gradients and their relevance.

Nothing is asked of the model (no ``output_attentions``): a :class:`Recorder` is the rule for
attention of one pass.  Where the model multiplies a pattern with values it sees the pattern; where
the model calls a fused kernel it computes the pattern beside it, and the result keeps the value of
the kernel.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_tx.attr.map_origins import Frame, MapOrigin, sequences_of
from captum_lrp_tx.errors import UnsupportedModelError
from captum_lrp_tx.propagation.engine import Pass, Propagated, propagate
from captum_lrp_tx.propagation.hygiene.hooks import Hooks, guard
from captum_lrp_tx.propagation.operations import (
    FusedAttention,
    Kind,
    PatternProduct,
    PropagationRule,
    RuleTable,
)
from captum_lrp_tx.propagation.state.inputs import Inputs
from captum_lrp_tx.rules.deep_taylor import HalfAttentionRule
from captum_lrp_tx.rules.spelled_attention import spelled_out

#: Parameters of attention modules that take the sequence which keys and values come from.
_KEY_SEQUENCES = frozenset(
    """key_value_states encoder_hidden_states key k context memory encoder_states kv ctx_tensor
    cross_attention_states key_states keys source mem encoder_output encoder_outputs""".split()
)


#: Moves the entries of a tensor.
Shaped = Callable[[Tensor], Tensor]


@dataclass
class AttentionMap:
    """One attention map of a forward pass.

    Attributes:
        module (str): Name of the module that made it; empty outside every module.
        pattern (Tensor): Attention of each query (row) to each key, shape
            ``(batch, heads, queries, keys)``.
        gradient (Tensor, optional): Of the explained output by the pattern; zero where the output
            does not depend on it.
        relevance (Tensor, optional): Of the pattern, under the rules of the pass.
        is_cross (bool): Whether keys come from another sequence than queries.
        is_parallel (bool): Whether this and the previous map are the two directions of one
            co-attention, which read the same states.
    """

    module: str
    pattern: Tensor
    gradient: Tensor | None = None
    relevance: Tensor | None = None
    is_cross: bool = False
    is_parallel: bool = False


@dataclass
class MapPass:
    """Result of :func:`attention_maps`.

    Attributes:
        maps (list of AttentionMap): In the order of the forward pass.
        propagated (Propagated): Output and, after a backward pass, relevance of the inputs.
        stream (Tensor, optional): Hidden states that enter the transformer, detached.
        stream_gradient (Tensor, optional): The modified gradient there.
        left_out (tuple of str): What was taken for a router: modules with the shapes.
    """

    maps: list[AttentionMap]
    propagated: Propagated
    stream: Tensor | None = None
    stream_gradient: Tensor | None = None
    left_out: tuple[str, ...] = ()

    def transpose_stream(self) -> None:
        """Put the examples of hidden states that count tokens first into the first axis."""
        if self.stream is not None and self.stream_gradient is not None:
            self.stream = self.stream.transpose(0, 1)
            self.stream_gradient = self.stream_gradient.transpose(0, 1)


def attention_maps(
    job: Pass, inputs: Inputs, *, gradients: bool = False, relevance: bool = False
) -> MapPass:
    """Run one pass and return its attention maps in forward order.

    Args:
        job (Pass): The pass; its rule for attention is replaced by a recorder, which shares
            relevance by it if it is :class:`~.deep_taylor.HalfAttentionRule`, else carries the
            plain gradient.
        inputs (Inputs): What to run it on.
        gradients (bool): Also give the gradient of the output by every pattern.
        relevance (bool): Also give the relevance of every pattern.

    Raises:
        UnsupportedModelError: no attention pattern was seen, or one that is not token by token.
    """
    original = inputs.leaves[0].original
    _, rule = job.base.get(Kind.ATTENTION, (0.0, None))
    recorder = Recorder(
        original.shape[0] if original.dim() > 1 else 1,
        rule if isinstance(rule, HalfAttentionRule) else None,
        watch_gradients=gradients or relevance,
    )
    base: RuleTable = {**job.base, Kind.ATTENTION: (float("inf"), recorder)}
    job = replace(job, base=base, backward=gradients or relevance)
    try:
        with guard(), recorder.watching(job.modules):
            propagated = propagate(job, inputs)
    finally:
        # the tensor's gradient hook holds the recorder: a cycle that no collector sees
        stream, recorder.stream = recorder.stream, None
        recorder.origins.clear()  # they hold the graph, too
    maps = recorder.finished(gradients, relevance)
    if not maps:
        raise UnsupportedModelError(
            "No softmax attention pattern between tokens was seen in the forward pass: the model "
            "has no softmax attention (a state-space model, linear attention), or computes it in a "
            "foreign kernel (flash-attn, flex attention, torch.compile). Load it with "
            "attn_implementation='sdpa' or 'eager', or use a method that needs no attention maps, "
            "such as ConservativeLRP."
        )
    return MapPass(
        maps,
        propagated,
        None if stream is None else stream.detach(),
        recorder.stream_gradient,
        tuple(dict.fromkeys(recorder.left_out)),
    )


@dataclass(eq=False, repr=False)
class Recorder(PropagationRule):
    """The rule for attention that keeps every pattern it sees.

    Args:
        batch (int): Number of examples.
        rule (HalfAttentionRule, optional): How relevance is shared; unless given the plain gradient
            is carried.
        watch_gradients (bool): Keep the gradients that arrive at the patterns.
    """

    batch: int
    rule: HalfAttentionRule | None = None
    watch_gradients: bool = False
    stream: Tensor | None = None
    stream_gradient: Tensor | None = None
    left_out: list[str] = field(default_factory=list)
    origins: list[MapOrigin] = field(default_factory=list)
    _maps: list[AttentionMap] = field(default_factory=list)
    _gradients: dict[int, Tensor] = field(default_factory=dict)
    _frames: list[Frame] = field(default_factory=list)
    _last: tuple[Tensor | None, Tensor | None] | None = None
    #: How many maps each layer has: heads that are computed one by one have a map each.
    _heads: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        return "Recorder()"

    # ---- the rule ----------------------------------------------------------------------------
    def propagate(self, operation: PatternProduct | FusedAttention) -> Tensor:
        """The result of the operation; its patterns are recorded."""
        if self.rule is None:
            return spelled_out(operation, 1.0, False, self._record)
        return self.rule.recorded(operation, self._record)

    # ---- where we are ------------------------------------------------------------------------
    @contextlib.contextmanager
    def watching(self, modules: Sequence[tuple[str, nn.Module]]) -> Iterator[None]:
        """Know which modules of this thread are running, and with which arguments."""
        thread = threading.get_ident()

        def enter(name: str) -> Callable[..., None]:
            # a thread may meet the hook of another before torch has noted that it takes kwargs
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> None:
                if threading.get_ident() == thread:
                    self._frames.append(Frame(name, module, args, kwargs or {}))

            return hook

        def leave(module: nn.Module, *_: Any) -> None:
            # not if a hook before ours raised: the module was not entered
            is_entered = bool(self._frames) and self._frames[-1].module is module
            if threading.get_ident() == thread and is_entered:
                self._frames.pop()

        with Hooks() as hooks:
            for name, module in modules:
                hooks.before(module, enter(name), with_kwargs=True, prepend=True)
                hooks.after(module, leave, always_call=True)
            yield

    def _record(self, pattern: Tensor) -> Tensor:
        """Keep a pattern; the alias that is returned carries its gradient."""
        layout = self._layout(pattern)
        if layout is None:
            self.left_out.append(f"{self._module or 'the model'} {tuple(pattern.shape)}")
            return pattern
        queries, keys = pattern.shape[-2:]
        is_cross, first, second = _sources(self._sequences(), queries, keys)
        before = self._last or (None, None)
        parallel = is_cross and first is not None and (first is before[1] and second is before[0])
        known = is_cross and first is not None and second is not None
        self._last = (first, second) if known else None
        if not self._maps:
            self._find_stream(queries)
        index, shaped = len(self._maps), layout(pattern.detach())
        self._maps.append(
            AttentionMap(self._module, shaped, is_cross=is_cross, is_parallel=parallel)
        )
        origin = MapOrigin(pattern.grad_fn, tuple(shaped.shape), is_cross, tuple(self._frames))
        if self.origins and origin.is_beside(self.origins):
            self.origins.append(origin)
            self._heads[-1] += 1
        else:
            self.origins = [origin]
            self._heads.append(1)
        if not self.watch_gradients:
            return pattern
        alias = pattern.view_as(pattern)
        if not alias.requires_grad:
            return alias

        def keep(grad: Tensor) -> None:
            self._gradients[index] = layout(grad.detach())

        alias.register_hook(keep)  # type: ignore[no-untyped-call]
        return alias

    @property
    def _module(self) -> str:
        """Name of the innermost module that is running; empty outside every module."""
        return self._frames[-1].name if self._frames else ""

    def _sequences(self) -> dict[str, Tensor]:
        return sequences_of(self._frames)

    def _layout(self, pattern: Tensor) -> Shaped | None:
        """What brings a pattern into the shape ``(batch, heads, queries, keys)``.

        ``None`` for what is no attention between tokens.
        """
        layout = self._by_example(pattern)
        sizes = [t.shape for t in self._sequences().values()]
        if not sizes:
            return layout
        if all(self.batch not in size[:2] for size in sizes):
            raise self._not_tokens(
                pattern, "comes from sequences that are not the examples (windows or groups)"
            )
        tokens = {size[1 - dim] for size in sizes for dim in (0, 1) if size[dim] == self.batch}
        queries, keys = pattern.shape[-2:]
        # an attention may add one or two keys that are no tokens
        if queries in tokens and any(keys - extra in tokens for extra in (0, 1, 2)):
            return layout
        if pattern.dim() < 4:
            return None  # a router or the like
        raise self._not_tokens(
            pattern,
            "has no row and column for each token (the module works on "
            f"{[tuple(size) for size in sizes]}): attention between channels or of some tokens "
            "only",
        )

    def _by_example(self, pattern: Tensor) -> Shaped:
        """:meth:`_layout` as far as examples and heads go, of which either may come first."""
        shape, batch = pattern.shape, self.batch
        layouts: list[Shaped] = []
        if pattern.dim() == 2 and batch == 1:
            layouts = [lambda x: x[None, None]]
        elif pattern.dim() == 3 and shape[0] % batch == 0:
            layouts = [lambda x: torch.unflatten(x, 0, (batch, -1))]
            if 1 < batch < shape[0]:
                layouts.append(lambda x: torch.unflatten(x, 0, (-1, batch)).transpose(0, 1))
        elif pattern.dim() != 4:
            raise self._not_tokens(pattern, "is not (batch, heads, queries, keys)")
        elif shape[0] == batch:
            layouts = [lambda x: x]
        if pattern.dim() == 4 and shape[1] == batch and self._sequences():
            layouts.append(lambda x: x.transpose(0, 1))
        is_usual = pattern.dim() < 4 or shape[0] == batch
        if is_usual and len(layouts) < 2:
            return layouts[0]
        told = [(layout, self._is_own(layout, pattern)) for layout in layouts]
        for layout, is_own in told:
            if is_own or (is_own is None and is_usual):
                return layout
        raise self._not_tokens(
            pattern,
            f"is not one map for each of the {batch} example(s): "
            + ("it depends on several of them" if is_usual else
               "the attention is split into windows or groups"),
        )  # fmt: skip

    def _is_own(self, layout: Shaped, pattern: Tensor) -> bool | None:
        """Whether the map of the first example depends on this example only; None: not known.

        Shapes do not tell examples and heads apart, but this does.
        """
        sequences = [x for x in self._sequences().values() if self.batch in x.shape[:2]]
        if self.batch == 1:
            return bool(sequences)
        sequences = [x for x in sequences if x.requires_grad]
        if not sequences or not pattern.requires_grad:
            return None
        with torch._C.DisableTorchFunction():  # none of the model's doing
            seed = torch.zeros_like(pattern)
            layout(seed)[0] = torch.arange(pattern.shape[-1], device=seed.device).sin().to(seed)
            grads = torch.autograd.grad(
                pattern, sequences, seed, retain_graph=True, allow_unused=True
            )
        self.stream_gradient = None  # that of this question
        reached = [
            [set(g.transpose(0, dim).flatten(1).any(1).nonzero()[:, 0].tolist())
             for dim in (0, 1) if g.shape[dim] == self.batch]
            for g in grads if g is not None and bool(g.any())
        ]  # fmt: skip
        return all({0} in examples for examples in reached) if reached else None

    def _not_tokens(self, pattern: Tensor, why: str) -> UnsupportedModelError:
        name = self._module or "the model"
        return UnsupportedModelError(
            f"The attention map of shape {tuple(pattern.shape)} in {name!r} {why}, "
            "so there is no map from token to token that could be combined over layers. Use a "
            "method that needs none, such as ConservativeLRP."
        )

    def _find_stream(self, tokens: int) -> None:
        """The hidden states that enter the outermost module with a row for each token."""
        for frame in self._frames:
            for x in frame.sequences().values():
                if x.requires_grad and x.shape[0] == self.batch and x.shape[1] == tokens:
                    self.stream = x
                    if self.watch_gradients:
                        x.register_hook(self._keep_stream)  # type: ignore[no-untyped-call]
                    return

    def _keep_stream(self, grad: Tensor) -> None:
        self.stream_gradient = grad.detach()

    def finished(self, gradients: bool, relevance: bool) -> list[AttentionMap]:
        """The maps with what the backward pass brought, one for each layer."""
        for index, found in enumerate(self._maps):
            gradient = self._gradients.get(index)
            if gradient is None:
                gradient = torch.zeros_like(found.pattern)
            if gradients:
                found.gradient = gradient
            if relevance:
                found.relevance = found.pattern * gradient
        remaining = iter(self._maps)
        return [_joined(list(itertools.islice(remaining, heads))) for heads in self._heads]


def _joined(heads: list[AttentionMap]) -> AttentionMap:
    """One map of all heads of a layer."""
    if len(heads) == 1:
        return heads[0]

    def join(values: list[Tensor | None]) -> Tensor | None:
        given = [value for value in values if value is not None]
        return torch.cat(given, 1) if given else None

    return replace(
        heads[0],
        pattern=torch.cat([head.pattern for head in heads], 1),
        gradient=join([head.gradient for head in heads]),
        relevance=join([head.relevance for head in heads]),
    )


def _sources(
    sequences: dict[str, Tensor], queries: int, keys: int
) -> tuple[bool, Tensor | None, Tensor | None]:
    """Whether keys come from elsewhere, and the sequences of queries and keys."""
    tensors = list(sequences.values())
    first = tensors[0] if tensors else None
    for name, tensor in sequences.items():
        if name in _KEY_SEQUENCES and tensor is not first:
            return True, first, tensor
    if len(tensors) < 2 or queries in (1, keys) or keys - queries in (1, 2):
        return False, first, first
    other = [t for t in tensors[1:] if keys in t.shape[:2]]
    return bool(other), first, other[0] if other else first
