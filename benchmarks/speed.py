"""Time and memory of an explanation against plain gradient x input: the table in the README.

    python benchmarks/speed.py --output benchmarks/speed.md

Every method explains the same model (random weights, architectures of published size), the same
batch and the same target in one process, one after the other in turns; the numbers are ratios of
medians to Captum's ``InputXGradient``.  Memory is the peak of tensor memory that the allocator
handed out during the call, on top of what was held before it, by torch's profiler.

``operations`` is the number of floating point operations in matrix products (torch's counter, which
leaves out fused attention kernels): what the time could come down to if nothing else cost any.
Below each table is where the time goes, and the bound that follows from it on this machine.
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
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import captum
import torch
import transformers
from captum.attr import InputXGradient, IntegratedGradients
from operators import Shares, peak_memory, shares
from torch import Tensor, nn
from workloads import GI, LOW, LRP, WORKLOADS, Workload

from captum_lrp_tx import ConservativeGI, ConservativeLRP

REFERENCE = "InputXGradient"
Clock = Callable[[], float]
HEADS = (
    "method", "seconds", f"time / {REFERENCE}", "peak MiB", f"memory / {REFERENCE}",
    f"operations / {REFERENCE}", "goal (time / memory)",
)  # fmt: skip


@dataclass
class Method:
    """Something to measure: ``call()`` does ``1 / times`` of the work, and is run ``turns`` times.

    ``turns`` is ``None`` for what is measured in every turn; ``memory()`` tells the bytes of a call
    that runs in another process.
    """

    call: Callable[[], Any]
    times: float = 1.0
    turns: int | None = None
    memory: Callable[[], int] | None = None


def methods(workload: Workload, model: nn.Module, x: Tensor) -> dict[str, Method]:
    """What is compared."""
    target = torch.zeros(x.shape[0], dtype=torch.long)

    def forward() -> None:
        with torch.no_grad():
            model(x)

    found = {"forward": Method(forward)}
    explained: list[tuple[str, Any]] = [
        (REFERENCE, InputXGradient(model)),
        (GI, ConservativeGI(model)),
        (LRP, ConservativeLRP(model)),
    ]
    if LOW in workload.goals:
        explained.append((LOW, ConservativeGI(model, memory="low")))
    for name, method in explained:
        found[name] = Method(functools.partial(method.attribute, x, target=target))
    steps = workload.ig_steps
    integrated = functools.partial(
        IntegratedGradients(model).attribute, x, target=target, n_steps=steps,
        internal_batch_size=x.shape[0],
    )  # fmt: skip
    name = "IG, 50 steps" if steps == 50 else f"IG, 50 steps ({steps} measured)"
    found[name] = Method(integrated, 50 / steps, turns=1)
    return found


def measure(found: dict[str, Method], repeats: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of every call, in turns so that what slows the machine slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(repeats + 1):
        for name, method in found.items():
            if method.turns is not None and not 0 < turn <= method.turns:
                continue
            start = clock()
            method.call()
            if turn:  # the first turn checks the model and fills caches
                seconds[name].append((clock() - start) * method.times)
    return seconds


@dataclass
class Row:
    """What was measured of one method on one workload, beside the reference."""

    method: str
    seconds: float
    time: float
    time_range: tuple[float, float]
    mebibytes: float
    memory: float
    operations: float
    goal: tuple[float, float] | None

    def cells(self) -> list[str]:
        low, high = self.time_range
        goal = "" if self.goal is None else f"{self.goal[0]:.2f} / {self.goal[1]:.2f}"
        return [
            self.method, f"{self.seconds:.3f}", f"{self.time:.2f} ({low:.2f} to {high:.2f})",
            f"{self.mebibytes:.0f}", f"{self.memory:.2f}",
            "" if math.isnan(self.operations) else f"{self.operations:.2f}", goal,
        ]  # fmt: skip


def rows(
    found: dict[str, Method],
    goals: dict[str, tuple[float, float]],
    repeats: int,
    clock: Clock,
) -> list[Row]:
    """Measure all methods on one workload."""
    seconds = measure(found, repeats, clock)
    memory, work = {}, {}
    for name, method in found.items():
        if method.memory is not None:
            memory[name], work[name] = method.memory(), float("nan")
            continue
        memory[name], count = peak_memory(method.call)
        work[name] = count * method.times
    reference = seconds[REFERENCE]
    result = []
    for name in found:
        ratios = [a / b for a, b in zip(seconds[name], reference, strict=False)]
        result.append(
            Row(
                name, statistics.median(seconds[name]), statistics.median(ratios),
                (min(ratios), max(ratios)), memory[name] / 2**20,
                memory[name] / memory[REFERENCE], work[name] / work[REFERENCE], goals.get(name),
            )
        )  # fmt: skip
    return result


def table(heads: tuple[str, ...], lines: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    return [
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
        *(f"| {' | '.join(cells)} |" for cells in lines),
    ]


def profiled(found: dict[str, Method], measured: list[Row], repeats: int) -> list[str]:
    """Where the time of gradient x input and of ``ConservativeGI`` goes, and what bounds it."""
    spent = {name: shares(found[name].call, repeats) for name in (REFERENCE, GI)}
    heads = (
        "seconds in", "products, forward", "products, backward", "attention, forward",
        "attention, backward", "other operators, forward", "other operators, backward",
        "Python, autograd, profiler", "sum",
    )  # fmt: skip
    lines = [
        [name, *(f"{value:.3f}" for value in (*vars(s).values(), s.total))]
        for name, s in spent.items()
    ]
    return [*table(heads, lines), "", bound(spent, {row.method: row for row in measured})]


def bound(spent: dict[str, Shares], measured: dict[str, Row]) -> str:
    """The least time under the AH- and LN-rules, at the speed measured for each operator."""
    plain, ours = spent[REFERENCE], spent[GI]
    forward = measured["forward"].operations
    needed = (measured[GI].operations - forward) / (1.0 - forward)
    least = (
        plain.forward_products + plain.forward_attention + plain.forward_others
        + needed * plain.backward_products + ours.backward_attention
    )  # fmt: skip
    return (
        f"Bound of {GI}: the forward pass, {needed:.0%} of the products of the backward pass and "
        f"its attention kernel take {least:.3f} s at this speed, **{least / plain.total:.2f}** of "
        f"{REFERENCE}; all other operators of the backward pass and Python not counted."
    )


def conditions(args: argparse.Namespace) -> str:
    """Machine, versions and how it was measured."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads; load before the "
        f"start {load:.1f}; torch {torch.__version__}, transformers {transformers.__version__}, "
        f"captum {captum.__version__}; {args.clock} clock, medians of turns (range in brackets)."
    )


