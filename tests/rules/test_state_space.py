"""State space models: MambaLRP's rules against scans written out position by position.

The reference computes every coefficient of the scan in float64 from the equations

    h_t = exp(D_t A) h_{t-1} + D_t B_t x_t,    y_t = C_t h_t + E x_t,    out = W (y_t * silu(z_t))

as a table ``kernel[t, s]`` of how position t reads position s, puts these numbers in as constants,
and asks autograd for gradient x input of what is left.  It shares nothing with the package.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from captum_lrp_tx import Composite, ConservativeLRP, audit, rules
from captum_lrp_tx.errors import NoRuleAppliedWarning, UncoveredOperationError
from closeness import close_to_largest
from state_space_models import CONFIGURATIONS, build

WIDTH, INNER, STATES, RANK, BATCH, TOKENS = 6, 8, 3, 2, 2, 7


def silu(x: Tensor) -> Tensor:
    """The identity rule: ``x * sigmoid(x)`` with the sigmoid constant (MambaLRP, section 4.1)."""
    return x * x.sigmoid().detach()


def gated(y: Tensor, gate: Tensor, half: bool) -> Tensor:
    """``y * gate``: half the relevance to each (MambaLRP, section 4.3), or all of it to ``y``."""
    if not half:
        return y * gate.detach()
    product = y * gate
    return 0.5 * product + (0.5 * product).detach()


def scan_table(step: Tensor, log_a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``kernel[n, t, s, d] = sum_k C_t[k] exp(A[d, k] sum of D[s+1..t]) D_s B_s[k]``, by loops.

    Args:
        step: D (batch, tokens, channels). log_a: A (channels, states).
        b, c: (batch, tokens, channels, states).
    """
    batch, tokens, channels = step.shape
    kernel = step.new_zeros(batch, tokens, tokens, channels)
    for n in range(batch):
        for d in range(channels):
            for s in range(tokens):
                for t in range(s, tokens):
                    decay = torch.exp(log_a[d] * step[n, s + 1 : t + 1, d].sum())
                    kernel[n, t, s, d] = (c[n, t, d] * decay * b[n, s, d]).sum() * step[n, s, d]
    return kernel


