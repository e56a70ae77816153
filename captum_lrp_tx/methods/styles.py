"""One colour, dash and width for each method, the same in every figure and report."""

from __future__ import annotations

#: Colour, dashes and width of a line.
Style = tuple[str, str, float]

# Hue tells the families apart, lightness and dashes the members: attention is blue, gradients are
# gold to red, LRP is teal and violet, Captum's path methods are brown. All are of middle lightness,
# so that they can be read on white and on black.
STYLES: dict[str, Style] = {
    "Random": ("#8f8f8f", ":", 1.5),
    "A-Last": ("#8cb8d9", "-", 1.3),
    "Rollout": ("#4a90c8", "--", 1.3),
    "A-Flow": ("#4a90c8", ":", 1.3),
    "GAE": ("#2a6fb0", "-", 1.5),
    "Chefer": ("#2a6fb0", "--", 1.3),
    "GI": ("#c9a227", "-", 1.4),
    "Saliency": ("#c9a227", ":", 1.4),
    "LRP(AH)": ("#f0934e", "--", 1.3),
    "LRP(LN)": ("#dd6b20", "-.", 1.5),
    "LRP(AH+LN)": ("#c0392b", "-", 2.2),
    "LRP": ("#0b8277", "-", 2.2),
    "LRP, biases distributed": ("#0b8277", "--", 1.7),
    "AttnLRP": ("#5bb5a6", "-", 1.4),
    "LRP-gamma": ("#7241a8", "-", 2.2),
    "LRP-tuned": ("#7241a8", ":", 1.5),
    "AttnLRP-gamma": ("#a980cf", "-", 1.5),
    "IG": ("#7d5a3c", "--", 1.7),
    "GradientShap": ("#7d5a3c", ":", 1.5),
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
