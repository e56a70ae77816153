"""One colour, dash and width for each method, the same in every figure and report."""

from __future__ import annotations

from captum_lrp_tx.methods.registry import METHODS, Style

STYLES: dict[str, Style] = {
    **{method.name: method.style for method in METHODS if method.style is not None},
    # variants that the experiments compare by name
    "LRP, biases distributed": ("#0b8277", "--", 1.7),
    "LRP-tuned": ("#7241a8", ":", 1.5),
    "AttnLRP-gamma": ("#a980cf", "-", 1.5),
}
#: Colours of methods that are not in the table.
_OTHERS = ("#b8479b", "#6b8e23", "#3d4f7c", "#b35806", "#5a5f69", "#008b9a", "#9c3d5e", "#8a6d00")


def styles(names: list[str]) -> dict[str, Style]:
    """The style of each of several methods; those that are not known get colours of their own.

    Args:
        names (list of str): As in tables.

    Returns:
        dict: Colour, dashes and width by name.

    Example::

        >>> styles(["LRP", "mine"])["LRP"]
        ('#0b8277', '-', 2.2)
    """
    unknown = [name for name in names if name not in STYLES]
    more: dict[str, Style] = {
        name: (_OTHERS[i % len(_OTHERS)], ("-", "--", ":", "-.")[i // len(_OTHERS) % 4], 1.5)
        for i, name in enumerate(unknown)
    }
    return {name: STYLES.get(name) or more[name] for name in names}