class TinyMamba(nn.Module):
    """A selective scan in three spellings, with everything that a Mamba block has around it."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.into = nn.Linear(WIDTH, 2 * INNER, bias=False)
        self.conv = nn.Conv1d(INNER, INNER, 3, padding=2, groups=INNER)
        self.select = nn.Linear(INNER, RANK + 2 * STATES, bias=False)
        self.step = nn.Linear(RANK, INNER)
        self.a_log = nn.Parameter(torch.randn(INNER, STATES))
        self.skip = nn.Parameter(torch.randn(INNER))
        self.out = nn.Linear(INNER, WIDTH, bias=False)

    def parts(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        x, gate = self.into(hidden).chunk(2, -1)
        x = F.silu(self.conv(x.mT)[..., : hidden.shape[1]].mT)
        rank, b, c = self.select(x).split([RANK, STATES, STATES], -1)
        return x, gate, F.softplus(self.step(rank)), b, c

    def forward(self, hidden: Tensor) -> Tensor:
        x, gate, step, b, c = self.parts(hidden)
        a = -self.a_log.exp()
        if self.spelling == "broadcast":
            decay = torch.exp(step.unsqueeze(-1) * a)
            write = step.unsqueeze(-1) * b.unsqueeze(2) * x.unsqueeze(-1)
        elif self.spelling == "signal first":
            decay = torch.exp(step.unsqueeze(-1) * a)
            write = (x * step).unsqueeze(-1) * b.unsqueeze(2)
        else:
            decay = torch.exp(torch.einsum("bld,dn->bldn", step, a))
            write = torch.einsum("bld,bln,bld->bldn", step, b, x)
        state = torch.zeros(BATCH, INNER, STATES)
        read = []
        for t in range(hidden.shape[1]):
            state = decay[:, t] * state + write[:, t]
            if self.spelling == "broadcast":
                read.append((state * c[:, t].unsqueeze(1)).sum(-1))
            else:
                read.append(torch.einsum("bdn,bn->bd", state, c[:, t]))
        y = torch.stack(read, 1) + x * self.skip
        return self.out(y * F.silu(gate))

    def reference(self, hidden: Tensor, half: bool) -> Tensor:
        x, gate = self.into(hidden).chunk(2, -1)
        x = silu(self.conv(x.mT)[..., : hidden.shape[1]].mT)
        with torch.no_grad():
            _, _, step, b, c = self.parts(hidden)
            wide = (BATCH, TOKENS, INNER, STATES)
            b, c = (v.unsqueeze(2).expand(wide) for v in (b, c))
            kernel = scan_table(step, -self.a_log.exp(), b, c)
        y = torch.einsum("ntsd,nsd->ntd", kernel, x) + x * self.skip
        return self.out(gated(y, silu(gate), half))


def relevance(reference: Any, hidden: Tensor, target: tuple[int, int], half: bool) -> Tensor:
    leaf = hidden.double().requires_grad_()
    output = reference(leaf, half)
    (gradient,) = torch.autograd.grad(output[:, target[0], target[1]].sum(), leaf)
    return (leaf * gradient).detach()


@pytest.mark.parametrize("preset", ["lrp", "lrp-gated", "mambalrp", "attnlrp"])
@pytest.mark.parametrize("spelling", ["broadcast", "signal first", "einsum"])
def test_a_tiny_mamba_follows_the_equations(spelling: str, preset: str, untouched: Any) -> None:
    model = zoo.randomise(TinyMamba(spelling))
    hidden, target = torch.randn(BATCH, TOKENS, WIDTH), (TOKENS - 2, 1)
    double = zoo.randomise(TinyMamba(spelling)).double()
    torch.testing.assert_close(
        double.reference(hidden.double(), False).float(), model(hidden), rtol=1e-4, atol=1e-5
    )
    expected = relevance(double.reference, hidden, target, half=preset != "lrp-gated")
    method = ConservativeLRP(model, preset, epsilon=0.0)
    with untouched(model):
        close_to_largest(method.attribute(hidden, target=target, strict=True).double(), expected)
    assert expected[:, -1].abs().max() == 0  # what comes later is not read


def test_without_the_rule_the_scan_is_refused() -> None:
    model, hidden = zoo.randomise(TinyMamba("broadcast")), torch.randn(BATCH, TOKENS, WIDTH)
    report = audit.explainability(model, hidden, target=(3, 1), rules="lrp", file=None)
    assert {a.rule for a in report.applied if a.kind == "scan"} == {"StateSpaceRule()"}
    plain = Composite({nn.Module: rules.GradientRule()}, base="ah+ln")
    report = audit.explainability(model, hidden, target=(3, 1), rules=plain, file=None)
    assert "Exp" in {f.operation for f in report.findings}


class Unclear(nn.Module):
    """Recurrences whose parts cannot be told apart: refused, never guessed."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.step, self.b, self.x = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, hidden: Tensor) -> Tensor:
        step, b, x = F.softplus(self.step(hidden)), self.b(hidden), self.x(hidden)
        if self.how == "decay by a sigmoid":
            decay = torch.exp(-8 * self.step(hidden).sigmoid())
        else:
            decay = torch.exp(-step)
        state: Any = torch.zeros(len(hidden), WIDTH)
        for t in range(hidden.shape[1]):
            write = x[:, t] * b[:, t]
            if self.how == "decay of both":
                write = (decay[:, t] * x[:, t]) * (decay[:, t] * b[:, t])
            elif self.how == "divided by the decay":
                write = x[:, t] / decay[:, t]
            state = decay[:, t] * state + write
        return state


