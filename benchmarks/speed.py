"""Time and memory of an explanation against plain gradient x input: the table in the README.

    python benchmarks/speed.py --output benchmarks/speed.md

Every method explains the same model (random weights, architectures of published size), the same
batch and the same target in one process, one after the other in turns; the numbers are ratios of
medians to Captum's ``InputXGradient``.  Memory is the peak of tensor memory that the allocator
handed out during the call, on top of what was held before it, by torch's profiler.

``operations`` is the number of floating point operations in matrix products (torch's counter, which
leaves out fused attention kernels): what the time could come down to if nothing else cost any.
``--clock cpu`` takes the processor time of the process instead of the wall clock, for machines
that do something else meanwhile.
"""

from __future__ import annotations

import argparse
import functools
import gc
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
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from captum_lrp_tx import ConservativeGI, ConservativeLRP

REFERENCE = "InputXGradient"


@dataclass
class Workload:
    """A model, how it is called, and what is asked of it.

    Args:
        name (str): The row.
        build (callable): The model and a float input of it.
        forward (callable): From the model and the input to ``(batch, classes)``.
        goals (dict): Method to the greatest allowed ratio of time and of memory.
    """

    name: str
    build: Callable[[], tuple[nn.Module, Tensor]]
    goals: dict[str, tuple[float, float]]


class FromEmbeddings(nn.Module):
    """A text model called with embeddings, its first tensor the output of the last position."""

    def __init__(self, model: nn.Module, last: bool) -> None:
        super().__init__()
        self.model, self.last = model, last

    def forward(self, embeddings: Tensor) -> Tensor:
        if self.last:
            return self.model(inputs_embeds=embeddings, use_cache=False, logits_to_keep=1).logits[
                :, -1
            ]
        result: Tensor = self.model(inputs_embeds=embeddings).logits
        return result


class Pixels(nn.Module):
    """An image classifier whose output is its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=pixels).logits
        return logits


def bert(batch: int, tokens: int) -> tuple[nn.Module, Tensor]:
    """BERT-base: 12 layers, 768 wide, 12 heads."""
    config = transformers.BertConfig(max_position_embeddings=max(512, tokens), num_labels=2)
    model = transformers.BertForSequenceClassification(config).eval()
    return FromEmbeddings(model, last=False), torch.randn(batch, tokens, config.hidden_size)


def llama(batch: int, tokens: int) -> tuple[nn.Module, Tensor]:
    """Llama's parts: 8 layers, 1,024 wide, SwiGLU, 16 query heads on 4 key and value heads."""
    config = transformers.LlamaConfig(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=16,
        num_key_value_heads=4, vocab_size=1024, max_position_embeddings=max(4096, tokens),
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    return FromEmbeddings(model, last=True), torch.randn(batch, tokens, config.hidden_size)


def vit(batch: int) -> tuple[nn.Module, Tensor]:
    """ViT-B/16 at 224 x 224."""
    model = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=10)).eval()
    return Pixels(model), torch.randn(batch, 3, 224, 224)


GI, LRP, LOW = "ConservativeGI", "ConservativeLRP", "ConservativeGI, memory='low'"
WORKLOADS = {
    "bert-8x128": Workload(
        "BERT-base, 8 x 128", functools.partial(bert, 8, 128), {GI: (0.72, 0.40), LOW: (1.3, 0.15)}
    ),
    "bert-2x512": Workload(
        "BERT-base, 2 x 512", functools.partial(bert, 2, 512), {GI: (0.72, 0.40)}
    ),
    "bert-1x2048": Workload(
        "BERT-base, 1 x 2,048", functools.partial(bert, 1, 2048), {GI: (0.67, 0.40)}
    ),
    "bert-1x16": Workload("BERT-base, 1 x 16", functools.partial(bert, 1, 16), {GI: (1.05, 1.0)}),
    "llama-1x4096": Workload(
        "Llama-shaped, 1 x 4,096",
        functools.partial(llama, 1, 4096),
        {GI: (0.72, 0.60), LRP: (0.72, 0.45)},
    ),
    "vit-8x224": Workload("ViT-B/16, 8 x 224", functools.partial(vit, 8), {GI: (0.80, 0.40)}),
}


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


def operations(run: Callable[[], Any]) -> int:
    """Floating point operations of the matrix products in ``run()``."""
    with Counter() as counter:
        run()
    return counter.total


def peak_memory(run: Callable[[], Any]) -> int:
    """Bytes of tensors at the highest point of ``run()``, above what is held before it."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        run()
    held = peak = 0
    records = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(records, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def methods(model: nn.Module, x: Tensor, steps: int) -> dict[str, Callable[[], Any]]:
    """What is compared, each as a call without arguments."""
    target = torch.zeros(x.shape[0], dtype=torch.long)
    calls: dict[str, Callable[[], Any]] = {}

    def forward() -> None:
        with torch.no_grad():
            model(x)

    calls["forward"] = forward
    for name, method in (
        (REFERENCE, InputXGradient(model)),
        (GI, ConservativeGI(model)),
        (LRP, ConservativeLRP(model)),
        (LOW, ConservativeGI(model, memory="low")),
    ):
        calls[name] = functools.partial(method.attribute, x, target=target)
    if steps:
        calls[f"IG, {steps} steps"] = functools.partial(
            IntegratedGradients(model).attribute, x, target=target, n_steps=steps,
            internal_batch_size=x.shape[0],
        )  # fmt: skip
    return calls


def measure(
    calls: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of every call, in turns so that what slows the machine slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if turn:  # the first turn checks the model and fills caches
                seconds[name].append(clock() - start)
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
            f"{self.mebibytes:.0f}", f"{self.memory:.2f}", f"{self.operations:.2f}", goal,
        ]  # fmt: skip


def rows(workload: Workload, repeats: int, ig_steps: int, clock: Callable[[], float]) -> list[Row]:
    """Measure all methods on one workload."""
    torch.manual_seed(0)
    model, x = workload.build()
    calls = methods(model, x, ig_steps)
    seconds = measure(calls, repeats, clock)
    memory = {name: peak_memory(call) for name, call in calls.items()}
    work = {name: operations(call) for name, call in calls.items()}
    found = []
    for name in calls:
        ratios = [a / b for a, b in zip(seconds[name], seconds[REFERENCE], strict=True)]
        found.append(
            Row(
                name, statistics.median(seconds[name]), statistics.median(ratios),
                (min(ratios), max(ratios)), memory[name] / 2**20,
                memory[name] / memory[REFERENCE], work[name] / work[REFERENCE],
                workload.goals.get(name),
            )
        )  # fmt: skip
    return found


def conditions(args: argparse.Namespace) -> str:
    """Machine, versions and how it was measured."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads; load before the "
        f"start {load:.1f}; torch {torch.__version__}, transformers {transformers.__version__}, "
        f"captum {captum.__version__}; {args.clock} clock, median of {args.repeats} turns "
        "(range in brackets)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ig-steps", type=int, default=0, help="also integrated gradients")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    heads = [
        "method", "seconds", f"time / {REFERENCE}", "peak MiB", f"memory / {REFERENCE}",
        f"operations / {REFERENCE}", "goal (time / memory)",
    ]  # fmt: skip
    lines = ["# Time and memory", "", conditions(args), ""]
    print("\n".join(lines), flush=True)
    for key in args.workloads:
        workload = WORKLOADS[key]
        table = [f"## {workload.name}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for row in rows(workload, args.repeats, args.ig_steps, clock):
            table.append(f"| {' | '.join(row.cells())} |")
        table.append("")
        print("\n".join(table), flush=True)
        lines += table
    if args.output is not None:
        args.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
