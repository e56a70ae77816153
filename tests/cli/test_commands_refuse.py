"""What commands and data sets do with arguments that do not fit, and with what is left out."""

from __future__ import annotations

import errno
import importlib
import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from captum_lrp_tx import AttentionRollout, ConservativeLRP, audit, compare
from captum_lrp_tx.cli import explain_dataset, insights, main
from captum_lrp_tx.cli.adapters import _WithoutPrompt, is_trained
from captum_lrp_tx.cli.evaluate import _patches
from captum_lrp_tx.cli.models import Source, find, kind_of, load_model
from captum_lrp_tx.datasets import attribute_dataset, read_dataset
from captum_lrp_tx.errors import InputError, OutputError, TargetError, UnsupportedModelError
from captum_lrp_tx.files import check_writable
from captum_lrp_tx.models import digit_samples, model_path, sentiment
from language_models import language_model, tokenizer

pytestmark = pytest.mark.captum


def fails(capsys: Any, *arguments: Any, status: int = 1) -> str:
    assert main([str(a) for a in arguments]) == status, arguments
    last: str = capsys.readouterr().err.strip().splitlines()[-1]
    return last


# ---- explain-dataset ----------------------------------------------------------------------------
def test_explain_dataset_refuses(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "a.txt").write_text("a good film\n", encoding="utf-8")
    base = ("explain-dataset", "--data", tmp_path / "a.txt", "--out", tmp_path / "out")
    assert "must not be negative" in fails(capsys, *base, "--workers", -1, status=2)
    assert "'0' is no positive number" in fails(capsys, *base, "--limit", 0, status=2)
    assert "has no labels" in fails(capsys, *base, "--target", "label")
    for part in (language_model("gpt2"), tokenizer()):
        part.save_pretrained(tmp_path / "language")
    told = fails(capsys, *base, "--target", "cat", "--model", tmp_path / "language")
    assert "a language model is explained at its prediction: --target predicted" in told
    assert not (tmp_path / "out").exists()


