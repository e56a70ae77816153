"""Who calls, and how the model is put together: right, or refused with a reason.

Wherever a plain spelling of the same computation exists, its relevance is what must come out.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from captum_lrp_tx import (
    AttentionRollout,
    Composite,
    ConservativeGI,
    ConservativeLRP,
    GenericAttention,
    LayerConservativeLRP,
    audit,
    rules,
)
from captum_lrp_tx.errors import (
    UncoveredOperationError,
    UncoveredOperationWarning,
    UnsupportedModelError,
)
from captum_lrp_tx.propagation.judging import obstacles
from closeness import close

pytestmark = [pytest.mark.core, pytest.mark.captum]

GAMMA = Composite({nn.Linear: rules.GeneralizedGammaRule()}, base="lrp")
METHODS: Any = pytest.mark.parametrize(
    "method",
    [
        ConservativeGI,
        ConservativeLRP,
        lambda m: ConservativeLRP(m, bias="distribute"),
        lambda m: ConservativeLRP(m, "attnlrp"),
        lambda m: ConservativeLRP(
            m, Composite({nn.Linear: rules.GeneralizedGammaRule()}, base="lrp")
        ),
    ],
    ids=["gi", "lrp", "distribute", "attnlrp", "composite"],
)


class Block(nn.Module):
    """A transformer block and a head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t[:, None] for t in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v)[:, 0])
        return self.head((x + self.mlp(x)).mean(1))


@pytest.fixture
def model() -> Block:
    return Block().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, 8)


def with_weights(weights: dict[str, Tensor]) -> Block:
    plain = Block().eval()
    plain.load_state_dict({name: tensor.detach() for name, tensor in weights.items()})
    return plain


