"""Why a model failed on its inputs: ids and shapes that do not fit, said with the way out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_tx.errors import CaptumLRPError, InputError
from captum_lrp_tx.propagation.hygiene.arguments import fresh
from captum_lrp_tx.propagation.model.modules import find_modules
from captum_lrp_tx.propagation.model.outputs import LOAD

#: Rows that tables of positions keep for padding, at most.
_KEPT = 4


@contextlib.contextmanager
def told_misfits(forward: Any, inputs: Any, additional: tuple[Any, ...] = ()) -> Iterator[None]:
    """Around a run of a model: if it fails on inputs that do not fit it, says so.

    Nothing is checked while all goes well.

    Args:
        forward (callable): The model, or a function that runs it.
        inputs (Tensor, tuple of Tensor, or mapping): What it is called with.
        additional (tuple): Positional arguments after the inputs.

    Raises:
        InputError: in place of an error of torch or of the model, whose cause was found.
    """
    try:
        yield
    except (IndexError, RuntimeError, ValueError) as error:
        if isinstance(error, CaptumLRPError):
            raise
        try:
            reason = _misfit(forward, inputs, additional)
        except Exception:  # the search for a reason must not hide the error
            reason = None
        if reason is None:
            raise
        raise InputError(reason) from error


def _misfit(forward: Any, inputs: Any, additional: tuple[Any, ...]) -> str | None:
    """What does not fit, and what to do; None if nothing is found."""
    if isinstance(inputs, Mapping):
        named = {f"inputs[{key!r}]": v for key, v in inputs.items() if _is_data(str(key), v)}
    else:
        given = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
        named = {f"input {i}": v for i, v in enumerate(given) if isinstance(v, Tensor)}
    modules = [module for _, module in find_modules(forward)]
    is_empty = any(p.is_meta for m in modules for p in m.parameters(recurse=False))
    if is_empty and not any("forward" in vars(m) for m in modules):  # nobody loads them in time
        return f"the model has weights on the meta device, without values. {LOAD}"
    for where, value in named.items():
        shape = f"{where} has the shape {tuple(value.shape)}"
        if value.is_floating_point():
            is_image = value.dim() == 3 and _reads_images(modules, value.shape[0])
            if is_image and _runs_as_one_example(forward, inputs, additional, value):
                return (
                    f"{shape}, which is that of one image without a dimension for the examples; "
                    "pass pixels.unsqueeze(0)."
                )
            if _runs_on_ids(forward, inputs, additional, value, modules):
                return (
                    f"{where} holds floats, and the model looks up token ids. Pass whole numbers, "
                    "ids.long(). Noise (NoiseTunnel, sensitivity) makes floats of ids: it goes "
                    "with a function of their embeddings, as lambda e: model(inputs_embeds=e)."
                )
            continue
        if value.dtype not in (torch.int32, torch.int64) and _runs_on_ids(
            forward, inputs, additional, value, modules, torch.Tensor.long
        ):
            return (
                f"{where} holds {value.dtype}, and torch looks up ids of int32 and int64. Pass "
                "ids.long()."
            )
        if value.dim() == 1 and _runs_as_one_example(forward, inputs, additional, value):
            return (
                f"{shape}, and the model takes token ids of the shape (examples, tokens). Pass "
                "ids.unsqueeze(0), or call the tokenizer with return_tensors='pt'."
            )
        found = _of_ids(where, value, modules)
        if found is not None:
            return found
    return None


def _runs_as_one_example(
    forward: Any, inputs: Any, additional: tuple[Any, ...], value: Tensor
) -> bool:
    """Whether the model runs on the input with a dimension for the examples, as it failed without.

    What has the shape of the input, such as its mask, gets the dimension, too.
    """

    def one(x: Any) -> Any:
        is_alike = isinstance(x, Tensor) and x.shape == value.shape
        return x.unsqueeze(0) if is_alike else fresh(x)

    return _runs_with(forward, inputs, additional, one)


def _zeros(x: Tensor) -> Tensor:
    return torch.zeros_like(x, dtype=torch.long)


def _runs_on_ids(
    forward: Any, inputs: Any, additional: tuple[Any, ...], value: Tensor,
    modules: list[nn.Module], ids: Callable[[Tensor], Tensor] = _zeros,
) -> bool:  # fmt: skip
    """Whether the model runs, as it failed before, with whole numbers in place of an input."""
    if not any(isinstance(module, nn.Embedding) for module in modules):
        return False

    def whole(x: Any) -> Any:
        return ids(x) if x is value else fresh(x)

    return _runs_with(forward, inputs, additional, whole)


def _runs_with(
    forward: Any, inputs: Any, additional: tuple[Any, ...], change: Callable[[Any], Any]
) -> bool:
    """Whether the model runs with every input and argument changed."""
    given = inputs if isinstance(inputs, (Mapping, tuple, list)) else (inputs,)
    try:
        with torch.no_grad():
            if isinstance(given, Mapping):
                forward(*map(change, additional), **{str(k): change(x) for k, x in given.items()})
            else:
                forward(*map(change, given), *map(change, additional))
    except Exception:
        return False
    return True


def _reads_images(modules: list[nn.Module], channels: int) -> bool:
    """Whether the model begins with a convolution of images of so many channels."""
    first = next((m for m in modules if isinstance(m, nn.Conv2d)), None)
    return first is not None and first.in_channels == channels


def _is_data(key: str, value: Any) -> bool:
    return isinstance(value, Tensor) and (key.endswith("input_ids") or key == "pixel_values")


def _of_ids(where: str, ids: Tensor, modules: list[nn.Module]) -> str | None:
    size = _vocabulary(modules)
    low, high = int(ids.min()), int(ids.max())
    if size is not None and (low < 0 or high >= size):
        wrong = low if low < 0 else high
        place = tuple((ids == wrong).nonzero()[0].tolist())
        return (
            f"{where} has the token id {wrong} at {place}, but the model knows ids from 0 to "
            f"{size - 1}. Use the model's own tokenizer; where tokens were added to it, call "
            "model.resize_token_embeddings(len(tokenizer)); -100 marks labels, not inputs."
        )
    limit = most_tokens(modules)
    has_table = any(
        isinstance(m, nn.Embedding) and limit is not None and 0 <= m.num_embeddings - limit <= _KEPT
        for m in modules
    )  # without one nothing ends at the limit: rotary positions
    if limit is not None and has_table and ids.dim() == 2 and ids.shape[1] > limit:
        return (
            f"{where} has {ids.shape[1]} tokens, but the model has positions for {limit}. Cut the "
            f"text: tokenizer(text, truncation=True, max_length={limit}, return_tensors='pt'), or "
            "explain it in pieces."
        )
    return None


def _vocabulary(modules: list[nn.Module]) -> int | None:
    """How many ids the table of words has, if it can be told."""
    for module in modules:
        ask = getattr(module, "get_input_embeddings", None)
        if ask is not None:
            with contextlib.suppress(AttributeError, NotImplementedError):
                size = getattr(ask(), "num_embeddings", None)
                if isinstance(size, int):
                    return size
    tables = [m.num_embeddings for m in modules if isinstance(m, nn.Embedding)]
    return max(tables) if len(tables) == 1 else None


def most_tokens(
    modules: Iterable[nn.Module], tokenizer: Any = None, wanted: int | None = None
) -> int | None:
    """The most tokens that a model takes, if there is a limit.

    Args:
        modules (iterable of Module): The model, and what is in it: how many positions there are.
        tokenizer (PreTrainedTokenizerBase, optional): Of the model; may know a limit, too.
        wanted (int, optional): The limit of a user.
    """
    found = [getattr(tokenizer, "model_max_length", None), wanted]
    for module in modules:
        config = getattr(module, "config", None)
        config = getattr(config, "text_config", None) or config
        for name in ("max_position_embeddings", "n_positions"):
            found.append(getattr(config, name, None))
        for name, table in module.named_children():
            if name.endswith("position_embeddings") and isinstance(table, nn.Embedding):
                first = table.padding_idx
                if first is not None:  # its first rows are for padding
                    found.append(table.num_embeddings - first - 1)
    # tokenizers without a limit name a number with thirty digits
    return min((n for n in found if isinstance(n, int) and 0 < n < 10**9), default=None)
