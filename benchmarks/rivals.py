"""Side by side: what this package, Captum, zennit, lxt and autoLRP do with the same models.

``python benchmarks/rivals.py --report benchmarks/rivals.md`` in an environment that lxt can be
used in (transformers 4.52)::

    python -m venv rivals
    rivals/bin/pip install torch==2.13.0 torchvision==0.28.0 captum==0.9.0
    rivals/bin/pip install transformers==4.52.4 jinja2 lazy_loader tabulate matplotlib
    rivals/bin/pip install --no-deps lxt==2.1 zennit==0.5.1 autolrp==0.2.0
    PYTHONPATH=. rivals/bin/python benchmarks/rivals.py --report benchmarks/rivals.md

A tool that is not installed is left out.  The models are in ``rival_families.py``, how each tool
is used in ``rival_tools.py``.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "helpers"), str(ROOT)]

import torch  # noqa: E402
from rival_families import LISTED, ODD, build, inputs  # noqa: E402
from rival_tools import (  # noqa: E402
    EXACT,
    IG,
    TOOLS,
    Tool,
    apart,
    attempt,
    installed,
    ours,
    write,
)
from rival_words import WORDS, introduction, number, table  # noqa: E402
from torch import Tensor, nn  # noqa: E402

#: The model that the state afterwards is looked at with: BERT where a tool takes it.
HOME = {"Captum LRP": "CNN", "Captum LRP, told": "CNN", "zennit": "CNN"}
DISTRIBUTED = 'ours, `bias="distribute"`'
STRICT = Tool("captum_lrp_tx", ours(strict=True), refusals=("UncoveredOperationError",))
SUMS = {
    "ours": TOOLS["ours"],
    DISTRIBUTED: Tool("captum_lrp_tx", ours(bias="distribute")),
    **{name: tool for name, tool in TOOLS.items() if name != "ours"},
}


def target_of(model: nn.Module, x: Tensor) -> tuple[int, float]:
    """The index of the largest logit, and its value."""
    with torch.no_grad():
        logits = model(x)[0]
    index = int(logits.abs().argmax())
    return index, float(logits[index])


def share(name: str, tool: Tool, family: str, biases: bool) -> tuple[str, Any]:
    """What became of one explanation: a word, and relevance over logit or the reason.

    Integrated gradients are over the difference to the logit of the baseline, as they promise.
    """

    def run() -> float:
        tool.prepare(family)
        model, x = build(family, biases), inputs(family)
        index, logit = target_of(model, x)
        relevance = tool.explain(model, x.clone(), index)
        if name == IG:
            with torch.no_grad():
                logit -= float(model(torch.zeros_like(x))[0, index])
        return float(relevance.sum()) / logit

    return attempt(run, tool)


def named(family: str) -> float:
    """Relevance of inputs and of the constants that the audit names, over the logit."""
    from captum_lrp_tx import audit

    model, x = build(family), inputs(family)
    index, _ = target_of(model, x)
    report = audit.explainability(model, x, target=index, file=None)
    return 1 - report.conservation_error / report.output


def expected(family: str, rules: str) -> Any:
    """What the oracle says, as an array, and whether it says it under a convention of its own."""
    import oracle

    model, x = build(family), inputs(family)
    index, _ = target_of(model, x)
    (result,) = oracle.oracle_relevance(model, (x,), rules, lambda y: y[:, index])
    return result.numpy()


def error(tool: Tool, family: str, reference: Any) -> tuple[str, Any]:
    """The largest difference from a reference over its largest entry."""

    def run() -> float:
        tool.prepare(family)
        model, x = build(family), inputs(family)
        found = tool.explain(model, x.clone(), target_of(model, x)[0]).numpy()
        return float(abs(found - reference).max() / abs(reference).max())

    return attempt(run, tool)


def _places(model: nn.Module) -> list[Any]:
    """Every class of the model's modules with its bases, the files they are in, and torch."""
    kinds = {kind for m in model.modules() for kind in type(m).__mro__ if kind is not object}
    files = {kind.__module__ for kind in kinds} & set(sys.modules)
    return [*kinds, *(sys.modules[file] for file in files), torch, nn.functional, Tensor]


