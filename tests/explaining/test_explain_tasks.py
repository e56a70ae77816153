"""``explain`` on every task: recipes of a few lines, on small models."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers

import captum_lrp_tx as lrp
from captum_lrp_tx import ConservativeLRP
from captum_lrp_tx.attr.targets import Sum
from captum_lrp_tx.errors import (
    CaptumLRPError,
    InputError,
    OutputError,
    TargetError,
    UnsupportedModelError,
)
from captum_lrp_tx.models import digit_samples, digits
from explanations import SMALL, conserved
from explanations import tokenizer as tokenizer


def bert(kind: str, **more: Any) -> Any:
    config = transformers.BertConfig(vocab_size=40, **SMALL, **more)
    return getattr(transformers, f"Bert{kind}")(config).eval()


def test_regression(tokenizer: Any) -> None:
    made = lrp.explain(bert("ForSequenceClassification", num_labels=1), tokenizer, "a good film")
    conserved(made)
    assert made.probability is None and "the score" in made.explains
    assert f"{made.value:+.4f}" in made.prediction


def test_a_regression_with_several_numbers_predicts_none_of_them(tokenizer: Any) -> None:
    model = bert(
        "ForSequenceClassification", problem_type="regression",
        id2label={0: "length", 1: "price", 2: "age"},
    )  # fmt: skip
    made = lrp.explain(model, tokenizer, "a good film", target="price")
    conserved(made)
    assert (made.explains, made.prediction, made.probability) == ("price", "", None)
    assert "logit" not in str(made) and "prediction" not in str(made)
    many = lrp.explain(model, tokenizer, "a good film", target="all")
    assert [e.target for e in many] == ["length", "price", "age"]
    made = lrp.explain(model, tokenizer, "a good film", target="price", contrast="age")
    assert made.value == pytest.approx(many[1].value - many[2].value, abs=1e-5)
    for options in ({}, {"target": "age", "contrast": True}):
        with pytest.raises(TargetError, match="regression"):
            lrp.explain(model, tokenizer, "a good film", **options)


def test_all_classes_are_those_that_the_model_gives(tokenizer: Any) -> None:
    """A configuration can name more classes, or fewer, or be none."""
    model = bert("ForSequenceClassification", num_labels=2)
    for names in ({0: "good", 1: "bad", 2: "worse"}, {0: "good"}):
        model.config.id2label = names
        made = lrp.explain(model, tokenizer, "a good film", target="all")
        assert [e.target for e in made] == ["good", names.get(1, "1")]
    plain = lrp.explain(
        lambda **x: model(**x).logits, tokenizer, tokenizer("a good film"), target="all"
    )
    assert [e.value for e in plain] == pytest.approx([e.value for e in made])


def test_cross_encoder(tokenizer: Any) -> None:
    model = bert("ForSequenceClassification", num_labels=1)
    made = lrp.explain(model, tokenizer, ("who made it?", "Anna made it."))
    conserved(made)
    assert {w.part for w in made.words()} == {"first", "second"}
    pairs = [("who?", "Anna."), ("a film", "the film")]
    assert [e.text for e in lrp.explain(model, tokenizer, pairs)] == pairs


def test_labels_of_which_several_hold(tokenizer: Any) -> None:
    model = bert(
        "ForSequenceClassification", problem_type="multi_label_classification",
        id2label={0: "funny", 1: "sad", 2: "long"},
    )  # fmt: skip
    many = lrp.explain(model, tokenizer, "a good film", target="all")
    assert [e.target for e in many] == ["funny", "sad", "long"]
    for made in many:
        conserved(made)
        best = max(e.value for e in many)
        assert made.probability == pytest.approx(float(torch.tensor(best).sigmoid()), abs=1e-5)


def test_token_classification(tokenizer: Any) -> None:
    model = bert("ForTokenClassification", id2label={0: "O", 1: "PER", 2: "LOC"})
    made = lrp.explain(model, tokenizer, "Anna lives in Rome.", target=("Rome", "LOC"))
    conserved(made)
    assert made.explains == "logit of LOC for the word 'Rome'"
    inputs = tokenizer("Anna lives in Rome.", return_tensors="pt")
    expected = ConservativeLRP(model).attribute(inputs, target=(4, 2))
    assert torch.allclose(made.relevance, expected[0], atol=1e-6)
    every = lrp.explain(model, tokenizer, "Anna lives in Rome.", target="all")
    assert [e.explains.rsplit(" ", 1)[1] for e in every] == [
        "'Anna'", "'lives'", "'in'", "'Rome'", "'.'",
    ]  # fmt: skip
    labels = model(**inputs).logits[0, 1:-1]
    found = lrp.explain(model, tokenizer, "Anna lives in Rome.")
    odds = labels.softmax(-1)[:, 1:].max(-1).values[labels.argmax(-1) != 0]
    if len(odds):
        assert found.probability == pytest.approx(float(odds.max()), abs=1e-5)
    with pytest.raises(TargetError, match="there is no word 'Paris'; the words are: Anna lives"):
        lrp.explain(model, tokenizer, "Anna lives in Rome.", target="Paris")
    twice = lrp.explain(model, tokenizer, "Anna lives. Anna plays.", target="all")
    assert [e.explains[-15:] for e in twice][::3] == ["'Anna' (1 of 2)", "'Anna' (2 of 2)"]


def test_question_answering(tokenizer: Any) -> None:
    model = bert("ForQuestionAnswering")
    asked = ("who made it?", "the film is made by Anna.")
    made = lrp.explain(model, tokenizer, asked, target="by Anna")
    conserved(made)
    assert made.explains == "start and end logit of 'by Anna'"
    assert {w.part for w in made.words()} == {"question", "context"}
    inputs = tokenizer(*asked, return_tensors="pt")
    output = model(**inputs)
    first, last = made.tokens.index("by"), made.tokens.index("Anna")
    value = output.start_logits[0, first] + output.end_logits[0, last]
    assert made.value == pytest.approx(value.item(), abs=1e-5)

    def forward(**given: Any) -> torch.Tensor:
        out = model(**given)
        return torch.stack([out.start_logits, out.end_logits], -1)

    target = Sum((first, 0), (last, 1))
    expected = ConservativeLRP(forward).attribute(inputs, target)
    assert torch.allclose(made.relevance, expected[0], atol=1e-6)
    best = lrp.explain(model, tokenizer, asked)
    assert best.prediction in asked[1] and best.value >= made.value - 1e-6
    halves = [lrp.explain(model, tokenizer, asked, target=t) for t in ("start", "end")]
    assert sum(h.value for h in halves) == pytest.approx(best.value, abs=1e-5)
    with pytest.raises(TargetError, match="does not contain 'Rome'"):
        lrp.explain(model, tokenizer, asked, target="Rome")
    with pytest.raises(InputError, match=r"\(question, context\)"):
        lrp.explain(model, tokenizer, "who made it?")


def test_words_that_stand_at_several_places_of_the_context(tokenizer: Any) -> None:
    model = bert("ForQuestionAnswering")
    asked = ("who?", "a film by Anna. Anna is good. plays")
    output = model(**tokenizer(*asked, return_tensors="pt"))
    scores = output.start_logits + output.end_logits
    made = lrp.explain(model, tokenizer, asked, target="Anna")
    places = [i for i, token in enumerate(made.tokens) if token == "Anna"]
    assert len(places) == 2
    assert made.value == pytest.approx(float(scores[0, places].max().detach()), abs=1e-5)
    # a word of its own goes before a part of another one, which stands first here
    parted = lrp.explain(model, tokenizer, ("who?", "plays good play"), target="play")
    assert parted.explains == "start and end logit of 'play'"
    cut = {"truncation": "only_second", "max_length": 8}
    with pytest.raises(TargetError, match="as the model got it, does not contain 'plays'"):
        lrp.explain(model, tokenizer, asked, target="plays", **cut)


def test_multiple_choice(tokenizer: Any) -> None:
    model = bert("ForMultipleChoice")
    item = ("who made the film?", ["Anna made it.", "Rome", "a film is good"])
    made = lrp.explain(model, tokenizer, item, target="Rome")
    conserved(made)
    assert made.target == "Rome" and made.tokens[-2:] == ("Rome", "[SEP]")
    alone = tokenizer(item[0], "Rome", return_tensors="pt")
    inputs = {key: value[None] for key, value in alone.items()}
    expected = ConservativeLRP(model).attribute(inputs, target=0)
    assert torch.allclose(made.relevance, expected[0, 0], atol=1e-5)
    against = lrp.explain(model, tokenizer, item, contrast=True)
    conserved(against)
    assert len(against) > len(made) and " rather than " in against.target
    with pytest.raises(InputError, match=r"\(text, \[choice"):
        lrp.explain(model, tokenizer, "who?")


class Reads(torch.nn.Module):
    """Scores choices by one of their places, or by all of them with their padding."""

    def __init__(self, places: slice) -> None:
        super().__init__()
        self.table, self.head, self.places = (
            torch.nn.Embedding(40, 4),
            torch.nn.Linear(4, 1),
            places,
        )

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.table(input_ids)[:, :, self.places].sum(2))
        return scores[..., 0]


def test_choices_are_filled_up_where_the_model_does_not_see_it(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = ("who made the film?", ["Anna made it.", "Rome"])
    model, last = bert("ForMultipleChoice"), Reads(slice(-2, -1)).eval()
    expected = lrp.explain(model, tokenizer, item, "Rome")
    monkeypatch.setattr(tokenizer, "padding_side", "left")
    found = lrp.explain(model, tokenizer, item, "Rome")
    assert torch.equal(found.relevance, expected.relevance) and found.value == expected.value
    made = lrp.explain(last, tokenizer, item, "Rome", task="multiple choice")
    conserved(made)
    ids = tokenizer(item[0], "Rome", return_tensors="pt")["input_ids"]
    alone = last(ids[None], torch.ones_like(ids[None]))
    assert made.value == pytest.approx(float(alone), abs=1e-6)
    with pytest.raises(InputError, match="other scores than alone; give choices of the same"):
        lrp.explain(Reads(slice(None)).eval(), tokenizer, item, task="multiple choice")
    same = (item[0], ["Anna", "Rome"])  # what it suggests works
    conserved(lrp.explain(Reads(slice(None)).eval(), tokenizer, same, task="multiple choice"))


def test_masked_token(tokenizer: Any) -> None:
    model = bert("ForMaskedLM")
    made = lrp.explain(model, tokenizer, "the film is [MASK].", target="good")
    conserved(made)
    inputs = tokenizer("the film is [MASK].", return_tensors="pt")
    expected = ConservativeLRP(model).attribute(inputs, (4, tokenizer.vocab["good"]))
    assert torch.allclose(made.relevance, expected[0], atol=1e-6)
    both = lrp.explain(model, tokenizer, "the [MASK] is [MASK].", contrast=True)
    assert [e.explains.rsplit(" at ")[1] for e in both] == ["mask 1 of 2", "mask 2 of 2"]
    assert all(e.value >= 0 for e in both)
    with pytest.raises(InputError, match=r"no mask; write \[MASK\]"):
        lrp.explain(model, tokenizer, "the film")


def test_sequence_to_sequence(tokenizer: Any) -> None:
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=3,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).eval()
    many = lrp.explain(model, tokenizer, "the film is good", answer="a good film")
    inputs = tokenizer("the film is good", return_tensors="pt")
    labels = tokenizer("a good film")["input_ids"]
    decoder = torch.tensor([[0, *labels[:2]]])
    made = many[2]
    assert len(many) in (len(labels), len(labels) - 1)
    conserved(made)
    assert {w.part for w in made.words()} >= {"text", "answer"}
    source, written = ConservativeLRP(model).attribute(
        {
            "input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"],
            "decoder_input_ids": decoder,
        },
        target=(2, labels[2]),
    )  # fmt: skip
    assert torch.allclose(made.relevance, torch.cat([source[0], written[0]]), atol=1e-6)
    model.generation_config.suppress_tokens = [0, 3]  # neither nothing nor the end
    generated = lrp.explain(model, tokenizer, "the film is good", answer=2, contrast=True)
    assert len(generated) == 2
    for one in generated:
        conserved(one)
    with pytest.raises(InputError, match=r"generates nothing of .*token_type_ids.*ids alone"):
        lrp.explain(model, tokenizer, {**inputs, "token_type_ids": inputs["attention_mask"] * 0})
    alone = lrp.explain(model, tokenizer, {"input_ids": inputs["input_ids"]}, answer=2)
    assert [e.target for e in alone] == [e.target.partition(" rather")[0] for e in generated]


def test_similarity_of_two_texts(tokenizer: Any) -> None:
    model = bert("Model")
    made = lrp.explain(model, tokenizer, ("a good film", "the film is good"))
    conserved(made)
    states = [
        model(**tokenizer(t, return_tensors="pt")).last_hidden_state.mean(1)
        for t in made.text or ()
    ]
    assert made.value == pytest.approx(torch.cosine_similarity(*states).item(), abs=1e-5)
    assert made.explains == "cosine similarity of the means over tokens"
    assert made.task == "similarity of two texts"
    parts = [w.part for w in made.words()]
    assert parts == ["first"] * 3 + ["second"] * 4
    halves = [
        sum(w.relevance for w in made.words(special=True) if w.tokens[0] < 5),
        sum(w.relevance for w in made.words(special=True) if w.tokens[0] >= 5),
    ]
    assert sum(halves) == pytest.approx(made.sum, abs=1e-5)
    with pytest.raises(InputError, match=r"no head.*\(first, second\)"):
        lrp.explain(model, tokenizer, "a film")
    with pytest.raises(TargetError, match="one number"):
        lrp.explain(model, tokenizer, ("a", "film"), target=1)


@pytest.mark.parametrize(
    ("pooling", "refused"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, ""),
        ({"pooling_mode": "mean", "include_prompt": True}, ""),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "mode_cls_token"),
        ({"pooling_mode": "lasttoken"}, "Pooling lasttoken"),
        (None, "2_Dense is a Dense"),
    ],
)
def test_folders_of_sentence_transformers(
    tokenizer: Any, tmp_path: Path, pooling: dict[str, Any] | None, refused: str
) -> None:
    bert("Model").save_pretrained(tmp_path)
    kinds = ["Transformer", "Pooling", "Normalize", *(["Dense"] if pooling is None else [])]
    parts = [
        {"path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds[:2] + kinds[:1:-1])
    ]
    (tmp_path / "modules.json").write_text(json.dumps(parts), encoding="utf-8")
    (tmp_path / "1_Pooling").mkdir()
    says = json.dumps(pooling or {"pooling_mode": "mean"})
    (tmp_path / "1_Pooling" / "config.json").write_text(says, encoding="utf-8")
    model = transformers.BertModel.from_pretrained(tmp_path).eval()
    if not refused:
        assert lrp.explain(model, tokenizer, ("a good film", "the film")).value
    else:
        with pytest.raises(InputError, match=rf"{refused}.*SentenceTransformer\('"):
            lrp.explain(model, tokenizer, ("a good film", "the film"))
    (tmp_path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json says how embeddings are made, and cannot"):
        lrp.explain(model, tokenizer, ("a good film", "the film"))


def test_models_of_ones_own(tokenizer: Any) -> None:
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = torch.nn.Embedding(40, 8), torch.nn.Linear(8, 2)

        def forward(self, input_ids: Any, attention_mask: Any = None, **_: Any) -> Any:
            return self.head(self.words(input_ids).mean(1))

    made = lrp.explain(Own().eval(), tokenizer, "a good film", target=1)
    conserved(made)
    vision = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
    pictured = lrp.explain(vision, None, torch.rand(3, 2, 2), target=2)
    conserved(pictured)
    assert pictured.relevance.shape == (3, 2, 2)


def test_tasks_that_are_not_known(tokenizer: Any) -> None:
    model = bert("ForPreTraining")
    with pytest.raises(UnsupportedModelError, match=r"BertForPreTraining.*ConservativeLRP"):
        lrp.explain(model, tokenizer, "a film")
    with pytest.raises(InputError, match="no task 'poetry'; there are: sequence classification"):
        lrp.explain(model, tokenizer, "a film", task="poetry")


def test_a_task_that_the_class_does_not_tell(tokenizer: Any) -> None:
    inner = bert("ForMaskedLM")

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **inputs: Any) -> Any:
            return self.inner(**inputs)

    made = lrp.explain(Wrapped().eval(), tokenizer, "a [MASK] film", "good", task="masked token")
    expected = lrp.explain(inner, tokenizer, "a [MASK] film", "good")
    assert torch.allclose(made.relevance, expected.relevance) and made.task == "masked token"


def t5() -> Any:
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=3,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config).eval()


def one_score() -> Any:
    return bert("ForSequenceClassification", num_labels=1)


def by_words(score: Any) -> Any:
    """A model of one's own, of the embedded words."""
    table = torch.nn.Embedding(40, 3)

    class Own(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> Any:
            return score(table(input_ids))

    return Own().eval()


PAIR = ("who made it?", "Anna made it.")
ENDS = torch.tensor([2, 3])  # nothing but special tokens


@pytest.mark.parametrize(
    ("build", "item", "options", "error", "reason"),
    [
        (lambda: bert("ForQuestionAnswering"), PAIR, {"contrast": True}, TargetError,
         "question answering has no contrast; explain one answer with target="),
        (lambda: bert("ForQuestionAnswering"), PAIR, {"target": 3}, TargetError,
         "target=3 is no answer; give words of the context, 'start' or 'end'"),
        (lambda: bert("ForTokenClassification"), "Anna lives", {"target": 2}, TargetError,
         "target=2 is no word; give its text, its number from 0 to 1, a pair"),
        (lambda: bert("ForTokenClassification"), ENDS, {}, InputError, "the text has no words"),
        (one_score, "a film", {"contrast": True}, TargetError,
         "a single output; there is none to contrast it with"),
        (one_score, "a film", {"target": (0,), "contrast": True}, TargetError,
         "contrast= goes with the name or number of an output as target="),
        (one_score, "a film", {"task": "next token"}, InputError,
         r"the output has the shape \(1, 1\), not \(1, tokens, vocabulary\)"),
        (one_score, ("a film", "it"), {"task": "similarity of two texts"}, OutputError,
         "BertForSequenceClassification gives no last_hidden_state to make an embedding of"),
        (lambda: bert("Model"), "a film", {"task": "next token", "answer": 2}, InputError,
         r"cannot generate; give the answer as a text: answer='\.\.\.'"),
        (lambda: by_words(lambda x: x), "a film", {}, OutputError,
         r"the output has the shape \(1, 4, 3\), not \(examples, classes\); pass a function"),
        (t5, "a film", {"hops": 1, "answer": "good"}, TargetError,
         "an encoder-decoder writes another, whose tokens are explained one by one"),
        (lambda: bert("ForMaskedLM"), "a [MASK]", {"target": "Anna lives"}, TargetError,
         r"the target 'Anna lives' is not one token but 2 \('Anna' 'lives'\); name one of them"),
    ],
)  # fmt: skip
def test_wishes_that_a_task_cannot_fulfil(
    build: Any, item: Any, options: Any, error: Any, reason: str, tokenizer: Any
) -> None:
    model = build()
    if "task" in options and hasattr(type(model), "generate") and "answer" in options:
        model = torch.nn.Sequential(model)  # transformers 4 lets more models generate
    with pytest.raises(error, match=reason):
        lrp.explain(model, tokenizer, item, **options)


@pytest.mark.parametrize(
    ("build", "options", "reason"),
    [
        (t5, {"answer": "good"}, "an answer in words needs the tokenizer of the model"),
        (lambda: bert("ForMaskedLM"), {"task": "next token", "answer": "good"},
         "an answer in words needs the tokenizer of the model"),
        (lambda: bert("ForMaskedLM"), {"task": "next token", "target": "good"},
         "the target 'good' needs a tokenizer; give the token's id instead"),
    ],
)  # fmt: skip
def test_words_need_a_tokenizer(build: Any, options: Any, reason: str) -> None:
    with pytest.raises(CaptumLRPError, match=reason):
        lrp.explain(build(), None, torch.tensor([[2, 7, 3]]), **options)


def test_tokens_that_no_text_becomes_are_named_as_the_vocabulary_has_them(tokenizer: Any) -> None:
    model = bert("ForMaskedLM")
    made = lrp.explain(model, tokenizer, "a [MASK]", target="##s")
    logits = model(**tokenizer("a [MASK]", return_tensors="pt")).logits
    assert made.value == pytest.approx(logits[0, 2, tokenizer.vocab["##s"]].item(), abs=1e-5)


@pytest.mark.parametrize("where", ["disk", "memory"])
@pytest.mark.parametrize("what", ["text", "image", "choices"])
def test_weights_that_are_elsewhere_until_they_are_needed(
    where: str, what: str, tokenizer: Any, tmp_path: Path
) -> None:
    """Such weights are on no device; the inputs go to where the model runs."""
    accelerate = pytest.importorskip("accelerate")
    model, processor, item = {
        "text": (bert("ForSequenceClassification"), tokenizer, "the film is good"),
        "image": (digits(), None, digit_samples()[0][:1]),
        "choices": (bert("ForMultipleChoice"), tokenizer, ("who made it?", ["Anna", "a film"])),
    }[what]
    expected = lrp.explain(model, processor, item)
    cpu = torch.device("cpu")
    if where == "disk":
        accelerate.disk_offload(model, tmp_path, execution_device=cpu)
    else:
        accelerate.cpu_offload(model, execution_device=cpu)
    assert any(p.is_meta for p in model.parameters())
    found = lrp.explain(model, processor, item)
    assert torch.equal(found.relevance, expected.relevance) and found.value == expected.value


def test_answers_end_where_the_model_says_so(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, good = t5(), tokenizer.vocab["good"]
    written = torch.tensor([[0, good, good, 0, 0]])
    monkeypatch.setattr(model, "generate", lambda **_: written)
    many = lrp.explain(model, tokenizer, "a film", answer=4)
    assert [e.target for e in many] == ["'good'", "'good'"]
    monkeypatch.setattr(model, "generate", lambda **_: written[:, [0, 1, 3]])
    (only,) = lrp.explain(model, tokenizer, "a film")  # a sequence, by what was asked
    assert torch.equal(only.relevance, many[0].relevance)
    named = lrp.explain(model, tokenizer, "a film", target="bad")
    assert isinstance(named, lrp.Explanation) and named.target == "'bad'"
    inputs = tokenizer("a film", return_tensors="pt")
    first = model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
        decoder_input_ids=torch.tensor([[0]]),
    ).logits[0, 0]  # fmt: skip
    assert named.value == pytest.approx(first[tokenizer.vocab["bad"]].item(), abs=1e-5)
    monkeypatch.setattr(model, "generate", lambda **_: written[:, -2:])
    with pytest.raises(InputError, match="answered nothing: it predicts the end of the text at on"):
        lrp.explain(model, tokenizer, "a film", answer=2)


def test_one_value_for_each_example_is_the_output(tokenizer: Any) -> None:
    model = by_words(lambda x: x.sum((1, 2)))
    made = lrp.explain(model, tokenizer, "a film")
    inputs = tokenizer("a film", return_tensors="pt")
    assert (made.target, made.explains) == ("the output", "output")
    assert made.value == pytest.approx(model(inputs["input_ids"]).item(), abs=1e-5)


class Slow:
    """As a tokenizer that is not fast: it does not say where the tokens stand in the text."""

    def __init__(self, fast: Any) -> None:
        self._fast = fast

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fast, name)

    def __call__(self, *texts: Any, **options: Any) -> dict[str, Any]:
        return dict(self._fast(*texts, **options))


