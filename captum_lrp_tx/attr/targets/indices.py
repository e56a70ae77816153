"""Targets made of indices, and how their values are taken from an output."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, Union

import torch
from captum._utils.common import _select_targets
from torch import Tensor, nn

from captum_lrp_tx.attr.targets.mistakes import hint_of_names, refuse_truth
from captum_lrp_tx.errors import TargetError
from captum_lrp_tx.propagation.model.outputs import output_tensor

_KINDS = (
    "an int; a tuple of ints for outputs of more than two dimensions; a list or integer tensor "
    "with one index for each example; or a target of captum_lrp_tx.attr.targets, or a list of these"
)


class Target(ABC):
    r"""
    A number for each example, computed from the model's output: what is explained.

    Subclass it for other functions of the output.  A gradient is taken through :meth:`select`, so
    relevance adds up to the target only if it is linear in the output.

    Attributes:
        parts (tuple): The targets that it is made of.

    Example::

        >>> class Largest(Target):
        ...     parts = ()
        ...
        ...     def select(self, output):
        ...         return output.amax(-1)
        >>> relevance = ConservativeLRP(model).attribute(ids, target=Largest())
    """

    parts: tuple[TargetType, ...] = ()

    @abstractmethod
    def select(self, output: Tensor) -> Tensor:
        """The explained value of each example.

        Args:
            output (Tensor): The model's output, shape ``(batch, ...)``.

        Returns:
            Tensor: shape ``(batch,)``, differentiable in ``output``.

        Raises:
            TargetError: the target does not fit the output.
        """


TargetType = Union[
    None,
    str,
    int,
    tuple[int, ...],
    Tensor,
    list[tuple[int, ...]],
    list[int],
    Target,
    Sequence[Target],
]


class Contrast(Target):
    r"""
    Why ``a`` rather than ``b``: output a minus output b.

    What speaks for both cancels; what is left tells the two apart.  As the log-softmax shifts all
    logits of a position alike, this is also the logarithm of the ratio of their probabilities.

    Source: Gu, Yang and Tresp, "Understanding Individual Decisions of CNNs via Contrastive
    Backpropagation", ACCV 2018; for language models Yin and Neubig, "Interpreting Language Models
    with Contrastive Explanations", EMNLP 2022.

    Args:
        a, b (int, tuple, Tensor, list or Target): Targets, of any of Captum's kinds or of this
            module's. Inside :class:`captum.attr.NoiseTunnel` and Captum's metrics, which repeat
            examples, write ``[Contrast(a, b) for a, b in zip(...)]`` instead of a Contrast that
            holds one index for each example.

    Raises:
        TargetError: something that is no target.

    Example::

        >>> from captum_lrp_tx import ConservativeLRP
        >>> from captum_lrp_tx.attr.targets import Contrast
        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> inputs = tokenizer("a charming and funny film", return_tensors="pt")
        >>> relevance = ConservativeLRP(model).attribute(inputs, target=Contrast(1, 0))
    """

    def __init__(self, a: TargetType, b: TargetType) -> None:
        self.parts = (_checked(a), _checked(b))

    def __repr__(self) -> str:
        return f"Contrast({self.parts[0]!r}, {self.parts[1]!r})"

    def select(self, output: Tensor) -> Tensor:
        a, b = self.parts
        return _numbers(output, a) - _numbers(output, b)


class LogProbability(Target):
    r"""
    Logarithm of the softmax probability of an index.

    Its gradient is that of the logit :math:`z_t` minus the mean logit
    :math:`\sum_k p_k z_k`, so this difference is what relevance adds up to under rules that
    conserve.  It is the log-probability plus the entropy H(p) of the distribution in nats:

    .. math:: \log p_t = z_t - \mathrm{logsumexp}(z) = \Big(z_t - \sum_k p_k z_k\Big) - H(p)

    The convergence delta is thus what biases absorb minus H(p).  Where the model is sure, all of
    this goes to zero; the logit (the index itself) and :class:`Contrast` do not.

    Args:
        target (int, tuple, Tensor or list): An index of one of Captum's kinds.
        dim (int): The dimension of the output that the probabilities sum to one over.

    Raises:
        TargetError: something that is no index. (Put ``LogProbability`` inside ``Sum`` or
            ``Contrast``, not around them.)

    Example::

        >>> target = LogProbability((5, 17))  # token 17 after position 5 of a language model
        >>> relevance, delta = ConservativeLRP(model, bias="distribute").attribute(
        ...     ids, target=target, return_convergence_delta=True
        ... )  # delta: minus the entropy after position 5
    """

    def __init__(self, target: TargetType, dim: int = -1) -> None:
        index = _checked(target)
        if holds_target(index):
            raise TargetError(
                f"LogProbability takes an index, not {index!r}; put it inside instead, e.g. "
                "Sum(LogProbability(a), LogProbability(b))."
            )
        self.parts = (index,)
        self.dim = dim

    def __repr__(self) -> str:
        dim = "" if self.dim == -1 else f", dim={self.dim}"
        return f"{type(self).__name__}({self.parts[0]!r}{dim})"

    def select(self, output: Tensor) -> Tensor:
        if output.dim() < 2 or not -output.dim() < self.dim < output.dim() or self.dim == 0:
            raise TargetError(
                f"{self!r} needs an output with one score per class in dimension {self.dim}, but "
                f"the output has the shape {tuple(output.shape)}."
            )
        chosen, scores = _numbers(output, self.parts[0]), self._scores(output)
        if scores.shape[1] == 1:
            raise TargetError(
                f"The output of shape {tuple(output.shape)} has a single score, whose softmax is "
                "always 1; explain the score itself with target=0."
            )
        if scores.dtype in (torch.float16, torch.bfloat16):
            chosen, scores = chosen.float(), scores.float()
        return chosen - self._others(chosen, scores)

    def _others(self, chosen: Tensor, scores: Tensor) -> Tensor:
        """Logarithm of the sum of exponentials that the chosen score is set against."""
        return logsumexp(scores)

    def _scores(self, output: Tensor) -> Tensor:
        """The scores beside the chosen one and itself: ``(batch, classes)``."""
        if output.dim() == 2:
            return output
        rows = []
        for i, (index,) in enumerate(indices_of(self.parts[0], len(output))):
            where: list[Any] = [i, *index] if isinstance(index, tuple) else [i, index]
            if len(where) != output.dim():
                raise TargetError(_too_few(self, output))
            where[self.dim % output.dim()] = slice(None)
            rows.append(output[tuple(where)])
        return torch.stack(rows)


def logsumexp(scores: Tensor) -> Tensor:
    """``logsumexp`` over dimension 1, linear in the scores but for constants.

    Its gradient is that of the function: the mean score under the softmax.  Written this way rules
    and the audit see that nothing non-linear is left to the gradient.
    """
    with torch.no_grad():
        probabilities = scores.softmax(1)
        value = scores.logsumexp(1)
    kept = scores.masked_fill(probabilities == 0, 0.0)  # 0 times minus infinity
    mean = (probabilities * kept).sum(1)
    return mean + (value - mean.detach())


class Sum(Target):
    r"""
    Weighted sum of several targets, explained in one pass.

    The log-probability of a whole continuation is the sum over its tokens; the mean of the other
    classes to contrast with is a sum with weights.

    Args:
        *targets (int, tuple, Tensor, list or Target): What to add up.
        weights (float or sequence of float, optional): A factor for each, or for all; 1 unless
            given.

    Raises:
        TargetError: no targets, something that is no target, or weights that do not fit.

    Example::

        >>> from captum_lrp_tx.attr.targets import Contrast, LogProbability, Sum
        >>> others = Sum(0, 1, 3, weights=1 / 3)
        >>> relevance = ConservativeLRP(model).attribute(pixels, target=Contrast(2, others))
        >>> continuation = Sum(LogProbability((4, 17)), LogProbability((5, 3)))
    """

    def __init__(
        self, *targets: TargetType, weights: float | Sequence[float] | None = None
    ) -> None:
        if not targets:
            raise TargetError("Sum needs at least one target, e.g. Sum(0, 2).")
        self.parts = tuple(_checked(target) for target in targets)
        given: Any = 1.0 if weights is None else weights
        if isinstance(given, Real):
            given = [given] * len(targets)
        try:
            self.weights = tuple(float(weight) for weight in given)
        except (TypeError, ValueError) as error:
            raise TargetError(
                f"weights must be a number or one number for each target, not {weights!r}."
            ) from error
        if len(self.weights) != len(targets) or not all(map(math.isfinite, self.weights)):
            raise TargetError(
                f"{len(targets)} targets need as many finite weights, not {weights!r}."
            )

    def __repr__(self) -> str:
        parts = ", ".join(map(repr, self.parts))
        if all(weight == 1 for weight in self.weights):
            return f"Sum({parts})"
        return f"Sum({parts}, weights={list(self.weights)})"

    def select(self, output: Tensor) -> Tensor:
        terms = [w * _numbers(output, t) for w, t in zip(self.weights, self.parts, strict=True)]
        return torch.stack(terms).sum(0)


class TargetOutput(nn.Module):
    r"""
    A model that returns its target: shape ``(batch,)``, so that no ``target=`` is needed.

    For what takes Captum's own target kinds only: ``captum.metrics.infidelity`` and Captum's own
    methods.  All classes of this package take the target itself.

    Args:
        model (nn.Module or callable): As for every class of this package.
        target: One target for all examples.

    Example::

        >>> from captum.metrics import infidelity
        >>> contrast = Contrast(1, 0)
        >>> relevance = ConservativeLRP(model).attribute(pixels, target=contrast)
        >>> infidelity(TargetOutput(model, contrast), perturb, pixels, relevance)
    """

    def __init__(self, model: Callable[..., Any], target: TargetType) -> None:
        super().__init__()
        self.model = model
        self.target = target

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The target of each example, from the model's output."""
        return select_target(output_tensor(self.model(*args, **kwargs)), self.target)


