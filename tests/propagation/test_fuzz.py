"""Arguments of any kind: a right answer, or an error of this package that says what to do.

What is right is computed by plain autograd. If the model itself refuses an input (a wrong width,
an id that is not in the table), its own exception comes out as it is.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from inspect import isabstract
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captum_lrp_tx import (
    Composite,
    ConservativeGI,
    ConservativeLRP,
    GenericAttention,
    LayerConservativeGI,
    audit,
    metrics,
    rules,
)
from captum_lrp_tx.attr.targets import Contrast, LogProbability, Sum
from captum_lrp_tx.errors import CaptumLRPError
from captum_lrp_tx.rules.rule import Rule

pytestmark = pytest.mark.thorough

MANY = settings(
    max_examples=2000 if os.environ.get("CAPTUM_LRP_TX_THOROUGH") else 150,
    suppress_health_check=list(HealthCheck),
)


class Text(nn.Module):
    """Token ids and a mask; padding takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(7, 4), nn.Embedding(6, 4)
        self.query, self.head = nn.Linear(4, 4), nn.Linear(4, 3, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.word(input_ids) + self.position(torch.arange(input_ids.shape[-1]))
        scores = self.query(x) @ x.transpose(-2, -1)
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask[:, None, :] == 0, -math.inf)
        return self.head((scores.softmax(-1).nan_to_num() @ x).mean(1))


torch.manual_seed(0)
#: Bias-free and positively homogeneous: LRP is gradient x input.
MLP = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).eval()
TEXT = Text().eval()

DTYPES = [
    torch.float32, torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64,
]  # fmt: skip
SCALES = [1.0, 1.0, 0.0, 1e-38, 1e-45, 1e4, 1e19, 1e30, 1e38, math.nan, math.inf, -math.inf]


@st.composite
def tensors(draw: Any, width: int = 4) -> Tensor:
    """Mostly of the right width and kind."""
    shape = draw(
        st.sampled_from([(2, width), (1, width), (3, width)])
        | st.lists(st.sampled_from([0, 1, 2, width]), max_size=4).map(tuple)
    )
    dtype = draw(st.sampled_from(DTYPES))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    scale = draw(st.sampled_from(SCALES))
    if not math.isfinite(scale) and x.numel():
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = scale
    else:
        x = x * scale
    if dtype.is_floating_point or dtype.is_complex:
        x = x.to(dtype)
    else:
        x = (x.nan_to_num().abs() * 3).clamp(0, 8).to(dtype)
    how = draw(st.sampled_from(["", "", "", "grad", "transposed", "expanded", "sparse", "meta"]))
    if how == "grad" and x.is_floating_point():
        x.requires_grad_()
    elif how == "transposed" and x.dim() > 1:
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    elif how == "expanded" and x.dim() > 1:
        x = x[:1].expand_as(x)
    elif how == "sparse" and x.dim():
        x = x.to_sparse()
    elif how == "meta":
        x = x.to("meta")
    return x


JUNK = st.sampled_from(
    [None, "a film", b"x", 3, 2.5, [], (), {}, set(), object(), nn.Linear(4, 3), int, math.nan]
)
INPUTS = (
    tensors()
    | tensors()
    | st.tuples(tensors(), tensors())
    | st.lists(tensors(), max_size=2)
    | st.dictionaries(
        st.sampled_from(["input_ids", "input", "attention_mask", "x", "labels"]), tensors() | JUNK
    )
    | JUNK
)
INDICES = st.integers(-5, 5)
TARGETS: Any = (
    INDICES
    | st.none()
    | st.lists(INDICES, max_size=4)
    | st.tuples(INDICES)
    | st.tuples(INDICES, INDICES)
    | st.lists(st.tuples(INDICES), max_size=3)
    | st.lists(INDICES, max_size=3).map(torch.tensor)
    | st.sampled_from([10**12, -(10**30), True, False, 1.0, "positive", b"1", {0: 1}, [None]])
    | st.sampled_from([torch.tensor([[1]]), torch.tensor(1.5), torch.tensor([]), [[1], [2]]])
    | st.builds(lambda a, b: _made(Contrast, a, b), INDICES, st.lists(INDICES, max_size=3))
    | st.builds(lambda a: _made(LogProbability, a), INDICES)
    | st.builds(lambda a, w: _made(Sum, a, 0, weights=w), INDICES, st.floats())
)


def _made(kind: Any, *arguments: Any, **options: Any) -> Any:
    try:
        return kind(*arguments, **options)
    except CaptumLRPError:
        return 0


def outcome(run: Callable[[], Any]) -> Any:
    """What it returns, or the exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return run()
        except Exception as error:
            return error


def is_refused(found: Any, plain: Callable[[], Any]) -> bool:
    """Whether an error was raised; if so it is one of ours, or the model's own."""
    if not isinstance(found, Exception):
        return False
    if isinstance(found, CaptumLRPError):
        assert len(str(found)) > 20
        return True
    own = outcome(plain)
    assert type(own) is type(found), f"{type(found).__name__}: {found}"
    return True


