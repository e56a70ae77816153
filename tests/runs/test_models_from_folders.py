"""Models that move, window, pad or share their ids: in Python, on the command line, in data sets.

Each is saved to a folder with a tokenizer.  Relevance in Python is compared with the oracle, and
everything else (padded batches, ``attribute_dataset``, both commands) with that.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import transformers

import folders
from captum_lrp_tx import ConservativeLRP, attribute_dataset, read_dataset
from captum_lrp_tx.cli import main
from captum_lrp_tx.errors import UncoveredOperationError, UnsupportedModelError
from closeness import close_to_largest
from folders import TEXTS
from oracle import oracle_lookup_relevance

Forward = Callable[..., Tensor]


def agrees_with_the_oracle(forward: Forward, ids: Tensor, target: int) -> None:
    for preset in ("ah+ln", "lrp"):
        got = ConservativeLRP(forward, preset).attribute(ids, target=target, strict=True)
        rows = oracle_lookup_relevance(forward, ids, preset, lambda o: o[:, target])
        close_to_largest(got, torch.stack(rows).sum(0), 1e-4)


def one_by_one(
    load: Callable[[], Forward], target: int | None = None, around: str = "bert"
) -> list[tuple[Tensor, Any]]:
    """Relevance of each text by a model that has seen no other, and what was explained."""
    found = []
    for text in TEXTS:
        forward, inputs = load(), dict(folders.tokenizer(around)(text, return_tensors="pt"))
        with torch.no_grad():
            returned: Any = load()(**inputs)
        output = getattr(returned, "logits", returned)[0]
        wanted: Any = target
        if target is None:
            best = int(output.argmax() if output.dim() == 1 else output[-1].argmax())
            wanted = best if output.dim() == 1 else (-1, best)
        rules = "lrp" if isinstance(wanted, int) else "language-ah"  # as explain chooses them
        relevance = ConservativeLRP(forward, rules).attribute(inputs, target=wanted)
        found.append((relevance[0], wanted))
    return found


def are_rows(rows: Any, expected: list[Any]) -> None:
    assert len(rows) == len(expected)
    for row, (relevance, wanted) in zip(rows, expected, strict=True):
        assert row["target"] == (wanted if isinstance(wanted, int) else wanted[-1])
        close_to_largest(row["relevance"], relevance, 1e-4)


def printed(out: str) -> list[float]:
    """The column of the table that the command prints."""
    table = re.split(r"\ntoken +relevance", out)[1].partition("sum of relevance")[0]
    return [float(n) for n in re.findall(r"([+-]\d+\.\d{4,})", table)]


def is_on_the_command_line(folder: Path, expected: list[Any], capsys: Any) -> None:
    """Both commands, against relevance in Python."""
    for number in (1, 3):
        capsys.readouterr()
        assert main([TEXTS[number], "--model", str(folder), "--no-color", "--pieces"]) == 0
        got = torch.tensor(printed(capsys.readouterr().out))
        assert float((got - expected[number][0]).abs().max()) < 6e-5  # four digits
    file = folder / "texts.tsv"
    file.write_text("\n".join(TEXTS) + "\n")
    out = folder / "rows"
    data = ["explain-dataset", "--data", str(file), "--model", str(folder), "--out", str(out)]
    assert main(data) == 0
    are_rows(read_dataset(out), expected)


# ---- classifiers of texts -----------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", folders.CLASSIFIERS)
def test_classifiers(name: str, tmp_path: Path, capsys: Any) -> None:
    model = folders.classifier(name)
    if model is None:
        pytest.skip(f"this version of transformers has no {name}ForSequenceClassification")
    around = folders.CLASSIFIERS[name][2]
    folder = folders.saved(tmp_path, model, around)

    def load() -> Any:  # BigBird exchanges its attention for good when it meets a short text
        kind: Any = transformers.AutoModelForSequenceClassification
        loaded = kind.from_pretrained(folder).eval()
        loaded.config.use_cache = False
        return loaded

    # the oracle does not see which ids the positions belong to that LED adds behind its padding
    for number in () if name == "LED" else (1, 3):
        ids = folders.tokenizer(around)(TEXTS[number], return_tensors="pt")["input_ids"]
        agrees_with_the_oracle(Logits(load()), ids, 1)
    expected = one_by_one(load, around=around)
    options: Any = {"tokenizer": folders.tokenizer(around), "show_progress": False}
    are_rows(attribute_dataset(load(), TEXTS, tmp_path / "out", **options), expected)
    is_on_the_command_line(folder, expected, capsys)
    if name in ("XLNet", "BigBird"):  # their output depends on the padding
        return
    batch = folders.tokenizer(around)(TEXTS, return_tensors="pt", padding=True)
    got = ConservativeLRP(load()).attribute(dict(batch), target=[w for _, w in expected])
    assert isinstance(got, Tensor)
    for row, mask, (relevance, _) in zip(got, batch["attention_mask"], expected, strict=True):
        close_to_largest(row[mask.bool()], relevance, 1e-4)
        assert not row[~mask.bool()].any()


class Logits:
    """A model of texts without padding as a function of ids alone."""

    def __init__(self, model: Any, **more: Any) -> None:
        self.model, self.more = model, more

    def __call__(self, ids: Tensor) -> Tensor:
        output = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), **self.more)
        logits: Tensor = output.logits_per_text if "logits_per_text" in output else output.logits
        return logits


# ---- adapters -----------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PromptTuning", "PromptEncoder", "PrefixTuning", "Lora"])
@pytest.mark.parametrize("task", ["SEQ_CLS", "CAUSAL_LM"])
def test_adapters(kind: str, task: str, tmp_path: Path, capsys: Any) -> None:
    peft = pytest.importorskip("peft")
    if (kind, task) == ("PrefixTuning", "SEQ_CLS"):
        pytest.skip("peft: BERT takes no past keys and values")
    base = folders.other("language model")
    if task == "SEQ_CLS":
        config = transformers.BertConfig(**folders.OTHERS["bi-encoder"][1])
        base = folders.randomized(transformers.BertForSequenceClassification(config))
    folders.saved(tmp_path / "base", base)
    base = type(base).from_pretrained(tmp_path / "base").eval()
    options: Any = {} if kind == "Lora" else {"num_virtual_tokens": 3}
    if kind == "PromptEncoder":
        options["encoder_hidden_size"] = 16
    settings = getattr(peft, f"{kind}Config")(task_type=task, **options)
    model = peft.get_peft_model(base, settings)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    folder = folders.saved(tmp_path / "adapter", model.eval())
    expected = one_by_one(lambda: model)
    is_on_the_command_line(folder, expected, capsys)


def test_adapters_that_cannot_be_loaded(tmp_path: Path, capsys: Any) -> None:
    for content, said in (
        ("{", "cannot read"), ("{}", "base_model_name_or_path"),
        ('{"base_model_name_or_path": null}', "does not name the model"),
        ('{"base_model_name_or_path": "/nowhere"}', "no adapter_model.safetensors"),
    ):  # fmt: skip
        (tmp_path / "adapter_config.json").write_text(content)
        assert main(["film", "--model", str(tmp_path)]) == 1
        assert said in capsys.readouterr().err
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert main(["film", "--model", str(tmp_path)]) == 1
    assert "there is no folder /nowhere" in capsys.readouterr().err


# ---- texts beside something else ----------------------------------------------------------------
def pixels() -> Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))


class WithImage:
    """Scores of texts, padded or not, beside one image."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, input_ids: Tensor, **more: Any) -> Tensor:
        images = pixels()
        if hasattr(self.model.config, "qkv_bias"):  # ViLT: an image for each text
            images = images.expand(len(input_ids), -1, -1, -1)
        output = self.model(input_ids=input_ids, pixel_values=images, **more)
        scores: Tensor = output.logits_per_text if "logits_per_text" in output else output.logits
        return scores


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["CLIP", "SigLIP", "ViLT"])
def test_texts_beside_images(
    name: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = folders.other(name)
    folder = folders.saved(tmp_path, model, "bart")
    forward = WithImage(model)
    expected = one_by_one(lambda: forward, 0, "bart")
    options: Any = {"tokenizer": folders.tokenizer("bart"), "show_progress": False, "target": 0}
    are_rows(attribute_dataset(forward, TEXTS, tmp_path / "out", **options), expected)
    both = dict(folders.tokenizer("bart")(TEXTS[1], return_tensors="pt"))
    if name == "ViLT":  # a model with logits takes the mapping as it is
        words, image = ConservativeLRP(model).attribute(
            {**both, "pixel_values": pixels()}, target=0
        )
        close_to_largest(words[0], expected[1][0], 1e-4)
        assert image.shape == pixels().shape
        # it draws the order of the patches, which the oracle must not see
        monkeypatch.setattr(torch, "multinomial", lambda w, n, *_, **__: torch.arange(n))
    agrees_with_the_oracle(forward, both["input_ids"], 0)
    assert main([TEXTS[0], "--model", str(folder)]) == 1
    assert "takes a text and an image: explain TEXT --image FILE" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["CLIP images", "SigLIP images"])