def test_words_of_slow_tokenizers_are_put_together_from_their_tokens(tokenizer: Any) -> None:
    model, slow = bert("ForTokenClassification"), Slow(tokenizer)
    for word in ("plays", "film"):
        made = lrp.explain(model, slow, "Anna plays the film", target=(word, 1))
        expected = lrp.explain(model, tokenizer, "Anna plays the film", target=(word, 1))
        assert torch.equal(made.relevance, expected.relevance)
        assert made.explains == expected.explains
        assert [(w.text, w.relevance) for w in made.words()] == [
            (w.text, w.relevance) for w in expected.words()
        ]
        assert {w.start for w in made.words()} == {None}
    with pytest.raises(InputError, match=r"needs a fast tokenizer \(use_fast=True\)"):
        lrp.explain(bert("ForQuestionAnswering"), slow, PAIR)


def test_choices_need_an_attention_mask(tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.model_input_names = ["input_ids"]
    with pytest.raises(InputError, match="gives no attention mask, so choices cannot be padded"):
        lrp.explain(bert("ForMultipleChoice"), bare, ("who made it?", ["Anna", "a film"]))


def test_sentence_transformers_embed_by_themselves(tokenizer: Any) -> None:
    inner = bert("Model")

    class Sentences(torch.nn.Module):
        def encode(self) -> None: ...

        def tokenize(self) -> None: ...

        def forward(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
            return {"sentence_embedding": inner(**inputs).last_hidden_state.mean(1)}

    made = lrp.explain(Sentences().eval(), tokenizer, ("a good film", "the film is good"))
    expected = lrp.explain(inner, tokenizer, ("a good film", "the film is good"))
    assert made.task == "similarity of two texts" and made.value == pytest.approx(expected.value)
    torch.testing.assert_close(made.relevance, expected.relevance)
    assert not made.warnings
    model = Sentences().eval()
    model.prompts, model.default_prompt_name = {"query": "the "}, "query"  # type: ignore[assignment]
    (told,) = lrp.explain(model, tokenizer, ("good film", "film is good")).warnings
    assert "puts the prompt 'the ' before every text" in told


def test_a_real_model_of_sentiment(shared: Any) -> None:
    folder = shared / "models" / "minilm-sst2"
    if not folder.is_dir():
        pytest.skip("no model minilm-sst2 among the shared files")
    pipe = transformers.pipeline("text-classification", str(folder))
    made = lrp.explain(pipe, "a charming and funny film")
    # the weights are stored, and loaded, in half precision
    assert made.sum + sum(made.absorbed.values()) == pytest.approx(made.value, abs=1e-2)
    assert {"charming", "funny"} & {w.text for w in made.top(3)}


def marian() -> Any:
    config = transformers.MarianConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=0,
        eos_token_id=3, decoder_start_token_id=0, max_position_embeddings=32,
        forced_eos_token_id=None,
    )  # fmt: skip
    return transformers.MarianMTModel(config).eval()


def bert_to_bert() -> Any:
    parts = [transformers.BertConfig(vocab_size=40, **SMALL) for _ in range(2)]
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    config.decoder_start_token_id, config.pad_token_id = 2, 0
    return transformers.EncoderDecoderModel(config).eval()


@pytest.mark.parametrize("build", [marian, bert_to_bert])
def test_models_that_write_whatever_their_classes_are_called(build: Any, tokenizer: Any) -> None:
    model, start = build(), {marian: 0, bert_to_bert: 2}[build]
    *_, made = lrp.explain(model, tokenizer, "the film is good", answer="a good film")
    assert made.task == "sequence to sequence"
    conserved(made)
    ids = tokenizer("the film is good", return_tensors="pt")["input_ids"]
    labels = tokenizer("a good film")["input_ids"]
    decoder = torch.tensor([[start, *labels]])
    logits = model(input_ids=ids, decoder_input_ids=decoder).logits[0]
    last = labels.index(tokenizer.vocab[made.target.strip("'")])
    assert made.value == pytest.approx(logits[last, labels[last]].item(), abs=1e-5)


def test_what_is_forced_on_an_answer_is_not_its_first_token(tokenizer: Any) -> None:
    """A language, say, or the start token of BART, in whose place a word is no answer."""
    model, inputs = marian(), tokenizer("a film", return_tensors="pt")
    model.generation_config.forced_bos_token_id = 2
    model.generation_config.suppress_tokens = [3]
    ids = inputs["input_ids"]
    logits = model(input_ids=ids, decoder_input_ids=torch.tensor([[0, 2]])).logits[0, 1]
    made = lrp.explain(model, tokenizer, {"input_ids": ids}, target="bad")
    assert made.value == pytest.approx(logits[tokenizer.vocab["bad"]].item(), abs=1e-5)
    assert made.explains == "logit of 'bad' as token 1 of the answer"
    assert len(lrp.explain(model, tokenizer, {"input_ids": ids}, answer=2)) == 2
    written = lrp.explain(model, tokenizer, {"input_ids": ids}, answer="bad")
    assert written[0].value == made.value and torch.equal(written[0].relevance, made.relevance)


@pytest.mark.parametrize("kind", ["ForConditionalGeneration", "ForSequenceClassification"])
def test_what_the_decoder_is_given_is_not_left_out(kind: str, tokenizer: Any) -> None:
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=3,
    )  # fmt: skip
    model = getattr(transformers, f"T5{kind}")(config).eval()
    ids = tokenizer("a good film", return_tensors="pt")["input_ids"]
    given = {"input_ids": ids, "decoder_input_ids": ids}
    with pytest.raises(InputError, match="decoder_input_ids would have a part of it"):
        lrp.explain(model, tokenizer, given)


def test_everything_is_typed() -> None:
    hints: Mapping[str, Any] = lrp.explain.__annotations__
    assert "return" in hints and "contrast" in hints
