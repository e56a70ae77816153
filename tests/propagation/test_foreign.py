"""Engines other than plain PyTorch: explained where they can be seen, else refused with a hint."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import zoo
from blocks import BATCH, TOKENS, WIDTH, agrees, block, floats, spelled
from captum_lrp_tx import ConservativeGI, ConservativeLRP
from captum_lrp_tx.errors import (
    UncoveredOperationError,
    UncoveredOperationWarning,
    UnsupportedModelError,
)

METHODS = pytest.mark.parametrize("method", [ConservativeGI, ConservativeLRP])


def inputs() -> Tensor:
    return floats(BATCH, TOKENS, WIDTH)


# ---- operations of extensions -------------------------------------------------------------------
@pytest.fixture
def halving() -> Iterator[Callable[..., Tensor]]:
    """An operation that keeps its derivative to itself: its result has no gradient."""
    with torch.library._scoped_library("captum_lrp_tx_tests", "FRAGMENT") as library:
        library.define("halve(Tensor x, Tensor? y=None) -> Tensor")
        library.impl("halve", lambda x, y=None: x.detach().float() / 2, "CompositeImplicitAutograd")
        yield torch.ops.captum_lrp_tx_tests.halve


@METHODS
@pytest.mark.parametrize("name", ["scaled", "mul"])
def test_an_operator_that_takes_its_operand_by_keyword_only_gets_it_so(
    name: str, method: Any
) -> None:
    """Also if it is called like a product of torch."""
    linear, factors = nn.Linear(WIDTH, WIDTH), torch.linspace(1, 2, WIDTH)
    with torch.library._scoped_library("captum_lrp_tx_tests", "FRAGMENT") as library:
        library.define(f"{name}(Tensor x, *, Tensor other) -> Tensor")
        library.impl(name, lambda x, *, other: x * other, "CompositeImplicitAutograd")
        operator = getattr(torch.ops.captum_lrp_tx_tests, name)
        for called in (operator, operator.default):

            def foreign(x: Tensor, called: Any = called) -> Tensor:
                return called(linear(x), other=factors).flatten(1)

            got = method(foreign).attribute(inputs(), target=1)
            plain = method(lambda x: (linear(x) * factors).flatten(1))
            torch.testing.assert_close(got, plain.attribute(inputs(), target=1))


@METHODS
def test_an_operation_whose_result_has_lost_its_gradient_is_refused(
    halving: Callable[..., Tensor], method: Any
) -> None:
    class Halving(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + halving(x)

    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Halving(), nn.Flatten(1))
    with pytest.raises(UnsupportedModelError, match=r"'1' runs captum_lrp_tx_tests::halve, which"):
        method(model).attribute(inputs(), target=1)


@METHODS
def test_an_operation_on_constants_may_have_no_derivative(
    halving: Callable[..., Tensor], method: Any
) -> None:
    scale = torch.linspace(1, 2, WIDTH)
    got, want = (
        method(lambda x, s=s: (x * s()).tanh().sum((1, 2))).attribute(inputs(), strict=False)
        for s in (lambda: halving(scale), lambda: scale / 2)
    )
    torch.testing.assert_close(got, want)


# ---- compiled and scripted functions inside a model ---------------------------------------------
@pytest.mark.parametrize(
    "backend, method", [("eager", ConservativeGI), ("aot_eager", ConservativeLRP)]
)
def test_a_compiled_function_is_right_or_refused(backend: str, method: Any) -> None:
    """Modules that are compiled are refused before; functions inside a module show in the graph."""
    try:
        torch._dynamo.reset()
        compiled = torch.compile(spelled, backend=backend)
    except RuntimeError as error:
        pytest.skip(str(error))
    x = inputs()
    expected = method(block()).attribute(x, target=1, strict=True)
    try:
        got = method(block(compiled)).attribute(x, target=1, strict=True)
    except UncoveredOperationError as error:
        assert "without torch.compile" in str(error)
    else:
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@METHODS
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit.*")
@pytest.mark.parametrize("warm", [False, True])
def test_a_scripted_function_is_refused(warm: bool, method: Any) -> None:
    """After some runs TorchScript fuses the whole function into one node of the graph."""
    try:
        scripted = torch.jit.script(spelled)
    except RuntimeError as error:
        pytest.skip(str(error))
    model = block(scripted)
    for _ in range(3 if warm else 0):
        model(inputs().requires_grad_()).sum().backward()
    model.zero_grad()
    with pytest.raises(UncoveredOperationError, match=r"scripted function|matrix product"):
        method(model).attribute(inputs(), target=1, strict=True)


# ---- activation checkpointing -------------------------------------------------------------------
class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant, self.checkpointing, self.block = reentrant, True, block()
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU())
        zoo.randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointing:
            return self.block(x + checkpoint(self.mlp, x, use_reentrant=self.reentrant))
        return self.block(x + self.mlp(x))


@METHODS
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_says_which_switch_to_set(
    reentrant: bool, method: Any, untouched: Any
) -> None:
    model, x = Checkpointed(reentrant), inputs()
    error: Any = UncoveredOperationError if reentrant else UnsupportedModelError
    with untouched(model), pytest.raises(error, match="gradient_checkpointing_disable"):
        method(model).attribute(x, target=1, strict=True)
    model.checkpointing = False
    assert method(model).attribute(x, target=1, strict=True).abs().max() > 0


def test_checkpointing_of_parts_without_rules_is_refused_too() -> None:
    """Even where the numbers of saved tensors happen to agree, nothing is computed twice."""

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(torch.tanh, x, use_reentrant=False).sum(-1, keepdim=True)

    with pytest.raises(UnsupportedModelError, match="set_grad_checkpointing"):
        ConservativeLRP(Model()).attribute(torch.randn(2, 3), target=0)


def test_users_own_saved_tensor_hooks_stay() -> None:
    """Only checkpointing is refused: keeping saved tensors elsewhere is the user's business."""
    expected = ConservativeLRP(block()).attribute(inputs(), target=1, strict=True)
    with torch.autograd.graph.save_on_cpu():
        got = ConservativeLRP(block()).attribute(inputs(), target=1, strict=True)
    assert torch.equal(got, expected)


