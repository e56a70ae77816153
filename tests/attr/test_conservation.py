"""Relevance is conserved: on real models and data, in numbers that the pages state."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from captum_lrp_tx import ConservativeGI, ConservativeLRP, LayerConservativeLRP, audit

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.image_models

SENTENCES = 200
DIGITS = 200


def relative_error(output: Tensor, accounted: Tensor) -> float:
    return float((output - accounted).abs().max() / output.abs().max())


def sentences(shared: Path, count: int) -> list[str]:
    with open(shared / "data/sst2/dev.tsv", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row[0] for row in rows[1 : count + 1]]


def digits(shared: Path, count: int) -> Tensor:
    with gzip.open(shared / "data/mnist/t10k-images-idx3-ubyte.gz") as file:
        raw = file.read()[16:]
    images = torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(-1, 1, 28, 28)
    return (images[-count:].float() / 255 - 0.5) / 0.5


@pytest.fixture(scope="module")
def minilm(shared: Path) -> Any:
    folder = shared / "models/minilm-sst2"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).float().eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def digit_vit(shared: Path) -> Any:
    folder = shared / "models/vit-mnist"
    return transformers.AutoModelForImageClassification.from_pretrained(folder).float().eval()


def test_minilm_distributed_bias_sums_to_the_logit(minilm: Any, shared: Path) -> None:
    model, tokenizer = minilm
    worst = 0.0
    for start in range(0, SENTENCES, 50):
        batch = sentences(shared, SENTENCES)[start : start + 50]
        inputs = tokenizer(batch, return_tensors="pt", padding=True)
        with torch.no_grad():
            logits = model(**inputs).logits
        target = logits.argmax(-1)
        relevance, delta = ConservativeLRP(model, bias="distribute").attribute(
            inputs, target=target, return_convergence_delta=True
        )
        output = logits.gather(1, target[:, None])[:, 0]
        worst = max(worst, relative_error(output, relevance.sum(1)))
        torch.testing.assert_close(delta, output - relevance.sum(1), atol=1e-6, rtol=0)
        # padding tokens hold no evidence
        assert float(relevance[inputs["attention_mask"] == 0].abs().max()) < 1e-6
    assert worst < 1e-4


def test_minilm_absorbed_relevance_closes_the_sum(minilm: Any, shared: Path) -> None:
    model, tokenizer = minilm
    for sentence in sentences(shared, SENTENCES)[::10]:
        inputs = tokenizer(sentence, return_tensors="pt")
        report = audit.explainability(model, inputs, target=1, file=None)
        assert abs(report.conservation_error) < 1e-4 * abs(report.output)
        assert report.is_covered
        assert all(name.endswith("bias") for name in report.absorbed)


def test_digits_absorbed_relevance_closes_the_sum(digit_vit: Any, shared: Path) -> None:
    images = digits(shared, DIGITS)
    for start in range(0, DIGITS, 20):
        batch = images[start : start + 20]
        target = digit_vit(batch).logits.argmax(-1)
        report = audit.explainability(digit_vit, batch, target=target, file=None)
        assert abs(report.conservation_error) < 1e-4 * abs(report.output)
        assert "vit.embeddings.cls_token" in report.absorbed
        assert "vit.embeddings.position_embeddings" in report.absorbed


def test_gradient_x_input_does_not_conserve(minilm: Any, shared: Path) -> None:
    model, tokenizer = minilm
    inputs = tokenizer(sentences(shared, 20), return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**inputs).logits[:, 1]
    plain = ConservativeGI(model, rules="gi").attribute(inputs, target=1)
    # the norm after the embeddings is blind to their scale: gradient x input sums to zero
    assert relative_error(logits, logits - plain.sum(1)) < 1e-5
    full = ConservativeLRP(model, bias="distribute").attribute(inputs, target=1)
    assert relative_error(logits, full.sum(1)) < 1e-4


def test_llama_with_gated_mlp_conserves() -> None:
    entries = zoo.cases("llama", without=("padded",))
    assert entries
    for entry in entries:
        case = entry.build()
        relevance, delta = ConservativeLRP(case.model, bias="distribute").attribute(
            case.inputs[0], target=case.target, return_convergence_delta=True
        )
        assert float((delta.abs() / relevance.abs().sum(1)).max()) < 1e-4


@pytest.mark.parametrize("entry", zoo.cases("timm") + zoo.cases("torchvision"), ids=str)
def test_vision_transformers_conserve(entry: Any) -> None:
    case = entry.build()
    report = audit.explainability(case.model, case.inputs[0], target=case.target, file=None)
    scale = abs(report.output) + abs(report.relevance) + sum(map(abs, report.absorbed.values()))
    assert abs(report.conservation_error) < 1e-4 * scale
    assert report.is_covered


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_eager_and_sdpa_agree(shared: Path, name: str) -> None:
    folder = shared / "models/minilm-sst2"
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    model = load(folder, attn_implementation=name).float().eval()
    other = load(folder, attn_implementation="eager").float().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(sentences(shared, 8), return_tensors="pt", padding=True)
    for rules in ("ah+ln", "lrp", "attnlrp"):
        got = ConservativeLRP(model, rules=rules).attribute(inputs, target=1)
        want = ConservativeLRP(other, rules=rules).attribute(inputs, target=1)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=2e-5 * float(want.abs().max()))


def test_padding_does_not_change_a_tokens_relevance(minilm: Any, shared: Path) -> None:
    model, tokenizer = minilm
    texts = sentences(shared, 8)
    padded = tokenizer(texts, return_tensors="pt", padding=True)
    together = ConservativeLRP(model).attribute(padded, target=1)
    for row, text in zip(together, texts, strict=True):
        alone = ConservativeLRP(model).attribute(tokenizer(text, return_tensors="pt"), target=1)[0]
        torch.testing.assert_close(
            row[: len(alone)], alone, rtol=1e-3, atol=1e-5 * float(alone.abs().max())
        )
        assert float(row[len(alone) :].abs().sum()) < 1e-6


def test_positions_are_parts_of_the_sum(minilm: Any) -> None:
    model, tokenizer = minilm
    inputs = tokenizer(["a charming film", "dull"], return_tensors="pt", padding=True)
    explainer = ConservativeLRP(model)
    parts = explainer.attribute(inputs, target=1, positions="separate")
    assert {name.rsplit(".", 1)[1] for name in parts} == {
        "word_embeddings", "position_embeddings", "token_type_embeddings",
    }  # fmt: skip
    whole = explainer.attribute(inputs, target=1)
    torch.testing.assert_close(torch.stack(list(parts.values())).sum(0), whole)


def test_relevance_is_the_same_at_every_depth(minilm: Any) -> None:
    model, tokenizer = minilm
    inputs = tokenizer("a charming and often affecting journey", return_tensors="pt")
    layers = [model.bert.embeddings, *model.bert.encoder.layer]
    with torch.no_grad():
        logit = float(model(**inputs).logits[0, 1])
    for layer in layers:
        relevance, delta = LayerConservativeLRP(model, layer, bias="distribute").attribute(
            inputs, target=1, return_convergence_delta=True
        )
        assert relevance.shape == (1, inputs["input_ids"].shape[1], 384)
        assert float(delta.abs()) < 1e-4 * abs(logit)


def test_sentiment_words_rank_first(minilm: Any) -> None:
    model, tokenizer = minilm
    for text, target, words in (
        ("the film is a wonderful piece of work", 1, {"wonderful"}),
        ("the plot is a dreadful bore from start to finish", 0, {"dreadful", "bore"}),
    ):
        inputs = tokenizer(text, return_tensors="pt")
        relevance = ConservativeLRP(model).attribute(inputs, target=target)[0]
        tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
        special = {tokenizer.cls_token, tokenizer.sep_token}
        ranked = sorted(
            (t for t in range(len(tokens)) if tokens[t] not in special),
            key=lambda i: -float(relevance[i]),
        )
        assert tokens[ranked[0]] in words
