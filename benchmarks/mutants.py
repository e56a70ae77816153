"""Mutation testing of the engine and the rules on a random sample.

``python benchmarks/covered.py --data ../coverage.data`` runs the tests once and keeps which test
runs which line.  Then ``python benchmarks/mutants.py --data ../coverage.data --sample 150 --seed 1
--report benchmarks/mutants.md`` draws mutants of ``rules/`` and ``propagation/`` at random and
tries on each the tests that run its statement, quickest first, until one fails:

- of the cases of a parametrized test the slowest, the one in the middle, and the quickest for one
  second;
- for at most 20 seconds of recorded time, and at least one test;
- of what survives that, every case, for at most 40 seconds;
- of what survives that, every case in the folder of tests that mirrors the mutant's own folder, for
  at most 60 seconds more: the slow tests that were written for it.

A mutant is killed if a test fails that passes without it, if the package cannot be imported, or if
the tests take five times as long as recorded and a minute more.  It survives if no test runs its
statement.  First, the same machinery must let a change of a comment live and kill a rule that
returns nothing.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import difflib
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from commits import made_with
from mutant_runs import Runs
from mutant_sources import Mutant, candidates
from mutant_tests import Tests
from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parents[1]
EXPLAINED = Path(__file__).with_name("mutants_explained.json")
#: Seconds of tests that are tried first, then, and with every case of parametrized tests.
LIMITS = (5.0, 20.0, 40.0)
#: Seconds of the tests of the mutant's own folder after that.
OWN_FOLDER = 60.0


@dataclass(frozen=True)
class Result:
    """What became of a mutant."""

    file: str
    operator: str
    occurrence: int
    line: int
    change: str
    ending: str
    test: str | None = None

    @property
    def killed(self) -> bool:
        return self.ending not in ("survived", "no test")


def changed_line(plain: str, changed: str) -> tuple[int, str]:
    """The number of the first line that differs, and the difference in one line."""
    matcher = difflib.SequenceMatcher(None, plain.splitlines(), changed.splitlines(), False)
    line = next(i for tag, i, *_ in matcher.get_opcodes() if tag != "equal") + 1
    diff = difflib.unified_diff(plain.splitlines(), changed.splitlines(), n=0, lineterm="")
    return line, " ".join(text[0] + " " + text[1:].strip() for text in list(diff)[3:])


class Trial:
    """Tries mutants."""

    def __init__(self, tests: Tests, runs: Runs, existing: set[str]) -> None:
        self.tests, self.runs, self.existing = tests, runs, existing
        self.passing: dict[str, bool] = {}

    def result(self, mutant: Mutant, changed: str) -> Result:
        plain = (self.runs.copy / mutant.file).read_text()
        line, change = changed_line(plain, changed)
        ending, test = self.ending(mutant.file, plain, changed, line)
        return Result(**asdict(mutant), line=line, change=change, ending=ending, test=test)

    def ending(
        self,
        file: str,
        plain: str,
        changed: str,
        line: int,
        limits: tuple[float, ...] = (*LIMITS, OWN_FOLDER),
    ) -> tuple[str, str | None]:
        tried: set[str] = set()
        for limit in limits:
            running = self.tests.running(file, plain, line) & self.existing
            if not running:
                return "no test", None
            if limit == OWN_FOLDER:
                own = f"{Path('tests', *Path(file).parent.parts[1:])}/"
                running = {test for test in running - tried if test.startswith(own)}
            chosen = [t for t in self.tests.chosen(running, limit, limit > 20) if t not in tried]
            tried |= set(chosen)
            while chosen:
                expected = sum(map(self.tests.time_of, chosen))
                with self.runs.mutated(file, changed):
                    ending, test = self.runs.run(chosen, 60 + 5 * expected)
                if ending == "passed":
                    break
                if ending == "time" or test is None:
                    return ("time" if ending == "time" else "import"), None
                if self.passes(test):
                    return "failed", test
                self.existing.discard(test)
                chosen.remove(test)
        return "survived", None

    def passes(self, test: str) -> bool:
        """Whether a test passes without a mutant."""
        if test not in self.passing:
            self.passing[test] = self.runs.run([test], 600)[0] == "passed"
            if not self.passing[test]:
                print(f"fails without a mutant: {test}\n{self.runs.output()[-3000:]}", flush=True)
        return self.passing[test]

    def check(self) -> None:
        """Refuse to measure anything if the machinery does not tell a mutant from none."""
        file = "captum_lrp_tx/rules/attention.py"
        plain = (self.runs.copy / file).read_text()
        lines = plain.splitlines(keepends=True)
        returns = [i for i, text in enumerate(lines, 1) if text.lstrip().startswith("return ")]
        line = max(returns, key=lambda i: len(self.tests.running(file, plain, i)))
        indent = lines[line - 1][: -len(lines[line - 1].lstrip())]
        broken = "".join([*lines[: line - 1], indent + "return None\n", *lines[line - 1 :]])
        for changed, expected in ((plain + "# nothing\n", "survived"), (broken, "failed")):
            ending, test = self.ending(file, plain, changed, line, LIMITS[:1])
            if ending != expected:
                raise SystemExit(f"expected that a mutant {expected}, it {ending} ({test})")


def report(command: str, every: int, results: list[Result], made: str) -> str:
    explained = json.loads(EXPLAINED.read_text()) if EXPLAINED.exists() else {}
    killed = [result for result in results if result.killed]
    interval = binomtest(len(killed), len(results)).proportion_ci(method="wilson")
    endings = collections.Counter(result.ending for result in results)
    survivors = [result for result in results if not result.killed]
    return "\n".join(
        [
            "# Mutants",
            "",
            f"`{command}` ({datetime.date.today()}, {made}).",
            "",
            f"cosmic-ray offers {every:,} mutants of `rules/` and `propagation/`. Of a random "
            f"sample of {len(results)} that change what is run, **{len(killed)} were killed: "
            f"{len(killed) / len(results):.1%}** (95 % interval {interval.low:.1%} to "
            f"{interval.high:.1%}, Wilson): {endings['failed']} by a failing test, "
            f"{endings['import']} because the package cannot be imported, {endings['time']} by "
            f"the time limit. {endings['no test']} of the survivors lie where no test runs. What "
            "counts as a mutant and which tests are tried is written at the top of "
            "`benchmarks/mutants.py` and `benchmarks/mutant_sources.py`.",
            "",
            f"## The {len(survivors)} survivors",
            "",
            *(
                f"- `{s.file.removeprefix('captum_lrp_tx/')}:{s.line}` `{s.change}`: "
                + explained.get(s.change, "not explained" if s.ending != "no test" else "not run")
                for s in sorted(survivors, key=lambda s: (s.file, s.line))
            ),
            "",
        ]
    )


def _line(result: Result) -> str:
    return json.dumps(asdict(result)) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="coverage data, with contexts")
    parser.add_argument("--sample", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="JSON lines: what is there is not run again")
    parser.add_argument("--again", action="store_true", help="try the survivors in it once more")
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    made = made_with("cosmic-ray", "torch", "captum", "transformers")
    tests = Tests.read(arguments.data, arguments.data.with_suffix(".log"), ROOT)
    done = {}
    if arguments.results is not None and arguments.results.exists():
        found = [Result(**json.loads(t)) for t in arguments.results.read_text().splitlines()]
        done = {(r.file, r.operator, r.occurrence): r for r in found}
        if arguments.again:
            done = {key: result for key, result in done.items() if result.killed}
            arguments.results.write_text("".join(_line(result) for result in done.values()))
    runs, results = Runs(ROOT), list[Result]()
    every = list(candidates(runs.copy))
    random.Random(arguments.seed).shuffle(every)
    try:
        trial: Trial | None = None
        for mutant in every:
            if len(results) == arguments.sample:
                break
            result = done.get((mutant.file, mutant.operator, mutant.occurrence))
            if result is None:
                changed = mutant.source(runs.copy)
                if changed is None:
                    continue
                if trial is None:
                    runs.preload(tests.chosen(set(tests.seconds), 20))
                    trial = Trial(tests, runs, runs.collected())
                    trial.check()
                result = trial.result(mutant, changed)
                if arguments.results is not None:
                    with arguments.results.open("a") as file:
                        file.write(_line(result))
            results.append(result)
            killed = sum(result.killed for result in results)
            print(f"{killed} of {len(results)} killed; {result}", flush=True)
    finally:
        runs.close()
    command = f"python benchmarks/mutants.py --sample {arguments.sample} --seed {arguments.seed}"
    text = report(command, len(every), results, made)
    if arguments.report is not None:
        arguments.report.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
