"""The report: its numbers are those of ``attribute``, and its page shows them in a browser."""

from __future__ import annotations

import base64
import copy
import hashlib
import importlib.util
import io
import json
import math
import os
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from captum_lrp_tx import ConservativeLRP, explain
from captum_lrp_tx.cli import main
from captum_lrp_tx.cli.report import _Data, _labels, _short_enough, _summary
from captum_lrp_tx.errors import (
    CaptumLRPError,
    InputError,
    NonFiniteError,
    OutputError,
    TargetError,
)
from captum_lrp_tx.methods import METHODS, find_method
from captum_lrp_tx.models import digit_samples, digits, sentiment
from captum_lrp_tx.reporting import report
from captum_lrp_tx.reporting.page import embedded
from captum_lrp_tx.reporting.payload import MAP_SIDE, _picture, floats, shown_map
from captum_lrp_tx.visualization.arrays import pixels_of

# two of one length, so that a batch is made of them; one with word-pieces
TEXTS = ["a charming film", "an unwatchable mess of cliches", "a dreadful film"]
LABELS = ["positive", "negative", "positive"]
HAS_SCIPY = importlib.util.find_spec("scipy") is not None
NAMES = [method.name for method in METHODS if HAS_SCIPY or method.name != "A-Flow"]


class Page(HTMLParser):
    """Elements of a page, and the contents of its scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.found, self.inside = [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes), []))
        self.inside = self.found[-1][2]

    def handle_data(self, data):
        if self.inside is not None:
            self.inside.append(data)

    def handle_endtag(self, tag):
        self.inside = None

    def all(self, tag):
        return [
            (attributes, "".join(texts)) for name, attributes, texts in self.found if name == tag
        ]

    @property
    def data(self):
        return json.loads(next(text for a, text in self.all("script") if a.get("id") == "data"))


def decoded(text):
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype="<f4").copy())


def shown(data, example, method, explained):
    """What the page has for an example, a method and a class: relevance, sum, what is left out."""
    at = [m["name"] for m in data["methods"]].index(method)
    entry = data["values"][example][at]
    classes = data["examples"][example]["classes"]
    place = classes.index(explained) if data["methods"][at]["usesTarget"] else 0
    values = decoded(entry["r"]).reshape(len(entry["sum"]), -1)[place]
    return values, entry["sum"][place], entry.get("delta", [None] * 10)[place]


def direct(model, name, inputs, target, **settings):
    """The class of a method, called with one example."""
    explainer = find_method(name).attribution(model, **settings)
    if explainer.has_convergence_delta():
        return explainer.attribute(inputs, target=target, return_convergence_delta=True)
    return explainer.attribute(inputs, target=target), None


@pytest.fixture(scope="module")
def text():
    return sentiment()


@pytest.fixture(scope="module")
def everything(text):
    model, tokenizer = text
    return report(model, TEXTS, tokenizer=tokenizer, labels=LABELS, methods=NAMES, title="All")


@pytest.fixture(scope="module")
def page(everything):
    return Page(everything.html()).data


@pytest.fixture(scope="module")
def image():
    images, labels = digit_samples()
    return digits(), images[8:11], labels[8:11]


def quick(text, texts=TEXTS, **options):
    model, tokenizer = text
    options = {"methods": ["LRP"], "faithfulness": False, **options}
    return report(model, texts, tokenizer=tokenizer, **options)


# Numbers


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_texts_are_those_of_attribute(text, everything, page, name):
    model, tokenizer = text
    for i, sentence in enumerate(TEXTS):
        inputs = dict(tokenizer(sentence, return_tensors="pt"))
        for target in (0, 1):
            expected, delta = direct(model, name, inputs, target, seed=0)
            values, total, left = shown(page, i, name, target)
            tolerance = {"rtol": 1e-3, "atol": 1e-5 * float(expected.abs().max()) + 1e-7}
            torch.testing.assert_close(values, expected[0].float(), **tolerance)
            torch.testing.assert_close(everything[name].relevance[i, target], expected[0])
            assert total == pytest.approx(float(expected.sum()), rel=1e-3, abs=1e-4)
            assert (left is None) == (delta is None)
            if delta is not None:
                assert left == pytest.approx(float(delta), rel=1e-3, abs=1e-4)


def test_what_constants_took_is_what_explain_books(text, everything, page):
    model, tokenizer = text
    at = [method["name"] for method in page["methods"]].index("LRP")
    for i, sentence in enumerate(TEXTS):
        for place, target in enumerate(page["examples"][i]["classes"]):
            taken = page["values"][i][at]["absorbed"][place]
            booked = explain(model, tokenizer, sentence, target=target).absorbed
            assert taken == pytest.approx(sum(booked.values()), rel=1e-3, abs=1e-4)
            output = float(everything.examples[i].output[target])
            assert everything["LRP"].sums[i, target] + taken == pytest.approx(output, abs=1e-4)
    assert not any("absorbed" in row[NAMES.index("IG")] for row in page["values"])


@pytest.mark.parametrize("name", ["LRP", "GAE", "Rollout", "Saliency"])
def test_numbers_of_images_are_those_of_attribute(image, name):
    model, images, labels = image
    made = report(model, images, labels=labels, methods=[name], classes=[4, 7], faithfulness=False)
    data = Page(made.html()).data
    for i in range(len(images)):
        for target in (4, 7):
            expected = direct(model, name, images[i : i + 1], target)[0][0]
            expected = expected[-49:].reshape(7, 7) if expected.dim() == 1 else expected.sum(0)
            values, _, _ = shown(data, i, name, target)
            torch.testing.assert_close(values, expected.flatten(), rtol=1e-3, atol=1e-5)
            assert data["values"][i][0]["shape"] == [*expected.shape, 1]


def test_outputs_and_probabilities_are_those_of_the_model(text, everything, page):
    model, tokenizer = text
    for i, sentence in enumerate(TEXTS):
        output = model(**tokenizer(sentence, return_tensors="pt")).logits.detach()[0]
        example = page["examples"][i]
        torch.testing.assert_close(decoded(example["output"]), output)
        torch.testing.assert_close(decoded(example["probabilities"]), output.softmax(0))
        assert example["prediction"] == int(output.argmax())
    assert [e["label"] for e in page["examples"]] == [1, 0, 1]
    assert everything.accuracy == pytest.approx(2 / 3)


def test_activation_and_pruning_are_as_defined(text, everything, page):
    """A plain loop over the steps, for one example and one method."""
    model, tokenizer = text
    inputs = tokenizer(TEXTS[1], return_tensors="pt")
    ids = inputs["input_ids"]
    whole = model(**inputs).logits.detach()[0]
    target = int(whole.argmax())
    relevance = direct(model, "LRP", dict(inputs), target)[0][0].double()
    first, smallest = relevance.argsort(descending=True), relevance.abs().argsort()
    probabilities, changes = [], []
    fractions = np.linspace(0, 1, 11)
    for count in (math.ceil(f * ids.shape[1]) for f in fractions):
        inserted = torch.full_like(ids, tokenizer.unk_token_id)
        inserted[0, first[:count]] = ids[0, first[:count]]
        logits = model(**{**inputs, "input_ids": inserted}).logits.detach()[0]
        probabilities.append(float(logits.softmax(0)[target]))
        pruned = ids.clone()
        pruned[0, smallest[:count]] = tokenizer.unk_token_id
        logits = model(**{**inputs, "input_ids": pruned}).logits.detach()[0]
        changes.append(float((logits - whole).square().sum()))
    method = next(m for m in page["methods"] if m["name"] == "LRP")
    for key, expected in (("activation", probabilities), ("pruning", changes)):
        curve = method[key]
        assert curve["fractions"] == pytest.approx(fractions.tolist())
        values = decoded(curve["values"]).reshape(len(TEXTS), -1)[1]
        assert values.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)
        area = np.trapezoid(expected, fractions) if hasattr(np, "trapezoid") else np.trapz(
            expected, fractions
        )  # fmt: skip
        assert decoded(curve["area"])[1] == pytest.approx(area, rel=1e-3)
    assert everything.masking == "tokens replaced by [UNK]"


def test_images_have_curves_over_patches(image):
    model, images, _ = image
    made = report(model, images, methods=["LRP", "Rollout"], classes=1)
    assert "patches of 4 \u00d7 4 pixels taken out" in made.masking
    for method in made.methods:
        assert method.activation.values.shape == (3, 11)
        # everything inserted is the whole image; nothing removed changes nothing
        confidence = torch.stack([e.probabilities.max() for e in made.examples]).double()
        torch.testing.assert_close(method.activation.values[:, -1], confidence)
        assert method.pruning.values[:, 0].abs().max() == 0


def test_padding_is_dropped(text, everything):
    model, tokenizer = text
    padded = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert padded["attention_mask"].min() == 0
    made = report(
        model, padded, tokenizer=tokenizer, labels=LABELS, methods=["LRP"], faithfulness=False
    )
    for i, example in enumerate(everything.examples):
        assert made.examples[i].tokens == example.tokens
        assert made.examples[i].special == example.special
        for target in (0, 1):
            torch.testing.assert_close(
                made["LRP"].relevance[i, target], everything["LRP"].relevance[i, target]
            )


def test_names_of_tokens_may_count_padding(text):
    model, tokenizer = text
    padded = tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
    names = [tokenizer.convert_ids_to_tokens(row) for row in padded["input_ids"]]
    options = {"methods": ["Random"], "faithfulness": False}
    made = report(model, padded, tokens=names, **options)
    assert made.examples[0].tokens == ("[CLS]", "a", "charming", "film", "[SEP]")
    assert made.examples[0].special == (True, False, False, False, True)
    with pytest.raises(InputError, match="tokens\\[0\\] has 2 entries for 5 tokens"):
        report(model, padded, tokens=[["a", "b"], names[1]], **options)
    with pytest.raises(InputError, match="entries for 1 examples, but there are 2"):
        report(model, padded, tokens=names[:1], **options)


def test_texts_of_one_length_go_through_the_model_together(text):
    model, tokenizer = text
    sizes = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        report(model, ["a film"] * 6 + ["a longer film"], tokenizer=tokenizer, methods=["GI"],
               faithfulness=False)  # fmt: skip
    finally:
        handle.remove()
    # the outputs, then both classes of all examples of a length, then what constants took of each
    assert sizes == [6, 1, 12, 2] + [1] * 14


def test_large_maps_are_summed_in_blocks():
    values = torch.randn(100, 130)
    found = shown_map(values)
    assert max(found.shape) <= MAP_SIDE
    assert found.shape == (34, 44)
    torch.testing.assert_close(found.sum(), values.double().sum())
    torch.testing.assert_close(found[1, 2], values[3:6, 6:9].double().sum())
    assert torch.equal(decoded(floats(values)).reshape(100, 130), values)


def test_the_model_is_left_alone(text, untouched):
    model, tokenizer = text
    with untouched(model):
        report(model, TEXTS, tokenizer=tokenizer, methods=["LRP", "GAE", "IG"])


# What is explained


def test_words_are_merged_and_special_tokens_marked(page):
    example = page["examples"][1]
    tokens, words = example["tokens"], example["words"]
    assert tokens[0][:2] == ["[CLS]", 3] and tokens[-1][0] == "[SEP]"
    assert "unwatchable" in [text for text, _, _ in words]
    assert len(words) < len(tokens) == sum(count for _, _, count in words)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [(None, 10), ("all", 10), (1, 1), (3, 3), ([7], 2), (["4", 7], 2)],
)
def test_classes(image, classes, expected):
    model, images, _ = image
    made = report(model, images[:1], methods=["GI"], classes=classes, faithfulness=False)
    example = made.examples[0]
    assert example.classes[0] == example.prediction == 4
    assert len(example.classes) == len(set(example.classes)) == expected
    assert sorted(made["GI"].relevance) == sorted((0, c) for c in example.classes)


def test_of_many_classes_the_most_probable_and_the_true_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 50))
    images = torch.randn(2, 1, 4, 4)
    output = model(images).detach()
    label = int(output[0].argmin())
    made = report(model, images, labels=[label, None], methods=["Saliency"], faithfulness=False)
    assert list(made.examples[0].classes) == [*output[0].topk(3).indices.tolist(), label]
    assert list(made.examples[1].classes) == output[1].topk(3).indices.tolist()
    assert made.class_names[7] == "7"


def test_a_model_with_one_output():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    made = report(model, torch.randn(2, 1, 4, 4), methods=["Saliency"], faithfulness=False)
    assert made.examples[0].probabilities is None and made.accuracy is None
    with pytest.raises(InputError, match="one output"):
        report(model, torch.randn(2, 1, 4, 4), labels=[0, 0], methods=["Saliency"])


def test_a_regression_with_several_numbers_predicts_none_of_them():
    """The largest of them was called the prediction, with a probability."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    model.config = SimpleNamespace(
        problem_type="regression", num_labels=3, id2label={0: "joy", 1: "fear", 2: "anger"}
    )
    images = torch.randn(2, 1, 4, 4)
    with pytest.raises(TargetError, match=r"3 numbers; .*the numbers are: joy, fear, anger"):
        report(model, images, methods=["Saliency"], faithfulness=False)
    made = report(
        lambda *args, **kwargs: model(*args, **kwargs)[:, [1]],
        images, methods=["Saliency"], faithfulness=False, class_names=["fear"],
    )  # fmt: skip
    assert made.class_names == ("fear",) and made.examples[0].probabilities is None