def test_one_of_several_processes_tells_what_was_written(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    (tmp_path / "a.txt").write_text("a good film\n", encoding="utf-8")
    base = ["explain-dataset", "--data", str(tmp_path / "a.txt"), "--out"]
    assert main([*base, str(tmp_path / "first")]) == 0
    assert "1 texts in 1 files in" in capsys.readouterr().err
    found = SimpleNamespace(settings={"shards": 1})
    monkeypatch.setattr(explain_dataset, "attribute_dataset", lambda *_, **__: found)
    monkeypatch.setenv("RANK", "1")
    assert main([*base, str(tmp_path / "second")]) == 0
    assert "texts in" not in capsys.readouterr().err


def test_processes_take_the_gpu_of_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert explain_dataset._device() == torch.device("cuda", 3)


def test_outputs_of_a_data_set(tmp_path: Path) -> None:
    """One output, or one for each token: what is explained is what the target names."""

    class Tokens(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind = kind
            self.words, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
            scores = self.head(self.words(input_ids))
            made: dict[str, Any] = {
                "one": lambda: scores[..., 0].sum(1), "classes": lambda: scores.mean(1),
                "tokens": lambda: scores, "longer": lambda: torch.cat([scores, scores], 1),
                "batchless": lambda: scores.mean((0, 1)), "four": lambda: scores[..., None],
            }  # fmt: skip
            return made[self.kind]()

    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    batch = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    models = {kind: Tokens(kind).eval() for kind in
              ("one", "classes", "tokens", "longer", "batchless", "four")}  # fmt: skip

    def run(kind: str, **options: Any) -> Any:
        folder = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        attribute_dataset(
            ConservativeLRP(models[kind]), batch, folder, show_progress=False, **options
        )
        return read_dataset(folder)

    with torch.no_grad():
        logits = {kind: models[kind](ids) for kind in ("classes", "tokens")}
    rows = run("classes")
    assert [row["logit"] for row in rows] == pytest.approx(logits["classes"].max(1).values.tolist())
    rows = run("tokens", target=2)  # the token after the last one
    assert [row["logit"] for row in rows] == pytest.approx(logits["tokens"][:, -1, 2].tolist())
    rows = run("tokens", target=[(0, 1), (-2, 0)])
    expected = [float(logits["tokens"][0, 0, 1]), float(logits["tokens"][1, -2, 0])]
    assert [row["logit"] for row in rows] == pytest.approx(expected)
    for kind in ("batchless", "four"):
        with pytest.raises(OutputError, match="for 2 examples"):
            run(kind)
    with pytest.raises(OutputError, match="6 positions for 3 tokens"):
        run("longer")
    with pytest.raises(TargetError, match="is no target of one example"):
        run("classes", target=["a", "b"])
    rows = run("classes", target=torch.tensor([1, 0]))
    assert len(rows) == 2 and [row["target"] for row in rows[:2]] == [row["target"] for row in rows]
    assert rows[-1] == rows[1] and repr(rows).endswith("2 rows)")
    with pytest.raises(IndexError, match="there are 2 rows, not 2"):
        rows[2]
    for more, why in (
        ([{"input_ids": torch.empty(1, 0, dtype=torch.long)}], "example 0 has no tokens"),
        ([{"input_ids": [[1, 2]]}], "no mapping with a tensor 'input_ids'"),
    ):
        with pytest.raises(InputError, match=why):
            attribute_dataset(ConservativeLRP(models["classes"]), more, tmp_path / "z")


def test_a_data_set_that_is_not_all_there(tmp_path: Path) -> None:
    model, tokenizer = sentiment()
    folder = tmp_path / "out"
    texts = ["good", "bad film", "a long and dull film"]
    attribute_dataset(
        ConservativeLRP(model), texts, folder, tokenizer=tokenizer, token_budget=8,
        batches_per_shard=1, show_progress=False,
    )  # fmt: skip
    files = sorted(folder.glob("*.parquet"))
    whole = len(read_dataset(folder))
    assert len(files) > 1
    files[0].unlink()
    with pytest.raises(InputError, match=f"1 of {len(files)} files are missing"):
        read_dataset(folder)
    assert 0 < len(read_dataset(folder, partial=True)) < whole
    for file in files[1:]:
        file.unlink()
    with pytest.raises(InputError, match="nothing has been written"):
        read_dataset(folder, partial=True)


# ---- evaluate and compare -----------------------------------------------------------------------
def test_evaluate_refuses(tmp_path: Path, capsys: Any) -> None:
    images, labels = digit_samples()
    np.save(tmp_path / "a.npy", images[:3, 0].numpy())
    np.save(tmp_path / "two.npy", labels[:2].numpy())
    base = ("evaluate", "--data", tmp_path / "a.npy", "--out", tmp_path / "out",
            "--methods", "Random")  # fmt: skip
    assert "2 labels for 3 images" in fails(capsys, *base, "--labels", tmp_path / "two.npy")
    told = fails(capsys, *base, "--patch-size", 2)
    assert "only the model's own patches can be taken out" in told
    assert "names no metric; the metrics are: " in fails(capsys, *base, "--metrics", ",", status=2)
    with pytest.raises(UnsupportedModelError, match="how large its patches are; give --patch-size"):
        _patches(Namespace(patch_size=None, mask_value=None), nn.Linear(1, 1))
    oblong = nn.Linear(1, 1)  # as some configurations have it, also inside of another model
    oblong.config = SimpleNamespace(patch_size=[4, 2])  # type: ignore[assignment]
    masker = _patches(Namespace(patch_size=None, mask_value=0.5), nn.Sequential(oblong))
    assert repr(masker) == "MaskPatches((4, 2), value=0.5)"


def test_evaluate_reads_classes_from_folders(tmp_path: Path, capsys: Any) -> None:
    images, labels = digit_samples()
    for i in range(3):
        folder = tmp_path / "set" / str(int(labels[i]))
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{i}.npy", images[i].numpy())
    base = ("evaluate", "--data", tmp_path / "set", "--methods", "Random", "--mask-value", "-1")
    assert main([*map(str, base), "--target", "label", "--out", str(tmp_path / "a")]) == 0
    assert "3" in capsys.readouterr().out
    np.save(tmp_path / "set" / "odd.npy", images[3].numpy())  # beside the folders: no labels
    told = fails(capsys, *base, "--target", "label", "--out", tmp_path / "b")
    assert "label" in told


def test_compare_tells_what_it_leaves_out(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "a.txt"
    file.write_text("word " * 600 + "\na good film\n", encoding="utf-8")
    html = tmp_path / "a.html"
    command = ["compare", "--file", str(file), "--methods", "gi", "--html", str(html)]
    assert main(command) == 0
    told = capsys.readouterr()
    assert "line 1 is left out" in told.err or "line 0 is left out" in told.err
    assert "1. a good film" in told.out and html.exists()
    file.write_text("word " * 600 + "\n", encoding="utf-8")
    assert main(command) == 1
    assert "has no text that the model can take" in capsys.readouterr().err


# ---- insights -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (KeyboardInterrupt(), 0, "stopped"),
        (OSError(errno.EADDRINUSE, "Address already in use"), 1,
         "port 8080 cannot be used (Address already in use); choose another with --port"),
        (OSError(errno.EACCES, "Permission denied"), 1, "cannot be used (Permission denied)"),
    ],
)  # fmt: skip
def test_insights_end_in_one_line(
    error: BaseException, status: int, told: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = []

    def serve(pages: Any, port: int, *, open_browser: bool) -> None:
        served.append((pages, port, open_browser))
        raise error

    monkeypatch.setattr(insights, "serve", serve)
    monkeypatch.setattr(insights, "shipped_pages", lambda: {"a": 1})
    monkeypatch.setattr(insights, "insights_module", lambda name: None)
    assert main(["insights", "--port", "8080", "--no-browser"]) == status
    assert served == [({"a": 1}, 8080, False)]
    captured = capsys.readouterr()
    assert told in (captured.err if status else captured.out).strip().splitlines()[-1]


def test_other_failures_of_a_server_are_not_about_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "broken")

    for name, value in (("serve", serve), ("shipped_pages", dict), ("insights_module", str)):
        monkeypatch.setattr(insights, name, value)
    with pytest.raises(OSError, match="broken"):
        insights.run(ArgumentParser(), Namespace(port=0, no_browser=True))


@pytest.mark.parametrize("port", ["65536", "-1", "http"])
def test_ports_are_numbers(port: str, capsys: Any) -> None:
    told = fails(capsys, "insights", f"--port={port}", status=2)
    assert f"'{port}' is no port: a number from 0 to 65535" in told


# ---- models -------------------------------------------------------------------------------------
def test_names_without_a_folder_are_those_of_the_hub(capsys: Any) -> None:
    source = find("someone/film-critic", "sentiment")
    assert (source.name, source.is_local) == ("someone/film-critic", False)

    def load(name: str, **options: Any) -> None:
        assert (name, options["local_files_only"]) == ("someone/film-critic", False)
        raise OSError("We are offline. Try again.")

    reason = "no folder someone/film-critic, .*loaded from the Hugging Face Hub: We are offline$"
    with pytest.raises(InputError, match=reason):
        source.load("tokenizer", load)


def test_a_tokenizer_that_panics_is_a_damaged_one() -> None:
    """What the Rust code of tokenizers raises where it panics is no Exception."""
    settings = json.loads((model_path("sentiment") / "tokenizer.json").read_text(encoding="utf-8"))
    special = settings["post_processor"]["special_tokens"]
    special["[CUT]"] = special.pop("[CLS]")  # which the template names
    damaged = pytest.importorskip("tokenizers").Tokenizer.from_str(json.dumps(settings))

    def encode(*_: Any, **__: Any) -> Any:
        return damaged.encode("a good film")

    source = Source("folder", True)
    with pytest.raises(InputError, match="tokenizer of folder fails on this input: Panic"):
        source.use("tokenizer", encode)
    with pytest.raises(InputError, match="in the folder folder: no entry"):
        source.load("tokenizer", encode)
    with pytest.raises(KeyboardInterrupt):  # which is no failure
        source.use("tokenizer", interrupted)


def interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("architectures", "kind", "error", "reason"),
    [
        ("BertModel", "text", InputError, "must be a list of class names.*it is 'BertModel'"),
        ([1], "text", InputError, r"must be a list of class names.*it is \[1\]"),
        (None, "text and image", UnsupportedModelError, "which model of text and image it is"),
        (["BertModel"], "text and image", UnsupportedModelError, "which model of text and image"),
    ],
)
def test_configurations_that_do_not_say_what_the_model_is(
    architectures: Any, kind: Any, error: Any, reason: str
) -> None:
    config = SimpleNamespace(architectures=architectures)

    class Known(Source):
        def load(self, what: str, load: Any) -> Any:
            return config

    source = Known("folder", True)
    with pytest.raises(error, match=reason):
        if kind == "text":
            kind_of(source, ("text",))
        else:
            load_model(source, kind)