class State:
    """What a model and its classes are like, to compare with later."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        with torch.no_grad():
            self.logits = model(x)
        self.parameters = [p.detach().clone() for p in model.state_dict().values()]
        modules = list(model.modules())
        self.hooks = sum(len(v) for m in modules for k, v in vars(m).items() if "_hooks" in k)
        self.marks = {key for m in modules for key in vars(m)}
        self.trained = [(p.requires_grad, p.grad is None) for p in model.parameters()]
        self.places = [(place, dict(vars(place))) for place in _places(model)]

    def changes(self, later: State) -> list[str]:
        """In words; empty if nothing has changed."""
        patched = {
            (place, key)
            for place, before in self.places
            for key, value in before.items()
            if vars(place).get(key) is not value and not key.startswith("__")
        }
        marks = ", ".join(f"`{key}`" for key in sorted(later.marks - self.marks))
        same = len(self.parameters) == len(later.parameters) and all(
            torch.equal(a, b) for a, b in zip(self.parameters, later.parameters, strict=True)
        )
        difference = float((self.logits - later.logits).abs().max())
        told = {
            "parameters differ": not same,
            f"logits differ by {difference:.0e}": difference > 0 or difference != difference,
            f"{later.hooks - self.hooks} hooks left": later.hooks != self.hooks,
            f"attribute {marks} left on modules": bool(marks),
            "`requires_grad` or `.grad` of parameters": later.trained != self.trained,
            f"{len(patched)} classes and functions still replaced": bool(patched),
        }
        return [text for text, holds in told.items() if holds]


@contextlib.contextmanager
def raising(model: nn.Module, call: int) -> Iterator[None]:
    """A layer in the middle raises at this call of it."""
    leaves = [m for m in model.modules() if isinstance(m, nn.Linear)]
    calls = 0

    def stop(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyError("interrupted")

    handle = leaves[len(leaves) // 2].register_forward_pre_hook(stop)
    try:
        with contextlib.suppress(KeyError):
            yield
    finally:
        handle.remove()


def afterwards(tool: Tool, family: str, call: int = 0) -> list[str]:
    """What has changed after an explanation, or after one that is interrupted at a call."""
    model, x = build(family), inputs(family)
    before, (index, _) = State(model, x), target_of(model, x)
    tool.prepare(family)
    model = build(family)
    with raising(model, call):
        tool.explain(model, x.clone(), index)
    return before.changes(State(model, x))


def threads(tool: Tool, family: str, rounds: int = 10) -> str:
    """Two threads explain two inputs with one model, at the same time: what comes out."""
    tool.prepare(family)
    model, both = build(family), inputs(family, batch=2)
    alone = [tool.explain(model, both[i : i + 1].clone(), i) for i in range(2)]
    meet = threading.Barrier(2)
    wrong: list[float] = []
    failed: list[str] = []

    def explain(i: int) -> None:
        for _ in range(rounds):
            meet.wait(60)
            try:
                found = tool.explain(model, both[i : i + 1].clone(), i)
            except Exception as failure:
                failed.append(type(failure).__name__)
                continue
            wrong.append(float((found - alone[i]).abs().max() / alone[i].abs().max()))

    workers = [threading.Thread(target=explain, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    told = [f"{len(failed)} of {2 * rounds} raise {failed[0]}"] if failed else []
    differ = [w for w in wrong if w > 1e-9 or w != w]
    told += [f"{len(differ)} of {2 * rounds} wrong, by up to {max(differ):.0e}"] if differ else []
    return "; ".join(told) or "same"


def tested(name: str, function: Callable[..., Any], tool: Tool, *more: int) -> str:
    """A cell about the model that this tool is looked at with."""
    result = apart(function, tool, HOME.get(name, "BERT"), *more)
    return result if isinstance(result, str) else "; ".join(result) or "as before"


def sections(tools: dict[str, Tool], families: list[str]) -> list[str]:
    """All that is measured, in tables."""
    sums = {n: t for n, t in SUMS.items() if n in tools or n == DISTRIBUTED}
    found: dict[tuple[str, str, bool], tuple[str, Any]] = {
        (name, family, biases): apart(share, name, tool, family, biases)
        for name, tool in sums.items() for family in families for biases in (False, True)
    }  # fmt: skip
    runs = {n: [f for f in families if found[n, f, True][0] in ("runs", "warns")] for n in tools}
    lines = ["## Which models are explained", "", WORDS["coverage"], ""]
    rows = [[f, *(found[n, f, True][0].replace("warns", "runs") for n in tools)] for f in families]
    rows.append(["of all", *(f"{len(runs[n])} of {len(families)}" for n in tools)])
    lines += table(["model", *tools], rows)
    reasons: dict[str, list[str]] = {}
    for (name, family, biases), (word, why) in found.items():
        if word in ("refuses", "raises") and biases and name in tools:
            reasons.setdefault(f"{name} {word}: {why[:150]}", []).append(family)
    lines += ["What is said, the first 150 characters, with the models of which it is said:", ""]
    lines += [f"- `{reason}` ({', '.join(of)})" for reason, of in reasons.items()] + [""]
    for biases, title in ((False, "without"), (True, "with")):
        lines += [f"## Conservation {title} biases", "", WORDS[title], ""]
        more = ["ours, inputs and named constants"] * biases
        lines += table(
            ["model", *more, *sums],
            [
                [f, *(f"{apart(named, f):.3f}" for _ in more),
                 *(number(*found[n, f, biases]) for n in sums)] for f in families
            ],
        )  # fmt: skip
    lines += ["## Against an independent oracle", "", WORDS["oracle"], ""]
    exact = {n: (t, r) for n, (t, r) in EXACT.items() if installed(t)}
    rows = []
    for family in families:
        truth = {rules: apart(expected, family, rules) for _, rules in exact.values()}
        cells = [apart(error, t, family, truth[rules]) for t, rules in exact.values()]
        rows.append([family, *(number(*cell, exact=True) for cell in cells)])
    lines += table(["model", *(f"{n} (`{r}`)" for n, (_, r) in exact.items())], rows)
    lines += ["## What is left behind", "", WORDS["state"], ""]
    checks = [
        [name, HOME.get(name, "BERT"), tested(name, afterwards, tool),
         *(tested(name, afterwards, tool, call) for call in (1, 2)), tested(name, threads, tool)]
        for name, tool in tools.items()
    ]  # fmt: skip
    heads = ["after an explanation", "after one interrupted in the first pass",
             "at the layer's second call, if there is one", "two threads, one model"]  # fmt: skip
    lines += table(["tool", "model", *heads], checks)
    lines += ["## Unusual operations", "", WORDS["odd"], ""]
    odd = {**tools, "ours, `strict=True`": STRICT}
    rows = []
    for name, tool in odd.items():
        cells = [apart(share, name, tool, f"odd: {op}", False) for op in ODD]
        rows.append([name, *(f"{w.replace('runs', 'silent')}, {number(w, c)}" for w, c in cells)])
    return [*lines, *table(["tool", *ODD], rows)]


def page() -> list[str]:
    """Measure."""
    return [
        *introduction("Beside other tools", "rivals"),
        *sections({n: t for n, t in TOOLS.items() if installed(t)}, LISTED),
    ]


if __name__ == "__main__":
    write(__doc__, page)
