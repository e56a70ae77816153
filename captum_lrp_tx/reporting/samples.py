"""What a report explains: texts, token ids or images, one by one and in batches of one shape.

Examples of the same length go through the model together, without padding, so that every number
is the one that the example alone would give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Union

import torch
from torch import Tensor

from captum_lrp_tx.attr.conservative import AttributionInputs
from captum_lrp_tx.attr.mappings import inputs_of
from captum_lrp_tx.attr.misfits import most_tokens
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.propagation.model.modules import find_modules
from captum_lrp_tx.runs.subject import device_of
from captum_lrp_tx.visualization.tokens import looks_special
from captum_lrp_tx.visualization.wording import special_ids

Texts = Sequence[Union[str, tuple[str, str]]]
Kind = Literal["text", "image"]


@dataclass(frozen=True, eq=False)
class Sample:
    """One example as the model gets it.

    Attributes:
        main (Tensor): Token ids ``(tokens,)`` or pixels ``(channels, height, width)``.
        others (dict): Its rows of the other arguments of the model.
        text (str): The text, as far as it is known.
        tokens (tuple of str): As the tokenizer names them; their ids if no one does.
        special (tuple of bool): Which of them are special.
    """

    main: Tensor
    others: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    tokens: tuple[str, ...] = ()
    special: tuple[bool, ...] = ()


@dataclass(frozen=True, eq=False)
class Samples:
    """All examples of a report.

    Attributes:
        kind (str): ``"text"`` or ``"image"``.
        items (tuple of Sample): In the order given.
        key (str, optional): Name of the main argument if the model is called with keywords.
        shared (dict): Arguments that are not one for each example.
    """

    kind: Kind
    items: tuple[Sample, ...]
    key: str | None = None
    shared: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    def groups(self) -> list[list[int]]:
        """Numbers of the examples of each shape, shorter ones first."""
        found: dict[tuple[int, ...], list[int]] = {}
        for index, item in enumerate(self.items):
            found.setdefault(tuple(item.main.shape), []).append(index)
        return [found[shape] for shape in sorted(found)]

    def batch(self, rows: Sequence[int]) -> AttributionInputs:
        """What a model and ``attribute`` take for some examples of one shape, which may repeat."""
        main = torch.stack([self.items[row].main for row in rows])
        if self.key is None:
            return main
        first = self.items[rows[0]].others
        others = {n: torch.stack([self.items[row].others[n] for row in rows]) for n in first}
        return {self.key: main, **others, **self.shared}


def read_samples(
    inputs: Texts | AttributionInputs,
    model: Any,
    tokenizer: Any = None,
    tokens: Sequence[Sequence[str]] | None = None,
    special: Sequence[Sequence[bool]] | None = None,
) -> Samples:
    """Takes inputs apart into examples.

    Args:
        inputs: Texts, or pairs of texts, with a ``tokenizer``; what a tokenizer or an image
            processor returns; token ids ``(examples, tokens)``; pixels ``(examples, channels,
            height, width)``.
        model (nn.Module or callable): For its device and its longest input.
        tokenizer (PreTrainedTokenizerBase, optional): For texts, and for the names of token ids.
        tokens (sequence of sequences of str, optional): Names of the tokens of each example.
        special (sequence of sequences of bool, optional): Which of them are special.

    Raises:
        InputError: Inputs of another kind, none at all, or names that do not fit.
    """
    if isinstance(inputs, str):
        raise InputError("inputs is a single text; pass a list of texts")
    if isinstance(inputs, (list, tuple)) and not any(isinstance(x, Tensor) for x in inputs):
        if tokens is not None or special is not None:
            raise InputError("tokens and special are for token ids; for texts pass the tokenizer")
        return _from_texts(list(inputs), model, tokenizer)
    prepared = inputs_of(inputs)
    if len(prepared.leaves) != 1:
        raise InputError(
            f"a report explains one input of the model, not {len(prepared.leaves)}; wrap the model "
            "in a function of one"
        )
    leaf, key = prepared.leaves[0], prepared.keys[0] if prepared.keys else None
    given = leaf.original
    named: dict[str, Any] = {}
    if isinstance(inputs, Mapping):
        named = {str(name): value for name, value in inputs.items() if str(name) != key}
    if leaf.is_ids and given.dim() == 2:
        return _from_ids(given, key, named, tokenizer, tokens, special)
    if not leaf.is_ids and given.dim() == 4:
        if tokens is not None or special is not None:
            raise InputError("tokens and special are for token ids, but the inputs are images")
        count = len(given)
        own = {k: v for k, v in named.items() if _is_own(v, count)}
        items = tuple(
            Sample(given[row].detach(), {name: value[row] for name, value in own.items()})
            for row in range(count)
        )
        shared = {k: v for k, v in named.items() if k not in own}
        return Samples("image", items, key, shared)
    raise InputError(
        f"a report explains texts, token ids (examples, tokens) or images (examples, channels, "
        f"height, width), not {given.dtype} of shape {tuple(given.shape)}"
    )


def _from_texts(texts: list[Any], model: Any, tokenizer: Any) -> Samples:
    if not texts:
        raise InputError("there is no text to explain; give at least one")
    pairs = [isinstance(t, tuple) and len(t) == 2 and all(map(_is_text, t)) for t in texts]
    wrong = [t for t, is_pair in zip(texts, pairs, strict=True) if not (is_pair or _is_text(t))]
    if wrong or any(pairs) != all(pairs):
        raise InputError(
            f"inputs must be texts, or pairs of texts, not {type((wrong or texts)[0]).__name__}"
        )
    if tokenizer is None:
        raise InputError("texts need the model's tokenizer: report(model, texts, tokenizer=...)")
    columns = list(zip(*texts, strict=True)) if pairs[0] else [texts]
    encoded = tokenizer(*map(list, columns))
    names = list(encoded)
    limit = most_tokens([module for _, module in find_modules(model)], tokenizer)
    device = device_of(model)
    hidden = special_ids(tokenizer)
    items = []
    for index, ids in enumerate(encoded["input_ids"]):
        if not len(ids):
            raise InputError(f"text {index} has no token: {texts[index]!r}; leave it out")
        if limit is not None and len(ids) > limit:
            raise InputError(
                f"text {index} has {len(ids)} tokens, but the model takes at most {limit}; shorten "
                "it or leave it out"
            )
        rows = {name: torch.as_tensor(encoded[name][index], device=device) for name in names}
        text = texts[index]
        items.append(
            Sample(
                rows.pop("input_ids"),
                rows,
                text if isinstance(text, str) else " \u2016 ".join(text),
                tuple(map(str, tokenizer.convert_ids_to_tokens(list(ids)))),
                tuple(i in hidden for i in ids),
            )
        )
    return Samples("text", tuple(items), "input_ids")


def _from_ids(
    ids: Tensor,
    key: str | None,
    named: dict[str, Any],
    tokenizer: Any,
    tokens: Sequence[Sequence[str]] | None,
    special: Sequence[Sequence[bool]] | None,
) -> Samples:
    count = len(ids)
    _check_rows("tokens", tokens, count)
    _check_rows("special", special, count)
    mask = named.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        mask = torch.ones_like(ids)
    own = {name: value for name, value in named.items() if _is_own(value, count)}
    hidden = set() if tokenizer is None else special_ids(tokenizer)
    items = []
    for row in range(count):
        real = mask[row] > 0
        if not bool(real.any()):
            raise InputError(f"example {row} is nothing but padding; leave it out")
        kept = ids[row][real]
        others = {
            name: value[row][real] if value.shape[:2] == ids.shape else value[row]
            for name, value in own.items()
        }
        places = real.nonzero()[:, 0].tolist()
        listed = kept.tolist()
        if tokens is not None:
            names = _fitting("tokens", tokens[row], places, ids.shape[1], row)
        elif tokenizer is not None:
            names = tokenizer.convert_ids_to_tokens(listed)
        else:
            names = listed
        names = tuple(map(str, names))
        if special is not None:
            flags = _fitting("special", special[row], places, ids.shape[1], row)
        elif tokenizer is not None:
            flags = [i in hidden for i in listed]
        elif tokens is not None:
            flags = list(map(looks_special, names))
        else:
            flags = [False] * len(names)
        text = "" if tokenizer is None else str(tokenizer.decode(listed, skip_special_tokens=True))
        items.append(Sample(kept, others, text, names, tuple(map(bool, flags))))
    shared = {name: value for name, value in named.items() if name not in own}
    return Samples("text", tuple(items), key, shared)


def _fitting(
    what: str, given: Sequence[Any], places: list[int], width: int, row: int
) -> Sequence[Any]:
    """The entries of the tokens that are no padding, whether or not padding was counted."""
    if len(given) == len(places):
        return given
    if len(given) == width:
        return [given[place] for place in places]
    raise InputError(f"{what}[{row}] has {len(given)} entries for {len(places)} tokens")


def _check_rows(what: str, given: Sequence[Any] | None, count: int) -> None:
    if given is not None and len(given) != count:
        raise InputError(f"{what} has entries for {len(given)} examples, but there are {count}")


def _is_own(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == count


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
