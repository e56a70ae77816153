"""``explain``: from a model and an input to an explanation, in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_tx.attr.answer import AnswerLRP
from captum_lrp_tx.attr.attention_maps import AUDIO_INPUTS
from captum_lrp_tx.attr.conservative import Strict
from captum_lrp_tx.attr.conservative_lrp import ConservativeLRP
from captum_lrp_tx.attr.targets.mistakes import refuse_truth
from captum_lrp_tx.audit import Report, explainability
from captum_lrp_tx.errors import CaptumLRPError, InputError, TargetError
from captum_lrp_tx.explaining.explanation import Explanation, Explanations
from captum_lrp_tx.explaining.showing import is_lossy
from captum_lrp_tx.explaining.tasks import ONE_AT_A_TIME, Case, Chosen, Wish, task_of
from captum_lrp_tx.explaining.texts import Reader, is_chat
from captum_lrp_tx.rules.composite import Composite
from captum_lrp_tx.rules.rule import Bias
from captum_lrp_tx.runs.subject import in_training

_MISSING: Any = object()


def explain(
    model: Any,
    processor: Any = None,
    inputs: Any = _MISSING,
    target: Any = None,
    *,
    contrast: bool | int | str = False,
    answer: int | str | None = None,
    hops: int | str | None = None,
    rules: str | Composite | None = None,
    bias: Bias = "absorb",
    epsilon: float | None = None,
    truncation: bool | str = False,
    max_length: int | None = None,
    task: str | None = None,
    strict: Strict = False,
) -> Explanation | Explanations:
    """Explains what a prediction of a transformer rests on.

    Finds out from the model what it is made for, reads the inputs with its tokenizer or image
    processor, explains the predicted output (or the one that is named) with
    :class:`~captum_lrp_tx.ConservativeLRP`, and returns relevance with the words of the text.

    ========================== ========================== =======================================
    model                      inputs                     target
    ========================== ========================== =======================================
    sequence classification,   text, or a pair            class by name or number; ``"all"``
    cross-encoders
    image classification       file, picture, array,      class by name or number; ``"all"``
                               tensor
    object detection           file, picture, array,      class by name, query by number,
                               tensor                     ``(query, class)``, ``"all"``
    semantic segmentation      file, picture, array,      class, ``(class, region)``,
                               tensor                     ``(class, row, column)``, ``"all"``
    audio classification       samples                    class by name or number; ``"all"``
    questions about images     ``(text, image)``          class by name or number; ``"all"``
    embeddings of text and     ``(text, image)``          none: the cosine of their embeddings
    image (CLIP)
    token classification       text                       a word, ``(word, label)``, ``"all"``
    question answering         ``(question, context)``    words of the context, ``"start"``,
                                                          ``"end"``
    multiple choice            ``(text, [choice, ...])``  the choice, or its number
    masked token               text with the mask token   token, as text or id
    next token (decoders)      text, chat messages        token, as text or id; or ``answer=``
    sequence to sequence       text                       first token; or ``answer=``
    without a head             ``(first, second)``        none: the cosine of their embeddings
    ========================== ========================== =======================================

    Args:
        model (nn.Module or pipeline): A model of transformers, any other classifier, or a
            ``pipeline`` of transformers, which stands for model and tokenizer.
        processor (optional): The tokenizer, image processor, feature extractor or processor of
            the model.
        inputs: A text, a tuple of two texts, chat messages, a file name or picture for image
            models, samples of one channel for models of audio (at the rate of the feature
            extractor, or a mapping with ``"array"`` and ``"sampling_rate"``), token ids, or what
            tokenizer or processor return; or many: a list, a pandas Series, a column of a
            ``datasets.Dataset``, a batch of tensors.
        target (str, int, tuple or Target, optional): What is explained, see the table; the
            prediction unless given. For many inputs, a list has one target for each.
        contrast (bool, int or str): True asks why the target rather than the runner-up; a name or
            number, why rather than this one.
        answer (int or str, optional): Of a language model: explain each token of an answer, one of
            so many generated tokens, or this text. What an encoder-decoder is forced to begin with
            (``generation_config.forced_bos_token_id``) comes before the first token.
        hops (int or "all", optional): With ``answer``: explain the answer as a whole, or the piece
            of it that ``target`` names, and pass relevance that lies on generated tokens on to the
            prompt, in so many hops, or until it is there. 0 passes nothing on. See
            :class:`~captum_lrp_tx.AnswerLRP`.
        rules (str or Composite, optional): See :class:`~captum_lrp_tx.ConservativeLRP`. Unless
            given ``"language-ah"`` for the next token of a text, in which the first token, on which
            language models park attention, has relevance that is no reason under ``"lrp"``; and
            ``"lrp"`` for all else.
        bias (str): See :class:`~captum_lrp_tx.ConservativeLRP`.
        epsilon (float, optional): See :class:`~captum_lrp_tx.ConservativeLRP`.
        truncation (bool or str): Cut texts that are too long, as tokenizers do it; without it they
            are refused.
        max_length (int, optional): With ``truncation``, how many tokens are kept.
        task (str, optional): What the model does, where its class does not tell: one of the names
            that :attr:`Explanation.task` has, such as ``"next token"``.
        strict (bool or str): See :meth:`captum_lrp_tx.ConservativeLRP.attribute`.

    Returns:
        Explanation or Explanations: One; or a sequence for a list of inputs, for ``target="all"``
        and for ``answer=`` without ``hops`` (also where it has one member), and for a text with
        several masks.

    Raises:
        InputError: If the input does not fit the model.
        TargetError: If there is no such output.
        UnsupportedModelError: If it is not known what the model predicts.
        Exception: As :meth:`captum_lrp_tx.ConservativeLRP.attribute`.

    Example::

        >>> import captum_lrp_tx as lrp
        >>> from captum_lrp_tx.models import sentiment
        >>> model, tokenizer = sentiment()
        >>> explanation = lrp.explain(model, tokenizer, "a charming and funny film")
        >>> explanation.target, explanation.top(1)[0].text
        ('positive', 'charming')
    """
    model, processor, inputs = _unpacked(model, processor, inputs)
    if max_length is not None and (not truncation or max_length < 1):
        raise InputError(
            f"max_length= is how many tokens truncation=True keeps, 1 or more; it was given as "
            f"{max_length!r} with truncation={truncation!r}"
        )

    def explainer(named: str | Composite) -> ConservativeLRP:
        return ConservativeLRP(model, named, bias=bias, epsilon=epsilon)

    explainer("lrp" if rules is None else rules)  # complains before anything is read
    reader = Reader(model, processor, truncation, max_length)
    items, several = _items(inputs, getattr(model, "main_input_name", "") == "pixel_values")
    wishes = _wishes(target, len(items), Wish(None, contrast, answer, hops))
    if isinstance(processor, nn.Module):
        raise InputError("the second argument is a model; write explain(model, tokenizer, text)")
    made: list[Explanation] = []
    are_many = several
    for number, (item, wish) in enumerate(zip(items, wishes, strict=True)):
        try:
            found = task_of(model, item, task)
            named = found.rules if rules is None else rules
            several = several or found.asks_for_many(wish)
            for case in found.cases(item, reader, wish):
                made.append(_explained(case, explainer(named), named, strict))
        except CaptumLRPError as error:
            if are_many:
                error.args = (f"input {number}: {error}", *error.args[1:])
            raise
    return made[0] if len(made) == 1 and not several else Explanations(made)


def case_of(
    model: Any, processor: Any, inputs: Any, target: Any = None, task: str | None = None
) -> Case:
    """What :func:`explain` would explain of one input, without explaining it.

    Args:
        model, processor, inputs, target, task: See :func:`explain`.

    Raises:
        TargetError: If the target stands for many outputs.
    """
    found = task_of(model, inputs, task)
    if found.has_all and isinstance(target, str) and target == "all":
        raise TargetError(ONE_AT_A_TIME)
    return next(iter(found.cases(inputs, Reader(model, processor), Wish(target))))


def _unpacked(model: Any, processor: Any, inputs: Any) -> tuple[Any, Any, Any]:
    """Model, processor and inputs, also where a pipeline stands for the first two."""
    inner = getattr(model, "model", None)
    if isinstance(inner, nn.Module) and not _is_model(model):
        found = _processor_of(model)
        if found is not None:
            if inputs is _MISSING:
                processor, inputs = found, processor
            return inner, found if processor is None else processor, inputs
    if inputs is _MISSING:
        raise InputError("there is nothing to explain: write explain(model, tokenizer, text)")
    if isinstance(model, str):
        raise InputError(
            "explain() takes a loaded model: AutoModelFor....from_pretrained(name); the command "
            f"line loads one: python -m captum_lrp_tx --model {model} TEXT"
        )
    if not callable(model):
        raise InputError(
            f"the model must be an nn.Module or a pipeline, not {type(model).__name__}"
        )
    return model, processor, inputs


def _processor_of(pipeline: Any) -> Any:
    """What a pipeline reads its inputs with: one part, or several under their names."""
    if getattr(pipeline, "processor", None) is not None:
        return pipeline.processor
    names = ("tokenizer", "image_processor", "feature_extractor")
    parts = {n: part for n in names if (part := getattr(pipeline, n, None)) is not None}
    return SimpleNamespace(**parts) if len(parts) > 1 else next(iter(parts.values()), None)


def _is_model(model: Any) -> bool:
    """Whether something is a model itself; a cross-encoder is a module around one."""
    return isinstance(model, nn.Module) and not hasattr(model, "predict")


def _items(inputs: Any, sees: bool = False) -> tuple[list[Any], bool]:
    """The inputs one by one, and whether there can be many; ``sees``: arrays are images.

    A tuple is one input (a pair of texts), as is a list of messages or of numbers.
    """
    if isinstance(inputs, Mapping):
        names = ("input_ids", "pixel_values", *AUDIO_INPUTS)
        ids = next((v for k, v in inputs.items() if k in names), None)
        if isinstance(ids, Tensor) and ids.dim() >= 2 and len(ids) > 1:
            return [_row(inputs, i, len(ids)) for i in range(len(ids))], True
        if isinstance(ids, list) and ids and isinstance(ids[0], list):
            return [{k: v[i] for k, v in inputs.items()} for i in range(len(ids))], len(ids) > 1
        return [inputs], False
    if isinstance(inputs, (bytes, bytearray, memoryview)):
        raise InputError(
            "the input is bytes; decode a text, inputs.decode(), and open a picture, "
            "PIL.Image.open(io.BytesIO(inputs))"
        )
    if type(inputs).__module__.startswith("PIL.") or hasattr(inputs, "__fspath__"):
        return [inputs], False
    if isinstance(inputs, Tensor) or hasattr(inputs, "__array_interface__"):
        return _rows_of_array(inputs, sees)
    if isinstance(inputs, (str, tuple)) or is_chat(inputs) or not isinstance(inputs, Iterable):
        return [inputs], False
    if hasattr(inputs, "column_names"):
        raise InputError(
            f"a data set has several columns ({', '.join(map(str, inputs.column_names))}); give "
            "one of them: explain(model, tokenizer, data['text'])"
        )
    if hasattr(inputs, "columns"):
        raise InputError(
            f"a table has several columns ({', '.join(map(str, inputs.columns))}); give one of "
            "them: explain(model, tokenizer, table['text'])"
        )
    items = list(inputs)
    if not items:
        raise InputError("the list of inputs is empty; give at least one")
    if all(isinstance(item, (int, float)) for item in items):  # ids, or samples
        return [items], False
    return items, True


def _rows_of_array(inputs: Any, sees: bool) -> tuple[list[Any], bool]:
    """Pixels or token ids of many examples, or an array of texts."""
    if getattr(inputs.dtype, "kind", "") in ("O", "U", "T"):
        return [str(text) for text in inputs.tolist()], True
    is_pixels = sees or "int" not in str(inputs.dtype) or inputs.ndim == 4
    if inputs.ndim == (4 if is_pixels else 2) and len(inputs) > 1:
        return [inputs[i : i + 1] for i in range(len(inputs))], True
    return [inputs], False


def _row(inputs: Mapping[str, Any], index: int, count: int) -> dict[str, Any]:
    return {
        str(key): value[index : index + 1]
        if isinstance(value, Tensor) and value.dim() and len(value) == count
        else value
        for key, value in inputs.items()
    }


def _wishes(target: Any, count: int, wish: Wish) -> list[Wish]:
    """What is wanted of each input."""
    if wish.hops is not None and wish.answer is None:
        raise InputError("hops= goes with answer=: how many tokens to generate, or a text")
    if isinstance(target, (list, Tensor)) or hasattr(target, "__array__"):
        targets = target.tolist() if hasattr(target, "tolist") else list(target)
        targets = targets if isinstance(targets, list) else [targets]
        if len(targets) != count:
            raise InputError(
                f"{len(targets)} targets were given for {count} inputs; give one for each"
            )
    else:
        targets = [target] * count
    for one in targets:
        if not isinstance(one, tuple):  # which may hold a mask: the region of an image
            refuse_truth(one)
    return [replace(wish, target=one) for one in targets]


def _explained(
    case: Case, explainer: ConservativeLRP, rules: str | Composite, strict: Strict
) -> Explanation:
    """One pass, in which the target is found as well."""
    chosen = Chosen(case.choose)
    found = _in_hops if case.written is not None else _in_one_pass
    value, relevances, parts, absorbed = found(case, chosen, explainer, strict)
    choice = chosen.choice
    assert choice is not None
    tokens, relevance = case.arrange(relevances, choice)
    if tokens is None:
        parts = {}
    bias = explainer._bias or "absorb"
    pictured = None
    if tokens is not None and case.pixels is not None:
        pictured = _kept(relevances["pixel_values"][0])

    def audit() -> Report:
        return explainability(
            case.forward, case.inputs, choice.target,
            rules=explainer.composite, bias=bias, file=None,
        )  # fmt: skip

    made = Explanation(
        task=case.task,
        explains=choice.explains,
        target=choice.name,
        value=value,
        relevance=_kept(relevance),
        prediction=choice.prediction,
        probability=choice.probability,
        tokenized=tokens,
        image=None if case.pixels is None else case.pixels.detach().float().cpu(),
        image_relevance=pictured,
        audio=None if case.audio is None else case.audio.detach().float().cpu(),
        seconds=case.seconds,
        absorbed=absorbed,
        rules=rules if isinstance(rules, str) else repr(rules),
        bias=bias,
        warnings=case.warnings,
        embeddings={
            name: _kept(part[0]) for name, part in parts.items() if part[0].shape == relevance.shape
        },
        _audit=audit,
    )
    return replace(made, warnings=(*case.warnings, *_worries(made, explainer)))


#: The explained value, relevance by input and by embedding, and what constants took, by name.
_Found = tuple[float, dict[str, Tensor], Mapping[str, Tensor], Mapping[str, float]]


def _in_one_pass(case: Case, chosen: Chosen, explainer: ConservativeLRP, strict: Strict) -> _Found:
    result, prepared = explainer._propagate(
        case.forward, case.inputs, chosen, None, strict, keep_ledger=True
    )
    ledger = result.scope.ledger
    assert ledger is not None
    keys = prepared.keys if prepared.keys is not None else [""]
    parts: Mapping[str, Tensor] = {}
    if "input_ids" in keys and result.parts:
        parts = result.parts[keys.index("input_ids")]
    relevances = dict(zip(keys, result.relevances, strict=True))
    return float(result.output.double().sum()), relevances, parts, ledger.by_name()


def _in_hops(case: Case, chosen: Chosen, explainer: ConservativeLRP, strict: Strict) -> _Found:
    assert case.written is not None
    answer = AnswerLRP(case.forward, explainer.composite, bias=explainer._bias or "absorb")
    found = answer.attribute_hops(
        case.inputs, chosen, start=case.written.start, hops=case.written.hops, strict=strict
    )
    value = float(found.value.double().sum())
    return value, {"input_ids": found.relevance[-1]}, {}, found.absorbed[-1]


def _kept(relevance: Tensor) -> Tensor:
    """On the CPU, in single or double precision."""
    kept = relevance.detach().cpu()
    return kept if kept.dtype == torch.float64 else kept.float()


def _worries(made: Explanation, explainer: ConservativeLRP) -> list[str]:
    """What is odd about the numbers, in plain words."""
    found = []
    model: Any = explainer.model
    if getattr(model, "training", False) and in_training(model) is not None:
        found.append(
            "the model is in training mode, where dropout makes every explanation another one; "
            "call model.eval() first"
        )
    size = sum(float(part.abs().sum()) for part in made.all_relevance())
    if size < 1e-5 * abs(made.value):
        found.append(
            "all relevance is zero up to rounding under these rules (a norm right behind the "
            "embeddings takes it away); use rules='lrp' or 'ah+ln'"
        )
    if is_lossy(made):
        found.append(
            f"relevance is not conserved: {made.unaccounted:+.3g} of {made.value:+.3g} are "
            "unaccounted for; explanation.audit() says where"
        )
    return found
