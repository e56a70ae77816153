"""Half precision, zeros in denominators, depth, and memory over time."""

from __future__ import annotations

import gc
import importlib.util
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stress
from captum_lrp_tx import Composite, ConservativeGI, ConservativeLRP, rules
from captum_lrp_tx.propagation.autograd.functions import nonzero, safe_ratio

pytestmark = pytest.mark.thorough

THOROUGH = bool(os.environ.get("CAPTUM_LRP_TX_THOROUGH"))
LOW = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


# ---- zeros --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_ratios_at_zero(dtype: torch.dtype) -> None:
    tiny = float(torch.finfo(dtype).smallest_normal)
    top = torch.tensor([0.0, 1.0, -1.0, 0.0, 2.0, tiny], dtype=dtype)
    below = torch.tensor([0.0, 0.0, -0.0, 3.0, -4.0, tiny], dtype=dtype)
    expected = torch.tensor([0.0, 0.0, 0.0, 0.0, -0.5, 1.0], dtype=dtype)
    assert torch.equal(safe_ratio(top, below), expected)
    # with epsilon sign(0) is +1, as in Captum; a small one does not vanish in half precision
    stabilized = safe_ratio(
        torch.ones(3, dtype=dtype), torch.tensor([0.0, 1, -1], dtype=dtype), 0.5
    )
    torch.testing.assert_close(stabilized, torch.tensor([2.0, 2 / 3, -2 / 3], dtype=dtype))
    assert safe_ratio(torch.ones(1, dtype=dtype), torch.zeros(1, dtype=dtype), 1e-4).item() >= 9900
    assert nonzero(torch.zeros(2, dtype=dtype)).ne(0).all()


@pytest.mark.parametrize(
    "rule",
    [
        rules.ZeroRule(), rules.EpsilonRule(), rules.EpsilonRule(0.1), rules.GammaRule(),
        rules.GeneralizedGammaRule(), rules.AlphaBetaRule(), rules.ZPlusRule(),
        rules.PositiveWeightRule(), rules.FlatRule(),
        rules.WSquareRule(), rules.ZBoxRule(),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("bias", ["absorb", "distribute", "ignore"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rules_at_zero_inputs_and_outputs(rule: Any, bias: Any, dtype: torch.dtype) -> None:
    """Inputs, pre-activations and whole rows of zero: finite, and nothing from nothing."""
    model = nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].bias.zero_()
        model[0].weight[1] = 0  # a unit that is always zero
    model.to(dtype)
    x = torch.tensor([[0.0, 0, 0, 0], [1, 0, -1, 0], [1, -1, 2, -2]], dtype=dtype)
    composite = Composite({nn.Linear: rule}, base="lrp")
    relevance = ConservativeLRP(model, composite, bias=bias).attribute(x, target=1)
    assert relevance.isfinite().all()
    if not rule.gives_to_zero_inputs:
        assert relevance[x == 0].eq(0).all()


@pytest.mark.parametrize("act", [nn.GELU, nn.SiLU, nn.Tanh, nn.ELU, nn.Mish, nn.Hardswish])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_identity_rule_near_zero(act: Any, dtype: torch.dtype) -> None:
    """f(x) / x, which tends to f'(0) and is zero at zero itself, also for denormal numbers."""
    info = torch.finfo(dtype)
    x = torch.tensor([[0.0, -0.0, info.tiny, -info.tiny, info.smallest_normal / 2, 1.0]])
    x = x.to(dtype)
    relevance = ConservativeLRP(nn.Sequential(act(), nn.Flatten())).attribute(x, target=5)
    assert torch.equal(relevance[0, :5], torch.zeros(5, dtype=dtype))
    assert torch.equal(relevance[0, 5:], act()(x[0, 5:]))
    every = ConservativeLRP(lambda i: act()(i).sum(1)).attribute(x)
    torch.testing.assert_close(every, act()(x), atol=float(info.tiny), rtol=4 * info.eps)


# ---- half precision -----------------------------------------------------------------------------
@LOW
@pytest.mark.parametrize("preset", ["gi", "ah+ln", "lrp", "lrp-gamma", "attnlrp", "attnlrp-gamma"])
def test_no_overflow_where_the_model_has_none(preset: str, dtype: torch.dtype) -> None:
    """Activations near the largest number of float16: squares of them would be infinite."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.lin = nn.LayerNorm(64), nn.Linear(64, 64)
            self.rms, self.head = nn.GroupNorm(4, 64), nn.Linear(64, 2)

        def forward(self, x: Tensor) -> Tensor:
            large = self.lin(self.norm(x)) * 3e3
            return self.head(torch.nn.functional.gelu(self.norm(large)))

    model, x = Scaled().eval(), 2e4 * torch.randn(3, 64).clamp(-3, 3)
    reference = model.double()
    expected = ConservativeGI(reference, preset).attribute(x.double(), target=1)
    half, x = Scaled().eval().to(dtype), x.to(dtype)
    half.load_state_dict({k: v.to(dtype) for k, v in reference.state_dict().items()})
    found = ConservativeGI(half, preset).attribute(x, target=1)
    assert half(x).isfinite().all() and found.isfinite().all()
    error = (found.double() - expected).norm() / expected.norm()
    assert error < 32 * torch.finfo(dtype).eps


@LOW
@pytest.mark.parametrize("bias", ["absorb", "distribute"])
def test_half_precision_conserves(bias: Any, dtype: torch.dtype) -> None:
    depth = _depth()
    assert depth.error(6, True, dtype, bias, 0) < 16 * torch.finfo(dtype).eps


# ---- depth --------------------------------------------------------------------------------------
def _depth() -> Any:
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    spec = importlib.util.spec_from_file_location("depth", folder / "depth.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))  # what it imports lies beside it
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("depth", [1, 12, 48])
def test_the_error_does_not_grow_with_depth(depth: int, pre_norm: bool) -> None:
    """Measured for all depths and precisions in benchmarks/depth.md; the bound has no depth."""
    found = [_depth().error(depth, pre_norm, torch.float32, "absorb", seed) for seed in (0, 1)]
    assert max(found) < 2e-5


# ---- memory -------------------------------------------------------------------------------------
def _resident() -> int:
    """Bytes of this process in memory."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("no /proc here")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "name",
    ["lrp", "composite", "distribute", "audit", "gae", "rollout", "layers", "low", "nested"],
)
def test_memory_stays_flat_without_the_garbage_collector(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    torch.manual_seed(0)
    net, ids = stress.Net().eval(), torch.randint(0, 11, (2, 6))
    job = stress.explanations(net, ids)[name]
    for _ in range(5):
        job()
    gc.collect()
    rounds, before = 2000 if THOROUGH else 60, len(gc.get_objects())
    resident = _resident()
    gc.disable()  # reference counting alone must free everything
    try:
        for _ in range(rounds):
            job()
        left, grown = len(gc.get_objects()) - before, _resident() - resident
    finally:
        gc.enable()
    record_property("rounds", rounds)
    record_property("growth of the process in such a loop, in KiB", grown // 1024)
    assert left < 50  # objects, tensors among them: not one for each round
    assert grown < 8 * 2**20 and math.isfinite(grown)
