"""Rules that other packages have, too: is the relevance the same?

``python benchmarks/parity.py --report benchmarks/parity.md`` in the environment of ``rivals.py``.
Every row is one explanation by the other package and one by this, of the same random model and
input, in float64 and in float32.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

import torch  # noqa: E402
from rival_families import build, inputs  # noqa: E402
from rival_tools import Explain, apart, by_lxt, patched_by_lxt, write  # noqa: E402
from rival_words import introduction, table  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from captum_lrp_tx import Composite, ConservativeLRP, rules  # noqa: E402

#: Epsilon of the row about it, large enough to be seen, and of all others.
SEEN, TINY = 0.1, 1e-9
LOW, HIGH = -3.0, 3.0
TARGET = 1
PLAIN = "MLP without activations"


class Head(nn.Module):
    """One attention head behind a root-mean-square norm, without biases or residual sums."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.out = nn.Linear(8, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes), of the first token."""
        h = x * (x.square().mean(-1, keepdim=True) + 1e-9).rsqrt()
        pattern = (self.q(h) @ self.k(h).transpose(-1, -2) / 8**0.5).softmax(-1)
        return self.out((pattern @ self.v(h))[:, 0])


def _mlp(bias: bool = True, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    layers = [nn.Linear(10, 16, bias), act(), nn.Linear(16, 16, bias), act()]
    return nn.Sequential(*layers, nn.Linear(16, 5, bias))


def _cnn(bias: bool) -> nn.Module:
    layers = [nn.Conv2d(3, 6, 3, padding=1, bias=bias), nn.ReLU()]
    layers += [nn.Conv2d(6, 8, 3, stride=2, bias=bias), nn.ReLU(), nn.Conv2d(8, 5, 3, bias=bias)]
    return nn.Sequential(*layers, nn.Flatten())


#: Models that are not in ``rival_families.py``, and the shapes of their inputs.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP": (_mlp, (2, 10)),
    "MLP with Tanh": (lambda: _mlp(act=nn.Tanh), (2, 10)),
    PLAIN: (lambda: nn.Sequential(nn.Linear(10, 16), nn.Linear(16, 16), *_mlp()[2::2]), (2, 10)),
    "MLP without biases": (lambda: _mlp(False), (2, 10)),
    "CNN": (lambda: _cnn(True), (2, 3, 8, 8)),
    "CNN without biases": (lambda: _cnn(False), (2, 3, 8, 8)),
    "attention head": (Head, (1, 6, 8)),
}


@dataclass(frozen=True)
class Row:
    """One comparison: a model, what the rule is called there and here, and both explanations."""

    model: str
    there: str
    here: str
    explain: Explain
    composite: str | Composite
    prepare: Callable[[str], None] = lambda family: None


# ---- zennit -------------------------------------------------------------------------------------
def _by_zennit(rule: Any, named: Any, model: nn.Module, x: Tensor, target: int) -> Tensor:
    from zennit.attribution import Gradient
    from zennit.composites import NameLayerMapComposite, layer_map_base
    from zennit.types import Linear

    composite = NameLayerMapComposite(
        [((name,), of) for name, of in named.items()], [*layer_map_base(TINY), (Linear, rule)]
    )
    with Gradient(model, composite) as attributor:
        start = torch.eye(model(x).shape[-1], dtype=x.dtype)[[target]]
        return attributor(x, lambda output: start * output)[1].detach()


def _of_zennit() -> list[Row]:
    theirs: Any = importlib.import_module("zennit.rules")
    plain = theirs.Epsilon(TINY)
    everywhere: list[tuple[Any, str, rules.LinearRule]] = [
        (theirs.Epsilon(SEEN), f"Epsilon({SEEN})", rules.EpsilonRule(epsilon=SEEN)),
        (theirs.Gamma(0.25, TINY), "Gamma(0.25)", rules.GeneralizedGammaRule(gamma=0.25)),
        (theirs.AlphaBeta(2, 1, TINY), "AlphaBeta(2, 1)", rules.AlphaBetaRule(alpha=2, beta=1)),
        (theirs.ZPlus(TINY), "ZPlus()", rules.ZPlusRule()),
    ]
    below: list[tuple[Any, str, rules.LinearRule]] = [
        (theirs.WSquare(TINY, ["bias"]), "WSquare(zero_params)", rules.WSquareRule()),
        (theirs.Flat(TINY), "Flat()", rules.FlatRule()),
        (theirs.ZBox(LOW, HIGH, TINY), f"ZBox({LOW}, {HIGH})", rules.ZBoxRule(low=LOW, high=HIGH)),
    ]
    rows = []
    for model in ("MLP", "CNN"):
        for rule, name, here in everywhere:
            explain = functools.partial(_by_zennit, rule, {})
            rows.append(Row(model, name, _name(here), explain, _everywhere(here)))
        for rule, name, here in below:
            explain = functools.partial(_by_zennit, plain, {"0": rule})
            first = _everywhere(rules.EpsilonRule(epsilon=TINY)).extend({"0": here})
            rows.append(Row(model, f"{name} below", f"{_name(here)} below", explain, first))
    explain = functools.partial(_by_zennit, plain, {"2": theirs.Pass()})
    return [*rows, *_passed("Pass()", explain)]


