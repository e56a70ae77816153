"""Inputs that do not fit the model: what was seen, and a way out that works."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

import transformers
from captum.attr import NoiseTunnel

import captum_lrp_tx as lrp
from captum_lrp_tx.attr import told
from captum_lrp_tx.attr.misfits import most_tokens
from captum_lrp_tx.attr.token_gradients import padding_in_words
from captum_lrp_tx.cli import main
from captum_lrp_tx.errors import CaptumLRPError, InputError, UncoveredOperationError
from captum_lrp_tx.models import digits, sentiment

pytestmark = pytest.mark.captum

TEXT = "a charming and funny film"
CLASSES = [
    "ConservativeGI", "ConservativeLRP", "TokenIntegratedGradients", "TokenSaliency",
    "AttentionLast", "AttentionRollout", "AttentionFlow", "GenericAttention",
    "TransformerAttribution",
]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    return sentiment()[0]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return sentiment()[1]


@pytest.mark.parametrize("name", CLASSES)
def test_texts_that_are_too_long(name: str, model: Any, tokenizer: Any) -> None:
    explainer = getattr(lrp, name)(model)
    text = "a film " * 300
    long = tokenizer(text, return_tensors="pt", verbose=False)
    with pytest.raises(InputError, match=r"602 tokens.*positions for 256.*truncation=True"):
        explainer.attribute(long, target=1)
    with pytest.raises(InputError, match="max_length=256"):
        explainer.attribute(long["input_ids"], target=1)
    cut = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
    assert explainer.attribute(cut, target=1).shape == (1, 256)


@pytest.mark.parametrize("name", CLASSES)
def test_ids_that_the_model_does_not_know(name: str, model: Any) -> None:
    explainer = getattr(lrp, name)(model)
    size = model.config.vocab_size
    with pytest.raises(InputError, match=rf"id 1000000 at \(0, 1\).*from 0 to {size - 1}"):
        explainer.attribute(torch.tensor([[2, 10**6, 3]]), target=1)
    with pytest.raises(InputError, match=r"id -100 at \(0, 2\)"):
        explainer.attribute(torch.tensor([[2, 5, -100]]), target=1)
    assert explainer.attribute(torch.tensor([[2, size - 1, 3]]), target=1).shape == (1, 3)


@pytest.mark.parametrize("name", CLASSES)
def test_one_example_without_its_dimension(name: str, model: Any) -> None:
    explainer, ids = getattr(lrp, name)(model), torch.tensor([2, 5, 3])
    for inputs in (ids, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}):
        with pytest.raises(InputError, match=r"shape \(3,\).*ids\.unsqueeze\(0\)"):
            explainer.attribute(inputs, target=1)


def test_whatever_runs_a_model_names_the_id(model: Any) -> None:
    bad = torch.tensor([[2, 10**6, 3]])
    pair = {"input_ids": bad, "attention_mask": torch.ones_like(bad)}
    for run in (
        lambda: lrp.audit.explainability(model, bad, 1, file=None),
        lambda: lrp.compare(model, bad, 1, methods=["gi"]),
        lambda: lrp.compare(model, {"input_ids": bad}, 1, methods=["gi"]),
        lambda: lrp.BiLRP(model.bert, pooling="mean").attribute(pair, pair),
        lambda: lrp.PartRelevance(model).attribute(bad, target=1),
    ):
        with pytest.raises(InputError, match="id 1000000"):
            run()


def test_layers_and_functions(model: Any) -> None:
    layer = lrp.LayerConservativeLRP(model, model.bert.embeddings)
    with pytest.raises(InputError, match="id 1000000"):
        layer.attribute(torch.tensor([[2, 10**6, 3]]), target=1)
    with pytest.raises(InputError, match="positions for 256"):
        lrp.ConservativeLRP(lambda ids: model(ids).logits).attribute(torch.ones(1, 300).long(), 1)


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_other_tables_of_positions(kind: str) -> None:
    if kind == "gpt2":
        config: Any = transformers.GPT2Config(
            vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=None,
            eos_token_id=None,
        )  # fmt: skip
        model: Any = transformers.GPT2LMHeadModel(config).eval()
        target: Any = (0, 1)
    else:
        config = transformers.RobertaConfig(
            vocab_size=20, max_position_embeddings=10, hidden_size=8, num_hidden_layers=1,
            num_attention_heads=2, intermediate_size=8,
        )  # fmt: skip
        model, target = transformers.RobertaForSequenceClassification(config).eval(), 1
    explainer = lrp.ConservativeLRP(model)
    with pytest.raises(InputError, match="9 tokens, but the model has positions for 8"):
        explainer.attribute(torch.full((1, 9), 5), target=target)
    assert explainer.attribute(torch.full((1, 8), 5), target=target).shape == (1, 8)
    # RoBERTa keeps two of its ten positions for padding; some tokenizers know no limit
    unlimited = SimpleNamespace(model_max_length=10**30)
    assert most_tokens(model.modules(), unlimited) == most_tokens(model.modules()) == 8
    assert most_tokens(model.modules(), unlimited, wanted=5) == 5
    assert most_tokens([nn.ReLU()], unlimited) is None


def test_dimensions_that_are_missing(model: Any) -> None:
    ids = torch.tensor([2, 5, 3])
    explainer = lrp.ConservativeLRP(model)
    for inputs in (ids, {"input_ids": ids}):
        with pytest.raises(InputError, match=r"shape \(3,\).*ids\.unsqueeze\(0\)"):
            explainer.attribute(inputs, target=1)
    assert explainer.attribute(ids.unsqueeze(0), target=1).shape == (1, 3)
    vision, pixels = lrp.ConservativeLRP(digits()), torch.rand(1, 28, 28)
    with pytest.raises(InputError, match=r"shape \(1, 28, 28\).*pixels\.unsqueeze\(0\)"):
        vision.attribute(pixels, target=1)
    assert vision.attribute(pixels.unsqueeze(0), target=1).shape == (1, 1, 28, 28)
    for name in ("TokenIntegratedGradients", "TokenGradientShap", "TokenSaliency"):
        with pytest.raises(InputError, match=r"shape \(1, 28, 28\).*pixels\.unsqueeze\(0\)"):
            getattr(lrp, name)(digits()).attribute(pixels, target=1)


def test_ids_of_few_bits(model: Any, tokenizer: Any) -> None:
    """Torch looks up 32 and 64 bits only."""
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    for explainer in (lrp.ConservativeLRP(model), lrp.TokenIntegratedGradients(model)):
        with pytest.raises(InputError, match=r"holds torch\.int16, .*ids\.long\(\)"):
            explainer.attribute(ids.to(torch.int16), target=1)
    made, expected = (lrp.explain(model, tokenizer, x) for x in (ids.to(torch.int16), ids))
    assert torch.equal(made.relevance, expected.relevance)


def test_weights_without_values(model: Any, tokenizer: Any) -> None:
    with torch.device("meta"):
        empty = type(model)(model.config).eval()
    inputs = tokenizer(TEXT, return_tensors="pt")
    runs: list[Any] = [
        lambda: lrp.ConservativeLRP(empty).attribute(inputs, target=1),
        lambda: lrp.explain(empty, tokenizer, TEXT),
        lambda: lrp.compare(empty, inputs, methods=["GI"]),
        lambda: lrp.report(empty, [TEXT], tokenizer=tokenizer, methods=["GI"]),
    ]
    for run in runs:
        with pytest.raises(CaptumLRPError, match=r"meta device, without values.*load_state_dict"):
            run()


def test_what_is_no_tensor(model: Any, tokenizer: Any) -> None:
    numpy = pytest.importorskip("numpy")
    image = pytest.importorskip("PIL.Image")
    explainer, vision = lrp.ConservativeLRP(model), lrp.ConservativeLRP(digits())
    expected = explainer.attribute(tokenizer(TEXT, return_tensors="pt"), target=1)
    for inputs in (TEXT, [TEXT], {"input_ids": TEXT}, {"input_ids": [TEXT]}):
        with pytest.raises(InputError, match=r"Tokenize texts? first: .*return_tensors='pt'"):
            explainer.attribute(inputs, target=1)
    ids = tokenizer(TEXT)["input_ids"]
    for inputs in (ids, [ids], tokenizer(TEXT)):
        with pytest.raises(InputError, match=r"torch\.tensor\(\[ids\]\)"):
            explainer.attribute(inputs, target=1)
    assert torch.allclose(explainer.attribute(torch.tensor([ids]), target=1), expected)
    array = numpy.array([ids])
    for inputs in (array, {"input_ids": array}):
        with pytest.raises(InputError, match=r"torch\.from_numpy\(array\)\."):
            explainer.attribute(inputs, target=1)
    assert torch.allclose(explainer.attribute(torch.from_numpy(array), target=1), expected)
    picture, plain = image.new("L", (28, 28)), numpy.zeros((28, 28), "uint8")
    for inputs in (picture, [picture], {"pixel_values": picture}, plain):
        with pytest.raises(InputError, match=r"image_processor\(images=(picture|array), return"):
            vision.attribute(inputs, target=1)
    double = numpy.zeros((1, 1, 28, 28))
    with pytest.raises(InputError, match=r"torch\.from_numpy\(array\)\.float\(\)"):
        vision.attribute(double, target=1)
    assert vision.attribute(torch.from_numpy(double).float(), target=1).shape == double.shape


def test_ids_under_another_name(model: Any, tokenizer: Any) -> None:
    given = tokenizer(TEXT, return_tensors="pt")
    named = {"words_mask": given["attention_mask"], "words": given["input_ids"]}

    def forward(words: Tensor, words_mask: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=words, attention_mask=words_mask).logits
        return logits

    with pytest.raises(InputError, match=r"end in 'input_ids'.*model\(words=input_ids, \*\*oth"):
        lrp.ConservativeLRP(forward).attribute(named, target=1)
    renamed = {"words_mask": named["words_mask"], "input_ids": named["words"]}
    found = lrp.ConservativeLRP(
        lambda input_ids, **others: forward(words=input_ids, **others)
    ).attribute(renamed, target=1)
    assert torch.equal(found, lrp.ConservativeLRP(model).attribute(given, target=1))
    with pytest.raises(InputError, match="return_tensors='pt'"):
        lrp.ConservativeLRP(forward).attribute({"words": [[1, 2]]}, target=1)


def test_floats_in_place_of_ids(model: Any, tokenizer: Any) -> None:
    """Which Captum's NoiseTunnel makes of them."""
    inputs = tokenizer(TEXT, return_tensors="pt")
    ids = inputs["input_ids"]
    explainer = lrp.ConservativeLRP(model)
    with pytest.raises(InputError, match=r"input 0 holds floats, .*Noise \(NoiseTunnel"):
        NoiseTunnel(explainer).attribute(ids, nt_samples=2, target=1)
    with pytest.raises(InputError, match=r"inputs\['input_ids'\] holds floats, .* ids\.long\(\)"):
        explainer.attribute({**inputs, "input_ids": ids.float()}, target=1)
    embedded = model.get_input_embeddings()(ids).detach()  # what the message suggests
    of_embeddings = lrp.ConservativeLRP(lambda e: model(inputs_embeds=e))
    found = NoiseTunnel(of_embeddings).attribute(embedded, nt_samples=2, stdevs=0.0, target=1)
    torch.testing.assert_close(found, of_embeddings.attribute(embedded, target=1))