# ---- function transforms ------------------------------------------------------------------------
TRANSFORMS: dict[str, Callable[[Any, Tensor], Any]] = {
    "vmap": lambda f, x: torch.vmap(lambda e: f(e[None])[0])(x),
    "grad": lambda f, x: torch.func.grad(lambda e: f(e).sum())(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("cls", [ConservativeGI, ConservativeLRP, AttentionRollout])
def test_inside_of_a_transform(
    cls: Any, transform: str, model: Block, x: Tensor, untouched: Any
) -> None:
    def explain(example: Tensor) -> Tensor:
        return cls(model).attribute(example, target=1)

    with untouched(model), pytest.raises(UnsupportedModelError, match="Pass a batch instead"):
        TRANSFORMS[transform](explain, x)
    assert cls(model).attribute(x, target=1).isfinite().all()


@METHODS
def test_functional_call(method: Any, model: Block, x: Tensor) -> None:
    """Weights from a graph of the caller's are constants, like parameters."""
    doubled = {name: 2 * p for name, p in model.named_parameters()}  # with a graph to the model

    def forward(inputs: Tensor) -> Tensor:
        return torch.func.functional_call(model, doubled, (inputs,))

    expected = method(with_weights(doubled)).attribute(x, target=1)
    close(method(forward).attribute(x, target=1), expected)


def test_additional_arguments_from_a_graph(x: Tensor) -> None:
    """A gate that the caller computed is a constant, whether or not it needs a gradient."""
    weight = torch.randn(8, requires_grad=True)
    lin = nn.Linear(8, 3)

    def forward(inputs: Tensor, gate: Tensor) -> Tensor:
        return lin(inputs * gate).mean(1)

    for gate in (weight, weight * 2, (weight * 2).detach()):
        found = ConservativeLRP(forward).attribute(x, 1, additional_forward_args=(gate,))
        close(found, ConservativeLRP(lambda i: forward(i, gate.detach())).attribute(x, 1))  # noqa: B023


class Vmapped(nn.Module):
    """Runs its model for each example by vmap, where no rule can act."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda e: self.inner(e[None])[0])(x)


def test_a_model_that_uses_vmap_is_reported(model: Block, x: Tensor) -> None:
    with pytest.warns(UncoveredOperationWarning, match=r"NativeLayerNorm in inner\.norm"):
        ConservativeLRP(Vmapped(model)).attribute(x, target=1)
    with pytest.raises(UncoveredOperationError, match=r"NativeLayerNorm in inner\.norm"):
        ConservativeLRP(Vmapped(model)).attribute(x, target=1, strict=True)
    with pytest.warns(UncoveredOperationWarning, match=r"torch\.vmap .* the whole batch"):
        ConservativeLRP(Vmapped(nn.Linear(8, 2))).attribute(x[:, 0], target=1)
    gi = ConservativeGI(Vmapped(model), "gi").attribute(x, target=1)  # needs no rule
    close(gi, ConservativeGI(model, "gi").attribute(x, target=1))


def test_writing_inside_of_vmap(x: Tensor) -> None:
    """As anywhere else: what is written into is put back where it belongs to the model."""
    memory = nn.BatchNorm1d(1).eval()

    def written(row: Tensor) -> Tensor:
        result = row * 2.0
        result.mul_(3.0)
        result[0] = result[1]
        memory.running_mean.add_(1.0)  # for all examples at once
        return result

    def forward(inputs: Tensor) -> Tensor:
        return torch.vmap(written)(inputs).flatten(1).sum(-1) + memory.running_mean

    wrapped = torch.nn.ModuleDict({"memory": memory})
    wrapped.forward = forward
    expected = torch.autograd.functional.jacobian(lambda i: forward(i).sum(), x) * x
    memory.running_mean.zero_()
    close(ConservativeGI(wrapped, "gi").attribute(x), expected)
    assert memory.running_mean == 0


def test_an_ensemble_by_vmap_is_reported(x: Tensor) -> None:
    members = [Block().eval() for _ in range(2)]
    stacked, buffers = torch.func.stack_module_state(members)

    def forward(inputs: Tensor) -> Tensor:
        def run(p: Any, b: Any) -> Tensor:
            return torch.func.functional_call(members[0], (p, b), (inputs,))

        return torch.vmap(run)(stacked, buffers).mean(0)

    with pytest.raises(UncoveredOperationError, match="No rule of"):
        ConservativeLRP(forward).attribute(x, target=1, strict=True)


# ---- weights that are computed ------------------------------------------------------------------
def parametrized(model: Block) -> Block:
    computed = copy.deepcopy(model)
    parametrizations.weight_norm(computed.qkv)
    parametrizations.weight_norm(computed.mlp[0])
    parametrizations.spectral_norm(computed.proj)
    parametrizations.orthogonal(computed.mlp[2])
    return computed.eval()


def plain_of(computed: Block) -> Block:
    names = [name for name, _ in Block().named_parameters()]
    weights = {}
    for name in names:
        owner, _, key = name.rpartition(".")
        weights[name] = getattr(computed.get_submodule(owner), key)
    return with_weights(weights)


@METHODS
def test_parametrizations(method: Any, model: Block, x: Tensor, untouched: Any) -> None:
    computed = parametrized(model)
    with untouched(computed):
        found = method(computed).attribute(x, target=1)
    close(found, method(plain_of(computed)).attribute(x, target=1))


def test_the_audit_of_a_parametrized_model(model: Block, x: Tensor) -> None:
    computed = parametrized(model)
    report = audit.explainability(computed, x, target=1, file=None, strict=True)
    plain = audit.explainability(plain_of(computed), x, target=1, file=None)
    assert report.is_covered and abs(report.conservation_error) < 1e-5
    assert sorted(report.absorbed.values()) == pytest.approx(sorted(plain.absorbed.values()), 1e-4)


@pytest.mark.parametrize("filled_by", ["the model", "the explanation"])
def test_cached_parametrizations(filled_by: str, model: Block, x: Tensor) -> None:
    """Weights in the cache are constants for us, and keep their graph for the user."""
    computed = parametrized(model)
    expected = ConservativeLRP(plain_of(computed)).attribute(x, target=1)
    with parametrize.cached():
        if filled_by == "the model":
            computed(x)
        kept = dict(parametrize._cache)
        close(ConservativeLRP(computed).attribute(x, target=1, strict=True), expected)
        assert parametrize._cache.keys() == kept.keys()
        assert all(parametrize._cache[key] is kept[key] for key in kept)
        computed(x).sum().backward()
    original = computed.qkv.parametrizations.weight.original1
    assert original.grad is not None and original.grad.any()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_of_old(model: Block, x: Tensor) -> None:
    """Its hook stores the weight in the module; ours must not stay there."""
    expected = ConservativeLRP(model).attribute(x, target=1)
    nn.utils.weight_norm(model.qkv)
    nn.utils.weight_norm(model.mlp[0])
    before = {name: vars(m).get("weight") for name, m in model.named_modules()}
    close(ConservativeLRP(model).attribute(x, target=1, strict=True), expected)
    assert {name: vars(m).get("weight") for name, m in model.named_modules()} == before
    model.qkv.weight.sum().backward()  # has its graph still
    assert model.qkv.weight_v.grad is not None


class LowRank(nn.Module):
    """An adapter as PEFT's LoRA writes it, around a frozen layer."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x)) * 0.5


@METHODS
def test_low_rank_adapters(method: Any, model: Block, x: Tensor, untouched: Any) -> None:
    """Two paths that are summed: by plain gradients the same as the merged weight."""
    model.mlp[0] = LowRank(model.mlp[0])
    model.head = LowRank(model.head)
    with untouched(model):
        found, delta = method(model).attribute(x, target=1, return_convergence_delta=True)
    close(found.sum((1, 2)) + delta, model(x)[:, 1].detach())
    if method is ConservativeGI:  # linear layers by plain gradient: merging changes nothing
        merged = Block().eval()
        weights = {k: v for k, v in model.state_dict().items() if "base" not in k and "up" not in k}
        for name, adapter in (("mlp.0", model.mlp[0]), ("head", model.head)):
            weights[f"{name}.weight"] = adapter.base.weight + 0.5 * adapter.up.weight @ (
                adapter.down.weight
            )
            weights[f"{name}.bias"] = adapter.base.bias
        merged.load_state_dict({k: v for k, v in weights.items() if ".down." not in k})
        close(found, method(merged).attribute(x, target=1))


# ---- modules that run more than once ------------------------------------------------------------
class Recursive(nn.Module):
    """Calls itself."""

    def __init__(self, step: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.step, self.head = step, head

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        x = x + self.step(x)
        return self(x, depth - 1) if depth else self.head(x.mean(1))


class Unrolled(nn.Module):
    """The same with a module for each call."""

    def __init__(self, step: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.steps = nn.ModuleList(copy.deepcopy(step) for _ in range(3))
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = x + step(x)
        return self.head(x.mean(1))


class Looped(nn.Module):
    """The same with one module that is called three times."""

    def __init__(self, step: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.step, self.alias, self.head = step, step, head

    def forward(self, x: Tensor) -> Tensor:
        for step in (self.step, self.alias, self.step):
            x = x + step(x)
        return self.head(x.mean(1))


@METHODS
@pytest.mark.parametrize("cls", [Recursive, Looped])
def test_shared_and_recursive_modules(method: Any, cls: Any, x: Tensor, untouched: Any) -> None:
    step = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU())
    head = nn.Linear(8, 3)
    expected = method(Unrolled(step, head)).attribute(x, target=1)
    shared = cls(step, head)
    with untouched(shared):
        close(method(shared).attribute(x, target=1), expected)
    report = audit.explainability(shared, x, target=1, file=None, strict=True)
    assert abs(report.conservation_error) < 1e-5


def test_a_layer_that_runs_three_times_counts_by_its_last_call(x: Tensor) -> None:
    step, head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)), nn.Linear(8, 3)
    unrolled = Unrolled(step, head)
    expected = LayerConservativeLRP(unrolled, unrolled.steps[2]).attribute(x, target=1)
    for shared in (Recursive(step, head), Looped(step, head)):
        close(LayerConservativeLRP(shared, shared.step).attribute(x, target=1), expected)


class Fallback(nn.Module):
    """Tries a module that fails after a part of it has run, then goes another way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(nn.Linear(8, 8), nn.Linear(5, 5)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        with contextlib.suppress(RuntimeError):
            self.first(x)
        return self.second(x).mean(1)


def test_rules_of_a_module_that_failed_are_not_in_force_afterwards(x: Tensor) -> None:
    """The model catches the exception; the rule of the failed module ends with it."""
    model = Fallback()
    composite = Composite({"first": rules.FlatRule()}, base="lrp")
    close(
        ConservativeLRP(model, composite).attribute(x, target=1),
        ConservativeLRP(model).attribute(x, target=1),
    )
    flat = Composite({"second": rules.FlatRule()}, base="lrp")
    assert not torch.allclose(
        ConservativeLRP(model, flat).attribute(x, target=1),
        ConservativeLRP(model).attribute(x, target=1),
    )
    assert abs(audit.explainability(model, x, target=1, file=None).conservation_error) < 1e-5


# ---- containers and contexts --------------------------------------------------------------------
@METHODS
def test_data_parallel(method: Any, model: Block, x: Tensor, untouched: Any) -> None:
    parallel = nn.DataParallel(model)
    if len(parallel.device_ids) < 2:  # no or one device: runs the module itself
        with untouched(parallel):
            close(method(parallel).attribute(x, target=1), method(model).attribute(x, target=1))
    parallel.device_ids = [0, 1]
    with untouched(parallel), pytest.raises(UnsupportedModelError, match=r"Explain model\.module"):
        method(parallel).attribute(x, target=1)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("part", ["model", "activation", "operator"])
def test_checkpointing_is_refused(part: str, reentrant: bool, model: Block, untouched: Any) -> None:
    """Recomputed without rules; an activation's would even fit in shape, and be wrong."""
    inner = {"model": model, "activation": nn.GELU(), "operator": lambda x: 1 + x}[part]

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner = nn.Linear(8, 8), inner

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, self.first(x), use_reentrant=reentrant)

    checkpointed, x = Checkpointed().eval(), torch.randn(2, 5, 8)
    for method in (ConservativeLRP(checkpointed), GenericAttention(checkpointed)):
        target = 1 if part == "model" else (0, 1)
        with untouched(checkpointed), pytest.raises(UnsupportedModelError, match="checkpoint"):
            method.attribute(x, target=target)
    checkpointed.first(x).sum().backward()  # not disabled beyond the pass
    checkpoint(nn.GELU(), checkpointed.first(x), use_reentrant=False).sum().backward()


@pytest.mark.parametrize("caller", ["aaa", "torch.utils.checkpoint", "zzz"])
def test_callers_that_are_checkpoints(caller: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obstacles, "_top_hooks", None)  # as in torch 2.5
    names = {"__name__": caller, "check": obstacles._is_checkpointed}
    exec("def call():\n    return check()", names)
    call: Any = names["call"]
    assert call() is (caller == "torch.utils.checkpoint")


CONTEXTS: dict[str, Any] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "anomaly": torch.autograd.detect_anomaly,
    "save_on_cpu": torch.autograd.graph.save_on_cpu,
    "meta device": lambda: torch.device("meta"),
    "autocast off": lambda: torch.autocast("cpu", enabled=False),
}


