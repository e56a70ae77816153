"""The attribution classes keep every convention of Captum's own classes."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import captum.attr as captum_attr
import pytest
import torch
from captum.attr import NoiseTunnel
from captum.attr._utils import lrp_rules as captum_rules
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor, nn

import zoo
from captum_lrp_tx import (
    AttentionFlow,
    AttentionLast,
    AttentionRollout,
    ConservativeGI,
    ConservativeLRP,
    GenericAttention,
    LayerConservativeGI,
    LayerConservativeLRP,
    RandomAttribution,
    TokenGradientShap,
    TokenIntegratedGradients,
    TokenSaliency,
    TransformerAttribution,
)
from captum_lrp_tx.errors import InputError, TargetError
from captum_lrp_tx.rules import GammaRule
from closeness import close

INPUT_CLASSES = [ConservativeGI, ConservativeLRP]
LAYER_CLASSES = [LayerConservativeGI, LayerConservativeLRP]

pytestmark = [
    pytest.mark.core,
    pytest.mark.captum,
    pytest.mark.filterwarnings("ignore::captum_lrp_tx.errors.NoRuleAppliedWarning"),
]


class Mixer(nn.Module):
    """Two inputs, plain arguments after them, one score per class."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.left = nn.Linear(3, 6)
        self.right = nn.Linear(5, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, classes)

    def forward(
        self, x: Tensor, y: Tensor, shift: Tensor | None = None, factor: float = 1.0
    ) -> Tensor:
        hidden = self.left(x) + self.right(y)
        if shift is not None:
            hidden = hidden + shift
        return self.head(self.norm(hidden).relu()) * factor


class Grid(nn.Module):
    """Scores of shape (batch, 2, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).tanh().reshape(-1, 2, 3)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


class Net(nn.Module):
    """Convolution, batch norm, both poolings, a linear head."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU, norm: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4) if norm else None
        self.act1 = activation()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(4, 5, 3, stride=2, padding=1)
        self.act2 = activation()
        self.pool2 = nn.AvgPool2d(2)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x) if self.norm is None else self.norm(self.conv1(x))
        x = self.pool1(self.act1(x))
        return self.head(self.pool2(self.act2(self.conv2(x))).flatten(1))


def cnn(activation: type[nn.Module] = nn.ReLU, norm: bool = True) -> Net:
    net = Net(activation, norm)
    if isinstance(net.norm, nn.BatchNorm2d):
        with torch.no_grad():
            net.norm.running_mean.normal_()
            net.norm.running_var.uniform_(0.5, 2.0)
            net.norm.weight.normal_()
            net.norm.bias.normal_()
    return net.eval()


# ---- targets ------------------------------------------------------------------------------------
@pytest.mark.parametrize("cls", INPUT_CLASSES)
@pytest.mark.parametrize(
    "target",
    [2, torch.tensor(2), torch.tensor([2]), [2, 2, 2], torch.tensor([2, 2, 2]), (2,)],
    ids=["int", "0-d", "1-element", "list", "1-d", "tuple"],
)
def test_target_kinds_for_all_examples(cls: Any, target: Any) -> None:
    model, x = mlp(), torch.randn(3, 4)
    close(cls(model).attribute(x, target=target), cls(model).attribute(x, target=2))


@pytest.mark.parametrize("cls", INPUT_CLASSES)
@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_one_target_per_example(cls: Any, kind: Any) -> None:
    model, x = mlp(), torch.randn(3, 4)
    relevance = cls(model).attribute(x, target=kind([2, 0, 1]))
    for i, target in enumerate([2, 0, 1]):
        close(relevance[i : i + 1], cls(model).attribute(x[i : i + 1], target=target))


@pytest.mark.parametrize("cls", INPUT_CLASSES)
def test_tuple_targets(cls: Any) -> None:
    model, x = Grid(), torch.randn(3, 4)
    cells = [(0, 1), (1, 2), (0, 0)]
    relevance = cls(model).attribute(x, target=cells)
    for i, cell in enumerate(cells):
        close(relevance[i : i + 1], cls(model).attribute(x[i : i + 1], target=cell))
        wrapped = lambda v, c=cell: model(v)[:, c[0], c[1]]  # noqa: E731
        close(relevance[i : i + 1], cls(wrapped).attribute(x[i : i + 1]))


@pytest.mark.parametrize("cls", INPUT_CLASSES)
def test_no_target_for_one_value_per_example(cls: Any) -> None:
    x = torch.randn(3, 4)
    for model in (nn.Linear(4, 1), nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))):
        relevance, delta = cls(model).attribute(x, return_convergence_delta=True)
        assert relevance.shape == x.shape
        assert delta.shape == (3,)


