"""Integrated Gradients, GradientShap and Saliency of Captum on token ids.

Captum's gradient methods need float inputs.  Here the rows that the token ids are looked up in are
the inputs: interpolated rows are put in the place of these lookups while the model runs, so that
any model is explained as it is, and masks and positions stay those of the text.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Union

import torch
from captum._utils.common import _format_additional_forward_args
from captum.attr import GradientShap, IntegratedGradients, Saliency
from captum.attr._utils.attribution import GradientAttribution
from captum.log import log_usage
from torch import Tensor

from captum_lrp_tx.attr.captum_method import CaptumMethod
from captum_lrp_tx.attr.class_names import by_number
from captum_lrp_tx.attr.conservative import (
    AttributionInputs,
    TargetType,
    TensorOrTuple,
    formatted,
    left_out,
    select_target,
)
from captum_lrp_tx.attr.embedding_rows import EmbeddingRows
from captum_lrp_tx.attr.mappings import inputs_of
from captum_lrp_tx.attr.misfits import told_misfits
from captum_lrp_tx.attr.padding import warn_of_padding
from captum_lrp_tx.errors import InputError, OutputError, TargetError
from captum_lrp_tx.propagation.model.modules import find_modules
from captum_lrp_tx.propagation.model.outputs import output_tensor

Baseline = Union[int, float, Tensor, None]


@dataclass
class _Prepared:
    """What Captum's class is called with."""

    forward: Callable[..., Tensor]
    values: tuple[Tensor, ...]
    baselines: tuple[Tensor, ...]
    extra: tuple[Any, ...] | None
    is_ids: bool
    is_tuple: bool

    def row(self, number: int) -> _Prepared:
        """The same of one example."""
        count = len(self.values[0])

        def cut(value: Any) -> Any:
            is_own = isinstance(value, Tensor) and value.dim() > 0 and len(value) == count
            return value[number : number + 1] if is_own else value

        values, baselines = (tuple(map(cut, given)) for given in (self.values, self.baselines))
        extra = None if self.extra is None else tuple(map(cut, self.extra))
        return replace(self, values=values, baselines=baselines, extra=extra)

    def portion(self) -> int:
        """How many rows go through the model at once: 4,096 tokens, or 10 float inputs."""
        return max(4096 // self.values[0].shape[1], 1) if self.is_ids else 10

    def formatted(self, attributions: tuple[Tensor, ...]) -> TensorOrTuple:
        """Summed over the embedding dimension for token ids; a tuple if the inputs were one."""
        relevance = attributions[0].detach()
        if self.is_ids:
            relevance = torch.stack([part.detach().sum(-1) for part in attributions]).sum(0)
        return formatted([relevance], self.is_tuple)


class OnTokens(CaptumMethod, GradientAttribution):
    """What the three classes share: from token ids to the rows that they are looked up in."""

    def __init__(self, model: Callable[..., Any], *, baseline: Baseline = None) -> None:
        GradientAttribution.__init__(self, model)
        self._baseline = baseline

    def _prepare(
        self, inputs: AttributionInputs, additional_forward_args: Any, target: TargetType
    ) -> _Prepared:
        """What Captum's class is called with: a function that selects the target itself.

        So targets are what they are for every other class, and errors say what to do.
        """
        used = self._used(inputs, additional_forward_args)
        chosen: Any = by_number(target, find_modules(self.forward_func))
        if isinstance(chosen, Tensor):
            chosen = chosen.tolist() if chosen.numel() > 1 else chosen.item()
        first = used.values[0]
        if isinstance(chosen, list) and len(chosen) != len(first):
            raise TargetError(f"{len(chosen)} targets were given for {len(first)} examples.")

        def forward(*values: Any) -> Tensor:
            *rest, examples = values  # Captum repeats the examples, and these numbers with them
            own = [chosen[i] for i in examples.tolist()] if isinstance(chosen, list) else chosen
            output = used.forward(*rest)
            if output.dim() and len(output) != len(examples):
                raise OutputError(
                    f"The model returned an output of shape {tuple(output.shape)} for "
                    f"{len(examples)} inputs (methods with a baseline run several points of the "
                    "way as one batch); one output for each is needed. Use ConservativeLRP for an "
                    "output of a whole batch."
                )
            selected = select_target(output, own)
            explained = self.forward_func, inputs, additional_forward_args
            warn_of_padding(*explained, output, [own], examples)
            if selected.numel() != len(examples):
                raise TargetError(
                    f"The output has the shape {tuple(output.shape)}, so a target is needed that "
                    f"names one value of each example, not {own!r}."
                )
            return selected.reshape(-1)

        numbers = torch.arange(len(first), device=first.device)
        return replace(used, forward=forward, extra=(*(used.extra or ()), numbers))

    @contextlib.contextmanager
    def _ready(self, inputs: AttributionInputs, additional_forward_args: Any) -> Iterator[None]:
        """Gradients, whatever the caller has switched off, and words for inputs that do not fit."""
        args = _format_additional_forward_args(additional_forward_args) or ()
        told = told_misfits(self.forward_func, inputs, args)
        with torch.inference_mode(False), torch.enable_grad(), told:
            yield

    def _used(self, inputs: AttributionInputs, additional_forward_args: Any) -> _Prepared:
        prepared = inputs_of(inputs)
        if len(prepared.leaves) != 1:
            raise InputError(
                f"{type(self).__name__} takes one input, not {len(prepared.leaves)}; pass the "
                "others in additional_forward_args."
            )
        given = prepared.leaves[0].original
        args = _format_additional_forward_args(additional_forward_args) or ()
        key = prepared.keys[0] if prepared.keys else None
        others = prepared.call_arguments()[1]
        names = [name for name in others if name != key]
        extra = (*args, *(others[name] for name in names))
        model = self.forward_func

        def call(value: Tensor, *more: Any) -> Tensor:
            positional, named = more[: len(args)], dict(zip(names, more[len(args) :], strict=True))
            if key is None:
                return output_tensor(model(value, *positional, **named))
            return output_tensor(model(*positional, **{key: value}, **named))

        if given.is_floating_point():
            base = torch.zeros_like(given)
            if self._baseline is not None:
                base = base + torch.as_tensor(self._baseline).to(given)
            return _Prepared(
                call, (given.detach(),), (base,), extra or None, False, prepared.is_tuple
            )
        recorded, other = EmbeddingRows(given), EmbeddingRows(self._baseline_ids(given))
        with torch.no_grad():
            recorded.run(call, *extra)
            other.run(call, *extra)
        if not recorded.rows:
            raise InputError(
                f"The model did not look up the token ids (shape {tuple(given.shape)}) in an "
                "embedding; pass the embedded tokens as a float input instead."
            )
        rows, baselines = tuple(recorded.rows), tuple(other.rows)
        if [r.shape for r in rows] != [b.shape for b in baselines]:
            raise InputError(
                "The model looks up other things for the baseline than for the token ids, so there "
                "is no path between them; give another baseline=."
            )
        count = len(rows)

        def forward(*values: Any) -> Tensor:
            ids, more = values[count], values[count + 1 :]
            return EmbeddingRows(ids, values[:count]).run(call, *more)

        return _Prepared(forward, rows, baselines, (given, *extra), True, prepared.is_tuple)

    def _baseline_ids(self, ids: Tensor) -> Tensor:
        baseline = self._baseline
        if baseline is None:
            baseline = padding_id(self.forward_func)
        replaced = torch.as_tensor(baseline, device=ids.device)
        if replaced.is_floating_point() or replaced.dtype == torch.bool:
            raise InputError("the baseline of token ids must be a token id or a tensor of them")
        try:
            return replaced.to(ids.dtype).expand_as(ids).contiguous()
        except RuntimeError as error:
            raise InputError(
                f"the baseline has the shape {tuple(replaced.shape)}, the token ids "
                f"{tuple(ids.shape)}"
            ) from error

    def _delta(self, used: _Prepared, attributions: tuple[Tensor, ...]) -> Tensor:
        """Difference of the outputs minus the sum of relevance, as of the other methods."""
        with torch.no_grad():
            extra = used.extra or ()
            difference = used.forward(*used.values, *extra) - used.forward(*used.baselines, *extra)
        return left_out(difference, attributions)


class FromBaseline(OnTokens):
    """Methods whose relevance adds up to the difference of the outputs for text and baseline."""

    _gives_delta = True

    @property
    def multiplies_by_inputs(self) -> bool:
        """True: relevance is the mean gradient times the way from the baseline."""
        return True

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: AttributionInputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
    ) -> TensorOrTuple | tuple[TensorOrTuple, Tensor]:
        r"""
        Relevance of each token, summed over the embedding dimension.

        Args:
            inputs, target, additional_forward_args: As for ``ConservativeGI.attribute``.
            return_convergence_delta (bool): Also return output minus output of the baseline minus
                sum of relevance, for each example. (Captum's deltas have the opposite sign, and
                that of ``GradientShap`` is for each sample.)

        Returns:
            Tensor, or 2-element tuple of **attributions**, **delta**:
            - **attributions**: ``(batch, tokens)``, or the shape of float inputs; a tuple of one if
              the inputs are a tuple.
            - **delta** (Tensor, shape ``(batch,)``).
        """
        with self._ready(inputs, additional_forward_args):
            used = self._prepare(inputs, additional_forward_args, target)
            attributions = self._attributions(used)
            relevance = used.formatted(attributions)
            if not return_convergence_delta:
                return relevance
            return relevance, self._delta(used, attributions).detach()

    @abstractmethod
    def _attributions(self, used: _Prepared) -> tuple[Tensor, ...]:
        """What Captum's class gives."""


