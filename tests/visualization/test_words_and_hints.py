"""Words of every kind of tokenizer, and messages whose advice works."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_tx import ConservativeLRP
from captum_lrp_tx.errors import InputError, OutputError
from captum_lrp_tx.reporting import report
from captum_lrp_tx.visualization import TokenHeatmap, text_records
from captum_lrp_tx.visualization.wording import scheme_of, special_ids

pytestmark = pytest.mark.captum


def drawn(tokens: list[str], **more: Any) -> list[tuple[str, bool]]:
    heatmap = TokenHeatmap(tokens, [1.0] * len(tokens), **more)
    pieces = heatmap.pieces()
    assert [i for p in pieces for i in p.tokens] == list(range(len(tokens)))
    assert sum(p.relevance for p in pieces) == len(tokens)
    return [(p.text, p.special) for p in pieces]


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["a</w>", "gra", "ffi", "ti</w>", ".</w>"], ["a", "graffiti", "."]),
        (["caf", "Ã©</w>", "noir</w>"], ["café", "noir"]),  # CLIP: bytes
        (["caf", "é</w>", "noir</w>"], ["café", "noir"]),  # GPT-1: characters
        (["ðŁ", "ĺĢ</w>", "ok</w>"], ["😀", "ok"]),
        (["go@@", "ing", "home"], ["going", "home"]),
        (["un@@", "believ@@", "able", "!"], ["unbelievable", "!"]),
        (["</w>", "a"], ["</w>", "a"]),
        (["@@", "a"], ["@@", "a"]),
    ],
)
def test_words_marked_at_their_end(tokens: list[str], words: list[str]) -> None:
    assert [text for text, _ in drawn(tokens)] == words


def test_special_tokens_end_and_begin_words() -> None:
    tokens = ["<|startoftext|>", "gra", "ffi", "<|endoftext|>", "ti</w>"]
    assert drawn(tokens) == [("<|startoftext|>", True), ("graffi", False),
                             ("<|endoftext|>", True), ("ti", False)]  # fmt: skip
    assert drawn(["go@@", "[SEP]", "ing"])[2] == ("ing", False)


@pytest.mark.parametrize("token", [
    "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<<SYS>>", "[TOOL_CALLS]",
    "<|im_start|>", "<\uff5cend\uff5c>", "<extra_id_7>", "<fim_prefix>", "<s>", "[CLS]",
])  # fmt: skip
def test_special_tokens_of_chats(token: str) -> None:
    assert drawn([token, "hello"])[0][1]


@pytest.mark.parametrize("token", ["[UNK]", "<unk>", "<b>", "<div>", "[1]", "[a]", "<0x0A>", "[I]"])
def test_text_in_brackets_is_text(token: str) -> None:
    assert not drawn([token, "hello"])[0][1]


def tokenizers(model: Any, decoder: Any) -> Any:
    """What is asked of a tokenizer of transformers, without the files of one."""
    names = ["un", "believ", "able", "<start_of_turn>", "<unk>"]
    return SimpleNamespace(
        backend_tokenizer=SimpleNamespace(model=model, decoder=decoder),
        all_special_ids=[4], unk_token_id=4,
        added_tokens_decoder={3: SimpleNamespace(special=True)},
        convert_ids_to_tokens=lambda ids: [names[i] for i in ids],
    )  # fmt: skip


def test_a_tokenizer_knows_what_no_mark_shows() -> None:
    decoders = pytest.importorskip("tokenizers").decoders
    models = pytest.importorskip("tokenizers").models
    of_bytes = tokenizers(models.BPE(), decoders.ByteLevel())
    heatmap = TokenHeatmap.from_ids(of_bytes, torch.tensor([3, 0, 1, 2, 4]), torch.ones(5))
    pieces = [(p.text, p.special) for p in heatmap.pieces()]
    assert pieces == [("<start_of_turn>", True), ("unbelievable", False), ("<unk>", False)]
    assert special_ids(of_bytes) == {3}
    with pytest.raises(ValueError, match=r"are a batch; .* ids\[0\], relevance\[0\]"):
        TokenHeatmap.from_ids(of_bytes, torch.tensor([[3, 0]]), torch.ones(1, 2))
    named = TokenHeatmap.from_ids(of_bytes, [0, 1], [1.0, 2.0], scheme="words", title="t")
    assert [p.text for p in named.pieces()] == ["un", "believ"] and named.title == "t"
    clip = tokenizers(models.BPE(end_of_word_suffix="</w>"), decoders.ByteLevel())
    assert scheme_of(clip) == "end-of-word"
    assert scheme_of(tokenizers(models.BPE(), decoders.WordPiece())) == "wordpiece"
    assert scheme_of(tokenizers(models.BPE(), decoders.Metaspace())) == "sentencepiece"
    assert scheme_of(object()) == "auto"


def test_records_and_reports_ask_the_tokenizer_too() -> None:
    decoders = pytest.importorskip("tokenizers").decoders
    of_bytes = tokenizers(pytest.importorskip("tokenizers").models.BPE(), decoders.ByteLevel())
    of_bytes.decode = lambda *_, **__: ""
    ids = torch.tensor([[3, 0, 1, 2, 4]])
    (record,) = text_records(torch.ones(1, 5), ids, of_bytes, special="drop")
    assert record.raw_input_ids == ["unbelievable", "&lt;unk&gt;"]
    words, head = nn.Embedding(5, 4), nn.Linear(4, 2)
    model = nn.Sequential(words, head, Mean())
    made = report(model, ids, tokenizer=of_bytes, methods=["GI"], faithfulness=False)
    assert made.scheme == "bytes"
    own = report(model, ids, tokenizer=of_bytes, tokens=[["<b>", "un@@", "believ@@", "able", "?"]],
                 methods=["GI"], faithfulness=False)  # fmt: skip
    assert own.scheme == "continued"


class Mean(nn.Module):
    """The mean over the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