def test_other_failures_stay_as_they_are(model: Any) -> None:
    def broken(ids: Any) -> Any:
        raise ValueError("of the user's own")

    with pytest.raises(ValueError, match="of the user's own") as caught:
        lrp.ConservativeLRP(broken).attribute(torch.tensor([[2, 3]]), target=1)
    assert not isinstance(caught.value, InputError)


def test_a_true_reason_or_none() -> None:
    """Embeddings of one example are no image, and rotary positions have no last row."""

    class Rotary(nn.Module):
        config = SimpleNamespace(max_position_embeddings=4)

        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(50, 8)

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

    for given in (torch.randn(1, 6, 8), torch.ones(1, 9, dtype=torch.long)):
        with pytest.raises(RuntimeError, match="out of memory") as told:
            lrp.ConservativeLRP(Rotary()).attribute(given, target=0)
        assert not isinstance(told.value, InputError)


def test_the_only_table_tells_the_vocabulary_if_the_model_does_not() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(5, 3)

        def get_input_embeddings(self) -> Any:
            return nn.Identity()  # says nothing of how many there are

        def forward(self, ids: Tensor) -> Tensor:
            scores: Tensor = self.words(ids).mean(1)
            return scores

    with pytest.raises(InputError, match=r"id 9 at \(0, 1\).*from 0 to 4"):
        lrp.ConservativeLRP(Other()).attribute(torch.tensor([[1, 9]]), target=1)


