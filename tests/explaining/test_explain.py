"""``explain``: texts and images of every form, and what comes back."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

import tokenizers
import transformers

import captum_lrp_tx as lrp
from captum_lrp_tx import ConservativeLRP
from captum_lrp_tx.errors import InputError, TargetError
from captum_lrp_tx.explaining.images import pixels_of
from captum_lrp_tx.explaining.texts import for_the_model
from captum_lrp_tx.models import digit_samples, digits, sentiment
from explanations import alike

pytestmark = pytest.mark.captum

FILM = "a charming and funny film"


@pytest.fixture(scope="module")
def model() -> Any:
    return sentiment()[0]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return sentiment()[1]


def test_it_is_a_function_of_the_package() -> None:
    assert callable(lrp.explain) and lrp.explain.__module__.startswith("captum_lrp_tx.explaining")


@pytest.mark.parametrize("rules", ["lrp", "ah+ln", "gi"])
def test_the_numbers_are_those_of_the_captum_class(rules: str, model: Any, tokenizer: Any) -> None:
    inputs = tokenizer(FILM, return_tensors="pt")
    relevance = ConservativeLRP(model, rules).attribute(inputs, target=0)
    made = lrp.explain(model, tokenizer, FILM, target="negative", rules=rules)
    assert isinstance(made, lrp.Explanation)
    assert torch.allclose(made.relevance, relevance[0], rtol=1e-5, atol=1e-7)
    assert made.value == pytest.approx(float(model(**inputs).logits[0, 0]), abs=1e-6)
    assert made.sum == pytest.approx(float(relevance.double().sum()), abs=1e-6)
    assert (made.target, made.explains, made.rules) == ("negative", "logit of negative", rules)
    assert made.prediction == "positive" and 0.9 < (made.probability or 0) < 1


def test_what_constants_absorbed_has_names_and_adds_up(model: Any, tokenizer: Any) -> None:
    made = lrp.explain(model, tokenizer, FILM)
    assert set(made.absorbed) <= {name for name, _ in model.named_parameters()}
    assert made.sum + sum(made.absorbed.values()) == pytest.approx(made.value, abs=1e-5)
    assert made.audit().absorbed == pytest.approx(made.absorbed)
    assert torch.allclose(torch.stack([*made.embeddings.values()]).sum(0), made.relevance)
    assert len(made.embeddings) == 3


def test_the_model_is_left_alone(model: Any, tokenizer: Any, untouched: Any) -> None:
    with untouched(model):
        lrp.explain(model, tokenizer, FILM).audit()


@pytest.mark.parametrize(
    ("target", "name"),
    [("POSITIVE", "positive"), (0, "negative"), ("1", "positive"), (None, "positive")],
)
def test_targets(target: Any, name: str, model: Any, tokenizer: Any) -> None:
    assert lrp.explain(model, tokenizer, FILM, target).target == name


def test_targets_that_are_no_classes(model: Any, tokenizer: Any) -> None:
    with pytest.raises(TargetError, match="0 negative, 1 positive"):
        lrp.explain(model, tokenizer, FILM, "splendid")
    with pytest.raises(TargetError, match="generate text"):
        lrp.explain(model, tokenizer, FILM, answer=3)
    with pytest.raises(TargetError, match="itself"):
        lrp.explain(model, tokenizer, FILM, 1, contrast="positive")
    with pytest.raises(InputError, match="2 targets were given for 1 inputs"):
        lrp.explain(model, tokenizer, [FILM], target=[0, 1])


def test_contrasts(model: Any, tokenizer: Any) -> None:
    both = lrp.explain(model, tokenizer, FILM, target="all")
    found = lrp.explain(model, tokenizer, FILM, contrast=True)
    named = lrp.explain(model, tokenizer, FILM, contrast="negative")
    assert len(both) == 2 and found.target == "positive rather than negative" == named.target
    assert found.value == pytest.approx(both[1].value - both[0].value, abs=1e-5)
    difference = both[1].relevance - both[0].relevance
    assert torch.allclose(found.relevance, difference, atol=1e-5)
    given = lrp.explain(model, tokenizer, FILM, lrp.targets.Contrast(1, 0))
    assert torch.allclose(given.relevance, found.relevance) and "Contrast(1, 0)" in given.explains


# ---- words ------------------------------------------------------------------------------------
def test_words_stand_in_the_original_text(model: Any, tokenizer: Any) -> None:
    text = "Ünglaublich  CHARMING, isn't it? 😀👍🏽 שלום עולם"
    made = lrp.explain(model, tokenizer, text)
    words = made.words()
    for word in words:
        assert word.start is not None and text[word.start : word.end] == word.text
        assert word.relevance == pytest.approx(sum(made.relevance[i].item() for i in word.tokens))
    assert [w.text for w in words[:3]] == ["Ünglaublich", "CHARMING", ","]
    assert "".join(w.text for w in words) == "".join(text.split())
    assert made.text == text
    total = sum(w.relevance for w in made.words(special=True))
    assert total == pytest.approx(made.sum, abs=1e-6)
    assert [w.text for w in made.words(special=True) if w.part == ""] == ["[CLS]", "[SEP]"]


def byte_level(whole: bool = False) -> Any:
    """A tokenizer of bytes, which splits at words or (as Llama's) not at all."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=not whole
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=["input_ids", "attention_mask"]
    )


