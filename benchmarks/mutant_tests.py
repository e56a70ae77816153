"""Which tests run a line of the package, how long each takes, and which of them to try first.

Both come from one run of the tests: ``benchmarks/covered.py`` writes the coverage data, with the
test as the context of each line, and beside it the log with the time of each test.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from coverage import CoverageData
from mutant_sources import statement_lines

_DURATION = re.compile(r"([\d.]+)s (?:call|setup|teardown) +(tests/.+?)\s*$")


@dataclass
class Tests:
    """Tests by file and line."""

    lines: dict[str, dict[int, set[str]]]
    seconds: dict[str, float]

    @classmethod
    def read(cls, data: Path, log: Path, root: Path) -> Tests:
        stored = CoverageData(str(data))
        stored.read()
        lines = {}
        for path in stored.measured_files():
            if str(root / "captum_lrp_tx") in path:
                by_line = stored.contexts_by_lineno(path).items()
                lines[str(Path(path).relative_to(root))] = {
                    line: {context.rpartition("|")[0] for context in contexts} - {""}
                    for line, contexts in by_line
                }
        seconds: dict[str, float] = defaultdict(float)
        for text in log.read_text(errors="replace").splitlines():
            if found := _DURATION.match(text):
                seconds[found[2]] += float(found[1])
        if not seconds:
            raise SystemExit(f"{log} names no test and its time")
        return cls(lines, dict(seconds))

    def running(self, file: str, source: str, line: int) -> set[str]:
        """The tests that run a line; those that run anything of its file if importing runs it."""
        by_line = self.lines.get(file, {})
        statement, on_import = statement_lines(source, line)
        tests: set[str] = set().union(*(by_line.get(i, set()) for i in statement))
        if on_import and not tests:
            tests = set().union(*by_line.values())
        return tests

    def chosen(self, tests: set[str], limit: float, every_case: bool = False) -> list[str]:
        """
        The quickest tests first, for ``limit`` seconds in all (one at least).  Of the cases of a
        parametrized test the slowest, the one in the middle, and the quickest for one second,
        unless ``every_case`` is asked for.
        """
        by_function: dict[str, list[str]] = defaultdict(list)
        for test in sorted(tests, key=lambda test: (self.time_of(test), test)):
            by_function[test.partition("[")[0]].append(test)
        kept = []
        for cases in by_function.values():
            last, spent, quick = len(cases) - 1, 0.0, {0}
            for i, case in enumerate(cases):
                spent += self.time_of(case)
                if spent > 1.0 and not every_case:
                    break
                quick.add(i)
            kept += [cases[i] for i in sorted({*quick, last // 2, last})]
        total, found = 0.0, []
        for test in sorted(kept, key=lambda test: (self.time_of(test), test)):
            total += self.time_of(test)
            if found and total > limit:
                break
            found.append(test)
        return found

    def time_of(self, test: str) -> float:
        return self.seconds.get(test, 0.001)
