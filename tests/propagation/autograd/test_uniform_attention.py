"""AttnLRP's attention from one run of the kernel, against the kernel's plain gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from captum_lrp_tx import ConservativeLRP
from captum_lrp_tx.propagation.autograd import uniform_attention

SHARES = (0.25, 0.25, 0.5)


def plain(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, 1) for t in (key, value))
    mask, causal = kwargs.get("attn_mask"), kwargs.get("is_causal", False)
    scores = query @ key.mT * kwargs.get("scale", query.shape[-1] ** -0.5)
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:]).tril().bool(), -torch.inf)
    if mask is not None:
        scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, -1e30)
    return scores.softmax(-1) @ value


MASK = torch.rand(2, 1, 7, 7) > 0.3
MASK[..., 0] = True
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "scaled": {"scale": 0.2},
    "boolean mask": {"attn_mask": MASK},
    "additive mask": {"attn_mask": torch.randn(2, 4, 7, 7)},
    "shared heads": {"enable_gqa": True},
}


@pytest.mark.parametrize("is_one_run", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_kernel_with_shares(
    name: str, is_one_run: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    kwargs = CASES[name]
    heads = 2 if "enable_gqa" in kwargs else 4
    query = torch.randn(2, 4, 7, 8)
    key, value = torch.randn(2, heads, 7, 8), torch.randn(2, heads, 7, 8)
    runs: list[str] = []
    for run in ("_by_kernel", "_again"):
        original = getattr(uniform_attention, run)
        monkeypatch.setattr(
            uniform_attention, run,
            lambda *a, run=run, original=original: runs.append(run) or original(*a),
        )  # fmt: skip
    if not is_one_run:
        find = uniform_attention.attention_with_logsumexp
        monkeypatch.setattr(
            uniform_attention, "attention_with_logsumexp", lambda *a: (find(*a)[0], None)
        )
    readout = torch.randn(2, 4, 7, 8)

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(q, k, v, **kwargs)
        out += 0.0  # what is kept for the backward pass is a copy
        return (out * readout).flatten(1).sum(1)

    got = ConservativeLRP(forward, rules="attnlrp").attribute((query, key, value))
    leaves = [t.clone().requires_grad_() for t in (query, key, value)]
    (plain(*leaves, **kwargs) * readout).sum().backward()
    for g, leaf, share in zip(got, leaves, SHARES, strict=True):
        torch.testing.assert_close(g, leaf.detach() * leaf.grad * share, rtol=1e-4, atol=1e-5)
    chosen = torch._fused_sdp_choice(query, key, value, enable_gqa=True)
    if name != "shared heads" or chosen == SDPBackend.FLASH_ATTENTION.value:  # not in old ones
        assert set(runs) == {"_by_kernel" if is_one_run else "_again"}


@pytest.mark.parametrize("dependent", ["q", "k", "v", "qk", "qv", "kv", "qm", "qkv", "qkvm", "vm"])
def test_constants_have_no_share(dependent: str) -> None:
    """A learned query, say: fused attention is the same as its two products."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"q": (2, 4, 7, 8), "k": (2, 4, 5, 8), "v": (2, 4, 5, 8), "m": (2, 4, 7, 5)}
    drawn = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    readout = torch.randn(2, 4, 7, 8, generator=generator, dtype=torch.float64)
    inputs = tuple(drawn[name] for name in dependent)

    def forward(fused: bool, *given: Tensor) -> Tensor:
        t = {**drawn, **dict(zip(dependent, given, strict=True))}
        if fused:
            out = F.scaled_dot_product_attention(t["q"], t["k"], t["v"], t["m"])
        else:
            out = (t["q"] @ t["k"].mT * 8**-0.5 + t["m"]).softmax(-1) @ t["v"]
        return (out * readout).flatten(1).sum(1)

    found = [
        ConservativeLRP(lambda *x, fused=fused: forward(fused, *x), "attnlrp", epsilon=0).attribute(
            inputs
        )
        for fused in (True, False)
    ]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