class TokenIntegratedGradients(FromBaseline):
    r"""
    Captum's ``IntegratedGradients`` on token ids, from a baseline of other tokens.

    The path is straight in the space of the token embeddings, as in ``LayerIntegratedGradients``
    at the embedding layer; positions, segments and masks stay as they are. Float inputs go to
    ``IntegratedGradients`` unchanged.

    Source: Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017.

    Args:
        model (nn.Module or callable): Anything that returns a tensor, or something with
            ``.logits``.
        baseline (int, float or Tensor, optional): For token ids a token id, or a tensor of ids in
            the shape of the inputs; the padding token of ``model.config`` or 0 unless given. For
            float inputs a number or a tensor; 0 unless given.
        n_steps (int): Steps along the path.
        internal_batch_size (int, optional): How many steps go through the model at once; so many
            that there are at most 4,096 tokens, or 10 for float inputs, unless given.

    Example::

        >>> from captum_lrp_tx import TokenIntegratedGradients
        >>> explainer = TokenIntegratedGradients(model, baseline=tokenizer.mask_token_id)
        >>> relevance = explainer.attribute(inputs, target=1)  # (batch, tokens)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        baseline: Baseline = None,
        n_steps: int = 50,
        internal_batch_size: int | None = None,
    ) -> None:
        OnTokens.__init__(self, model, baseline=baseline)
        self._n_steps = n_steps
        self._internal_batch_size = internal_batch_size

    def _attributions(self, used: _Prepared) -> tuple[Tensor, ...]:
        size = self._internal_batch_size or used.portion()
        method: Any = IntegratedGradients(used.forward)
        attributions: tuple[Tensor, ...] = method.attribute(
            used.values, baselines=used.baselines, additional_forward_args=used.extra,
            n_steps=self._n_steps,
            internal_batch_size=max(size, len(used.values[0])),
        )  # fmt: skip
        return attributions


class TokenGradientShap(FromBaseline):
    r"""
    Captum's ``GradientShap`` on token ids: gradients at random points between baseline and text.

    Source: Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017.

    Args:
        model (nn.Module or callable): See :class:`TokenIntegratedGradients`.
        baseline (int, float or Tensor, optional): See :class:`TokenIntegratedGradients`.
        seed (int): Of the random points, which are the same for every example, whatever is in the
            batch beside it. The random states of torch and NumPy are left as they were.
        n_samples (int): How many points; relevance scatters a good deal with few. They go through
            the model in portions like the steps of :class:`TokenIntegratedGradients`.
        stdevs (float): Standard deviation of Gaussian noise on the inputs; none by default, as in
            Captum. Padding gets noise, too, so that of a padded text it is another one than alone.

    Example::

        >>> explainer = TokenGradientShap(model, baseline=tokenizer.mask_token_id, seed=1)
        >>> relevance = explainer.attribute(inputs, target=1)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        baseline: Baseline = None,
        seed: int = 0,
        n_samples: int = 50,
        stdevs: float = 0.0,
    ) -> None:
        OnTokens.__init__(self, model, baseline=baseline)
        self._seed = seed
        self._n_samples = n_samples
        self._stdevs = stdevs

    def _attributions(self, used: _Prepared) -> tuple[Tensor, ...]:
        # one by one: of several Captum draws random numbers for all, and of their baselines any
        parts = [self._of_one(used.row(row)) for row in range(len(used.values[0]))]
        return tuple(torch.cat(values) for values in zip(*parts, strict=True))

    def _of_one(self, used: _Prepared) -> tuple[Tensor, ...]:
        method: Any = GradientShap(used.forward)
        sums = [torch.zeros_like(value) for value in used.values]
        portion = used.portion()
        with _seeded(self._seed):
            for start in range(0, self._n_samples, portion):
                count = min(portion, self._n_samples - start)
                means = method.attribute(
                    used.values, used.baselines, n_samples=count, stdevs=self._stdevs,
                    additional_forward_args=used.extra,
                )  # fmt: skip
                sums = [a + mean.detach() * count for a, mean in zip(sums, means, strict=True)]
        return tuple(a / self._n_samples for a in sums)