def _passed(name: str, explain: Explain) -> list[Row]:
    """Rows about a rule of the square layer in the middle, with the epsilon rule elsewhere."""
    here = _everywhere(rules.EpsilonRule(epsilon=TINY)).extend({"2": rules.PassRule()})
    names = (f"{name} in the middle", "PassRule in the middle")
    return [Row(model, *names, explain, here) for model in ("MLP with Tanh", PLAIN)]


def _name(rule: rules.Rule) -> str:
    return type(rule).__name__


def _everywhere(rule: rules.LinearRule) -> Composite:
    return Composite({nn.Linear: rule, nn.Conv2d: rule}, base="lrp")


# ---- Captum -------------------------------------------------------------------------------------
def _by_captum(rule: Any, middle: bool, model: Any, x: Tensor, target: int) -> Tensor:
    from captum.attr import LRP

    for layer in [model[2]] if middle else [m for m in model if hasattr(m, "weight")]:
        layer.rule = rule()
    if isinstance(model[-1], nn.Flatten):  # which it has no rule for, and nothing to do here
        return LRP(model[:-1]).attribute(x, target=(target, 0, 0)).detach()
    return LRP(model).attribute(x, target=target).detach()


def _of_captum() -> list[Row]:
    theirs: Any = importlib.import_module("captum.attr._utils.lrp_rules")
    compared: list[tuple[Any, str, rules.LinearRule]] = [
        (lambda: theirs.EpsilonRule(SEEN), f"EpsilonRule({SEEN})", rules.EpsilonRule(epsilon=SEEN)),
        (lambda: theirs.GammaRule(0.25), "GammaRule(0.25)", rules.GammaRule(gamma=0.25)),
        (theirs.Alpha1_Beta0_Rule, "Alpha1_Beta0_Rule()", rules.PositiveWeightRule()),
    ]
    rows = [
        Row(model, name, _name(here), functools.partial(_by_captum, rule, False), _everywhere(here))
        for model in ("MLP", "CNN")
        for rule, name, here in compared
    ]
    explain = functools.partial(_by_captum, theirs.IdentityRule, True)
    return [*rows, *_passed("IdentityRule()", explain)]


# ---- lxt ----------------------------------------------------------------------------------------
def _of_lxt() -> list[Row]:
    compared = [
        ("BERT", "attnLRP", "attnlrp"), ("GPT-2", "attnLRP", "attnlrp"),
        ("Llama", "attnLRP", "attnlrp"), ("Qwen2", "attnLRP", "attnlrp"),
        ("Gemma 3", "attnLRP", "attnlrp"), ("GPT-2", "cp_LRP", "lrp"),
        ("Llama", "cp_LRP", "lrp-gated"), ("Qwen2", "cp_LRP", "lrp-gated"),
        ("Gemma 3", "cp_LRP", "lrp-gated"), ("ViT (torchvision)", "cp_LRP", "lrp"),
    ]  # fmt: skip
    return [
        Row(model, table, f'rules="{here}"', by_lxt, here, patched_by_lxt(table))
        for model, table, here in compared
    ]


# ---- autoLRP ------------------------------------------------------------------------------------
def _by_autolrp(config: Any, model: nn.Module, x: Tensor, target: int) -> Tensor:
    import autolrp

    found = []
    for row in x.split(1):  # the relevance that it starts from is 1
        wrapped = autolrp.tensor(row)
        logit = model(wrapped)[0, target]
        logit.lrp(config=config)
        found.append(wrapped.relevance.detach().as_subclass(Tensor) * float(logit))
    return torch.cat(found)


