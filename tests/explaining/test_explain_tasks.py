"""``explain`` on every task: recipes of a few lines, on small models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers

import captum_lrp_tx as lrp
from captum_lrp_tx import ConservativeLRP
from captum_lrp_tx.attr.targets import Sum
from captum_lrp_tx.errors import InputError, TargetError, UnsupportedModelError
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


def test_similarity_of_two_texts(tokenizer: Any) -> None:
    model = bert("Model")
    made = lrp.explain(model, tokenizer, ("a good film", "the film is good"))
    conserved(made)
    states = [
        model(**tokenizer(t, return_tensors="pt")).last_hidden_state.mean(1)
        for t in made.text or ()
    ]
    assert made.value == pytest.approx(torch.cosine_similarity(*states).item(), abs=1e-5)
    assert (made.explains, made.task) == ("cosine similarity", "similarity of two texts")
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


def test_a_real_model_of_sentiment(shared: Any) -> None:
    folder = shared / "models" / "minilm-sst2"
    if not folder.is_dir():
        pytest.skip("no model minilm-sst2 among the shared files")
    pipe = transformers.pipeline("text-classification", str(folder))
    made = lrp.explain(pipe, "a charming and funny film")
    # the weights are stored, and loaded, in half precision
    assert made.sum + sum(made.absorbed.values()) == pytest.approx(made.value, abs=1e-2)
    assert {"charming", "funny"} & {w.text for w in made.top(3)}


def test_everything_is_typed() -> None:
    hints: Mapping[str, Any] = lrp.explain.__annotations__
    assert "return" in hints and "contrast" in hints
