"""What a handler of calls has at hand: rules in force, inputs, and what the pass has seen."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from captum_lrp_tx.propagation.graph import Node
from captum_lrp_tx.propagation.hygiene.isolation import isolated
from captum_lrp_tx.propagation.interception.biases import Maps
from captum_lrp_tx.propagation.interception.constants import Constants
from captum_lrp_tx.propagation.interception.cuts import Cuts
from captum_lrp_tx.propagation.interception.ordering import Ordering
from captum_lrp_tx.propagation.model.strangers import Strangers, running
from captum_lrp_tx.propagation.operations import AbsorbFn, Kind, Operation
from captum_lrp_tx.propagation.recognition import undecided
from captum_lrp_tx.propagation.recognition.degrees import Degrees
from captum_lrp_tx.propagation.state.inputs import Inputs
from captum_lrp_tx.propagation.state.scope import Scope, next_sequence_number


class Context:
    """What is known of one explained forward pass while it runs.

    Args:
        scope (Scope): The rules in force.
        inputs (Inputs): What is explained.
        name_of (callable): From a table of embeddings to its name.
        isolation (isolated): What the pass takes back at its end.
        strangers (Strangers, optional): Reports modules that were not known.
    """

    def __init__(
        self,
        scope: Scope,
        inputs: Inputs,
        name_of: Callable[[Tensor], str],
        isolation: isolated,
        strangers: Strangers | None = None,
    ) -> None:
        self.scope, self.inputs, self.name_of = scope, inputs, name_of
        self.isolation, self.strangers = isolation, strangers
        #: Parameters, and what was made of them.
        self.constants = Constants(inputs, isolation, strangers)
        #: Linear maps whose bias may follow.
        self.maps = Maps()
        #: How tensors grow with what they were made of; norms are told by it.
        self.degrees = Degrees()
        #: What was computed from the inputs and has lost its gradient.
        self.cuts = Cuts(scope, self.degrees, inputs)
        #: Indices that tell the order of what was computed from the inputs.
        self.ordering = Ordering()
        #: Whether there was a softplus: no step size, no state space model.
        self.has_steps = False
        #: Whether a gated delta rule was seen: products are asked for its memory from then on.
        self.has_memory = False
        #: Products that may turn out to be attention; the graph holds them.
        self.undecided: list[weakref.ref[undecided.Weighed]] = []
        #: Hash of the calls so far, in order, by name and by which arguments depended on the
        #: inputs; no sizes, which differ from text to text.
        self.ran = 0
        #: What was found out about weights and modules in this pass, by ``id`` (they are kept).
        self.claims: dict[int, Any] = {}
        #: Calls without a derivative: their nodes, names and layers.
        self.underived: list[tuple[Node | None, str, str]] = []
        # weak: a mode and a context that held each other would outlive the pass, with its graph
        self._mode: weakref.ref[Any] | None = None

    def again(self) -> Context:
        """For a second run of a part of the model, which finds no inputs of its own."""
        inputs = self.inputs.again()
        inputs.stop_looking_up()
        context = Context(self.scope, inputs, self.name_of, self.isolation, self.strangers)
        context.constants, context.claims = self.constants.again(inputs), self.claims
        context.ordering = self.ordering
        return context

    def begin_here(self) -> None:
        """What cannot be explained of the operations so far does not count: layers come now."""
        self.cuts.begin_here()
        self.underived.clear()

    def forget(self) -> None:
        """Let go of the graph: it leads to the context, and what was noted of it leads back."""
        self.maps.forget()
        self.degrees = self.cuts.degrees = Degrees()

    def running(self) -> str:
        """The name of the innermost module that is running; asked rarely."""
        return self.scope.module or running(self.isolation.modules)

    # ---- calls that a handler makes itself ---------------------------------------------------
    def serve(self, mode: AbstractContextManager[Any]) -> None:
        """Tell which function mode hands calls to handlers with this context."""
        self._mode = weakref.ref(mode)

    def watching(self) -> AbstractContextManager[Any]:
        """Calls of torch made in this block are the model's: handlers get them, too."""
        mode: AbstractContextManager[Any] | None = None if self._mode is None else self._mode()
        assert mode is not None, "a context serves one function mode"
        return mode

    # ---- rules and the ledger ----------------------------------------------------------------
    def apply(self, kind: Kind, operation: Operation) -> Any:
        """Let the rule in force carry out the operation, or run it plainly."""
        rule = self.scope.rule(kind)
        if rule is None:
            return operation.plain()
        self.scope.note(kind, rule)
        return rule.propagate(operation)

    def absorb(
        self,
        output: Tensor,
        constant: Tensor | Callable[[], Tensor],
        *sources: Any,
        name: str | None = None,
    ) -> None:
        """Book an additive constant in the ledger, if there is one, by its name or its source's."""
        ledger = self.scope.ledger
        if ledger is not None and isinstance(output, Tensor):
            self.scope.last_booked = next_sequence_number()
            constant = constant() if callable(constant) else constant
            name = name or ledger.name_of(*sources)
            ledger.absorb(output, constant, name, self.scope.module)

    def absorber(self, *sources: Any) -> AbsorbFn:
        """``absorb`` bound to the named tensors that an operation took its constants from."""
        return lambda output, constant: self.absorb(output, constant, *sources)
