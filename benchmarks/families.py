"""Which model families are explained with verified rules: the data of ``supported()``.

Usage::

    python benchmarks/families.py huggingface      # one library: survey, then the tables
    python benchmarks/families.py                  # every library that is installed
    python benchmarks/families.py --tables         # only tutorials/MODELS.md, from the data
    python benchmarks/families.py huggingface --only bert gpt2   # print rows, write nothing

Each family of a walker in ``tests/helpers/families`` is built with tiny random weights and
explained under both rule sets; see ``common.py`` there for how it is judged. A family that takes
longer than the limit, or kills its process, counts as not built. Writes
``captum_lrp_tx/support/<walker>.json`` and ``tutorials/MODELS.md``, and prints the counts.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT)]

DATA = ROOT / "captum_lrp_tx" / "support"
TABLE = ROOT / "tutorials" / "MODELS.md"
#: The walkers of tests/helpers/families, and the packages whose versions matter.
WALKERS = {
    "huggingface": ("torch", "transformers"),
    "timm": ("torch", "timm"),
    "torch_modules": ("torch", "torchvision"),
}
LIMIT_SECONDS, LIMIT_BYTES = 120, 12 << 30


class Late(BaseException):
    """A family took too long."""


def work(walker: str, names: list[str]) -> None:
    """In a process of its own: one line of JSON for each family."""
    import resource

    import torch

    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    torch.set_num_threads(1)
    common = importlib.import_module("families.common")
    library = importlib.import_module(f"families.{walker}")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print

    def late(*_: Any) -> None:
        raise Late

    signal.signal(signal.SIGALRM, late)
    for name in names:
        print(json.dumps({"started": name}), file=answers, flush=True)
        signal.alarm(LIMIT_SECONDS)
        try:
            answer = {"row": asdict(common.row_of(library.cases(name)))}
        except common.NotBuilt as error:
            answer = {"not_built": _line(error)}
        except (Late, MemoryError) as error:
            answer = {"not_built": f"{type(error).__name__}: beyond the limits of this survey"}
        finally:
            signal.alarm(0)
        print(json.dumps({"name": name, **answer}), file=answers, flush=True)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def survey(walker: str, names: list[str], progress: Path | None) -> dict[str, dict[str, Any]]:
    """The answer for each family: its row, or why it was not built."""
    answers: dict[str, dict[str, Any]] = {}

    def note(answer: dict[str, Any]) -> None:
        answers[answer["name"]] = answer
        if progress is not None:
            with progress.open("a", encoding="utf-8") as file:
                file.write(json.dumps(answer) + "\n")

    while names:
        command = [sys.executable, __file__, walker, "--work", *names]
        environment = {**os.environ, "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout is not None and process.stderr is not None
        drained = subprocess.Popen(["tail", "-n", "3"], stdin=process.stderr, text=True,
                                   stdout=subprocess.PIPE)  # fmt: skip
        started = ""
        for line in process.stdout:
            answer = json.loads(line)
            if "started" in answer:
                started = answer["started"]
                continue
            names = [n for n in names if n != answer["name"]]
            note(answer)
            row = answer.get("row", {"status": "not built", "note": answer.get("not_built")})
            print(f"{answer['name']:<34} {row['status']:<11} {row['note'][:90]}", flush=True)
        last_words = drained.communicate()[0]
        if process.wait() != 0 and not started:
            raise RuntimeError(last_words)
        if started in names:
            names = [n for n in names if n != started]
            note({"name": started, "not_built": f"killed its process: {last_words.strip()[-99:]}"})
    return answers


def surveys(
    walker: str, names: list[str], jobs: int, progress: Path | None
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows, and reasons of what was not built, in the order of the names."""
    answers: dict[str, dict[str, Any]] = {}
    if progress is not None and progress.exists():
        for line in progress.read_text("utf-8").splitlines():
            answers[json.loads(line)["name"]] = json.loads(line)
    missing = [name for name in names if name not in answers]
    jobs = max(1, min(jobs, len(missing)))
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for part in pool.map(lambda i: survey(walker, missing[i::jobs], progress), range(jobs)):
            answers.update(part)
    found = [answers[name] for name in names if name in answers]
    rows = [answer["row"] for answer in found if "row" in answer]
    return rows, {a["name"]: a["not_built"] for a in found if "not_built" in a}


