"""Time and memory of an explanation against plain gradient x input, for docs/explanation/cost.md.

    python benchmarks/speed.py --output benchmarks/speed.md --page docs/explanation/cost.md \
        --workloads bert6-8x128 bert6-1x24 llama-1x512 bert-8x128 bert-2x512

Every method explains the same model (random weights, architectures of published size), the same
batch and the same target in one process, one after the other in turns; the numbers are ratios of
medians to Captum's ``InputXGradient``.  Memory is the peak of tensor memory that the allocator
handed out during the call, on top of what was held before it, by torch's profiler.

``operations`` is the number of floating point operations in matrix products (torch's counter, which
leaves out fused attention kernels): what the time could come down to if nothing else cost any.
``bound`` is the time that these products, the forward pass's attention and its other operators take
at the speed measured for ``InputXGradient``: what no implementation of the rules can go below here.
The first table has all presets and options on all inputs, beside integrated gradients with 5 to 50
steps; below each input's own table is where the time goes.
``--clock cpu`` takes the processor time of the process instead of the wall clock, for machines
that do something else meanwhile.

    python benchmarks/speed.py --lengths --output benchmarks/lengths.md
    python benchmarks/speed.py --lxt --output benchmarks/lxt.md

measure memory against the number of tokens, and lxt beside this package (in an environment of its
own, see ``against_lxt.py``).
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import against_lxt
import captum
import lengths
import torch
import transformers
from commits import commit
from methods import FORWARD, REFERENCE, Method, methods, options
from operators import Shares, shares
from turns import HEADS, Clock, Row, rows, table
from workloads import WORKLOADS

#: Whose time is looked into, operator by operator.
PROFILED = (REFERENCE, "ah+ln", "lrp", "lrp-gamma", "attnlrp")


def profiled(found: dict[str, Method], measured: list[Row], repeats: int) -> list[str]:
    """Where the time goes; notes the bound that follows for each method."""
    spent = {name: shares(found[name].call, repeats) for name in PROFILED if name in found}
    heads = (
        "seconds in", "products, forward", "products, backward", "attention, forward",
        "attention, backward", "other operators, forward", "other operators, backward",
        "Python, autograd, profiler", "sum",
    )  # fmt: skip
    lines = [
        [name, *(f"{value:.3f}" for value in (*vars(s).values(), s.total))]
        for name, s in spent.items()
    ]
    ours = options()
    for row in measured:
        if row.method in ours:
            row.bound = bound(spent[REFERENCE], row)
    return table(heads, lines)


def bound(plain: Shares, row: Row) -> float:
    """The least time of a method over that of the reference, at the speed measured for that."""
    products = plain.forward_products + plain.backward_products
    others = plain.forward_attention + plain.forward_others
    return (row.operations * products + others) / plain.total


def summary(measured: dict[str, list[Row]]) -> list[str]:
    """All methods on all inputs: time and memory over the reference."""
    names = list(
        dict.fromkeys(row.method.split(" (")[0] for rows in measured.values() for row in rows)
    )
    by_input = [
        {row.method.split(" (")[0]: f"{row.time:.2f} / {row.memory:.2f}" for row in rows}
        for rows in measured.values()
    ]
    lines = [[name, *(found.get(name, "") for found in by_input)] for name in names]
    heads = (f"time / memory over {REFERENCE}", *(WORKLOADS[key].name for key in measured))
    return [*table(heads, lines), ""]


def into_page(page: Path, lines: list[str]) -> None:
    """Put the table of all methods between the marks of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition("<!-- cost -->\n")
    _, end, after = rest.partition("<!-- end -->")
    page.write_text(
        before + "<!-- cost -->\n" + "\n".join(lines).rstrip() + "\n" + end + after,
        encoding="utf-8",
    )


def conditions(args: argparse.Namespace) -> str:
    """Machine, versions, commit and how it was measured."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads; load before the "
        f"start {load:.1f}; torch {torch.__version__}, transformers {transformers.__version__}, "
        f"captum {captum.__version__}, commit {commit()}; {args.clock} clock, "
        "medians of turns (range in brackets)."
    )


def section(
    key: str, args: argparse.Namespace, clock: Clock, measured: dict[str, list[Row]]
) -> list[str]:
    """Tables of one workload; notes its rows in ``measured``."""
    workload = WORKLOADS[key]
    torch.manual_seed(0)
    model, x = workload.build()
    found = methods(model, x, workload.ig_steps)
    wanted = {FORWARD, REFERENCE, *(args.methods or found)}
    found = {
        name: method
        for name, method in found.items()
        if name in wanted or (args.ig and name.startswith("IG"))
        if args.ig or not name.startswith("IG")
    }
    repeats = args.repeats or workload.turns
    measured[key] = rows(found, workload.goals, repeats, clock)
    spent: list[str] = []
    if args.profile:
        spent = ["", *profiled(found, measured[key], 1 if workload.turns < 10 else 10)]
    turns = f"{repeats} turn{'s' * (repeats != 1)}."
    cells = [row.cells() for row in measured[key]]
    return [f"## {workload.name}", "", turns, "", *table(HEADS, cells), *spent, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--methods", nargs="+", help="presets and options, by their names here")
    parser.add_argument("--repeats", type=int, help="turns (default: by the cost of a workload)")
    parser.add_argument(
        "--ig", action=argparse.BooleanOptionalAction, default=True, help="integrated gradients"
    )
    parser.add_argument(
        "--profile", action=argparse.BooleanOptionalAction, default=True, help="where time goes"
    )
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path)
    parser.add_argument("--page", type=Path, help="a page whose table is to be this one")
    special = parser.add_mutually_exclusive_group()
    special.add_argument("--lxt", action="store_true", help="lxt beside this package, only")
    special.add_argument("--lengths", action="store_true", help="memory by tokens, only")
    parser.add_argument("--tokens", type=int, nargs="+", help="of --lengths")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    title = "Time and memory"
    measured: dict[str, list[Row]] = {}
    parts: list[Callable[[], list[str]]]
    if args.lengths:
        title = "Memory by the number of tokens"
        parts = [functools.partial(lengths.section, args.tokens or lengths.TOKENS)]
    elif args.lxt:
        title = "Beside lxt"
        parts = against_lxt.sections(args.repeats, clock)
    else:
        parts = [functools.partial(section, key, args, clock, measured) for key in args.workloads]
    lines = [f"# {title}", "", conditions(args), ""]
    print("\n".join(lines), flush=True)
    for part in parts:
        made = part()
        print("\n".join(made), flush=True)
        lines += made
        page = [*lines[:4], *(summary(measured) if measured else []), *lines[4:]]
        if args.output is not None:  # what there is, should the rest not come to an end
            args.output.write_text("\n".join(page), encoding="utf-8")
    if measured:
        print("\n".join(summary(measured)), flush=True)
        if args.page is not None:
            into_page(args.page, summary(measured))


if __name__ == "__main__":
    main()
