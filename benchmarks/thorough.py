"""The long loops of the tests, and how much they went through.

    python benchmarks/thorough.py --report benchmarks/thorough.md

With ``CAPTUM_LRP_TX_THOROUGH=1`` the tests inject a fault at every place where one can happen, draw
thousands of inputs and settings, and explain 2,000 times in a row without the garbage collector.
This runs them and counts: places of faults and rounds as the tests record them, drawn inputs as
hypothesis reports them.  Half an hour in two processes, most of it for one test
(interruption); ``-n`` sets the processes.  ``benchmarks/threads.py`` is the long run
with threads.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from commits import made_with

ROOT = Path(__file__).resolve().parents[1]
#: What a test records, and how it is called in the table.
COUNTED = {"faults": "faults injected", "rounds": "rounds", "inputs": "inputs drawn"}


class Counts:
    """A plugin of pytest that adds up what every test function went through."""

    def __init__(self) -> None:
        self.of: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.most: dict[str, int] = defaultdict(int)
        self.outcomes: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Reads the report of a test, whichever process ran it."""
        name = report.nodeid.partition("[")[0]
        # hypothesis tells it at the end of a test
        drawn = re.findall(r"(\d+) passing", getattr(report, "_hypothesis_stats", ""))
        if drawn:
            self.of[name][COUNTED["inputs"]] += sum(map(int, drawn))
        if report.when != "call" and report.passed:
            return
        self.outcomes[name][report.outcome] += 1
        self.seconds[name] += report.duration
        for key, value in report.user_properties:
            if key in COUNTED:
                self.of[name][COUNTED[key]] += int(value)
            else:
                self.most[key] = max(self.most[key], int(value))

    def table(self) -> str:
        """What every test went through."""
        lines = ["| test | passed | not passed | went through | minutes |", "|---|---|---|---|---|"]
        for name, outcomes in self.outcomes.items():
            if not self.of[name]:
                continue  # no loop
            other = sum(n for outcome, n in outcomes.items() if outcome != "passed")
            counted = ", ".join(f"{n:,} {what}" for what, n in self.of[name].items())
            minutes = self.seconds[name] / 60
            lines.append(
                f"| `{name}` | {outcomes['passed']} | {other} | {counted} | {minutes:.1f} |"
            )
        totals: dict[str, int] = defaultdict(int)
        for counts in self.of.values():
            for what, n in counts.items():
                totals[what] += n
        lines += ["", "Together: " + ", ".join(f"{n:,} {what}" for what, n in totals.items()) + "."]
        lines += [f"Greatest {what}: {n:,}." for what, n in self.most.items()]
        return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--report", type=Path)
    parser.add_argument("-n", type=int, default=os.cpu_count(), help="processes, 0 for this one")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest in place of -m thorough")
    args = parser.parse_args()
    os.environ["CAPTUM_LRP_TX_THOROUGH"] = "1"
    os.chdir(ROOT)
    made = made_with("torch", "captum", "transformers")
    counts, begun = Counts(), time.monotonic()
    chosen = args.pytest or ["-m", "thorough"]
    processes = ["-n", str(args.n), "--dist", "worksteal"]
    status = pytest.main(
        ["-q", "--hypothesis-show-statistics", *processes, *chosen], plugins=[counts]
    )
    text = (
        "# The long loops\n\n"
        f"`python benchmarks/thorough.py` ({made}), {args.n or 1} processes, "
        f"{(time.monotonic() - begun) / 60:.0f} minutes; exit status of pytest: {int(status)}.\n\n"
        f"{counts.table()}\n"
    )
    print(text)
    if args.report is not None:
        args.report.write_text(text, encoding="utf-8")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