@METHODS
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("context", CONTEXTS)
def test_contexts_that_change_nothing(method: Any, context: str, model: Block, x: Tensor) -> None:
    expected = method(model).attribute(x, target=1)
    with CONTEXTS[context]():
        found = method(model).attribute(x, target=1)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@METHODS
def test_autocast(method: Any, dtype: torch.dtype, model: Block, x: Tensor, untouched: Any) -> None:
    expected = method(model).attribute(x, target=1)
    with torch.autocast("cpu", dtype=dtype):
        plain = model(x)
        with untouched(model):
            found, delta = method(model).attribute(x, target=1, return_convergence_delta=True)
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < 16 * torch.finfo(dtype).eps
    assert torch.equal((found.sum((1, 2)) + delta).to(dtype), plain[:, 1].detach())


def test_hooks_of_the_users_that_change_outputs(model: Block, x: Tensor, untouched: Any) -> None:
    """What a hook returns is part of the model."""
    doubled = copy.deepcopy(model)
    with torch.no_grad():
        doubled.proj.weight.mul_(2)
        doubled.proj.bias.mul_(2)
    expected = ConservativeLRP(doubled).attribute(x, target=1)
    model.proj.register_forward_hook(lambda module, args, output: output * 2)
    with untouched(model):
        close(ConservativeLRP(model).attribute(x, target=1, strict=True), expected)


def test_backward_hooks_of_the_users_see_the_modified_gradient(model: Block, x: Tensor) -> None:
    seen: list[Tensor] = []
    model.mlp.register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0]))
    ConservativeLRP(model).attribute(x, target=1)
    layer = LayerConservativeLRP(model, model.mlp, multiply_by_inputs=False)
    seen, expected = seen[:1], layer.attribute(x, target=1)
    close(seen[0], expected)


@METHODS
def test_backward_hooks_do_not_hide_what_the_model_computes(method: Any, x: Tensor) -> None:
    """Torch puts an identity into the graph at the borders of a module with backward hooks."""

    class Explicit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.soft, self.head = nn.Linear(8, 24), nn.Softmax(-1), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            return self.head(self.soft(q @ k.transpose(-2, -1)) @ v).mean(1)

    model = Explicit()
    expected = method(model).attribute(x, target=1, strict=True)
    for module in model.modules():
        module.register_full_backward_hook(lambda *_: None)
        module.register_full_backward_pre_hook(lambda *_: None)
    close(method(model).attribute(x, target=1, strict=True), expected)
