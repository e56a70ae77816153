"""Targets that are no index: contrasts, log-probabilities, sums, one for each example."""

from __future__ import annotations

import copy
import pickle
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import NoiseTunnel
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor, nn

import zoo
from captum_lrp_tx import (
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
    audit,
    compare,
)
from captum_lrp_tx.attr.targets import (
    Contrast,
    LogProbability,
    Sum,
    Target,
    TargetOutput,
    indices_of,
    select_target,
)
from captum_lrp_tx.errors import InputError, TargetError
from closeness import close

pytestmark = [
    pytest.mark.core,
    pytest.mark.captum,
    pytest.mark.filterwarnings("ignore::captum_lrp_tx.errors.CaptumLRPWarning"),
]

RULES = ["gi", "ah", "ln", "ah+ln", "lrp", "attnlrp"]


class Tiny(nn.Module):
    """Token embedding, one layer of attention, five classes; float64 for sharp comparisons."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.norm = nn.LayerNorm(8)
        self.inner, self.head = nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) if not ids.is_floating_point() else ids
        pattern = (self.query(x) @ self.key(x).mT / 8**0.5).softmax(-1)
        return self.head(
            nn.functional.gelu(self.inner(self.norm(x + pattern @ self.value(x))[:, 0]))
        )


@pytest.fixture
def tiny() -> Tiny:
    return zoo.randomise(Tiny()).double().eval()  # type: ignore[return-value]


@pytest.fixture
def ids() -> Tensor:
    return torch.tensor([[1, 5, 3, 2], [4, 4, 9, 2], [7, 8, 1, 6]])


class Wrapped(nn.Module):
    """A model and a function of its output, written out by hand."""

    def __init__(self, model: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *args: Any) -> Tensor:
        return self.function(self.model(*args))


# ---- values: against an evaluation by indexing, one example at a time ----------------------------
def random_target(
    depth: int, examples: int, classes: int
) -> tuple[Any, Callable[[int, Any], float]]:
    """A target, and what it is of one row of an array."""
    kind = random.choice(
        ["int", "list", "tensor", "log"] + ["contrast", "sum", "each"] * (depth > 0)
    )
    if kind in ("int", "list", "tensor", "log"):
        index = [random.randrange(classes) for _ in range(examples)]
        if kind == "int":
            return index[0], lambda i, row: row[index[0]]
        if kind == "log":
            return LogProbability(index), lambda i, row: float(
                row[index[i]] - torch.tensor(row, dtype=torch.float64).logsumexp(0)
            )
        return (index if kind == "list" else torch.tensor(index)), lambda i, row: row[index[i]]
    if kind == "each":
        pairs = [random_target(depth - 1, 1, classes) for _ in range(examples)]
        if not any(isinstance(target, Target) for target, _ in pairs):
            pairs[0] = (Contrast(0, 1), lambda i, row: row[0] - row[1])
        whole = all(isinstance(t, (int, Target)) for t, _ in pairs)
        if whole:
            return [t for t, _ in pairs], lambda i, row: pairs[i][1](0, row)
        return random_target(0, examples, classes)
    if kind == "contrast":
        (a, of_a), (b, of_b) = (random_target(depth - 1, examples, classes) for _ in range(2))
        return Contrast(a, b), lambda i, row: of_a(i, row) - of_b(i, row)
    parts = [random_target(depth - 1, examples, classes) for _ in range(random.randint(1, 3))]
    weights = [random.uniform(-2, 2) for _ in parts]
    return Sum(*(t for t, _ in parts), weights=weights), lambda i, row: sum(
        w * value(i, row) for w, (_, value) in zip(weights, parts, strict=True)
    )


def test_values_of_random_targets() -> None:
    kinds = set()
    for _ in range(200):
        output = torch.randn(3, 5, dtype=torch.float64)
        target, value = random_target(2, 3, 5)
        kinds.add(type(target))
        expected = [value(i, row) for i, row in enumerate(output.tolist())]
        close(select_target(output, target), torch.tensor(expected, dtype=torch.float64))
    assert {Contrast, Sum, LogProbability, list, Tensor, int} <= kinds


def test_tuples_of_longer_outputs() -> None:
    output = torch.randn(2, 4, 6, dtype=torch.float64)
    close(select_target(output, Contrast((1, 5), (-1, 0))), output[:, 1, 5] - output[:, -1, 0])
    each = Contrast([(1, 5), (2, 3)], (0, 0))
    expected = torch.stack([output[0, 1, 5] - output[0, 0, 0], output[1, 2, 3] - output[1, 0, 0]])
    close(select_target(output, each), expected)
    logs = output.log_softmax(-1)
    close(select_target(output, LogProbability((3, 2))), logs[:, 3, 2])
    close(select_target(output, LogProbability([(3, 2), (-1, -6)])), logs[[0, 1], [3, -1], [2, -6]])
    by_pixel = output.log_softmax(1)  # classes in dimension 1, as in segmentation
    for dim in (1, -2):
        close(select_target(output, LogProbability((3, 2), dim=dim)), by_pixel[:, 3, 2])


def test_log_probability_of_masked_and_half_precision_scores() -> None:
    output = torch.tensor([[1.0, float("-inf"), 3.0]], requires_grad=True)
    value = select_target(output, LogProbability(2))
    close(value.detach(), output.detach().log_softmax(1)[:, 2], 1e-6)
    (gradient,) = torch.autograd.grad(value.sum(), output)
    again = output.detach()[:, [0, 2]].requires_grad_()
    (expected,) = torch.autograd.grad(again.log_softmax(1)[:, 1].sum(), again)
    close(gradient[:, [0, 2]], expected, 1e-6)
    assert gradient[0, 1] == 0
    half = torch.randn(2, 7).bfloat16()
    value = select_target(half, LogProbability(3))
    assert value.dtype == torch.float32
    close(value, half.float().log_softmax(1)[:, 3], 1e-6)


def test_log_probability_has_the_gradient_of_the_log_softmax() -> None:
    output = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    target = LogProbability([0, 5, 2])
    (gradient,) = torch.autograd.grad(select_target(output, target).sum(), output)
    logs = output.log_softmax(1)
    (expected,) = torch.autograd.grad((logs[0, 0] + logs[1, 5] + logs[2, 2]), output)
    close(gradient, expected)


# ---- relevance -----------------------------------------------------------------------------------
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("bias", ["absorb", "distribute"])
def test_relevance_is_linear_in_the_target(rules: str, bias: Any, tiny: Tiny, ids: Tensor) -> None:
    method = ConservativeLRP(tiny, rules, bias=bias)
    single = torch.stack([method.attribute(ids, target=i) for i in range(5)])
    rows = torch.arange(3)
    assert float(single.abs().max()) > 0.01
    close(method.attribute(ids, target=Contrast(1, 4)), single[1] - single[4])
    a, b = torch.tensor([0, 2, 4]), [1, 1, 3]
    expected = single[a, rows] - single[b, rows]
    close(method.attribute(ids, target=Contrast(a, b)), expected)
    close(method.attribute(ids, target=[Contrast(int(i), j) for i, j in zip(a, b)]), expected)
    mixed = method.attribute(ids, target=[Contrast(0, 1), 3, Sum(2, 4, weights=[0.5, -2])])
    close(mixed[0], single[0, 0] - single[1, 0])
    close(mixed[1], single[3, 1])
    close(mixed[2], 0.5 * single[2, 2] - 2 * single[4, 2])
    others = Sum(0, 1, 3, 4, weights=0.25)
    close(
        method.attribute(ids, target=Contrast(2, others)), single[2] - single[[0, 1, 3, 4]].mean(0)
    )
    # the gradient of a log-probability is that of its logit minus the mean under the softmax
    weights = tiny(ids).softmax(1).detach().T[:, :, None]
    close(method.attribute(ids, target=LogProbability(2)), single[2] - (weights * single).sum(0))


@pytest.mark.parametrize("name", ["hf-BertForSequenceClassification-sdpa", "torch-mlp"])
def test_on_a_stock_model(name: str) -> None:
    if name == "torch-mlp":
        model: nn.Module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
        inputs: tuple[Any, ...] = (torch.randn(3, 4, dtype=torch.float64),)
    else:
        built = zoo.case(name)
        model, inputs = built.model.double(), built.inputs
    for cls in (ConservativeGI, ConservativeLRP):
        method = cls(model)
        a, b = (method.attribute(*inputs, target=i) for i in (0, 2))
        close(method.attribute(*inputs, target=Contrast(0, 2)), a - b)


@pytest.mark.parametrize(
    ("target", "function"),
    [
        (Contrast(1, 4), lambda y: y[:, 1] - y[:, 4]),
        (Contrast([0, 2, 4], 3), lambda y: y[[0, 1, 2], [0, 2, 4]] - y[:, 3]),
        (Sum(0, 2, weights=[2, -1]), lambda y: 2 * y[:, 0] - y[:, 2]),
        (LogProbability(2), lambda y: y.log_softmax(1)[:, 2]),
        (Contrast(LogProbability(2), LogProbability(0)), lambda y: y[:, 2] - y[:, 0]),
    ],
    ids=["contrast", "per-example", "sum", "log-probability", "ratio"],
)
def test_equals_a_model_that_returns_the_target(
    target: Any, function: Any, tiny: Tiny, ids: Tensor
) -> None:
    by_hand = Wrapped(tiny, function)
    close(TargetOutput(tiny, target)(ids), function(tiny(ids)))
    for cls in (ConservativeGI, ConservativeLRP):
        relevance, delta = cls(tiny).attribute(ids, target=target, return_convergence_delta=True)
        expected, of_hand = cls(by_hand).attribute(ids, return_convergence_delta=True)
        close(relevance, expected)
        close(delta, of_hand)
        close(delta, function(tiny(ids)).detach() - relevance.sum(1))
        close(cls(TargetOutput(tiny, target)).attribute(ids), expected)
    for layer_cls in (LayerConservativeGI, LayerConservativeLRP):
        layered = layer_cls(tiny, tiny.norm).attribute(ids, target=target)
        close(layered, layer_cls(by_hand, tiny.norm).attribute(ids))
    gae = GenericAttention(tiny).attribute(ids, target=target)
    close(gae, GenericAttention(by_hand).attribute(ids))
    gradcam = TransformerAttribution(tiny, "attn_gradcam").attribute(ids, target=target)
    close(gradcam, TransformerAttribution(by_hand, "attn_gradcam").attribute(ids))


@pytest.mark.parametrize("variant", ["transformer_attribution", "full_lrp", "last_layer"])
def test_deep_taylor_starts_with_one_at_the_target(variant: Any, tiny: Tiny, ids: Tensor) -> None:
    method = TransformerAttribution(tiny, variant, form="vit")
    close(method.attribute(ids, target=Sum(2)), method.attribute(ids, target=2))
    each = method.attribute(ids, target=[Sum(0), Sum(3), Sum(1)])
    close(each[1], method.attribute(ids, target=3)[1])
    model = Wrapped(tiny, lambda y: y[:, 1] - y[:, 4])
    by_hand = TransformerAttribution(model, variant, form="vit")
    relevance = method.attribute(ids, target=Contrast(1, 4))
    assert float(relevance.abs().max()) > 1e-3
    close(relevance, by_hand.attribute(ids))


def test_methods_without_target_do_not_mind(tiny: Tiny, ids: Tensor) -> None:
    for method in (AttentionLast(tiny), AttentionRollout(tiny), RandomAttribution(tiny)):
        close(method.attribute(ids, target=Contrast(1, 3)), method.attribute(ids, target=1))


def test_delta_is_minus_the_entropy_for_log_probabilities(tiny: Tiny, ids: Tensor) -> None:
    target = LogProbability([0, 2, 3])
    method = ConservativeLRP(tiny, bias="distribute", epsilon=1e-12)
    relevance, delta = method.attribute(
        ids, target=target, return_convergence_delta=True, strict=True
    )
    logs = tiny(ids).detach().log_softmax(1)
    entropy = torch.distributions.Categorical(logits=logs).entropy()
    close(delta, -entropy, 1e-7)
    close(relevance.sum(1), logs[[0, 1, 2], [0, 2, 3]] + entropy, 1e-7)


def test_audit(tiny: Tiny, ids: Tensor) -> None:
    output = tiny(ids).detach()
    report = audit.explainability(tiny, ids, target=Contrast(1, 4), file=None, strict=True)
    assert report.output == pytest.approx(float((output[:, 1] - output[:, 4]).sum()))
    assert abs(report.conservation_error) < 1e-6
    report = audit.explainability(tiny, ids, target=LogProbability(1), file=None, strict=True)
    entropy = torch.distributions.Categorical(logits=output).entropy()
    assert report.conservation_error == pytest.approx(-float(entropy.sum()), abs=1e-6)


def test_compare(tiny: Tiny, ids: Tensor) -> None:
    one = ids[:1]
    methods = ["Random", "A-Last", "Rollout", "GAE", "GI", "LRP(AH+LN)", "LRP", "Chefer"]
    methods += ["IG", "GradientShap", "Saliency"]
    shown = compare(tiny, one, Contrast(1, 4), methods=methods)
    assert not shown.errors
    output = tiny(one)[0].detach()
    assert shown.output == pytest.approx(float(output[1] - output[4]))
    own = ConservativeLRP(tiny).attribute(one, target=Contrast(1, 4))[0]
    close(shown["LRP"].relevance, own)


@pytest.mark.parametrize("cls", [TokenIntegratedGradients, TokenGradientShap, TokenSaliency])
def test_captum_methods_on_tokens(cls: Any, tiny: Tiny, ids: Tensor) -> None:
    options = {"internal_batch_size": 7} if cls is TokenIntegratedGradients else {}
    method = cls(tiny, **options)
    by_hand = cls(Wrapped(tiny, lambda y: y[:, 1] - y[:, 4]), **options)
    expected = by_hand.attribute(ids)
    assert float(expected.abs().max()) > 1e-3
    close(method.attribute(ids, target=Contrast(1, 4)), expected)
    each = method.attribute(ids, target=[Sum(2), Contrast(1, 4), 0])
    close(each[0], method.attribute(ids, target=2)[0])
    close(each[1], expected[1])
    close(each[2], method.attribute(ids, target=0)[2])
    x = torch.randn(3, 4, 8, dtype=torch.float64)
    close(method.attribute(x, target=Contrast(1, 4)), by_hand.attribute(x))
    with pytest.raises(TargetError, match="1 targets were given for 3 examples"):
        method.attribute(ids, target=[Contrast(1, 4)])
    if cls is not TokenSaliency:
        deltas = [
            m.attribute(ids, target=t, return_convergence_delta=True)[1]
            for m, t in ((method, Contrast(1, 4)), (by_hand, None))
        ]
        close(*deltas)


def test_the_row_of_an_attention_map() -> None:
    built = zoo.case("hf-LlamaForCausalLM-eager")
    (ids,), model = built.inputs, built.model
    last = ids.shape[1] - 1
    for method in (AttentionLast(model), GenericAttention(model)):
        for target in (
            Contrast((2, 7), (2, 3)),
            Contrast((2 - last - 1, 7), (2, 3)),
            [LogProbability((2, 7))] * len(ids),
        ):
            fixed = type(method)(model, query=2).attribute(ids, target=target)
            close(method.attribute(ids, target=target), fixed)
            assert bool((fixed[:, 3:] == 0).all())
        several = Sum((2, 7), (last, 3))
        with pytest.raises(InputError, match="several positions"):
            method.attribute(ids, target=several)
        chosen = type(method)(model, query=-1).attribute(ids, target=several)
        assert bool(chosen[:, -1].abs().gt(0).any())


# ---- inside of Captum ----------------------------------------------------------------------------
@pytest.mark.parametrize("cls", [ConservativeGI, ConservativeLRP])
@pytest.mark.parametrize("portion", [None, 2])
def test_noise_tunnel(cls: Any, portion: int | None, tiny: Tiny) -> None:
    x = torch.randn(3, 4, 8, dtype=torch.float64)
    tunnel = NoiseTunnel(cls(tiny))

    def smooth(target: Any) -> Tensor:
        torch.manual_seed(3)
        return tunnel.attribute(
            x, target=target, nt_samples=4, nt_samples_batch_size=portion, stdevs=0.1
        )

    single = [smooth(i) for i in range(5)]
    close(smooth(Contrast(1, 4)), single[1] - single[4])
    close(smooth(Contrast(torch.tensor(1), 4)), single[1] - single[4])
    each = smooth([Contrast(1, 4), Contrast(0, 2), Sum(3)])
    close(each[0], single[1][0] - single[4][0])
    close(each[1], single[0][1] - single[2][1])
    close(each[2], single[3][2])
    with pytest.raises(TargetError, match=r"write a list of targets: \[Contrast\(a, b\)"):
        smooth(Contrast([1, 0, 3], 2))


def test_sensitivity_and_infidelity(tiny: Tiny) -> None:
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    method = ConservativeGI(tiny)

    def noise(inputs: Any) -> Any:
        inputs = inputs[0] if isinstance(inputs, tuple) else inputs
        change = torch.randn_like(inputs) * 0.01
        return change, inputs - change

    def seeded(function: Any, *args: Any, **kwargs: Any) -> Tensor:
        torch.manual_seed(5)
        return function(*args, **kwargs)  # type: ignore[no-any-return]

    each = [Contrast(1, 4), Contrast(0, 2)]
    score = seeded(sensitivity_max, method.attribute, x, target=each, n_perturb_samples=3)
    by_hand = ConservativeGI(Wrapped(tiny, lambda y: y[:, 1] - y[:, 4])).attribute
    expected = seeded(sensitivity_max, by_hand, x, n_perturb_samples=3)
    close(score[0], expected[0], 1e-6)
    contrast = Contrast(1, 4)
    relevance = method.attribute(x, target=contrast)
    score = seeded(infidelity, TargetOutput(tiny, contrast), noise, x, relevance)
    hand = Wrapped(tiny, lambda y: y[:, 1] - y[:, 4])
    close(score, seeded(infidelity, hand, noise, x, relevance))
    assert bool((score > 0).all())


# ---- the classes themselves ----------------------------------------------------------------------
def test_repr_copy_and_pickle() -> None:
    target = Contrast((1, 2), Sum(LogProbability([(1, 0)]), (3, 1), weights=(1, 0.5)))
    text = "Contrast((1, 2), Sum(LogProbability([(1, 0)]), (3, 1), weights=[1.0, 0.5]))"
    output = torch.randn(1, 4, 5)
    for same in (target, eval(text), copy.deepcopy(target), pickle.loads(pickle.dumps(target))):
        assert repr(same) == text
        close(select_target(output, same), select_target(output, target))
    assert repr(LogProbability((0, 1, 2), dim=1)) == "LogProbability((0, 1, 2), dim=1)"
    assert repr(Sum(1, 2)) == "Sum(1, 2)"


def test_numpy_integers() -> None:
    numpy = pytest.importorskip("numpy")
    index = numpy.array([2, 0])
    assert repr(Contrast(index[0], (index[1], 1))) == "Contrast(2, (0, 1))"
    assert repr(Contrast(list(index), 1)) == "Contrast([2, 0], 1)"


class Largest(Target):
    def select(self, output: Tensor) -> Tensor:
        return output.amax(1)


def test_targets_of_your_own(tiny: Tiny, ids: Tensor) -> None:
    best = tiny(ids).argmax(1)
    method = ConservativeLRP(tiny)
    close(method.attribute(ids, target=Largest()), method.attribute(ids, target=best))
    expected = method.attribute(ids, target=Contrast(best, 0))
    close(method.attribute(ids, target=Contrast(Largest(), 0)), expected)
    close(GenericAttention(tiny).attribute(ids, target=Largest()),
          GenericAttention(tiny).attribute(ids, target=best))  # fmt: skip

    class Unfinished(Target):
        def select(self, output: Tensor) -> Tensor:
            return output

    with pytest.raises(TargetError, match=r"Unfinished.select must return one number"):
        method.attribute(ids, target=Unfinished())


def test_indices_of() -> None:
    target = Contrast(torch.tensor([3, 1]), Sum(LogProbability([0, 4]), 2))
    assert indices_of(target, 2) == [[3, 0, 2], [1, 4, 2]]
    assert indices_of([Contrast(1, 2), 5], 2) == [[1, 2], [5]]
    assert indices_of(None, 2) == [[None], [None]]
    with pytest.raises(TargetError, match="2 indices"):
        indices_of([1, 2], 3)


# ---- errors --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "wrong",
    [None, 1.0, "cat", ["cat"], True, (), [], (1, 2.0), [1, None], {1: 2}, [[1]], ("a", 1),
     torch.tensor([0.5]), torch.tensor([True]), torch.tensor([[1]]), torch.tensor([])],
    ids=repr,
)  # fmt: skip
def test_what_is_no_target(wrong: Any) -> None:
    for build in (
        lambda: Contrast(wrong, 1),
        lambda: Contrast(0, wrong),
        lambda: LogProbability(wrong),
        lambda: Sum(1, wrong),
    ):
        with pytest.raises(TargetError, match=r"is no target\. Valid targets: an int") as caught:
            build()
        words = wrong in ("cat", ["cat"], ("a", 1)) if not isinstance(wrong, Tensor) else False
        assert ("tokenizer.encode(token" in str(caught.value)) == words


def test_sums_that_make_no_sense() -> None:
    with pytest.raises(TargetError, match="at least one target"):
        Sum()
    weights: Any
    for weights in ([1], [1, 2, 3], [1, float("nan")], "ab", ["a", "b"], object()):
        with pytest.raises(TargetError, match="weights"):
            Sum(1, 2, weights=weights)
    with pytest.raises(TargetError, match=re.escape("Sum(LogProbability(a), LogProbability(b))")):
        LogProbability(Contrast(1, 0))


@pytest.mark.parametrize(
    ("shape", "target", "message"),
    [
        ((2, 5), Contrast(1, 5), "does not fit"),
        ((2, 5), Contrast((1, 2), 0), "does not fit"),
        ((2, 5), Contrast([1, 2, 3], 0), "for 3 examples, but the output has 2"),
        ((2, 5), Contrast(torch.tensor([1, 2, 3]), 0), "for 3 examples"),
        ((2, 5), [Contrast(1, 2)], "1 targets were given for 2 examples"),
        ((2, 5), [Contrast(1, 2), "cat"], r"tokenizer\.encode\(token"),
        ((2, 5), [Contrast(1, 2), [1, 2]], "for 2 examples, but the output has 1"),
        ((2, 5), [Contrast([1, 2], 2), 0], "for 2 examples, but the output has 1"),
        ((2, 4, 5), Contrast(1, 2), "give a tuple of 2 indices"),
        ((2, 4, 5), Sum((1, 2), 2), "give a tuple of 2 indices"),
        ((2, 4, 5), LogProbability(1), "give a tuple of 2 indices"),
        ((2, 4, 1), LogProbability(1), "give a tuple of 2 indices"),
        ((2, 4, 5), Contrast((1, 2, 0), 2), "does not fit"),
        ((2,), Contrast(0, 1), "does not fit"),
        ((2,), LogProbability(0), "one score per class"),
        ((2, 1), LogProbability(0), "always 1"),
        ((2, 5), LogProbability(0, dim=0), "one score per class"),
        ((2, 5), LogProbability(0, dim=2), "one score per class"),
        ((2, 5), LogProbability(7), "does not fit"),
        ((), Contrast(1, 0), "single number"),
        ((2, 5), "cat", r"tokenizer\.encode\(token"),
    ],
)
def test_targets_that_do_not_fit(shape: tuple[int, ...], target: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        select_target(torch.randn(shape), target)


@pytest.mark.parametrize("cls", [ConservativeGI, ConservativeLRP, GenericAttention])
def test_errors_leave_the_model_alone(cls: Any, tiny: Tiny, ids: Tensor, untouched: Any) -> None:
    with untouched(tiny), pytest.raises(TargetError, match="does not fit"):
        cls(tiny).attribute(ids, target=Contrast(1, 99))
    with untouched(tiny):
        cls(tiny).attribute(ids, target=Contrast(1, 2))
