"""From what a user passes to the leaves that relevance is computed for, and back.

Float tensors are leaves themselves.  For integer token ids the leaves are the results of the
embedding lookups indexed by token positions (word, position, segment, ...), found while the model
runs; a token's relevance is summed over them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from captum_lrp_tx.errors import InputError, NonFiniteError
from captum_lrp_tx.propagation.arguments import fresh
from captum_lrp_tx.propagation.functions import nonzero
from captum_lrp_tx.propagation.graph import KEEP_ENTRIES, Node, node_name, parents
from captum_lrp_tx.propagation.modules import refuse_transforms
from captum_lrp_tx.propagation.scope import next_sequence_number

_FLOAT = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass
class Lookup:
    """Embeddings looked up at token positions: ``leaf`` holds them, with a gradient."""

    name: str
    leaf: Tensor
    exact: bool  # indexed by the token ids themselves
    shared: bool  # one row for the whole batch; split where it is added to per-example values
    module: str  # traced module that was running


@dataclass(eq=False)
class Leaf:
    """One attributed input: a float tensor, or token ids with their lookups."""

    original: Tensor
    tensor: Tensor | None = None
    lookups: list[Lookup] = field(default_factory=list)

    @property
    def is_ids(self) -> bool:
        return self.tensor is None

    def tensors(self) -> list[Tensor]:
        return [lookup.leaf for lookup in self.lookups] if self.tensor is None else [self.tensor]


class Inputs:
    """The inputs of one explained pass.

    Args:
        inputs (Tensor, tuple of Tensor, or mapping): Float tensors are attributed to entry by
            entry, integer tensors as token ids.  In a mapping (a tokenizer's ``BatchEncoding``,
            an image processor's ``BatchFeature``) the entries named ``*input_ids`` and the float
            entries that are no masks are attributed to, everything goes to the model by keyword.

    Raises:
        InputError: nothing that can be attributed to, or an unsupported type.
        NonFiniteError: NaN or infinity in a float input.
        UnsupportedModelError: inside ``torch.vmap`` or a transform of ``torch.func``.
    """

    def __init__(self, inputs: Any) -> None:
        refuse_transforms()
        self._given = inputs
        self.is_tuple = isinstance(inputs, tuple)
        self.keys: list[str] | None = None
        self._rest: dict[str, Any] = {}
        if isinstance(inputs, Mapping):
            self.keys = [str(k) for k, v in inputs.items() if _attributed(str(k), v)]
            if not self.keys:
                raise InputError(
                    "The mapping holds nothing to attribute to: no entry named 'input_ids' and no "
                    f"float tensor (keys: {sorted(map(str, inputs))}). Tokenizers must be called "
                    "with return_tensors='pt'."
                )
            tensors = tuple(inputs[k] for k in self.keys)
            self._rest = {str(k): v for k, v in inputs.items() if str(k) not in self.keys}
        elif isinstance(inputs, Tensor):
            tensors = (inputs,)
        elif isinstance(inputs, (tuple, list)) and inputs:
            tensors = tuple(inputs)
        else:
            raise InputError(
                f"inputs must be a tensor, a non-empty tuple of tensors or a mapping, not "
                f"{type(inputs).__name__}. Tokenize text first: tokenizer(text, "
                "return_tensors='pt')."
            )
        self.leaves = [self._leaf(t, i) for i, t in enumerate(tensors)]
        self._ids = [leaf for leaf in self.leaves if leaf.is_ids]
        self._last_ids: Leaf | None = None
        #: Number of the first autograd node that can depend on the inputs.
        self.first_node = 0

    def _leaf(self, tensor: Any, position: int) -> Leaf:
        where = f"inputs[{self.keys[position]!r}]" if self.keys else f"input {position}"
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"{where} is of type {type(tensor).__name__}; a tensor is needed. Arguments that "
                "need no relevance belong into additional_forward_args."
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
        if tensor.dtype in _INTEGER:
            return Leaf(tensor)
        raise InputError(
            f"{where} has dtype {tensor.dtype}; relevance is defined for float tensors and for "
            "integer token ids. Pass masks in additional_forward_args (or keep them in the "
            "mapping)."
        )

    def again(self) -> Inputs:
        """The same inputs for another pass, with leaves of their own."""
        return Inputs(self._given)

    def call_arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments for the forward function."""
        self.first_node = next_sequence_number()
        # the model gets copies, so that its in-place operations cannot reach the leaves
        values = [
            leaf.original if leaf.tensor is None else leaf.tensor.clone() for leaf in self.leaves
        ]
        if self.keys is None:
            return tuple(values), {}
        rest = {key: fresh(value) for key, value in self._rest.items()}
        return (), {**dict(zip(self.keys, values, strict=True)), **rest}

    # ---- token ids ---------------------------------------------------------------------------
    @property
    def has_ids(self) -> bool:
        return bool(self._ids)

    def lookup(self, indices: Any, result: Tensor, name: str, module: str, learned: bool) -> Tensor:
        """Called for every embedding lookup: makes it a leaf if its indices are token positions.

        Tables that are not ``learned`` count only if the token ids themselves are looked up.
        """
        if not isinstance(indices, Tensor) or result.requires_grad or result.dim() < 2:
            return result
        if not result.is_floating_point():
            return result
        leaf = self._owner(indices)
        if leaf is None:
            return result
        ids = leaf.original
        exact = indices is ids or _same(indices, ids)
        if not exact and not learned:
            return result
        batch = ids.shape[0] if ids.dim() > 1 else 1
        shared = batch > 1 and indices.numel() != ids.numel()
        embedded = result.detach().clone().requires_grad_()
        leaf.lookups.append(Lookup(name, embedded, exact, shared, module))
        if exact:
            self._last_ids = leaf
        return embedded.clone()

    def _owner(self, indices: Tensor) -> Leaf | None:
        for leaf in self._ids:
            if indices is leaf.original or _same(indices, leaf.original):
                return leaf
        candidates = [leaf for leaf in self._ids if _aligned(indices, leaf.original)]
        if self._last_ids in candidates:
            return self._last_ids
        return candidates[0] if candidates else None

    def stop_looking_up(self) -> None:
        """Layer mode: the leaves are elsewhere, token ids are plain arguments."""
        self._ids = []

    def count_lookups(self) -> int:
        """How many embedding lookups have become leaves so far."""
        return sum(len(leaf.lookups) for leaf in self.leaves)

    @property
    def has_shared(self) -> bool:
        """Whether a lookup has one row for the whole batch, to be split where it is added."""
        return bool(self._ids) and any(k.shared for leaf in self._ids for k in leaf.lookups)

    def split_shared(self, operand: Any, shape: torch.Size, module: str) -> Tensor | None:
        """If ``operand`` is made of shared lookups only: a per-example leaf in its place."""
        if not isinstance(operand, Tensor) or operand.grad_fn is None or operand.shape == shape:
            return None
        sources = _leaf_variables(operand.grad_fn)
        if not sources:
            return None
        for leaf in self._ids:
            found = [k for k in leaf.lookups if k.shared and any(k.leaf is s for s in sources)]
            if found and len(found) == len(sources):
                split = operand.detach().expand(shape).clone().requires_grad_()
                name = " + ".join(k.name for k in found)
                leaf.lookups.append(Lookup(name, split, exact=False, shared=False, module=module))
                return split
        return None

    # ---- results -----------------------------------------------------------------------------
    def check_lookups(self) -> None:
        """Drop lookups of another width (e.g. relative position biases); complain if none is left.

        Raises:
            InputError: no embedding lookup of the token ids was seen.
        """
        for position, leaf in enumerate(self.leaves):
            if not leaf.is_ids:
                continue
            per_example = [k for k in leaf.lookups if not k.shared]
            if not per_example:
                key = repr(self.keys[position]) if self.keys else f"number {position}"
                raise InputError(
                    f"Input {key} holds integers (shape {tuple(leaf.original.shape)}, dtype "
                    f"{leaf.original.dtype}), but the model did not look them up in an embedding. "
                    "Pass float inputs (pixels, embeddings), use LayerConservativeGI/LRP on the "
                    "embedding module, or pass the tensor in additional_forward_args if it needs "
                    "no relevance."
                )
            exact = [k for k in per_example if k.exact] or per_example
            widths = {k.leaf.shape[-1] for k in exact}
            leaf.lookups = [k for k in leaf.lookups if k.leaf.shape[-1] in widths]

    def parts(
        self, leaf: Leaf, grads: list[Tensor | None], zero_inputs: bool
    ) -> list[tuple[str, Tensor]]:
        """Relevance of one input, by what it was looked up in (one part for float inputs)."""
        if leaf.tensor is not None:
            grad = grads[0]
            x = leaf.tensor.detach()
            if grad is None:
                return [("", torch.zeros_like(x))]
            return [("", ((nonzero(x) if zero_inputs else x) * grad).to(x.dtype))]
        parts: dict[str, Tensor] = {}
        for lookup, grad in zip(leaf.lookups, grads, strict=True):
            value = lookup.leaf.detach()
            if lookup.shared:
                if grad is not None and bool(grad.any()):
                    raise InputError(
                        f"The embedding {lookup.name!r} is shared by the examples of the batch and "
                        "enters the model otherwise than by addition, so its relevance cannot be "
                        "told apart. Explain one example at a time."
                    )
                continue
            if value.dtype in (torch.float16, torch.bfloat16):
                value = value.float()  # the sum over the features, and over the parts
            part = torch.zeros_like(value) if grad is None else value * grad
            part = part.sum(-1).reshape(leaf.original.shape)
            parts[lookup.name] = parts[lookup.name] + part if lookup.name in parts else part
        return list(parts.items())


def _attributed(key: str, value: Any) -> bool:
    if not isinstance(value, Tensor):
        return False
    if key.endswith("input_ids"):
        return True
    return value.is_floating_point() and "mask" not in key and "label" not in key


def _same(indices: Tensor, ids: Tensor) -> bool:
    return (
        indices.numel() == ids.numel()
        and indices.device == ids.device
        and (
            indices.data_ptr() == ids.data_ptr()
            or torch.equal(indices.reshape(-1).to(ids.dtype), ids.reshape(-1))
        )
    )


def _aligned(indices: Tensor, ids: Tensor) -> bool:
    tokens = ids.shape[-1]
    if indices.shape[-1] != tokens:
        return False
    return indices.shape == ids.shape or indices.numel() == tokens


def _leaf_variables(node: Node) -> list[Tensor]:
    """Leaves that a tensor is a sum of (through views and copies); empty if it is anything else."""
    name = node_name(node)
    if name == "AccumulateGrad":
        return [node.variable]
    if name not in KEEP_ENTRIES and name not in {"Add", "Clone"}:
        return []
    found: list[Tensor] = []
    for parent in parents(node):
        leaves = _leaf_variables(parent)
        if not leaves:
            return []
        found.extend(leaves)
    return found