def small_gpt(vocabulary: int = 260) -> Any:
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_positions=128, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("whole", [False, True])
def test_words_of_bytes(whole: bool) -> None:
    text = "Größe of 👩‍🚀, ok"
    made = lrp.explain(small_gpt(), byte_level(whole), text)
    words = [w.text for w in made.words()]
    assert words[:2] == ["Größe", "of"] and words[-1] == "ok"
    assert "".join(words) == "".join(text.split())
    assert len(made.tokens) > len(words)


@pytest.mark.parametrize(
    ("pieces", "text", "expected"),
    [
        (["▁film", "s", ".", "▁你", "好", "吗"], "films. 你好吗", ["films.", "你", "好", "吗"]),
        (["▁film", "s", "▁ok"], "films ok", ["films", "ok"]),
    ],
)
def test_words_of_sentencepiece(pieces: list[str], text: str, expected: list[str]) -> None:
    vocabulary = [("<unk>", 0.0), *((piece, -1.0) for piece in pieces)]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, 0))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert [w.text for w in lrp.explain(small_gpt(), fast, text).words()] == expected


@pytest.mark.parametrize(
    ("options", "merges"),
    [({"end_of_word_suffix": "</w>"}, ["o k</w>"]), ({"continuing_subword_prefix": "@@"}, [])],
)
def test_words_with_other_marks(options: dict[str, str], merges: list[str]) -> None:
    marks = options.get("end_of_word_suffix", "")
    before = options.get("continuing_subword_prefix", "")
    letters = [*"filmok", *(f"{c}{marks}" for c in "filmok"), *(f"{before}{c}" for c in "filmok")]
    letters += ["ok</w>"] if merges else []
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(letters))}
    model = tokenizers.models.BPE(vocabulary, [tuple(m.split()) for m in merges], **options)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    made = lrp.explain(small_gpt(), fast, "film ok")
    assert [(w.text, w.start) for w in made.words()] == [("film", 0), ("ok", 5)]


def test_the_most_relevant_words(model: Any, tokenizer: Any) -> None:
    made = lrp.explain(model, tokenizer, FILM)
    top = made.top(2)
    assert [w.text for w in top] == ["charming", "funny"]
    assert max(abs(w.relevance) for w in made.words()) == abs(top[0].relevance)
    with pytest.raises(InputError, match="positive"):
        made.top(0)