HOW = ["decay by a sigmoid", "decay of both", "divided by the decay"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("preset", ["lrp", "mambalrp", "attnlrp"])
def test_what_cannot_be_told_apart_is_refused(how: str, preset: str) -> None:
    model, hidden = zoo.randomise(Unclear(how)), torch.randn(BATCH, 4, WIDTH)
    with pytest.raises(UncoveredOperationError, match=r"Exp|recurrence"):
        ConservativeLRP(model, preset).attribute(hidden, target=1, strict=True)


class SoftplusGate(nn.Module):
    """No scan: a gated linear unit whose gate is a softplus."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(self.gate(x)) * self.up(x)


def test_a_softplus_gate_is_no_scan() -> None:
    model, x = zoo.randomise(SoftplusGate()), torch.randn(3, WIDTH)
    report = audit.explainability(model, x, target=1, rules="attnlrp", file=None)
    assert report.is_covered
    assert "scan" not in {a.kind for a in report.applied}


@pytest.mark.parametrize("family", CONFIGURATIONS)
def test_family_is_covered_and_conserves(family: str, untouched: Any) -> None:
    model, ids, target = build(family), torch.randint(3, 40, (2, 7)), (6, 1)
    with untouched(model):
        ConservativeLRP(model).attribute(ids, target=target, strict=True)
    report = audit.explainability(model, ids, target=target, file=None, strict=True)
    assert "StateSpaceRule()" in {a.rule for a in report.applied}
    scale = abs(report.output) + sum(abs(v) for v in report.absorbed.values())
    assert abs(report.conservation_error) <= 1e-4 * scale


def per_channel(mixer: Any, x: Tensor, gate: Tensor, half: bool) -> Tensor:
    """Mamba, Falcon-Mamba and Jamba: steps, B and C from the signal itself."""
    with torch.no_grad():
        rank, states = mixer.time_step_rank, mixer.ssm_state_size
        step, b, c = mixer.x_proj(x).split([rank, states, states], -1)
        if hasattr(mixer, "dt_layernorm"):
            step, b, c = mixer.dt_layernorm(step), mixer.b_layernorm(b), mixer.c_layernorm(c)
        step = F.softplus(mixer.dt_proj(step))
        b, c = (v.unsqueeze(2).expand(*step.shape, states) for v in (b, c))
        kernel = scan_table(step, -mixer.A_log.exp(), b, c)
    y = torch.einsum("ntsd,nsd->ntd", kernel, x) + x * mixer.D
    return mixer.out_proj(gated(y, silu(gate), half))


def mixed(mixer: Any, hidden: Tensor, half: bool) -> Tensor:
    """The mixers of transformers from the equations; the parts of Mamba-2 in one projection."""
    tokens = hidden.shape[1]
    if hasattr(mixer, "x_proj"):
        x, gate = mixer.in_proj(hidden).chunk(2, -1)
        x = silu(mixer.conv1d(x.mT)[..., :tokens].mT)
        return per_channel(mixer, x, gate, half)
    hidden = hidden * getattr(mixer, "ssm_in_multiplier", 1.0)
    parts = mixer.in_proj(hidden) * getattr(mixer, "mup_vector", 1.0)
    inner, heads, groups = mixer.intermediate_size, mixer.num_heads, mixer.n_groups
    states = mixer.ssm_state_size
    gate, x, step = parts.split([inner, parts.shape[-1] - inner - heads, heads], -1)
    x = silu(mixer.conv1d(x.mT)[..., :tokens].mT)
    x, b, c = x.split([inner, groups * states, groups * states], -1)
    with torch.no_grad():
        step = F.softplus(step + mixer.dt_bias)
        wide = (*step.shape[:2], groups, states)
        b, c = (v.reshape(wide).repeat_interleave(heads // groups, 2) for v in (b, c))
        log_a = -mixer.A_log.exp()[:, None].expand(heads, states)
        kernel = scan_table(step, log_a, b, c)
    x = x.unflatten(-1, (heads, -1))
    y = torch.einsum("ntsh,nshp->nthp", kernel, x) + x * mixer.D[:, None]
    y = gated(y.flatten(-2), silu(gate), half)
    if getattr(mixer, "mamba_rms_norm", True):
        sections = y.unflatten(-1, (getattr(mixer.norm, "n_groups", None) or groups, -1))
        square = sections.square().mean(-1, keepdim=True)
        scale = (square + mixer.norm.variance_epsilon).rsqrt().detach()
        y = (sections * scale).flatten(-2) * mixer.norm.weight
    return mixer.out_proj(y)


class Whole(nn.Module):
    """Only the output of a mixer that returns more than that."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, hidden: Tensor) -> Tensor:
        return self.mixer(hidden)


@pytest.mark.parametrize("preset", ["lrp", "lrp-gated", "mambalrp"])
@pytest.mark.parametrize("family", ["Mamba", "FalconMamba", "Jamba", "Mamba2", "FalconH1"])
def test_mixers_of_transformers_follow_the_equations(family: str, preset: str) -> None:
    model = build(family)
    name = next(n for n, m in model.named_modules() if hasattr(m, "A_log"))
    mixer = model.get_submodule(name)
    hidden, target = torch.randn(2, 6, 16), (4, 3)  # two chunks of Mamba-2
    double = build(family).double().get_submodule(name)
    reference = double.to(torch.float64)
    torch.testing.assert_close(
        mixed(reference, hidden.double(), False).float(), mixer(hidden), rtol=1e-4, atol=1e-5
    )
    half = preset != "lrp-gated"
    expected = relevance(lambda h, half: mixed(reference, h, half), hidden, target, half)
    method = ConservativeLRP(Whole(mixer), preset, epsilon=0.0)
    close_to_largest(method.attribute(hidden, target=target, strict=True).double(), expected)


def test_padding_on_the_left_receives_nothing() -> None:
    model, ids = build("Mamba"), torch.randint(3, 40, (1, 6))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
    padded = {"input_ids": F.pad(ids, (2, 0)), "attention_mask": mask}
    got = ConservativeLRP(model).attribute(padded, target=(7, 1), strict=True)
    assert got[:, :2].abs().max() == 0
    assert got[:, 2:].abs().min() > 0


@pytest.mark.parametrize("family", ["Mamba", "Mamba2"])
def test_a_state_handed_in_is_a_constant(family: str) -> None:
    """What the state of earlier tokens contributes is absorbed: the sum still closes."""
    model, ids, more = build(family), torch.randint(3, 40, (1, 5)), torch.randint(3, 40, (1, 1))
    mixer = next(m for m in model.modules() if hasattr(m, "A_log"))

    def earlier() -> Any:
        with torch.no_grad():
            returned = model(ids, use_cache=True)
        return getattr(returned, "past_key_values", None) or returned.cache_params

    cache, name = earlier(), "past_key_values"
    if "cache_params" in inspect.signature(model.forward).parameters:
        name = "cache_params"
    given = {"input_ids": more, name: cache, "use_cache": True}
    report = audit.explainability(model, given, target=(0, 1), file=None, strict=True)
    scale = abs(report.output) + sum(abs(v) for v in report.absorbed.values())
    assert abs(report.conservation_error) <= 1e-4 * scale
    with torch.no_grad():
        expected = model(more, **{name: earlier()}, use_cache=True).logits[0, 0, 1]
    assert report.output == pytest.approx(float(expected), rel=1e-4)
    assert mixer.A_log.grad is None


@pytest.mark.parametrize("family", ["Mamba", "Mamba2"])
def test_ah_ln_leaves_scans_to_the_gradient(family: str) -> None:
    """Step by step or as a table of what each position reads, which is no attention pattern."""
    model, ids = build(family), torch.randint(3, 40, (1, 6))
    report = audit.explainability(model, ids, (5, 1), rules="ah+ln", file=None, strict=True)
    assert not any(item.kind == "scan" for item in report.applied)
    assert any("product" in f.what and "mixer" in f.module for f in report.findings)


@pytest.mark.parametrize("has_softmax", (False, True))
def test_decays_of_scores_are_a_scan_and_decays_of_a_softmax_are_not(has_softmax: bool) -> None:
    c, b, x = torch.randn(3, 2, 5, 6)

    def forward(c: Tensor, b: Tensor, x: Tensor) -> Tensor:
        scores = F.silu(c) @ F.silu(b).transpose(1, 2)
        scores = scores.softmax(-1) if has_softmax else scores
        sums = F.softplus(x[..., 0]).cumsum(1)
        decays = (sums[:, None] - sums[:, :, None]).tril().exp()
        return torch.einsum("bts,bsd->btd", scores * decays, x).sum((1, 2))

    lrp = ConservativeLRP(forward, "ah+ln")
    if has_softmax:
        with pytest.raises(UncoveredOperationError, match="not recognised as an attention"):
            lrp.attribute((c, b, x), strict=True)
    else:
        with pytest.warns(NoRuleAppliedWarning) as told:  # and of nothing else
            found = lrp.attribute((c, b, x))
        assert len(told) == 1
        leaves = [t.clone().requires_grad_() for t in (c, b, x)]
        plain = torch.autograd.grad(forward(*leaves).sum(), leaves)
        for relevance, leaf, gradient in zip(found, leaves, plain, strict=True):
            torch.testing.assert_close(relevance, (leaf * gradient).detach())


def test_a_scan_is_found_without_transformers_names() -> None:
    """The classes are renamed: nothing depends on what they are called."""
    module = importlib.import_module("transformers.models.mamba.modeling_mamba")
    model, ids = build("Mamba"), torch.randint(3, 40, (1, 6))
    expected = ConservativeLRP(model).attribute(ids, target=(5, 1))
    for layer in model.modules():
        if type(layer) is module.MambaMixer:
            layer.__class__ = type("Thing", (module.MambaMixer,), {})
    got = ConservativeLRP(model).attribute(ids, target=(5, 1), strict=True)
    assert torch.equal(got, expected)
