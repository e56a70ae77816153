"""Time, memory and operations of methods in turns, as rows of a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from methods import REFERENCE, Method
from operators import peak_memory

Clock = Callable[[], float]
HEADS = (
    "method", "seconds", f"time / {REFERENCE}", "peak MiB", f"memory / {REFERENCE}",
    f"operations / {REFERENCE}", "bound", "goal (time / memory)",
)  # fmt: skip


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
    goal: tuple[float, float | None] | None
    bound: float = float("nan")

    def cells(self) -> list[str]:
        low, high = self.time_range
        goal = " / ".join(_number(part) for part in self.goal or ())
        return [
            self.method, f"{self.seconds:.3f}", f"{self.time:.2f} ({low:.2f} to {high:.2f})",
            f"{self.mebibytes:.0f}", f"{self.memory:.2f}",
            _number(self.operations), _number(self.bound), goal,
        ]  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.2f}"


def rows(
    found: dict[str, Method],
    goals: dict[str, tuple[float, float | None]],
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