def _of_autolrp() -> list[Row]:
    theirs: Any = importlib.import_module("autolrp")
    compared: list[tuple[str, dict[str, float], rules.LinearRule]] = [
        ("epsilon", {}, rules.EpsilonRule(epsilon=TINY)),
        ("gamma", {"gamma": 0.25}, rules.GeneralizedGammaRule(gamma=0.25)),
        ("gamma_montavon", {"gamma": 0.25}, rules.GammaRule(gamma=0.25)),
        ("alpha_beta", {"alpha": 2.0, "beta": 1.0}, rules.AlphaBetaRule(alpha=2, beta=1)),
        ("zplus", {}, rules.ZPlusRule()),
    ]
    rows = []
    for model in ("MLP without biases", "CNN without biases"):
        for name, options, here in compared:
            linear = theirs.on(("MmBackward", "ConvolutionBackward"), (name, options))
            config = theirs.LRPConfig(rule={**theirs.BASE, **linear}, eps=TINY)
            explain = functools.partial(_by_autolrp, config)
            rows.append(Row(model, name, _name(here), explain, _everywhere(here)))
    box = {"input_conv": ("zbox", {"low": LOW, "high": HIGH})}
    config = theirs.LRPConfig(rule={**theirs.BASE, **box}, eps=TINY)
    here = rules.ZBoxRule(low=LOW, high=HIGH)
    first = _everywhere(rules.EpsilonRule(epsilon=TINY)).extend({"0": here})
    explain = functools.partial(_by_autolrp, config)
    rows.append(Row("CNN without biases", "zbox below", "ZBoxRule below", explain, first))
    for preset, ours in (("cplrp", "lrp"), ("attnlrp", "attnlrp")):
        explain = functools.partial(_by_autolrp, getattr(theirs.LRPConfig, preset)())
        rows.append(Row("attention head", f"{preset}()", f'rules="{ours}"', explain, ours))
    return rows


PACKAGES: dict[str, tuple[str, Callable[[], list[Row]]]] = {
    "zennit": ("zennit", _of_zennit), "Captum": ("captum", _of_captum),
    "lxt": ("lxt", _of_lxt), "autoLRP": ("autolrp", _of_autolrp),
}  # fmt: skip


def difference(row: Row, dtype: torch.dtype) -> float:
    """The largest difference over the largest entry of the other package's relevance."""
    if row.model in MODELS:
        make, shape = MODELS[row.model]
        torch.manual_seed(0)
        model, x = make().eval(), torch.randn(shape)

        def again() -> nn.Module:
            return model.to(dtype)

        x = x.to(dtype)
    else:
        again = functools.partial(build, row.model, dtype=dtype)
        x = inputs(row.model, dtype=dtype)
    ours = ConservativeLRP(again(), row.composite).attribute(x, target=TARGET).detach()
    row.prepare(row.model)
    theirs = row.explain(again(), x.clone(), TARGET)
    return float((ours - theirs).abs().max() / theirs.abs().max())


INTRODUCTION = f"""Largest difference between both relevances over the largest entry. Random models
and inputs; epsilon is {TINY:.0e} on both sides where a rule has one, {SEEN} in the rows about it.
*Below* is the rule of the first layer, with the epsilon rule above. Activations hand relevance
through on both sides. autoLRP splits sums with biases or of several terms by magnitude and this
package by value, so they are compared where there are none: layers without biases, and an
attention head behind a norm without a residual sum, `lrp` and `attnlrp` by its presets (their
epsilon is 1e-11). BERT and the language models of lxt are those of `rival_families.py`. Of models
whose norms compute in float32 whatever the model is (Llama, Qwen2, Gemma 3) both columns are about
float32; lxt has an epsilon of 1e-10 in activations. Captum's `IdentityRule` differs where an
activation comes before its layer: zennit and this package agree there."""


def page() -> list[str]:
    """Measure."""
    lines = [*introduction("Parity with other packages", "parity"), *INTRODUCTION.splitlines(), ""]
    for title, (package, make) in PACKAGES.items():
        if importlib.util.find_spec(package) is None:
            continue
        lines += [f"## {title}", ""]
        lines += table(
            ["model", "rule there", "rule here", "float64", "float32"],
            [
                [row.model, f"`{row.there}`", f"`{row.here}`",
                 *(f"{apart(difference, row, d):.0e}" for d in (torch.float64, torch.float32))]
                for row in make()
            ],
        )  # fmt: skip
    return lines


if __name__ == "__main__":
    write(__doc__, page)
