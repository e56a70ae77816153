"""Token ids of every family of transformers, against finite differences of the looked-up rows.

Usage::

    python benchmarks/lookups.py                 # all families; writes benchmarks/lookups.md
    python benchmarks/lookups.py --only bart t5  # print these, write nothing

Which rows belong to an id is found without following anything: every id is changed in turn, and
the places of an index that change with it are its own. These rows are then scaled up and down by a
small factor; the difference that this makes is the gradient times the rows, which is what the
preset ``gi`` must give to the id (its part from tables of words; positions have no id). In float64
where the model runs in it.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from commits import made_with
from torch import Tensor
from torch.overrides import TorchFunctionMode

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT)]

from captum_lrp_tx import ConservativeLRP  # noqa: E402
from captum_lrp_tx.errors import NonFiniteError  # noqa: E402
from families import huggingface  # noqa: E402
from families.common import Case, NotBuilt  # noqa: E402

LIMIT_SECONDS = 120
#: Steps, with the weights of their differences, and how well these agree where all is right.
EXACT = ((1e-5, 1.0),), 1e-4
#: For models that go through float32 inside, which needs wide steps, but may have kinks, which
#: narrow ones must not cross: the best of these counts. Two steps together cancel the cubic term.
OTHERS = (
    ((1e-2, -1 / 3), (5e-3, 4 / 3)), ((1e-3, 1.0),), ((1e-4, 1.0),), ((1e-7, 1.0),),
), 1e-2  # fmt: skip
#: Below this share of the output nothing can be told from rounding in float32.
LEAST = 1e-4
REPORT = ROOT / "benchmarks" / "lookups.md"


class Late(BaseException):
    """A family took too long."""


class Nothing(Exception):
    """Plain gradients leave the words nothing: a norm stands right behind them."""


class Lookups(TorchFunctionMode):
    """Records every lookup in a table, and passes its rows through a function."""

    def __init__(self, change: Callable[[int, Tensor], Tensor] = lambda _, rows: rows) -> None:
        super().__init__()
        self.change = change
        self.found: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "embedding":
            given = [*args, *(kwargs or {}).values()]
            index, table = sorted((t for t in given if isinstance(t, Tensor)), key=_is_float)
            self.found.append((index.clone(), table))
            return self.change(len(self.found) - 1, result)
        return result


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


@torch.no_grad()
def by_differences(case: Case, steps: Any) -> tuple[Tensor, list[Tensor]]:
    """What scaling the rows of each id does to the explained output, and the tables they are of."""
    ids = case.inputs
    with Lookups() as before:
        case.forward(ids.clone())
    owned: list[list[Tensor]] = []  # for each id, the places in each lookup
    for place in range(ids.numel()):
        other = ids.flatten().clone()
        other[place] += 1 if other[place] < ids.max() else -1  # no special token
        with Lookups() as after:
            case.forward(other.view(ids.shape))
        pairs = zip(before.found, after.found, strict=True)
        owned.append([a[0] != b[0] for a, b in pairs])
    if not any(bool(mask.any()) for masks in owned for mask in masks):
        raise NotBuilt("its ids are not looked up by torch.nn.functional.embedding")
    result = torch.zeros(ids.numel(), dtype=torch.float64)
    for place, masks in enumerate(owned):
        for step, weight in (pair for s, w in steps for pair in ((s, w), (-s, w))):

            def scaled(number: int, rows: Tensor, masks: Any = masks, step: Any = step) -> Tensor:
                return rows * (1 + step * masks[number][..., None].to(rows.dtype))

            with Lookups(scaled):
                value = case.select(case.forward(ids.clone())).sum()
            result[place] += weight * float(value) / (2 * step)
    tables = [
        table
        for number, (_, table) in enumerate(before.found)
        if any(bool(masks[number].any()) for masks in owned)
    ]
    return result.view(ids.shape), tables


def error_of(case: Case, steps: Any, dtype: torch.dtype = torch.float64) -> float:
    """Of the package under plain gradients, relative to the largest difference."""
    case.model.to(dtype)
    if hasattr(case.model, "set_experts_implementation"):
        case.model.set_experts_implementation("eager")  # grouped products know no float64
    given: dict[str, Any] = case.forward.arguments  # type: ignore[attr-defined]
    for name, value in given.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            given[name] = value.to(dtype)
    expected, tables = by_differences(case, steps)
    parts = ConservativeLRP(case.forward, "gi").attribute(
        case.inputs, target=case.target, positions="separate"
    )
    pointers = {table.data_ptr() for table in tables}
    named = dict(case.model.named_modules(remove_duplicate=False))
    words = [
        part
        for name, part in parts.items()
        if getattr(getattr(named.get(name), "weight", None), "data_ptr", int)() in pointers
    ]
    if not words:
        raise NotBuilt(f"tables by other names: {', '.join(parts)}")
    got = torch.stack(words).sum(0)
    with torch.no_grad():
        least = LEAST * float(case.select(case.forward(case.inputs)).abs().max())
    largest = float(got.abs().max())
    if largest < least:
        raise Nothing
    return float((got - expected).abs().max()) / max(float(expected.abs().max()), largest)


def judged(name: str) -> str:
    """What became of a family: an error in digits, or why it was not compared."""
    signal.alarm(LIMIT_SECONDS)
    try:
        cases = [c for c in huggingface.cases(name) if not c.inputs.is_floating_point()]
        if not cases:
            return "no token ids"
        dtype = torch.float64
        try:
            error = error_of(cases[0], EXACT[0])
        except (RuntimeError, NonFiniteError):  # not in float64
            dtype, error = torch.float32, math.inf
        if not error <= EXACT[1]:  # the model may go through float32
            return f"{min(error_of(cases[0], s, dtype) for s in OTHERS[0]):.1e} with other steps"
        return f"{error:.1e}"
    except NotBuilt as error:
        return f"not built: {error}"
    except Nothing:
        return "nothing left by a norm right behind the words"
    except Late:
        return f"not compared: more than {LIMIT_SECONDS} seconds"
    except Exception as error:
        text = " ".join(str(error).split())[:150]
        return f"not compared: {type(error).__name__}: {text}"
    finally:
        signal.alarm(0)


def page(found: dict[str, str], made: str) -> str:
    """The report."""
    errors = {k: float(v.split()[0]) for k, v in found.items() if v[0].isdigit()}
    others = [k for k in errors if "other" in found[k]]
    wrong = [k for k in others if not errors[k] <= OTHERS[1]]
    failed = {k: v for k, v in found.items() if v.startswith("not compared")}
    kinds = Counter(v.split(":")[0] for v in found.values())
    nothing = sum(v.startswith("nothing") for v in found.values())
    exact = len(errors) - len(others)
    lines = [
        "# Token ids against finite differences\n",
        f"`python benchmarks/lookups.py` ({made}). "
        + " ".join((__doc__ or "").split("\n\n")[3].split()) + "\n",
        f"Of {len(found)} families {kinds['not built']} are not built and {kinds['no token ids']} "
        f"take no token ids; in {nothing} a norm right "
        f"behind the words leaves them nothing. {len(errors)} are compared: {exact} agree at "
        f"{EXACT[1]:.0e} of the largest value with steps of {EXACT[0][0][0]:.0e}, "
        f"{len(others) - len(wrong)} at {OTHERS[1]:.0e} with other steps (they go through float32 "
        f"inside, or have a kink there), {len(wrong)} do not. {len(failed)} cannot be compared.\n",
        "| family | error, or why there is none |", "|---|---|",
    ]  # fmt: skip
    lines += [f"| {k} | {found[k]} |" for k in sorted([*wrong, *failed])]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], help="print these, write nothing")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    def late(*_: Any) -> None:
        raise Late

    signal.signal(signal.SIGALRM, late)
    torch.set_num_threads(1)
    made = made_with("torch", "transformers")
    found: dict[str, str] = {}
    for name in arguments.only or huggingface.names():
        found[name] = judged(name)
        print(f"{name:<34} {found[name]}", flush=True)
    if not arguments.only:
        REPORT.write_text(page(found, made), encoding="utf-8")
        print(REPORT.read_text("utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
