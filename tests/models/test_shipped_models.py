"""The models that come with the package load offline, are small, and work."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from captum_lrp_tx import models

pytestmark = pytest.mark.captum

SHARED = Path(
    os.environ.get("CAPTUM_LRP_TX_SHARED", Path(__file__).resolve().parents[3] / "shared")
)
WEIGHT_SUFFIXES = {".safetensors", ".json", ".md", ".py", ".txt"}
LOADERS = [pytest.param("sentiment", id="sentiment"), pytest.param("digits", id="digits")]


def load(name):
    """Loads a shipped model without its tokenizer."""
    return models.sentiment()[0] if name == "sentiment" else models.digits()


@pytest.fixture(scope="module")
def sentiment():
    return models.sentiment()


@pytest.fixture(scope="module")
def digits():
    return models.digits()


def shared_file(*parts):
    """Gives a file of the data folder, or skips the test."""
    path = SHARED.joinpath("data", *parts)
    if not path.exists():
        pytest.skip(f"{path} is not there; CAPTUM_LRP_TX_SHARED names the folder with the data")
    return path


@torch.no_grad()
def classify(sentiment, sentences):
    """Gives the predicted class of each sentence."""
    model, tokenizer = sentiment
    classes = []
    for start in range(0, len(sentences), 64):
        batch = tokenizer(sentences[start : start + 64], padding=True, return_tensors="pt")
        classes += model(**batch).logits.argmax(-1).tolist()
    return classes


# Files


def shipped_files():
    return [
        path
        for path in models.MODELS_DIR.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]


def test_all_models_together_are_at_most_12_megabytes():
    assert sum(path.stat().st_size for path in shipped_files()) <= 12_000_000


def test_no_pickle_or_unknown_file_is_shipped():
    assert {path.suffix for path in shipped_files()} <= WEIGHT_SUFFIXES


@pytest.mark.parametrize("name", ["sentiment", "digits"])
def test_each_model_has_a_card_and_a_licence(name):
    folder = models.model_path(name)
    assert (folder / "README.md").read_text(encoding="utf-8").count("icence") >= 1
    assert (models.MODELS_DIR / "licenses" / f"{name}.md").exists()
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]


def test_the_licence_of_the_base_model_is_shipped_in_full():
    text = (models.MODELS_DIR / "licenses" / "Apache-2.0.txt").read_text(encoding="utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="digits, sentiment"):
        models.model_path("weather")


# Loading


@pytest.mark.parametrize("name", LOADERS)
def test_loads_in_single_precision_and_evaluation_mode(name):
    model = load(name)
    assert not any(module.training for module in model.modules())
    assert {weight.dtype for weight in model.state_dict().values()} <= {torch.float32, torch.int64}
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


@pytest.mark.parametrize("name", LOADERS)
def test_two_loads_are_independent_and_equal(name):
    first, second = load(name), load(name)
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    with torch.no_grad():
        pairs[0][0].add_(1)
    assert not torch.equal(*pairs[0])


@pytest.mark.parametrize("name", LOADERS)
def test_auto_classes_load_the_folder_without_help(name):
    import transformers

    auto = {
        "sentiment": transformers.AutoModelForSequenceClassification,
        "digits": transformers.AutoModelForImageClassification,
    }[name]
    model = auto.from_pretrained(models.model_path(name), local_files_only=True)
    assert model.dtype == torch.float32
    assert type(model) is type(load(name))


def test_loading_opens_no_connection(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    models.sentiment()
    models.digits()
    models.digit_samples()


def test_importing_the_module_does_not_import_transformers():
    code = (
        "import sys, importlib.util as u;"
        f"s = u.spec_from_file_location('shipped', {str(Path(models.__file__))!r});"
        "m = u.module_from_spec(s); s.loader.exec_module(m);"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("call", [models.sentiment, models.digits, models.digit_samples])
def test_missing_extra_is_named_with_its_remedy(monkeypatch, call):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match='pip install "transformers>='):
        call()


# Sentiment


OBVIOUS = [
    ("has a lot of the virtues of eastwood at his best.", 1),
    ("The film is a dull, lifeless mess.", 0),
    ("A wonderful, touching story with brilliant performances.", 1),
    ("I loved every minute of it!", 1),
    ("One of the best movies of the year.", 1),
    ("A beautiful and moving portrait of a family.", 1),
    ("The worst movie I have ever seen.", 0),
    ("Boring, badly acted and far too long.", 0),
    ("A complete waste of time and money.", 0),
    ("The plot is stupid and the jokes are not funny.", 0),
]


@pytest.mark.parametrize(("sentence", "label"), OBVIOUS)
def test_obvious_sentences(sentiment, sentence, label):
    assert classify(sentiment, [sentence]) == [label]


def test_labels_have_names(sentiment):
    assert sentiment[0].config.id2label == {0: "negative", 1: "positive"}


def test_padding_does_not_change_the_prediction(sentiment):
    model, tokenizer = sentiment
    alone = tokenizer(["a fine film"], return_tensors="pt")
    padded = tokenizer(["a fine film", "a fine film " * 10], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.allclose(
            model(**alone).logits[0], model(**padded).logits[0], rtol=0, atol=1e-4
        )


def test_tokenizer_splits_as_bert_does(sentiment):
    tokenizer = sentiment[1]
    assert tokenizer.tokenize("Has a lot of the virtues of Eastwood at his best.") == [
        *("has", "a", "lot", "of", "the", "virtues", "of", "eastwood", "at", "his", "best", ".")
    ]
    assert tokenizer.tokenize("it's Naïve-style!") == ["it", "'", "s", "naive", "-", "style", "!"]
    assert tokenizer("a b").input_ids == tokenizer.convert_tokens_to_ids(
        ["[CLS]", "a", "b", "[SEP]"]
    )
    assert tokenizer("a", "b").token_type_ids == [0, 0, 0, 1, 1]
    assert tokenizer.pad_token_id == sentiment[0].config.pad_token_id == 0


def test_tokenizer_falls_back_to_smaller_pieces(sentiment):
    tokenizer = sentiment[1]
    pieces = tokenizer.tokenize("Xylqwzo zyzzyva 31415926 #!@")
    assert tokenizer.unk_token not in pieces
    assert "".join(piece.removeprefix("##") for piece in pieces) == "xylqwzozyzzyva31415926#!@"


def test_tokenizer_fits_the_model(sentiment):
    model, tokenizer = sentiment
    assert sorted(tokenizer.get_vocab().values()) == list(range(model.config.vocab_size))
    assert tokenizer.model_max_length == model.config.max_position_embeddings
    assert tokenizer.mask_token_id is not None and tokenizer.unk_token_id is not None
    assert len(tokenizer("word " * 1000, truncation=True).input_ids) == tokenizer.model_max_length
    assert "lifeless film" in tokenizer.decode(tokenizer("a lifeless film").input_ids)


def test_accuracy_on_the_dev_split_of_sst2(sentiment):
    lines = shared_file("sst2", "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = sorted((line.rsplit("\t", 1) for line in lines), key=lambda row: len(row[0]))
    predicted = classify(sentiment, [sentence for sentence, _ in rows])
    correct = sum(a == int(b) for a, (_, b) in zip(predicted, rows, strict=True))
    assert len(rows) == 872
    assert correct / len(rows) >= 0.80


# Digits


def test_samples_are_two_of_each_class():
    images, labels = models.digit_samples()
    assert images.shape == (20, 1, 28, 28) and images.dtype == torch.float32
    assert images.min() == -1 and images.max() <= 1
    assert labels.dtype == torch.int64
    assert labels.tolist() == [digit for digit in range(10) for _ in range(2)]


@torch.no_grad()
def test_samples_are_read(digits):
    images, labels = models.digit_samples()
    assert (digits(images).logits.argmax(-1) == labels).sum() >= 18


def read_digits(name, header):
    """Reads a file of MNIST."""
    content = gzip.decompress(shared_file("mnist", name).read_bytes())
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8)


@torch.no_grad()
def test_accuracy_on_the_last_1000_digits(digits):
    images = read_digits("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)[-1000:]
    labels = read_digits("t10k-labels-idx1-ubyte.gz", 8)[-1000:]
    logits = digits((images.float() / 255 - 0.5) / 0.5).logits
    assert (logits.argmax(-1) == labels).float().mean() >= 0.95

    samples, classes = models.digit_samples()
    pixels = ((samples * 0.5 + 0.5) * 255).round().to(torch.uint8)
    same = (pixels[:, None] == images[None, :, 0, None]).flatten(2).all(-1)
    assert same.any(1).all()
    assert torch.equal(labels[same.int().argmax(1)].long(), classes)