def _called(model: nn.Module, inputs: Any) -> Tensor:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


# ---- attribute ----------------------------------------------------------------------------------
@MANY
@given(INPUTS, TARGETS, st.sampled_from([ConservativeGI, ConservativeLRP]))
def test_float_inputs_and_targets_of_any_kind(inputs: Any, target: Any, cls: Any) -> None:
    found = outcome(lambda: cls(MLP).attribute(inputs, target=target))
    if is_refused(found, lambda: _called(MLP, inputs)):
        return
    given_ = inputs if isinstance(inputs, (tuple, list)) else [*inputs.values()] if isinstance(
        inputs, dict
    ) else (inputs,)  # fmt: skip
    relevance = found if isinstance(found, tuple) else (found,)
    assert len(relevance) == 1
    (x,) = (t for t in given_ if isinstance(t, Tensor) and t.is_floating_point())
    leaf = x.detach().clone().requires_grad_()
    from captum_lrp_tx.attr.targets import select_target

    selected = select_target(MLP(leaf), target)
    (gradient,) = torch.autograd.grad(selected.sum(), leaf)
    assert relevance[0].shape == x.shape and relevance[0].dtype == x.dtype
    # numbers below the least normal one have no digits to compare, or are flushed to zero
    expected = leaf.detach() * gradient
    torch.testing.assert_close(relevance[0], expected, rtol=1e-4, atol=2.0**-126)


@MANY
@given(
    tensors(width=5),
    st.none() | tensors(width=5),
    INDICES | st.none() | st.lists(INDICES, max_size=3),
    st.sampled_from(["gi", "ah", "lrp", "audit", "gae", "layer"]),
)
def test_token_ids_and_masks_of_any_kind(ids: Any, mask: Any, target: Any, how: str) -> None:
    inputs = {"input_ids": ids} if mask is None else {"input_ids": ids, "attention_mask": mask}

    def explain() -> Any:
        if how == "audit":
            return audit.explainability(TEXT, inputs, target, file=None)
        if how == "gae":
            return GenericAttention(TEXT).attribute(inputs, target)
        if how == "layer":
            return LayerConservativeGI(TEXT, TEXT.word, "gi").attribute(inputs, target)
        return ConservativeGI(TEXT, how).attribute(inputs, target)

    found = outcome(explain)
    if is_refused(found, lambda: TEXT(**inputs)):
        return
    if how == "audit":
        assert math.isfinite(found.conservation_error)
        return
    relevance = found.sum(-1) if how == "layer" else found
    assert relevance.shape == ids.shape and relevance.isfinite().all()
    if how == "ah":
        # the pattern constant and no bias behind it: all relevance is with the tokens
        total = relevance.reshape(relevance.shape[0], -1).sum(1)
        from captum_lrp_tx.attr.targets import select_target

        expected = select_target(TEXT(**inputs), target).detach().reshape(-1)
        if total.shape == expected.shape:
            torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-5)