# ---- inputs -----------------------------------------------------------------------------------
def test_many_texts(model: Any, tokenizer: Any) -> None:
    pandas = pytest.importorskip("pandas")
    texts = [FILM, "a dull mess"]
    alone = [lrp.explain(model, tokenizer, text) for text in texts]
    columns: list[Any] = [texts, pandas.Series(texts, index=[7, 9])]
    columns.append(pandas.Series(texts).to_numpy())
    for column in columns:
        many = lrp.explain(model, tokenizer, column)
        assert isinstance(many, lrp.Explanations) and len(many) == 2
        for one, other in zip(many, alone, strict=True):
            assert torch.equal(one.relevance, other.relevance) and one.target == other.target
    assert [e.target for e in lrp.explain(model, tokenizer, texts, target=["negative", 1])] == [
        "negative", "positive",
    ]  # fmt: skip
    assert len(many[:1]) == 1 and many[-1].text == "a dull mess"
    assert isinstance(lrp.explain(model, tokenizer, [FILM]), lrp.Explanations)


def test_columns_of_data_sets(model: Any, tokenizer: Any) -> None:
    data = pytest.importorskip("datasets", exc_type=ImportError).Dataset.from_dict(
        {"text": [FILM, "dull"], "label": [1, 0]}
    )
    many = lrp.explain(model, tokenizer, data["text"], target=data["label"][:])
    assert [e.target for e in many] == ["positive", "negative"]
    with pytest.raises(InputError, match=r"several columns \(text, label\).*data\['text'\]"):
        lrp.explain(model, tokenizer, data)
    with pytest.raises(InputError, match=r"several columns \(text, label\)"):
        lrp.explain(model, tokenizer, data.to_pandas())


def test_pairs_of_texts(model: Any, tokenizer: Any) -> None:
    made = lrp.explain(model, tokenizer, ("is it good?", "it is"))
    assert made.text == ("is it good?", "it is")
    assert [(w.text, w.part, w.start) for w in made.words()][-2:] == [
        ("it", "second", 0), ("is", "second", 3),
    ]  # fmt: skip
    inputs = tokenizer("is it good?", "it is", return_tensors="pt")
    target = int(model(**inputs).logits.argmax())
    assert torch.equal(made.relevance, ConservativeLRP(model).attribute(inputs, target)[0])


def test_ids_as_they_are(model: Any, tokenizer: Any) -> None:
    expected = lrp.explain(model, tokenizer, FILM)
    encoding = tokenizer(FILM, return_tensors="pt")
    ids = encoding["input_ids"]
    given: list[Any] = [
        encoding,
        dict(encoding),
        tokenizer(FILM),
        ids,
        ids[0],
        ids[0].tolist(),
        ids.numpy(),
    ]
    for inputs in given:
        made = lrp.explain(model, tokenizer, inputs)
        assert isinstance(made, lrp.Explanation)
        assert torch.allclose(made.relevance, expected.relevance)
        assert [w.text for w in made.words()] == FILM.split()
    nameless = lrp.explain(model, None, ids)
    assert nameless.tokens == tuple(map(str, ids[0].tolist()))


def test_a_padded_batch(model: Any, tokenizer: Any) -> None:
    batch = tokenizer([FILM, "dull"], padding=True, return_tensors="pt")
    many = lrp.explain(model, tokenizer, batch)
    alone = lrp.explain(model, tokenizer, "dull")
    assert torch.allclose(many[1].relevance[:3], alone.relevance, atol=1e-5)
    assert not many[1].relevance[3:].abs().max() > 1e-5 and not many[1].warnings
    (warning,) = lrp.explain(model, tokenizer, batch["input_ids"])[1].warnings
    assert warning.startswith("padding was given no mask: the model reads 4 padding tokens")
    as_lists = lrp.explain(model, tokenizer, tokenizer([FILM, "dull"]))
    assert torch.allclose(as_lists[1].relevance, alone.relevance)


def test_padding_before_a_text_does_not_move_it(model: Any, tokenizer: Any) -> None:
    """Positions are those of the text alone, as they are where it generates."""
    ids = tokenizer("dull").input_ids
    padded = {
        "input_ids": torch.tensor([[tokenizer.pad_token_id] * 3 + ids]),
        "attention_mask": torch.tensor([[0] * 3 + [1] * len(ids)]),
    }
    alone, made = (lrp.explain(model, tokenizer, given) for given in ("dull", padded))
    assert made.value == pytest.approx(alone.value, abs=1e-6) and made.tokens == alone.tokens
    assert torch.allclose(made.relevance, alone.relevance, atol=1e-6)
    lm = small_gpt()
    padded = {
        "input_ids": torch.tensor([[0, 0, 5, 6]]), "attention_mask": torch.tensor([[0, 0, 1, 1]])
    }  # fmt: skip
    alone = lrp.explain(lm, byte_level(), torch.tensor([5, 6]), answer=2)
    made = lrp.explain(lm, byte_level(), padded, answer=2)
    assert [e.value for e in made] == pytest.approx([e.value for e in alone], abs=1e-6)