# ---- inputs and outputs -------------------------------------------------------------------------
@pytest.mark.parametrize("cls", INPUT_CLASSES)
def test_tensor_in_tensor_out_tuple_in_tuple_out(cls: Any) -> None:
    model, x = mlp(), torch.randn(3, 4)
    single = cls(model).attribute(x, target=1)
    several = cls(model).attribute((x,), target=1)
    assert isinstance(single, Tensor)
    assert isinstance(several, tuple) and len(several) == 1
    close(several[0], single)
    assert not single.requires_grad
    assert not x.requires_grad and x.grad is None
    two = cls(Mixer()).attribute((torch.randn(2, 3), torch.randn(2, 5)), target=1)
    assert isinstance(two, tuple)
    assert [tuple(r.shape) for r in two] == [(2, 3), (2, 5)]


@pytest.mark.parametrize("cls", INPUT_CLASSES)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_inputs_keep_their_flags(cls: Any, requires_grad: bool) -> None:
    x = torch.randn(3, 4, requires_grad=requires_grad)
    before = x.detach().clone()
    relevance = cls(mlp()).attribute(x, target=0)
    assert x.requires_grad is requires_grad
    assert x.grad is None
    assert torch.equal(x, before)
    assert not relevance.requires_grad


@pytest.mark.parametrize("cls", INPUT_CLASSES)
def test_additional_forward_args(cls: Any) -> None:
    model = Mixer().eval()
    x, y, shift = torch.randn(2, 3), torch.randn(2, 5), torch.randn(2, 6)
    cases: list[tuple[Any, Callable[..., Tensor]]] = [
        (shift, lambda a, b: model(a, b, shift)),
        ((shift, 2.5), lambda a, b: model(a, b, shift, 2.5)),
        ((None, -1.0), lambda a, b: model(a, b, None, -1.0)),
        (None, lambda a, b: model(a, b)),
    ]
    for additional, spelled in cases:
        got = cls(model).attribute((x, y), target=1, additional_forward_args=additional)
        want = cls(spelled).attribute((x, y), target=1)
        close(got, want)


@pytest.mark.parametrize("cls", INPUT_CLASSES)
def test_positional_arguments_are_in_captums_order(cls: Any) -> None:
    model = Mixer()
    x, y, shift = torch.randn(2, 3), torch.randn(2, 5), torch.randn(2, 6)
    relevance, delta = cls(model).attribute((x, y), 1, (shift,), True)
    named, named_delta = cls(model).attribute(
        inputs=(x, y), target=1, additional_forward_args=(shift,), return_convergence_delta=True
    )
    close(relevance, named)
    close(delta, named_delta)


@pytest.mark.parametrize("cls", INPUT_CLASSES)
@pytest.mark.parametrize("as_tuple", [False, True])
def test_convergence_delta(cls: Any, as_tuple: bool) -> None:
    model, x = mlp(), torch.randn(3, 4)
    method = cls(model)
    inputs = (x,) if as_tuple else x
    relevance, delta = method.attribute(inputs, target=1, return_convergence_delta=True)
    first = relevance[0] if as_tuple else relevance
    assert delta.shape == (3,)
    assert not delta.requires_grad
    close(delta, model(x)[:, 1].detach() - first.sum(1))
    assert method.has_convergence_delta() is True
    close(method.compute_convergence_delta(relevance, model(x)[:, 1].detach()), delta)
    assert method.multiplies_by_inputs is True


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_of_the_input_is_kept(dtype: torch.dtype) -> None:
    x = torch.randn(2, 4, dtype=dtype)
    relevance, delta = ConservativeLRP(mlp().to(dtype)).attribute(
        x, target=0, return_convergence_delta=True
    )
    assert relevance.dtype == dtype
    assert delta.shape == (2,)


# ---- names, futures, decoration, copies ---------------------------------------------------------
def test_names_are_readable_and_different() -> None:
    names = [cls.get_name() for cls in (*INPUT_CLASSES, *LAYER_CLASSES)]
    assert len(set(names)) == 4
    assert all("L R P" not in name and "G I" not in name for name in names)


@pytest.mark.parametrize("cls", INPUT_CLASSES)
def test_attribute_future_is_not_implemented(cls: Any) -> None:
    with pytest.raises(NotImplementedError, match="attribute_future"):
        cls(mlp()).attribute_future()


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_layer_attribute_future_is_not_implemented(cls: Any) -> None:
    model = mlp()
    with pytest.raises(NotImplementedError, match="attribute_future"):
        cls(model, model[0]).attribute_future()