def test_gradient_checkpointing_of_hugging_face() -> None:
    """It is on in training mode only, so a model in eval mode is explained."""
    model, ids = llama("sdpa"), torch.randint(3, 40, (2, 6))
    expected = ConservativeLRP(model).attribute(ids, target=(5, 1), strict=True)
    model.gradient_checkpointing_enable()
    got = ConservativeLRP(model).attribute(ids, target=(5, 1), strict=True)
    assert torch.equal(got, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(
            (UncoveredOperationError, UnsupportedModelError), match="gradient_checkpointing_disable"
        ):
            ConservativeLRP(model.train()).attribute(ids, target=(5, 1), strict=True)


# ---- attention kernels --------------------------------------------------------------------------
class FlashLike(torch.autograd.Function):
    """An attention kernel with a backward pass of its own, as flash-attn has."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        return spelled(query, key, value)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            output = spelled(*leaves)
        return torch.autograd.grad(output, leaves, grads[0])


def exponential(name: str) -> Any:
    """A model whose own autograd function, of this name, is an exponential."""

    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    def backward(ctx: Any, *grad: Any) -> Any:
        return grad[0] * ctx.saved_tensors[0].exp()

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(name, (torch.autograd.Function,), methods)
    first, last = nn.Linear(WIDTH, 4), nn.Linear(4, 2)
    return lambda x: last(function.apply(first(x))).sum(1)


@pytest.mark.parametrize("name", ["Add", "Abs", "Linear", "Roll", "Sum"])
def test_a_function_of_the_model_is_not_what_torch_calls_by_its_name(name: str) -> None:
    with pytest.raises(UncoveredOperationError, match=f"{name} in .*custom autograd function"):
        ConservativeLRP(exponential(name)).attribute(inputs(), target=1, strict=True)


def library_operation() -> Callable[..., Tensor]:
    """The same as an operation of a C++ extension would be registered."""
    name = "captum_lrp_tx_tests::attention"

    def backward(ctx: Any, grad: Tensor) -> Any:
        return FlashLike.backward(ctx, grad)

    def keep(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    if not hasattr(torch.ops.captum_lrp_tx_tests, "attention"):
        operation = torch.library.custom_op(
            name,
            lambda query, key, value: spelled(query, key, value).clone(),
            mutates_args=(),
            schema="(Tensor query, Tensor key, Tensor value) -> Tensor",
        )
        operation.register_autograd(backward, setup_context=keep)
    kernel: Callable[..., Tensor] = torch.ops.captum_lrp_tx_tests.attention
    return kernel


@METHODS
@pytest.mark.parametrize("kernel", ["function", "operation"])
def test_foreign_kernels_are_refused_with_the_switch(kernel: str, method: Any) -> None:
    attention = FlashLike.apply if kernel == "function" else library_operation()
    model, x = block(attention), inputs()
    torch.testing.assert_close(model(x), block()(x))
    with pytest.raises(UncoveredOperationError, match="attn_implementation='sdpa'"):
        method(model).attribute(x, target=1, strict=True)
    with pytest.warns(UncoveredOperationWarning, match="attn_implementation='sdpa'"):
        method(model).attribute(x, target=1)


def llama(implementation: str) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=41, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=32, max_position_embeddings=32,
        attn_implementation=implementation,
    )  # fmt: skip
    return zoo.randomise(transformers.LlamaForCausalLM(config).eval())


@pytest.fixture
def registered() -> Iterator[Callable[[str, Callable[..., Any]], None]]:
    """Puts attention functions into transformers' registry, and takes them out again."""
    utils = pytest.importorskip("transformers.modeling_utils")
    registry = getattr(utils, "ALL_ATTENTION_FUNCTIONS", None)
    if registry is None or not hasattr(registry, "register"):
        pytest.skip("this transformers has no registry of attention functions")
    names: list[str] = []

    def register(name: str, function: Callable[..., Any]) -> None:
        registry.register(name, function)
        names.append(name)

    yield register
    for name in names:
        del type(registry)._global_mapping[name]


def grouped(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, inner: Any, **_: Any
) -> tuple[Tensor, None]:
    """What the registry hands to an attention function, for a causal kernel without masks."""
    repeat = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(repeat, 1) for t in (key, value))
    return inner(query, key, value).transpose(1, 2), None