# ---- hints ------------------------------------------------------------------------------------
class Questions(nn.Module):
    """Start and end scores, as question answering has them."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.words, self.head, self.output = nn.Embedding(9, 4), nn.Linear(4, 2), output

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        start, end = self.head(self.words(input_ids)).unbind(-1)
        return self.output(start, end)


def model_output(start: Tensor, end: Tensor) -> Any:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    return outputs.QuestionAnsweringModelOutput(start_logits=start, end_logits=end)


OUTPUTS: dict[str, tuple[Any, str]] = {
    "ModelOutput": (model_output, ".start_logits"),
    "dict": (lambda s, e: {"n": 3, "start": s, "end": e}, "['start']"),
    "tuple": (lambda s, e: (None, s, e), "[1]"),
    "object": (lambda s, e: SimpleNamespace(start=s, end=e), ".start"),
}
IDS = torch.tensor([[1, 2, 3, 4]])
INPUTS: list[Any] = [IDS, {"input_ids": IDS, "attention_mask": torch.ones(1, 4)}]


@pytest.mark.parametrize("inputs", INPUTS, ids=["tensor", "mapping"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_the_hint_about_outputs_works_as_it_stands(output: str, inputs: Any) -> None:
    made, chosen = OUTPUTS[output]
    model = Questions(made).eval()
    with pytest.raises(OutputError) as caught:
        ConservativeLRP(model).attribute(inputs, target=2)
    message = str(caught.value)
    assert ("(1, 4)" in message and "end" in message) or "[2]" in message
    hint = re.search(r"lambda .*$", message)
    assert hint is not None and hint[0].endswith(chosen)
    forward = eval(hint[0], {"model": model})
    relevance = ConservativeLRP(forward).attribute(inputs, target=2)
    assert relevance[0, 2] != 0 and not relevance[0, [0, 1, 3]].any()


def test_outputs_without_any_score() -> None:
    with pytest.raises(OutputError, match="no floating-point tensor"):
        ConservativeLRP(lambda x: {"n": x.argmax(1)}).attribute(torch.ones(1, 3))


def test_a_mapping_that_the_function_does_not_take() -> None:
    model = Questions(lambda s, e: s).eval()
    with pytest.raises(InputError, match=r"by keyword.*input_ids, attention_mask"):
        ConservativeLRP(lambda x: model(x)).attribute(INPUTS[1], target=2)
    with pytest.raises(InputError, match=r"'token_type_ids'.*leave out"):
        ConservativeLRP(model).attribute({**INPUTS[1], "token_type_ids": IDS}, target=2)
    ConservativeLRP(lambda **kwargs: model(**kwargs)).attribute(INPUTS[1], target=2)


def test_type_errors_of_the_model_are_its_own() -> None:
    def broken(input_ids: Tensor) -> Tensor:
        return input_ids + None  # type: ignore[operator]

    with pytest.raises(TypeError, match="NoneType"):
        ConservativeLRP(broken).attribute({"input_ids": IDS})
