"""Runs tests in forked children of a process that has imported everything but the package.

A child imports the package from a copy of the checkout, so it sees the mutant that lies there, and
pays for no import of torch or transformers.
"""

from __future__ import annotations

import compileall
import contextlib
import importlib
import json
import os
import py_compile
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

#: What a mutant may allocate before it counts as one that fails.
_BYTES = 20 * 2**30
#: Imported before the children are forked, with all of theirs that the tests import.
_HEAVY = ("torch", "transformers", "captum", "numpy", "scipy", "matplotlib", "PIL", "hypothesis")

Ending = Literal["passed", "failed", "time"]


class Runs:
    """A copy of the checkout and a parent of test runs."""

    def __init__(self, root: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mutants"))
        self.copy = self.folder / "copy"
        hidden = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info")
        shutil.copytree(root, self.copy, ignore=hidden)
        # by the hash of the source: the time of a file does not tell one mutant from another
        compileall.compile_dir(
            str(self.copy / "captum_lrp_tx"), quiet=2,
            invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH,
        )  # fmt: skip
        os.environ |= {"PYTHONPATH": str(self.copy), "CI": "true", "HF_HUB_OFFLINE": "1"}
        os.environ.setdefault("CAPTUM_LRP_TX_SHARED", str(root.parent / "shared"))
        sys.path[:0] = [str(self.copy), str(self.copy / "tests" / "helpers")]

    def preload(self, tests: list[str]) -> None:
        """Import what the tests import, the package and the tests themselves left out."""
        names = self.folder / "modules.json"
        self.run(tests, 600, modules=names)
        import torch

        torch.set_num_threads(1)
        for name in json.loads(names.read_text()):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        assert not any(name.startswith("captum_lrp_tx") for name in sys.modules)

    def collected(self) -> set[str]:
        """The names of all tests."""
        names = self.folder / "tests.txt"
        ending, _ = self.run(["tests", "--collect-only"], 600, collect=names)
        if ending != "passed":
            raise SystemExit(self.output())
        return set(names.read_text().splitlines())

    def output(self) -> str:
        """What the last run wrote."""
        return (self.folder / "output.txt").read_text(errors="replace")

    def close(self) -> None:
        shutil.rmtree(self.folder)

    @contextlib.contextmanager
    def mutated(self, file: str, source: str) -> Iterator[None]:
        """The copy of a file holds another source."""
        path = self.copy / file
        plain = path.read_text()
        path.write_text(source)
        try:
            yield
        finally:
            path.write_text(plain)

    def run(
        self,
        tests: list[str],
        limit: float,
        modules: Path | None = None,
        collect: Path | None = None,
    ) -> tuple[Ending, str | None]:
        """
        Run tests until one fails.

        Returns:
            How it ended, and the test that failed (None if the tests could not be collected).
        """
        answer = self.folder / "failed.txt"
        answer.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            code = 3
            try:
                code = self._in_child(tests, _Recorder(answer, collect), modules)
            finally:
                os._exit(code)
        ends = time.monotonic() + limit
        while time.monotonic() < ends:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                self._end_group(child)
                if os.waitstatus_to_exitcode(status) == 0:
                    return "passed", None
                return "failed", answer.read_text() if answer.exists() else None
            time.sleep(0.02)
        self._end_group(child)
        os.waitpid(child, 0)
        return "time", None

    @staticmethod
    def _end_group(child: int) -> None:
        """End a child and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)

    def _in_child(self, tests: list[str], recorder: _Recorder, modules: Path | None) -> int:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
        os.chdir(self.copy)
        out = os.open(self.folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(out, stream)
        options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:cov", "-p", "no:xdist"]
        code = pytest.main([*options, *tests], plugins=[recorder])
        if modules is not None:
            heavy = [name for name in sys.modules if name.partition(".")[0] in _HEAVY]
            modules.write_text(json.dumps(heavy))
        return int(code)


class _Recorder:
    """Writes the name of the first test that fails, and those of all that were collected."""

    def __init__(self, failed: Path, collected: Path | None) -> None:
        self.failed, self.collected = failed, collected

    def pytest_collection_finish(self, session: Any) -> None:
        if self.collected is not None:
            self.collected.write_text("\n".join(item.nodeid for item in session.items))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed.exists():
            self.failed.write_text(report.nodeid)