def select_target(output: Tensor, target: TargetType) -> Tensor:
    """Captum's target selection and this module's targets, with errors that say what to do.

    Args:
        output (Tensor): The model's output, the examples in the first dimension.
        target: See this module.

    Returns:
        Tensor: shape ``(batch,)`` for a target that names one value of each example.

    Raises:
        TargetError: the target is malformed or out of range for this output.

    Example::

        >>> select_target(torch.tensor([[1.0, 3.0], [2.0, 7.0]]), Contrast(1, 0))
        tensor([2., 5.])
    """
    if output.dim() == 0:
        if target is not None:
            raise TargetError("The output is a single number, so target must be None.")
        return output
    if isinstance(target, Target):
        return _of_all(target.select(output), output, target)
    if isinstance(target, list) and holds_target(target):
        if len(target) != len(output):
            raise TargetError(
                f"{len(target)} targets were given for {len(output)} examples; give one for each, "
                "or a single one that is not in a list."
            )
        each = [_numbers(output[i : i + 1], item) for i, item in enumerate(target)]
        return torch.cat(each)
    refuse_truth(target)
    index: Any = target
    try:
        selected: Tensor = _select_targets(output, index)
    except torch.cuda.OutOfMemoryError:  # a RuntimeError that says nothing about the target
        raise
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise TargetError(
            f"target={target!r} does not fit the output of shape {tuple(output.shape)} (first "
            f"dimension: examples): {str(error).rstrip('.')}. Valid targets: {_KINDS}."
            f"{hint_of_names(target)}"
        ) from error
    return selected