def test_models_that_take_one_text_at_a_time(text):
    """Classifiers on GPT-like models, without a padding token in their configuration."""
    model, tokenizer = text

    def single(**inputs):
        if len(inputs["input_ids"]) > 1:
            raise ValueError("Cannot handle batch sizes > 1 if no padding token is defined.")
        return model(**inputs)

    made, expected = (
        report(f, TEXTS, tokenizer=tokenizer, methods=["GI"]) for f in (single, model)
    )
    assert made.examples[1].output == pytest.approx(expected.examples[1].output, abs=1e-5)
    assert made["GI"].relevance[0, 1] == pytest.approx(expected["GI"].relevance[0, 1], abs=1e-5)
    assert "batch sizes > 1" in made["GI"].unmeasured


def test_labels_must_fit(text):
    with pytest.raises(InputError, match="2 labels for 3 examples"):
        quick(text, labels=[0, 1])
    with pytest.raises(InputError, match="label 1: there is no class 'good'"):
        quick(text, labels=[0, "good", 1])
    with pytest.raises(InputError, match="label 0: there is no class 2"):
        quick(text, labels=[2, 0, 1])
    with pytest.raises(InputError, match="a text"):
        quick(text, labels="positive")
    assert quick(text, labels=torch.tensor([1, 0, 1])).accuracy == pytest.approx(2 / 3)
    assert quick(text, labels=["1", "Negative", None]).accuracy == 1.0
    stars = {"class_names": ["1", "2"]}  # not the numbers of these classes
    assert quick(text, labels=["2", "1", 1], **stars).accuracy == pytest.approx(2 / 3)
    with pytest.raises(InputError, match=r"label 0: there is no class .0.; .* 0 1, 1 2"):
        quick(text, labels=["0", "1", "1"], **stars)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"texts": "a film"}, InputError, "a list of texts"),
        ({"texts": []}, InputError, "no text"),
        ({"texts": ["a", 3]}, InputError, "not int"),
        ({"texts": ["film " * 600]}, InputError, "text 0 has 602 tokens, but the model takes at"),
        ({"methods": ["shap"]}, InputError, "unknown method"),
        ({"methods": []}, InputError, "no method"),
        ({"classes": ["neutral"]}, TargetError, "no class 'neutral'"),
        ({"classes": 0}, InputError, "classes must be a positive number"),
        ({"class_names": ["a"]}, InputError, "1 entries for 2 classes"),
        ({"classes": "most"}, InputError, "classes must be 'all', a number or a list, not 'most'"),
        ({"baseline": 0.5}, InputError, "token id"),
        ({"batch_size": 0}, InputError, "batch_size"),
    ],
)
def test_what_does_not_fit_is_refused(text, options, error, message):
    with pytest.raises(error, match=message):
        quick(text, **options)


