"""``ConservativeGI``: gradient x input with conservative attention heads and norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from captum.attr._utils.attribution import GradientAttribution
from captum.log import log_usage
from torch import Tensor

from captum_lrp_tx.attr.captum_rules import print_applied
from captum_lrp_tx.attr.conservative import (
    AttributionInputs,
    Conservative,
    Memory,
    Positions,
    Strict,
    TargetsType,
    TargetType,
    TensorOrTuple,
    check_per_pass,
    formatted,
    forward_of,
    single_parts,
    stacked,
)
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.rules.composite import Composite


class ConservativeGI(Conservative, GradientAttribution):
    r"""
    Gradient x input in which attention patterns and the divisors of norms are constants.

    The rules named by ``rules`` replace the backward pass of the operations they are for;
    everything else is plain gradient x input.  One forward and one backward pass, with the forward
    result unchanged to the last bit.

    Source: Ali et al., "XAI for Transformers: Better Explanations through Conservative
    Propagation", ICML 2022, https://proceedings.mlr.press/v162/ali22a.html

    Args:
        model (nn.Module or callable): The model, or any forward function that runs one. If it
            returns something with ``.logits`` (a Hugging Face ``ModelOutput``), these are
            explained.
        rules (str or Composite): ``"ah+ln"`` (default), ``"ah"``, ``"ln"``, ``"gi"`` (plain
            gradient x input, equal to Captum's ``InputXGradient``), ``"lrp"``, ``"lrp-gated"``,
            ``"lrp-gamma"``, ``"mambalrp"``, ``"attnlrp"``, ``"attnlrp-gamma"``, ``"language"``,
            ``"language-ah"``, or a :class:`~captum_lrp_tx.Composite`.
        memory (str): ``"standard"``, or ``"low"``, which runs blocks twice to save memory.

    Raises:
        RuleError: unknown preset.
        InputError: unknown ``memory``.

    Example::

        >>> from captum_lrp_tx import ConservativeGI
        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> inputs = tokenizer("a charming and funny film", return_tensors="pt")
        >>> relevance = ConservativeGI(model).attribute(inputs, target=1)
        >>> relevance.shape == inputs["input_ids"].shape
        True
    """

    _title = "Conservative Gradient x Input"

    def __init__(
        self,
        model: Callable[..., Any],
        rules: str | Composite = "ah+ln",
        *,
        memory: Memory = "standard",
    ) -> None:
        GradientAttribution.__init__(self, model)
        self._set_rules(rules)
        self._set_memory(memory)

    @property
    def multiplies_by_inputs(self) -> bool:
        """True: relevance is gradient times input."""
        return True

    @overload
    def attribute(
        self,
        inputs: AttributionInputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
        return_convergence_delta: Literal[False] = False,
        verbose: bool = False,
        *,
        strict: Strict = False,
        positions: Literal["sum"] = "sum",
    ) -> TensorOrTuple: ...

    @overload
    def attribute(
        self,
        inputs: AttributionInputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
        *,
        return_convergence_delta: Literal[True],
        verbose: bool = False,
        strict: Strict = False,
        positions: Literal["sum"] = "sum",
    ) -> tuple[TensorOrTuple, Tensor]: ...

    @overload
    def attribute(
        self,
        inputs: AttributionInputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
        return_convergence_delta: Literal[False] = False,
        verbose: bool = False,
        *,
        strict: Strict = False,
        positions: Literal["separate"],
    ) -> dict[str, Tensor]: ...

    @overload
    def attribute(
        self,
        inputs: AttributionInputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
        *,
        return_convergence_delta: Literal[True],
        verbose: bool = False,
        strict: Strict = False,
        positions: Literal["separate"],
    ) -> tuple[dict[str, Tensor], Tensor]: ...

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: AttributionInputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        verbose: bool = False,
        *,
        strict: Strict = False,
        positions: Positions = "sum",
    ) -> (
        TensorOrTuple
        | tuple[TensorOrTuple, Tensor]
        | dict[str, Tensor]
        | tuple[dict[str, Tensor], Tensor]
    ):
        r"""
        Relevance of every input feature, in units of the explained output.

        Args:
            inputs (Tensor, tuple of Tensor, or mapping): Float tensors (pixels, embeddings) get
                relevance entry by entry. Integer tensors are token ids: a token's relevance is the
                sum over everything embedded at its position. Of a mapping (a tokenizer's
                ``BatchEncoding``) the ``input_ids`` and float entries other than masks are
                attributed to, and all of it is passed to the model by keyword. Dimension 0 counts
                the examples.
            target (int, tuple, Tensor, list or Target, optional): Output indices to explain, with
                Captum's semantics: an int (or one-element tensor) for all examples, or the name of
                a class, if the model's ``config.id2label`` has it; a list of these or a 1-D tensor
                with one index for each; for outputs of more than two dimensions a
                tuple, or a list of tuples. None if the model gives one value per example. Or what
                is no index, such as ``Contrast(1, 0)``: see :mod:`captum_lrp_tx.attr.targets`.
            additional_forward_args (Any, optional): Further positional arguments of the forward
                function, a tuple if there are several. They get no relevance.
            return_convergence_delta (bool): Also return output minus sum of relevance.
            verbose (bool): Print which rule acted where, as Captum's ``LRP`` does.
            strict (bool or "papers"): Raise instead of warning if a non-linear operation on the
                path to the inputs has no rule, if no rule acted at all, or if attention sinks
                cannot be told that the rules would tell; with ``"papers"`` also for what is
                governed by a convention that is in none of the papers (linear attention, say).
            positions (str): ``"sum"``, or ``"separate"`` for a dictionary with the relevance of
                each embedding (word, position, segment, ...) of the token ids.

        Returns:
            Tensor or tuple of Tensor of **attributions**, or 2-element tuple of **attributions**,
            **delta**:

            - **attributions**: shape of each input (token ids: ``(batch, tokens)``), dtype of the
              input or, for token ids, of the embeddings. A tensor for a tensor, a tuple for a
              tuple; for a mapping a tensor, or a tuple in the order of its attributed entries;
              with ``positions="separate"`` a dictionary.
            - **delta** (Tensor, shape ``(batch,)``): output minus the sum of relevance; what
              biases and other constants absorbed, if the rules conserve. One number, of shape
              ``(1,)``, where outputs and inputs have different numbers of rows.

        Raises:
            InputError, TargetError, OutputError: arguments that do not fit.
            NonFiniteError: NaN or infinity in inputs, output or relevance.
            UnreachedInputError: the output does not depend on an input.
            UnsupportedModelError: compiled or scripted model.
            UncoveredOperationError: with ``strict``.
            RuleError: a name pattern or ``module.rule`` that cannot be used.

        Example::

            >>> relevance, delta = ConservativeGI(model).attribute(
            ...     inputs, target=1, return_convergence_delta=True
            ... )

            The next token of each text of a padded batch, with a causal language model:

            >>> inputs = tokenizer(texts, padding=True, return_tensors="pt")
            >>> count = inputs["attention_mask"].cumsum(1)
            >>> inputs["position_ids"] = (count - 1).clamp(min=0)  # matters if padded on the left
            >>> last = count.argmax(1)  # position of the last token, whichever side is padded
            >>> tokens = lm(**inputs).logits[range(len(last)), last].argmax(-1)
            >>> target = list(zip(last.tolist(), tokens.tolist()))
            >>> relevance = ConservativeGI(lm).attribute(inputs, target=target)
        """
        if positions not in ("sum", "separate"):
            raise InputError(f"positions must be 'sum' or 'separate', not {positions!r}.")
        # names of the parts, and of modules
        more = {"trace": True} if positions == "separate" or verbose else {}
        result, prepared = self._propagate(
            forward_of(self), inputs, target, additional_forward_args, strict, **more
        )
        if verbose:
            print_applied(result.scope)
        delta = self.compute_convergence_delta(tuple(result.relevances), result.output)
        if positions == "separate":
            parts = single_parts(result, prepared)
            return (parts, delta) if return_convergence_delta else parts
        relevances = formatted(result.relevances, prepared.is_tuple)
        return (relevances, delta) if return_convergence_delta else relevances

    @overload
    def attribute_targets(
        self,
        inputs: AttributionInputs,
        targets: TargetsType,
        additional_forward_args: Any = None,
        return_convergence_delta: Literal[False] = False,
        *,
        strict: Strict = False,
        targets_per_pass: int | None = None,
    ) -> TensorOrTuple: ...

    @overload
    def attribute_targets(
        self,
        inputs: AttributionInputs,
        targets: TargetsType,
        additional_forward_args: Any = None,
        *,
        return_convergence_delta: Literal[True],
        strict: Strict = False,
        targets_per_pass: int | None = None,
    ) -> tuple[TensorOrTuple, Tensor]: ...

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute_targets(
        self,
        inputs: AttributionInputs,
        targets: TargetsType,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        *,
        strict: Strict = False,
        targets_per_pass: int | None = None,
    ) -> TensorOrTuple | tuple[TensorOrTuple, Tensor]:
        r"""
        Relevance for several targets of the same inputs, which share one forward pass.

        The relevance of each target is that of :meth:`attribute` with this target, up to the
        rounding of sums (to the last bit with ``targets_per_pass=1``).

        Args:
            inputs, additional_forward_args, strict: See :meth:`attribute`.
            targets (sequence or str): Targets as :meth:`attribute` takes them: classes, pairs
                ``(position, token)`` of a language model, contrasts; a list with one index for each
                example is *one* target. ``"all"``: every class of an output of shape ``(batch,
                classes)``.
            return_convergence_delta (bool): Also return output minus sum of relevance.
            targets_per_pass (int, optional): How many targets are packed into one backward pass.
                Memory grows with it. Unless given, as many as make it quicker: several for short
                inputs and small outputs, one otherwise.

        Returns:
            Tensor or tuple of Tensor of **attributions**, or 2-element tuple of **attributions**,
            **delta**:

            - **attributions**: as :meth:`attribute` returns them, with the targets in a first
              dimension: ``(targets, batch, ...)``.
            - **delta** (Tensor, shape ``(targets, batch)``, or ``(targets, 1)``).

        Raises:
            TargetError: No targets, or one that does not fit the output.
            Exception: As :meth:`attribute`.

        Example::

            >>> lrp = ConservativeLRP(model)
            >>> lrp.attribute_targets(inputs, targets="all").shape  # (classes, batch, tokens)

            Each token of a text, as a causal language model predicts it:

            >>> targets = [(p, int(ids[0, p + 1])) for p in range(ids.shape[1] - 1)]
            >>> relevance = ConservativeLRP(lm).attribute_targets(ids, targets)
        """
        check_per_pass(targets_per_pass)
        results, prepared = self._propagate_targets(
            forward_of(self), inputs, targets, additional_forward_args, strict, targets_per_pass
        )
        relevances = stacked([result.relevances for result in results], prepared.is_tuple)
        if not return_convergence_delta:
            return relevances
        deltas = [self.compute_convergence_delta(tuple(r.relevances), r.output) for r in results]
        return relevances, torch.stack(deltas)
