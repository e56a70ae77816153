"""``BiLRP``: pairs add up to the similarity, and equal the brute force over all features."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from captum_lrp_tx import BiLRP, ConservativeLRP, audit
from captum_lrp_tx.errors import InputError, NonFiniteError, OutputError
from captum_lrp_tx.rules import EpsilonRule
from captum_lrp_tx.visualization import image_pairs_figure, pairs_figure

CASES = (
    "hf-BertForSequenceClassification-sdpa-padded",
    "hf-LlamaForSequenceClassification-sdpa",
    "hf-ViTForImageClassification-sdpa",
    "hf-Bert-embeds-eager",
)


def doubled(name: str) -> tuple[zoo.Case, Any, Any]:
    """A case in float64, and two other inputs of the same shapes."""
    case = zoo.case(name)
    case.model = case.model.double()
    x = case.inputs[0]
    if case.kind == "floats":
        return case, x.double(), x.double().flip(0) * 0.5 + 0.1
    mask = case.kwargs.get("attention_mask", torch.ones_like(x))
    first = {"input_ids": x, "attention_mask": mask}
    return case, first, {"input_ids": ((x * 7 + 3) % zoo.WORDS).clamp(min=1) * mask, **{
        "attention_mask": mask}}  # fmt: skip


def values(case: zoo.Case) -> Callable[..., Tensor]:
    def forward(*args: Any, **kwargs: Any) -> Tensor:
        returned = case.model(*args, **kwargs)
        return returned if isinstance(returned, Tensor) else returned.logits

    return forward


def by_token(relevance: Tensor, x: Any) -> Tensor:
    if isinstance(x, dict):
        return relevance
    if x.dim() == 3:
        return relevance.sum(-1)
    pooled = torch.nn.functional.avg_pool2d(relevance.sum(1, keepdim=True), 4) * 16
    return pooled.flatten(1)


@pytest.mark.parametrize("similarity", ("cosine", "dot"))
@pytest.mark.parametrize("name", CASES)
def test_equal_to_brute_force_by_the_oracle(name: str, similarity: Any) -> None:
    """The oracle shares no code with the package, and explains one feature at a time."""
    case, first, second = doubled(name)
    found = BiLRP(case.model, "ah+ln", similarity=similarity, bias="absorb").attribute(
        first, second, patch_size=4 if "ViT" in name else None
    )
    expected: Any = 0.0
    features = [values(case)(**x) if isinstance(x, dict) else values(case)(x)
                for x in (first, second)]  # fmt: skip
    for m in range(features[0].shape[1]):
        case.target, sides = m, []
        for x in (first, second):
            one = copy.copy(case)
            one.inputs = (x["input_ids"] if isinstance(x, dict) else x,)
            sides.append(by_token(one.expected("ah+ln", double=True)[0], x))
        expected = expected + sides[0][:, :, None] * sides[1][:, None, :]
    if similarity == "cosine":
        expected = expected / (features[0].norm(dim=1) * features[1].norm(dim=1))[:, None, None]
    rounding = 1e-4 if "Llama" in name else 1e-8  # its norms work in float32
    torch.testing.assert_close(found, expected.detach(), rtol=rounding, atol=rounding / 100)


@pytest.mark.parametrize("name", CASES)
def test_pairs_with_constants_are_the_similarity(name: str) -> None:
    """Every pair with its constants adds up; rows are what the side alone says."""
    case, first, second = doubled(name)
    explainer = BiLRP(case.model, bias="absorb")
    size = 4 if "ViT" in name else None
    features = [values(case)(**x) if isinstance(x, dict) else values(case)(x)
                for x in (first, second)]  # fmt: skip
    cosine = torch.nn.functional.cosine_similarity(*features).detach()
    pairs = explainer.attribute(first, second, constants=True, patch_size=size)
    assert isinstance(pairs, Tensor)
    torch.testing.assert_close(pairs.sum((1, 2)), cosine)
    rows, columns = explainer.attribute_each(first, second)
    torch.testing.assert_close(pairs[:, :-1].sum(2), by_token(rows, first))
    torch.testing.assert_close(pairs[:, :, :-1].sum(1), by_token(columns, second))
    bare, delta = explainer.attribute(first, second, patch_size=size, return_convergence_delta=True)
    torch.testing.assert_close(bare, pairs[:, :-1, :-1])
    torch.testing.assert_close(bare.sum((1, 2)) + delta, cosine)


def test_tokens_alone_add_up_where_biases_are_spread() -> None:
    case, first, second = doubled("hf-BertForSequenceClassification-sdpa-padded")
    explainer = BiLRP(case.model.bert, pooling="mean")
    pairs, delta = explainer.attribute(first, second, return_convergence_delta=True)
    assert float(delta.abs().max()) < 1e-5
    assert pairs.shape == (zoo.BATCH, zoo.TOKENS, zoo.TOKENS)
    padding = first["attention_mask"] == 0
    assert not pairs[padding].any()
    mean = [
        (case.model.bert(**x).last_hidden_state * x["attention_mask"].unsqueeze(-1)).sum(1)
        for x in (first, second)
    ]
    torch.testing.assert_close(
        pairs.sum((1, 2)), torch.nn.functional.cosine_similarity(*mean).detach(), atol=1e-5, rtol=0
    )


def test_biases_are_spread_under_rules_of_modules_too() -> None:
    case, first, second = doubled("hf-BertForSequenceClassification-sdpa-padded")
    case.model.bert.encoder.layer[0].intermediate.dense.rule = EpsilonRule()
    explainer = BiLRP(case.model.bert, similarity="dot", pooling="mean")
    pairs, delta = explainer.attribute(first, second, return_convergence_delta=True)
    assert float(delta.abs().max()) < 1e-5
    for one in explainer.attribute_each(first, second):
        torch.testing.assert_close(one.sum(1), pairs.sum((1, 2)), rtol=1e-4, atol=1e-5)


def test_the_constants_can_be_named() -> None:
    """What one side's constants take for the features of the other is what the audit names."""
    case, first, second = doubled("hf-BertForSequenceClassification-sdpa-padded")
    weights = values(case)(**second).detach()
    explainer = BiLRP(case.model, similarity="dot", bias="absorb")
    pairs = explainer.attribute(first, second, constants=True)
    report = audit.explainability(
        lambda **inputs: (case.model(**inputs).logits * weights).sum(1), first, file=None
    )
    assert isinstance(pairs, Tensor)
    rest = float(pairs[:, -1].sum())
    assert report.absorbed
    assert abs(rest - sum(report.absorbed.values())) < 1e-8 * max(1.0, abs(rest))


