"""From what a user passes to the leaves that relevance is computed for, and back.

Float tensors are leaves themselves.  For integer token ids the leaves are what is looked up for
them while the model runs (words), and the rows of other tables that are added to it (positions,
segments); the relevance of an id is the sum over everything that belongs to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from captum_lrp_tx.errors import InputError, NonFiniteError
from captum_lrp_tx.propagation.autograd.functions import nonzero
from captum_lrp_tx.propagation.hygiene.arguments import fresh
from captum_lrp_tx.propagation.model.modules import refuse_transforms
from captum_lrp_tx.propagation.state.scope import Scope, next_sequence_number
from captum_lrp_tx.propagation.state.tracing import INTEGERS, WAY_OUT, Traces, by_rows

_FLOAT = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Looking(Protocol):
    """What runs while something is looked up."""

    scope: Scope

    def absorb(self, output: Tensor, constant: Tensor, *sources: Any, name: str) -> None:
        """Book an additive constant."""


@dataclass
class Lookup:
    """What was looked up for ids: ``leaf`` holds it, with a gradient.

    Attributes:
        name (str): Of the table.
        leaf (Tensor): The values, of any shape.
        trace (Tensor): The number of the id that each entry belongs to, 0 for none; the last
            dimension has size 1 if whole rows belong to one id.
        first (int): The number of the first id of the input.
        module (str): Traced module that was running.
    """

    name: str
    leaf: Tensor
    trace: Tensor
    first: int
    module: str

    def relevance(self, grad: Tensor | None, count: int) -> Tensor:
        """Relevance of each of the ``count`` ids of the input: what belongs to it, added up."""
        value = self.leaf.detach()
        if value.dtype in (torch.float16, torch.bfloat16):
            value = value.float()  # the sum over the features, and over the parts
        if grad is None:
            return value.new_zeros(count)
        share = value * grad
        if self.trace.shape != share.shape:
            share = share.sum(-1, keepdim=True)
        places = (self.trace - (self.first - 1)).clamp_(min=0).flatten()
        return value.new_zeros(count + 1).index_add(0, places, share.flatten())[1:]


@dataclass(eq=False)
class Leaf:
    """One attributed input: a float tensor, or token ids with their lookups.

    The ids of an input have the numbers from ``first`` on in the traces of the pass.
    """

    original: Tensor
    tensor: Tensor | None = None
    first: int = 1
    lookups: list[Lookup] = field(default_factory=list)

    @property
    def is_ids(self) -> bool:
        return self.tensor is None

    def tensors(self) -> list[Tensor]:
        return [lookup.leaf for lookup in self.lookups] if self.tensor is None else [self.tensor]

    def part_of(self, trace: Tensor) -> Tensor:
        """The trace with nothing but the ids of this input."""
        stop = self.first + self.original.numel()
        return trace.masked_fill((trace < self.first) | (trace >= stop), 0)

    def owns(self, trace: Tensor) -> bool:
        """Whether any entry comes from an id of this input."""
        return bool(self.part_of(trace).any())


class Inputs:
    """The inputs of one explained pass.

    Args:
        inputs (Tensor, tuple of Tensor, or mapping): Float tensors are attributed to entry by
            entry, integer tensors as token ids.  A mapping goes to the model by keyword.
        keys (sequence of str, optional): Of a mapping, the entries that are attributed to.

    Raises:
        InputError: nothing that can be attributed to, or an unsupported type.
        NonFiniteError: NaN or infinity in a float input.
        UnsupportedModelError: inside ``torch.vmap`` or a transform of ``torch.func``.
    """

    def __init__(self, inputs: Any, keys: Sequence[str] = ()) -> None:
        refuse_transforms()
        self._given = inputs
        self.is_tuple = isinstance(inputs, tuple)
        self.keys: list[str] | None = None
        self._rest: dict[str, Any] = {}
        if isinstance(inputs, Mapping):
            if not keys:
                raise InputError("Say which entries of the mapping are attributed to: keys=[...].")
            self.keys = list(keys)
            tensors = tuple(inputs[k] for k in self.keys)
            self._rest = {str(k): v for k, v in inputs.items() if str(k) not in self.keys}
        elif isinstance(inputs, Tensor):
            tensors = (inputs,)
        elif isinstance(inputs, (tuple, list)) and inputs:
            tensors = tuple(inputs)
        else:
            raise InputError(
                f"inputs must be a tensor, a non-empty tuple of tensors or a mapping, not "
                f"{type(inputs).__name__}. {_way_in(inputs)}"
            )
        self.leaves = [self._leaf(t, i) for i, t in enumerate(tensors)]
        self._ids = [leaf for leaf in self.leaves if leaf.is_ids]
        #: Whether token ids are looked for; asked at every call of torch.
        self.has_ids = bool(self._ids)
        #: Where the entries of integers and of embedded tokens come from.
        self.traces = Traces()
        first = 1
        for leaf in self._ids:
            leaf.first, first = first, first + leaf.original.numel()
        #: Number of the first autograd node that can depend on the inputs.
        self.first_node = 0

    def _leaf(self, tensor: Any, position: int) -> Leaf:
        where = f"inputs[{self.keys[position]!r}]" if self.keys else f"input {position}"
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"{where} is of type {type(tensor).__name__}; a tensor is needed. {_way_in(tensor)}"
            )
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
            kind = "nested" if tensor.is_nested else f"{tensor.layout} on {tensor.device}"
            raise InputError(f"{where} is no dense tensor with values ({kind}); convert it first.")
        if tensor.numel() == 0:
            raise InputError(f"{where} is empty (shape {tuple(tensor.shape)}): nothing to explain.")
        if tensor.dtype in _FLOAT:
            if not bool(torch.isfinite(tensor).all()):
                raise NonFiniteError(f"{where} contains NaN or infinity; clean the input first.")
            with torch.inference_mode(False):
                source = tensor.clone() if tensor.is_inference() else tensor
                return Leaf(tensor, source.detach().requires_grad_())
        if tensor.dtype in INTEGERS:
            return Leaf(tensor)
        raise InputError(
            f"{where} has dtype {tensor.dtype}; relevance is defined for float tensors and for "
            "integer token ids. Pass masks in additional_forward_args (or keep them in the "
            "mapping)."
        )

    def again(self) -> Inputs:
        """The same inputs for another pass, with leaves of their own."""
        return Inputs(self._given, self.keys or ())

    def call_arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments for the forward function."""
        self.first_node = next_sequence_number()
        # the model gets copies: its in-place operations cannot reach the leaves, and ids are told
        # from the same tensor that the function has by other ways
        values = [
            (leaf.original if leaf.tensor is None else leaf.tensor).clone() for leaf in self.leaves
        ]
        for leaf, value in zip(self.leaves, values, strict=True):
            if any(leaf is ids for ids in self._ids):
                self.traces.start(value, leaf.first)
        if self.keys is None:
            return tuple(values), {}
        rest = {key: fresh(value) for key, value in self._rest.items()}
        return (), {**dict(zip(self.keys, values, strict=True)), **rest}

    # ---- token ids ---------------------------------------------------------------------------
    def look_up(self, values: Tensor, trace: Tensor, name: str, context: Looking) -> Tensor:
        """Make leaves of what was looked up for explained ids.

        Args:
            values (Tensor): What was looked up, without a graph.
            trace (Tensor): Which id each entry belongs to, in the shape of ``values``.
            name (str): Of the table.
            context (Looking): What is running; books the entries that belong to no id.

        Returns:
            Tensor: The same values; entries of ids depend on leaves, the others are constants.
        """
        values = values.detach()
        heads = by_rows(trace)
        owners = (
            [leaf for leaf in self._ids if leaf.owns(heads)] if len(self._ids) > 1 else self._ids
        )
        whole, result = bool(heads.all()) and len(owners) == 1, values
        for leaf in owners:
            embedded = values.clone().requires_grad_()
            mine = heads if len(self._ids) == 1 else leaf.part_of(heads)
            leaf.lookups.append(Lookup(name, embedded, mine, leaf.first, context.scope.module))
            result = embedded.clone() if whole else torch.where(mine != 0, embedded, result)
        if not whole:
            context.absorb(
                result,
                values.masked_fill(heads != 0, 0.0),
                name=f"{name} (rows of no explained id)",
            )
        self.traces.note_rows(result, trace)
        return result

    def stop_looking_up(self) -> None:
        """In a second run, whose leaves are those of the first, ids are plain arguments."""
        self._ids, self.has_ids = [], False

    def count_lookups(self) -> int:
        """How many embedding lookups have become leaves so far."""
        return sum(len(leaf.lookups) for leaf in self.leaves)

    # ---- results -----------------------------------------------------------------------------
    def check_lookups(self) -> None:
        """Complain if nothing was looked up for an input of token ids.

        Raises:
            InputError: no lookup of the token ids was seen, with what was done to them instead.
        """
        if self.traces.unresolved:
            raise InputError(
                f"Rows were looked up for the distinct token ids that {self.traces.unresolved!r} "
                "found, but not handed out again by its inverse, so what they are worth to each "
                f"token cannot be told. {WAY_OUT}"
            )
        for position, leaf in enumerate(self.leaves):
            if not leaf.is_ids or leaf.lookups:
                continue
            key = repr(self.keys[position]) if self.keys else f"number {position}"
            left = (
                f" They were made Python numbers or arrays by {', '.join(self.traces.left)}, where "
                "they cannot be followed."
                if self.traces.left
                else ""
            )
            raise InputError(
                f"Input {key} holds integers (shape {tuple(leaf.original.shape)}, dtype "
                f"{leaf.original.dtype}), but the model did not look them up in an embedding."
                f"{left} Pass float inputs (pixels, embeddings), use LayerConservativeGI/LRP on "
                "the embedding module, or pass the tensor in additional_forward_args if it needs "
                "no relevance."
            )

    def parts(
        self, leaf: Leaf, grads: list[Tensor | None], zero_inputs: bool
    ) -> list[tuple[str, Tensor]]:
        """Relevance of one input, by what was looked up (one part for float inputs)."""
        if leaf.tensor is not None:
            grad = grads[0]
            x = leaf.tensor.detach()
            if grad is None:
                return [("", torch.zeros_like(x))]
            return [("", ((nonzero(x) if zero_inputs else x) * grad).to(x.dtype))]
        count, shape = leaf.original.numel(), leaf.original.shape
        return [
            (lookup.name, lookup.relevance(grad, count).reshape(shape))
            for lookup, grad in zip(leaf.lookups, grads, strict=True)
        ]


def _way_in(value: Any) -> str:
    """What to do about something that is no tensor."""
    if isinstance(value, str):
        return "Tokenize text first: tokenizer(text, return_tensors='pt', padding=True)."
    if isinstance(value, list) and value and isinstance(value[0], str):
        return "Tokenize texts first: tokenizer(texts, return_tensors='pt', padding=True)."
    if isinstance(value, (int, list)):
        return (
            "Pass a tensor: torch.tensor([ids]) for the ids of one text, or call the tokenizer "
            "with return_tensors='pt', padding=True."
        )
    if hasattr(value, "convert") and hasattr(value, "getpixel"):
        return "Pass pixels: image_processor(images=picture, return_tensors='pt')."
    if hasattr(value, "__array_interface__"):
        if str(value.dtype) == "uint8" and value.ndim > 1:
            return "Pass pixels: image_processor(images=array, return_tensors='pt')."
        as_float = ".float()" if str(value.dtype) == "float64" else ""
        return f"Pass torch.from_numpy(array){as_float}."
    return "Arguments that need no relevance belong into additional_forward_args."
