"""Every exception and warning that the package raises on purpose, in one place.

Each message says what was wrong *and* what to do about it.  All exceptions derive from
:class:`CaptumLRPError` and from the built-in exception that comes closest.  None is a
``TypeError``: a rule may raise them while a model runs, and Python takes a ``TypeError`` that comes
out of an operator such as ``x * x`` for "not supported" and raises one of its own instead.
"""

from __future__ import annotations


class CaptumLRPError(Exception):
    """Base class of all errors raised by ``captum_lrp_tx``."""


class RuleError(CaptumLRPError, ValueError):
    """A rule, a preset name or an entry of a ``Composite`` is not usable."""


class InputError(CaptumLRPError, ValueError):
    """The inputs cannot be explained: wrong type, nothing to attribute to, no embedding found."""


class TargetError(CaptumLRPError, AssertionError):
    """``target`` is missing for a model with several outputs, malformed, or out of range.

    Derives from ``AssertionError`` because that is what Captum raises in the same situation.
    """


class OutputError(CaptumLRPError, ValueError):
    """The forward function returned something that holds no tensor to explain."""


class NonFiniteError(CaptumLRPError, ArithmeticError):
    """NaN or infinity in the inputs, the outputs or the relevance."""


class UnreachedInputError(CaptumLRPError, RuntimeError):
    """The explained output does not depend on an input or on a layer."""


class UnsupportedModelError(CaptumLRPError, RuntimeError):
    """The model hides its operations (compiled, scripted, replicated), so no rule can act."""


class UncoveredOperationError(CaptumLRPError, RuntimeError):
    """``strict=True`` was asked for, and operations on the path to the inputs have no rule.

    Attributes:
        operations (tuple of str): One line for each operation that no rule covers, with the
            name of the module that ran it.
    """

    def __init__(self, message: str, operations: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.operations = operations


class MissingPackageError(CaptumLRPError, ImportError):
    """A method needs a package that is not installed; the message names the extra."""


class CaptumLRPWarning(UserWarning):
    """Base class of all warnings of ``captum_lrp_tx``."""


class UncoveredOperationWarning(CaptumLRPWarning):
    """Operations on the path to the inputs are left to the plain gradient by the rule set."""


class NoRuleAppliedWarning(CaptumLRPWarning):
    """No operation of the model matched any rule: the result equals gradient x input."""


class HiddenSinksWarning(CaptumLRPWarning):
    """Causal attention runs in parts, so that ``SinkRule`` cannot tell the sinks of its heads."""


class LeftOutPatternWarning(CaptumLRPWarning):
    """A softmax that may be attention takes no part in a method that combines attention maps."""


class RepeatedLayerWarning(CaptumLRPWarning):
    """A layer runs several times, and the relevance is not that of all its calls."""


class UnstableRelevanceWarning(CaptumLRPWarning):
    """Relevance is larger than the explained output by orders of magnitude: divisions by ~0."""


class PaddedTargetWarning(CaptumLRPWarning):
    """A target reads the output at a place that the attention mask hides as padding."""


class TrainingModeWarning(CaptumLRPWarning):
    """Dropout or batch statistics were active, so the explanation is random."""


class MissingGlyphWarning(CaptumLRPWarning):
    """A picture lacks characters of its text, or draws them in the wrong order."""