def test_attribute_is_decorated_as_captums() -> None:
    for cls in (*INPUT_CLASSES, *LAYER_CLASSES):
        assert callable(cls.attribute.__wrapped__)
    model, x = mlp(), torch.randn(2, 4)
    method = ConservativeLRP(model)
    close(method.attribute.__wrapped__(method, x, target=1), method.attribute(x, target=1))


def test_subclasses_of_captums_bases() -> None:
    assert all(issubclass(cls, captum_attr.GradientAttribution) for cls in INPUT_CLASSES)
    assert all(issubclass(cls, captum_attr.LayerAttribution) for cls in LAYER_CLASSES)
    assert all(issubclass(cls, captum_attr.LayerGradientXActivation) for cls in LAYER_CLASSES)


@pytest.mark.parametrize("cls", INPUT_CLASSES)
def test_forward_functions(cls: Any) -> None:
    model, x = mlp(), torch.randn(2, 4)
    expected = cls(model).attribute(x, target=1)

    def nested(v: Tensor) -> Tensor:
        return model(v)

    class Holder:
        def __init__(self) -> None:
            self.net = model

        def __call__(self, v: Tensor) -> Tensor:
            return self.net(v)

        def score(self, v: Tensor) -> Tensor:
            return self.net(v)

    def run(net: nn.Module, v: Tensor) -> Tensor:
        return net(v)

    forwards = (
        model.forward, lambda v: model(v), nested, Holder(), Holder().score,
        functools.partial(run, model), functools.partial(model),
    )  # fmt: skip
    for forward in forwards:
        assert torch.equal(cls(forward).attribute(x, target=1), expected)
    score = functools.partial(run, model)
    close(cls(lambda v: score(v)[:, 1]).attribute(x), expected)


def test_module_rules_are_found_through_forward_functions() -> None:
    model, x = mlp(), torch.randn(2, 4)
    plain = ConservativeLRP(model).attribute(x, target=1)
    model[2].rule = captum_rules.GammaRule(1.0)
    expected = ConservativeLRP(model).attribute(x, target=1)
    assert not torch.allclose(plain, expected)
    for forward in (model.forward, lambda v: model(v), functools.partial(model)):
        assert torch.equal(ConservativeLRP(forward).attribute(x, target=1), expected)


