"""Time, memory and relevance beside lxt (AttnLRP): rows for ``python benchmarks/speed.py --lxt``.

lxt 2.1 does not import under transformers 5, so this needs an environment of its own::

    python -m venv lxt
    lxt/bin/pip install torch==2.13.0 torchvision==0.28.0 --index-url https://download.pytorch.org/whl/cpu
    lxt/bin/pip install captum==0.9.0 transformers==4.52.4 lxt==2.1
    PYTHONPATH=. lxt/bin/python benchmarks/speed.py --lxt --output benchmarks/lxt.md

lxt is used as it describes: the modelling module patched, parameters frozen, gradient x input of
the embeddings.  It patches classes of torch for the whole process, so it runs in a process of its
own, which is told to start whenever it is its turn.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from methods import REFERENCE, Method
from operators import peak_memory
from torch import Tensor, nn
from turns import HEADS, Clock, rows, table
from workloads import bert, llama

GI, LRP = "ConservativeGI", "ConservativeLRP"
ATTNLRP, LXT = "ConservativeLRP, rules='attnlrp'", "lxt (AttnLRP)"
#: Model, and the batch and tokens it is called with.
CASES: dict[str, tuple[Callable[[int, int], tuple[nn.Module, Tensor]], int, int, int]] = {
    "BERT-base, 8 x 128": (bert, 8, 128, 2),
    "BERT-base, 1 x 16": (bert, 1, 16, 15),
    "Llama-shaped, 1 x 1,024": (llama, 1, 1024, 2),
}


class Worker:
    """The process in which lxt is patched in."""

    def __init__(self, case: str, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, __file__, case, str(folder), str(torch.get_num_threads())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._ask("ready")

    def _ask(self, what: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(what, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("answer "):
                return line.removeprefix("answer ").strip()
        raise SystemExit("The process with lxt has ended.")

    def run(self) -> None:
        """One explanation."""
        self._ask("run")

    def memory(self) -> int:
        """Bytes at the highest point of one explanation."""
        return int(self._ask("memory"))

    def relevance(self) -> Tensor:
        """Of the first class or token."""
        self._ask("relevance")
        result: Tensor = torch.load(self._folder / "relevance.pt")
        return result

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(case: str, folder: Path) -> None:
    """What the other process does: patch, load, and answer until its input ends."""
    with contextlib.redirect_stdout(sys.stderr):
        from lxt.efficient import monkey_patch
        from transformers.models.bert import modeling_bert
        from transformers.models.llama import modeling_llama

        build = CASES[case][0]
        monkey_patch(modeling_bert if build is bert else modeling_llama)
        if build is bert:  # the patch puts another module in place of this one
            import transformers

            patched: Any = sys.modules[modeling_bert.__name__]
            transformers.BertForSequenceClassification = patched.BertForSequenceClassification
    model, x = build(*CASES[case][1:3])
    model.load_state_dict(torch.load(folder / "weights.pt"))
    x = torch.load(folder / "input.pt")
    for parameter in model.parameters():
        parameter.requires_grad = False

    def explain() -> Tensor:
        embeddings = x.detach().clone().requires_grad_()
        model(embeddings)[:, 0].sum().backward()
        assert embeddings.grad is not None
        return embeddings.detach() * embeddings.grad

    for line in sys.stdin:
        answer, asked = 0, line.strip()
        if asked == "memory":
            answer, _ = peak_memory(explain)
        elif asked == "relevance":
            torch.save(explain(), folder / "relevance.pt")
        elif asked == "run":
            explain()
        print("answer", answer, flush=True)


def sections(repeats: int | None, clock: Clock) -> list[Callable[[], list[str]]]:
    """One part of the page for each case."""
    if clock is not time.perf_counter:
        raise SystemExit("--lxt measures another process, so it needs --clock wall.")
    return [functools.partial(section, case, repeats) for case in CASES]


@contextlib.contextmanager
def working(case: str, model: nn.Module, x: Tensor) -> Iterator[Worker]:
    """A process with the same weights and input under lxt."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(model.state_dict(), folder / "weights.pt")
        torch.save(x, folder / "input.pt")
        worker = Worker(case, folder)
        try:
            yield worker
        finally:
            worker.close()


def section(case: str, repeats: int | None) -> list[str]:
    """Time and memory in turns with lxt, and how far its relevance is from ours."""
    from captum.attr import InputXGradient

    from captum_lrp_tx import ConservativeGI, ConservativeLRP

    build, batch, tokens, turns = CASES[case]
    torch.manual_seed(0)
    model, x = build(batch, tokens)
    attnlrp = ConservativeLRP(model, rules="attnlrp")
    with working(case, model, x) as worker:
        found = {
            name: Method(functools.partial(method.attribute, x, target=0))
            for name, method in (
                (REFERENCE, InputXGradient(model)), (GI, ConservativeGI(model)),
                (LRP, ConservativeLRP(model)), (ATTNLRP, attnlrp),
            )
        }  # fmt: skip
        found[LXT] = Method(worker.run, memory=worker.memory)
        measured = rows(found, {}, repeats or turns, time.perf_counter)
        theirs = worker.relevance()
    ours = attnlrp.attribute(x, target=0)
    assert isinstance(ours, Tensor)
    by_token = [(r.double().sum(-1)) for r in (ours, theirs)]
    differences = [
        float((a - b).abs().max() / b.abs().max()) for a, b in ((ours, theirs), tuple(by_token))
    ]
    versions = importlib.metadata.version("lxt")
    return [
        f"## {case}", "",
        f"{repeats or turns} turns; lxt {versions} in a process of its own, its operations not "
        "counted.", "",
        *table(HEADS, [row.cells() for row in measured]), "",
        f"Relevance under `rules=\"attnlrp\"` against lxt's: greatest difference "
        f"{differences[0]:.1e} of the greatest entry, {differences[1]:.1e} of the greatest token.",
        "",
    ]  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    serve(sys.argv[1], Path(sys.argv[2]))
