"""Conservative relevance at the inputs or outputs of layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Union

import torch
from captum.attr import LayerGradientXActivation
from captum.log import log_usage
from torch import Tensor, nn

from captum_lrp_tx.attr.captum_rules import assigned_rules, print_applied
from captum_lrp_tx.attr.conservative import (
    AttributionInputs,
    Conservative,
    Strict,
    TargetsType,
    TargetType,
    TensorOrTuple,
    check_per_pass,
    formatted,
    forward_of,
    left_out,
    stacked,
)
from captum_lrp_tx.attr.target_lists import select_targets
from captum_lrp_tx.attr.targets.first_example import FirstExample, counts_examples
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.propagation.engine import Propagated
from captum_lrp_tx.propagation.model.modules import find_modules
from captum_lrp_tx.rules.composite import Composite
from captum_lrp_tx.rules.rule import Bias

Layers = Union[nn.Module, list[nn.Module]]
LayerAttributions = Union[TensorOrTuple, list[TensorOrTuple]]


class LayerConservativeGI(Conservative, LayerGradientXActivation):
    r"""
    :class:`~captum_lrp_tx.ConservativeGI` at the activations of one or more layers.

    As a ``LayerGradientXActivation`` it can be the ``attr_method`` of Captum's
    ``LLMGradientAttribution``, with the layer that gives the embedded tokens (the word embedding
    of a Llama; in models with a position table, such as GPT-2, the module behind their sum).
    Captum then explains the *log-probability* of each generated token.  Its gradient is that of
    the token's logit minus the mean logit, :math:`z_t - \sum_k p_k z_k`, and relevance adds up to
    this, not to the log-probability: the entropy H(p) of the next token is left out.

    .. math:: \log p_t = \sum_i R_i + \text{(absorbed by biases)} - H(p)

    A row of ``token_attr`` holds the tokens of the prompt only; those generated before have the
    rest of the relevance.  For logits, contrasts, or the relevance of all tokens, take
    :class:`~captum_lrp_tx.ConservativeLRP` itself, all generated tokens in one pass::

        position = range(len(prompt) - 1, len(ids) - 1)  # where each token was predicted
        target = [(p, int(ids[p + 1])) for p in position]
        relevance = ConservativeLRP(model).attribute(ids.expand(len(target), -1), target=target)

    Args:
        model (nn.Module or callable): See :class:`~captum_lrp_tx.ConservativeGI`.
        layer (nn.Module or list of nn.Module): Layers of the model, e.g. its embedding.
        rules (str or Composite): See :class:`~captum_lrp_tx.ConservativeGI`.
        device_ids (list of int, optional): Accepted for Captum's signature; replicated models are
            refused.
        multiply_by_inputs (bool): Multiply the modified gradient by the activation (default), or
            return the gradient itself.

    Example::

        >>> from captum_lrp_tx import LayerConservativeGI
        >>> layer = LayerConservativeGI(model, model.bert.embeddings)
        >>> relevance = layer.attribute(ids, target=1, additional_forward_args=(mask,))
        >>> relevance.shape  # (batch, tokens, dim)
    """

    _title = "Layer Conservative Gradient x Input"

    def __init__(
        self,
        model: Callable[..., Any],
        layer: Layers,
        rules: str | Composite = "ah+ln",
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
    ) -> None:
        _check_layers(layer)
        layers: Any = layer
        LayerGradientXActivation.__init__(self, model, layers, device_ids, multiply_by_inputs)
        self._set_rules(rules)

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: AttributionInputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        return_convergence_delta: bool = False,
        verbose: bool = False,
        *,
        grad_kwargs: Mapping[str, Any] | None = None,
        strict: Strict = False,
    ) -> LayerAttributions | tuple[LayerAttributions, Tensor | list[Tensor]]:
        r"""
        Relevance of the activations at the layer's output, or at its input.

        Args:
            inputs, target, additional_forward_args, strict: See :meth:`ConservativeGI.attribute`.
                Integer inputs are passed on as they are.
            attribute_to_layer_input (bool): Attribute to the layer's positional inputs instead of
                its outputs.
            return_convergence_delta (bool): Also return output minus sum of relevance.
            verbose (bool): Print which rule acted where, as Captum's ``LayerLRP``.
            grad_kwargs (mapping, optional): Only ``materialize_grads`` and ``allow_unused``, which
                change nothing: a layer that the output does not use gets zeros.

        Returns:
            Tensor or tuple of Tensor, or a list of these for a list of layers, or 2-element tuple
            of **attributions**, **delta**:

            - **attributions**: in the shape of the activations; a tuple if the layer has several
              floating-point tensors there, in the order in which nested results hold them (an
              LSTM: output, hidden and cell state; a packed sequence: its ``data``). If the layer
              runs several times, the sum over its calls; of calls that build on each other the
              last one, as in Captum, and a ``RepeatedLayerWarning`` says so.
            - **delta** (Tensor of shape ``(batch,)``, or a list with one for each layer). One
              number where outputs and activations have different numbers of rows.

        Raises:
            UnreachedInputError: the layer did not run or does not influence the output; otherwise
                as :meth:`ConservativeGI.attribute`.
            InputError: the layer runs several times side by side, on tensors of other shapes.

        Example::

            >>> layer = LayerConservativeGI(model, [block.attention for block in blocks])
            >>> relevances = layer.attribute(pixels, target=3)
        """
        _check_grad_kwargs(grad_kwargs)
        layers = self._layers()
        result, _ = self._propagate(
            forward_of(self), inputs, target, additional_forward_args, strict,
            layers=layers, at_layer_input=attribute_to_layer_input,
            zeros_if_unreached=bool((grad_kwargs or {}).get("materialize_grads")),
            **({"trace": True} if verbose else {}),
        )  # fmt: skip
        if verbose:
            print_applied(result.scope)
        rows = [self._products(result, index) for index in range(len(layers))]
        relevances = [formatted(products, as_tuple=False) for products in rows]
        deltas: list[Tensor] = []
        if return_convergence_delta:
            by_row = self._by_row(
                rows, result.output, lambda output: select_targets(output, [target])[0],
                inputs, additional_forward_args, attribute_to_layer_input,
            )  # fmt: skip
            deltas = self._deltas(rows, result.output, by_row)
        return self._returned(relevances, deltas, return_convergence_delta)

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute_targets(
        self,
        inputs: AttributionInputs,
        targets: TargetsType,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        return_convergence_delta: bool = False,
        *,
        strict: Strict = False,
        targets_per_pass: int | None = None,
    ) -> LayerAttributions | tuple[LayerAttributions, Tensor | list[Tensor]]:
        r"""
        Relevance at the layers for several targets, which share one forward pass.

        Args:
            inputs, additional_forward_args, attribute_to_layer_input, strict: See
                :meth:`attribute`.
            return_convergence_delta (bool): See :meth:`attribute`.
            targets, targets_per_pass: See :meth:`ConservativeGI.attribute_targets`.

        Returns:
            As :meth:`attribute`, with the targets in a first dimension of every tensor.

        Raises:
            TargetError: No targets, or one that does not fit the output.
            Exception: As :meth:`attribute`.

        Example::

            >>> layer = LayerConservativeGI(model, model.bert.embeddings)
            >>> layer.attribute_targets(ids, "all").shape  # (classes, batch, tokens, dim)
        """
        check_per_pass(targets_per_pass)
        layers = self._layers()
        results, _ = self._propagate_targets(
            forward_of(self), inputs, targets, additional_forward_args, strict, targets_per_pass,
            layers=layers, at_layer_input=attribute_to_layer_input,
        )  # fmt: skip
        rows = [[self._products(result, i) for i in range(len(layers))] for result in results]
        relevances = [stacked(list(column), as_tuple=False) for column in zip(*rows, strict=True)]
        deltas: list[Tensor] = []
        if return_convergence_delta:
            by_row = self._by_row(
                rows[0], results[0].output, lambda output: select_targets(output, targets)[0],
                inputs, additional_forward_args, attribute_to_layer_input,
            )  # fmt: skip
            found = [
                self._deltas(row, result.output, by_row)
                for row, result in zip(rows, results, strict=True)
            ]
            deltas = [torch.stack(column) for column in zip(*found, strict=True)]
        return self._returned(relevances, deltas, return_convergence_delta)

    def _deltas(self, rows: list[list[Tensor]], output: Tensor, by_row: list[bool]) -> list[Tensor]:
        """What each layer leaves out, of each example where its rows are those of the output."""
        return [
            self.compute_convergence_delta(tuple(products), output)
            if is_by_row
            else left_out(output.sum(0, keepdim=True), [p[None] for p in products])
            for products, is_by_row in zip(rows, by_row, strict=True)
        ]

    def _by_row(
        self,
        rows: list[list[Tensor]],
        output: Tensor,
        select: Callable[[Tensor], Tensor],
        inputs: AttributionInputs,
        additional: Any,
        at_layer_input: bool,
    ) -> list[bool]:
        """Whether the first axis at each layer counts the examples.

        Shapes tell unless there are as many examples as tokens; then relevance of the first example
        alone does.
        """
        count = len(output) if output.dim() else 1
        square = [any(p.shape[:2] == (count, count) for p in products) for products in rows]
        if count == 1 or not any(square):
            return [True] * len(rows)
        first, _ = self._propagate(
            forward_of(self), inputs, FirstExample(select), additional, False,
            layers=self._layers(), at_layer_input=at_layer_input, zeros_if_unreached=True,
        )  # fmt: skip
        return [
            not is_square or all(map(counts_examples, rows[i], self._products(first, i)))
            for i, is_square in enumerate(square)
        ]

    def _layers(self) -> list[nn.Module]:
        return [self.layer] if isinstance(self.layer, nn.Module) else list(self.layer)

    def _returned(
        self, relevances: list[TensorOrTuple], deltas: list[Tensor], with_delta: bool
    ) -> LayerAttributions | tuple[LayerAttributions, Tensor | list[Tensor]]:
        """As Captum returns it: of a single layer its own, of a list of layers lists."""
        single = isinstance(self.layer, nn.Module)
        attributions: LayerAttributions = relevances[0] if single else relevances
        if not with_delta:
            return attributions
        return attributions, deltas[0] if single else deltas

    def _products(self, result: Propagated, index: int) -> list[Tensor]:
        """Relevance of each tensor at one layer, summed over the calls that count."""
        calls = [
            self.multiply_gradient_acts(gradients, values)
            for gradients, values in zip(
                result.layer_gradients[index], result.layer_values[index], strict=True
            )
        ]
        if len(calls) == 1:
            return list(calls[0])
        return [torch.stack(parts).sum(0) for parts in zip(*calls, strict=True)]


class LayerConservativeLRP(LayerConservativeGI):
    r"""
    :class:`~captum_lrp_tx.ConservativeLRP` at the activations of one or more layers.

    With Captum's ``LLMGradientAttribution`` relevance does not add up to the log-probability that
    Captum asks for, but to that plus the entropy: see :class:`LayerConservativeGI`.

    Unlike Captum's ``LayerLRP``, :meth:`attribute` takes ``attribute_to_layer_input`` before
    ``return_convergence_delta``; pass both by keyword.

    Args:
        model, rules, bias, epsilon: See :class:`~captum_lrp_tx.ConservativeLRP`.
        layer, device_ids, multiply_by_inputs: See :class:`LayerConservativeGI`.

    Example::

        >>> from captum_lrp_tx import LayerConservativeLRP
        >>> layer = LayerConservativeLRP(model, model.bert.encoder.layer[0])
        >>> relevance, delta = layer.attribute(ids, target=1, return_convergence_delta=True)
    """

    _title = "Layer Conservative LRP"

    _honours_module_rules = True

    def __init__(
        self,
        model: Callable[..., Any],
        layer: Layers,
        rules: str | Composite = "lrp",
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
        *,
        bias: Bias = "absorb",
        epsilon: float | None = None,
    ) -> None:
        LayerConservativeGI.__init__(self, model, layer, rules, device_ids, multiply_by_inputs)
        self.model = model
        self._set_rules(rules, bias, epsilon)
        assigned_rules(find_modules(forward_of(self)))


def _check_layers(layer: Any) -> None:
    layers = layer if isinstance(layer, list) else [layer]
    wrong = [item for item in layers if not isinstance(item, nn.Module)]
    if wrong or not layers:
        raise InputError(
            "layer must be an nn.Module of the model or a non-empty list of them, not "
            f"{type(wrong[0]).__name__ if wrong else 'an empty list'}.{_way_to(wrong)}"
        )


def _way_to(wrong: list[Any]) -> str:
    """What to give in place of something that is no layer."""
    if wrong and isinstance(wrong[0], str):
        return " By its name it is model.get_submodule(name)."
    if wrong and wrong[0] is None:
        return " For TCAV, which sets the layer itself, give any module of the model."
    return ""


def _check_grad_kwargs(grad_kwargs: Mapping[str, Any] | None) -> None:
    refused = set(grad_kwargs or ()) - {"materialize_grads", "allow_unused"}
    if refused:
        raise InputError(
            f"grad_kwargs {sorted(refused)} have no meaning here: a rule is no gradient and cannot "
            "be differentiated again. Leave them out."
        )
