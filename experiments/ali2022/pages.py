"""The tables of two pages, written from result files, so that no number is typed.

A page has places for them, each between ``<!-- name -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.ali2022 import ablation, bar, published, reporting

ROOT = Path(__file__).parents[2]
#: The pages that hold tables.
PAGES = (
    Path(__file__).parent / "README.md",
    ROOT / "docs" / "explanation" / "faithfulness.md",
)
#: Rows of the short tables.
SHORT = (
    *published.OF_THE_PAPER,
    "LRP",
    "LRP-gamma",
    "LRP-tuned",
    "AttnLRP",
    "AttnLRP-gamma",
    "IG",
    "IG [MASK]",
)
HEADLINE = (*published.OF_THE_PAPER, "LRP", "LRP-gamma", "AttnLRP", "AttnLRP-gamma", "IG")
#: Data sets of the headline: patches painted black are left out.
WITHOUT = ("mnist-black",)


def headline(results: Mapping[str, dict[str, Any]]) -> str:
    """Means of both metrics: methods by data sets.

    Args:
        results (mapping): By the name of the data set.
    """
    shown = {name: result for name, result in results.items() if name not in WITHOUT}
    heads = [f"{result['data set']} ({result['n']})" for result in shown.values()]
    lines = [f"| method | {' | '.join(heads)} |", "|---" * (len(shown) + 1) + "|"]
    for method in HEADLINE:
        cells = [_pair(result, method) for result in shown.values()]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _pair(result: Mapping[str, Any], method: str) -> str:
    """Means of both metrics, and how many examples if not all."""
    entry = result["methods"].get(method)
    if entry is None:
        return ""
    few = f" ({entry['n']})" if entry["n"] != result["n"] else ""
    return f"{entry['auac'][0]:.3f} / {entry['au_mse'][0]:.2f}{few}"


def _rows(results: Mapping[str, dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The results of some methods."""
    return {
        key: {**r, "methods": {name: r["methods"][name] for name in names if name in r["methods"]}}
        for key, r in results.items()
    }


def full(results: Mapping[str, dict[str, Any]]) -> str:
    """Both metrics with intervals, the paper's numbers in square brackets below ours."""
    chosen = _rows(results, SHORT)
    return "\n\n".join(
        reporting.table(chosen, *metric, semaine=True) for metric in reporting.METRICS
    )


def between(results: Mapping[str, dict[str, Any]]) -> str:
    """AUAC and AU-MSE on models between the paper's and ours, the paper's AUAC beside them.

    Args:
        results (mapping): Of ``attention``, ``attention-mlp`` and ``sst2``.
    """
    order = [name for name in (*ablation.VARIANTS, "sst2") if name in results]
    titles = [ablation.TITLES.get(name, results[name]["model"]) for name in order]
    lines = [
        f"| method | {' | '.join(titles)} | AUAC in the paper |",
        "|---" * (len(order) + 2) + "|",
    ]
    for method in HEADLINE:
        cells = [_pair(results[name], method) for name in order]
        theirs = published.find("auac", "sst2", method)
        lines.append(f"| {method} | {' | '.join(cells)} | {theirs} |")
    return "\n".join(lines)


def depth(result: Mapping[str, Any]) -> str:
    """AUAC of relevance at the input of each block.

    Args:
        result (mapping): Of ``depth``.
    """
    rows: dict[str, list[str]] = {}
    for method, entry in result["methods"].items():
        name, comma, _ = method.partition(", block ")
        if comma:
            rows.setdefault(name, []).append(f"{entry['auac'][0]:.3f}")
    count = max(map(len, rows.values()))
    lines = [
        f"| AUAC at the input of block | {' | '.join(str(i + 1) for i in range(count))} |",
        "|---" * (count + 1) + "|",
    ]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(row)} |" for name, row in rows.items())])


def blocks(
    results: Mapping[str, dict[str, Any]], others: Mapping[str, dict[str, Any]]
) -> dict[str, str]:
    """The tables by the name of their place.

    Args:
        results (mapping): Of the data sets, in order.
        others (mapping): ``attention``, ``attention-mlp`` and ``depth``, as far as they are there.
    """
    found = {"headline": headline(results), "results": full(results), "bar": bar.table(results)}
    known = {**others, **{name: r for name, r in results.items() if name == "sst2"}}
    if any(name in others for name in ablation.VARIANTS):
        found["between"] = between(known)
    if "depth" in others:
        found["depth"] = depth(others["depth"])
    return found


def fill(text: str, tables: Mapping[str, str]) -> str:
    r"""A page with its tables.

    Args:
        text (str): The page.
        tables (mapping): Of :func:`blocks`; those that have no place are left out.

    Example::

        >>> fill("<!-- a -->\nold\n<!-- end -->\n", {"a": "new", "b": "x"})
        '<!-- a -->\nnew\n<!-- end -->\n'
    """

    def replaced(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- {name} -->\n{tables[name]}\n<!-- end -->" if name in tables else match[0]

    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", replaced, text, flags=re.DOTALL)


def write(tables: Mapping[str, str]) -> None:
    """Puts the tables into the pages.

    Args:
        tables (mapping): Of :func:`blocks`.
    """
    for path in PAGES:
        path.write_text(fill(path.read_text(encoding="utf-8"), tables), encoding="utf-8")