def test_the_search_for_a_reason_does_not_hide_the_error() -> None:
    class Broken(nn.Module):
        def get_input_embeddings(self) -> Any:
            raise KeyError("no table")

        def forward(self, ids: Tensor) -> Tensor:
            raise RuntimeError("the error itself")

    with pytest.raises(RuntimeError, match="the error itself"):
        lrp.ConservativeLRP(Broken()).attribute(torch.tensor([[1, 9]]), target=1)


def test_positions_that_are_none(model: Any) -> None:
    ids = torch.tensor([[2, 5, 3]])
    with pytest.raises(InputError, match="positions must be 'sum' or 'separate', not 'words'"):
        lrp.ConservativeLRP(model).attribute(ids, 1, positions="words")  # type: ignore[call-overload]
    with pytest.raises(InputError, match="needs token ids as the only input; float inputs have on"):
        lrp.ConservativeLRP(nn.Linear(3, 2)).attribute(torch.ones(1, 3), 1, positions="separate")


def test_conventions_are_refused_where_only_papers_count() -> None:
    """Linear attention is in none of them."""

    def forward(x: Tensor) -> Tensor:
        query, key = x.exp(), (x * 2).exp()
        weights = query @ (key.mT @ x)
        return (weights / (query @ key.sum(1, keepdim=True).mT)).sum((1, 2))

    x = torch.randn(2, 3, 4)
    explainer = lrp.ConservativeLRP(forward)
    assert explainer.attribute(x, strict=True).shape == x.shape
    reason = r"in none of the papers would act here: linear attention \(convention\) in the forward"
    with pytest.raises(UncoveredOperationError, match=reason):
        explainer.attribute(x, strict="papers")
    plain = lrp.ConservativeLRP(nn.Linear(4, 2))
    assert torch.equal(
        plain.attribute(x[:, 0], 1, strict="papers"), plain.attribute(x[:, 0], 1, strict=True)
    )


