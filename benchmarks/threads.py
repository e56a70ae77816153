"""Many threads on one model, and a page about it; what they do is in ``tests/helpers/stress.py``.

python benchmarks/threads.py --rounds 400 --report benchmarks/threads.md
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import sys
from collections import Counter
from pathlib import Path

import torch
from commits import made_with

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT)]

import stress  # noqa: E402


def main() -> None:
    """The long run, and a page about it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--threads", type=int, default=stress.THREADS)
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    made = made_with("torch", "transformers")
    outcome = stress.run(arguments.rounds, arguments.threads)
    gc.collect()
    lines = [
        "# Threads",
        "",
        f"`python benchmarks/threads.py --rounds {arguments.rounds} "
        f"--threads {arguments.threads}` ({made}), {os.cpu_count()} cores: "
        f"{arguments.threads} threads on one model, {sum(outcome.counts.values()):,} results in "
        f"{outcome.seconds:.0f} s, {len(outcome.wrong)} of them not equal (bit for bit) to the "
        "result of a single thread. Peak memory of the process: "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB.",
        "",
        "| what | results |",
        "|---|---|",
        *(f"| {name} | {count:,} |" for name, count in sorted(outcome.counts.items())),
    ]
    lines += ["", *(f"- {text}: {n}" for text, n in Counter(outcome.wrong).most_common(20))]
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    if arguments.report is not None:
        arguments.report.write_text(text)
    raise SystemExit(bool(outcome.wrong))


if __name__ == "__main__":
    main()
