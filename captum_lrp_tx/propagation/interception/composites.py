"""Functions of torch that are made of others, and dropout."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

from captum_lrp_tx.propagation.interception.calls import Call, Handler, by_name

if TYPE_CHECKING:
    from captum_lrp_tx.propagation.interception.context import Context


def _dropout(context: Context, call: Call) -> Any:
    probability, training = _odds(call)
    if training and probability:
        context.scope.random.add("dropout")
    elif call.name == "dropout" and call.args and 0.0 <= probability <= 1.0:
        return call.args[0]  # what torch does, too
    return call.run()


def _odds(call: Call) -> tuple[Any, Any]:
    """The probability of a dropout, and whether it is in training mode."""
    args, kwargs = call.args, call.kwargs
    probability = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    default = call.name.startswith("dropout")  # as torch has it
    training = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", default))
    return probability, training


def drops_out(call: Call) -> bool:
    """Whether a call is a dropout that draws numbers."""
    return HANDLERS.get(call.name) is _dropout and all(_odds(call))


_ENTERED: dict[Any, Any] = {}


def _enter(context: Context, call: Call) -> Any:
    """Run a composite Python function of torch with the mode active inside it."""
    func = call.func
    inner = _ENTERED.get(func)
    if inner is None:
        if not isinstance(func, types.FunctionType):
            return call.run()
        # the function asks has_torch_function first and would call the mode again without end
        scope = dict(func.__globals__)
        for check in (
            "has_torch_function",
            "has_torch_function_unary",
            "has_torch_function_variadic",
        ):
            scope[check] = _no_torch_function
        inner = types.FunctionType(
            func.__code__, scope, func.__name__, func.__defaults__, func.__closure__
        )
        inner.__kwdefaults__ = func.__kwdefaults__
        _ENTERED[func] = inner
    with context.watching():
        return inner(*call.args, **call.kwargs)


def _no_torch_function(*_: Any) -> bool:
    return False


_DROPOUTS = (
    "dropout dropout_ dropout1d dropout2d dropout3d feature_dropout feature_dropout_ alpha_dropout "
    "alpha_dropout_ feature_alpha_dropout feature_alpha_dropout_"
)
HANDLERS: dict[str, Handler] = {
    **by_name(_dropout, _DROPOUTS),
    **by_name(_enter, "multi_head_attention_forward normalize local_response_norm gumbel_softmax"),
}