@METHODS
def test_flash_attention_through_the_registry(registered: Any, method: Any) -> None:
    """A kernel that nothing sees into is refused; the same model with SDPA is explained."""

    def flash(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **_: Any) -> Any:
        return grouped(module, q, k, v, mask, FlashLike.apply)

    registered("opaque_kernel", flash)
    model, ids = llama("opaque_kernel"), torch.randint(3, 40, (2, 6))
    with pytest.raises(UncoveredOperationError, match="attn_implementation='sdpa'"):
        method(model).attribute(ids, target=(5, 1), strict=True)
    assert method(llama("sdpa")).attribute(ids, target=(5, 1), strict=True).shape == ids.shape


@METHODS
def test_a_visible_function_in_the_registry_is_explained(registered: Any, method: Any) -> None:
    def plain(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **_: Any) -> Any:
        def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            scores = query @ key.mT * module.scaling
            hidden = torch.ones(scores.shape[-2:]).triu(1).bool()
            return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value

        return grouped(module, q, k, v, mask, causal)

    registered("plain_python", plain)
    ids = torch.randint(3, 40, (2, 6))
    got = method(llama("plain_python")).attribute(ids, target=(5, 1), strict=True)
    expected = method(llama("eager")).attribute(ids, target=(5, 1), strict=True)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@METHODS
def test_flex_attention_is_refused_with_the_switch(method: Any) -> None:
    flex = pytest.importorskip("torch.nn.attention.flex_attention").flex_attention
    model = block(lambda q, k, v: flex(q, k, v, scale=0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(
            (UnsupportedModelError, UncoveredOperationError), match="attn_implementation='sdpa'"
        ):
            method(model).attribute(inputs(), target=1, strict=True)


def test_models_that_overwrite_what_their_gradient_needs() -> None:
    class Overwrites(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.exp()
            return (y * y.mul_(2)).sum(-1, keepdim=True)

    with pytest.raises(UnsupportedModelError, match="use_cache=False"):
        ConservativeGI(Overwrites(), rules="gi").attribute(torch.randn(2, 3), target=0)


def test_stock_attention_kernels_agree() -> None:
    agrees(block(lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(
        q, k, v, scale=0.5)), inputs())  # fmt: skip
