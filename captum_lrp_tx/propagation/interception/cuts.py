"""Values that were computed from the inputs and have lost their gradient, and where they end up.

``detach()``, ``.data``, a number read by ``item()`` or ``float()``, and all that runs under
``torch.no_grad()`` cut a value off from what it was computed from.  That is no loss where the rule
in force holds such a value constant anyway (a pattern, the divisor of a norm, a gate), and where
it cancels (the maximum that is subtracted before an exponential).  Elsewhere a call that joins it
to what depends on the inputs loses relevance, and is noted.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from captum_lrp_tx.propagation import graph
from captum_lrp_tx.propagation.interception.calls import Call, depends, tensors_in
from captum_lrp_tx.propagation.operations import Kind
from captum_lrp_tx.propagation.recognition import axes, homogeneity, patterns
from captum_lrp_tx.propagation.recognition.degrees import Degrees
from captum_lrp_tx.propagation.state.inputs import Inputs
from captum_lrp_tx.propagation.state.scope import Scope

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context

#: Functions that return their argument without its gradient.
CUTTING = frozenset("detach detach_ detach_copy new_tensor tensor".split())
#: Methods that read numbers out of a tensor.
READING = frozenset("item tolist __float__".split())
_MOST_NUMBERS = 1024
_GATES = frozenset("sigmoid sigmoid_ hardsigmoid tanh tanh_".split())
_STATISTICS = frozenset("mean sum var var_mean".split())
_NORMS = frozenset("std norm vector_norm linalg_vector_norm linalg_norm".split())
_ROOTS = frozenset("sqrt rsqrt sqrt_ rsqrt_ pow".split())
_LARGEST = frozenset("max amax".split())
#: What leaves a value what it is: moves, casts, bounds, selects, or takes a part.
_KEEPING = frozenset(
    """view reshape expand expand_as view_as transpose permute squeeze unsqueeze flatten unflatten
    contiguous clone to float half bfloat16 double type_as type __getitem__ detach clamp clamp_min
    clamp_max clip nan_to_num masked_fill repeat repeat_interleave chunk split mT T add sub
    add_ sub_ __radd__ __add__ reciprocal neg""".split()
)
#: What looks at shapes and types of a tensor only.
_WITHOUT_VALUES = frozenset(
    """zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full
    new_empty""".split()
)
_SHIFTING = frozenset("sub sub_ subtract __sub__ __isub__".split())
_WEIGHING = frozenset(
    """mul mul_ multiply div div_ true_divide divide matmul bmm mm einsum __matmul__ baddbmm
    scaled_dot_product_attention""".split()
)
#: Calls that make their pattern themselves: which argument holds the values that it weighs.
_WEIGHED = {"scaled_dot_product_attention": (2, "value"), "grid_sample": (0, "input")}


@dataclass(frozen=True)
class Origin:
    """Where a value without a gradient comes from.

    Attributes:
        how (str): What cut it off.
        roles (frozenset of str): What it is for, as far as can be told.
    """

    how: str
    roles: frozenset[str] = frozenset()


class Cuts:
    """Follows values without a gradient through the calls of one forward pass."""

    def __init__(self, scope: Scope, degrees: Degrees, inputs: Inputs) -> None:
        self._scope, self.degrees, self._inputs = scope, degrees, inputs
        #: Whether there is anything to follow.
        self.any = False
        self._origins: MutableMapping[Tensor, Origin] = WeakIdKeyDictionary()
        self._numbers: dict[float, Origin] = {}

    def begin_here(self) -> None:
        """What has been cut off so far does not count: the leaves are made now."""
        self.any = False
        self._origins.clear()
        self._numbers.clear()
        self._scope.cut.clear()

    def origin(self, name: str, arguments: Any) -> Origin | None:
        """Before a call or property that cuts its argument off: where its result comes from."""
        for source in tensors_in(arguments):
            known = self._origins.get(source) if self.any else None
            if known is not None:
                return known
            if self._is_computed(source) and source.is_floating_point():
                return Origin(
                    ".data" if name == "data" else f"{name}()", _roles(source, self.degrees)
                )
        return None

    def _is_computed(self, x: Tensor) -> bool:
        """Whether a value was computed in this pass, with gradients."""
        node: graph.Node | None = x.grad_fn if x.requires_grad else None
        return node is not None and node._sequence_nr() >= self._inputs.first_node

    def follow(self, origin: Origin | None, result: Any) -> None:
        """Afterwards: note the result."""
        if origin is None:
            return
        for t in tensors_in(result):
            if t.is_floating_point() and not t.requires_grad:
                self.any = True
                self._origins[t] = origin

    def read(self, source: Any, result: Any) -> None:
        """Note numbers that were read out of what depends on the inputs."""
        if not isinstance(source, Tensor) or not source.is_floating_point():
            return
        if not self._is_computed(source) and source not in self._origins:
            return
        self.any = True
        origin = Origin("as a Python number")
        pending = [result]
        while pending and len(self._numbers) < _MOST_NUMBERS:
            value = pending.pop()
            if isinstance(value, list):
                pending += value
            elif isinstance(value, float) and value not in (0.0, 1.0, -1.0):
                self._numbers[value] = origin

    def without_gradients(self, name: str, arguments: Any, result: Any) -> None:
        """Note what was computed from the inputs where gradients are off."""
        if name in _WITHOUT_VALUES:
            return
        for t in tensors_in(arguments):
            if self._is_computed(t) or t in self._origins:
                self.any = True
                origin = self._origins.get(t) or Origin(
                    "under torch.no_grad()", _roles(t, self.degrees)
                )
                for made in tensors_in(result):
                    if made.is_floating_point():
                        self._origins[made] = Origin(origin.how, _after(name, origin.roles))
                return

    def check(self, context: Context, call: Call, result: Any) -> None:
        """Follow cut values through a call, and note the call if relevance is lost in it."""
        name, arguments = call.name, call.parts[1:]
        tensors = tensors_in(arguments)
        counted = tensors_in(_counted(context, call))
        lost = [self._origins[t] for t in counted if not t.requires_grad and t in self._origins]
        if self._numbers:
            lost += [o for value, o in self._numbers.items() if _holds(arguments, value)]
        if not lost or name in _WITHOUT_VALUES:
            return
        outputs = tensors_in(result)
        if name == "__setitem__":
            outputs = tensors[:1]
        live = [t for t in tensors if depends(t)]
        made = [t for t in outputs if depends(t)]
        if made:
            if not all(_is_constant_anyway(context, name, o.roles, live, made[0]) for o in lost):
                key = name, self._scope.module, lost[0].how
                numbers = self._scope.cut.setdefault(key, set())
                numbers.update(t.grad_fn._sequence_nr() for t in made if t.grad_fn is not None)
            return
        roles = _after(name, frozenset().union(*(o.roles for o in lost)))
        for t in outputs:
            if t.is_floating_point():
                self._origins[t] = Origin(lost[0].how, roles)


def _counted(context: Context, call: Call) -> Any:
    """The arguments of a call that relevance would go to: none of those that make a pattern."""
    rule, name = context.scope.rule(Kind.ATTENTION), call.name
    if name not in _WEIGHED or rule is None or rule.covers_softmax:
        return call.parts[1:]
    if name == "grid_sample" and context.scope.rule(Kind.PRODUCT) is None:
        return call.parts[1:]  # its places may be no part of a pattern
    place, keyword = _WEIGHED[name]
    return call.args[place] if len(call.args) > place else call.kwargs.get(keyword)


def _holds(arguments: Any, value: float) -> bool:
    if isinstance(arguments, (list, tuple)):
        return any(_holds(a, value) for a in arguments)
    if isinstance(arguments, dict):
        return any(_holds(a, value) for a in arguments.values())
    return type(arguments) is float and arguments == value


def _roles(source: Tensor, degrees: Degrees) -> frozenset[str]:
    """What a value is for that still knows where it comes from."""
    roles = set()
    if patterns.is_pattern(source):
        roles.add("pattern")
    if homogeneity.is_statistic(source, degrees):
        roles.add("norm")
    if graph.gate_strength(source):
        roles.add("gate")
    if graph.node_name(axes.moved(source)) in ("Max", "Amax"):
        roles.add("largest")
    return frozenset(roles)


def _after(name: str, roles: frozenset[str]) -> frozenset[str]:
    """What the result of a call is for, given what its cut arguments are for."""
    if name == "softmax":
        return frozenset({"pattern", "gate"})
    if name in _GATES:
        return frozenset({"gate"})
    if name in _LARGEST:
        return frozenset({"largest"})
    if name in _STATISTICS:
        return frozenset({"statistic"})
    if name in _NORMS or (name in _ROOTS and "statistic" in roles):
        return frozenset({"norm"})
    return roles if name in _KEEPING else frozenset()


def _is_constant_anyway(
    context: Context, name: str, roles: frozenset[str], live: list[Tensor], made: Tensor
) -> bool:
    """Whether a call would lose nothing more if its cut argument had its gradient."""
    attention = context.scope.rule(Kind.ATTENTION) is not None
    product = context.scope.rule(Kind.PRODUCT)
    holds_gates = product is not None and product.holds_gates
    if name in _SHIFTING and "largest" in roles:
        return True  # an exponential divided by its sum does not change
    if name not in _WEIGHING:
        # a hard choice that takes its gradient from a soft one is used as the soft one is
        found = patterns.pattern_of(made) if attention else None
        if found is None:
            return False
        # the router of a mixture is a constant only where gates are
        return holds_gates or not found.is_made_by_parameters
    if attention and "pattern" in roles:
        return True
    if context.scope.rule(Kind.NORM) is not None and "norm" in roles:
        return True
    if product is None:
        return False
    if "div" in name:
        return True
    return holds_gates and "gate" in roles and not any(graph.gate_strength(t) > 1 for t in live)