def test_inputs_of_other_kinds_are_refused(text):
    model, _ = text
    with pytest.raises(InputError, match="need the model's tokenizer"):
        report(model, TEXTS)
    with pytest.raises(InputError, match=r"not torch.float32 of shape \(2, 3\)"):
        report(model, torch.randn(2, 3))
    with pytest.raises(InputError, match="one input of the model"):
        report(model, (torch.ones(1, 2), torch.ones(1, 2)))
    with pytest.raises(OutputError, match=r"not \(1, 3, 4, 4\)"):
        report(nn.Conv2d(3, 3, 1), torch.randn(1, 3, 4, 4))
    images = torch.ones(3, 1, 2, 2)
    images[1] = -1
    with pytest.raises(NonFiniteError, match="output of example 1 is NaN or infinite; leave the e"):
        report(lambda x: x.sqrt().flatten(1), images, methods=["Saliency"])


# Methods that fail


class Odd:
    """An attribution that gives NaN for texts with one token."""

    def __init__(self, token):
        self.token = token

    def has_convergence_delta(self):
        return False

    def attribute(self, inputs, target=None):
        found = torch.ones(inputs["input_ids"].shape)
        found[(inputs["input_ids"] == self.token).any(1)] = math.nan
        return found


def test_a_method_that_fails_says_why(text):
    model, tokenizer = text
    token = tokenizer("charming")["input_ids"][1]

    def never(_):
        raise NotImplementedError("not for this model")

    made = report(
        model,
        TEXTS,
        tokenizer=tokenizer,
        methods=["LRP", ("never", never), ("odd", lambda _: Odd(token))],
    )
    assert made.errors == {"never": "not for this model"}
    # only the example itself suffers, not the others of its batch
    (why,) = made["odd"].errors.values()
    assert why.startswith("the relevance is NaN or infinite; ") and 0 in made["odd"].errors
    assert sorted(made["odd"].relevance) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert made["odd"].activation.area.isnan().tolist() == [True, False, False]
    assert made["never"].unmeasured == "not for this model"
    data = Page(made.html()).data
    assert data["values"][0][2] == {"error": why}
    with pytest.raises(CaptumLRPError, match="never: not for this model"):
        report(model, TEXTS, tokenizer=tokenizer, methods=[("never", never)])


def test_a_rollout_of_a_model_without_attention_gives_its_reason():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    made = report(model, torch.randn(2, 1, 4, 4), methods=["Rollout", "Saliency"])
    assert "attention" in made.errors["Rollout"]
    (row,) = [line for line in _summary(made).splitlines() if line.startswith("Rollout")]
    assert row.split(maxsplit=1)[1] == made.errors["Rollout"]
    with pytest.raises(KeyError, match="nothing"):
        made["nothing"]
    # no patches to take out either, so they are set to a value
    assert made.masking.endswith("set to 0")
    assert made["Saliency"].activation is not None


