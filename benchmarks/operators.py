"""What a call costs: operations, memory, and where its time goes, by torch's profiler.

What a rule can save is the work of operators that it leaves out.  The time that the machine needs
for those it cannot leave out, measured in the same run, is the bound of any implementation.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_PRODUCTS = ("addmm", "mm", "bmm", "baddbmm", "mkldnn_convolution", "convolution_backward")
_BACKWARD = "autograd::engine::evaluate_function"


@dataclass
class Shares:
    """Seconds of one call: in matrix products, in attention, in other operators, outside of them.

    ``python`` is what is left: Python, autograd's own work and the profiler's.
    """

    forward_products: float = 0.0
    backward_products: float = 0.0
    forward_attention: float = 0.0
    backward_attention: float = 0.0
    forward_others: float = 0.0
    backward_others: float = 0.0
    python: float = 0.0

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def shares(run: Callable[[], Any], repeats: int) -> Shares:
    """Mean over ``repeats`` calls of ``run()``, which was called before, under the profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as prof:
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        elapsed = time.perf_counter() - start
    found = Shares()
    backward: dict[int, bool] = {}

    def is_backward(event: Any) -> bool:
        if event is None:
            return False
        known = backward.get(id(event))
        if known is None:
            known = event.name.startswith(_BACKWARD) or is_backward(event.cpu_parent)
            backward[id(event)] = known
        return known

    for event in prof.events():
        if not event.name.startswith("aten::"):
            continue
        name = event.name.removeprefix("aten::")
        if name in _PRODUCTS:
            kind = "products"
        elif "scaled_dot_product" in name:
            kind = "attention"
        else:
            kind = "others"
        which = f"{'backward' if is_backward(event) else 'forward'}_{kind}"
        setattr(found, which, getattr(found, which) + event.self_cpu_time_total * 1e-6 / repeats)
    found.python = elapsed / repeats - found.total
    return found


class Counter(TorchDispatchMode):
    """Floating point operations by torch's formulas (its own counter stumbles over ``grad``)."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += int(count(*args, **(kwargs or {}), out_val=out))
        return out


def peak_memory(run: Callable[[], Any]) -> tuple[int, int]:
    """Bytes of tensors at the highest point of ``run()``, above what is held before it.

    And the floating point operations of its matrix products, counted in the same call.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof, Counter() as work:
        run()
    held = peak = 0
    records = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(records, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak, work.total
