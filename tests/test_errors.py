"""Every mistake gets a message that says what to do, and no failure leaves a trace in the model."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr._utils import lrp_rules as captum_rules
from torch import Tensor, nn

import zoo
from captum_lrp_tx import (
    Composite,
    ConservativeGI,
    ConservativeLRP,
    LayerConservativeGI,
    LayerConservativeLRP,
    audit,
)
from captum_lrp_tx.errors import (
    CaptumLRPError,
    CaptumLRPWarning,
    InputError,
    NonFiniteError,
    NoRuleAppliedWarning,
    OutputError,
    RuleError,
    TargetError,
    TrainingModeWarning,
    UncoveredOperationError,
    UncoveredOperationWarning,
    UnreachedInputError,
    UnstableRelevanceWarning,
    UnsupportedModelError,
)
from captum_lrp_tx.propagation.operations import Kind
from captum_lrp_tx.rules import (
    AHRule,
    AlphaBetaRule,
    EpsilonRule,
    FlatRule,
    GammaRule,
    GeneralizedGammaRule,
    LNRule,
    Rule,
    ZBoxRule,
    ZPlusRule,
)

pytestmark = [pytest.mark.core, pytest.mark.captum]

BOTH = pytest.mark.parametrize("cls", [ConservativeGI, ConservativeLRP])
Untouched = Callable[[nn.Module], Any]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


class Block(nn.Module):
    """A transformer block by hand, with a place to hang something into."""

    def __init__(self, extra: nn.Module | None = None, width: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.extra = nn.Identity() if extra is None else extra
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v))
        x = self.extra(x)
        return self.head(self.drop(x + self.mlp(x)).mean(1))


class Call(nn.Module):
    """Runs a function inside a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


@pytest.fixture
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", CaptumLRPWarning)
        yield


def caught(record: list[Any], category: type[Warning]) -> list[str]:
    return [str(w.message) for w in record if issubclass(w.category, category)]


# ---- rules --------------------------------------------------------------------------------------
@BOTH
def test_unknown_preset(cls: Any) -> None:
    with pytest.raises(RuleError, match=r"Unknown preset 'lrpp'.*ah\+ln.*attnlrp"):
        cls(mlp(), rules="lrpp")


@BOTH
@pytest.mark.parametrize("rules", [{nn.Linear: GammaRule()}, 3, None, EpsilonRule(), ["lrp"]])
def test_rules_of_a_wrong_type(cls: Any, rules: Any) -> None:
    with pytest.raises(RuleError, match=r"preset name or a Composite.*Composite\(\{"):
        cls(mlp(), rules=rules)


@pytest.mark.parametrize("value", [GammaRule, "gamma", 0.25, nn.ReLU(), [GammaRule(), LNRule]])
def test_composite_values_of_a_wrong_type(value: Any) -> None:
    with pytest.raises(RuleError) as error:
        Composite({nn.Linear: value})
    assert "rule" in str(error.value)
    if value is GammaRule:
        assert "an instance, not the class" in str(error.value)


@pytest.mark.parametrize("key", [3, None, nn.Linear(2, 2).weight, int, ("a", "b"), EpsilonRule])
def test_composite_keys_of_a_wrong_type(key: Any) -> None:
    with pytest.raises(RuleError, match="module type, a module, a name pattern or a predicate"):
        Composite([(key, GammaRule())])


@pytest.mark.parametrize("rules", [5, [1, 2], [(nn.Linear,)], None])
def test_composites_of_something_else(rules: Any) -> None:
    with pytest.raises(RuleError, match="must map"):
        Composite(rules)


def test_composite_base_of_a_wrong_type() -> None:
    with pytest.raises(RuleError, match="Unknown preset 7"):
        Composite(base=7)  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", ["layers.*.dense", re.compile(r"layers\.\d+")])
def test_name_pattern_that_matches_nothing(pattern: Any, untouched: Untouched) -> None:
    model = mlp()
    method = ConservativeLRP(model, rules=Composite({pattern: GammaRule()}, base="lrp"))
    with untouched(model), pytest.raises(RuleError, match="matches no module") as error:
        method.attribute(torch.randn(2, 4), target=0)
    assert "layers" in str(error.value)
    assert "'0'" in str(error.value)