# Curves

UNKNOWN = 1  # the id of the token that hides others


class Words(nn.Module):
    """A classifier of embedded words that may refuse texts with unknown ones."""

    def __init__(self, check=lambda unknown, scores: scores):
        super().__init__()
        self.words, self.head, self.check = nn.Embedding(7100, 4), nn.Linear(4, 2), check

    def forward(self, input_ids, attention_mask, token_type_ids=None, scale=None):
        mask = attention_mask[..., None].float()
        scores = self.head((self.words(input_ids) * mask).sum(1))
        scores = scores if scale is None else scores * scale[:, None]
        return self.check((input_ids == UNKNOWN).sum(1), scores)


def refused(unknown, scores):
    if unknown.any():
        raise RuntimeError("no unknown\n words")
    return scores


def broken_by_some(unknown, scores):
    return scores + torch.zeros_like(scores).masked_fill((unknown == 2)[:, None], math.inf)


@pytest.mark.parametrize(
    ("check", "reason"), [(refused, "no unknown words"), (broken_by_some, "NaN or infinit")]
)
def test_what_cannot_be_measured_says_why(text, check, reason):
    tokenizer = text[1]
    assert tokenizer.unk_token_id == UNKNOWN
    made = report(Words(check), TEXTS, tokenizer=tokenizer, methods=["GI"])
    method = made["GI"]
    assert reason in method.unmeasured and "\n" not in method.unmeasured
    assert method.activation is None and not method.error
    assert _summary(made).splitlines()[-1] == f"no curves: {method.unmeasured}"


def test_curves_without_an_attention_mask_are_those_with_one(text):
    """Texts of one length go together then, so that nothing is padded."""
    tokenizer, model = copy.deepcopy(text[1]), Words()
    expected = report(model, TEXTS, tokenizer=tokenizer, methods=["GI"])["GI"]
    tokenizer.model_input_names = ["input_ids"]

    class Bare(nn.Module):
        def forward(self, input_ids):
            return model(input_ids, torch.ones_like(input_ids))

    found = report(Bare(), TEXTS, tokenizer=tokenizer, methods=["GI"])["GI"]
    single = {"rtol": 1e-5, "atol": 1e-5}  # batches of other sizes round in other places
    torch.testing.assert_close(found.activation.values, expected.activation.values, **single)
    torch.testing.assert_close(found.pruning.values, expected.pruning.values, **single)


def test_what_belongs_to_a_text_as_a_whole_is_not_padded(text):
    tokenizer, model = text[1], Words()
    padded = {**tokenizer(TEXTS, padding=True, return_tensors="pt")}
    padded.pop("token_type_ids", None)
    padded["scale"] = torch.tensor([1, 2, 3])
    made = report(model, padded, tokenizer=tokenizer, methods=["GI"])
    whole = model(**padded).detach().softmax(1).max(1).values.double()
    torch.testing.assert_close(made["GI"].activation.values[:, -1], whole)


def test_without_a_tokenizer_padding_hides_tokens(text):
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    model = Words()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    made = report(model, inputs, methods=["GI"], tokens=[["a"] * 3] * 2)
    assert made.masking == "tokens replaced by token 0 (no padding is named)"
    hidden = model(torch.zeros_like(ids), inputs["attention_mask"]).detach().softmax(1)
    predicted = [example.prediction for example in made.examples]
    expected = hidden[range(2), predicted].double()
    torch.testing.assert_close(made["GI"].activation.values[:, 0], expected)


def test_labels_of_which_several_hold_have_their_own_probabilities():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    model.config = SimpleNamespace(problem_type="multi_label_classification", id2label=None)
    images = torch.randn(2, 1, 2, 2)
    made = report(model, images, methods=["Saliency"], faithfulness=False)
    expected = model(images).detach().sigmoid()
    torch.testing.assert_close(torch.stack([e.probabilities for e in made.examples]), expected)
    # as its curves say, also where the model stands in another
    made = report(nn.Sequential(model), images, methods=["Saliency"], faithfulness=False)
    torch.testing.assert_close(torch.stack([e.probabilities for e in made.examples]), expected)


def test_a_token_as_baseline(text):
    made = quick(text, methods=["IG"], baseline=5)
    assert made.baseline == "token 5 in place of every token, special tokens as they are"
    model, tokenizer = text
    inputs = dict(tokenizer(TEXTS[0], return_tensors="pt"))
    baseline = inputs["input_ids"].clone()
    baseline[:, 1:-1] = 5
    expected = find_method("IG").attribution(model, baseline=baseline).attribute(inputs, target=1)
    close = {"rtol": 1e-3, "atol": 1e-5}
    torch.testing.assert_close(made["IG"].relevance[0, 1], expected[0].float(), **close)


def test_large_images_are_shown_with_fewer_pixels():
    image = pytest.importorskip("PIL.Image")
    blocks = torch.rand(3, 4, 300).mul(255).round() / 255
    large = blocks.repeat_interleave(2, 1).repeat_interleave(2, 2)
    shown = _picture(large)
    assert (shown["height"], shown["width"]) == (8, 600)  # as the model sees it
    drawn = image.open(io.BytesIO(base64.b64decode(shown["src"].partition(",")[2])))
    assert drawn.size == (300, 4)
    expected = torch.from_numpy(pixels_of(blocks)).mul(255).round()
    assert np.abs(np.asarray(drawn, dtype=float) - expected.numpy()).max() <= 1


# The page


NASTY = "</script><script>alert(1)</script><!--\u2028\u202e<img src=x onerror=alert(1)>&amp;"


def test_texts_cannot_become_markup(text):
    made = quick(
        text, [NASTY, "a film"], title=NASTY, facts=[("data", NASTY)],
        class_names=[NASTY, "<b>good</b>"], labels=["<b>good</b>", None],
    )  # fmt: skip
    source = made.html()
    page = Page(source)
    assert len(page.all("script")) == 2 and not page.all("img") and not page.all("b")
    assert "alert(1)" not in "".join(text for a, text in page.all("script") if not a)
    data = page.data
    # invisible and reversing characters are spelt out, everything else is as given
    expected = NASTY.replace("\u2028", "\\u2028").replace("\u202e", "\\u202e")
    assert data["title"] == data["examples"][0]["text"] == data["classes"][0] == expected
    assert data["facts"] == [["data", expected]]
    assert page.all("title")[0][1] == page.all("h1")[0][1] == expected
    assert "\u2028" not in source and "\u202e" not in source


