"""``ConservativeLRP`` with a watcher: what the classes for parts of a model share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_tx.attr.captum_method import CaptumMethod
from captum_lrp_tx.attr.conservative import AttributionInputs, Strict, TargetType
from captum_lrp_tx.attr.conservative_lrp import ConservativeLRP
from captum_lrp_tx.attr.mappings import inputs_of
from captum_lrp_tx.attr.parts.layouts import check_examples
from captum_lrp_tx.attr.parts.watching import Masks, Seen, Watcher, hook_gradient
from captum_lrp_tx.errors import InputError, UnsupportedModelError
from captum_lrp_tx.propagation.backward.seeds import forget
from captum_lrp_tx.propagation.engine import Pass, Propagated
from captum_lrp_tx.propagation.hygiene.hooks import Hooks, guard
from captum_lrp_tx.propagation.state.inputs import Inputs
from captum_lrp_tx.propagation.state.scope import Scope
from captum_lrp_tx.rules.composite import Composite
from captum_lrp_tx.rules.rule import Bias

#: Between forward and backward pass: watcher, scope, targets, leaves.
Look = Callable[[Watcher, Scope, "list[Tensor]", "list[Tensor]"], None]


class WatchedLRP(ConservativeLRP):
    """One pass whose branches, heads and neurons are seen.

    Args:
        model (nn.Module or callable): See :class:`~captum_lrp_tx.ConservativeLRP`.
        composite (Composite): Rules, their bias included.
        bias (str): Of rules that modules have as ``module.rule``.
        masks (Masks): What of the gradients goes on.
        neurons (bool): Whether neurons of MLPs are seen, too.

    Example::

        >>> watched = WatchedLRP(model, ConservativeLRP(model).composite, "absorb")
        >>> result, prepared, watcher, _ = watched.run(inputs, target=1)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        composite: Composite,
        bias: Bias,
        masks: Masks | None = None,
        neurons: bool = False,
    ) -> None:
        ConservativeLRP.__init__(self, model, composite, bias=bias)
        self._masks = masks or Masks()
        self._neurons = neurons
        self._watcher: Watcher | None = None
        self._look: Look | None = None
        self._layers: list[list[Seen]] = []

    def run(
        self,
        inputs: AttributionInputs,
        target: TargetType,
        additional_forward_args: Any = None,
        strict: Strict = False,
        layers: Sequence[nn.Module] = (),
        backward: bool = True,
        look: Look | None = None,
    ) -> tuple[Propagated, Inputs, Watcher, list[Seen]]:
        """Run the pass.

        Args:
            inputs, target, additional_forward_args, strict: As ``attribute`` has them.
            layers (sequence of Module): Further modules whose outputs are seen.
            backward (bool): Whether there is a backward pass.
            look (callable, optional): Gets watcher, scope with a ledger, targets and leaves
                between forward and backward pass, while there is a graph.

        Returns:
            tuple: what was propagated, what to, the watcher with its branches, and what was seen
            at each of ``layers``.

        Raises:
            UnsupportedModelError: no branch of a residual stream was found.
            InputError: one of ``layers`` did not run, or ran twice; examples cannot be told from
                tokens.
            Exception: As ``attribute``.
        """
        prepared = inputs_of(inputs)
        original = prepared.leaves[0].original
        self._watcher = Watcher(len(original) if original.dim() > 1 else 1, self._neurons)
        self._watcher.masks, self._look = self._masks, look
        seen: list[list[Seen]] = [[] for _ in layers]
        self._layers = seen
        try:
            with guard(), Hooks() as hooks:
                for calls, layer in zip(seen, layers, strict=True):
                    hooks.after(layer, _seeing(calls))
                result, prepared = self._propagate(
                    self.forward_func, inputs, target, additional_forward_args, strict,
                    trace=True, backward=backward, keep_ledger=look is not None,
                )  # fmt: skip
            watcher = self._watcher
        finally:
            self._watcher.forget()
            self._watcher = self._look = None
            self._layers = []
        for calls, layer in zip(seen, layers, strict=True):
            if len(calls) != 1:
                raise InputError(
                    f"The layer {type(layer).__name__} ran {len(calls)} times with a tensor that "
                    "depends on the inputs; a layer that runs once is needed."
                )
        if not watcher.branches and not layers:
            raise UnsupportedModelError(
                "No residual stream was found: no sum x + f(x) of tensors of one shape. The "
                "relevance of layers that you name gives LayerConservativeLRP."
            )
        return result, prepared, watcher, [calls[0] for calls in seen]

    def _before_backward(self, scope: Scope, targets: list[Tensor], leaves: list[Tensor]) -> None:
        assert self._watcher is not None
        streams = [kept.stream for kept in self._watcher.sums]
        check_examples(streams, self._watcher.batch, leaves)
        forget(scope)
        for one in self._seen():  # what has arrived while looking
            one.gradient = None
        if self._look is not None:
            self._look(self._watcher, scope, targets, leaves)

    def _seen(self) -> Iterator[Seen]:
        """Every tensor that keeps its gradient."""
        assert self._watcher is not None
        for branch in self._watcher.branches:
            yield from filter(None, (branch.written, branch.heads, branch.neurons))
        for calls in self._layers:
            yield from calls

    def _pass(self, *args: Any, **more: Any) -> Pass:
        job = super()._pass(*args, **more)
        assert self._watcher is not None
        return self._watcher.watch(job)


class PartMethod(CaptumMethod):
    """The base of the methods that see branches, heads and neurons.

    Args:
        model, rules, bias, epsilon: See :class:`~captum_lrp_tx.ConservativeLRP`.

    Attributes:
        neurons (bool): Whether neurons of MLPs are seen, too.
    """

    neurons = False

    def __init__(
        self,
        model: Callable[..., Any],
        rules: str | Composite = "lrp",
        *,
        bias: Bias = "absorb",
        epsilon: float | None = None,
    ) -> None:
        CaptumMethod.__init__(self, model)
        self.composite = ConservativeLRP(model, rules, bias=bias, epsilon=epsilon).composite
        self._bias = bias

    def _watched(self, masks: Masks | None = None) -> WatchedLRP:
        return WatchedLRP(self.forward_func, self.composite, self._bias, masks, self.neurons)


def _seeing(calls: list[Seen]) -> Callable[..., None]:
    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        with torch._C.DisableTorchFunction():
            x = output[0] if isinstance(output, (tuple, list)) else output
            if isinstance(x, Tensor) and x.requires_grad:
                calls.append(Seen(x.detach()))
                hook_gradient(x, calls[-1], lambda value: value, None)

    return after
