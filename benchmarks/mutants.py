"""Mutation testing of the engine and the rules on a random sample.

``python benchmarks/mutants.py --sample 60 --seed 0 --report benchmarks/mutants.md`` lets
cosmic-ray's operators make mutants of every file of ``rules/`` and ``propagation/``, draws a random
sample of them, and runs a quick selection of tests on each in a copy of the checkout.  A mutant is
killed if a test fails or the tests take ten times as long as usual.
"""

from __future__ import annotations

import argparse
import difflib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cosmic_ray.ast import get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "tests/test_callers.py", "tests/test_composite.py", "tests/test_attnlrp.py",
    "tests/test_token_lookups.py", "tests/test_pattern_product.py", "tests/test_errors.py",
    "tests/test_properties.py", "tests/test_captum_conventions.py",
    "tests/test_attention_methods.py", "-k", "not threads and not graph_alive",
)  # fmt: skip
#: Annotations are not run, so mutants of them are none; operators on variables need their names.
LEFT_OUT = ("core/ReplaceBinaryOperator_BitOr_", "core/Variable")


def mutants() -> list[tuple[Path, str, int]]:
    """Every mutant: file, operator, and which of its occurrences."""
    found = []
    for folder in ("rules", "propagation"):
        for file in sorted((ROOT / "captum_lrp_tx" / folder).glob("*.py")):
            tree = get_ast(file.read_text())
            nodes = list(_walk(tree))
            for name in sorted(operator_names()):
                if name.startswith(LEFT_OUT):
                    continue
                operator = get_operator(name)()
                count = sum(len(list(operator.mutation_positions(node))) for node in nodes)
                found += [(file.relative_to(ROOT), name, i) for i in range(count)]
    return found


def _walk(node: object) -> object:
    yield node
    for child in getattr(node, "children", ()):
        yield from _walk(child)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sample", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time")
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    every = mutants()
    sample = random.Random(arguments.seed).sample(every, min(arguments.sample, len(every)))
    copy = Path(tempfile.mkdtemp()) / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", ".hypothesis"))
    environment = {**os.environ, "PYTHONPATH": str(copy), "CI": "true", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]

    def passes(limit: float) -> bool:
        try:
            done = subprocess.run(
                command, cwd=copy, env=environment, capture_output=True, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    start = time.monotonic()
    if not passes(3600):
        raise SystemExit("the tests fail without a mutant")
    limit = 10 * (time.monotonic() - start)
    killed, survivors, tried = 0, [], 0
    for file, name, occurrence in sample:
        if time.monotonic() - start > 60 * arguments.minutes:
            break
        path = copy / file
        plain = path.read_text()
        changed = mutate_code(plain, get_operator(name)(), occurrence)
        if changed is None or changed == plain:
            continue
        path.write_text(changed)
        tried += 1
        if passes(limit):
            diff = difflib.unified_diff(plain.splitlines(), changed.splitlines(), n=0, lineterm="")
            survivors.append(f"{file}: " + " ".join(line.strip() for line in list(diff)[2:]))
            print("survives:", survivors[-1], flush=True)
        else:
            killed += 1
        path.write_text(plain)
        print(f"{killed} of {tried} killed", flush=True)
    lines = [
        "# Mutants",
        "",
        f"`python benchmarks/mutants.py --sample {arguments.sample} --seed {arguments.seed}`: of "
        f"{len(every):,} mutants of `rules/` and `propagation/` a random sample of {tried} was "
        f"tried; {killed} were killed ({killed / max(tried, 1):.0%}). Survivors:",
        "",
        *(f"- `{text}`" for text in survivors),
    ]
    if arguments.report is not None:
        arguments.report.write_text("\n".join(lines) + "\n")
    shutil.rmtree(copy.parent)


if __name__ == "__main__":
    main()
