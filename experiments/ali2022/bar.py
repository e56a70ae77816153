"""Does one forward and backward pass beat Integrated Gradients with 50 steps?

Every candidate is compared with Integrated Gradients from the baseline that the metrics mask with,
on both metrics and every data set, by the paired bootstrap over examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.ali2022.reporting import METRICS, paired

#: One pass each: the rule set of the paper and what came after it.
CANDIDATES = ("LRP(AH+LN)", "LRP", "LRP-gamma", "LRP-tuned", "AttnLRP", "AttnLRP-gamma")
BAR = "IG"
LEVEL = 0.05
#: With fewer examples a bootstrap says nothing: no verdict.
ENOUGH = 20
_VERDICTS = {1: "better", 0: "no difference", -1: "worse"}


def verdict(difference: tuple[float, ...], higher: bool) -> int:
    """1 if significantly better, -1 if significantly worse, else 0.

    Args:
        difference (tuple of float): Estimate, low, high and p of candidate minus bar.
        higher (bool): Whether more is better.

    Example::

        >>> verdict((0.1, 0.05, 0.15, 0.001), True), verdict((0.1, 0.05, 0.15, 0.001), False)
        (1, -1)
    """
    estimate, *_, p = difference
    if p >= LEVEL:
        return 0
    return 1 if (estimate > 0) == higher else -1


def verdicts(
    results: Mapping[str, dict[str, Any]], candidate: str
) -> dict[str, dict[str, tuple[tuple[float, ...], int]]]:
    """Differences and verdicts of a candidate, by data set, then metric.

    Args:
        results (mapping): Of :func:`experiments.ali2022.reporting.load_all`, by data set.
        candidate (str): A method.
    """
    found: dict[str, dict[str, tuple[tuple[float, ...], int]]] = {}
    for name, result in results.items():
        if not {candidate, BAR} <= result["methods"].keys():
            continue
        found[name] = {}
        for key, _, higher in METRICS:
            difference = paired(result, key, BAR, only=[candidate])[candidate]
            found[name][key] = difference, verdict(difference, higher)
    return found


def table(results: Mapping[str, dict[str, Any]]) -> str:
    """Candidates minus bar on every data set, wins and losses alike, and how many there are.

    Args:
        results (mapping): Of :func:`experiments.ali2022.reporting.load_all`, by data set.
    """
    heads = " | ".join(f"{title} | verdict" for _, title, _ in METRICS)
    lines = [f"| method | data set | n | {heads} |", "|---" * (3 + 2 * len(METRICS)) + "|"]
    counted = []
    for candidate in CANDIDATES:
        found = verdicts(results, candidate)
        if not found:
            continue
        for name, measured in found.items():
            result, count = results[name], _common(results[name], candidate)
            cells = [
                f"{_short(d)} | {_VERDICTS[v] if count >= ENOUGH else 'too few'}"
                for d, v in measured.values()
            ]
            lines.append(f"| {candidate} | {result['data set']} | {count} | {' | '.join(cells)} |")
        judged = {k: m for k, m in found.items() if _common(results[k], candidate) >= ENOUGH}
        counted.append(_count(candidate, judged))
    notes = [
        f"Candidate minus {BAR}, on the same examples: mean, 95 % interval and two-sided p of the "
        f"paired bootstrap; better or worse where p < {LEVEL}, without correction for the number "
        f"of comparisons; fewer than {ENOUGH} examples are not judged.",
        "",
        *counted,
    ]
    return "\n".join([*lines, "", *notes])


def _common(result: Mapping[str, Any], candidate: str) -> int:
    """How many examples both have."""
    return min(int(result["methods"][method]["n"]) for method in (candidate, BAR))


def _count(candidate: str, found: Mapping[str, dict[str, tuple[tuple[float, ...], int]]]) -> str:
    parts = []
    for key, title, _ in METRICS:
        signs = [measured[key][1] for measured in found.values()]
        parts.append(
            f"{title} better on {signs.count(1)}, no difference on {signs.count(0)}, worse on "
            f"{signs.count(-1)}"
        )
    both = sum(all(sign == 1 for _, sign in measured.values()) for measured in found.values())
    return f"- {candidate}, {len(found)} data sets: {'; '.join(parts)}; better on both on {both}."


def _short(difference: tuple[float, ...]) -> str:
    estimate, low, high, p = difference
    return f"{estimate:+.3f} [{low:+.3f}, {high:+.3f}], p={p:.2g}"