def holds_target(target: Any) -> bool:
    """Whether a target is, or is a list that holds, a :class:`Target`: no kind of Captum's."""
    if isinstance(target, list):
        return any(isinstance(item, Target) for item in target)
    return isinstance(target, Target)


def indices_of(target: TargetType, examples: int) -> list[list[Any]]:
    """The indices that a target is made of, for each example.

    Args:
        target: See this module.
        examples (int): Size of the batch.

    Returns:
        list of list: For each example its indices: ints, tuples of ints, or ``None``.

    Raises:
        TargetError: a list or tensor of another length.

    Example::

        >>> indices_of(Contrast((4, 7), [(4, 1), (4, 2)]), 2)
        [[(4, 7), (4, 1)], [(4, 7), (4, 2)]]
    """
    if isinstance(target, Target):
        parts = [indices_of(part, examples) for part in target.parts]
        return [[index for part in parts for index in part[i]] for i in range(examples)]
    if isinstance(target, Tensor):
        target = target.tolist() if target.numel() > 1 else int(target)
    if not isinstance(target, list):
        return [[target] for _ in range(examples)]
    if len(target) != examples:
        raise TargetError(
            f"{target!r} holds {len(target)} indices, but there are {examples} examples."
        )
    return [indices_of(item, 1)[0] for item in target]


def _numbers(output: Tensor, target: TargetType) -> Tensor:
    """The value of a part of a target, one number for each example: shape ``(batch,)``."""
    count = 1
    if isinstance(target, (list, Tensor)):
        count = len(target) if isinstance(target, list) else target.numel()
    if count not in (1, len(output)):
        raise TargetError(
            f"{target!r} is for {count} examples, but the output has {len(output)}. NoiseTunnel "
            "and Captum's metrics repeat examples, and a list among the arguments, but not what a "
            "target holds; write a list of targets: [Contrast(a, b) for a, b in zip(...)]."
        )
    selected = select_target(output, target)
    if selected.numel() != len(output):
        raise TargetError(_too_few(target, output))
    return selected.reshape(len(output))


def _too_few(target: Any, output: Tensor) -> str:
    return (
        f"{target!r} does not name one value for each example of an output of shape "
        f"{tuple(output.shape)}; give a tuple of {output.dim() - 1} indices."
    )


def _of_all(selected: Any, output: Tensor, target: Target) -> Tensor:
    if not isinstance(selected, Tensor) or tuple(selected.shape) != (len(output),):
        shape = tuple(selected.shape) if isinstance(selected, Tensor) else type(selected).__name__
        raise TargetError(
            f"{type(target).__name__}.select must return one number for each of the {len(output)} "
            f"examples, not {shape}."
        )
    return selected


def _checked(target: Any) -> TargetType:
    """A part of a target, with NumPy integers as ints.

    Raises:
        TargetError: something that is no target.
    """
    if isinstance(target, Target):
        return target
    if isinstance(target, Tensor) and target.numel() and target.dim() < 2:
        if not target.is_floating_point() and target.dtype != torch.bool:
            return target
    elif isinstance(target, list) and target:
        items: Any = [item if isinstance(item, Target) else _index(item) for item in target]
        if None not in items:
            kept: TargetType = items
            return kept
    else:
        index = _index(target)
        if index is not None:
            return index
    raise TargetError(f"{target!r} is no target. Valid targets: {_KINDS}.{hint_of_names(target)}")


def _index(value: Any) -> int | tuple[int, ...] | None:
    """An int or a tuple of ints; ``None`` for anything else."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, tuple) and value:
        indices = [_index(item) for item in value]
        ints = tuple(index for index in indices if isinstance(index, int))
        return ints if len(ints) == len(value) else None
    return None
