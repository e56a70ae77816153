"""``report``: many examples, several methods, one page."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, Union

import torch
from torch import Tensor
from tqdm import tqdm

from captum_lrp_tx.attr.class_names import (
    class_number,
    is_multi_label,
    labels_of,
    refuse_argmax_of_numbers,
)
from captum_lrp_tx.attr.conservative import AttributionInputs
from captum_lrp_tx.attr.mappings import inputs_of
from captum_lrp_tx.attr.misfits import told_misfits
from captum_lrp_tx.attr.token_gradients import padding_in_words
from captum_lrp_tx.errors import CaptumLRPError, InputError, NonFiniteError, OutputError
from captum_lrp_tx.methods.registry import Chosen, choose_methods
from captum_lrp_tx.methods.running import refuse_if_none
from captum_lrp_tx.propagation.model.modules import find_modules
from captum_lrp_tx.propagation.model.outputs import output_tensor
from captum_lrp_tx.reporting.explaining import DEFAULT_METHODS, count_rows, explain, portions
from captum_lrp_tx.reporting.faithfulness import Faithfulness
from captum_lrp_tx.reporting.results import Example, Explanations, Report, check_labels
from captum_lrp_tx.reporting.samples import Samples, Texts, read_samples
from captum_lrp_tx.visualization.wording import Scheme, guess_scheme, scheme_of

#: Every class is explained up to so many; beyond, the few most probable ones of each example.
ALL_CLASSES = 10
FEW_CLASSES = 3
Classes = Union[None, int, Literal["all"], Sequence[Union[int, str]]]
#: What is reported of a regression with several numbers, of which none is the prediction.
_ONE_NUMBER = (
    "a page shows what the model predicts, so report one of them, report(lambda *args, **kwargs: "
    "model(*args, **kwargs).logits[:, [0]], ..., class_names=[its name]); the numbers are"
)


def report(
    model: Callable[..., Any],
    inputs: Texts | AttributionInputs,
    *,
    tokenizer: Any = None,
    tokens: Sequence[Sequence[str]] | None = None,
    special: Sequence[Sequence[bool]] | None = None,
    scheme: Scheme = "auto",
    labels: Sequence[int | str | None] | Tensor | None = None,
    class_names: Sequence[str] | None = None,
    methods: str | Sequence[Chosen] = DEFAULT_METHODS,
    classes: Classes = None,
    baseline: int | float | None = None,
    faithfulness: bool = True,
    title: str = "",
    facts: Sequence[tuple[str, str]] = (),
    path: str | os.PathLike[str] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    show_progress: bool = False,
) -> Report:
    r"""
    Explains many predictions by several methods, for a page to look through them.

    The page is one HTML file that fetches nothing. It shows the methods below each other for any
    explained class, with numbers on hovering; it filters, sorts and searches the examples, and
    draws how the relevance of each method adds up and how faithful the methods are.

    A method that does not apply to the model gives its reason instead of relevance.

    Args:
        model (nn.Module or callable): A classifier: its output, or the ``.logits`` of it, has the
            shape ``(examples, classes)``.
        inputs (sequence of str, Tensor or mapping): Texts, or pairs of texts, with a
            ``tokenizer``; what a tokenizer returns (padding is dropped from each example); token
            ids ``(examples, tokens)``; or images ``(examples, channels, height, width)``.
        tokenizer (PreTrainedTokenizerBase, optional): The model's; also names token ids.
        tokens (sequence of sequences of str, optional): Names of token ids, for each example.
        special (sequence of sequences of bool, optional): Which tokens are special.
        scheme (str): How tokens mark the borders of words; unless given as the tokenizer says, or
            guessed.
        labels (sequence or Tensor, optional): True classes, by number or name; None where unknown.
        class_names (sequence of str, optional): Those of ``model.config`` unless given.
        methods (str or sequence): See :func:`captum_lrp_tx.methods.choose_methods`. Functions of
            your own are called with batches.
        classes (str, int or sequence, optional): ``"all"``; a number, for so many of the most
            probable classes of each example; or numbers or names of classes. Unless given, all of
            at most 10 classes, or the 3 most probable. The predicted class is always explained,
            and so is the true one but for chosen classes.
        baseline (int or float, optional): Where Integrated Gradients and GradientShap start. For
            texts a token id that replaces every token that is not special; unless given, the
            model's padding token (or 0) at every place, as in
            :class:`~captum_lrp_tx.TokenIntegratedGradients`. For images the value of all pixels; 0
            unless given.
        faithfulness (bool): Also measure activation and pruning curves of each method for the
            predicted class.
        title (str): Headline.
        facts (sequence of (str, str)): What else to say about data and model.
        path (str or PathLike, optional): Write the page there.
        seed (int): Of the methods that are random.
        batch_size (int): Explanations that are made at once; fewer for long texts.
        show_progress (bool): Show a progress bar on standard error if it takes more than a second.

    Returns:
        Report: :meth:`Report.save` writes the page, :meth:`Report.html` returns it;
        ``report["LRP"].relevance[example, class]`` are the numbers.

    Raises:
        InputError: Inputs of another kind, unknown methods, lengths that do not fit, labels that
            are no classes.
        TargetError: There is no class of that number or name; or the model is a regression with
            several numbers, of which none is its prediction.
        OutputError: The model's output has another shape.
        NonFiniteError: NaN or infinity in the inputs or the outputs.
        CaptumLRPError: None of the methods applies to the model.

    Example::

        >>> import captum_lrp_tx
        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> texts = ["a charming and funny film", "a slow and lifeless mess"]
        >>> made = captum_lrp_tx.report(
        ...     model, texts, tokenizer=tokenizer, labels=["positive", "negative"],
        ...     methods=["LRP", "GI"], faithfulness=False,
        ... )
        >>> made.accuracy
        1.0
        >>> made.save("report.html")  # doctest: +SKIP
    """
    chosen = choose_methods(methods)
    _check_number("batch_size", batch_size)
    samples = read_samples(inputs, model, tokenizer, tokens, special)
    outputs = _outputs(model, samples, batch_size)
    if outputs.shape[1] > 1:
        refuse_argmax_of_numbers(find_modules(model), _ONE_NUMBER)
    config = _config(model)
    names = _class_names(class_names, config, outputs.shape[1])
    known = check_labels(labels, names, len(samples))
    probabilities = _probabilities(outputs, model)
    explained = _explained(classes, outputs, known, names)
    start, told = _baseline(baseline, samples, model)
    work = sum(count_rows(method, explained) for method in chosen)
    work += len(chosen) * len(samples) if faithfulness else 0
    found, masking = [], ""
    with tqdm(
        total=work, desc="explaining", unit="map", delay=1, leave=False,
        disable=not (show_progress and sys.stderr.isatty()),
    ) as bar:  # fmt: skip
        for method in chosen:
            bar.set_postfix_str(method.name)
            found.append(explain(
                model, method, samples, explained, baseline=start, seed=seed,
                batch_size=batch_size, advance=bar.update,
            ))  # fmt: skip
        refuse_if_none({made.name: made.error for made in found if made.error}, len(found))
        if faithfulness:
            measure = Faithfulness(model, samples, outputs.argmax(1), tokenizer, start)
            found, masking = _measured(measure, found, bar), measure.masking
    examples = _examples(samples, outputs, probabilities, known, explained)
    if scheme == "auto" and tokenizer is not None and tokens is None:
        scheme = scheme_of(tokenizer)
    if scheme == "auto" and samples.kind == "text":
        # from all texts: a short one may hold no mark at all
        scheme = guess_scheme([token for item in samples.items for token in item.tokens])
    uses_baseline = any("baseline" in method.takes for method in chosen)
    # LABEL_0 is what transformers writes if no one named the classes
    shown = tuple(re.sub(r"^LABEL_(?=\d+$)", "", name) for name in names)
    report = Report(
        samples.kind, examples, tuple(found), shown if class_names is None else tuple(names), title,
        tuple((str(name), str(text)) for name, text in facts), told if uses_baseline else "",
        masking, scheme,
    )  # fmt: skip
    if path is not None:
        report.save(path)
    return report


def _measured(measure: Faithfulness, found: list[Explanations], bar: Any) -> list[Explanations]:
    """The explanations with their curves."""
    bar.set_description_str("measuring")
    made = []
    for explanations in found:
        bar.set_postfix_str(explanations.name)
        made.append(replace(explanations, **measure.curves(explanations, bar.update)))
    return made


def _examples(
    samples: Samples,
    outputs: Tensor,
    probabilities: Tensor | None,
    labels: Sequence[int | None],
    explained: Sequence[tuple[int, ...]],
) -> tuple[Example, ...]:
    """The examples with what the model makes of them."""
    return tuple(
        Example(
            item.text, item.tokens, item.special,
            item.main.cpu() if samples.kind == "image" else None,
            outputs[i], None if probabilities is None else probabilities[i],
            int(outputs[i].argmax()), labels[i], explained[i],
        )
        for i, item in enumerate(samples.items)
    )  # fmt: skip


@torch.no_grad()
def _outputs(model: Callable[..., Any], samples: Samples, batch_size: int) -> Tensor:
    """Of all examples: ``(examples, classes)`` on the CPU."""
    found: dict[int, Tensor] = {}

    def run(numbers: list[int]) -> None:
        positional, named = inputs_of(samples.batch(numbers)).call_arguments()
        try:
            with told_misfits(model, named or positional):
                output = output_tensor(model(*positional, **named))
        except CaptumLRPError:
            raise
        except (RuntimeError, ValueError):  # GPT-like classifiers without a padding token
            if len(numbers) == 1:
                raise
            for number in numbers:
                run([number])
            return
        if output.dim() != 2 or output.shape[0] != len(numbers):
            raise OutputError(
                f"a report needs a model with outputs of shape (examples, classes), not "
                f"{tuple(output.shape)} for {len(numbers)} examples; wrap the model in a "
                "function that selects them"
            )
        found.update(zip(numbers, output.detach().float().cpu(), strict=True))

    for group in samples.groups():
        for rows in portions(samples, [(example, 0) for example in group], batch_size):
            run([example for example, _ in rows])
    outputs = torch.stack([found[example] for example in range(len(samples))])
    wrong = (~torch.isfinite(outputs)).any(1).nonzero()[:, 0].tolist()
    if wrong:
        raise NonFiniteError(
            f"the output of example {wrong[0]} is NaN or infinite; leave the example out"
        )
    return outputs


def _config(model: Any) -> Any:
    for owner in (model, *(module for _, module in find_modules(model)[:1])):
        if hasattr(owner, "config"):
            return owner.config
    return None


def _class_names(given: Sequence[str] | None, config: Any, count: int) -> list[str]:
    if given is not None:
        if isinstance(given, str) or len(given) != count:
            raise InputError(
                f"class_names has {len(given)} entries for {count} classes; give one for each"
            )
        return list(map(str, given))
    return labels_of(config, count)


def _probabilities(outputs: Tensor, model: Any) -> Tensor | None:
    if outputs.shape[1] == 1:
        return None
    return outputs.sigmoid() if is_multi_label(find_modules(model)) else outputs.softmax(1)


def _explained(
    classes: Classes, outputs: Tensor, labels: list[int | None], names: list[str]
) -> list[tuple[int, ...]]:
    """The classes to explain of each example, the predicted one first."""
    count = outputs.shape[1]
    if classes is None:
        classes = "all" if count <= ALL_CLASSES else FEW_CLASSES
    order = outputs.argsort(dim=1, descending=True, stable=True)
    fixed: list[int] | None = None
    if isinstance(classes, str):
        if classes != "all":
            raise InputError(f"classes must be 'all', a number or a list, not {classes!r}")
        classes = count
    if isinstance(classes, int):
        _check_number("classes", classes)
    else:
        fixed = [class_number(item, names) for item in classes]
    found = []
    for row, label in zip(order.tolist(), labels, strict=True):
        if fixed is not None:
            wanted = [row[0], *fixed]
        else:
            assert isinstance(classes, int)
            wanted = [*row[:classes], *([] if label is None else [label])]
        found.append(tuple(dict.fromkeys(wanted)))
    return found


def _baseline(
    baseline: int | float | None, samples: Samples, model: Any
) -> tuple[int | float | None, str]:
    """Where methods with a baseline start, and what that is in words."""
    if samples.kind == "image":
        return baseline, f"{0 if baseline is None else baseline:g} everywhere"
    kept = any(any(item.special) for item in samples.items)
    rest = " in place of every token" + (", special tokens as they are" if kept else "")
    if baseline is not None:
        if isinstance(baseline, bool) or not isinstance(baseline, int) or baseline < 0:
            raise InputError(f"the baseline of texts must be a token id, not {baseline!r}")
        return baseline, f"token {baseline}{rest}"
    # as the classes themselves, and Captum's TokenReferenceBase
    return None, f"{padding_in_words(model)} in place of every token"


def _check_number(what: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{what} must be a positive number, not {value!r}")
