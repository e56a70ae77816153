"""Parameters as constants, and what is remembered of constants: were they trained, whose are they.

Parameters enter every call as constants, so autograd keeps nothing for weight gradients and a
tensor requires a gradient exactly if it depends on the explained inputs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from captum_lrp_tx.propagation.graph import Node, parents
from captum_lrp_tx.propagation.hygiene.isolation import isolated
from captum_lrp_tx.propagation.interception.calls import Call, tensors_in
from captum_lrp_tx.propagation.model.strangers import Strangers
from captum_lrp_tx.propagation.state.inputs import Inputs

#: So many arguments are remembered by whether they depended on the inputs.
_LAST = 0xFFFF
#: The attribute of constants made from trainable parameters.
_TRAINABLE = "_captum_lrp_tx_trainable"
#: The attribute of constants that the model made of nothing but its own.
_OF_MODEL = "_captum_lrp_tx_of_model"
#: The attribute of those that it made of all entries of what it stores: of no slice for a token.
_WHOLE = "_captum_lrp_tx_whole"
#: So many autograd functions in a row are followed to the parameters that they took.
_MOST_FUNCTIONS = 20


def _is_made_of_parameters(node: Node) -> bool:
    """Whether autograd functions of the model's own made this of parameters alone.

    Torch shows such calls to no mode, so the parameters go in as they are.
    """
    if not hasattr(type(node), "_forward_cls"):
        return False  # this is asked of nearly every argument
    todo, is_of_any = [node], False
    for _ in range(_MOST_FUNCTIONS):
        if not todo:
            return is_of_any
        one: Any = todo.pop()
        if hasattr(type(one), "_forward_cls"):
            todo.extend(parents(one))
        elif isinstance(getattr(one, "variable", None), torch.nn.Parameter):
            is_of_any = True
        else:
            return False
    return False


class Constants:
    """The constants of one forward pass.

    Args:
        inputs (Inputs): What is explained.
        isolation (isolated): Knows the parameters and buffers of the model.
        strangers (Strangers, optional): Reports modules that were not known.
    """

    def __init__(
        self, inputs: Inputs, isolation: isolated, strangers: Strangers | None = None
    ) -> None:
        self._inputs, self._isolation, self._strangers = inputs, isolation, strangers
        # what constants carry that were computed from parameters that require a gradient
        # outside of this pass; those that are not this pass's own are noted in the dictionary
        self._token = object()
        self._trainable: WeakIdKeyDictionary = WeakIdKeyDictionary()
        #: Whether the last arguments depended on the inputs, one bit each.
        self.live = 0

    def again(self, inputs: Inputs) -> Constants:
        """The same for a second run of a part of the model."""
        constants = Constants(inputs, self._isolation, self._strangers)
        constants._token, constants._trainable = self._token, self._trainable
        return constants

    def constant(self, x: Any) -> Any:
        """A parameter, or what was computed from one before this pass, as a constant."""
        if isinstance(x, Tensor):
            node: Any = x.grad_fn if x.requires_grad else None
            if node is not None and node._sequence_nr() >= self._inputs.first_node:
                if not _is_made_of_parameters(node):
                    self.live = self.live << 1 & _LAST | 1
                    return x
                x = self._detached(x)
                setattr(x, _OF_MODEL, self._token)
            self.live = self.live << 1 & _LAST
            if type(x) is not Tensor and self._strangers is not None:
                self._strangers.look(x)
            if x.is_inference():  # made under inference_mode: autograd refuses to save it
                x = x.clone()
            if x.requires_grad and self._is_foreign(x):
                return self._detached(x)
            return x
        if type(x) in (list, tuple) and any(isinstance(i, Tensor) for i in x):
            return type(x)([self.constant(i) for i in x])
        return x

    def note(self, call: Call, result: Any) -> None:
        """Remember of the result of a call on constants what is known of these."""
        if any(self.is_trainable(a) for a in call.args):
            self.mark_trainable(result)
        self.mark_of_model(result, (call.args, call.kwargs))

    def read_from(self, owner: Any, value: Tensor) -> Tensor:
        """A property of a tensor, such as ``weight.T``: of a parameter it is a constant, too."""
        if value.requires_grad and self._is_foreign(owner):
            value = self._detached(value)
        if not value.requires_grad and self.is_of_model(owner):
            setattr(value, _OF_MODEL, self._token)
        return value

    def _is_foreign(self, x: Tensor) -> bool:
        """A parameter, or a tensor of a graph that was there before this pass."""
        node: Any = x.grad_fn
        return node is None or node._sequence_nr() < self._inputs.first_node

    def _detached(self, x: Tensor) -> Tensor:
        constant = x.detach()
        setattr(constant, _TRAINABLE, self._token)  # nobody else has this tensor
        if x.is_leaf:
            setattr(constant, _OF_MODEL, self._token)
        return constant

    # ---- whose they are ----------------------------------------------------------------------
    def is_of_model(self, x: Any) -> bool:
        """Whether a constant is the model's own: a parameter, a buffer or made of such alone.

        Other constants are data: another text, what another model made.
        """
        return (
            getattr(x, _OF_MODEL, None) is self._token
            or isinstance(x, torch.nn.Parameter)
            or self._isolation.is_buffer(x)
        )

    def mark_of_model(self, x: Any, made_of: Any) -> None:
        """Remember of a constant that only the model's own went into it."""
        if isinstance(x, Tensor):
            if (
                x.dim()
                and x.is_floating_point()
                and all(map(self.is_of_model, tensors_in(made_of)))
            ):
                setattr(x, _OF_MODEL, self._token)
                sources = tensors_in(made_of)
                if sources and all(self.is_whole(t, x.numel()) for t in sources):
                    setattr(x, _WHOLE, self._token)
        elif isinstance(x, (list, tuple)):
            for item in x:
                self.mark_of_model(item, made_of)

    def is_whole(self, x: Tensor, most: float = math.inf) -> bool:
        """Whether a constant has all entries, ``most`` of them, of what the model stores."""
        is_whole = getattr(x, _WHOLE, None) is self._token or self._isolation.is_stored(x)
        return is_whole and x.numel() <= most

    # ---- whether they were trained -----------------------------------------------------------
    def mark_trainable(self, x: Any) -> None:
        """Remember that a constant would require a gradient in the plain model."""
        if isinstance(x, Tensor):
            if not x.requires_grad:
                self._trainable[x] = True
        elif isinstance(x, (list, tuple)):
            for item in x:
                self.mark_trainable(item)

    def is_trainable(self, x: Any) -> bool:
        """Whether a constant would require a gradient in the plain model."""
        if not isinstance(x, Tensor) or x.requires_grad:
            return False
        if getattr(x, _TRAINABLE, None) is self._token:
            return True
        return len(self._trainable) > 0 and x in self._trainable
