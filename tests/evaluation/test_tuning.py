"""Choosing gamma for each kind of linear layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from captum_lrp_tx import ConservativeLRP, metrics, models
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.evaluation import ImageExamples, TextExamples, linear_layers, tune
from captum_lrp_tx.evaluation.tuning import composite_of

TEXTS = [
    "a charming and funny film",
    "dull and lifeless , a waste of time",
    "not bad at all",
    "the worst movie of the year",
]


class Block(torch.nn.Module):
    """Attention and an MLP in one module, as a hand-written model may have them."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (torch.nn.Linear(8, 8) for _ in range(4))
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 8)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pattern = (self.query(x) @ self.key(x).transpose(-1, -2)).softmax(-1)
        x = x + self.out(pattern @ self.value(x))
        made: torch.Tensor = x + self.mlp(x)
        return made


def test_layers_of_a_hand_written_model() -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 8),
        torch.nn.Sequential(Block(), Block()),
        torch.nn.Flatten(),
        torch.nn.Linear(24, 3),
    ).eval()
    found = linear_layers(model, torch.randn(2, 3, 4))
    attention = {f"1.{b}.{part}" for b in (0, 1) for part in ("query", "key", "value", "out")}
    # relevance does not go through queries and keys, but they are linear operations of their own
    assert {f"1.{b}.{part}" for b in (0, 1) for part in ("value", "out")} <= set(found["attention"])
    assert set(found["attention"]) <= attention
    assert set(found["mlp"]) == {f"1.{b}.mlp.{i}" for b in (0, 1) for i in (0, 2)}
    assert set(found["rest"]) == {"0", "3"}


def test_layers_of_torch_modules() -> None:
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = torch.nn.Sequential(encoder, torch.nn.Flatten(), torch.nn.Linear(80, 3)).eval()
    assert linear_layers(model, torch.randn(1, 5, 16)) == {
        "attention": ("0.layers.0.self_attn", "0.layers.1.self_attn"),
        "mlp": tuple(f"0.layers.{b}.linear{i}" for b in (0, 1) for i in (1, 2)),
        "rest": ("2",),
    }


def areas(model: Any, tokenizer: Any, explainer: Any) -> tuple[float, float]:
    """Means of both metrics, one text after the other."""
    masker = metrics.MaskTokens.from_tokenizer(tokenizer)
    found = []
    for text in TEXTS:
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            target = int(model(**inputs).logits.argmax())
        relevance = explainer.attribute(inputs, target=target)
        common: Any = {"attributions": relevance, "target": target, "masker": masker}
        curves = (metrics.activation_curve, metrics.pruning_curve)
        found.append([float(curve(model, inputs, **common).mean) for curve in curves])
    auac, au_mse = torch.tensor(found).mean(0).tolist()
    return auac, au_mse


def test_trials_are_what_the_metrics_say() -> None:
    model, tokenizer = models.sentiment()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    masker = metrics.MaskTokens.from_tokenizer(tokenizer)
    tuned = tune(model, TextExamples(TEXTS, tokenizer), masker=masker, gammas=[0.0, 0.05])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    kinds = ("attention", "mlp", "rest")
    assert tuple(tuned.layers) == kinds
    tried = [tuple(trial.gammas[kind] for kind in kinds) for trial in tuned.trials]
    assert len(set(tried)) == len(tried) and {(0.0,) * 3, (0.05,) * 3} < set(tried)
    assert tuned.best.loss == min(trial.loss for trial in tuned.trials)
    same = {(0.0,) * 3: "lrp", (0.05,) * 3: composite_of(tuned.layers, dict.fromkeys(kinds, 0.05))}
    for key, rules in same.items():
        expected = areas(model, tokenizer, ConservativeLRP(model, rules, bias="distribute"))
        trial = tuned.trials[tried.index(key)]
        assert (trial.auac, trial.au_mse) == pytest.approx(expected, rel=1e-4)
    explainer = ConservativeLRP(model, tuned.composite)  # biases as in the trials
    assert areas(model, tokenizer, explainer) == pytest.approx(
        (tuned.best.auac, tuned.best.au_mse), rel=1e-4
    )
    rows = str(tuned).splitlines()[2:]
    assert len(rows) == len(tried) and sum("**" in row for row in rows) == 1


def test_gamma_of_one_kind_changes_that_kind_only() -> None:
    model, tokenizer = models.sentiment()
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    layers = linear_layers(model, inputs)
    values = {}
    for gammas in ((0.0, 0.0, 0.0), (0.1, 0.0, 0.0), (0.0, 0.1, 0.0), (0.0, 0.0, 0.1)):
        composite = composite_of(layers, dict(zip(layers, gammas, strict=True)))
        values[gammas] = ConservativeLRP(model, composite).attribute(inputs, target=1)
    plain = ConservativeLRP(model).attribute(inputs, target=1)
    torch.testing.assert_close(values[(0.0, 0.0, 0.0)], plain, rtol=1e-4, atol=1e-6)
    named = [v for key, v in values.items() if any(key)]
    for i, first in enumerate(named):
        assert not torch.allclose(first, plain, rtol=1e-3)
        assert all(not torch.allclose(first, other, rtol=1e-3) for other in named[i + 1 :])


def test_images_and_layers_of_your_own() -> None:
    images, labels = models.digit_samples()
    model = models.digits()
    examples = ImageExamples(images[:3], labels[:3].tolist())
    masker = metrics.RemovePatches(model.config.patch_size)
    tuned = tune(model, examples, masker=masker, gammas=[0.0, 0.1], layers={"head": ["classifier"]})
    assert [trial.gammas for trial in tuned.trials] == [{"head": 0.0}, {"head": 0.1}]
    with pytest.raises(InputError, match="no gammas"):
        tune(model, examples, masker=masker, gammas=[])
    with pytest.raises(InputError, match="no linear layers"):
        tune(model, examples, masker=masker, layers={})