def section(key: str, args: argparse.Namespace, clock: Clock) -> list[str]:
    """Tables of one workload."""
    workload = WORKLOADS[key]
    torch.manual_seed(0)
    model, x = workload.build()
    found = methods(workload, model, x)
    if not args.ig:
        found = {name: method for name, method in found.items() if not name.startswith("IG")}
    repeats = args.repeats or workload.turns
    measured = rows(found, workload.goals, repeats, clock)
    turns = f"{repeats} turn{'s' * (repeats != 1)}."
    lines = [f"## {workload.name}", "", turns, "", *table(HEADS, [r.cells() for r in measured])]
    if args.profile:
        lines += ["", *profiled(found, measured, 1 if workload.turns < 10 else 10)]
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
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
    special = parser.add_mutually_exclusive_group()
    special.add_argument("--lxt", action="store_true", help="lxt beside this package, only")
    special.add_argument("--lengths", action="store_true", help="memory by tokens, only")
    parser.add_argument("--tokens", type=int, nargs="+", help="of --lengths")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    title = "Time and memory"
    parts: list[Callable[[], list[str]]]
    if args.lengths:
        import lengths

        title = "Memory by the number of tokens"
        parts = [functools.partial(lengths.section, args.tokens or lengths.TOKENS)]
    elif args.lxt:
        import against_lxt

        title = "Beside lxt"
        parts = against_lxt.sections(args.repeats, clock)
    else:
        parts = [functools.partial(section, key, args, clock) for key in args.workloads]
    lines = [f"# {title}", "", conditions(args), ""]
    print("\n".join(lines), flush=True)
    for part in parts:
        made = part()
        print("\n".join(made), flush=True)
        lines += made
        if args.output is not None:  # what there is, should the rest not come to an end
            args.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