def test_embedded_json_cannot_leave_its_element():
    nasty = ["</SCRIPT>", "<!--", "]]>", "\u2028\u2029", "&lt;", "\ud800", "{{script}}"]
    written = embedded(nasty)
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == nasty


def test_placeholders_in_texts_stay_what_they_are(text):
    source = quick(text, ["{{script}} {{data}}"], title="{{style}}").html()
    assert Page(source).all("title")[0][1] == "{{style}}"
    assert Page(source).data["examples"][0]["text"] == "{{script}} {{data}}"


def test_the_policy_allows_its_own_script_and_style_only(everything):
    source = everything.html()
    page = Page(source)
    policy = next(a["content"] for a, _ in page.all("meta") if "http-equiv" in a)
    rules = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    for rule, tag in (("script-src", "script"), ("style-src", "style")):
        contents = [text for attributes, text in page.all(tag) if not attributes]
        digest = base64.b64encode(hashlib.sha256(contents[0].encode()).digest()).decode()
        assert len(contents) == 1 and rules[rule] == f"'sha256-{digest}'"
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", source))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a namespace, not a place
    assert not page.all("link") and not re.search(r"\b(fetch|import|XMLHttpRequest)\(", source)


def test_the_same_report_gives_the_same_page(text):
    options = {"methods": ["Random", "GradientShap"], "labels": LABELS}
    first, again = (quick(text, **options).html() for _ in range(2))
    assert first == again
    assert quick(text, **options, seed=1).html() != first


def test_a_file_is_written_whole_or_not_at_all(text, tmp_path, monkeypatch):
    made = quick(text)
    file = made.save(tmp_path / "page.html")
    assert file.read_text(encoding="utf-8") == made.html()
    file.write_text("older")

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        made.save(file)
    assert file.read_text() == "older" and os.listdir(tmp_path) == ["page.html"]
    with pytest.raises(InputError, match="no folder"):
        made.save(tmp_path / "nowhere" / "page.html")


