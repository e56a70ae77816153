"""Lines and branches of the package that the tests run, as a table by folder.

``python benchmarks/covered.py --data ../coverage.data --report benchmarks/coverage.md`` runs the
tests once, keeps which test runs which line (``mutants.py`` needs that) and how long each takes (in
``../coverage.log``), and writes the table.  Arguments after ``--`` go to pytest.  ``--also`` adds
the data of runs in other environments; ``--no-run`` only writes the table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import coverage
from commits import made_with

ROOT = Path(__file__).resolve().parents[1]
#: What needs most of the time and runs nothing that others do not: the oracle's own tests, and
#: every family of a library, of which the small zoo has one of each kind.
LEFT_OUT = ("helpers/test_oracle.py", "support/test_huggingface_families.py")


def run(data: Path, arguments: list[str]) -> int:
    """Run the tests; returns pytest's exit status."""
    command = [
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--cov", "--cov-context=test",
        "--cov-report=", "--durations=0", "--durations-min=0.0005",
        *(f"--ignore={ROOT / 'tests' / name}" for name in LEFT_OUT),
        *(arguments or [str(ROOT / "tests")]),
    ]  # fmt: skip
    environment = {**os.environ, "COVERAGE_FILE": str(data.resolve()), "CI": "true"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with data.with_suffix(".log").open("w") as log:
        return subprocess.run(
            command, cwd=ROOT, env=environment, stdout=log, check=False
        ).returncode


def summaries(data: list[Path]) -> dict[str, dict[str, int]]:
    """Coverage's counts for each file, all data together."""
    with tempfile.TemporaryDirectory() as folder:
        measured = coverage.Coverage(
            data_file=str(Path(folder, "all")), config_file=str(ROOT / "pyproject.toml")
        )
        measured.combine([str(path) for path in data], keep=True)
        out = Path(folder, "all.json")
        measured.json_report(outfile=str(out))
        files = json.loads(out.read_text())["files"]
    return {str(Path(name)): entry["summary"] for name, entry in files.items()}


def table(files: dict[str, dict[str, int]]) -> list[str]:
    """Rows by folder and in all."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    names = ("covered_lines", "num_statements", "covered_branches", "num_branches")
    for name, summary in files.items():
        folder = Path(name).parent.as_posix() + "/"
        for row in (folder, "**all**"):
            counts[row] = [n + summary[key] for n, key in zip(counts[row], names, strict=True)]
    total = counts.pop("**all**")
    lines = ["| folder | lines | branches | both |", "|---|---|---|---|"]
    for row, (line, all_lines, branch, all_branches) in [*sorted(counts.items()), ("all", total)]:
        both = (line + branch) / max(1, all_lines + all_branches)
        lines.append(
            f"| `{row}` | {line:,} of {all_lines:,} ({line / max(1, all_lines):.1%}) | "
            f"{branch:,} of {all_branches:,} ({branch / max(1, all_branches):.1%}) | {both:.1%} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="where coverage's data goes")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="data of other runs")
    parser.add_argument("--no-run", action="store_true", help="only write the table")
    parser.add_argument("--report", type=Path)
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, after --")
    arguments = parser.parse_args()
    made = made_with("coverage", "torch", "captum", "transformers")
    status = 0 if arguments.no_run else run(arguments.data, arguments.pytest)
    files = summaries([arguments.data, *arguments.also])
    for name, summary in sorted(files.items(), key=lambda item: item[1]["percent_covered"]):
        print(f"{summary['percent_covered']:6.1f} %  {name}")
    text = "\n".join(
        [
            "# Lines and branches that the tests run",
            "",
            "`python benchmarks/covered.py --data ../coverage.data` "
            f"({datetime.date.today()}, {made}; "
            f"and the data of {len(arguments.also)} further runs).",
            "",
            *table(files),
            "",
        ]
    )
    print(text)
    if arguments.report is not None:
        arguments.report.write_text(text)
    if status:
        raise SystemExit(f"some tests failed: see {arguments.data.with_suffix('.log')}")


if __name__ == "__main__":
    main()