def test_composite_without_a_module_behind_the_forward_function() -> None:
    method = ConservativeGI(lambda x: x.sum(1), rules=Composite({nn.Linear: GammaRule()}))
    with pytest.raises(RuleError, match=r"no module was found.*pass the model itself"):
        method.attribute(torch.randn(2, 4))


@pytest.mark.parametrize(
    "rule", [EpsilonRule, GammaRule, GeneralizedGammaRule, ZPlusRule, FlatRule]
)
@pytest.mark.parametrize("epsilon", [-0.1, float("nan")])
def test_negative_epsilon(rule: Any, epsilon: float) -> None:
    with pytest.raises(RuleError, match="epsilon must be a number >= 0, not True"):
        ConservativeLRP(mlp(), epsilon=True)
    with pytest.raises(RuleError, match="epsilon must be a number >= 0"):
        rule(epsilon=epsilon)
    with pytest.raises(RuleError, match="epsilon"):
        ConservativeLRP(mlp(), epsilon=epsilon)


@pytest.mark.parametrize("rule", [GammaRule, GeneralizedGammaRule])
def test_negative_gamma(rule: Any) -> None:
    with pytest.raises(RuleError, match="gamma must be a number >= 0"):
        rule(gamma=-1.0)


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 0.0), (0.5, -0.5), (1.0, 1.0)])
def test_alpha_beta_that_does_not_conserve(alpha: float, beta: float) -> None:
    with pytest.raises(RuleError, match=f"alpha={alpha}, beta={beta}"):
        AlphaBetaRule(alpha=alpha, beta=beta)


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (2.0, -2.0)])
def test_a_box_that_holds_nothing(bounds: Any) -> None:
    with pytest.raises(RuleError, match="needs low < high"):
        ZBoxRule(*bounds)


@pytest.mark.parametrize("bias", ["drop", 0, True])
def test_unknown_bias(bias: Any) -> None:
    with pytest.raises(RuleError, match="absorb"):
        ConservativeLRP(mlp(), bias=bias)
    with pytest.raises(RuleError, match="absorb"):
        EpsilonRule(bias=bias)


def test_epsilon_without_a_rule_for_linear_layers() -> None:
    with pytest.raises(RuleError, match=r"'ah\+ln' has no rule for linear layers"):
        ConservativeLRP(mlp(), rules="ah+ln", epsilon=0.1)


class OwnRule(captum_rules.EpsilonRule):
    """A Captum rule of a user."""


@pytest.mark.parametrize("rule", [1, "gamma", OwnRule(), captum_rules.GammaRule, GammaRule])
def test_module_rule_that_cannot_be_used(rule: Any, untouched: Untouched) -> None:
    model = mlp()
    method = ConservativeLRP(model)
    model[2].rule = rule
    with untouched(model), pytest.raises(RuleError, match="Module '2' has rule=") as error:
        ConservativeLRP(model)
    if isinstance(rule, captum_rules.PropagationRule):
        assert "captum_lrp_tx.rules.LinearRule" in str(error.value)
    with pytest.raises(RuleError, match="Module '2'"):
        LayerConservativeLRP(model, model[0])
    with untouched(model), pytest.raises(RuleError, match="Module '2'"):
        method.attribute(torch.randn(2, 4), target=0)
    assert model[2].rule is rule


def test_identity_rule_on_a_layer_that_changes_the_shape(untouched: Untouched) -> None:
    model = mlp()
    model[0].rule = captum_rules.IdentityRule()
    with untouched(model), pytest.raises(RuleError, match=r"\(2, 4\) -> \(2, 6\)"):
        ConservativeLRP(model).attribute(torch.randn(2, 4), target=0)


# ---- warnings about what the rules did ----------------------------------------------------------
def test_no_rule_applied_is_told_once_per_model_and_rule_set(untouched: Untouched) -> None:
    model, x = mlp(), torch.randn(2, 4)
    with untouched(model), pytest.warns(NoRuleAppliedWarning) as record:
        ConservativeGI(model).attribute(x, target=0)
    (message,) = caught(list(record), NoRuleAppliedWarning)
    assert "'ah+ln'" in message
    assert "equals plain gradient x input" in message
    assert record[0].filename == __file__  # points at the user's line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ConservativeGI(model).attribute(x, target=1)
        ConservativeGI(model.forward).attribute(x, target=1)
        ConservativeGI(model, rules="gi").attribute(x, target=1)
        ConservativeLRP(model).attribute(x, target=1)
    with pytest.warns(NoRuleAppliedWarning, match="'ah'"):
        ConservativeGI(model, rules="ah").attribute(x, target=0)
    with pytest.warns(NoRuleAppliedWarning):
        ConservativeGI(mlp()).attribute(x, target=0)