def write(walker: str, rows: list[dict[str, Any]], not_built: dict[str, str]) -> None:
    """The shipped data of one walker, one family a line."""
    versions = [f"{p} {importlib.metadata.version(p)}" for p in WALKERS[walker]]
    lines = ",\n".join("    " + json.dumps(row) for row in rows)
    missing = json.dumps(not_built, indent=4).replace("\n}", "\n  }")
    text = (
        f'{{\n  "measured_with": {json.dumps([v.split("+")[0] for v in versions])},\n'
        f'  "families": [\n{lines}\n  ],\n  "not_built": {missing}\n}}\n'
    )
    json.loads(text)
    (DATA / f"{walker}.json").write_text(text, encoding="utf-8")


def tables() -> str:
    """``tutorials/MODELS.md``, from the shipped data."""
    surveys = [json.loads(f.read_text("utf-8")) for f in sorted(DATA.glob("*.json"))]
    total = [row for s in surveys for row in s["families"]]
    parts = [
        "# Which models are explained\n",
        "Written by `python benchmarks/families.py`; `captum_lrp_tx.supported()` returns the same "
        "table. Every family that could be built with tiny random weights was explained under "
        "`ah+ln` and `lrp` with `strict=True`, and the relevance compared, at 1e-4 of its largest "
        "value, with an independent computation that holds recorded patterns, divisors and gates "
        "constant. *Convention*: verified with the convention that is stated, or under one of the "
        "two rule sets. *Refused*: `strict=True` raises and names the operation.\n",
        "| library | families built | verified | with a convention | refused | not built |",
        "|---|---|---|---|---|---|",
    ]
    for s in surveys:
        for library in dict.fromkeys(row["library"] for row in s["families"]):
            mine = [row for row in s["families"] if row["library"] == library]
            missing = len(s["not_built"]) if library == mine[0]["library"] else 0
            shown = f"{library} ({', '.join(s['measured_with'])})"
            counts = " | ".join(str(_count(mine, k)) for k in ("verified", "convention", "refused"))
            parts.append(f"| {shown} | {len(mine)} | {counts} | {missing} |")
    counts = " | ".join(str(_count(total, k)) for k in ("verified", "convention", "refused"))
    missing = sum(len(s["not_built"]) for s in surveys)
    parts.append(f"| all | {len(total)} | {counts} | {missing} |")
    for s in surveys:
        for library in dict.fromkeys(row["library"] for row in s["families"]):
            mine = [row for row in s["families"] if row["library"] == library]
            parts.append(f"\n## {library}\n")
            parts.append("| family | explained class | status | attention | note |")
            parts.append("|---|---|---|---|---|")
            for row in sorted(mine, key=lambda r: r["family"].lower()):
                note = row["note"].replace("|", "\\|")
                attention = ", ".join(row["attention"])
                parts.append(
                    f"| {row['family']} | `{row['model']}` | {row['status']} | {attention} "
                    f"| {note} |"
                )
        if s["not_built"]:
            parts.append("\nNot built by the generic walker, and why:\n")
            parts += [f"- {name}: {_quoted(why)}" for name, why in sorted(s["not_built"].items())]
    return "\n".join(parts) + "\n"


def _quoted(text: str) -> str:
    return "`" + text.replace("`", "'") + "`"


def _count(rows: list[dict[str, Any]], status: str) -> int:
    return sum(row["status"] == status for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("walkers", nargs="*", metavar="walker",
                        help=f"of {', '.join(WALKERS)}; all by default")  # fmt: skip
    parser.add_argument("--only", nargs="+", default=[], help="judge these, write nothing")
    parser.add_argument("--jobs", type=int, default=1, help="families judged at the same time")
    parser.add_argument("--progress", type=Path, help="file of answers, to go on after a break")
    parser.add_argument("--tables", action="store_true", help="write MODELS.md from the data")
    parser.add_argument("--work", nargs="+", default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.walkers[0], arguments.work)
        return 0
    bad = 0
    for walker in [] if arguments.tables else arguments.walkers or list(WALKERS):
        try:
            names = arguments.only or importlib.import_module(f"families.{walker}").names()
        except ImportError as error:
            print(f"{walker}: {error}")
            continue
        rows, not_built = surveys(walker, list(names), arguments.jobs, arguments.progress)
        for row in rows:
            if row["status"] == "wrong":
                bad += 1
                print(f"WRONG {row['family']}: {row['note']}")
        if arguments.only:
            print("\n".join(f"{name}: {why}" for name, why in not_built.items()))
        else:
            rows = [row for row in rows if row["status"] != "wrong"]
            write(walker, rows, not_built)
    if bad:
        print(f"{bad} families are explained wrongly and left out of the table")
    if not arguments.only:
        text = tables()
        TABLE.write_text(text, encoding="utf-8")
        print(text.split("\n## ")[0])
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