def test_encoder_of_an_encoder_decoder_and_plain_torch() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4
    )
    model = zoo.randomise(transformers.T5EncoderModel(config)).double()
    ids = torch.randint(1, 40, (2, 6)), torch.randint(1, 40, (2, 5))
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    plain = zoo.randomise(nn.TransformerEncoder(layer, 2)).double()
    x = torch.randn(2, 6, 16).double(), torch.randn(2, 5, 16).double()
    for net, (first, second) in ((model, ids), (plain, x)):
        explainer = BiLRP(net, pooling="mean", similarity="dot")
        pairs = explainer.attribute(first, second)
        assert isinstance(pairs, Tensor) and pairs.shape == (2, 6, 5)

        def pooled(value: Tensor, net: nn.Module = net) -> Tensor:
            returned = net(value)
            return (returned if isinstance(returned, Tensor) else returned.last_hidden_state).mean(
                1
            )

        one_by_one = [
            [ConservativeLRP(pooled, bias="distribute").attribute(value, m) for m in range(16)]
            for value in (first, second)
        ]
        if net is plain:
            one_by_one = [[r.sum(-1) for r in side] for side in one_by_one]
        expected = sum(a[:, :, None] * b[:, None] for a, b in zip(*one_by_one, strict=True))
        torch.testing.assert_close(pairs, expected)


def test_two_towers_and_packs() -> None:
    case, first, _ = doubled("hf-BertForSequenceClassification-sdpa-padded")
    vit = zoo.case("hf-ViTForImageClassification-sdpa").model.double()
    pixels = torch.randn(3, 3, 16, 16).double()
    explainer = BiLRP(case.model, other_model=vit)
    pairs = explainer.attribute(first, pixels, patch_size=4)
    assert isinstance(pairs, Tensor) and pairs.shape == (3, 7, 16)
    turned = BiLRP(vit, other_model=case.model).attribute(pixels, first, patch_size=4)
    torch.testing.assert_close(pairs, turned.transpose(1, 2))
    again = explainer.attribute(first, pixels, patch_size=4, targets_per_pass=1)
    torch.testing.assert_close(pairs, again)