UNCOVERED: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "tan": torch.tan,
    "log": lambda x: (x * x + 1).log(),
    "cosine": lambda x: torch.cos(x),
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "reciprocal": lambda x: 1.0 / (x * x + 1),
    "cumprod": lambda x: x.cumprod(-1),
}


@pytest.mark.parametrize("name", UNCOVERED)
def test_uncovered_operations(name: str, untouched: Untouched) -> None:
    model, x = Block(Call(UNCOVERED[name])).eval(), torch.randn(2, 5, 8)
    with untouched(model), pytest.warns(UncoveredOperationWarning) as record:
        relevance = ConservativeLRP(model).attribute(x, target=0)
    assert torch.isfinite(relevance).all()
    (message,) = caught(list(record), UncoveredOperationWarning)
    assert "extra" in message
    assert "explainability" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ConservativeLRP(model).attribute(x, target=1)  # told once
    with untouched(model), pytest.raises(UncoveredOperationError) as error:
        ConservativeLRP(model).attribute(x, target=0, strict=True)
    assert any("extra" in operation for operation in error.value.operations)
    assert "strict=False" in str(error.value)
    layered = LayerConservativeLRP(model, model.norm)
    with untouched(model), pytest.raises(UncoveredOperationError, match="extra"):
        layered.attribute(x, target=0, strict=True)
    # nothing uncovered lies above the last part
    LayerConservativeLRP(model, model.mlp).attribute(x, target=0, strict=True)


def test_a_failed_first_call_does_not_swallow_the_warning() -> None:
    model, x = Block(Call(torch.exp)).eval(), torch.randn(2, 5, 8)
    with pytest.raises(TargetError):
        ConservativeLRP(model).attribute(x)
    with pytest.warns(UncoveredOperationWarning, match="extra"):
        ConservativeLRP(model).attribute(x, target=0)


def test_a_layer_above_does_not_swallow_the_warning_of_the_inputs() -> None:
    model, x = Block(Call(torch.exp)).eval(), torch.randn(2, 5, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UncoveredOperationWarning)
        LayerConservativeLRP(model, model.mlp).attribute(x, target=0)
    with pytest.warns(UncoveredOperationWarning, match="path to the inputs.*extra"):
        ConservativeLRP(model).attribute(x, target=0)


def test_ah_ln_leaves_activations_and_gates_to_the_gradient(no_warnings: None) -> None:
    model = Block(Call(lambda x: torch.exp(x) * torch.sigmoid(x))).eval()
    ConservativeGI(model).attribute(torch.randn(2, 5, 8), target=0, strict=True)


@pytest.mark.parametrize("rules", ["lrp", "attnlrp", "ah+ln", "gi"])
def test_what_is_covered_gives_no_warning(rules: str, no_warnings: None) -> None:
    model = Block().eval()
    ConservativeGI(model, rules=rules).attribute(torch.randn(2, 5, 8), target=0, strict=True)


def test_products_of_the_input_with_itself_are_plain_under_ah_ln_and_shared_under_lrp() -> None:
    """Nothing tells weights from values here; with a feature map it would be linear attention."""

    def products(x: Tensor) -> Tensor:
        return x @ (x.transpose(1, 2) @ x)

    model = Block(Call(products)).eval()
    x = torch.randn(2, 5, 8)
    ConservativeGI(model).attribute(x, target=0, strict=True)
    findings = audit.explainability(model, x, 0, rules="ah+ln", file=None).findings
    told = [f for f in findings if "matrix product" in f.what]
    assert told and all("extra" in f.module and not f.is_fault for f in told)
    ConservativeLRP(model).attribute(x, target=0, strict=True)


