"""Peak memory of explanations of longer and longer inputs: linear in the number of tokens."""

from __future__ import annotations

import functools
import sys
import time

import torch
from operators import peak_memory
from workloads import llama

from captum_lrp_tx import ConservativeGI, ConservativeLRP

TOKENS = (1024, 2048, 4096, 8192, 16384)


def section(tokens: tuple[int, ...]) -> list[str]:
    """Peak memory and seconds (one call under the profiler) for each length."""
    heads = "| tokens | method | peak MiB | KiB per token | seconds, under the profiler |"
    lines = ["## Llama-shaped, batch of 1", "", heads, "|---|---|---|---|---|"]
    print("\n".join(lines), file=sys.stderr)
    for length in tokens:
        torch.manual_seed(0)
        model, x = llama(1, length)
        for method in (ConservativeGI(model), ConservativeLRP(model)):
            # the first call also checks the model, on a shorter input of the same kind
            method.attribute(x[:, :16], target=0)
            start = time.perf_counter()
            peak, _ = peak_memory(functools.partial(method.attribute, x, target=0))
            seconds = time.perf_counter() - start
            name = type(method).__name__
            lines.append(
                f"| {length:,} | {name} | {peak / 2**20:.0f} | {peak / 2**10 / length:.1f} | "
                f"{seconds:.1f} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    return [*lines, ""]
