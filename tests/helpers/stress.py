"""Eight threads on one model for many rounds: every result is that of one thread, bit for bit.

``benchmarks/threads.py`` is the long run; tests call :func:`run` with few rounds.  What the threads
do at the same time, on the same modules:

* explanations with different presets, composites, layers, the audit and attention maps, some with
  an explanation inside a hook of the user's;
* plain inference, with and without ``no_grad`` and ``inference_mode``;
* training steps of copies of the model, one copy for each thread;
* explanations through ``asyncio.to_thread``.
"""

from __future__ import annotations

import asyncio
import copy
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_tx import (
    AttentionRollout,
    Composite,
    ConservativeGI,
    ConservativeLRP,
    GenericAttention,
    LayerConservativeLRP,
    audit,
)
from captum_lrp_tx.rules import GammaRule, LNRule

Job = Callable[[], list[Tensor]]
THREADS = 8


class Block(nn.Module):
    """A post-norm block with a module of torch for its attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.act, self.down = nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, x, x, need_weights=False)[0])
        return self.norm2(x + self.down(self.act(self.up(x))))


class Net(nn.Module):
    """Token ids, two blocks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.word(ids) + self.position(torch.arange(ids.shape[1]))
        return self.head(self.blocks(x).mean(1))


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value.detach().clone()]
    return [t for item in value for t in _flat(item)]


def explanations(net: Net, ids: Tensor) -> dict[str, Job]:
    """What is computed concurrently, each a function of nothing."""
    composite = Composite({"blocks.0": [GammaRule(), LNRule()], "head": None}, base="lrp")
    jobs: dict[str, Job] = {}

    def add(name: str, run: Callable[[], Any]) -> None:
        jobs[name] = lambda: _flat(run())

    for preset in ("gi", "ah", "ln", "ah+ln", "lrp", "lrp-gamma", "attnlrp"):
        add(preset, lambda p=preset: ConservativeGI(net, p).attribute(ids, target=1))
    for bias in ("distribute", "ignore"):
        method = ConservativeLRP(net, bias=bias, epsilon=0.1)
        add(bias, lambda m=method: m.attribute(ids, target=0, return_convergence_delta=True))
    add("composite", lambda: ConservativeLRP(net, composite).attribute(ids, target=2))
    add("strict", lambda: ConservativeLRP(net, composite).attribute(ids, target=2, strict=True))
    layers: Any = LayerConservativeLRP(net, [net.blocks[0], net.blocks[1].norm1], rules=composite)
    add("layers", lambda: layers.attribute(ids, target=1))
    low = ConservativeLRP(net, memory="low")
    add("low", lambda: low.attribute(ids, target=1))
    add("audit", lambda: _audited(net, ids))
    add("rollout", lambda: AttentionRollout(net).attribute(ids))
    add("gae", lambda: GenericAttention(net).attribute(ids, target=1))
    add("nested", lambda: _nested(net, ids, composite))
    add("asyncio", lambda: asyncio.run(_in_thread(net, ids)))
    return jobs


def _audited(net: Net, ids: Tensor) -> Tensor:
    report = audit.explainability(net, ids, target=1, file=None)
    return torch.tensor([report.output, report.relevance, *sorted(report.absorbed.values())])


def _nested(net: Net, ids: Tensor, composite: Composite) -> list[Tensor]:
    """An explanation inside a hook of another one, for this thread only."""
    thread, inner = threading.get_ident(), []

    def hook(*_: Any) -> None:
        if threading.get_ident() == thread and not inner:
            inner.append(torch.zeros(()))  # the explanation below runs this hook again
            inner[0] = ConservativeGI(net, composite).attribute(ids, target=0)

    handle = net.blocks[1].register_forward_hook(hook)
    try:
        outer = ConservativeLRP(net).attribute(ids, target=1)
    finally:
        handle.remove()
    return [outer, inner[0]]


async def _in_thread(net: Net, ids: Tensor) -> list[Tensor]:
    methods = [ConservativeLRP(net), ConservativeGI(net, "ln")]
    return list(
        await asyncio.gather(*(asyncio.to_thread(m.attribute, ids, target=1) for m in methods))
    )


def inferences(net: Net, ids: Tensor) -> dict[str, Job]:
    """Plain forward passes."""

    def without(mode: Callable[[], Any]) -> list[Tensor]:
        with mode():
            return _flat(net(ids))

    return {
        "inference with gradients": lambda: _flat(net(ids)),
        "inference under no_grad": lambda: without(torch.no_grad),
        "inference under inference_mode": lambda: without(torch.inference_mode),
    }


def _training(net: Net, ids: Tensor) -> Job:
    """Training steps of a copy from the same start: always the same weights."""

    def train() -> list[Tensor]:
        own = copy.deepcopy(net)
        optimiser = torch.optim.SGD(own.parameters(), lr=0.1)
        for _ in range(2):
            optimiser.zero_grad()
            F.cross_entropy(own(ids), torch.tensor([0, 2])).backward()
            optimiser.step()
        return [p.detach().clone() for p in own.parameters()]

    return train


@dataclass
class Outcome:
    """What happened in :func:`run`."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


def run(rounds: int, threads: int = THREADS, seed: int = 0) -> Outcome:
    """Let the threads do all jobs in their own random orders, ``rounds`` times each.

    Args:
        rounds (int): Times that every thread does every job.
        threads (int): How many.
        seed (int): Of the model and the orders.

    Returns:
        Outcome: ``wrong`` is empty if each result was that of a single thread, bit for bit.
    """
    torch.manual_seed(seed)
    net, ids = Net().eval(), torch.randint(0, 11, (2, 6))
    fresh = copy.deepcopy(net)  # copied before other threads put hooks on the model
    jobs = {**explanations(net, ids), **inferences(net, ids), "training": _training(fresh, ids)}
    outcome, lock = Outcome(), threading.Lock()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):  # the second time is no first time, with its checks
            expected = {name: job() for name, job in jobs.items()}
        barrier = threading.Barrier(threads)

        def work(number: int) -> None:
            order = torch.Generator().manual_seed(1000 * seed + number)
            names = list(jobs)
            barrier.wait()
            for _ in range(rounds):
                for i in torch.randperm(len(names), generator=order).tolist():
                    problem = _compare(names[i], jobs[names[i]], expected[names[i]])
                    with lock:
                        outcome.counts[names[i]] += 1
                        outcome.wrong += problem

        start = time.perf_counter()
        workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        outcome.seconds = time.perf_counter() - start
    for name, module in net.named_modules():
        if any(v for k, v in vars(module).items() if "hooks" in k and isinstance(v, dict)):
            outcome.wrong.append(f"a hook is left on {name or 'the model'}")
    for name, tensor in net.state_dict().items():
        if not torch.equal(tensor, before[name]):
            outcome.wrong.append(f"{name} has changed")
    return outcome


def _compare(name: str, job: Job, expected: list[Tensor]) -> list[str]:
    try:
        found = job()
    except Exception as error:
        return [f"{name}: {type(error).__name__}: {error}"]
    if len(found) != len(expected) or not all(map(torch.equal, found, expected)):
        return [f"{name}: another value"]
    return []