class ForeignKernel(torch.autograd.Function):
    """An attention kernel that no function mode sees into."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.softmax(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


@pytest.mark.parametrize("rules", ["lrp", "ah+ln"])
def test_custom_autograd_functions_are_reported(rules: str) -> None:
    model = Block(Call(ForeignKernel.apply)).eval()
    with pytest.warns(UncoveredOperationWarning, match="custom autograd function"):
        ConservativeGI(model, rules=rules).attribute(torch.randn(2, 5, 8), target=0)


@BOTH
def test_training_mode_with_dropout(cls: Any, untouched: Untouched) -> None:
    model = Block().train()
    with untouched(model), pytest.warns(TrainingModeWarning, match=r"dropout.*model\.eval\(\)"):
        cls(model).attribute(torch.randn(2, 5, 8), target=0)
    assert model.training and model.drop.training


def test_training_mode_of_batch_norm(untouched: Untouched) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False))
    with untouched(model), pytest.warns(TrainingModeWarning, match="batch statistics"):
        ConservativeLRP(model).attribute(torch.randn(3, 4), target=0)


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (lambda x: x * x.new_empty(len(x), 1, 1).bernoulli_(0.9) / 0.9, "bernoulli_"),
        (lambda x: x * (torch.rand(len(x), 1, 1) > 0.1), "rand"),
        (lambda x: x + torch.randn_like(x) * 0.1, "randn_like"),
        (lambda x: x * torch.no_grad()(torch.rand)(len(x), 1, 1), "rand"),
        (lambda x: x + torch.distributions.Normal(0.0, x.new_ones(1)).sample(), "normal"),
        (lambda x: nn.functional.rrelu(x, training=True), "rrelu"),
    ],
)
def test_numbers_drawn_by_hand(draw: Any, name: str, untouched: Untouched) -> None:
    """Stochastic depth, as in timm, and noise."""
    model = Block(Call(draw)).eval()
    with untouched(model), pytest.warns(TrainingModeWarning, match=rf"torch\.{name}\."):
        ConservativeLRP(model).attribute(torch.randn(2, 5, 8), target=0)


def test_dropout_without_gradients(untouched: Untouched) -> None:
    model = Block(Call(lambda x: x * torch.no_grad()(nn.functional.dropout)(torch.ones(8)))).eval()
    with untouched(model), pytest.warns(TrainingModeWarning, match=r"dropout.*model\.eval\(\)"):
        ConservativeLRP(model).attribute(torch.randn(2, 5, 8), target=0)


def test_training_mode_without_anything_random(no_warnings: None) -> None:
    ConservativeLRP(mlp().train()).attribute(torch.randn(2, 4), target=0)
    for call in (nn.functional.rrelu, nn.functional.alpha_dropout):  # in no training mode
        model = Block(Call(call)).eval()
        ConservativeLRP(model).attribute(torch.randn(2, 5, 8), target=0)


# ---- inputs -------------------------------------------------------------------------------------
@BOTH
def test_integer_inputs_without_an_embedding(cls: Any, untouched: Untouched) -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.float())

    model = Cast()
    with untouched(model), pytest.raises(InputError, match="did not look them up") as error:
        cls(model).attribute(torch.ones(2, 4, dtype=torch.long), target=0)
    assert "(2, 4)" in str(error.value)
    assert "additional_forward_args" in str(error.value)


@BOTH
@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64])
def test_inputs_of_a_dtype_without_relevance(cls: Any, dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=f"{dtype}.*additional_forward_args"):
        cls(mlp()).attribute(torch.ones(2, 4, dtype=dtype), target=0)


@BOTH
@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0,)])
def test_empty_inputs(cls: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"input 0 is empty \(shape"):
        cls(mlp()).attribute(torch.ones(shape), target=0)


@BOTH
@pytest.mark.parametrize("inputs", [(), [], None, "a film", 3, {}, {"attention_mask": 1}])
def test_inputs_of_a_wrong_type(cls: Any, inputs: Any) -> None:
    with pytest.raises(InputError, match=r"inputs must be|nothing to attribute"):
        cls(mlp()).attribute(inputs, target=0)


@BOTH
def test_something_else_among_the_inputs(cls: Any) -> None:
    with pytest.raises(InputError, match=r"input 1 is of type float.*additional_forward_args"):
        cls(mlp()).attribute((torch.ones(2, 4), 0.5), target=0)


@BOTH
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_inputs_that_are_not_finite(cls: Any, bad: float, untouched: Untouched) -> None:
    model, x = mlp(), torch.randn(2, 4)
    x[1, 2] = bad
    with untouched(model), pytest.raises(NonFiniteError, match="input 0 contains NaN or inf"):
        cls(model).attribute(x, target=0)
    with pytest.raises(NonFiniteError, match=r"inputs\['pixel_values'\]"):
        cls(model).attribute({"pixel_values": x}, target=0)


@BOTH
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(cls: Any, bad: float, untouched: Untouched) -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = bad
    with untouched(model), pytest.raises(NonFiniteError, match=r"2\.weight"):
        cls(model).attribute(torch.randn(2, 4).abs(), target=0)


@BOTH
def test_output_that_is_not_finite(cls: Any, untouched: Untouched) -> None:
    model = nn.Sequential(nn.Linear(4, 3), Call(lambda x: x / 0.0))
    with untouched(model), pytest.raises(NonFiniteError, match="output is NaN or infinite"):
        cls(model).attribute(torch.randn(2, 4), target=0)


# ---- targets ------------------------------------------------------------------------------------
@BOTH
def test_target_missing(cls: Any, untouched: Untouched) -> None:
    model = mlp()
    with untouched(model), pytest.raises(TargetError, match=r"\(2, 3\).*Pass target="):
        cls(model).attribute(torch.randn(2, 4))


@BOTH
@pytest.mark.parametrize(
    "target",
    [
        3, -4, torch.tensor(3), [0, 3], torch.tensor([0, 7]), [0], [0, 1, 2],
        torch.tensor([0, 1, 2]), (0, 1), [(0, 1), (0, 2)], "positive", 1.5, [0.5, 1.5],
        torch.tensor([[0], [1]]), {0: 1}, torch.tensor([0.0, 1.0]),
    ],
    ids=str,
)  # fmt: skip
def test_target_that_does_not_fit(cls: Any, target: Any, untouched: Untouched) -> None:
    model = mlp()
    with untouched(model), pytest.raises(TargetError) as error:
        cls(model).attribute(torch.randn(2, 4), target=target)
    assert isinstance(error.value, AssertionError)
    assert "(2, 3)" in str(error.value)


@BOTH
def test_target_for_a_single_number(cls: Any) -> None:
    with pytest.raises(TargetError, match="target must be None"):
        cls(lambda x: x.sum()).attribute(torch.randn(2, 4), target=0)


# ---- outputs ------------------------------------------------------------------------------------
@BOTH
@pytest.mark.parametrize(
    "output", [None, 3.0, "text", {"scores": 1}, (torch.ones(2), torch.ones(2)), []], ids=str
)
def test_output_that_is_no_tensor(cls: Any, output: Any, untouched: Untouched) -> None:
    model = nn.Sequential(nn.Linear(4, 3), Call(lambda x: output))
    with untouched(model), pytest.raises(OutputError, match=r"returned \w+ without \.logits"):
        cls(model).attribute(torch.randn(2, 4), target=0)


@BOTH
def test_output_of_integers(cls: Any, untouched: Untouched) -> None:
    model = nn.Sequential(nn.Linear(4, 3), Call(lambda x: x.argmax(-1)))
    with untouched(model), pytest.raises(OutputError, match=r"torch\.int64.*return logits"):
        cls(model).attribute(torch.randn(2, 4))


@BOTH
def test_inputs_that_do_not_reach_the_output(cls: Any, untouched: Untouched) -> None:
    model = nn.Sequential(nn.Linear(4, 3), Call(lambda x: torch.ones_like(x)))
    with untouched(model), pytest.raises(UnreachedInputError, match="does not depend on the"):
        cls(model).attribute(torch.randn(2, 4), target=0)


@BOTH
def test_one_of_two_inputs_does_not_reach_the_output(cls: Any, untouched: Untouched) -> None:
    model = mlp()
    forward = lambda x, y: model(x) + 0.0 * y.detach().sum()  # noqa: E731
    with untouched(model), pytest.raises(UnreachedInputError, match=r"input number 1.*additional"):
        cls(forward).attribute((torch.randn(2, 4), torch.randn(2, 4)), target=0)


@BOTH
def test_queries_may_get_nothing(cls: Any) -> None:
    """A rule that cuts an input off is no mistake: queries and keys of a constant pattern."""
    attend = Call(lambda q, k, v: F.scaled_dot_product_attention(q, k, v).sum((1, 2)))
    q, k, v = torch.randn(3, 2, 5, 4).unbind()
    relevance = cls(attend).attribute((q, k, v))
    assert relevance[0].eq(0).all() and relevance[1].eq(0).all()
    assert relevance[2].ne(0).any()


@BOTH
def test_output_computed_without_gradients(cls: Any, untouched: Untouched) -> None:
    model = mlp()

    @torch.no_grad()
    def forward(x: Tensor) -> Tensor:
        return model(x)

    with untouched(model), pytest.raises(UnreachedInputError, match=r"torch\.no_grad\(\)"):
        cls(forward).attribute(torch.randn(2, 4), target=0)


# ---- models that hide their operations ----------------------------------------------------------
@BOTH
def test_compiled_model(cls: Any, untouched: Untouched) -> None:
    inner = mlp()
    try:
        model = torch.compile(inner)
    except RuntimeError as error:
        pytest.skip(str(error))
    with untouched(inner), pytest.raises(UnsupportedModelError, match="_orig_mod"):
        cls(model).attribute(torch.randn(2, 4), target=0)
    assert cls(model._orig_mod).attribute(torch.randn(2, 4), target=0).shape == (2, 4)
    outer = nn.Sequential(model)
    with pytest.raises(UnsupportedModelError, match="Module '0' is compiled"):
        cls(outer).attribute(torch.randn(2, 4), target=0)


@BOTH
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit.*")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_model(cls: Any, how: str) -> None:
    inner, x = mlp(), torch.randn(2, 4)
    try:
        model = torch.jit.script(inner) if how == "script" else torch.jit.trace(inner, x)
    except RuntimeError as error:
        pytest.skip(str(error))
    with pytest.raises(UnsupportedModelError, match="TorchScript"):
        cls(model).attribute(x, target=0)
    with pytest.raises(UnsupportedModelError, match="Module '0' is a TorchScript"):
        cls(nn.Sequential(model)).attribute(x, target=0)


@BOTH
def test_model_that_is_not_callable(cls: Any) -> None:
    with pytest.raises(CaptumLRPError, match=r"nn\.Module or a callable, not int"):
        cls(3).attribute(torch.randn(2, 4), target=0)
    with pytest.raises(CaptumLRPError, match="a callable, not the class Linear"):
        cls(nn.Linear).attribute(torch.randn(2, 4), target=0)
    with pytest.raises(CaptumLRPError, match="not Linear; relevance at a layer is Layer"):
        cls(nn.Sequential(nn.Linear(4, 2)), nn.Linear(4, 2))


# ---- layers -------------------------------------------------------------------------------------
LAYERS = pytest.mark.parametrize("cls", [LayerConservativeGI, LayerConservativeLRP])


@LAYERS
@pytest.mark.parametrize("layer", ["0", 0, None, [], [3], ("a",), nn.Linear], ids=str)
def test_layer_of_a_wrong_type(cls: Any, layer: Any) -> None:
    with pytest.raises(InputError, match=r"layer must be an nn\.Module of the model or"):
        cls(mlp(), layer)
    if layer in ("0", None):
        with pytest.raises(InputError, match="get_submodule" if layer else "For TCAV"):
            cls(mlp(), layer)


@LAYERS
def test_layers_of_ids(cls: Any) -> None:
    """No message sends to a place that sends back."""
    model = nn.Sequential(nn.Identity(), nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 2))
    ids = torch.tensor([[1, 2]])
    for at_input, way in ((False, "of token ids the embedding"), (True, "that this goes to")):
        with pytest.raises(UnreachedInputError, match=way):
            cls(model, model[0]).attribute(ids, target=0, attribute_to_layer_input=at_input)
    model.twin = nn.Embedding(9, 4)
    model.twin.weight = model[1].weight
    model.forward = lambda x: model[3](model[2](model[1](x)))  # type: ignore[method-assign]
    with pytest.raises(UnreachedInputError, match=r"did not run .*shares weights with '1'\)"):
        cls(model, model.twin).attribute(ids, target=0)
    model.twins = nn.Sequential(nn.Linear(4, 4))  # those that it holds are no others
    with pytest.raises(UnreachedInputError, match=r"Give one that does\.$"):
        cls(model, model.twins).attribute(ids, target=0)


@LAYERS
@pytest.mark.parametrize("at_input", [False, True])
def test_layer_that_does_not_run(cls: Any, at_input: bool, untouched: Untouched) -> None:
    model = mlp()
    model.unused = nn.Linear(3, 3)
    model.forward = lambda x: model[2](model[1](model[0](x)))  # type: ignore[method-assign]
    with untouched(model), pytest.raises(UnreachedInputError, match="Linear did not run"):
        cls(model, [model[0], model.unused]).attribute(
            torch.randn(2, 4), target=0, attribute_to_layer_input=at_input
        )
    foreign = nn.Conv1d(1, 1, 1)
    with (
        untouched(model),
        pytest.raises(UnreachedInputError, match="Conv1d is no part of the model"),
    ):
        cls(model, foreign).attribute(torch.randn(2, 4), target=0)
    assert not foreign._forward_hooks


@LAYERS
def test_layers_that_never_run_say_what_to_give(cls: Any, untouched: Untouched) -> None:
    class Listed(nn.Module):
        def __init__(self, blocks: Any) -> None:
            super().__init__()
            self.blocks = blocks

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks.values() if hasattr(self.blocks, "values") else self.blocks:
                x = block(x)
            return x

    x = torch.randn(2, 3)
    model: Any = Listed(nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)]))
    with untouched(model), pytest.raises(UnreachedInputError, match=r"ModuleList.*list\(it\)"):
        cls(model, model.blocks).attribute(x, target=0)
    assert len(cls(model, list(model.blocks)).attribute(x, target=0)) == 2
    twin = copy.deepcopy(model)
    message = "Linear is no part of the model .*nor is a copy.* such as the one named 'blocks.0'"
    with untouched(model), pytest.raises(UnreachedInputError, match=message):
        cls(model, twin.blocks[0]).attribute(x, target=0)
    assert cls(model, model.get_submodule("blocks.0")).attribute(x, target=0).shape == x.shape
    by_name: Any = Listed(nn.ModuleDict({"a": nn.Linear(3, 3)}))
    with pytest.raises(UnreachedInputError, match=r"ModuleDict.*list\(it\.values\(\)\)"):
        cls(by_name, by_name.blocks).attribute(x, target=0)
    assert len(cls(by_name, list(by_name.blocks.values())).attribute(x, target=0)) == 1


@LAYERS
def test_layer_that_does_not_influence_the_output(cls: Any, untouched: Untouched) -> None:
    class Side(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.side = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.side(x)
            return self.main(x)

    model = Side()
    with untouched(model), pytest.raises(UnreachedInputError, match="does not depend on"):
        cls(model, model.side).attribute(torch.randn(2, 4), target=0)


# ---- exceptions from elsewhere ------------------------------------------------------------------
class Boom(Exception):
    """Raised by the model."""


def _explode(kind: type[BaseException]) -> Callable[[Tensor], Tensor]:
    def explode(x: Tensor) -> Tensor:
        raise kind("from the model")

    return explode


def methods(model: nn.Module, layer: nn.Module) -> list[Any]:
    gamma = Composite({nn.Linear: GammaRule(), "*": AHRule()}, base="lrp")
    return [
        ConservativeGI(model), ConservativeLRP(model), ConservativeLRP(model, rules=gamma),
        LayerConservativeGI(model, layer),
        LayerConservativeLRP(model, layer, rules=gamma),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [Boom, KeyboardInterrupt, MemoryError, SystemExit])
def test_exceptions_inside_the_forward_pass(
    kind: type[BaseException], untouched: Untouched
) -> None:
    model, x = Block(Call(_explode(kind))).eval(), torch.randn(2, 5, 8)
    for method in methods(model, model.qkv):
        with untouched(model), pytest.raises(kind, match="from the model"):
            method.attribute(x, target=0)
    assert torch.is_grad_enabled()
    # the same model still works once it is mended, with the same results as a fresh one
    model.extra = nn.Identity()
    fresh = Block().eval()
    fresh.load_state_dict(model.state_dict())
    for mended, new in zip(methods(model, model.qkv), methods(fresh, fresh.qkv), strict=True):
        assert torch.equal(mended.attribute(x, target=0), new.attribute(x, target=0))


@pytest.mark.parametrize("kind", [Boom, KeyboardInterrupt])
def test_exceptions_inside_the_backward_pass(
    kind: type[BaseException], untouched: Untouched
) -> None:
    def hooked(x: Tensor) -> Tensor:
        def hook(grad: Tensor) -> None:
            raise kind("from a tensor hook")

        if x.requires_grad:
            x.register_hook(hook)
        return x * 1.0

    model, x = Block(Call(hooked)).eval(), torch.randn(2, 5, 8)
    for method in methods(model, model.qkv):
        with untouched(model), pytest.raises(kind, match="from a tensor hook"):
            method.attribute(x, target=0)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("kind", [Boom, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["pre", "post"])
def test_users_own_hooks_that_raise(
    kind: type[BaseException], where: str, untouched: Untouched
) -> None:
    def hook(*_: Any) -> None:
        raise kind("from a user's hook")

    model, x = Block().eval(), torch.randn(2, 5, 8)
    register = "register_forward_pre_hook" if where == "pre" else "register_forward_hook"
    getattr(model.proj, register)(hook)
    for method in methods(model, model.qkv):
        with untouched(model), pytest.raises(kind, match="from a user's hook"):
            method.attribute(x, target=0)


def test_users_own_hooks_are_kept_and_run(untouched: Untouched) -> None:
    seen: list[str] = []
    model, x = Block().eval(), torch.randn(2, 5, 8)
    model.proj.register_forward_hook(lambda m, a, o: seen.append("forward") or o * 2.0)
    model.proj.register_forward_pre_hook(lambda m, a: seen.append("pre"))
    for method in methods(model, model.qkv):
        seen.clear()
        with untouched(model):
            method.attribute(x, target=0)
        assert seen == ["pre", "forward"]


def test_rule_that_raises(untouched: Untouched) -> None:
    class Broken(EpsilonRule):
        def propagate(self, operation: Any) -> Tensor:
            raise Boom("from a rule")

    model = Block().eval()
    composite = Composite({"mlp.*": Broken()}, base="lrp")
    with untouched(model), pytest.raises(Boom, match="from a rule"):
        ConservativeLRP(model, rules=composite).attribute(torch.randn(2, 5, 8), target=0)


def test_exceptions_in_the_forward_pass_of_a_hugging_face_model(untouched: Untouched) -> None:
    case = zoo.case("hf-BertForSequenceClassification-sdpa")
    for module in (m for n, m in case.model.named_modules() if n.count(".") == 3):
        handle = module.register_forward_hook(lambda *_: _explode(KeyboardInterrupt)(_[0]))
        with untouched(case.model), pytest.raises(KeyboardInterrupt):
            ConservativeLRP(case.model).attribute(case.inputs[0], target=case.target)
        handle.remove()


def test_all_exceptions_have_one_base_and_captums_base() -> None:
    errors = (
        RuleError, InputError, TargetError, OutputError, NonFiniteError, UnreachedInputError,
        UnsupportedModelError, UncoveredOperationError,
    )  # fmt: skip
    assert all(issubclass(error, CaptumLRPError) for error in errors)
    assert issubclass(RuleError, ValueError) and issubclass(TargetError, AssertionError)
    for warning in (UncoveredOperationWarning, NoRuleAppliedWarning, TrainingModeWarning):
        assert issubclass(warning, CaptumLRPWarning)
        assert issubclass(warning, UserWarning)


class Square(nn.Module):
    """An operator of Python between tensors."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x