def test_a_pipeline_in_place_of_model_and_tokenizer(model: Any, tokenizer: Any) -> None:
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)
    made = lrp.explain(pipe, FILM, target="negative")
    assert torch.equal(made.relevance, lrp.explain(model, tokenizer, FILM, 0).relevance)
    assert torch.equal(lrp.explain(pipe, inputs=FILM, target=0).relevance, made.relevance)


def test_too_long_texts_are_cut_only_if_told(model: Any, tokenizer: Any) -> None:
    text = "a film " * 200
    with pytest.raises(InputError, match=r"402 tokens, but .* at most 256.*truncation"):
        lrp.explain(model, tokenizer, text)
    made = lrp.explain(model, tokenizer, text, truncation=True)
    assert len(made) == 256 and "of its 402 tokens the model got 256" in made.warnings[0]
    short = lrp.explain(model, tokenizer, text, truncation=True, max_length=8)
    assert len(short) == 8 and "got 8" in short.warnings[0]
    assert not lrp.explain(model, tokenizer, FILM, truncation=True).warnings
    for options in ({"max_length": 8}, {"truncation": True, "max_length": 0}):
        with pytest.raises(InputError, match="max_length= is how many tokens truncation=True"):
            lrp.explain(model, tokenizer, FILM, **options)


def test_nothing_is_cut_where_there_is_no_limit(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "model_max_length", 10**30)  # as tokenizers without a limit say
    table, head = nn.Embedding(tokenizer.vocab_size, 4), nn.Linear(4, 2)

    def model(input_ids: Tensor) -> Tensor:
        scores: Tensor = head(table(input_ids).mean(1))
        return scores

    made = lrp.explain(model, tokenizer, FILM, truncation=True)
    assert not made.warnings and len(made) == len(lrp.explain(model, tokenizer, FILM))


def test_unknown_tokens_are_said(model: Any, tokenizer: Any) -> None:
    (warning,) = lrp.explain(model, tokenizer, "😀 😀 film film").warnings
    assert warning.startswith("50 % of the tokens are unknown to this tokenizer")


def test_warnings_about_the_numbers(model: Any, tokenizer: Any) -> None:
    zero, lost = lrp.explain(model, tokenizer, FILM, rules="gi").warnings
    assert "zero up to rounding" in zero and "unaccounted for" in lost
    other = sentiment()[0].train()
    with pytest.warns(UserWarning):
        assert any("model.eval()" in w for w in lrp.explain(other, tokenizer, FILM).warnings)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [("", "empty"), ([], "list of inputs is empty"), ([FILM, " "], "input 1: the text is empty"),
     (3.5, "cannot explain float"),
     ({"input_ids": ["a", "b"]}, "'input_ids' holds no numbers: list"),
     ({"input_ids": [0.5, 1.5]}, "token ids are whole numbers, not torch.float32"),
     ({"input_ids": torch.ones(1, 0).long()}, r"have the shape \(1, tokens\), not \(1, 0\)"),
     ([10**6], "the tokenizer is not that of the model"),
     (("a", "b", "c"), "tuple of 3 texts as one input: a pair is a tuple of two texts"),
     ([["a", "b"], ["c", "d"]], "input 0: cannot explain list of 2 texts as one input"),
     ({"attention_mask": [1]}, "cannot explain dict"),
     ([{"role": "user", "content": "hi"}], "chat template")],
)  # fmt: skip
def test_inputs_that_are_refused(inputs: Any, reason: str, model: Any, tokenizer: Any) -> None:
    with pytest.raises(InputError, match=reason):
        lrp.explain(model, tokenizer, inputs)


