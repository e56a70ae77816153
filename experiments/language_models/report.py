"""The tables of the experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.language_models.items import Item
from experiments.language_models.measures import SCORES, by_task, mean_over_tasks

Found = Mapping[tuple[str, str], Sequence[Mapping[str, float] | None]]
_BEGIN, _END = "<!-- table -->", "<!-- end -->"
_TITLES = {"start": "With a start token, which is left out of the ranking",
           "bare": "Without a start token"}  # fmt: skip


def table(items: Sequence[Item], found: Found, titles: Mapping[str, str] = _TITLES) -> str:
    """Means over tasks of all scores, and the hits of each task.

    Args:
        items (sequence of Item): What was explained.
        found (mapping): By setting and method the scores of each item.
        titles (mapping): Of the settings.
    """
    tasks = list(dict.fromkeys(item.task for item in items))
    counts = {task: sum(item.task == task for item in items) for task in tasks}
    lines = [f"{len(items)} items: " + ", ".join(f"{t} {n}" for t, n in counts.items()) + ".", ""]
    for setting, title in titles.items():
        chosen = {name: values for (where, name), values in found.items() if where == setting}
        if not chosen:
            continue
        shown = [s for s in SCORES if any(v and s in v for vs in chosen.values() for v in vs)]
        lines += [f"**{title}**", "", "| method | items | " + " | ".join(shown) + " |"]
        lines += ["|---" * (len(shown) + 2) + "|"]
        for name, values in chosen.items():
            cells = [_cell(by_task(items, values, score)) for score in shown]
            seen = sum(value is not None for value in values)
            lines.append(f"| {name} | {seen} | " + " | ".join(cells) + " |")
        lines += ["", f"Hits by task. {title}:", "", "| method | " + " | ".join(tasks) + " |"]
        lines += ["|---" * (len(tasks) + 1) + "|"]
        for name, values in chosen.items():
            hits = by_task(items, values, "hit")
            cells = [f"{hits[t].mean():.2f}" if t in hits else "" for t in tasks]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def differences(items: Sequence[Item], found: Found, pairs: Sequence[tuple[str, str]]) -> str:
    """Means over tasks of the differences of two methods on the same items, a row for each pair.

    Args:
        items (sequence of Item): What was explained.
        found (mapping): By setting and method the scores of each item.
        pairs (sequence): Names of the method and of what is subtracted.
    """
    columns = [
        (setting, score)
        for setting, scores in (("start", ("hit", "MRR", "Pearson", "Spearman")),
                                ("bare", ("hit", "MRR")))
        for score in scores if any(where == setting for where, _ in found)
    ]  # fmt: skip
    heads = [score if where == "start" else f"{score}, bare" for where, score in columns]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for a, b in pairs:
        cells = []
        for setting, score in columns:
            missing = {(setting, a), (setting, b)} - found.keys()
            cells.append("" if missing else _difference(items, found, setting, a, b, score))
        lines.append(f"| `{a}` minus `{b}` | " + " | ".join(cells) + " |")
    return "\n".join(["Differences on the same items, paired:", "", *lines, ""])


def _difference(
    items: Sequence[Item], found: Found, setting: str, a: str, b: str, score: str
) -> str:
    values: list[Mapping[str, float] | None] = [
        {score: x[score] - y[score]} if x and y and score in x and score in y else None
        for x, y in zip(found[setting, a], found[setting, b], strict=True)
    ]
    tasks = by_task(items, values, score)
    if not tasks:
        return ""
    mean, low, high = mean_over_tasks(tasks)
    return f"{mean:+.3f} [{low:.3f}, {high:.3f}]"


def _cell(values: Mapping[str, object]) -> str:
    if not values:
        return ""
    mean, low, high = mean_over_tasks(values)  # type: ignore[arg-type]
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def insert(text: str, path: Path) -> None:
    """Put the tables between the marks of a file, which is made if it is not there."""
    old = path.read_text(encoding="utf-8") if path.exists() else f"{_BEGIN}\n{_END}\n"
    before, _, rest = old.partition(_BEGIN)
    after = rest.partition(_END)[2]
    path.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}", encoding="utf-8")