def test_weights_that_an_adapter_brings_are_not_missing() -> None:
    whole = SimpleNamespace(modules_to_save={"score"}, config=None)
    for model in (whole, _WithoutPrompt(whole)):
        assert is_trained("model.score.weight", model)
        assert not is_trained("model.scores.weight", model)
    assert not is_trained("score.weight", SimpleNamespace(modules_to_save=None))


# ---- maps and audits ----------------------------------------------------------------------------
class CrossOnly(nn.Module):
    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return ((x @ context.mT).softmax(-1) @ context).sum(1)


def test_methods_of_one_sequence_refuse_two() -> None:
    x = torch.randn(2, 3, 4)
    with pytest.raises(UnsupportedModelError, match="is cross-attention between two"):
        AttentionRollout(CrossOnly()).attribute((x, x))
    with pytest.raises(UnsupportedModelError, match="one relevance per token of one sequence"):
        AttentionRollout(lambda a, b: (a @ a.mT).softmax(-1) @ a + b).attribute((x, x))


def test_a_strict_audit_without_a_target_explains_the_largest_output() -> None:
    model = nn.Linear(4, 3)
    x = torch.randn(2, 4)
    report = audit.explainability(model, x, file=None, strict=True)
    assert report.output == pytest.approx(float(model(x).detach().max(1).values.sum()), abs=1e-5)
    single = nn.Linear(4, 1)
    report = audit.explainability(single, x, file=None, strict=True)
    assert report.output == pytest.approx(float(single(x).detach().sum()), abs=1e-5)