def test_a_text_of_which_no_token_is_known() -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    with pytest.raises(InputError, match="the tokenizer made no token of the text"):
        lrp.explain(small_gpt(), bare, "xyz")


def test_functions_without_a_signature_get_all_that_a_model_may_take() -> None:
    made = {"input_ids": 1, "token_type_ids": 2, "offset_mapping": 3}
    assert for_the_model(made, max) == {"input_ids": 1, "token_type_ids": 2}
    assert for_the_model(made, lambda input_ids: input_ids) == {"input_ids": 1}


def test_arguments_in_the_wrong_place(model: Any, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="nothing to explain"):
        lrp.explain(model, FILM)
    with pytest.raises(InputError, match="loaded model"):
        lrp.explain("gpt2", tokenizer, FILM)
    with pytest.raises(InputError, match=r"explain\(model, tokenizer, text\)"):
        lrp.explain(model, None, FILM)
    with pytest.raises(InputError, match=r"needs the tokenizer of the model, and 'bert' is none"):
        lrp.explain(model, "bert", FILM)
    with pytest.raises(InputError, match="second argument is a model"):
        lrp.explain(model, model, FILM)
    with pytest.raises(InputError, match="must be an nn"):
        lrp.explain(3, tokenizer, FILM)


# ---- images -----------------------------------------------------------------------------------
def test_images_of_every_form(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels, labels = digit_samples()
    vision = digits()
    expected = ConservativeLRP(vision).attribute(pixels[8:9], target=4)[0]
    made = lrp.explain(vision, None, pixels[8], target="4")
    assert torch.equal(made.relevance, expected) and made.task == "image classification"
    assert made.sum + sum(made.absorbed.values()) == pytest.approx(made.value, abs=1e-4)
    array = ((pixels[8, 0] + 1) * 127.5).round().to(torch.uint8).numpy()
    picture = image.fromarray(array)
    picture.save(tmp_path / "four.png")
    for item in (array, picture, tmp_path / "four.png", str(tmp_path / "four.png")):
        again = lrp.explain(vision, None, item, target=4)
        assert torch.allclose(again.relevance, expected, atol=1e-2)
    many = lrp.explain(vision, None, pixels[:3], target=labels[:3])
    assert [e.target for e in many] == ["0", "0", "1"]
    with pytest.raises(InputError, match="an image has no words"):
        made.words()
    with pytest.raises(InputError, match="there is no image"):
        lrp.explain(vision, None, "missing.png")
    with pytest.raises(InputError, match="cannot explain float as an image: give a file, a pict"):
        lrp.explain(vision, None, 0.5, task="image classification")
    with pytest.raises(InputError, match=r"\(channels, height, width\), not \(28, 28\)"):
        lrp.explain(vision, None, pixels[0, 0])


def test_an_image_processor_is_used() -> None:
    image = pytest.importorskip("PIL.Image")
    processor = transformers.ViTImageProcessor(size={"height": 8, "width": 8})
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, id2label={0: "cat", 1: "dog"},
    )  # fmt: skip
    vision = transformers.ViTForImageClassification(config).eval()
    picture = image.new("RGB", (20, 10), (200, 30, 60))
    made = lrp.explain(vision, processor, picture, target="dog")
    assert made.relevance.shape == (3, 8, 8) and not made.warnings
    inputs = processor(images=picture, return_tensors="pt")
    assert torch.equal(lrp.explain(vision, processor, inputs, "dog").relevance, made.relevance)
    rows = torch.tensor([200, 30, 60], dtype=torch.uint8).expand(10, 20, 3)
    for array in (rows, rows.permute(2, 0, 1), rows.numpy()):
        assert torch.equal(lrp.explain(vision, processor, array, 1).relevance, made.relevance)
    grey = [lrp.explain(vision, processor, image.new("L", (20, 10), 30), 1)]
    for shape in ((10, 20), (10, 20, 1), (1, 10, 20)):
        array = torch.full(shape, 30, dtype=torch.uint8)
        grey.append(lrp.explain(vision, processor, array, 1, task="image classification"))
    assert all(torch.equal(one.relevance, grey[0].relevance) for one in grey)
    own = lrp.explain(vision, lambda picture: inputs["pixel_values"][0], picture, "dog")
    assert torch.equal(own.relevance, made.relevance)
    with pytest.raises(InputError, match="the image processor gives no tensor"):
        lrp.explain(vision, lambda picture: "pixels", picture)
    with pytest.raises(InputError, match=r"array of the shape \(2, 3, 4, 5\) is no image"):
        pixels_of(torch.ones(2, 3, 4, 5, dtype=torch.uint8), processor, config)
    pipe = transformers.pipeline("image-classification", model=vision, image_processor=processor)
    assert torch.equal(lrp.explain(pipe, picture, target=1).relevance, made.relevance)


