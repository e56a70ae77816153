"""The experiments of ``experiments/ali2022``, reduced to the shipped models and a few examples."""

from __future__ import annotations

import functools
import gzip
import json
import random
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")
pytest.importorskip("scipy")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from captum_lrp_tx import Composite, ConservativeGI, ConservativeLRP, LayerConservativeGI, models
from captum_lrp_tx.evaluation import evaluate, linear_layers
from captum_lrp_tx.rules import EpsilonRule, GeneralizedGammaRule
from experiments.ali2022 import (
    ablation,
    bar,
    bias,
    conservation,
    data,
    finetune,
    molecules,
    pages,
    published,
    reporting,
    run,
    search,
    subjects,
)
from experiments.ali2022.methods import METHODS, AtEmbeddings, named

TEXTS = (
    ("a charming and funny film", 1),
    ("dull and lifeless , a waste of time", 0),
    ("not bad at all", 1),
    ("the worst movie of the year", 0),
    ("a moving story , told with warmth and wit", 1),
    ("it is too long , and the jokes fall flat", 0),
)


def write_rows(path: Path, rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of the shared files, with the shipped models and a few examples."""
    folder = tmp_path_factory.mktemp("shared")
    for ours, theirs in (("sentiment", "minilm-sst2"), ("digits", "vit-mnist")):
        shutil.copytree(models.model_path(ours), folder / "models" / theirs)
    for split in ("train", "dev", "test"):
        write_rows(folder / f"data/sst2/{split}.tsv", TEXTS)
    for split in ("train", "val", "test"):
        write_rows(folder / f"data/tweeteval/hate/{split}.tsv", TEXTS)
    write_rows(folder / "data/tweeteval/sentiment/val.tsv", [(f"t{i}", i % 3) for i in range(410)])
    images, labels = models.digit_samples()
    pixels = ((images * 0.5 + 0.5) * 255).round().to(torch.uint8).numpy().tobytes()
    (folder / "data/mnist").mkdir()
    for name, header, content in (
        ("images-idx3", 16, pixels),
        ("labels-idx1", 8, bytes(labels.tolist())),
    ):
        with gzip.open(folder / f"data/mnist/t10k-{name}-ubyte.gz", "wb") as file:
            file.write(bytes(header) + content)
    return folder


# Data


def test_rows_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('sentence\tlabel\n"it\'s" \u2028 x\t1\r\na\tb\t0\n', encoding="utf-8")
    assert data.read_rows(path) == (['"it\'s" \u2028 x', "a\tb"], [1, 0])
    path.write_text("sentence\tlabel\nno label\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        data.read_rows(path)


def test_held_out_rows_are_no_training_rows(small: Path) -> None:
    train, val = (data.TASKS["sentiment"].split(small, name) for name in ("train", "val"))
    assert len(val.texts) == data.HELD_OUT
    assert set(train.texts) | set(val.texts) == {f"t{i}" for i in range(410)}
    assert not set(train.texts) & set(val.texts)
    for text, label in zip(*val, strict=True):
        assert int(text[1:]) % 3 == label


def test_long_documents() -> None:
    rng = random.Random(3)
    sentences = data.Split(
        [f"{'neg' if i % 2 == 0 else 'pos'}{i} " + "x " * rng.randint(3, 30) for i in range(300)],
        [i % 2 for i in range(300)],
    )
    made = data.long_documents(sentences, 20, seed=1)
    assert made.labels == [0, 1] * 10
    lengths = []
    for text, label in zip(*made, strict=True):
        heads = [word for word in text.split() if word != "x"]
        assert len(heads) == len(set(heads))
        share = np.mean([word.startswith("pos" if label else "neg") for word in heads])
        assert 0.6 < share < 0.95
        lengths.append(len(text.split()))
        assert lengths[-1] <= data.LONG_WORDS[1]
    assert max(lengths) - min(lengths) > 60 and min(lengths) > data.LONG_WORDS[0] - 35
    assert made == data.long_documents(sentences, 20, seed=1)
    assert made != data.long_documents(sentences, 20, seed=2)


def test_samples_nest_and_have_no_order() -> None:
    split = data.Split([str(i) for i in range(50)], [0] * 50)
    assert data.sample(split, 20)[:7] == data.sample(split, 7)
    assert sorted(data.sample(split, 0)) == list(range(50))
    assert data.sample(split, 50) != list(range(50))


def test_digits_are_the_last_of_the_file(small: Path) -> None:
    images, labels = data.digits(small, 3)
    expected = models.digit_samples()
    torch.testing.assert_close(images, expected[0][-3:], atol=1 / 255, rtol=0)
    assert labels == expected[1][-3:].tolist()


# Fine-tuning


def test_scores_by_confusion_matrix() -> None:
    predicted, labels = np.random.default_rng(0).integers(0, 3, (2, 40))
    matrix = np.zeros((3, 3))
    np.add.at(matrix, (labels, predicted), 1)
    precision, recall = np.diag(matrix) / matrix.sum(0), np.diag(matrix) / matrix.sum(1)
    f1 = 2 * precision * recall / (precision + recall)
    found = finetune.scores(predicted.tolist(), labels.tolist(), 3)
    assert found["n"] == 40
    assert found["accuracy"] == pytest.approx(np.trace(matrix) / 40, abs=1e-4)
    assert found["macro_f1"] == pytest.approx(f1.mean(), abs=1e-4)


def test_batches_have_every_text_once() -> None:
    lengths = np.random.default_rng(0).integers(1, 90, 101).tolist()
    for rng in (None, random.Random(0)):
        batches = finetune.batches_by_length(lengths, 8, rng)
        assert sorted(i for batch in batches for i in batch) == list(range(101))
        spread = max(max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches)
        assert max(map(len, batches)) == 8 and spread < 25


def test_finetuning_stores_what_it_reports(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(finetune.PLANS, "hate", finetune.Plan(epochs=2, learning_rate=1e-3))
    monkeypatch.setattr(finetune, "FROZEN_LAYERS", 1)
    arguments = ["--shared", str(small), "--models", str(tmp_path), "--out", str(tmp_path / "out")]
    finetune.main([*arguments, "--tasks", "hate"])
    model, tokenizer = subjects.load_text(tmp_path / "hate")
    report = json.loads((tmp_path / "out/finetune.json").read_text(encoding="utf-8"))[0]
    texts, labels = zip(*TEXTS, strict=True)
    with torch.no_grad():
        hits = sum(
            int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) == label
            for text, label in zip(texts, labels, strict=True)
        )
    assert report["test"] == {**report["test"], "n": 6, "accuracy": round(hits / 6, 4)}
    assert report["val"]["macro_f1"] == max(epoch["macro_f1"] for epoch in report["val_by_epoch"])
    base, _ = subjects.load_text(small / "models/minilm-sst2")
    for part, same in (("embeddings", True), ("encoder.layer.0", True), ("encoder.layer.1", False)):
        pairs = zip(
            base.bert.get_submodule(part).parameters(),
            model.bert.get_submodule(part).parameters(),
            strict=True,
        )
        assert all(torch.equal(a, b) for a, b in pairs) is same
    before = (tmp_path / "hate/report.json").stat().st_mtime_ns
    finetune.main([*arguments, "--tasks", "hate"])  # nothing to do
    assert (tmp_path / "hate/report.json").stat().st_mtime_ns == before


def test_base_model_as_it_is(small: Path, tmp_path: Path) -> None:
    finetune.main([
        "--shared", str(small), "--models", str(tmp_path), "--out", str(tmp_path / "out"),
        "--tasks", "sst2",
    ])  # fmt: skip
    report = json.loads((tmp_path / "out/finetune.json").read_text(encoding="utf-8"))[0]
    model, tokenizer = models.sentiment()
    with torch.no_grad():
        hits = sum(
            int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) == label
            for text, label in TEXTS
        )
    assert report["test"]["accuracy"] == pytest.approx(hits / len(TEXTS), abs=1e-4)
    assert report["train"] == 0 and not list(tmp_path.rglob("*.safetensors"))
    row = (tmp_path / "out/finetune.md").read_text(encoding="utf-8").splitlines()[2]
    assert "| as it is |" in row and "| 50.0 % |" in row
    data_set = subjects.text_subject("sst2", small, None, 3)
    assert data_set.count == 3


# Faithfulness


def loop_text(model: Any, tokenizer: Any, text: str, explain: Any = None) -> tuple[float, float]:
    """AUAC and AU-MSE, one forward pass after the other; of LRP(AH+LN) at the embeddings."""
    inputs = tokenizer(text, return_tensors="pt")
    ids = inputs["input_ids"]
    with torch.no_grad():
        whole = model(ids).logits[0]
    target = int(whole.argmax())
    layer = LayerConservativeGI(model, model.bert.embeddings)
    relevance: Any = (explain or layer).attribute(ids, target=target)
    scores = relevance.reshape(*ids.shape, -1)[0].sum(-1).tolist()
    count = len(scores)
    down = sorted(range(count), key=lambda i: -scores[i])
    small_first = sorted(range(count), key=lambda i: abs(scores[i]))
    probabilities, errors = [], []
    for step in range(11):
        n = int(np.ceil(np.linspace(0, 1, 11)[step] * count))
        inserted = torch.full_like(ids, tokenizer.unk_token_id)
        inserted[0, down[:n]] = ids[0, down[:n]]
        pruned = ids.clone()
        pruned[0, small_first[:n]] = tokenizer.unk_token_id
        with torch.no_grad():
            probabilities.append(float(model(inserted).logits[0].softmax(-1)[target]))
            errors.append(float((model(pruned).logits[0] - whole).square().sum()))
    areas = [(sum(v) - (v[0] + v[-1]) / 2) / 10 for v in (probabilities, errors)]
    return areas[0], areas[1]


def test_text_experiment_against_a_loop(small: Path, tmp_path: Path) -> None:
    common = [
        "--shared", str(small), "--out", str(tmp_path), "--work", str(tmp_path / "work"),
        "--experiment", "text", "--tasks", "sst2", "--count", "4",
    ]  # fmt: skip
    run.main([*common, "--methods", "Random", "LRP(AH+LN)"])
    result = json.loads((tmp_path / "sst2.json").read_text(encoding="utf-8"))
    model, tokenizer = models.sentiment()
    order = data.sample(data.read_rows(small / "data/sst2/test.tsv"), 4)
    expected = [loop_text(model, tokenizer, TEXTS[i][0]) for i in order]
    entry = result["methods"]["LRP(AH+LN)"]
    found = list(zip(entry["auac of examples"], entry["au_mse of examples"], strict=True))
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=2e-4)
    assert entry["auac"][0] == pytest.approx(np.mean([auac for auac, _ in expected]), abs=2e-4)
    assert entry["auac"][1] <= entry["auac"][0] <= entry["auac"][2]

    # one more method: what is there stays, the new one is added
    files = {path.name: path.read_bytes() for path in (tmp_path / "work").glob("*/*.jsonl")}
    run.main([*common, "--methods", "Random", "LRP(AH+LN)", "IG [UNK]"])
    again = json.loads((tmp_path / "sst2.json").read_text(encoding="utf-8"))
    assert list(again["methods"]) == ["Random", "LRP(AH+LN)", "IG [UNK]"]
    assert again["methods"]["LRP(AH+LN)"] == entry
    kept = {path.name: path.read_bytes() for path in (tmp_path / "work").glob("*/*.jsonl")}
    assert files.items() < kept.items()
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert f"{entry['auac'][0]:.3f}" in text and "Semaine" in text


def test_the_search_chooses_on_validation_and_reports_on_test(small: Path, tmp_path: Path) -> None:
    rows = [(f"{text} .", label) for text, label in TEXTS]
    write_rows(small / "data/sst2/dev.tsv", rows)
    common = [
        "--shared", str(small), "--out", str(tmp_path), "--work", str(tmp_path / "work"),
        "--tasks", "sst2", "--count", "3",
    ]  # fmt: skip
    run.main([*common, "--experiment", "search"])
    found = search.load(tmp_path)["sst2"]
    assert list(found["trials"]) == list(search.BASES)
    every = [(base, trial) for base, trials in found["trials"].items() for trial in trials]
    base, trial = min(every, key=lambda t: search.loss(t[1]["auac"], t[1]["au_mse"]))
    assert (found["best"]["base"], found["best"]["gammas"]) == (base, trial["gammas"])
    report = (tmp_path / "search.md").read_text(encoding="utf-8")
    assert report.count(f"**{trial['auac']:.3f}** | **{trial['au_mse']:.2f}**") == 1

    # what was measured of the chosen one is what it reaches on these validation sentences
    model, tokenizer = models.sentiment()
    kinds = linear_layers(model, dict(tokenizer(TEXTS[0][0], return_tensors="pt")))
    rules = {
        name: GeneralizedGammaRule(gamma=gamma) if gamma else EpsilonRule()
        for kind, gamma in trial["gammas"].items()
        for name in kinds[kind]
    }
    explain = ConservativeLRP(model, Composite(rules, base=base), bias="distribute")
    order = data.sample(data.read_rows(small / "data/sst2/dev.tsv"), 3)
    areas = [loop_text(model, tokenizer, rows[i][0], explain) for i in order]
    np.testing.assert_allclose(
        np.mean(areas, 0), [trial["auac"], trial["au_mse"]], atol=2e-4, rtol=2e-4
    )

    run.main([*common, "--experiment", "text", "--methods", "LRP-tuned"])
    reported = json.loads((tmp_path / "sst2.json").read_text(encoding="utf-8"))["methods"]
    texts = [TEXTS[i][0] for i in data.sample(data.read_rows(small / "data/sst2/test.tsv"), 3)]
    expected = [loop_text(model, tokenizer, text, explain) for text in texts]
    entry = reported["LRP-tuned"]
    np.testing.assert_allclose(
        list(zip(entry["auac of examples"], entry["au_mse of examples"], strict=True)),
        expected, atol=2e-4, rtol=2e-4,
    )  # fmt: skip


def test_validation_digits_are_others(small: Path) -> None:
    last, before = data.digits(small, 2), data.digits(small, 2, before=2)
    both = data.digits(small, 4)
    assert torch.equal(torch.cat([before[0], last[0]]), both[0])
    assert before[1] + last[1] == both[1]
    assert not torch.equal(before[0], last[0])


def test_every_method_applies_to_text_and_images(small: Path) -> None:
    model, tokenizer = models.sentiment()
    split = data.Split([text for text, _ in TEXTS[:2]], [1, 0])
    text = subjects.text_data(data.TASKS["sst2"], model, tokenizer, split, 2)
    images, labels = models.digit_samples()
    for subject in (text, subjects.digit_data(models.digits(), images, labels.tolist(), 2)):
        evaluation = evaluate(
            subject.model, subject.examples, subject.methods, masker=subject.masker,
            limit=subject.count, fractions=[0.0, 0.5, 1.0],
        )  # fmt: skip
        assert not evaluation.errors
        assert len(evaluation.methods) == len(subject.methods) >= len(METHODS) + 1
        random_areas = evaluation["Random"].values("activation")
        assert not torch.equal(random_areas, evaluation["LRP"].values("activation"))


def test_named_methods() -> None:
    assert named(METHODS, None) == list(METHODS)
    assert [m if isinstance(m, str) else m[0] for m in named(METHODS, ["GI at inputs", "GI"])] == [
        "GI",
        "GI at inputs",
    ]
    with pytest.raises(SystemExit, match="nonsense"):
        named(METHODS, ["nonsense"])


def test_missing_model_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"experiments\.ali2022\.finetune"):
        subjects.text_subject("hate", tmp_path, tmp_path, 3)
    with pytest.raises(SystemExit, match="--models"):
        subjects.text_subject("hate", tmp_path, None, 3)


# Tables


def toy_result(name: str, better: float) -> dict[str, Any]:
    base = np.random.default_rng(0).uniform(0.4, 0.6, 30)
    methods = {}
    for method, shift, n in (("LRP(AH+LN)", better, 30), ("GI", 0.0, 30), ("A-Flow", 0.4, 5)):
        areas = (base + shift)[:n]
        areas_list = [round(float(v), 4) for v in areas]
        mean = round(float(areas.mean()), 4)
        methods[method] = {
            "n": n,
            "auac": [mean, mean - 0.01, mean + 0.01], "auac of examples": areas_list,
            "au_mse": [1 - mean, 0.9 - mean, 1.1 - mean], "au_mse of examples": areas_list,
            "activation": [0.5] * 11, "pruning": [0.5] * 11,
        }  # fmt: skip
    return {"data set": name, "n": 30, "methods": methods}


def test_tables_set_the_papers_numbers_beside_ours() -> None:
    results = {"sst2": toy_result("SST-2", 0.1), "emotion": toy_result("emotion", 0.1)}
    lines = reporting.table(results, *reporting.METRICS[0], semaine=True).splitlines()
    row = next(line for line in lines if line.startswith("| GI |"))
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[2].endswith("[0.847]") and cells[3].endswith("[not found]")
    assert cells[4] == "not available"
    best = [line.split("|")[1].strip() for line in lines if "**" in line]
    assert best == ["LRP(AH+LN)"]  # A-Flow has another sample and is left out
    assert "(n=5)" in next(line for line in lines if line.startswith("| A-Flow"))


def test_paired_differences_are_of_the_same_examples() -> None:
    found = reporting.paired(toy_result("SST-2", 0.1), "auac")
    assert set(found) == {"GI", "A-Flow"}
    estimate, low, high, p = found["GI"]
    assert estimate == pytest.approx(-0.1, abs=1e-4) and low <= estimate <= high and p < 0.01
    assert found["A-Flow"][0] == pytest.approx(0.3, abs=1e-4)


def test_published_numbers_are_marked_where_there_are_none() -> None:
    assert published.find("auac", "mnist", "Rollout") == "0.358"
    assert published.find("auac", "sst2", "LRP(AH)") == published.NOT_FOUND
    assert published.find("au_mse", "long", "GI") == published.NOT_FOUND
    assert published.find("auac", "sst2", "AttnLRP") == ""


def test_verdicts_show_losses_as_plainly_as_wins() -> None:
    results = {"sst2": toy_result("SST-2", 0.1), "hate": toy_result("hate", 0.1)}
    for name, shift in (("sst2", 0.05), ("hate", 0.0)):
        methods = results[name]["methods"]
        values = [round(v + shift, 4) for v in methods["GI"]["auac of examples"]]
        noise = np.random.default_rng(1).normal(0, 0.01, len(values))
        for method in ("LRP", "IG"):
            areas = (
                values if method == "LRP" else (np.array(methods["GI"]["auac of examples"]) + noise)
            )
            methods[method] = {
                "n": 30, "auac of examples": list(areas), "au_mse of examples": list(areas),
            }  # fmt: skip
    found = bar.verdicts(results, "LRP")
    assert {m: v for m, (_, v) in found["sst2"].items()} == {"auac": 1, "au_mse": -1}
    assert {m: v for m, (_, v) in found["hate"].items()} == {"auac": 0, "au_mse": 0}
    assert bar.verdicts(results, "AttnLRP") == {}
    few = toy_result("few", 0.1)
    few["methods"].update(LRP=few["methods"]["A-Flow"], IG=results["sst2"]["methods"]["IG"])
    row = next(line for line in bar.table({"few": few}).splitlines() if "| few | 5 |" in line)
    assert row.count("too few") == 2
    text = bar.table(results)
    row = next(line for line in text.splitlines() if line.startswith("| LRP | SST-2"))
    assert [cell.strip() for cell in row.split("|")][5::2] == ["better", "worse"]
    assert (
        "- LRP, 2 data sets: AUAC better on 1, no difference on 1, worse on 0; AU-MSE better on 0, "
        "no difference on 1, worse on 1; better on both on 0." in text
    )


def test_molecules_are_those_of_their_own_table() -> None:
    found = molecules.summary()
    table = (molecules.STORED / "bace.md").read_text(encoding="utf-8").split("## Atoms masked")[1]
    for method, entry in found["methods"].items():
        row = next(line for line in table.splitlines() if line.startswith(f"| {method} |"))
        cells = [cell.strip() for cell in row.split("|")]
        for cell, key in ((cells[2], "auac"), (cells[4], "au_mse")):
            mean, low, high = entry[key]
            assert cell == f"{mean:.3f} [{low:.3f}, {high:.3f}]"
            assert np.mean(entry[f"{key} of examples"]) == pytest.approx(mean, abs=1e-4)


# What is committed


@functools.cache
def stored() -> dict[str, str]:
    results = reporting.load_all(reporting.RESULTS, run.ORDER)
    results["bace"] = molecules.summary()
    others = reporting.load_all(reporting.RESULTS, [*ablation.VARIANTS, "depth"])
    return pages.blocks(results, others)


@pytest.mark.parametrize("path", pages.PAGES, ids=["experiments", "package"])
def test_tables_of_the_pages_are_those_of_the_result_files(path: Path) -> None:
    text, tables = path.read_text(encoding="utf-8"), stored()
    places = re.findall(r"<!-- ([\w-]+) -->", text)
    assert len(set(places) & set(tables)) == (4 if path == pages.PAGES[0] else 1)
    assert pages.fill(text, tables) == text
    assert pages.fill(text, dict.fromkeys(tables, "")) != text


def test_notebook_shows_the_result_files() -> None:
    notebook = json.loads((pages.PAGES[0].parent / "paper.ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    shown = [
        "".join(o["data"]["text/markdown"]) for o in outputs if "text/markdown" in o.get("data", {})
    ]
    tables = stored()
    assert all(tables[name] in shown for name in ("headline", "results", "bar", "between", "depth"))
    folder = pages.PAGES[0].parent
    sources = "".join("".join(cell["source"]) for cell in notebook["cells"])
    pictures = re.findall(r"!\[\]\(([^)]+)\)", sources)
    assert len(pictures) == 4 and all((folder / name).exists() for name in pictures)


def test_every_number_of_the_text_is_in_a_result_file() -> None:
    text = pages.fill(pages.PAGES[0].read_text(encoding="utf-8"), dict.fromkeys(stored(), ""))
    files = [*reporting.RESULTS.glob("*.md"), *molecules.STORED.glob("*.md")]
    known = "\n".join([p.read_text(encoding="utf-8") for p in files] + list(stored().values()))
    measured = {float(n) for n in re.findall(r"\d+\.\d+", known)}
    said = re.findall(r"(?<![\w.])\d+\.\d\d+(?![\w.]*\d)", text)
    assert said
    for number in said:
        digits = len(number.split(".")[1])
        assert any(abs(value - float(number)) < 0.5001 * 10**-digits for value in measured), number


# Bias


def test_bias_study_sums_the_pieces_of_a_word() -> None:
    model, tokenizer = models.sentiment()
    group = bias.Group(
        "toy", ("anna", "zbigniewski"), ("female", "male"), ("{} is here .", "a film by {} ."),
        ("female", "male"),
    )  # fmt: skip
    measured = bias.measure(model, tokenizer, group)
    text = "a film by zbigniewski ."
    inputs = tokenizer(text, return_tensors="pt")
    tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    start, end = tokens.index("by") + 1, tokens.index(".")
    assert end - start > 1  # several pieces
    layer = LayerConservativeGI(model, model.bert.embeddings)
    parts = [layer.attribute(inputs, target=c).sum(-1)[0, start:end].sum() for c in (1, 0)]
    assert measured.relevance["LRP(AH+LN)"][1, 1] == pytest.approx(
        float(parts[0] - parts[1]), abs=1e-4
    )
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    assert measured.logits[1, 1] == pytest.approx(float(logits[1] - logits[0]), abs=1e-5)
    np.testing.assert_allclose(measured.effect.sum(0), 0, atol=1e-12)
    assert bias.ranking(measured, bias.EFFECT, 1) == (
        ["anna"] if measured.means()[bias.EFFECT][0] > 0 else ["zbigniewski"],
        ["zbigniewski"] if measured.means()[bias.EFFECT][0] > 0 else ["anna"],
    )


def toy_measured(strength: float) -> bias.Measured:
    rng = np.random.default_rng(0)
    words = tuple(f"w{i}" for i in range(40))
    group = bias.Group("toy", words, ("a",) * 20 + ("b",) * 20, ("t1", "t2"), ("a", "b"))
    effect = rng.normal(size=(40, 1)) + np.array([1.0] * 20 + [-1.0] * 20)[:, None]
    noise = rng.normal(size=(40, 2))
    relevance = dict.fromkeys(bias.STUDIED, strength * effect + noise)
    return bias.Measured(group, relevance, effect + np.array([[5.0, -3.0]]))


def test_bias_statistics_find_what_was_put_in() -> None:
    good, bad = toy_measured(2.0), toy_measured(0.0)
    r, low, high, _ = bias.agreement(good)["GI"]
    means = good.means()
    assert r == pytest.approx(np.corrcoef(means["GI"], means[bias.EFFECT])[0, 1])
    assert 0.8 < low < r < high
    assert bias.agreement(bad)["GI"][2] < low
    found = bias.differences(good)
    values = means["GI"] / means["GI"].std()
    assert found["GI"][0] == pytest.approx(values[:20].mean() - values[20:].mean())
    assert found["GI"][1] > 0  # the interval leaves out zero
    assert "| toy | a minus b |" in bias.report([good])


# Conservation and the model of the paper


def test_sums_of_relevance(small: Path) -> None:
    model, tokenizer = models.sentiment()
    split = data.Split([text for text, _ in TEXTS], [label for _, label in TEXTS])
    subject = subjects.text_data(data.TASKS["sst2"], model, tokenizer, split, 5)
    sums = conservation.sums(model, subject.examples, 5)
    logits, found = sums.logits, sums.relevance
    for row in range(5):
        inputs = subject.examples.inputs([row])
        with torch.no_grad():
            output = model(**inputs).logits[0]
        assert logits[row] == pytest.approx(float(output.max()), abs=1e-5)
        relevance = AtEmbeddings(model, "gi").attribute(inputs, target=int(output.argmax()))
        assert found["GI"][row] == pytest.approx(float(relevance.sum()), abs=1e-4)
    np.testing.assert_allclose(found["LRP, biases distributed"], logits, atol=1e-3)
    assert abs(found["LRP"] - logits).max() > 0.1
    np.testing.assert_allclose(found["LRP"] + sums.absorbed["LRP"], logits, atol=1e-5)
    text = conservation.table({"toy": sums})
    assert len(text.splitlines()) == 2 + len(found)


def detached(model: ablation.AttentionClassifier, x: torch.Tensor) -> torch.Tensor:
    """The paper's trick written down: patterns and standard deviations are constants."""

    def norm(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True).detach()

    for block in model.blocks:
        size = x.shape[-1] // block.heads
        parts = [layer(x).unfold(-1, size, size) for layer in (block.query, block.key, block.value)]
        pattern = torch.einsum("bihd,bjhd->bhij", parts[0], parts[1]).softmax(-1).detach()
        mixed = torch.einsum("bhij,bjhd->bihd", pattern, parts[2]).flatten(2)
        x = norm(x + block.output(mixed))
        if block.mlp is not None:
            x = norm(x + block.mlp(x))
    logits: torch.Tensor = model.classifier(torch.tanh(model.pooler(x[:, 0])))
    return logits


@pytest.mark.parametrize("name", list(ablation.VARIANTS))
def test_model_like_the_papers_by_its_own_trick(name: str) -> None:
    bert, tokenizer = models.sentiment()
    model = ablation.build(bert, ablation.VARIANTS[name]).eval()
    for block in model.blocks:  # let patterns differ from the uniform one
        torch.nn.init.normal_(block.query.weight, std=0.2)
        torch.nn.init.normal_(block.key.weight, std=0.2)
    inputs = tokenizer("a charming and funny film", return_tensors="pt")
    x = model.embeddings(input_ids=inputs["input_ids"]).detach().requires_grad_()
    logits = detached(model, x)
    torch.testing.assert_close(model(**inputs), logits, atol=1e-5, rtol=1e-4)
    (gradient,) = torch.autograd.grad(logits[0, 1], x)
    found = AtEmbeddings(model, "ah+ln").attribute(inputs, target=1)
    torch.testing.assert_close(found, (gradient * x).sum(-1).detach(), atol=1e-5, rtol=1e-3)
    ConservativeGI(model).attribute(inputs, target=1, strict=True)  # every operation has its rule


def test_training_lowers_the_loss() -> None:
    bert, tokenizer = models.sentiment()
    model = ablation.build(bert, False)
    rows = data.Split([text for text, _ in TEXTS], [label for _, label in TEXTS])
    inputs = finetune.encode(tokenizer, rows.texts, 32)

    def loss() -> float:
        with torch.no_grad():
            logits = model.eval()(**inputs)
            return float(torch.nn.functional.cross_entropy(logits, torch.tensor(rows.labels)))

    before = loss()
    ablation.train(model, tokenizer, rows, epochs=8, show=False)
    assert loss() < before / 2
    with torch.no_grad():
        right = model.eval()(**inputs).argmax(-1) == torch.tensor(rows.labels)
    assert ablation.accuracy(model, tokenizer, rows) == pytest.approx(float(right.float().mean()))


# All of it


def test_all_experiments_from_one_command(small: Path, tmp_path: Path) -> None:
    run.main([
        "--shared", str(small), "--models", str(tmp_path / "models"),
        "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"),
        "--experiment", "all", "--tasks", "sst2", "--count", "2",
        "--methods", "Random", "GI", "LRP(AH+LN)",
    ])  # fmt: skip
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "sst2.json", "mnist.json", "mnist-black.json", "attention.json", "attention-mlp.json",
        "depth.json", "search.json", "search.md", "bias.md", "bias-names.png", "bias-groups.png",
        "conservation.md", "conservation.png", "curves.png", "tables.md",
    }  # fmt: skip
    from matplotlib import image

    for path in (tmp_path / "out").glob("*.png"):
        assert path.stat().st_size < 300_000
        assert image.imread(path).std() > 0.02  # something is drawn
    saved = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert saved == ["attention-mlp.pt", "attention.pt"]
