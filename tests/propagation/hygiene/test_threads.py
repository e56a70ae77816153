"""Threads that share a model, and what runs inside of each other."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stress
from captum_lrp_tx import ConservativeGI, ConservativeLRP, LayerConservativeLRP


def test_mixed_jobs_of_many_threads_have_their_single_threaded_values() -> None:
    outcome = stress.run(rounds=2)
    assert not outcome.wrong
    assert set(outcome.counts.values()) == {2 * stress.THREADS}


def test_the_comparison_sees_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: rules that are not the thread's own show at once."""
    from captum_lrp_tx.propagation.state.scope import Scope

    tables: dict[int, Any] = {}
    plain = Scope.rule

    def shared(self: Scope, kind: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            return plain(self, kind)
        return tables.setdefault(kind, plain(self, kind))

    monkeypatch.setattr(Scope, "rule", shared)
    assert any("another value" in text for text in stress.run(rounds=1, threads=2).wrong)


@pytest.mark.parametrize("memory", ["standard", "low"])
def test_hooks_of_another_thread_do_nothing_here(memory: Any) -> None:
    """A thread stops inside its explanation; another one explains and infers meanwhile."""
    torch.manual_seed(0)
    net, ids = stress.Net().eval(), torch.randint(0, 11, (2, 6))
    layer = LayerConservativeLRP(net, net.blocks[0])
    expected = {
        "plain": net(ids).detach(),
        "gi": ConservativeGI(net, "gi").attribute(ids, target=1),
        "layer": layer.attribute(ids, target=1),
    }
    inside, go_on = threading.Event(), threading.Event()
    found: list[Tensor] = []

    def wait(*_: Any) -> None:
        if threading.current_thread().name == "waits":
            inside.set()
            assert go_on.wait(60)

    handle = net.blocks[1].register_forward_hook(wait)
    waits = threading.Thread(
        target=lambda: found.append(
            ConservativeLRP(net, memory=memory).attribute(ids, target=1, strict=True)
        ),
        name="waits",
    )
    waits.start()
    assert inside.wait(60)
    try:
        assert net.head._forward_hooks  # the other thread's
        for module in net.modules():  # torch forgets who gets kwargs before it forgets a hook
            for hook in module._forward_pre_hooks.values():
                assert hook(module, (ids,)) is None
            for after in module._forward_hooks.values():
                assert after is wait or after(module, (ids,), ids) is None
        assert torch.equal(net(ids), expected["plain"])
        assert torch.equal(ConservativeGI(net, "gi").attribute(ids, target=1), expected["gi"])
        assert torch.equal(layer.attribute(ids, target=1), expected["layer"])
    finally:
        go_on.set()
        waits.join()
        handle.remove()
    assert torch.equal(found[0], ConservativeLRP(net).attribute(ids, target=1))
    assert not net.head._forward_hooks


def test_asyncio_to_thread() -> None:
    torch.manual_seed(0)
    net, ids = stress.Net().eval(), torch.randint(0, 11, (2, 6))
    presets = ["gi", "ah", "ln", "lrp", "attnlrp"] * 4

    async def explain() -> list[Tensor]:
        calls = (
            asyncio.to_thread(ConservativeGI(net, preset).attribute, ids, target=2)
            for preset in presets
        )
        return list(await asyncio.gather(*calls))

    for preset, relevance in zip(presets, asyncio.run(explain()), strict=True):
        assert torch.equal(relevance, ConservativeGI(net, preset).attribute(ids, target=2))


def test_a_task_that_is_cancelled_leaves_the_model_alone(untouched: Any) -> None:
    """The thread of a cancelled ``to_thread`` runs on; the model is clean when it has ended."""
    net, ids = stress.Net().eval(), torch.randint(0, 11, (2, 6))
    started, go_on = threading.Event(), threading.Event()

    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            started.set()
            assert go_on.wait(60)
            return x

    net.blocks.append(Slow())

    async def main() -> None:
        call = asyncio.to_thread(ConservativeLRP(net).attribute, ids, target=1, strict=True)
        task = asyncio.create_task(call)
        while not started.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    with untouched(net):
        asyncio.run(main())  # waits for the threads of its executor