def test_copy_and_pickle_of_attribution_objects() -> None:
    model, x = mlp(), torch.randn(2, 4)
    for method in (ConservativeGI(model), ConservativeLRP(model, bias="distribute", epsilon=0.1)):
        expected = method.attribute(x, target=1)
        for twin in (copy.copy(method), copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
            assert torch.equal(twin.attribute(x, target=1), expected)
            assert repr(twin.composite) == repr(method.composite)
    layered = LayerConservativeLRP(model, model[1])
    expected = layered.attribute(x, target=1)
    for twin in (
        copy.copy(layered), copy.deepcopy(layered), pickle.loads(pickle.dumps(layered)),
    ):  # fmt: skip
        assert torch.equal(twin.attribute(x, target=1), expected)


def test_forward_function_swapped_on_a_copy() -> None:
    model, other, x = mlp(), mlp(), torch.randn(2, 4)
    twin = copy.copy(ConservativeLRP(model))
    twin.forward_func = other
    assert torch.equal(twin.attribute(x, target=1), ConservativeLRP(other).attribute(x, target=1))


# ---- layers -------------------------------------------------------------------------------------
@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_layer_output_and_input(cls: Any) -> None:
    model, x = mlp(), torch.randn(3, 4)
    hidden = model[1](model[0](x)).detach()
    out, delta = cls(model, model[1]).attribute(x, target=1, return_convergence_delta=True)
    assert isinstance(out, Tensor)
    assert out.shape == hidden.shape
    assert delta.shape == (3,)
    close(delta, model(x)[:, 1].detach() - out.sum(1))
    tail = {LayerConservativeGI: ConservativeGI, LayerConservativeLRP: ConservativeLRP}[cls]
    close(out, tail(model[2:]).attribute(hidden, target=1))
    at_input = cls(model, model[2]).attribute(x, target=1, attribute_to_layer_input=True)
    close(at_input, out)


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_list_of_layers_gives_a_list(cls: Any) -> None:
    model, x = mlp(), torch.randn(3, 4)
    layers = [model[0], model[3]]
    relevances, deltas = cls(model, layers).attribute(x, target=1, return_convergence_delta=True)
    assert isinstance(relevances, list) and isinstance(deltas, list)
    for layer, relevance, delta in zip(layers, relevances, deltas, strict=True):
        alone, alone_delta = cls(model, layer).attribute(x, target=1, return_convergence_delta=True)
        close(relevance, alone)
        close(delta, alone_delta)
    assert isinstance(cls(model, [model[0]]).attribute(x, target=1), list)


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_multiply_by_inputs(cls: Any) -> None:
    model, x = mlp(), torch.randn(3, 4)
    relevance = cls(model, model[1]).attribute(x, target=1)
    gradient_method = cls(model, model[1], multiply_by_inputs=False)
    assert gradient_method.multiplies_by_inputs is False
    assert cls(model, model[1]).multiplies_by_inputs is True
    close(gradient_method.attribute(x, target=1) * model[1](model[0](x)).detach(), relevance)


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_layer_with_several_tensors_gives_a_tuple(cls: Any) -> None:
    class Twin(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return a * 2.0, b.relu()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twin = Twin()
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat(self.twin(x, x + 1.0), -1))

    model, x = Net(), torch.randn(2, 4)
    for at_input in (False, True):
        relevance = cls(model, model.twin).attribute(x, target=0, attribute_to_layer_input=at_input)
        assert isinstance(relevance, tuple)
        assert [tuple(r.shape) for r in relevance] == [(2, 4), (2, 4)]
    assert isinstance(cls(model, model.head).attribute((x,), target=0), Tensor)


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_layer_accepts_grad_kwargs_that_change_nothing(cls: Any) -> None:
    model, x = mlp(), torch.randn(2, 4)
    method = cls(model, model[1])
    expected = method.attribute(x, target=0)
    got = method.attribute(x, target=0, grad_kwargs={"materialize_grads": True})
    assert torch.equal(got, expected)
    with pytest.raises(InputError, match="create_graph"):
        method.attribute(x, target=0, grad_kwargs={"create_graph": True})


# ---- grad modes ---------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", ["hf-GPT2ForSequenceClassification-sdpa", "timm-like", "mlp"])
def test_grad_modes_do_not_matter(mode: Any, name: str) -> None:
    if name == "mlp":
        model, inputs, target = mlp(), torch.randn(2, 4), 1
    elif name == "timm-like":
        model, inputs, target = cnn(), torch.randn(2, 2, 8, 8), 1
    else:
        case = zoo.case(name)
        model, inputs, target = case.model, case.inputs[0], case.target
    for cls in INPUT_CLASSES:
        expected = cls(model).attribute(inputs, target=target)
        with mode():
            got = cls(model).attribute(inputs, target=target)
            assert torch.is_grad_enabled() == (mode is torch.enable_grad)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("cls", INPUT_CLASSES)
def test_inputs_made_in_inference_mode(cls: Any) -> None:
    model = mlp()
    with torch.inference_mode():
        x = torch.randn(2, 4)
        inside = cls(model).attribute(x, target=1)
    outside = cls(model).attribute(x, target=1)
    close(inside, outside)
    layered = LayerConservativeGI(model, model[1]).attribute(x, target=1)
    assert layered.shape == (2, 6)


def test_model_made_in_inference_mode() -> None:
    x = torch.randn(2, 4)
    with torch.inference_mode():
        model = mlp()
        relevance = ConservativeLRP(model).attribute(x, target=1)
    assert relevance.shape == x.shape


# ---- Captum's tools -----------------------------------------------------------------------------
@pytest.mark.parametrize("cls", INPUT_CLASSES)
@pytest.mark.parametrize("nt_type", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise_tunnel(cls: Any, nt_type: str) -> None:
    model = Mixer()
    inputs = (torch.randn(2, 3), torch.randn(2, 5))
    tunnel = NoiseTunnel(cls(model))
    relevance, delta = tunnel.attribute(
        inputs, nt_type=nt_type, nt_samples=4, stdevs=0.1, target=[0, 2],
        additional_forward_args=(torch.randn(2, 6), 2.0), return_convergence_delta=True,
    )  # fmt: skip
    assert [r.shape for r in relevance] == [i.shape for i in inputs]
    assert all(torch.isfinite(r).all() for r in relevance)
    assert delta.numel() == 8
    if nt_type == "smoothgrad":
        exact = tunnel.attribute(inputs, nt_type=nt_type, nt_samples=3, stdevs=0.0, target=1)
        close(exact, cls(model).attribute(inputs, target=1))
    with torch.no_grad():
        assert isinstance(
            NoiseTunnel(cls(mlp())).attribute(torch.randn(2, 4), nt_samples=2, target=0), Tensor
        )


@pytest.mark.parametrize("cls", INPUT_CLASSES)
def test_infidelity_and_sensitivity(cls: Any) -> None:
    model = Mixer()
    inputs = (torch.randn(2, 3), torch.randn(2, 5))
    method = cls(model)

    def perturb(xs: tuple[Tensor, ...]) -> tuple[Any, Any]:
        noise = tuple(0.01 * torch.randn_like(x) for x in xs)
        return noise, tuple(x - n for x, n in zip(xs, noise, strict=True))

    relevance = method.attribute(inputs, target=1)
    score = infidelity(model, perturb, inputs, relevance, target=1, n_perturb_samples=3)
    assert score.shape == (2,)
    assert torch.isfinite(score).all()
    score = sensitivity_max(method.attribute, inputs, target=1, n_perturb_samples=3)
    assert score.shape == (2,)
    assert torch.isfinite(score).all()
    single = sensitivity_max(cls(mlp()).attribute, torch.randn(2, 4), target=torch.tensor([0, 2]))
    assert single.shape == (2,)


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_sensitivity_of_layer_classes(cls: Any) -> None:
    model = mlp()
    method = cls(model, model[1])
    score = sensitivity_max(
        lambda x: (method.attribute(x, target=1),), torch.randn(2, 4), n_perturb_samples=2
    )
    assert score.shape == (2,)


class Letters:
    """A tokenizer of single letters, with what Captum asks of one (0.8 and 0.9)."""

    start = 0

    def encode(
        self, text: str, return_tensors: str | None = None, add_special_tokens: bool = True
    ) -> Any:
        ids = [1 + ord(w[0]) - ord("a") for w in text.split()]
        ids = [self.start, *ids] if add_special_tokens else ids
        return torch.tensor([ids]) if return_tensors else ids

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        if isinstance(ids, (list, Tensor)):
            return [self.convert_ids_to_tokens(int(i)) for i in ids]
        return "<s>" if ids == self.start else chr(ord("a") + ids - 1)

    def decode(self, ids: Any) -> str:
        return " ".join(self.convert_ids_to_tokens([int(i) for i in ids]))

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> dict[str, Any]:
        offsets, place = [(0, 0)] if add_special_tokens else [], 0
        for word in text.split():
            offsets.append((place, place + len(word)))
            place += len(word) + 1
        return {
            "input_ids": self.encode(text, add_special_tokens=add_special_tokens),
            "offset_mapping": offsets,
        }


@pytest.mark.filterwarnings("ignore::captum_lrp_tx.errors.UncoveredOperationWarning")
@pytest.mark.parametrize("cls", LAYER_CLASSES)
@pytest.mark.parametrize("name", ["hf-LlamaForCausalLM-sdpa", "hf-GPT2LMHeadModel-eager"])
def test_llm_gradient_attribution(cls: Any, name: str) -> None:
    from captum.attr import LLMGradientAttribution, TextTokenInput

    model = zoo.case(name).model
    embedding = model.get_input_embeddings()
    tokenizer = Letters()
    method = cls(model, embedding)
    explained = LLMGradientAttribution(method, tokenizer)
    result = explained.attribute(
        TextTokenInput("a b c d", tokenizer), target=torch.tensor([5, 9, 3])
    )
    assert result.token_attr.shape == (3, 5)
    assert result.seq_attr.shape == (5,)
    assert torch.isfinite(result.token_attr).all()
    assert method.forward_func is model

    ids = tokenizer.encode("a b c d", return_tensors="pt")
    by_hand = cls(lambda i: model(i).logits[:, -1].log_softmax(-1)[:, 5], embedding).attribute(ids)
    close(result.token_attr[0], by_hand.sum(-1)[0])
    skipped = explained.attribute(
        TextTokenInput("a b c d", tokenizer, skip_tokens=[0]), target=torch.tensor([5])
    )
    close(skipped.token_attr[0], result.token_attr[0, 1:])


# ---- agreement with Captum's methods ------------------------------------------------------------
@pytest.mark.parametrize(
    ("build", "shapes", "target"),
    [
        (mlp, [(3, 4)], 1),
        (cnn, [(3, 2, 8, 8)], [1, 2, 0]),
        (functools.partial(cnn, nn.GELU), [(3, 2, 8, 8)], 2),
        (Grid, [(3, 4)], (1, 2)),
        (Mixer, [(3, 3), (3, 5)], torch.tensor([0, 3, 1])),
    ],
    ids=["mlp", "cnn", "cnn-gelu", "grid", "two-inputs"],
)
def test_gi_equals_captums_input_x_gradient(build: Any, shapes: Any, target: Any) -> None:
    model = build().eval()
    inputs = tuple(torch.randn(shape) for shape in shapes)
    ours = ConservativeGI(model, rules="gi").attribute(inputs, target=target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = captum_attr.InputXGradient(model).attribute(inputs, target=target)
    close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "name", ["hf-GPT2ForSequenceClassification-eager", "hf-LlamaForCausalLM-sdpa"]
)
def test_gi_equals_captums_layer_gradient_x_activation(name: str) -> None:
    case = zoo.case(name)
    layers = [case.model.get_input_embeddings()]
    layers += [*(m for n, m in case.model.named_modules() if n.endswith((".0", "norm")))]
    # older blocks return their cache too, which Captum takes for a tensor
    forward = lambda ids: case.model(ids, use_cache=False).logits  # noqa: E731
    ours = LayerConservativeGI(forward, layers, rules="gi").attribute(
        case.inputs[0], target=case.target
    )
    theirs = captum_attr.LayerGradientXActivation(forward, layers).attribute(
        case.inputs[0], target=case.target
    )
    for mine, other in zip(ours, theirs, strict=True):
        close(mine, other, rtol=1e-5, atol=1e-6)


def captum_lrp(model: nn.Module, rules: dict[str, Any], x: Tensor, target: int) -> Any:
    twin = copy.deepcopy(model)  # Captum deletes the rules after its run
    for name, rule in rules.items():
        twin.get_submodule(name).rule = rule
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return captum_attr.LRP(twin).attribute(x, target=target, return_convergence_delta=True)


RULES: dict[str, Callable[[], Any]] = {
    "epsilon": captum_rules.EpsilonRule,
    "epsilon-large": lambda: captum_rules.EpsilonRule(0.5),
    "gamma": captum_rules.GammaRule,
    "gamma-1": lambda: captum_rules.GammaRule(1.0),
    "gamma-no-bias": lambda: captum_rules.GammaRule(0.5, set_bias_to_zero=True),
    "alpha1-beta0": captum_rules.Alpha1_Beta0_Rule,
    "alpha1-beta0-no-bias": lambda: captum_rules.Alpha1_Beta0_Rule(set_bias_to_zero=True),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["mlp", "cnn", "cnn-tanh"])
def test_lrp_equals_captums_lrp(rule: str, kind: str) -> None:
    model = {
        "mlp": mlp, "cnn": functools.partial(cnn, norm=False),
        "cnn-tanh": functools.partial(cnn, nn.Tanh, norm=False),
    }[kind]().double()  # fmt: skip
    x = torch.randn(2, 4) if kind == "mlp" else torch.randn(2, 2, 8, 8)
    x = x.double().abs()
    names = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    expected, delta = captum_lrp(model, {n: RULES[rule]() for n in names}, x, 1)
    assigned = {}
    for name in names:
        assigned[name] = model.get_submodule(name).rule = RULES[rule]()
    for _ in range(2):  # rules survive a call
        got, got_delta = ConservativeLRP(model).attribute(
            x, target=1, return_convergence_delta=True
        )
        close(got, expected.detach(), rtol=1e-5, atol=1e-8)
        # a difference of sums much larger than itself
        close(got_delta, delta.detach(), rtol=1e-4, atol=1e-5)
        assert all(model.get_submodule(n).rule is r for n, r in assigned.items())


def test_lrp_equals_captums_with_batch_norm() -> None:
    model, x = cnn().double(), torch.randn(2, 2, 8, 8).double()
    expected, _ = captum_lrp(model, {}, x, 2)
    close(ConservativeLRP(model).attribute(x, target=2), expected.detach(), rtol=1e-5, atol=1e-8)


def test_lrp_equals_captums_with_different_rules_in_each_layer() -> None:
    model, x = cnn(norm=False).double(), torch.randn(2, 2, 8, 8).double()
    rules = {
        "conv1": captum_rules.Alpha1_Beta0_Rule(), "conv2": captum_rules.GammaRule(0.3),
        "head": captum_rules.EpsilonRule(0.2),
    }  # fmt: skip
    expected, _ = captum_lrp(model, copy.deepcopy(rules), x, 0)
    for name, rule in rules.items():
        model.get_submodule(name).rule = rule
    close(ConservativeLRP(model).attribute(x, target=0), expected.detach(), rtol=1e-5, atol=1e-8)


def test_lrp_equals_captums_identity_rule() -> None:
    # no activation before the identity layer: Captum's rule does not reach through one
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    model, x = model.double(), torch.randn(3, 4).double()
    rules = {"1": captum_rules.IdentityRule(), "3": captum_rules.EpsilonRule()}
    expected, _ = captum_lrp(model, copy.deepcopy(rules), x, 1)
    for name, rule in rules.items():
        model.get_submodule(name).rule = rule
    close(ConservativeLRP(model).attribute(x, target=1), expected.detach(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("rule", ["epsilon", "gamma-1", "alpha1-beta0"])
def test_layer_lrp_equals_captums_layer_lrp(rule: str) -> None:
    model, x = mlp().double(), torch.rand(2, 4).double()
    for name in ("0", "2", "4"):
        model.get_submodule(name).rule = RULES[rule]()
    twin = copy.deepcopy(model)
    got = LayerConservativeLRP(model, model[2]).attribute(
        x, target=1, attribute_to_layer_input=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = captum_attr.LayerLRP(twin, twin[2]).attribute(
            x, target=1, attribute_to_layer_input=True
        )
    want = want[0] if isinstance(want, tuple) else want
    close(got, want.detach(), rtol=1e-5, atol=1e-8)


def test_this_packages_rules_work_as_module_rules_too() -> None:
    model, x = mlp(), torch.randn(2, 4)
    model[0].rule = GammaRule(gamma=0.5)
    ours = ConservativeLRP(model).attribute(x, target=1)
    model[0].rule = captum_rules.GammaRule(0.5)
    close(ours, ConservativeLRP(model).attribute(x, target=1))
    del model[0].rule
    assert not torch.allclose(ours, ConservativeLRP(model).attribute(x, target=1))


def test_gradient_x_input_ignores_module_rules() -> None:
    model, x = mlp(), torch.randn(2, 4)
    expected = ConservativeGI(model).attribute(x, target=1)
    model[0].rule = captum_rules.GammaRule(0.5)
    assert torch.equal(ConservativeGI(model).attribute(x, target=1), expected)


def test_target_errors_are_assertion_errors_as_in_captum() -> None:
    with pytest.raises(AssertionError) as caught:
        ConservativeLRP(mlp()).attribute(torch.randn(2, 4))
    assert isinstance(caught.value, TargetError)


# ---- all public attribution classes -------------------------------------------------------------
def flow(model: Any) -> Any:
    pytest.importorskip("scipy")
    return AttentionFlow(model)


#: From a model to the attribution, for every class that takes inputs.
ALL: dict[str, Callable[[Any], Any]] = {
    "ConservativeGI": lambda m: ConservativeGI(m),
    "ConservativeLRP": lambda m: ConservativeLRP(m, bias="distribute", epsilon=0.01),
    "RandomAttribution": lambda m: RandomAttribution(m, seed=3),
    "AttentionLast": lambda m: AttentionLast(m, query="mean", layer=0),
    "AttentionRollout": lambda m: AttentionRollout(m, discard_ratio=0.1),
    "AttentionFlow": flow,
    "GenericAttention": lambda m: GenericAttention(m),
    "TransformerAttribution": lambda m: TransformerAttribution(m, form="vit"),
    "TokenIntegratedGradients": lambda m: TokenIntegratedGradients(m, n_steps=3),
    "TokenGradientShap": lambda m: TokenGradientShap(m, n_samples=2, seed=5),
    "TokenSaliency": lambda m: TokenSaliency(m),
}
#: Read attention, not the target.
BLIND = ("RandomAttribution", "AttentionLast", "AttentionRollout", "AttentionFlow")


@functools.lru_cache
def vision() -> tuple[Any, Tensor]:
    case = zoo.case("hf-ViTForImageClassification-sdpa")
    return case.model, case.inputs[0]


def shape_of(name: str, x: Tensor) -> tuple[int, ...]:
    per_token = "Attention" in name or name == "TransformerAttribution"
    return (len(x), 17) if per_token else tuple(x.shape)


@pytest.mark.filterwarnings("ignore:Setting (forward|backward):UserWarning")
@pytest.mark.parametrize("name", ALL)
def test_every_class_keeps_shapes_tuples_and_flags(name: str, untouched: Any) -> None:
    model, x = vision()
    x = x.clone().requires_grad_()
    with untouched(model):
        single = ALL[name](model).attribute(x, target=1)
        with torch.no_grad():
            several = ALL[name](model).attribute((x,), target=1)
    assert isinstance(single, Tensor) and tuple(single.shape) == shape_of(name, x)
    assert isinstance(several, tuple) and len(several) == 1
    close(several[0], single)
    assert x.requires_grad and x.grad is None
    assert not single.requires_grad and not several[0].requires_grad
    ids = torch.randint(1, zoo.WORDS, (3, 6))
    text = zoo.case("hf-BertForSequenceClassification-sdpa").model
    for given in (ids, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}):
        assert ALL[name](text).attribute(given, target=1).shape == (3, 6)
    pair = ALL[name](text).attribute((ids,), target=1)
    assert isinstance(pair, tuple) and pair[0].shape == (3, 6)


@pytest.mark.filterwarnings("ignore:Setting (forward|backward):UserWarning")
@pytest.mark.parametrize("name", ALL)
def test_every_class_takes_all_target_kinds(name: str) -> None:
    model, x = vision()
    method = ALL[name](model)
    expected = method.attribute(x, target=2)
    kinds: list[Any] = [
        torch.tensor(2), torch.tensor([2]), [2] * len(x), torch.full((len(x),), 2), (2,),
    ]  # fmt: skip
    for target in kinds:
        close(method.attribute(x, target=target), expected)
    other = method.attribute(x, target=3)
    assert torch.equal(other, expected) == (name in BLIND)
    each = method.attribute(x, target=[2, 3])
    close(each, torch.stack([expected[0], other[1]]), rtol=1e-3, atol=1e-5)
    grid = lambda v: model(v).logits[:, :4].reshape(-1, 2, 2)  # noqa: E731
    for target in ((1, 0), [(1, 0)] * len(x)):
        close(ALL[name](grid).attribute(x, target=target), expected)
    close(ALL[name](grid).attribute(x, target=[(1, 0), (1, 1)]), each)


@pytest.mark.filterwarnings("ignore:Setting (forward|backward):UserWarning")
@pytest.mark.parametrize("name", ALL)
def test_every_class_is_decorated_named_copied_and_pickled(name: str) -> None:
    model, x = vision()
    method = ALL[name](model)
    expected = method.attribute(x, target=1)
    cls = type(method)
    assert issubclass(cls, captum_attr.Attribution) and cls.__name__ == name
    assert torch.equal(cls.attribute.__wrapped__(method, x, target=1), expected)
    twins = (copy.copy(method), copy.deepcopy(method), pickle.loads(pickle.dumps(method)))
    for twin in twins:
        assert torch.equal(twin.attribute(x, target=1), expected)
        assert twin.get_name() == method.get_name()
    assert twins[0].forward_func is model
    assert twins[1].forward_func is not model and twins[2].forward_func is not model
    if not name.startswith("Random"):  # which runs no model
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.5)
        twins[0].forward_func = other
        swapped = twins[0].attribute(x, target=1)
        assert torch.equal(swapped, ALL[name](other).attribute(x, target=1))
        assert not torch.equal(swapped, expected)
    assert torch.equal(method.attribute(x, target=1), expected)
    with pytest.raises(NotImplementedError, match=f"attribute_future.*{name}"):
        method.attribute_future()


def test_every_name_is_readable_and_there_once() -> None:
    classes = [type(ALL[name](vision()[0])) for name in ALL if name != "AttentionFlow"]
    names = [cls.get_name() for cls in (*classes, AttentionFlow, *LAYER_CLASSES)]
    assert len(set(names)) == len(names) == 13
    for name in names:
        words = name.split()
        single = [word for word in words if len(word) == 1]
        assert single in ([], ["x"])  # "Conservative LRP", not "Conservative L R P"
        assert all(word[0].isupper() for word in words if word != "x")


@pytest.mark.filterwarnings("ignore:Setting (forward|backward):UserWarning")
@pytest.mark.parametrize("name", ALL)
def test_convergence_deltas_where_there_are_any(name: str) -> None:
    model, x = vision()
    method = ALL[name](model)
    has = method.has_convergence_delta()
    assert has == (name in ("ConservativeGI", "ConservativeLRP", "TokenIntegratedGradients",
                            "TokenGradientShap"))  # fmt: skip
    if not has:
        with pytest.raises(TypeError, match="return_convergence_delta"):
            method.attribute(x, target=1, return_convergence_delta=True)
        return
    for inputs in (x, (x,)):
        relevance, delta = method.attribute(inputs, target=1, return_convergence_delta=True)
        assert isinstance(relevance, type(inputs)) and delta.shape == (len(x),)
        total = (relevance[0] if isinstance(relevance, tuple) else relevance).flatten(1).sum(1)
        output = model(x).logits[:, 1].detach()
        if name.startswith("Token"):
            output = output - model(torch.zeros_like(x)).logits[:, 1].detach()
        close(delta, output - total, atol=1e-4)


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_layer_classes_take_all_target_kinds_and_copies(cls: Any) -> None:
    model, x = vision()
    layers = [model.vit.embeddings, model.vit.layernorm]
    method = cls(model, layers)
    expected = method.attribute(x, target=2)
    kinds: list[Any] = [torch.tensor(2), [2, 2], torch.tensor([2, 2]), (2,)]
    for target in kinds:
        for got, want in zip(method.attribute(x, target=target), expected, strict=True):
            close(got, want)
    for twin in (copy.copy(method), copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        for got, want in zip(twin.attribute(x, target=2), expected, strict=True):
            assert torch.equal(got, want)
    assert torch.equal(cls.attribute.__wrapped__(method, x, target=2)[0], expected[0])