class TokenSaliency(OnTokens):
    r"""
    Captum's ``Saliency`` on token ids: length (L2 norm) of the gradient at each token's embedding.

    Float inputs go to ``Saliency`` unchanged: absolute gradients.

    Source: Simonyan, Vedaldi and Zisserman, "Deep Inside Convolutional Networks", ICLR workshop
    2014; for words Li et al., "Visualizing and Understanding Neural Models in NLP", NAACL 2016.

    Args:
        model (nn.Module or callable): See :class:`TokenIntegratedGradients`.

    Example::

        >>> relevance = TokenSaliency(model).attribute(inputs, target=1)  # not negative
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        OnTokens.__init__(self, model)

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: AttributionInputs,
        target: TargetType = None,
        additional_forward_args: Any = None,
    ) -> TensorOrTuple:
        r"""
        Length of the gradient at each token.

        Args:
            inputs, target, additional_forward_args: As for ``ConservativeGI.attribute``.

        Returns:
            Tensor: ``(batch, tokens)``, or the shape of float inputs; a tuple of one if the inputs
            are a tuple.
        """
        with self._ready(inputs, additional_forward_args):
            used = self._prepare(inputs, additional_forward_args, target)
            values = tuple(value.requires_grad_() for value in map(torch.clone, used.values))
            gradients: tuple[Tensor, ...] = Saliency(used.forward).attribute(
                values, additional_forward_args=used.extra
            )
            if not used.is_ids:
                return formatted([gradients[0].detach()], used.is_tuple)
            lengths: Tensor = torch.linalg.vector_norm(torch.cat(list(gradients), -1), dim=-1)
            return formatted([lengths.detach()], used.is_tuple)


def padding_id(model: Any) -> int:
    """The padding token of a model's configuration, or 0.

    Args:
        model (nn.Module or callable): With ``.config``, or a function that runs such a module.
    """
    return named_padding(model) or 0


def padding_in_words(model: Any) -> str:
    """:func:`padding_id` of a model, and whether it calls it so."""
    found = named_padding(model)
    return f"token {found} (padding)" if found is not None else "token 0 (no padding is named)"


def named_padding(model: Any) -> int | None:
    """The padding token that a model's configuration names.

    Args:
        model (nn.Module or callable): See :func:`padding_id`.
    """
    modules = [module for _, module in find_modules(model)]
    for module in (model, *modules):
        found = getattr(getattr(module, "config", None), "pad_token_id", None)
        if isinstance(found, int) and found >= 0:
            return found
    return None


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers of torch and NumPy from a seed, with both states restored."""
    import numpy as np

    devices = list(range(torch.cuda.device_count()))
    state: Any = np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)