def test_images_by_models_of_images_and_texts(name: str, tmp_path: Path, capsys: Any) -> None:
    image = pytest.importorskip("PIL.Image")
    model = folders.other(name)
    model.save_pretrained(tmp_path)
    values = (torch.arange(192) * 7 % 256).to(torch.uint8)
    image.frombytes("RGB", (8, 8), values.numpy().tobytes()).save(tmp_path / "picture.png")
    x = (values.view(8, 8, 3).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
    target = int(model(x).logits.argmax())
    expected = ConservativeLRP(model).attribute(x, target=target)
    assert isinstance(expected, Tensor)
    command = ["--image", str(tmp_path / "picture.png"), "--model", str(tmp_path), "--no-color"]
    assert main(command) == 0
    total = re.search(r"sum of relevance +([+-][\d.]+)", capsys.readouterr().out)
    assert total is not None
    assert float(total[1]) == pytest.approx(float(expected.sum()), abs=1e-4)


# ---- several texts at once ----------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore")
def test_multiple_choice(tmp_path: Path, capsys: Any) -> None:
    model = folders.other("multiple choice")
    folder = folders.saved(tmp_path, model)
    made = folders.tokenizer()

    def one(**inputs: Tensor) -> Tensor:
        logits: Tensor = model(**{k: v[:, None] for k, v in inputs.items()}).logits
        return logits

    expected = one_by_one(lambda: one, 0)
    options: Any = {"tokenizer": made, "show_progress": False, "target": 0}
    are_rows(attribute_dataset(one, TEXTS, tmp_path / "out", **options), expected)
    agrees_with_the_oracle(
        lambda i: one(input_ids=i), made(TEXTS[1], return_tensors="pt")["input_ids"], 0
    )
    together = {k: v[None] for k, v in made(TEXTS, return_tensors="pt", padding=True).items()}
    got = ConservativeLRP(model).attribute(together, target=1, strict=True)
    assert isinstance(got, Tensor)
    close_to_largest(got[0, 1, together["attention_mask"][0, 1].bool()], expected[1][0], 1e-4)
    assert not got[0, [0, 2, 3]].any()
    with pytest.raises(Exception, match="forward function that adds the dimension"):
        attribute_dataset(model, [together], tmp_path / "no", **options)
    assert main([TEXTS[0], "--model", str(folder)]) == 1
    assert "or ConservativeLRP in Python" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_bi_encoders(tmp_path: Path, capsys: Any) -> None:
    model, made = folders.other("bi-encoder"), folders.tokenizer()
    folder = folders.saved(tmp_path, model)
    query = dict(made("never bad film", return_tensors="pt", padding="max_length", max_length=9))

    def pooled(input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Tensor:
        states = model(input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[..., None]
        mean: Tensor = (states * weights).sum(1) / weights.sum(1)
        return mean

    def score(**inputs: Any) -> Tensor:
        return (pooled(**inputs) * pooled(**query)).sum(-1, keepdim=True)

    expected = one_by_one(lambda: score, 0)
    options: Any = {"tokenizer": made, "show_progress": False, "target": 0}
    are_rows(attribute_dataset(score, TEXTS, tmp_path / "out", **options), expected)
    with torch.no_grad():
        fixed = pooled(**query)
    agrees_with_the_oracle(
        lambda i: (pooled(i, torch.ones_like(i)) * fixed).sum(-1, keepdim=True),
        made(TEXTS[1], return_tensors="pt")["input_ids"], 0,
    )  # fmt: skip
    assert main([TEXTS[0], "--model", str(folder)]) == 1
    assert "or ConservativeLRP in Python" in capsys.readouterr().err


# ---- a function that no rule sees into ----------------------------------------------------------
class OneByOne(nn.Module):
    """The layers of a Reformer without the function that computes them again in the backward pass:
    the way out that its refusal names."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, hidden_states: Tensor, **more: Any) -> Any:
        names = ("attention_mask", "num_hashes", "orig_sequence_length")
        more = {name: more.get(name) for name in names}
        first = second = hidden_states
        for layer in self.encoder.layers:
            first = first + layer.attention(hidden_states=second, **more).hidden_states
            second = second + layer.feed_forward(first)
        return types.SimpleNamespace(
            hidden_states=self.encoder.layer_norm(torch.cat([first, second], -1)),
            all_hidden_states=[], all_attentions=[], past_buckets_states=None,
        )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_reformer(tmp_path: Path, capsys: Any) -> None:
    model, made = folders.other("Reformer"), folders.tokenizer()
    folder = folders.saved(tmp_path, model)
    inputs = dict(made(TEXTS[1], return_tensors="pt"))
    with pytest.raises(UncoveredOperationError, match="_ReversibleFunction"):
        ConservativeLRP(model).attribute(inputs, target=1, strict=True)
    with pytest.raises(UnsupportedModelError, match=r"_ReversibleFunction.*one by one"):
        ConservativeLRP(model).attribute(inputs, target=1)
    assert main([TEXTS[1], "--model", str(folder)]) == 1
    assert "_ReversibleFunction" in capsys.readouterr().err
    with torch.no_grad():
        before = model(**inputs).logits
    model.reformer.encoder = OneByOne(model.reformer.encoder).eval()
    torch.testing.assert_close(model(**inputs).logits, before)
    agrees_with_the_oracle(Logits(model), inputs["input_ids"], 1)
    options: Any = {"tokenizer": made, "show_progress": False}
    rows = attribute_dataset(model, TEXTS, tmp_path / "out", **options)
    are_rows(rows, one_by_one(lambda: model))