def test_path_writes_the_page(text, tmp_path):
    made = quick(text, path=tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == made.html()


# The command


def run(capsys, *arguments):
    status = main(["report", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_command_on_a_table(tmp_path, capsys):
    table = tmp_path / "reviews.tsv"
    table.write_text("label\tsentence\n1\ta charming film\nnegative\ta dull mess\n\ta film\n")
    html = tmp_path / "out.html"
    status, out, err = run(
        capsys, "--file", table, "--methods", "lrp,random", "--html", html, "--classes", "positive"
    )
    assert status == 0 and f"wrote {html}" in err
    assert "3 texts, accuracy 100.0 %" in out and re.search(r"^LRP +\d+\.\d % ", out, re.M)
    data = Page(html.read_text(encoding="utf-8")).data
    assert [e["label"] for e in data["examples"]] == [1, 0, None]
    assert data["facts"] == [["model", "sentiment"], ["data", "reviews.tsv"]]
    assert all(1 in e["classes"] for e in data["examples"])


def test_labels_of_a_file_are_those_of_its_texts(tmp_path, capsys):
    (tmp_path / "lines.txt").write_text("a charming film\n\na dull mess\na film\n")
    arguments = (
        "--file", tmp_path / "lines.txt", "--labels", tmp_path / "labels.txt", "--methods",
        "random", "--no-faithfulness", "--html", tmp_path / "a.html",
    )  # fmt: skip
    (tmp_path / "labels.txt").write_text("positive\n\nnegative\nnegative\n")  # line by line
    status, _, err = run(capsys, *arguments)
    assert status == 1 and "4 labels for 3 examples; give one for each" in err
    (tmp_path / "labels.txt").write_text("positive\nnegative\n\n1\n")
    assert run(capsys, *arguments)[0] == 1
    (tmp_path / "labels.txt").write_text("positive\n\n1\n")
    status, _, _ = run(capsys, *arguments, "--limit", 2)
    data = Page((tmp_path / "a.html").read_text(encoding="utf-8")).data
    assert status == 0 and [e["label"] for e in data["examples"]] == [1, None]


def test_classes_that_no_one_named_go_by_number_or_as_the_configuration_has_them(text, monkeypatch):
    monkeypatch.setattr(text[0].config, "id2label", {0: "LABEL_0", 1: "LABEL_1"})
    made = quick(text, labels=["LABEL_1", "0", 1], classes=["label_0", "1"])
    assert [example.label for example in made.examples] == [1, 0, 1]
    assert made.class_names == ("0", "1")
    assert quick(text, class_names=["LABEL_1", "b"]).class_names == ("LABEL_1", "b")


def test_command_on_lines_with_a_limit(tmp_path, capsys):
    lines = tmp_path / "lines.txt"
    lines.write_text("a film\n\nanother film\n" + "word " * 600 + "\na third\n")
    arguments = ("--file", lines, "--methods", "random", "--no-faithfulness", "--html")
    status, out, err = run(capsys, *arguments, tmp_path / "a.html", "--limit", 2)
    assert status == 0 and "2 texts\n" in out and "AUAC" in out
    status, out, err = run(capsys, *arguments, tmp_path / "a.html")
    assert status == 0 and "3 texts\n" in out
    assert "1 texts of more than 256 tokens are left out" in err


def test_command_without_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = run(capsys, "--methods", "random", "--no-faithfulness")
    assert status == 0 and re.match(r"12 texts, accuracy \d+\.\d %", out)
    assert (tmp_path / "report.html").exists()


def test_command_on_images(tmp_path, capsys):
    images, labels = digit_samples()
    options = ("--methods", "gi", "--no-faithfulness", "--classes", 2, "--html")
    for i in (0, 8):
        (tmp_path / "set" / str(int(labels[i]))).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "set" / str(int(labels[i])) / f"{i}.npy", images[i].numpy())
    status, out, _ = run(capsys, "--images", tmp_path / "set", *options, tmp_path / "a.html")
    assert status == 0 and "2 images, accuracy 100.0 %" in out
    stored = ((images[:4] + 1) * 127.5).round().byte()
    np.save(tmp_path / "stack.npy", stored[:, 0].numpy())
    (tmp_path / "labels.txt").write_text("\n".join(map(str, labels[:4].tolist())) + "\n")
    status, out, _ = run(
        capsys, "--images", tmp_path / "stack.npy", "--labels", tmp_path / "labels.txt",
        *options, tmp_path / "b.html",
    )  # fmt: skip
    assert status == 0 and "4 images, accuracy 100.0 %" in out
    data = Page((tmp_path / "b.html").read_text(encoding="utf-8")).data
    expected = digits()((stored.float() / 255 - 0.5) / 0.5).logits
    torch.testing.assert_close(decoded(data["examples"][2]["output"]), expected[2].detach())
    status, out, _ = run(capsys, "--digits", "--limit", 3, *options, tmp_path / "c.html")
    assert status == 0 and out.startswith("3 images, accuracy 100.0 %")


@pytest.mark.parametrize("stored", ["of the model", "fractions", "channels last"])
def test_however_images_are_stored_the_page_is_the_same(tmp_path, capsys, stored):
    images = ((digit_samples()[0][:2] + 1) * 127.5).round()  # what bytes can hold
    as_the_model_takes_it = images / 127.5 - 1
    made = {"of the model": as_the_model_takes_it, "fractions": images / 255,
            "channels last": images.permute(0, 2, 3, 1).byte()}  # fmt: skip
    np.save(tmp_path / "a.npy", made[stored].numpy())
    np.save(tmp_path / "labels.npy", np.array([7, 7]))
    options = ("--methods", "gi", "--no-faithfulness", "--classes", "all", "--html")
    status, out, _ = run(
        capsys, "--images", tmp_path / "a.npy", "--labels", tmp_path / "labels.npy", *options,
        tmp_path / "a.html",
    )  # fmt: skip
    assert status == 0 and out.startswith("2 images")
    data = Page((tmp_path / "a.html").read_text(encoding="utf-8")).data
    assert [e["label"] for e in data["examples"]] == [7, 7]
    expected = digits()(as_the_model_takes_it).logits.detach()
    for example, logits in zip(data["examples"], expected, strict=True):
        torch.testing.assert_close(decoded(example["output"]), logits, rtol=1e-4, atol=1e-4)


def test_command_on_one_picture(tmp_path, capsys):
    image = pytest.importorskip("PIL.Image")
    array = ((digit_samples()[0][8, 0] + 1) * 127.5).round().byte().numpy()
    image.fromarray(array).save(tmp_path / "four.png")
    options = ("--methods", "gi", "--no-faithfulness", "--html", tmp_path / "a.html")
    status, out, _ = run(capsys, "--images", tmp_path / "four.png", *options)
    assert status == 0 and out.startswith("1 images")
    data = Page((tmp_path / "a.html").read_text(encoding="utf-8")).data
    assert [e["prediction"] for e in data["examples"]] == [4]


def test_labels_and_lengths_that_mean_nothing_to_the_model(capsys):
    data = _Data("a", ["film " * 600, "film"], ["1", "0"], 2)
    assert _labels(data, SimpleNamespace(id2label={0: "score"})) is None
    assert "the labels are left out: the model has one output" in capsys.readouterr().err
    endless = SimpleNamespace(model_max_length=10**30)  # as tokenizers without a limit say
    assert _short_enough(data, endless, nn.Linear(2, 2)) is data


def test_command_tells_how_much_it_leaves_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("captum_lrp_tx.cli.report.LIMIT", 2)
    arguments = ("--methods", "random", "--no-faithfulness", "--html", tmp_path / "a.html")
    np.save(tmp_path / "stack.npy", digit_samples()[0][:3, 0].numpy())
    (tmp_path / "set").mkdir()
    for i in range(3):
        np.save(tmp_path / "set" / f"{i}.npy", digit_samples()[0][i].numpy())
    (tmp_path / "lines.txt").write_text("a film\nanother\na third\n")
    for option, name, what in (
        ("--images", "stack.npy", "images"), ("--images", "set", "images"),
        ("--file", "lines.txt", "texts"),
    ):  # fmt: skip
        status, out, err = run(capsys, option, tmp_path / name, *arguments)
        assert status == 0 and out.startswith(f"2 {what}")
        assert f"the first 2 {what} of 3; --limit N takes more" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--file", "missing.tsv"], "cannot read missing.tsv: No such file"),
        (["--images", "missing"], "there is no folder or file missing"),
        (["--html", "nowhere/a.html"], "cannot write nowhere/a.html: there is no folder"),
        (["--methods", "shap"], "unknown method 'shap'"),
        (["--digits", "--file", "a.tsv"], "give one of --file, --images and --digits"),
        (["--classes", "neutral"], "there is no class 'neutral'; the classes are: 0 negative"),
        (["--classes", ","], "names no class"),
        (["--classes", "0"], "'0' is no positive number"),
        (["--methods", ","], "names no method"),
        (["--labels", "labels.txt"], "--labels is for --file and --images"),
        (["--file", "other.tsv"], 'other.tsv is a table without a column "sentence"'),
        (["--file", "heads.tsv"], "heads.tsv holds no text"),
        (["--file", "blank.txt"], "blank.txt holds no text"),
        (["--file", "latin.txt"], "cannot read latin.txt: it is no UTF-8 text"),
        (["--file", "long.txt"], "long.txt has no text that the model can take"),
        (["--images", "empty"], "the folder empty holds no images"),
        (["--images", "latin.npy"], "cannot read latin.npy as an array"),
        (["--images", "words.npy"], "words.npy holds <U1 values; images have numbers"),
        (["--images", "small.npy"], "small.npy has images of the shape (1, 3, 3), but the"),
        (["--images", "none.npy"], "none.npy has the shape (0, 1, 28, 28); images have"),
        (["--model", "language"], "language predicts tokens; a report is for classifiers. Use"),
        (["--images", "huge.npy"], "huge.npy has values that are not finite or far out of range"),
    ],
)
def test_command_fails_in_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "language").mkdir()
    (tmp_path / "language" / "config.json").write_text(
        '{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}'
    )
    (tmp_path / "labels.txt").write_text("1\n")
    (tmp_path / "other.tsv").write_text("body\tlabel\na film\t1\n")
    (tmp_path / "heads.tsv").write_text("sentence\tlabel\n\t1\n")
    (tmp_path / "blank.txt").write_text("\n  \n")
    (tmp_path / "long.txt").write_text("word " * 600)
    for name in ("latin.txt", "latin.npy"):
        (tmp_path / name).write_bytes("caf\u00e9".encode("latin-1"))
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    np.save(tmp_path / "small.npy", np.zeros((2, 3, 3)))
    np.save(tmp_path / "none.npy", np.zeros((0, 28, 28)))
    np.save(tmp_path / "huge.npy", np.full((1, 28, 28), 1e9))
    status, _, err = run(capsys, *arguments)
    assert status in (1, 2) and message in err.strip().splitlines()[-1]
    assert not list(tmp_path.glob("*.html"))


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    service = shutil.which("chromedriver")
    if program is None or service is None:
        pytest.skip("no Chromium with its driver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--window-size=1400,900", f"--user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def saved(everything, image, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    model, images, labels = image
    drawn = report(model, images, labels=labels, methods=["LRP", "GAE"], faithfulness=False)
    return everything.save(folder / "text.html"), drawn.save(folder / "image.html"), drawn


class View:
    """A page in the browser."""

    def __init__(self, browser, file, address=""):
        self.browser = browser
        browser.get("about:blank")  # else a change of the part after # loads nothing
        browser.get_log("browser")
        browser.get(file.as_uri() + address)

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def one(self, selector):
        return self.browser.find_element("css selector", selector)

    def click(self, selector):
        self.one(selector).click()

    def point(self, element):
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser).move_to_element(element).perform()

    def press(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def tip(self):
        """The heading and the numbers of the tooltip."""
        heading, cells = self.browser.execute_script(
            "const tip = document.getElementById('tip'); if (tip.hidden) return [null, []];"
            "return [tip.querySelector('strong').innerText, [...tip.querySelectorAll('tr')]"
            ".map((row) => [...row.children].map((cell) => cell.innerText))]"
        )
        assert heading is not None, "no tooltip"
        numbers = {name: float(value.replace("\u2212", "-")) for name, value, *_ in cells}
        return heading, numbers

    def rows(self):
        return [int(row.get_attribute("data-ex")) for row in self.all("#list .row")]

    def title(self):
        return self.one("#detail h2").text

    def complaints(self):
        return [entry["message"] for entry in self.browser.get_log("browser")]


def words_of(view, method):
    return view.all(f'#detail .words[data-method="{method}"] .w')


def test_hovering_shows_the_numbers_of_attribute(browser, saved, text):
    model, tokenizer = text
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    view = View(browser, saved[0])
    assert view.title() == "Text 1"
    for explained in (1, 0):
        view.click(f'.classes [data-class="{explained}"]')
        expected = ConservativeLRP(model).attribute(inputs, target=explained)[0]
        for place, word in enumerate(words_of(view, "LRP")):
            view.point(word)
            heading, numbers = view.tip()
            assert heading.startswith(word.text)
            assert numbers["LRP"] == pytest.approx(float(expected[place]), rel=1e-4, abs=1e-6)
            # the same word by the other methods
            gae = direct(model, "GAE", dict(inputs), explained)[0][0]
            assert numbers["GAE"] == pytest.approx(float(gae[place]), rel=1e-4, abs=1e-6)
    assert not view.complaints()


def test_words_sum_their_pieces(browser, saved, text):
    model, tokenizer = text
    inputs = tokenizer(TEXTS[1], return_tensors="pt")
    target = int(model(**inputs).logits.argmax())
    expected = ConservativeLRP(model).attribute(inputs, target=target)[0]
    view = View(browser, saved[0], "#ex=2")
    pieces = len(words_of(view, "LRP"))
    word = next(w for w in words_of(view, "LRP") if w.text == "unwatchable")
    view.point(word)
    heading, numbers = view.tip()
    first, last = map(int, re.search(r"tokens (\d+)\D(\d+)", heading).groups())
    assert numbers["LRP"] == pytest.approx(float(expected[first - 1 : last].sum()), rel=1e-4)
    view.click('[data-option="tokens"]')
    assert len(words_of(view, "LRP")) == len(expected) > pieces
    assert "pieces=tokens" in browser.current_url


def test_images_show_the_numbers_under_the_pointer(browser, saved):
    drawn = saved[2]
    view = View(browser, saved[1], "#ex=2&class=7")
    canvas = view.one('canvas[data-method="LRP"]')
    view.point(canvas)  # the middle
    heading, numbers = view.tip()
    row, column = (int(x) - 1 for x in re.search(r"row (\d+), column (\d+)", heading).groups())
    assert abs(row - 14) <= 1 and abs(column - 14) <= 1
    expected = drawn["LRP"].relevance[1, 7][row, column]
    assert numbers["LRP"] == pytest.approx(float(expected), rel=1e-4)
    patch = drawn["GAE"].relevance[1, 7][row // 4, column // 4]
    assert numbers["GAE"] == pytest.approx(float(patch), rel=1e-4)
    # by the arrow keys as well
    browser.execute_script("arguments[0].focus()", canvas)
    view.press("\ue014")
    assert f"column {column + 2}" in view.tip()[0]
    # the colours are those of the numbers: red where relevance is largest
    view.click('[data-option="map"]')
    place = int(drawn["LRP"].relevance[1, 7].argmax())
    red, _, blue = browser.execute_script(
        "const c = document.querySelector('canvas[data-method=LRP]');"
        "const d = c.getContext('2d').getImageData((arguments[1] + .5) * c.width / 28,"
        " (arguments[0] + .5) * c.height / 28, 1, 1).data; return [d[0], d[1], d[2]];",
        place // 28, place % 28,
    )  # fmt: skip
    assert red > 150 and blue < 100
    assert not view.complaints()


def test_methods_are_switched_off_and_on(browser, saved):
    view = View(browser, saved[0])
    assert view.all('[data-row="GAE"]')
    view.click('#methods [data-method="GAE"]')
    assert not view.all('[data-row="GAE"]') and "hide=GAE" in browser.current_url
    assert view.one('#methods [data-method="GAE"]').get_attribute("aria-pressed") == "false"
    browser.refresh()
    assert not view.all('[data-row="GAE"]')
    view.click('#methods [data-method="GAE"]')
    assert view.all('[data-row="GAE"]')


def test_filters_and_search(browser, saved):
    view = View(browser, saved[0])
    assert view.rows() == [1, 2, 3] and view.one("#count").text == "3 texts"
    view.click('[data-show="wrong"]')
    assert view.rows() == [3] and view.title() == "Text 3"
    assert view.one("#count").text == "1 of 3 texts"
    view.click("#reset")
    view.one("#search").send_keys("CLICHES")
    assert view.rows() == [2] and view.title() == "Text 2"
    view.one("#search").send_keys("x")
    assert view.rows() == [] and "No example passes" in view.one("#list").text
    view = View(browser, saved[0], "#predicted=1")
    assert view.rows() == [1]
    view = View(browser, saved[0], "#sort=unsure")
    confidences = [float(r.text.split()[0]) for r in view.all("#list .sure")]
    assert confidences == sorted(confidences) and sorted(view.rows()) == [1, 2, 3]


def test_keys(browser, saved):
    view = View(browser, saved[0])
    view.press("j")
    assert view.title() == "Text 2"
    view.press("\ue015")  # arrow down
    assert view.title() == "Text 3"
    view.press("k")
    assert view.title() == "Text 2"
    before = view.one("#explained").text
    view.press("c")
    assert {before, view.one("#explained").text} == {"negative", "positive"}
    view.press("s")
    assert view.one('[data-option="common"]').get_attribute("aria-pressed") == "true"
    # within a heat map the arrows go from word to word
    line = view.one('.words[data-method="LRP"]')
    browser.execute_script("arguments[0].focus()", line)
    view.press("\ue014", "\ue014")
    assert view.tip()[0].startswith(words_of(view, "LRP")[1].text)
    assert view.title() == "Text 2"
    view.press("/")
    assert browser.switch_to.active_element.get_attribute("id") == "search"


def test_figures(browser, saved, everything):
    view = View(browser, saved[0], "#view=conservation")
    tiles = view.all("#panel-conservation [data-row]")
    assert {t.get_attribute("data-row") for t in tiles} == {
        m.name for m in everything.methods if m.deltas
    }
    svg = view.one('#panel-conservation svg[data-method="LRP"]')
    points = svg.find_elements("css selector", ".point")
    rings = svg.find_elements("css selector", ".ring")
    ideal = svg.find_element("css selector", ".ideal")
    (x1, y1, x2, y2) = (float(ideal.get_attribute(name)) for name in ("x1", "y1", "x2", "y2"))

    def off(circle):
        across, up = (float(circle.get_attribute(name)) for name in ("cx", "cy"))
        return abs(up - y1 - (y2 - y1) * (across - x1) / (x2 - x1))

    assert len(points) == 3 and len(rings) >= 2  # a ring far from all others is not drawn
    assert max(map(off, points)) < 0.01 < min(map(off, rings))
    paths = view.one('#panel-conservation svg[data-method="IG"]')
    assert not paths.find_elements("css selector", ".ring")
    browser.execute_script("arguments[0].focus()", svg)
    view.press("\ue014")
    _, numbers = view.tip()
    chosen = min(range(3), key=lambda i: float(everything.examples[i].output.max()))
    predicted = everything.examples[chosen].prediction
    assert numbers["sum"] == pytest.approx(everything["LRP"].sums[chosen, predicted], rel=1e-4)
    taken = everything["LRP"].absorbed[chosen, predicted]
    assert numbers["by constants"] == pytest.approx(taken, rel=1e-4)
    assert abs(numbers["unaccounted"]) < 1e-4
    view.press("\ue007")  # Enter opens the example
    assert view.title() == f"Text {chosen + 1}"
    view.click("#tab-faithfulness")
    cells = {
        row.get_attribute("data-method"): row.find_element("css selector", "[data-name=AUAC]").text
        for row in view.all(".areas tbody tr")
    }
    assert set(cells) == {m.name for m in everything.methods}
    for name, shown_area in cells.items():
        expected = everything[name].activation.mean
        assert float(shown_area.split()[0]) == pytest.approx(expected, abs=6e-4)
    # of those that pass the filters
    view = View(browser, saved[0], "#view=faithfulness&show=wrong")
    cell = view.one('.areas tr[data-method="LRP"] [data-name=AUAC]').text
    assert float(cell.split()[0]) == pytest.approx(
        float(everything["LRP"].activation.area[2]), abs=6e-4
    )
    assert not view.complaints()


def test_only_rows_in_sight_exist(browser, text, tmp_path):
    made = quick(text, [f"film number {i}" for i in range(300)], methods=["Random"])
    view = View(browser, made.save(tmp_path / "many.html"), "#ex=250")
    assert 250 in view.rows() and len(view.rows()) < 40
    assert view.one('#list [aria-selected="true"]').get_attribute("aria-setsize") == "300"
    view.press("\ue015")
    assert view.title() == "Text 251"


def test_nasty_texts_are_shown_as_texts(browser, text, tmp_path):
    made = quick(text, [NASTY], title=NASTY, class_names=[NASTY, "<i>x</i>"], labels=[0])
    view = View(browser, made.save(tmp_path / "nasty.html"))
    assert view.one("#detail .plain").text.startswith("</script><script>alert(1)")
    assert not view.all("#detail img, #detail script, #detail i b")
    for name in ("conservation", "faithfulness", "about"):
        view.click(f"#tab-{name}")
    assert not view.complaints()


@pytest.mark.parametrize(
    "words, direction", [("the film", "ltr"), ("הסרט היה טוב", "rtl"), ("4 فيلم good", "rtl")]
)
def test_texts_run_as_their_first_letter_tells(browser, text, tmp_path, words, direction):
    view = View(browser, quick(text, [words]).save(tmp_path / "words.html"))
    line = view.one("#detail .words")
    assert words_of(view, "LRP")[0].text == "[CLS]"  # which is none of the text
    assert line.get_attribute("dir") == direction


def test_rounding_errors_have_no_bars(browser, everything, tmp_path):
    file = everything.save(tmp_path / "rounding.html")
    page = file.read_text()
    as_if_all_was = re.sub(r'"rounding": ?[^,}]+', '"rounding": 1e9', page)
    assert as_if_all_was != page
    file.write_text(as_if_all_was)
    view = View(browser, file)
    assert view.one('#detail [data-row="GI"] .line').text == "zero up to rounding"
    view.point(words_of(view, "GAE")[1])
    bars = {r.find_element("css selector", "th").text: r.find_element("css selector", "i")
            for r in view.all("#tip tr")}  # fmt: skip
    assert bars["GI"].size["width"] == 0 < bars["GAE"].size["width"]