@pytest.mark.parametrize("error", CaptumLRPError.__subclasses__())
def test_errors_of_a_rule_come_out_of_operators(error: type[CaptumLRPError]) -> None:
    class Refusing(Rule):
        kinds = frozenset({Kind.PRODUCT})

        def propagate(self, operation: Any) -> Tensor:
            raise error("take another rule")

    with pytest.raises(error, match="take another rule"):
        ConservativeLRP(Square(), Composite({Square: Refusing()})).attribute(torch.ones(1, 3), 0)


def test_relevance_that_explodes_is_warned_about() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1))
    with torch.no_grad():  # the first layer's output is its bias, but for 1e-7
        model[0].weight.fill_(1e-7)
        model[0].bias.fill_(1.0)
    x = torch.ones(1, 4)
    with pytest.warns(UnstableRelevanceWarning, match="Raise epsilon"):
        balanced = torch.tensor([[1.0, 1.0, -1.0, -0.9999999]])
        ConservativeLRP(model, bias="ignore", epsilon=0.0).attribute(balanced)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ConservativeLRP(model).attribute(x)


class FlashAttnFunc(torch.autograd.Function):
    """Stands in for the function of the same name in the flash-attn package."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


def test_foreign_attention_kernels_say_which_switch_to_set() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return FlashAttnFunc.apply(x)

    with pytest.raises(UncoveredOperationError, match="attn_implementation='sdpa'"):
        ConservativeGI(Model()).attribute(torch.randn(2, 3), target=0, strict=True)
