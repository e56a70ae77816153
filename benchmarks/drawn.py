"""Thousands of models drawn from the table of spellings: is any explanation silently wrong?

Usage::

    python benchmarks/drawn.py --rounds 20000      # writes benchmarks/drawn.md
    python benchmarks/drawn.py --only 44           # one seed, in full

Every model is a chain of parts (``tests/helpers/spellings.py``) in random spellings, residual or
not, with shared weights, one or two inputs, called once, twice or for each example alone, in
float64.  Under ``gi``, ``ah``, ``ln`` and ``ah+ln`` its relevance is compared with the gradient of
the frozen function, under all presets with the same model in other spellings.  A model whose plain
gradient is not the same in both spellings, by autograd without this package, says nothing and is
counted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from pathlib import Path

from commits import made_with

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT)]
REPORT = ROOT / "benchmarks" / "drawn.md"
#: Explanations of one drawn model: eight presets, two spellings.
EXPLANATIONS = 16


def _judged(seed: int) -> tuple[list[str], int, bool]:
    import torch

    import drawn_models

    torch.set_num_threads(1)
    return tuple(drawn_models.faults(seed))


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw models and look for silent faults.")
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", type=int, help="one seed, printed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if options.only is not None:
        print(*_judged(options.only)[0], sep="\n")
        return
    found: list[str] = []
    refused = undetermined = 0
    made = made_with("torch", "captum")
    seeds = range(options.first, options.first + options.rounds)
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        judged = pool.imap(_judged, seeds, chunksize=20)
        for i, (faults, count, is_determined) in enumerate(judged, 1):
            found += faults
            refused += count
            undetermined += not is_determined
            for fault in faults:
                print(fault, flush=True)
            if i % 500 == 0:
                print(f"{i} models, {len(found)} faults", file=sys.stderr, flush=True)
    total = (options.rounds - undetermined) * EXPLANATIONS
    REPORT.write_text(
        "# Models drawn from the table of spellings\n\n"
        "Written by `python benchmarks/drawn.py "
        f"--rounds {options.rounds} --first {options.first}` ({made}).\n\n"
        "| models | torch's own gradient depends on the spelling | explanations of the others "
        "| refused by name | silently wrong |\n|---|---|---|---|---|\n"
        f"| {options.rounds} | {undetermined} | {total} | {refused} | {len(found)} |\n"
        + "".join(f"\n- {fault}" for fault in found)
        + ("\n" if found else "")
    )
    print(REPORT.read_text())


if __name__ == "__main__":
    main()
