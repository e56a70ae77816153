"""Relevance of texts as records for ``captum.attr.visualization.visualize_text``.

Captum multiplies the relevance of a word, clipped to [-1, 1], by a fixed colour, and inserts the
words into its page as they are.  The records made here are therefore scaled, their words are
escaped, word-pieces are joined and padding is left out.  The fixed colours are green for and red
against, unlike the red and blue of this package's own figures.

Example::

    >>> from captum.attr import visualization
    >>> from captum_lrp_tx.visualization.captum_records import text_records
    >>> from captum_lrp_tx import ConservativeLRP
    >>> from captum_lrp_tx.models import sentiment
    >>> model, tokenizer = sentiment()
    >>> inputs = tokenizer(["a moving film", "a mess"], return_tensors="pt", padding=True)
    >>> relevance = ConservativeLRP(model).attribute(inputs, target=1)
    >>> records = text_records(relevance, inputs, tokenizer, model(**inputs), target=1)
    >>> page = visualization.visualize_text(records)  # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union

import torch
from torch import Tensor

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.packages import needed
from captum_lrp_tx.visualization.tokens import Piece, TokenHeatmap, looks_special
from captum_lrp_tx.visualization.wording import scheme_of, special_ids

Special = Literal["dim", "show", "drop"]
#: Relevance at full colour: of each record, of all of them, or a number.
Scale = Union[float, Literal["record", "example", "all"]]
#: Relevance of no more than this part of the largest logit is a rounding error.
_ROUNDING = 1e-5
_DIMMED = '<span style="color:#9a9a9a">{}</span> '


def text_records(
    relevance: Tensor | Mapping[str, Tensor],
    inputs: Any,
    tokenizer: Any = None,
    outputs: Any = None,
    *,
    target: Any = None,
    labels: Any = None,
    class_names: Mapping[int, str] | Sequence[str] | None = None,
    deltas: Tensor | None = None,
    special: Special = "dim",
    scale: Scale = "record",
    merge: bool = True,
) -> list[Any]:
    """Records of a batch of texts for ``captum.attr.visualization.visualize_text``.

    Args:
        relevance (Tensor or mapping): Of the tokens, ``(batch, tokens)``, or of their embeddings
            ``(batch, tokens, dim)``, which is summed over the last dimension. Or several of these
            by the names of methods: then every text gives one record for each method, one below
            the other, with the method's name behind that of the explained class.
        inputs (mapping, Tensor, or list of lists of str): What the tokenizer returned, the token
            ids ``(batch, tokens)``, or the tokens themselves. Padding is left out: what the
            ``attention_mask`` hides or, without one, the tokenizer's padding token.
        tokenizer (PreTrainedTokenizerBase, optional): Needed for token ids.
        outputs (Tensor or ModelOutput, optional): The model's logits, ``(batch, classes)``, for the
            predicted class and its softmax probability; a single logit is read as that of class 1
            by its sigmoid. They also tell rounding errors, which get no colour (gradient x input
            of models with a norm right behind the embeddings is nothing else).
        target (int, Tensor or list, optional): Explained classes, as passed to ``attribute``; the
            predicted ones unless given. Anything else is shown by its ``repr``.
        labels (Tensor or list, optional): True classes, numbers or names.
        class_names (mapping or sequence, optional): Names of the classes, such as
            ``model.config.id2label``; numbers unless given.
        deltas (Tensor, optional): Convergence deltas, ``(batch,)``.
        special (str): Special tokens such as ``[CLS]``: ``"dim"`` writes them grey and without a
            colour, for they often collect more than any word; ``"show"`` draws them like others;
            ``"drop"`` leaves them out.
        scale (float or str): Relevance at which the colours saturate, the largest of a word that is
            no special token: of each ``"record"`` (the default), of each ``"example"`` (methods in
            the same units can be compared), of ``"all"`` records; or a number, such as the
            ``text_scale`` of what else is to be compared with.
        merge (bool): Join word-pieces and add up their relevance.

    Returns:
        list of VisualizationDataRecord: In the order of the texts. ``attr_score`` is the sum of
        relevance over all tokens but padding, in units of the explained output;
        ``word_attributions`` are scaled to [-1, 1]; ``raw_input_ids`` are readable words,
        escaped for HTML.

    Raises:
        InputError: Shapes that do not fit, or no tokenizer for token ids.
        ImportError: Captum's visualization needs matplotlib, which is not installed.

    Example::

        >>> tokens = [["[CLS]", "a", "charm", "##ing", "film", "[SEP]"]]
        >>> relevance = torch.tensor([[0.9, 0.0, 1.0, 1.0, -0.5, 0.2]])
        >>> (record,) = text_records(relevance, tokens, special="drop")
        >>> record.raw_input_ids, record.word_attributions.tolist()
        (['a', 'charming', 'film'], [0.0, 1.0, -0.25])
    """
    if special not in ("dim", "show", "drop"):
        raise InputError(f"special must be 'dim', 'show' or 'drop', not {special!r}")
    tokens, kept = _tokens(inputs, tokenizer)
    by_method = relevance if isinstance(relevance, Mapping) else {"": relevance}
    by_name = {n: _heatmaps(r, tokens, kept, tokenizer, n) for n, r in by_method.items()}
    maps = [dict(zip(by_name, row, strict=True)) for row in zip(*by_name.values(), strict=True)]
    predicted, probabilities, rounding = _predictions(outputs, len(tokens))
    explained = _each(predicted if target is None else target, len(tokens), "target")
    true = _each(labels, len(tokens), "labels")
    left = _each(deltas, len(tokens), "deltas")
    captum = needed(
        "captum.attr", "Captum's visualization needs matplotlib", "pip install matplotlib pillow"
    )
    records = []
    for i, methods in enumerate(maps):
        for name, heatmap in methods.items():
            full = _full_colour(scale, heatmap, methods, maps, merge)
            if heatmap.scale(merge) <= rounding[i]:
                full = math.inf  # rounding errors get no colour
            words, colours = _words(heatmap.pieces(merge), full, special)
            about = _name(explained[i], class_names)
            records.append(
                captum.visualization.VisualizationDataRecord(
                    torch.tensor(colours),
                    probabilities[i],
                    _name(predicted[i], class_names),
                    _name(true[i], class_names),
                    " · ".join(part for part in (about, html.escape(name)) if part),
                    heatmap.total,
                    words,
                    math.nan if left[i] is None else float(left[i]),
                )
            )
    return records


def text_scale(
    relevance: Tensor, inputs: Any, tokenizer: Any = None, *, merge: bool = True
) -> float:
    """Relevance at full colour of a batch of texts: the largest of a word, special tokens aside.

    Args:
        relevance, inputs, tokenizer, merge: See :func:`text_records`.

    Returns:
        float: Positive. Pass it as ``scale`` to draw other records on the same scale.

    Raises:
        InputError: Shapes that do not fit, or no tokenizer for token ids.

    Example::

        >>> text_scale(torch.tensor([[5.0, 0.5, -2.0]]), [["[CLS]", "good", "film"]])
        2.0
    """
    tokens, kept = _tokens(inputs, tokenizer)
    return max(m.scale(merge) for m in _heatmaps(relevance, tokens, kept, tokenizer))


def _heatmaps(
    relevance: Any,
    tokens: Sequence[Sequence[str]],
    kept: Sequence[Sequence[bool]],
    tokenizer: Any,
    name: str = "",
) -> list[TokenHeatmap]:
    """Each text without its padding."""
    known = set()
    if tokenizer is not None:
        known = {*tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))}
    scheme = scheme_of(tokenizer)
    found = []
    for row, names, real in zip(_values(relevance, tokens, name), tokens, kept, strict=True):
        chosen = [token for token, is_real in zip(names, real, strict=True) if is_real]
        values = [v for v, is_real in zip(row.tolist(), real, strict=False) if is_real]
        special = [token in known or looks_special(token) for token in chosen]
        found.append(TokenHeatmap(chosen, values, special=special, scheme=scheme))
    return found


def _full_colour(
    scale: Scale,
    heatmap: TokenHeatmap,
    methods: Mapping[str, TokenHeatmap],
    maps: Sequence[Mapping[str, TokenHeatmap]],
    merge: bool,
) -> float:
    if scale == "record":
        return heatmap.scale(merge)
    if scale == "example":
        return max(m.scale(merge) for m in methods.values())
    if scale == "all":
        return max(m.scale(merge) for row in maps for m in row.values())
    if isinstance(scale, str) or not scale > 0 or not math.isfinite(scale):
        raise InputError(f"scale must be 'record', 'example', 'all' or positive, not {scale!r}")
    return float(scale)


def _words(pieces: Sequence[Piece], full: float, special: Special) -> tuple[list[str], list[float]]:
    words: list[str] = []
    colours: list[float] = []
    for piece in pieces:
        if piece.special and special == "drop":
            continue
        text = html.escape(piece.text)
        dimmed = piece.special and special == "dim"
        # the space at the end keeps Captum from taking the tag for a token such as <s>
        words.append(_DIMMED.format(text) if dimmed else text)
        colours.append(0.0 if dimmed else max(-1.0, min(1.0, piece.relevance / full)))
    return words, colours


def _tokens(inputs: Any, tokenizer: Any) -> tuple[list[list[str]], list[list[bool]]]:
    """Names of the tokens of each text, and which of them are no padding."""
    mask = None
    if isinstance(inputs, Mapping):
        mask = inputs.get("attention_mask")
        inputs = inputs.get("input_ids")
        if not isinstance(mask, (Tensor, type(None))):  # of a tokenizer that returns lists
            with contextlib.suppress(TypeError, ValueError):
                mask = torch.as_tensor(mask)
    if hasattr(inputs, "__array_interface__") or _are_lists_of_ids(inputs):
        with contextlib.suppress(TypeError, ValueError):  # lists of several lengths
            inputs = torch.as_tensor(inputs)
    if isinstance(inputs, Tensor):
        if inputs.is_floating_point() or inputs.dim() != 2:
            raise InputError(
                f"token ids (batch, tokens) are needed, not {inputs.dtype} of shape "
                f"{tuple(inputs.shape)}"
            )
        if tokenizer is None:
            raise InputError("token ids need a tokenizer to be read; pass it, or the tokens")
        tokens = [tokenizer.convert_ids_to_tokens(row) for row in inputs.tolist()]
    elif _are_lists_of_ids(inputs):
        raise InputError("token ids of several lengths are no batch; give those that were padded")
    elif isinstance(inputs, Sequence) and inputs and not isinstance(inputs, str):
        rows = [inputs] if isinstance(inputs[0], str) else inputs
        tokens = [[str(token) for token in row] for row in rows]
    else:
        raise InputError("inputs must be what a tokenizer returns, token ids, or lists of tokens")
    if isinstance(mask, Tensor) and tuple(mask.shape) == (len(tokens), len(tokens[0])):
        return tokens, (mask > 0).tolist()
    padding = getattr(tokenizer, "pad_token", None)
    return tokens, [_unpadded(row, padding) for row in tokens]


def _are_lists_of_ids(inputs: Any) -> bool:
    rows = inputs if isinstance(inputs, (list, tuple)) else ()
    return bool(rows) and all(isinstance(r, list) and r and isinstance(r[0], int) for r in rows)


def _unpadded(tokens: Sequence[str], padding: str | None) -> list[bool]:
    """Padding is a run at either end; elsewhere the same token (often ``</s>``) is text."""
    real = [i for i, token in enumerate(tokens) if padding is None or token != padding]
    if not real:
        return [True] * len(tokens)
    return [real[0] <= i <= real[-1] for i in range(len(tokens))]


def _values(relevance: Any, tokens: Sequence[Sequence[str]], name: str) -> Tensor:
    of = f" of {name}" if name else ""
    if isinstance(relevance, tuple) and len(relevance) == 1:
        relevance = relevance[0]
    if not isinstance(relevance, Tensor):
        raise InputError(f"the relevance{of} is no tensor but {type(relevance).__name__}")
    values = relevance.detach().cpu().double()
    if values.dim() == 3:
        values = values.sum(-1)
    longest = max(map(len, tokens))
    if values.dim() == 1 and len(tokens) == 1:
        values = values[None]
    if tuple(values.shape) != (len(tokens), longest):
        raise InputError(
            f"the relevance{of} has the shape {tuple(relevance.shape)} for {len(tokens)} texts of "
            f"up to {longest} tokens"
        )
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"the relevance{of} has values that are not finite")
    return values


def _predictions(outputs: Any, count: int) -> tuple[list[Any], list[float], list[float]]:
    """Predicted classes, their probabilities, and what counts as a rounding error of relevance."""
    if outputs is None:
        return [None] * count, [math.nan] * count, [0.0] * count
    logits = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() not in (1, 2) or len(logits) != count:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(outputs).__name__
        raise InputError(f"outputs must be logits of {count} texts, (texts, classes), not {shape}")
    logits = logits.detach().float().cpu().reshape(count, -1)
    rounding = (logits.abs().amax(1) * _ROUNDING).tolist()
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    probability, predicted = logits.softmax(1).max(1)
    return predicted.tolist(), probability.tolist(), rounding


def _each(values: Any, count: int, what: str) -> list[Any]:
    """One value for each text."""
    if hasattr(values, "tolist"):  # of torch, NumPy and pandas
        values = values.tolist()
        while isinstance(values, list) and len(values) == 1:
            values = values[0]
    if isinstance(values, tuple) and what != "target":  # where a tuple is an index
        values = list(values)
    if not isinstance(values, list):
        return [values] * count
    if len(values) != count:
        raise InputError(f"{what} holds {len(values)} entries for {count} texts")
    return values


def _name(value: Any, names: Mapping[int, str] | Sequence[str] | None) -> str:
    if value is None:
        return ""
    if names is not None and isinstance(value, int) and not isinstance(value, bool):
        try:
            return html.escape(str(names[value]))
        except (KeyError, IndexError) as error:
            raise InputError(f"class_names has no entry for class {value}") from error
    return html.escape(str(value))
