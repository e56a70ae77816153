"""Fixtures for all tests."""

from __future__ import annotations

import contextlib
import gc
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# programs and kernels that tests start run beside other tests: with a thread for each core they
# would wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

try:
    import hypothesis
except ImportError:  # the tests that use it say so themselves
    pass
else:
    hypothesis.settings.register_profile("dev", deadline=None)
    hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
    hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")

SHARED_VARIABLE = "CAPTUM_LRP_TX_SHARED"


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> Iterator[None]:
    """One thread: the models are tiny, and sums come out in the same order on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _modules_are_not_collected() -> None:
    """What torch and transformers define stays: the collector need not walk over it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """The same random numbers in every test, whatever ran before it."""
    random.seed(0)
    torch.default_generator.manual_seed(0)  # torch.manual_seed takes a traceback each time
    try:
        import numpy
    except ImportError:
        return
    numpy.random.seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared models and data; the test is skipped where there is none."""
    named = os.environ.get(SHARED_VARIABLE)
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: set {SHARED_VARIABLE} to the folder of shared files")
    return folder


def _hooks(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v) for k, v in module.__dict__.items() if "hooks" in k and isinstance(v, dict)}


def snapshot(model: torch.nn.Module) -> dict[str, Any]:
    """Everything of a model that an explanation must leave alone."""
    state = model.state_dict(keep_vars=True)
    return {
        "bytes": {k: v.detach().cpu().clone() for k, v in state.items()},
        "requires_grad": {k: v.requires_grad for k, v in state.items()},
        "grads": {k: v.grad is None for k, v in state.items()},
        "hooks": {k: _hooks(m) for k, m in model.named_modules()},
        "training": {k: m.training for k, m in model.named_modules()},
        "attributes": {k: sorted(m.__dict__) for k, m in model.named_modules()},
        "classes": {k: (type(m), sorted(vars(type(m)))) for k, m in model.named_modules()},
    }


@pytest.fixture
def untouched() -> Callable[[torch.nn.Module], contextlib.AbstractContextManager[None]]:
    """A context manager that asserts that the model is the same before and after."""

    @contextlib.contextmanager
    def check(model: torch.nn.Module) -> Iterator[None]:
        before = snapshot(model)
        try:
            yield
        finally:
            after = snapshot(model)
            torch.testing.assert_close(
                after.pop("bytes"), before.pop("bytes"), rtol=0, atol=0, equal_nan=True
            )
            assert after == before

    return check