# ---- what is shown and written ----------------------------------------------------------------
def test_tables(model: Any, tokenizer: Any) -> None:
    pytest.importorskip("pandas")
    made = lrp.explain(model, tokenizer, FILM)
    table = made.to_frame()
    assert list(table.columns) == ["token", "relevance", "word", "special", "part", "start", "end"]
    assert table["relevance"].sum() == pytest.approx(made.sum)
    many = lrp.explain(model, tokenizer, [FILM, "dull"]).to_frame()
    assert many["example"].tolist() == [0] * 7 + [1] * 3
    pixels = lrp.explain(digits(), None, digit_samples()[0][0]).to_frame()
    assert len(pixels) == 28 * 28 and list(pixels.columns) == ["row", "column", "relevance"]


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_there_and_back(suffix: str, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    pictured = lrp.explain(digits(), None, digit_samples()[0][0])
    for made in (lrp.explain(model, tokenizer, f"{FILM} 😀"), pictured):
        made.save(tmp_path / f"one.{suffix}")
        again = lrp.Explanation.load(tmp_path / f"one.{suffix}")
        alike(made, again)
        with pytest.raises(InputError, match="explain it again"):
            again.audit()
    many = lrp.explain(model, tokenizer, [FILM, "dull"])
    many.save(tmp_path / f"many.{suffix}")
    for one, other in zip(many, lrp.Explanations.load(tmp_path / f"many.{suffix}"), strict=True):
        alike(one, other)
    with pytest.raises(InputError, match=r"2 explanations; read it with Explanations\.load"):
        lrp.Explanation.load(tmp_path / f"many.{suffix}")


def test_explanations_travel_to_other_processes(model: Any, tokenizer: Any) -> None:
    made = lrp.explain(model, tokenizer, [FILM, "dull"])
    again = pickle.loads(pickle.dumps(made))
    for one, other in zip(made, again, strict=True):
        alike(one, other)
    with pytest.raises(InputError, match="another process or a copy has no model"):
        again[0].audit()
    assert made[0].audit().is_covered


def test_parquet_is_a_table_for_others(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    lrp.explain(model, tokenizer, [FILM, "dull"]).save(tmp_path / "x.parquet")
    table = pandas.read_parquet(tmp_path / "x.parquet")
    assert table["target"].tolist() == ["positive", "negative"]
    assert len(table["relevance"][0]) == len(table["tokens"][0]) == 7


def test_pages_and_pictures(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = lrp.explain(model, tokenizer, "<b>charming</b> & funny")
    for suffix, start in (
        ("html", b"<!DOCTYPE"),
        ("png", b"\x89PNG"),
        ("pdf", b"%PDF"),
        ("svg", b"<?xml"),
    ):
        made.save(tmp_path / f"x.{suffix}")
        assert (tmp_path / f"x.{suffix}").read_bytes().startswith(start)
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert ">charming</span>" in page and "<b>" not in page and "logit of" in page
    many = lrp.explain(model, tokenizer, [FILM, "dull"])
    many.save(tmp_path / "many.html")
    assert (tmp_path / "many.html").read_text(encoding="utf-8").count("<h1>") == 2
    with pytest.raises(InputError, match=r"explanations\[0\]\.save"):
        many.save(tmp_path / "many.png")
    with pytest.raises(InputError, match=r"must end in \.html"):
        made.save(tmp_path / "x.txt")
    assert made.plot(width=4).get_size_inches()[0] == 4


def test_in_a_notebook_and_in_a_terminal(model: Any, tokenizer: Any) -> None:
    made = lrp.explain(model, tokenizer, f"{FILM} <script>")
    shown = made._repr_html_()
    assert shown.startswith('<div class="lrp">') and "<script" not in shown and "body{" not in shown
    assert re.search(r'data-r="\+\d\.\d{4}"[^>]*>charming<', shown)
    assert "charming" in str(made) and repr(made) == str(made) and "\x1b" not in str(made)
    many = lrp.explain(model, tokenizer, [FILM] * 22)
    assert "2 more" in many._repr_html_() and str(many).count("prediction") == 22
    report = made.audit()._repr_html_()
    assert report.startswith("<pre") and "Conservation" in report


def test_comparisons_and_reports_in_a_notebook(model: Any, tokenizer: Any) -> None:
    inputs = tokenizer(FILM, return_tensors="pt")
    shown = lrp.compare(model, inputs, target=1, methods=["GI", "LRP"])._repr_html_()
    assert shown.startswith('<div class="lrp"><style>') and "<table>" in shown
    made = lrp.report(model, [FILM], tokenizer=tokenizer, methods=["LRP"])._repr_html_()
    assert made.startswith("<iframe srcdoc=") and 'sandbox="allow-scripts"' in made


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [("x.json", "{", "no JSON"), ("x.json", "[]", "no explanations"), ("x.txt", "", "read from"),
     ("x.json", json.dumps({"format": "captum_lrp_tx explanation 1", "explanations": [{}]}),
      "no explanation"), ("x.parquet", "PAR", "no Parquet"),
     ("x.json", json.dumps({"format": "captum_lrp_tx explanation 1", "explanations": [3]}),
      "x.json holds no explanations")],
)  # fmt: skip
def test_files_that_are_no_explanations(
    name: str, content: str, reason: str, tmp_path: Path
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=reason):
        lrp.Explanation.load(tmp_path / name)
    with pytest.raises(InputError, match="there is no file"):
        lrp.Explanation.load(tmp_path / "missing.json")


# ---- language models --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"relevance": [1.0] * 6, "shape": [6]}, "another number of tokens than of relevances"),
        ({"words": [[0, 1], [1, 2, 3, 4, 5, 6]]}, "a token is in no word, or in several"),
    ],
)
def test_files_that_contradict_themselves(
    change: dict[str, Any], reason: str, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    file = tmp_path / "x.json"
    lrp.explain(model, tokenizer, FILM).save(file)
    stored = json.loads(file.read_text(encoding="utf-8"))
    stored["explanations"][0].update(change)
    file.write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(InputError, match=rf"x\.json holds no explanation \(ValueError: {reason}\)"):
        lrp.Explanation.load(file)


def test_parquet_files_of_others_are_no_explanations(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", exc_type=ImportError)
    parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    parquet.write_table(arrow.table({"text": ["a film"]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet holds no explanations, or those of another"):
        lrp.Explanations.load(tmp_path / "x.parquet")


def test_the_next_token() -> None:
    lm, fast = small_gpt(), byte_level()
    made = lrp.explain(lm, fast, "ab c", target="d")
    inputs = fast("ab c", return_tensors="pt")
    token = fast("d")["input_ids"][0]
    expected = ConservativeLRP(lm, "language-ah").attribute(inputs["input_ids"], target=(3, token))
    assert torch.allclose(made.relevance, expected[0], atol=1e-6) and made.rules == "language-ah"
    assert abs(made.unaccounted) < 1e-4 and not any("sink" in name for name in made.absorbed)
    assert (made.task, made.target, made.explains) == ("next token", "'d'", "logit of 'd'")
    against = lrp.explain(lm, fast, "ab c", target="d", contrast="e")
    assert against.explains == "logit of 'd' minus that of 'e'"
    with pytest.raises(TargetError, match="not one token but 2"):
        lrp.explain(lm, fast, "ab c", target="de")
    padded = {
        "input_ids": torch.tensor([[5, 6, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 0, 0]]),
    }
    alone = lrp.explain(lm, fast, torch.tensor([5, 6]))
    assert lrp.explain(lm, fast, padded).value == pytest.approx(alone.value, abs=1e-5)


def test_rules_of_a_next_token_are_another_preset_if_they_are_named() -> None:
    lm, fast = small_gpt(), byte_level()
    named = lrp.explain(lm, fast, "ab c", rules="ah+ln")
    assert named.rules == "ah+ln" and named.audit().rules.endswith("'ah+ln')")
    spread = lrp.explain(lm, fast, "ab c", bias="distribute")
    everything = spread.sum + sum(spread.absorbed.values())
    assert spread.rules == "language-ah" and everything == pytest.approx(spread.value, abs=1e-4)


def test_each_token_of_an_answer() -> None:
    lm, fast = small_gpt(), byte_level()
    many = lrp.explain(lm, fast, "ab c", answer="def")
    assert [e.target for e in many] == ["'d'", "'e'", "'f'"]
    assert many[2].tokens == (*"ab", "Ġ", *"cde") and many[2].explains.endswith(
        "token 3 of the answer"
    )
    ids = fast("ab cde", return_tensors="pt")["input_ids"]
    lrp_of_it = ConservativeLRP(lm, "language-ah")
    expected = lrp_of_it.attribute(ids, target=(5, fast("f")["input_ids"][0]))
    assert torch.allclose(many[2].relevance, expected[0], atol=1e-6)
    (only,) = lrp.explain(lm, fast, "ab c", answer="d")  # a sequence, by what was asked
    assert torch.equal(only.relevance, many[0].relevance)
    generated = lrp.explain(lm, fast, "ab c", answer=2, contrast=True)
    assert len(generated) == 2 and all(e.value >= 0 for e in generated)
    with pytest.raises(TargetError, match="either target= or answer="):
        lrp.explain(lm, fast, "ab c", "d", answer="e")
    for answer in (-1, 0, True, ""):
        with pytest.raises(TargetError, match="number of tokens or a text"):
            lrp.explain(lm, fast, "ab c", answer=answer)
    for answer in (125, "def" * 42):
        with pytest.raises(InputError, match=r"4 tokens and the answer up to 12\d, but the model"):
            lrp.explain(lm, fast, "ab c", answer=answer)
    with pytest.raises(InputError, match="several texts are a list, not a tuple"):
        lrp.explain(lm, fast, ("ab c", "d"))


def test_a_digit_is_a_token_and_no_id() -> None:
    lm, fast = small_gpt(), byte_level()
    made = lrp.explain(lm, fast, "2 + 2 =", target="4", contrast="5")
    assert made.explains == "logit of '4' minus that of '5'"
    token = fast("4")["input_ids"][0]
    assert token != 4
    assert lrp.explain(lm, fast, "2 + 2 =", target=token, contrast="5").value == made.value
    with pytest.raises(TargetError, match="is 44 without quotes, and id:44 on the command line"):
        lrp.explain(lm, fast, "2 + 2 =", target="44")
    with pytest.raises(TargetError, match="empty text"):
        lrp.explain(lm, fast, "2 + 2 =", target="")
    # half of a character has no text of its own
    byte = fast.convert_tokens_to_ids("\u00c3")
    assert lrp.explain(lm, fast, "2 + 2 =", target=byte).target == "'\u00c3'"


def test_chat_messages() -> None:
    lm, fast = small_gpt(), byte_level()
    fast.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    made = lrp.explain(lm, fast, [{"role": "user", "content": "hi"}])
    assert made.text == "user: hi\n" and made.words()[-2].text == "hi"
    several = lrp.explain(lm, fast, [[{"role": "user", "content": t}] for t in ("a", "b")])
    assert [e.text for e in several] == ["user: a\n", "user: b\n"]
    fast.chat_template = "{{ 'user: ' + messages[0]['content'] }}"
    with pytest.raises(InputError, match=r"template of the tokenizer fails .* a text as con"):
        lrp.explain(lm, fast, [{"role": "user", "content": [{"type": "text", "text": "hi"}]}])