def test_what_was_told_is_told_again_when_there_is_too_much_to_remember(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(told, "_MOST", 2)
    layer = nn.Linear(1, 1)
    known, subject = type(told.TOLD)(), told.Subject(layer, [("", layer)])
    assert [known.first_time(subject, what) for what in "aabbca"] == [
        True, False, True, False, True, True,
    ]  # fmt: skip


class OneText(nn.Module):
    """Takes the ids of one text, and no batch."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.words, self.out, self.fails = nn.Embedding(50, 8), nn.Linear(8, 2), fails

    def forward(self, ids: Tensor) -> Tensor:
        if ids.dim() != 1 or self.fails:
            raise RuntimeError("out of memory")
        return self.out(self.words(ids).mean(0, keepdim=True))


def test_models_of_single_texts_are_not_told_to_batch_them() -> None:
    ids = torch.tensor([2, 5, 3])
    assert lrp.ConservativeLRP(OneText(False)).attribute(ids, target=1).shape == (3,)
    for name in ("ConservativeLRP", "TokenSaliency", "AttentionRollout"):
        with pytest.raises(RuntimeError, match="out of memory") as told:
            getattr(lrp, name)(OneText(True)).attribute(ids, target=1)
        assert not isinstance(told.value, InputError)
    with pytest.raises(InputError, match=r"id 70 at \(1,\).*from 0 to 49"):
        lrp.ConservativeLRP(OneText(False)).attribute(torch.tensor([2, 70, 3]), target=1)


def test_verbose_prints_the_rules(model: Any, tokenizer: Any, capsys: Any) -> None:
    inputs = tokenizer(TEXT, return_tensors="pt")
    explainer = lrp.ConservativeLRP(model)
    quiet = explainer.attribute(inputs, 1, None, False, False)
    assert capsys.readouterr().out == ""
    loud = explainer.attribute(inputs, 1, None, False, True)  # as Captum's LRP has it
    out = capsys.readouterr().out
    assert torch.equal(quiet, loud)
    applied = lrp.audit.explainability(model, inputs, 1, file=None).applied
    assert len(out.splitlines()) == len(applied) > 20
    assert all(f"on layer {rule.module or 'the forward function'}" in out for rule in applied)
    layer = lrp.LayerConservativeLRP(model, model.bert.embeddings)
    layer.attribute(inputs, target=1, verbose=True)
    assert "Applied " in capsys.readouterr().out


def test_one_baseline_everywhere(model: Any, tokenizer: Any, capsys: Any) -> None:
    inputs = tokenizer(TEXT, return_tensors="pt")
    relevance = lrp.TokenIntegratedGradients(model).attribute(inputs, target=1)
    padding = torch.full_like(inputs["input_ids"], model.config.pad_token_id)
    rest = {k: v for k, v in inputs.items() if k != "input_ids"}
    start = model(padding, **rest).logits[0, 1]
    way = (model(**inputs).logits[0, 1] - start).item()
    assert relevance.sum().item() == pytest.approx(way, abs=1e-2)
    names = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    for tokens in (None, names):
        compared = lrp.compare(model, inputs, 1, methods=["IG"], tokens=tokens)
        assert torch.equal(compared["IG"].relevance, relevance[0])
        assert compared.baseline == "token 0 (padding) everywhere"
    page = lrp.report(model, [TEXT], tokenizer=tokenizer, methods=["IG"], faithfulness=False)
    assert page.baseline.startswith("token 0 (padding)")
    assert main(["compare", TEXT, "--methods", "ig"]) == 0
    assert padding_in_words(nn.Linear(2, 2)) == "token 0 (no padding is named)"
    out = capsys.readouterr().out
    assert f"{relevance.sum().item():+.3f}" in out and "token 0 (padding) everywhere" in out
