"""Making the activations at chosen layers the leaves of a pass (Captum's layer attribution)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_tx.errors import InputError, UnreachedInputError
from captum_lrp_tx.propagation.graph import Node
from captum_lrp_tx.propagation.hygiene.hooks import Hooks
from captum_lrp_tx.propagation.model.nested import mapped

#: Tells the node of what goes on behind a captured layer: nothing is followed past it.
LEAF = "captum_lrp_tx.leaf"
_CUT_OFF = (
    "The layer {} ran, but only where the model itself switches gradients off (torch.no_grad()), "
    "so no relevance gets there. Give a layer that runs outside of that."
)
#: Hold modules that others run.
_NEVER_RUN = (nn.ModuleList, nn.ModuleDict)


class LayerProbe:
    """Captures the input or output tensors of layers during a forward pass of this thread.

    What is differentiated by is the tensor itself, as in Captum: all that is computed from it
    counts, before the layer and round it, too. So the graph begins at the inputs, and relevance at
    a layer is that of a pass to the inputs. If the model writes into the tensor later on, what the
    layer got of it counts. A tensor without a graph becomes a leaf.

    Of a layer that runs several times those calls count that no later call of it builds on: the
    last one of a chain (as in Captum), and each one of calls side by side (a table that is looked
    up for source and target, an encoder for two texts), whose relevance is added up.

    Args:
        layers (sequence of Module): The layers, in the order of the result.
        at_input (bool): Capture positional tensor inputs instead of outputs.
        modules (sequence of (str, Module)): Of the model, by name; for error messages.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        at_input: bool,
        modules: Sequence[tuple[str, nn.Module]] = (),
    ) -> None:
        self._modules = modules
        self._layers = list(layers)
        self._at_input = at_input
        self._calls: list[list[list[Tensor]]] = [[] for _ in self._layers]
        self._hooks = Hooks()
        self._thread = threading.get_ident()
        #: What a layer got of each captured tensor, and the tensor's version then.
        self._copies: list[list[list[tuple[Tensor, int]]]] = [[] for _ in self._layers]
        #: Layers that have run under no_grad.
        self._cut_off: set[int] = set()
        #: Called once, at the first layer.
        self.at_first: Callable[[], None] | None = None
        #: Names of layers some of whose calls are left out, with how many of how many count.
        self.left_out: list[tuple[str, int, int]] = []

    def captured(self) -> list[list[list[Tensor]]]:
        """The captured tensors of each call that counts, by layer."""
        return self._calls

    def tensors(self) -> list[Tensor]:
        """All captured tensors that count, layer by layer and call by call.

        Raises:
            UnreachedInputError: a layer did not run or has no floating-point tensor there.
            InputError: calls side by side with tensors of different shapes, which have no sum.
        """
        self._drop_written()
        for index, (layer, calls) in enumerate(zip(self._layers, self._calls, strict=True)):
            if not any(calls):
                if not calls and index in self._cut_off:
                    raise UnreachedInputError(_CUT_OFF.format(type(layer).__name__))
                raise UnreachedInputError(self._why_unseen(layer, bool(calls)))
            if len(calls) > 1:
                self._calls[index] = self._counting(layer, calls)
        return [tensor for calls in self._calls for call in calls for tensor in call]

    def _drop_written(self) -> None:
        """In place of tensors that the model has written into take what the layer got of them."""
        for calls, copies in zip(self._calls, self._copies, strict=True):
            for call, kept in zip(calls, copies, strict=True):
                call[:] = [
                    leaf if leaf._version == version else copy
                    for leaf, (copy, version) in zip(call, kept, strict=True)
                ]
        self._copies = [[] for _ in self._layers]

    def _why_unseen(self, layer: nn.Module, ran: bool) -> str:
        """Why there is nothing of a layer, and what to do."""
        kind = type(layer).__name__
        if ran and self._at_input:
            return (
                f"No floating-point tensor was seen at the input of the layer {kind}: it takes "
                "only keyword or integer arguments. Attribute to its output, or to a layer that "
                "this goes to."
            )
        if ran:
            return (
                f"No floating-point tensor was seen at the output of the layer {kind}. Attribute "
                "to a layer that its output goes to (of token ids the embedding)."
            )
        if isinstance(layer, _NEVER_RUN):
            held = "list(it.values())" if isinstance(layer, nn.ModuleDict) else "list(it)"
            return (
                f"The layer is a {kind}, which does not run itself: others run what it holds. Give "
                f"one of the modules in it, or all of them, {held}."
            )
        if self._modules and not any(module is layer for _, module in self._modules):
            names = [n for n, module in self._modules if n and type(module) is type(layer)]
            like = f", such as the one named {names[0]!r}" if names else ""
            return (
                f"The layer {kind} is no part of the model that is explained (nor is a copy of a "
                f"part). Give a module of the model itself{like}."
            )
        own = {id(parameter) for parameter in layer.parameters(recurse=False)}
        shared = [
            n for n, module in self._modules
            if module is not layer and own & {id(p) for p in module.parameters(recurse=False)}
        ]  # fmt: skip
        like = f" (it shares weights with {' and '.join(map(repr, shared))})" if shared else ""
        return (
            f"The layer {kind} did not run in the forward pass of these inputs. Give one that "
            f"does{like}."
        )

    def _counting(self, layer: nn.Module, calls: list[list[Tensor]]) -> list[list[Tensor]]:
        """The calls that no later call builds on."""
        calls = [call for call in calls if call]
        owners = {_own(t): i for i, call in enumerate(calls) for t in call}
        used = {i for n, call in enumerate(calls) for i in _reached(call, owners) - {n}}
        counting = [call for i, call in enumerate(calls) if i not in used]
        if len(counting) < len(calls):
            self.left_out.append((type(layer).__name__, len(counting), len(calls)))
        shapes = [[tuple(t.shape) for t in call] for call in counting]
        if any(shape != shapes[0] for shape in shapes):
            told = " and ".join(str(shape[0] if len(shape) == 1 else shape) for shape in shapes)
            raise InputError(
                f"The layer {type(layer).__name__} runs {len(calls)} times side by side, on "
                f"tensors of shapes {told}, whose relevance cannot be added up. Attribute to "
                "layers that run once, or to the inputs."
            )
        return counting

    def __enter__(self) -> LayerProbe:
        self._hooks.__enter__()
        try:
            for position, layer in enumerate(self._layers):
                put_on = self._hooks.before if self._at_input else self._hooks.after
                put_on(layer, self._hook(position))
        except BaseException:
            self._hooks.remove()
            raise
        return self

    def __exit__(self, *exc: Any) -> None:
        self._hooks.__exit__(*exc)

    def _hook(self, position: int) -> Any:
        def capture(_module: nn.Module, *values: Any) -> Any:
            """``values`` are the inputs and, of a hook at the outputs, the outputs."""
            if threading.get_ident() != self._thread:
                return None
            if not torch.is_grad_enabled():  # by the model itself: no relevance gets here
                self._cut_off.add(position)
                return None
            if self.at_first is not None:
                at_first, self.at_first = self.at_first, None
                at_first()
            self._calls[position].append([])
            self._copies[position].append([])
            return mapped(values[-1], lambda tensor: self._capture(position, tensor))

        return capture

    def _capture(self, position: int, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        # this runs inside the model's forward pass, but is no operation of the model
        with torch._C.DisableTorchFunction():
            kept = value.clone() if value.requires_grad else value.detach().clone().requires_grad_()
            leaf = value if value.requires_grad else kept
            self._copies[position][-1].append((kept, leaf._version))
            self._calls[position][-1].append(leaf)
            # a copy goes on, so that in-place operations cannot reach the captured values
            copy = kept.clone()
            node: Any = copy.grad_fn
            node.metadata[LEAF] = True
            return copy


def _own(tensor: Tensor) -> Node:
    """What stands for a captured tensor in the graph: its node, or itself if it is a leaf."""
    return id(tensor) if tensor.grad_fn is None else tensor.grad_fn


def _reached(call: list[Tensor], owners: Mapping[Node, int]) -> set[int]:
    """Which calls the tensors of one call were computed from directly."""
    ahead = [edge for t in call if t.grad_fn is not None for edge, _ in t.grad_fn.next_functions]
    found: set[int] = set()
    seen: set[Node] = set()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        owner = owners.get(id(node.variable) if hasattr(node, "variable") else node)
        if owner is None:
            ahead += [edge for edge, _ in node.next_functions]
        else:
            found.add(owner)
    return found
