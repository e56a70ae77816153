"""The list of methods of Captum Insights: adding this package's, and taking them out again."""

from __future__ import annotations

import importlib.util
import threading
from typing import Any

import captum

from captum_lrp_tx.errors import MissingPackageError
from captum_lrp_tx.insights.methods import FORMS, Field
from captum_lrp_tx.packages import needed

_LOCK = threading.RLock()
#: What was added: class and configuration, by the name that is shown.
_ADDED: dict[str, tuple[Any, Any]] = {}


class Registration:
    """What :func:`register` did; as a context manager it undoes that at the end of the block.

    Methods that were in the list before the call stay.

    Attributes:
        names (tuple of str): The names under which the methods of this package are shown.

    Example::

        >>> with insights.register() as registration:  # doctest: +SKIP
        ...     print(registration.names)
    """

    def __init__(self, names: tuple[str, ...], added: tuple[str, ...]) -> None:
        self.names = names
        self._added = added

    def __enter__(self) -> Registration:
        return self

    def __exit__(self, *exc: Any) -> None:
        _remove(self._added)

    def __repr__(self) -> str:
        return f"Registration({', '.join(map(repr, self.names))})"


def register() -> Registration:
    """Puts the methods of this package into the list of Captum Insights.

    All pages that are opened or reloaded afterwards offer them: ``ConservativeLRP`` with the rule
    preset, epsilon, gamma and the treatment of biases as arguments, ``ConservativeGI`` with the
    preset, and those that read attention maps, whose relevance of a token or patch is spread
    evenly over its features. Calling it twice changes nothing. A method of your own that has
    the name of one of these stays as it is; the one of this package then has
    ``(captum_lrp_tx)`` behind its name.

    Returns:
        Registration: the names that are shown; as a context manager it undoes the call.

    Raises:
        MissingPackageError: This Captum has no Insights, or its server misses a package.

    Example::

        >>> from captum_lrp_tx import insights
        >>> insights.register().names[0]  # doctest: +SKIP
        'Conservative LRP'
    """
    config = insights_module("config")
    names, added = [], []
    with _LOCK:
        methods = config.ATTRIBUTION_NAMES_TO_METHODS
        parameters = config.ATTRIBUTION_METHOD_CONFIG
        for cls in FORMS.values():
            name = shown_name(cls)
            if name is None:
                name = cls.get_name()
                while name in methods or name in parameters:
                    name += " (captum_lrp_tx)"
                methods[name] = cls
                parameters[name] = _parameters(config, cls.fields)
                _ADDED[name] = (cls, parameters[name])
                added.append(name)
            names.append(name)
    return Registration(tuple(names), tuple(added))


def unregister() -> None:
    """Takes the methods of this package out of the list of Captum Insights again.

    What was in the list before is left as it was; so is what has been put in the place of one of
    the methods since. Without a preceding :func:`register` nothing happens.

    Example::

        >>> from captum_lrp_tx import insights
        >>> insights.unregister()
    """
    _remove(tuple(_ADDED))


def shown_name(cls: Any) -> str | None:
    """The name under which a class of ``FORMS`` is in the list now; None if it is not."""
    with _LOCK:
        if not _ADDED:
            return None
        methods = insights_module("config").ATTRIBUTION_NAMES_TO_METHODS
        for name, (added, _) in _ADDED.items():
            if added is cls and methods.get(name) is cls:
                return name
    return None


def insights_module(name: str) -> Any:
    """A module of Captum Insights.

    Args:
        name (str): Without ``captum.insights.attr_vis.``.

    Raises:
        MissingPackageError: This Captum has no Insights, or its server misses a package.
    """
    if importlib.util.find_spec("captum.insights") is None:
        raise MissingPackageError(
            f"Captum Insights was retired after captum 0.8, and this is captum "
            f"{captum.__version__}. Either install captum 0.8 and what its server needs, in an "
            'environment of its own: pip install "captum<0.9" "numpy<2" flask flask-compress; or '
            "write a page that needs none of them: captum_lrp_tx.report(...), or python -m "
            "captum_lrp_tx report."
        )
    purpose = "the server of Captum Insights needs flask and flask-compress"
    hint = "pip install flask flask-compress"
    return needed(f"captum.insights.attr_vis.{name}", purpose, hint)


def _remove(names: tuple[str, ...]) -> None:
    with _LOCK:
        mine = {name: _ADDED.pop(name) for name in names if name in _ADDED}
        if not mine:
            return
        config = insights_module("config")
        for name, (cls, parameters) in mine.items():
            if config.ATTRIBUTION_NAMES_TO_METHODS.get(name) is cls:
                del config.ATTRIBUTION_NAMES_TO_METHODS[name]
            if config.ATTRIBUTION_METHOD_CONFIG.get(name) is parameters:
                del config.ATTRIBUTION_METHOD_CONFIG[name]


def _parameters(config: Any, fields: dict[str, Field]) -> Any:
    made = {
        name: config.StrEnumConfig(value=field.value, limit=list(field.choices))
        if field.choices
        else config.NumberConfig(value=field.value, limit=(0, None))
        for name, field in fields.items()
    }
    convert = {name: field.convert for name, field in fields.items() if field.convert}
    return config.ConfigParameters(params=made, post_process=convert or None)