def test_rows_that_are_all_padding() -> None:
    """Nothing is attended to, so nothing gets relevance, and nothing is NaN."""
    ids, mask = torch.tensor([[1, 2, 3], [0, 0, 0]]), torch.tensor([[1, 1, 0], [0, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": mask}
    for preset in ("gi", "ah", "ah+ln", "lrp", "attnlrp"):
        relevance = ConservativeGI(TEXT, preset).attribute(inputs, target=1)
        alone = ConservativeGI(TEXT, preset).attribute({k: v[:1] for k, v in inputs.items()}, 1)
        assert relevance[1].eq(0).all()
        torch.testing.assert_close(relevance[:1], alone)


@MANY
@given(
    st.sampled_from([0.0, 1e-45, 1e19, 1e38, math.nan, math.inf, -math.inf]),
    st.sampled_from(["0.weight", "2.weight"]),
    st.sampled_from(["gi", "ah+ln", "lrp", "lrp-gamma"]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_weights_of_any_value(value: float, name: str, preset: str, dtype: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))
    model.load_state_dict(MLP.state_dict())
    with torch.no_grad():
        model.get_parameter(name)[0, 0] = value
    model.to(dtype)
    x = torch.linspace(-1, 1, 8).reshape(2, 4).to(dtype)
    for target in (0, 1):
        found = outcome(lambda t=target: ConservativeGI(model, preset).attribute(x, target=t))
        if is_refused(found, lambda: model(x)):
            assert not math.isfinite(value) or value > 1e18 or dtype == torch.float16
            continue
        assert found.isfinite().all()
        output = model(x)[:, target].double()
        torch.testing.assert_close(
            found.double().sum(1), output.detach(), rtol=16 * torch.finfo(dtype).eps, atol=0.05
            if dtype != torch.float32 else 1e-5,
        )  # fmt: skip


# ---- Composite ----------------------------------------------------------------------------------
RULES = st.sampled_from(
    [
        rules.GammaRule(), rules.ZPlusRule(), rules.EpsilonRule(0.0), rules.FlatRule(),
        rules.AHRule(), rules.LNRule(), rules.PassRule(), rules.PassActivationRule(), None,
    ]
)  # fmt: skip
KEYS = (
    st.sampled_from([nn.Linear, nn.ReLU, nn.Module, "*", "0", "[", "(", "word.*", "", "**"])
    | st.text(max_size=3)
    | st.builds(lambda: lambda name, module: name == "0")
    | JUNK
)
VALUES = RULES | st.lists(RULES, max_size=2) | JUNK | st.just(rules.GammaRule)
NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1e30, math.nan, math.inf, None, "1", (), True])


@MANY
@given(
    st.lists(st.tuples(KEYS, VALUES), max_size=3) | st.lists(JUNK, max_size=2) | JUNK,
    st.sampled_from(["lrp", "gi", "LRP", "lrpp", "", None, 3]),
    NUMBERS,
    st.sampled_from(["absorb", "distribute", "ignore", None, "", 3]),
)
def test_composites_of_anything(entries: Any, base: Any, epsilon: Any, bias: Any) -> None:
    """Refused when it is made; or a rule set that gives finite relevance, or says why not."""
    x = torch.linspace(-1, 1, 8).reshape(2, 4)

    def make() -> Any:
        composite = Composite(entries, base=base)
        assert isinstance(repr(composite), str)
        return ConservativeLRP(MLP, composite, bias=bias, epsilon=epsilon)

    made = outcome(make)
    if is_refused(made, lambda: None):
        return
    found = outcome(lambda: made.attribute(x, target=1))
    if not is_refused(found, lambda: None):
        assert found.shape == x.shape and found.isfinite().all()


#: What rules that hold other rules are given.
INNER: dict[Any, dict[str, Rule]] = {
    rules.ByDepthRule: {"lower": rules.EpsilonRule(), "upper": rules.GammaRule()},
    rules.SinkRule: {"rule": rules.AHRule()},
}


RULES = [
    cls
    for cls in map(vars(rules).get, rules.__all__)
    if isinstance(cls, type) and issubclass(cls, Rule) and not isabstract(cls)
]


@pytest.mark.parametrize("cls", RULES)
@settings(MANY, max_examples=MANY.max_examples // 5)
@given(
    st.dictionaries(
        st.sampled_from(["epsilon", "gamma", "alpha", "beta", "bias", "share"]), NUMBERS
    )
)
def test_parameters_of_rules(cls: Any, parameters: Any) -> None:
    """A rule is refused, with a reason, when its parameters make no sense."""
    known = {k: v for k, v in parameters.items() if k in getattr(cls, "__dataclass_fields__", {})}
    made = outcome(lambda: cls(**INNER.get(cls, {}), **known))
    if is_refused(made, lambda: None):
        return
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    found = outcome(lambda: ConservativeLRP(MLP, Composite({"*": made})).attribute(x, target=1))
    if not is_refused(found, lambda: None):
        assert found.isfinite().all()


# ---- metrics ------------------------------------------------------------------------------------
CURVES = [
    metrics.activation_curve, metrics.pruning_curve, metrics.insertion_curve,
    metrics.deletion_curve, metrics.comprehensiveness, metrics.sufficiency, metrics.log_odds,
]  # fmt: skip
MASKERS: Any = st.sampled_from(
    [metrics.MaskTokens(0), metrics.RemoveTokens(keep=[1]), metrics.MaskPatches(2), None, 0, "mask"]
)


@MANY
@given(
    st.sampled_from(CURVES),
    tensors(width=5),
    tensors(width=5) | JUNK,
    INDICES | st.none() | st.lists(INDICES, max_size=3),
    MASKERS,
)
def test_metrics_of_anything(
    curve: Any, ids: Tensor, relevance: Any, target: Any, masker: Any
) -> None:
    found = outcome(lambda: curve(TEXT, ids, relevance, target, masker=masker))
    if is_refused(found, lambda: TEXT(ids)):
        return
    values = found.values if isinstance(found, metrics.Curve) else found
    assert len(values) == len(ids) and torch.as_tensor(values).isfinite().all()


@MANY
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=4)
    | JUNK
    | tensors().filter(lambda t: t.layout == torch.strided),
    NUMBERS | st.integers(-2, 50),
    NUMBERS,
)
def test_bootstrap_of_anything(values: Any, resamples: Any, confidence: Any) -> None:
    found = outcome(
        lambda: metrics.bootstrap_interval(values, resamples=resamples, confidence=confidence)
    )
    if not is_refused(found, lambda: None):
        # of few resamples it may leave the estimate out
        least, most = float(min(values)), float(max(values))
        error = 1e-9 * max(abs(least), abs(most))
        assert least - error <= found.low <= found.high + error <= most + 2 * error
        assert least - error <= found.estimate <= most + error
