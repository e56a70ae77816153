"""One method on all examples, in batches of one shape."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Union

import torch
from torch import Tensor

from captum_lrp_tx.errors import CaptumLRPError, InputError, NonFiniteError
from captum_lrp_tx.methods.registry import METHODS, Method, find_method
from captum_lrp_tx.reporting.results import Explanations, Key
from captum_lrp_tx.reporting.samples import Samples
from captum_lrp_tx.visualization.patch_maps import token_grid

#: A method by name, or a name with a function that makes an attribution from the model.
Chosen = Union[str, tuple[str, Callable[[Any], Any]]]
#: Unless asked for others: quick ones of each kind, and the reference of no information.
DEFAULT_METHODS = ("LRP", "LRP(AH+LN)", "GI", "GAE", "Rollout", "Random")
#: Tokens that go through the model at once.
_TOKENS = 4096
#: What they give does not depend on the class.
_WITHOUT_TARGET = {"Random", "A-Last", "Rollout", "A-Flow"}
#: Their random numbers depend on what else is in the batch.
_ONE_BY_ONE = {"GradientShap"}
_ABOUT = {
    "Random": "normal random numbers: what a method without information gives",
    "A-Last": "attention of the last layer, mean over heads",
    "Rollout": "attention multiplied over layers (Abnar & Zuidema 2020)",
    "A-Flow": "maximum flow through the attention graph (Abnar & Zuidema 2020)",
    "GAE": "attention weighted by its gradient, layer by layer (Chefer et al. 2021a)",
    "GI": "gradient times input",
    "LRP(AH)": "gradient times input, attention patterns constant (Ali et al. 2022)",
    "LRP(LN)": "gradient times input, divisors of norms constant (Ali et al. 2022)",
    "LRP(AH+LN)": "attention patterns and divisors of norms constant (Ali et al. 2022)",
    "LRP": "conservative LRP: AH and LN rules, identity on activations, epsilon on linear layers",
    "AttnLRP": "LRP through the softmax (Achtibat et al. 2024)",
    "Chefer": "Deep-Taylor relevance of attention times its gradient (Chefer et al. 2021b)",
    "IG": "integrated gradients from the baseline, 50 steps (Sundararajan et al. 2017)",
    "GradientShap": "gradients at random points from the baseline (Lundberg & Lee 2017)",
    "Saliency": "length of the gradient (Simonyan et al. 2014)",
}


@dataclass(frozen=True)
class Task:
    """A method with its name.

    Attributes:
        name (str): Of the method.
        method (Method or callable): From the registry, or a function that makes an attribution.
    """

    name: str
    method: Method | Callable[[Any], Any]

    @property
    def uses_target(self) -> bool:
        """Whether the explanation depends on the class."""
        return not (isinstance(self.method, Method) and self.name in _WITHOUT_TARGET)

    @property
    def takes_baseline(self) -> bool:
        """Whether it starts at a baseline."""
        return isinstance(self.method, Method) and "baseline" in self.method.takes


def chosen_tasks(methods: Sequence[Chosen] | str) -> list[Task]:
    """The methods that were asked for, each once.

    Raises:
        InputError: Unknown names, something else than names and pairs, or nothing.
    """
    known = ", ".join(method.name for method in METHODS)
    found: dict[str, Task] = {}
    for item in [methods] if isinstance(methods, str) else methods:
        if isinstance(item, str):
            method = find_method(item)
            found.setdefault(method.name, Task(method.name, method))
        elif isinstance(item, tuple) and len(item) == 2 and callable(item[1]):
            found[str(item[0])] = Task(str(item[0]), item[1])
        else:
            raise InputError(
                f"{item!r} is no method: use a name, or a pair of a name and a function that makes "
                "an attribution from the model"
            )
    if not found:
        raise InputError(f"no method to report; the methods are: {known}")
    return list(found.values())


def explain(
    model: Callable[..., Any],
    task: Task,
    samples: Samples,
    classes: Sequence[Sequence[int]],
    *,
    baseline: int | float | None,
    seed: int,
    batch_size: int,
    advance: Callable[[int], object],
) -> Explanations:
    """Runs one method.

    Args:
        model (nn.Module or callable): Gives ``(examples, classes)``.
        task (Task): The method.
        samples (Samples): The examples.
        classes (sequence of sequences of int): To explain of each example.
        baseline (int or float, optional): Token id, or value of pixels.
        seed (int): Of random methods.
        batch_size (int): Rows that go through the model at once; fewer for long texts.
        advance (callable): Told after each batch how many explanations were made.

    Returns:
        Explanations: Failures are in ``errors``, with their reason.
    """
    relevance: dict[Key, Tensor] = {}
    sums: dict[Key, float] = {}
    deltas: dict[Key, float] = {}
    errors: dict[int, str] = {}
    begun = time.perf_counter()

    def attempt(rows: list[Key]) -> None:
        try:
            values, totals, left = _attribute(model, task, samples, rows, baseline, seed)
        except NonFiniteError as error:
            if len(rows) > 1:  # the others of the batch need not suffer
                for row in rows:
                    attempt([row])
            else:
                errors[rows[0][0]] = _reason(error)
            return
        except Exception as error:
            errors.update((example, _reason(error)) for example, _ in rows)
            return
        for position, (example, explained) in enumerate(rows):
            for one in [explained] if task.uses_target else classes[example]:
                relevance[example, one] = values[position]
                sums[example, one] = totals[position]
                if left is not None:
                    deltas[example, one] = left[position]

    for rows in _batches(task, samples, classes, batch_size):
        attempt(rows)
        advance(len(rows))
    kept = {key: value for key, value in relevance.items() if key[0] not in errors}
    signed = task.method.signed if isinstance(task.method, Method) else None
    if not signed:  # whatever was expected, negative relevance must show
        signed = any(bool((value < 0).any()) for value in kept.values())
    about = _ABOUT.get(task.name, "") if isinstance(task.method, Method) else ""
    seconds = time.perf_counter() - begun
    return Explanations(
        task.name, about, signed, task.uses_target, kept,
        {key: sums[key] for key in kept}, {key: deltas[key] for key in kept if key in deltas},
        errors, seconds=seconds,
    )  # fmt: skip


def count_rows(task: Task, classes: Sequence[Sequence[int]]) -> int:
    """How many explanations a method has to make."""
    return sum(map(len, classes)) if task.uses_target else len(classes)


def portions(samples: Samples, rows: Sequence[Key], batch_size: int) -> Iterator[list[Key]]:
    """Rows of one shape, as many as go through the model at once."""
    if samples.kind == "text" and rows:
        longest = samples.items[rows[0][0]].main.shape[0]
        batch_size = min(batch_size, max(_TOKENS // longest, 1))
    for start in range(0, len(rows), batch_size):
        yield list(rows[start : start + batch_size])


def baseline_of(samples: Samples, rows: Sequence[Key], token: int) -> Tensor:
    """Token ids with every token replaced that is not special: ``(rows, tokens)``."""
    replaced = []
    for example, _ in rows:
        item = samples.items[example]
        kept = torch.tensor(item.special, dtype=torch.bool, device=item.main.device)
        replaced.append(torch.where(kept, item.main, torch.full_like(item.main, token)))
    return torch.stack(replaced)


def _batches(
    task: Task, samples: Samples, classes: Sequence[Sequence[int]], batch_size: int
) -> Iterator[list[Key]]:
    for group in samples.groups():
        if task.uses_target:
            rows = [(example, explained) for example in group for explained in classes[example]]
        else:
            rows = [(example, classes[example][0]) for example in group]
        one_by_one = isinstance(task.method, Method) and task.name in _ONE_BY_ONE
        yield from portions(samples, rows, 1 if one_by_one else batch_size)


def _attribute(
    model: Callable[..., Any],
    task: Task,
    samples: Samples,
    rows: list[Key],
    baseline: int | float | None,
    seed: int,
) -> tuple[list[Tensor], list[float], list[float] | None]:
    inputs = samples.batch([example for example, _ in rows])
    device = samples.items[rows[0][0]].main.device
    target = torch.tensor([explained for _, explained in rows], device=device)
    if isinstance(task.method, Method):
        settings: dict[str, Any] = {"seed": seed, "baseline": baseline}
        if samples.kind == "text" and baseline is not None and task.takes_baseline:
            settings["baseline"] = baseline_of(samples, rows, int(baseline))
        options = {name: settings[name] for name in task.method.takes}
        explainer: Any = task.method.load()(model, **task.method.options, **options)
    else:
        explainer = task.method(model)
    left = None
    if explainer.has_convergence_delta():
        result, delta = explainer.attribute(inputs, target=target, return_convergence_delta=True)
        left = delta.detach().double().reshape(len(rows), -1).sum(1).tolist()
    else:
        result = explainer.attribute(inputs, target=target)
    relevance = result[0] if isinstance(result, tuple) else result
    if not isinstance(relevance, Tensor) or relevance.shape[:1] != (len(rows),):
        shape = tuple(relevance.shape) if isinstance(relevance, Tensor) else type(relevance)
        raise InputError(f"the relevance has the shape {shape} for {len(rows)} examples")
    relevance = relevance.detach().cpu()
    if not bool(torch.isfinite(relevance).all()):
        raise NonFiniteError("the relevance is NaN or infinite")
    totals = relevance.double().reshape(len(rows), -1).sum(1).tolist()
    return [_shaped(row, samples, rows[0][0]) for row in relevance], totals, left


def _shaped(values: Tensor, samples: Samples, example: int) -> Tensor:
    """One number for each token; a map of pixels or patches."""
    shape = samples.items[example].main.shape
    if samples.kind == "text":
        if values.shape != shape:
            raise InputError(
                f"the relevance of an example has the shape {tuple(values.shape)} for "
                f"{shape[0]} tokens"
            )
        return values
    if values.dim() == 1:
        return token_grid(values[None], (shape[-2], shape[-1]))[0]
    return values.sum(0) if values.dim() == 3 else values


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, (CaptumLRPError, NotImplementedError)) and text:
        return text
    if isinstance(error, ImportError):
        return f"not available: {text}"
    return f"{type(error).__name__}: {text}"[:300]
