"""Answers that are explained as a whole, and the messages and documents that they rest on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import captum_lrp_tx as lrp
from captum_lrp_tx.attr.targets.generated_tokens import GeneratedTokens
from captum_lrp_tx.errors import InputError, TargetError
from captum_lrp_tx.explaining.tasks.language import piece_of_answer, pieces_of
from language_models import language_model, tokenizer

PROMPT, ANSWER = "the old cat", "and the dog ran"


def of_answer(hops: Any = "all", **options: Any) -> lrp.Explanation:
    made = lrp.explain(
        language_model("llama"), tokenizer(), PROMPT, answer=ANSWER, hops=hops, **options
    )
    assert isinstance(made, lrp.Explanation)
    return made


def ids_of(text: str) -> torch.Tensor:
    ids: torch.Tensor = tokenizer()(text, return_tensors="pt")["input_ids"]
    return ids


def test_the_whole_answer_in_hops() -> None:
    made = of_answer(2, rules="attnlrp")
    ids = ids_of(f"{PROMPT} {ANSWER}")
    found = lrp.AnswerLRP(language_model("llama"), "attnlrp").attribute_hops(ids, start=4, hops=2)
    torch.testing.assert_close(made.relevance, found.relevance[-1, 0])
    assert made.value == pytest.approx(float(found.value))
    assert dict(made.absorbed) == pytest.approx(found.absorbed[-1])
    assert abs(made.unaccounted) < 1e-4 * abs(made.value)
    assert made.tokens == ("<s>", "the", "old", "cat", "and", "the", "dog", "ran")
    assert made.explains == f"preference for the answer {ANSWER!r}" and made.target == ANSWER
    assert ANSWER in str(made) and made.audit().output == pytest.approx(made.value)


def test_a_piece_of_the_answer_and_a_target() -> None:
    ids = ids_of(f"{PROMPT} {ANSWER}")
    weights = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    assert repr(GeneratedTokens(ids, 4, weights)) == "GeneratedTokens(4:8)"
    model = lrp.AnswerLRP(language_model("llama"), "language-ah")
    expected = model.attribute(ids, GeneratedTokens(ids, 4, weights), start=4, hops=4)
    made = of_answer(4, target="the dog")
    torch.testing.assert_close(made.relevance, expected[0])
    contrast = lrp.targets.Contrast((-2, 17), (-2, 5))
    torch.testing.assert_close(
        of_answer(0, target=contrast).relevance,
        lrp.ConservativeLRP(language_model("llama"), "language-ah").attribute(ids, target=contrast)[
            0
        ],
    )


def test_generated_answers_and_many_texts() -> None:
    many = lrp.explain(language_model("gpt2"), tokenizer(), [PROMPT, "a cat"], answer=3, hops=1)
    assert isinstance(many, lrp.Explanations) and len(many) == 2
    assert [len(one) - n for one, n in zip(many, (4, 3), strict=True)] == [3, 3]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"target": "tree"}, "does not stand in the answer"),
        ({"target": 3}, "names a piece of it"),
        ({"contrast": True}, "for single tokens"),
        ({"hops": "many"}, "hops must be"),
        ({"hops": True}, "hops must be"),
    ],
)
def test_refusals(options: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        of_answer(**options)


def test_answers_go_on_behind_the_text() -> None:
    padded = tokenizer()(PROMPT, padding="max_length", max_length=6, return_tensors="pt")
    with pytest.raises(InputError, match="goes on behind the text; give it without padding"):
        lrp.explain(language_model("llama"), tokenizer(), padded, answer=ANSWER)


def test_positions_count_on_in_answers() -> None:
    model, ids = language_model("gpt2"), ids_of(PROMPT)
    given = {"input_ids": ids, "position_ids": torch.arange(ids.shape[1])[None]}
    made = lrp.explain(model, tokenizer(), given, answer=ANSWER, hops=0)
    torch.testing.assert_close(
        made.relevance, lrp.explain(model, tokenizer(), ids, answer=ANSWER, hops=0).relevance
    )


def test_models_that_give_more_than_they_write() -> None:
    model: Any = copy.deepcopy(language_model("gpt2"))
    plain = lrp.explain(model, tokenizer(), PROMPT, answer=3)
    model.generation_config.return_dict_in_generate = True
    told = lrp.explain(model, tokenizer(), PROMPT, answer=3)
    assert [one.target for one in told] == [one.target for one in plain]


def test_models_that_answer_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = language_model("llama")
    end = torch.tensor([[2, 0, 0]])
    monkeypatch.setattr(
        model, "generate", lambda input_ids, **_: torch.cat([input_ids, end], 1), raising=False
    )
    with pytest.raises(InputError, match="answered nothing: it predicts the end of the text"):
        lrp.explain(model, tokenizer(), PROMPT, answer=3)


def test_hops_need_an_answer() -> None:
    with pytest.raises(InputError, match="goes with answer="):
        lrp.explain(language_model("llama"), tokenizer(), PROMPT, hops=1)


def test_segments_of_documents(tmp_path: Path) -> None:
    made = of_answer(0)
    parts = made.by_segment({"first": "the old", "second": " cat "})
    assert [part.name for part in parts] == ["first", "second", "answer", "rest"]
    assert [part.tokens for part in parts] == [(1, 2), (3,), (4, 5, 6, 7), (0,)]
    assert sum(part.relevance for part in parts) == pytest.approx(made.sum)
    assert sum(part.share for part in parts) == pytest.approx(1.0)
    positive = made.relevance.clamp(min=0)
    assert parts[0].share == pytest.approx(float(positive[1:3].sum() / positive.sum()))
    assert [part.name for part in made.by_segment()] == ["text", "answer", "rest"]
    made.save(tmp_path / "answer.json")
    again = lrp.Explanation.load(tmp_path / "answer.json")
    assert again.by_segment({"first": "the old"})[0].tokens == (1, 2)


def test_segments_of_a_chat() -> None:
    fast = copy.deepcopy(tokenizer())
    fast.chat_template = "{% for m in messages %}on {{ m['content'].strip() }} mat {% endfor %}"
    messages = [
        {"role": "system", "content": "a cat\n"},
        {"role": "user", "content": "the cat sat"},
        {"role": "user", "content": "a cat"},
    ]
    made = lrp.explain(language_model("llama"), fast, messages, answer="dog ran", hops="all")
    assert isinstance(made, lrp.Explanation)
    parts = made.by_segment(messages)
    assert [(part.name, part.tokens) for part in parts] == [
        ("message 1: system", (1, 2)), ("message 2: user", (5, 6, 7)),
        ("message 3: user", (10, 11)), ("answer", (13, 14)), ("rest", (0, 3, 4, 8, 9, 12)),
    ]  # fmt: skip


def test_chats_that_end_with_an_answer() -> None:
    fast = copy.deepcopy(tokenizer())
    fast.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    chat = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
    ended = lrp.explain(language_model("llama"), fast, chat)
    assert isinstance(ended, lrp.Explanation) and "give it as answer=" in ended.warnings[0]
    asked = lrp.explain(language_model("llama"), fast, chat[:1], answer="sat", hops=0)
    assert isinstance(asked, lrp.Explanation) and not asked.warnings
    assert asked.tokens == ended.tokens  # and another thing is explained


def test_messages_whose_words_the_template_has_too(tmp_path: Path) -> None:
    fast = copy.deepcopy(tokenizer())
    fast.chat_template = (
        "the cat {% for m in messages %}on a mat {{ m['content'].strip() }} {% endfor %}"
        "{% if add_generation_prompt %}on a mat{% endif %}"
    )
    messages = [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "a "},
                {"role": "user", "content": "the dog\n"}]  # fmt: skip
    made = lrp.explain(language_model("llama"), fast, messages)
    assert isinstance(made, lrp.Explanation)
    places = [("message 1: user", (5,)), ("message 2: assistant", (9,)),
              ("message 3: user", (13, 14))]  # fmt: skip
    assert [(part.name, part.tokens) for part in made.by_segment(messages)[:3]] == places
    made.save(tmp_path / "chat.json")
    again = lrp.Explanation.load(tmp_path / "chat.json")
    assert again.by_segment(messages) == made.by_segment(messages)
    assert made.by_segment(messages[1:2])[0].tokens == (9,)
    as_text = lrp.explain(language_model("llama"), fast, made.text)
    assert isinstance(as_text, lrp.Explanation)
    assert as_text.by_segment(messages[2:])[0].tokens == (14, 15)
    with pytest.raises(InputError, match="'message 2: assistant' stands at several places"):
        as_text.by_segment(messages)


def test_pieces_of_characters_that_take_several_tokens() -> None:
    names = ["caf", "e", "\xc3", "\xa9", " ", "ol", "\xc3", "\xa9"]

    class Bytes:
        def decode(self, ids: list[int]) -> str:
            return "".join(names[i] for i in ids).encode("latin-1").decode("utf-8", "replace")

    ids = [0, 2, 3, 4, 5, 6, 7]
    assert pieces_of(ids, Bytes()) == ["caf", "", "é", " ", "ol", "", "é"]
    assert piece_of_answer("é", ids, Bytes()).tolist() == [[0, 0, 0, 0, 0, 1, 1]]
    assert piece_of_answer("café", ids, Bytes()).tolist() == [[1, 1, 1, 0, 0, 0, 0]]
    assert piece_of_answer("ol", ids, Bytes()).tolist() == [[0, 0, 0, 0, 1, 0, 0]]


@pytest.mark.parametrize(
    "segments, message",
    [
        ({"first": "a tree"}, "is not in the text as it stands"),
        ({"first": 3}, "is no text but int"),
        ({"rest": "a good film"}, "is called 'rest', as what lies in none"),
        (["the old"], "chat messages, or texts by name"),
    ],
)
def test_segments_that_are_not_there(segments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        of_answer(0).by_segment(segments)


def test_segments_need_places() -> None:
    made = lrp.explain(language_model("llama"), tokenizer(), ids_of(PROMPT))
    assert isinstance(made, lrp.Explanation)
    with pytest.raises(InputError, match="not known"):
        made.by_segment({"first": "the old"})