def test_what_does_not_fit_is_refused() -> None:
    case, first, _ = doubled("hf-BertForSequenceClassification-sdpa-padded")
    vit = zoo.case("hf-ViTForImageClassification-sdpa")
    with pytest.raises(InputError, match="patch_size"):
        BiLRP(vit.model).attribute(vit.inputs[0], vit.inputs[0])
    with pytest.raises(InputError, match="patch_size"):
        BiLRP(vit.model).attribute(vit.inputs[0], vit.inputs[0], patch_size=5)
    with pytest.raises(OutputError, match="pooling"):
        BiLRP(lambda **x: case.model.bert(**x).last_hidden_state).attribute(first, first)
    with pytest.raises(OutputError, match=r"both must be .* as many examples on one side"):
        fewer = {key: value[:2] for key, value in first.items()}
        BiLRP(case.model).attribute(first, fewer)
    with pytest.raises(InputError, match="one input"):
        BiLRP(case.model).attribute((first["input_ids"], first["input_ids"]), first)
    with pytest.raises(InputError, match="mapping"):
        BiLRP(case.model.bert, pooling="mean").attribute(first["input_ids"], first["input_ids"],
                                                         first["attention_mask"])  # fmt: skip
    with pytest.raises(InputError, match="similarity"):
        BiLRP(case.model, similarity="l2")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pooling"):
        BiLRP(case.model, pooling="max")  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="returned tuple without a last_hidden_state of shape"):
        BiLRP(lambda x: (x,), pooling="mean").attribute(torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(NonFiniteError, match="The features contain NaN or infinity"):
        BiLRP(lambda x: x.sqrt()).attribute(-torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(NonFiniteError, match="cosine"):
        BiLRP(lambda x: x * 0.0).attribute(torch.ones(1, 3), torch.ones(1, 3))


@pytest.mark.parametrize("how", ("first", lambda states: states[:, 0]))
def test_other_poolings(how: Any) -> None:
    """Of a linear model of the first token pairs are products of its features."""
    layer = nn.Linear(4, 3, bias=False).double()
    first, second = torch.randn(2, 1, 5, 4).double()
    explainer = BiLRP(lambda x: layer(x), pooling=how, similarity="dot")
    pairs = explainer.attribute(first, second)
    expected = torch.zeros(5, 5).double()
    expected[0, 0] = (layer(first[0, 0]) * layer(second[0, 0])).sum().detach()
    torch.testing.assert_close(pairs[0], expected)


def test_the_first_token_is_behind_padding_on_the_left() -> None:
    case, given, other = doubled("hf-BertForSequenceClassification-sdpa-padded")
    one = {key: value[:1, :4] for key, value in given.items()}
    one["attention_mask"] = torch.ones_like(one["input_ids"])
    left = {key: nn.functional.pad(value, (3, 0)) for key, value in one.items()}
    bert = case.model.bert
    places = torch.tensor([[0, 0, 0, 0, 1, 2, 3]])
    explainer = BiLRP(lambda **k: bert(**k, position_ids=places[:, -k["input_ids"].shape[1] :]),
                      pooling="first")  # fmt: skip
    other = {key: value[:1, :4] for key, value in other.items()}
    other["attention_mask"] = torch.ones_like(other["input_ids"])
    plain = BiLRP(bert, pooling="first").attribute(one, other)
    padded = explainer.attribute(left, {k: nn.functional.pad(v, (3, 0)) for k, v in other.items()})
    torch.testing.assert_close(padded[:, 3:, 3:], plain)
    assert not padded[:, :3].any() and not padded[..., :3].any()


def test_pictures() -> None:
    pytest.importorskip("matplotlib")
    pairs = torch.tensor([[0.1, 0.5, 0.0], [0.0, -0.3, 0.2]])
    drawing = pairs_figure(pairs, ["[CLS]", "film"], ["a", "mov", "##ie"], title="0.5")
    assert len(drawing.axes[0].lines) == 1  # "movie" to "film"; [CLS] has no line
    assert len(pairs_figure(pairs, ["[CLS]", "film"], ["a", "mov", "##ie"], special=True)
               .axes[0].lines) == 3  # fmt: skip
    images = torch.rand(2, 3, 8, 12)
    drawing = image_pairs_figure(torch.randn(1, 6, 6), images[0], images[1], lines=5)
    assert len(drawing.axes[0].lines) == 5
    with pytest.raises(ValueError, match="shape"):
        pairs_figure(pairs, ["film"], ["a", "movie"])
    with pytest.raises(ValueError, match="pairs has values that are not finite"):
        pairs_figure(pairs / 0, ["[CLS]", "film"], ["a", "mov", "##ie"])
    with pytest.raises(ValueError, match="grid"):
        image_pairs_figure(torch.randn(5, 5), images[0], images[1])
