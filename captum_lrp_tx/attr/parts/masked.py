"""``MaskedLRP``: relevance that passes through chosen heads or neurons only."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Union

import torch
from captum.log import log_usage
from torch import Tensor

from captum_lrp_tx.attr.conservative import (
    AttributionInputs,
    Strict,
    TargetType,
    TensorOrTuple,
    formatted,
)
from captum_lrp_tx.attr.parts.watched_lrp import PartMethod
from captum_lrp_tx.attr.parts.watching import Branch, Masks, OnGradient
from captum_lrp_tx.errors import InputError

#: What passes at a branch: its heads or neurons by number, all of it, or what it leaves as it is.
Passing = Union[Sequence[int], Literal["all", "stream"]]


class MaskedLRP(PartMethod):
    r"""
    Relevance that passes through a chosen set of heads or neurons, down to the inputs.

    Where a branch of the residual stream is named, only the chosen part of it lets relevance
    through: what passes the branch by is cut off unless ``"stream"`` is chosen, also what a branch
    beside it adds (an MLP that reads the same stream as the attention).  So the maps of all heads
    (or neurons) of a branch and of its stream add up to the relevance of the inputs.
    Branches that are not named let everything through; several that are make a path.  Relevance
    that never comes to the residual stream of a branch is not cut: in an encoder-decoder that of
    the encoder's input goes to later layers of the decoder by cross-attention.

    Source: Achtibat et al., "From attribution maps to human-understandable explanations through
    Concept Relevance Propagation", Nature Machine Intelligence 2023.

    Args:
        model, rules, bias, epsilon: See :class:`~captum_lrp_tx.ConservativeLRP`.

    Raises:
        RuleError: unknown preset.

    Example::

        >>> from captum_lrp_tx import MaskedLRP
        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> inputs = tokenizer("a charming and funny film", return_tensors="pt")
        >>> through = {"bert.encoder.layer.1.attention.self": [6]}
        >>> MaskedLRP(model).attribute(inputs, target=1, through=through).shape
        torch.Size([1, 7])
    """

    _title = "Masked LRP"

    neurons = True

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: AttributionInputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
        *,
        through: Mapping[str, Passing],
        strict: Strict = False,
    ) -> TensorOrTuple:
        """
        Relevance of the inputs that passes through what is chosen.

        Args:
            inputs, target, additional_forward_args, strict: See
                :meth:`ConservativeLRP.attribute <captum_lrp_tx.ConservativeLRP.attribute>`.
            through (mapping): From names of branches, as :class:`~captum_lrp_tx.PartRelevance` has
                them in ``module``, to what of them lets relevance through: numbers of heads (of
                neurons, if the branch is an MLP), ``"all"`` that the branch adds, or ``"stream"``,
                what passes it by.

        Returns:
            Tensor or tuple of Tensor: In the shape of the inputs (token ids: ``(batch, tokens)``).

        Raises:
            InputError: no branch of this name, or no head or neuron of this number.
            Exception: As :meth:`PartRelevance.attribute
                <captum_lrp_tx.PartRelevance.attribute>`.

        Example::

            >>> MaskedLRP(llama).attribute(ids, (-1, 5), through={"model.layers.3.mlp": [17, 40]})
        """
        if not through or not isinstance(through, Mapping):
            raise InputError(
                "through must name at least one branch, {name: numbers}; see PartRelevance."
            )
        masks = _Chosen({branch: _passing(branch, chosen) for branch, chosen in through.items()})
        result, prepared, watcher, _ = self._watched(masks).run(
            inputs, target, additional_forward_args, strict
        )
        unknown = set(through) - {branch.module for branch in watcher.branches}
        if unknown:
            names = ", ".join(branch.module for branch in watcher.branches[:8])
            raise InputError(
                f"No branch is called {sorted(unknown)}. There are {names}"
                f"{', ...' if len(watcher.branches) > 8 else ''}; PartRelevance lists them."
            )
        if masks.problems:
            raise InputError(masks.problems[0])
        return formatted(result.relevances, prepared.is_tuple)


def _passing(branch: str, chosen: Any) -> Any:
    """What a user lets through, before anything runs: a word, or whole numbers."""
    if isinstance(chosen, str):
        return chosen  # which words there are is told with the branches
    try:
        return [operator.index(number) for number in chosen]
    except TypeError as error:
        raise InputError(
            f"through[{branch!r}] must be 'all', 'stream' or numbers, [6] say, not {chosen!r}."
        ) from error


@dataclass(eq=False)
class _Chosen(Masks):
    """Masks for the chosen parts."""

    through: dict[str, Passing]
    problems: list[str] = field(default_factory=list)

    def at_stream(self, branch: Branch) -> OnGradient | None:
        """Cut off unless the stream is chosen."""
        chosen = self.through.get(branch.module, "stream")
        return None if isinstance(chosen, str) and chosen == "stream" else torch.zeros_like

    def at_written(self, branch: Branch) -> OnGradient | None:
        """Cut off if the stream is chosen."""
        chosen = self.through.get(branch.module)
        if isinstance(chosen, str) and chosen not in ("all", "stream"):
            self.problems.append(
                f"through[{branch.module!r}] must be 'all', 'stream' or numbers, not {chosen!r}."
            )
        is_told = branch.heads is not None or branch.neurons is not None
        if chosen is not None and not isinstance(chosen, str) and not is_told:
            self.problems.append(
                f"The heads or neurons of {branch.module!r} cannot be told; choose 'all' or "
                "'stream'."
            )
        return torch.zeros_like if isinstance(chosen, str) and chosen == "stream" else None

    def at_heads(self, branch: Branch) -> OnGradient | None:
        """The chosen heads."""
        return self._some(branch, 1)

    def at_neurons(self, branch: Branch) -> OnGradient | None:
        """The chosen neurons."""
        return self._some(branch, -1)

    def _some(self, branch: Branch, axis: int) -> OnGradient | None:
        chosen = self.through.get(branch.module)
        if chosen is None or isinstance(chosen, str):
            return None

        def keep(grad: Tensor) -> Tensor:
            count = grad.shape[axis]
            wrong = [i for i in chosen if not -count <= i < count]
            if wrong:
                self.problems.append(f"{branch.module!r} has {count} parts; no number {wrong[0]}.")
                return grad
            kept = torch.zeros(count, dtype=grad.dtype, device=grad.device)
            kept[list(chosen)] = 1
            return grad * (kept if axis == -1 else kept[:, None, None])

        return keep