def test_baselines_of_ones_own() -> None:
    images = torch.rand(1, 1, 4, 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False))
    own = torch.rand(1, 1, 4, 4)
    found = {
        told: compare(model, images, 1, methods=["Integrated Gradients"], baseline=baseline)
        for told, baseline in (("a tensor of its own", own), ("0.25 everywhere", 0.25))
    }
    weight = model[1].weight[1].detach().view(1, 4, 4)
    for (told, made), baseline in zip(found.items(), (own[0], 0.25), strict=True):
        assert told in made.baseline
        expected = (images[0] - baseline) * weight  # of a linear model
        torch.testing.assert_close(made.rows[0].relevance.reshape(1, 4, 4), expected)


def test_baselines_of_token_ids() -> None:
    model, tokenizer = sentiment()
    ids = tokenizer("a good film", return_tensors="pt")["input_ids"]
    made = compare(model, ids, 1, methods="Integrated Gradients", baseline=5)
    assert "token 5 everywhere" in made.baseline and len(made.rows) == 1
    own = torch.full_like(ids, 5)
    same = compare(model, ids, 1, methods=["Integrated Gradients"], baseline=own)
    assert same.baseline == "token ids of its own"
    torch.testing.assert_close(made.rows[0].relevance, same.rows[0].relevance)


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it is a folder"):
        check_writable(tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        check_writable(tmp_path / "none" / "a.html")
    check_writable(tmp_path / "a.html")


def test_importing_the_program_does_not_run_it(capsys: Any) -> None:
    module = importlib.reload(importlib.import_module("captum_lrp_tx.__main__"))
    assert module.main is main and capsys.readouterr() == ("", "")
