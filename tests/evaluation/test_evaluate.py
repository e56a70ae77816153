"""Whole evaluations: the numbers, resuming, tables, figures and the command line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from captum_lrp_tx import (
    ConservativeGI,
    ConservativeLRP,
    LayerConservativeGI,
    RandomAttribution,
    TokenIntegratedGradients,
)
from captum_lrp_tx.cli import main
from captum_lrp_tx.cli.reading import class_numbers, read_images, read_labels, read_texts
from captum_lrp_tx.errors import InputError, TargetError
from captum_lrp_tx.evaluation import (
    MEASURES,
    Examples,
    ImageExamples,
    ImageFiles,
    TextExamples,
    evaluate,
)
from captum_lrp_tx.evaluation.store import Store
from captum_lrp_tx.methods.registry import PAPER
from captum_lrp_tx.metrics.bootstrap import Interval, paired_bootstrap
from captum_lrp_tx.metrics.curves import activation_curve, deletion_curve, pruning_curve
from captum_lrp_tx.metrics.eraser import sufficiency
from captum_lrp_tx.metrics.masking import Masker, MaskTokens
from captum_lrp_tx.metrics.patches import MaskPatches, RemovePatches
from captum_lrp_tx.models import digit_samples, digits, sentiment
from captum_lrp_tx.rules import GammaRule

TEXTS = [
    "a charming and funny film", "a dull mess", "not bad at all", "it drags", "a waste of time",
    "warm , clever and alive", "the jokes fall flat",
]  # fmt: skip
LABELS = [1, 0, 1, 0, 0, 1, 0]
TWO = ("GI", "LRP(AH+LN)")


@pytest.fixture(scope="module")
def text():
    """Model, examples, masker."""
    model, tokenizer = sentiment()
    examples = TextExamples(TEXTS, tokenizer, LABELS)
    return model, examples, MaskTokens.from_tokenizer(tokenizer)


@pytest.fixture(scope="module")
def two(text):
    model, examples, masker = text
    return evaluate(model, examples, TWO, masker=masker, target="label", block_size=3)


def without_seconds(table):
    """A CSV table as rows, without the column of times."""
    rows = list(csv.DictReader(io.StringIO(table)))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def straightforward(model, tokenizer, texts, labels, rules):
    """AUAC and AU-MSE of each sentence, one forward pass a step, as Ali et al. publish it."""
    fractions, unknown = np.linspace(0, 1, 11), tokenizer.unk_token_id
    areas = []
    for text, label in zip(texts, labels, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        explainer = LayerConservativeGI(model, model.bert.embeddings, rules)
        relevance = explainer.attribute(ids, target=label)[0].sum(-1).detach().double().numpy()
        with torch.no_grad():
            whole = model(ids).logits[0].double()
        activation, pruning = [], []
        for fraction in fractions:
            count = int(np.ceil(fraction * len(relevance)))
            shown = torch.full_like(ids, unknown)
            shown[0, np.argsort(relevance)[::-1][:count].copy()] = ids[
                0, np.argsort(relevance)[::-1][:count].copy()
            ]
            cut = ids.clone()
            cut[0, np.argsort(np.abs(relevance))[:count].copy()] = unknown
            with torch.no_grad():
                activation.append(float(model(shown).logits[0].double().softmax(0)[label]))
                pruning.append(float((model(cut).logits[0].double() - whole).square().sum()))
        areas.append([
            sum((y[i] + y[i + 1]) / 2 * (fractions[i + 1] - fractions[i]) for i in range(10))
            for y in (activation, pruning)
        ])  # fmt: skip
    return np.array(areas)


# ---- the numbers ------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "rules"), [("GI", "gi"), ("LRP(AH+LN)", "ah+ln")])
def test_areas_are_those_of_a_straightforward_loop(text, two, name, rules):
    model, _, _ = text
    expected = straightforward(model, sentiment()[1], TEXTS, LABELS, rules)
    np.testing.assert_allclose(two[name].values("activation"), expected[:, 0], rtol=1e-4)
    np.testing.assert_allclose(two[name].values("pruning"), expected[:, 1], rtol=1e-4, atol=1e-6)
    assert two[name].rows == tuple(range(len(TEXTS)))


def test_areas_of_sst2_are_those_of_a_straightforward_loop(shared):
    transformers = pytest.importorskip("transformers")
    folder = shared / "models/minilm-sst2"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).float().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts, labels = read_texts(shared / "data/sst2/dev.tsv")
    texts, labels = texts[:4], [int(label) for label in labels[:4]]
    examples = TextExamples(texts, tokenizer, labels)
    masker = MaskTokens.from_tokenizer(tokenizer)
    found = evaluate(model, examples, TWO, masker=masker, target="label")
    for name, rules in zip(TWO, ("gi", "ah+ln"), strict=True):
        expected = straightforward(model, tokenizer, texts, labels, rules)
        np.testing.assert_allclose(found[name].values("AUAC"), expected[:, 0], rtol=1e-4)
        np.testing.assert_allclose(found[name].values("AU-MSE"), expected[:, 1], rtol=1e-3)
        assert found[name].interval("AUAC").estimate == pytest.approx(expected[:, 0].mean())


def test_sounds_in_a_mapping_have_a_baseline():
    class Model(torch.nn.Linear):
        def forward(self, input_values):
            return super().forward(input_values)

    torch.manual_seed(0)
    model, waves = Model(6, 2).eval(), torch.randn(3, 6)

    class Waves(Examples):
        def __len__(self):
            return 3

        def inputs(self, rows):
            return {"input_values": waves[list(rows)]}

        def lengths(self):
            return [6] * 3

        def fingerprint(self):
            return "waves"

    class Silence(Masker):
        def features(self, batch):
            return torch.ones_like(batch.main, dtype=torch.bool)

        def scores(self, attributions, batch):
            return attributions

        def masked(self, batch, hidden):
            return batch.with_main(batch.main.masked_fill(hidden, 0.0))

    found = evaluate(model, Waves(), ["IG"], masker=Silence(), metrics=["pruning"])
    classes = model(waves).argmax(1)
    expected = waves * model.weight[classes]
    curve = pruning_curve(model, waves, expected, classes, masker=Silence())
    torch.testing.assert_close(found["IG"].values("pruning"), curve.area)


def test_every_metric_is_that_of_its_function(text):
    model, examples, masker = text
    names = [measure.name for measure in MEASURES]
    found = evaluate(model, examples, ["LRP"], masker=masker, metrics=names, at="input", limit=3)
    inputs = examples.inputs([0, 1, 2])
    with torch.no_grad():
        targets = model(**inputs).logits.argmax(1)
    relevance = ConservativeLRP(model).attribute(inputs, target=targets)
    arguments = (model, inputs, relevance, targets)
    for name, expected in {
        "activation": activation_curve(*arguments, masker=masker).area,
        "deletion-lerf": deletion_curve(*arguments, masker=masker, order="lerf").area,
        "sufficiency": sufficiency(*arguments, masker=masker),
    }.items():
        torch.testing.assert_close(found["LRP"].values(name), expected, rtol=1e-4, atol=1e-5)
    assert set(found["LRP"].measured) == set(names)


def test_steps_after_each_token(text):
    model, examples, masker = text
    found = evaluate(
        model, examples, ["LRP(AH+LN)"], masker=masker, fractions="all", at="input", target="label"
    )
    for row in (0, 3):
        inputs = examples.inputs([row])
        relevance = ConservativeGI(model).attribute(inputs, target=LABELS[row])
        alone = pruning_curve(model, inputs, relevance, LABELS[row], masker=masker, fractions="all")
        assert float(found["LRP(AH+LN)"].values("pruning")[row]) == pytest.approx(
            alone.mean, rel=1e-3
        )


def test_integrated_gradients_start_at_the_masked_input(text):
    model, examples, masker = text
    found = evaluate(model, examples, ["IG"], masker=masker, limit=2, target="label")
    for row in range(2):
        inputs = examples.inputs([row])
        explainer = TokenIntegratedGradients(model, baseline=masker.token_id)
        relevance = explainer.attribute(inputs, target=LABELS[row])
        alone = activation_curve(model, inputs, relevance, LABELS[row], masker=masker)
        assert float(found["IG"].values("AUAC")[row]) == pytest.approx(alone.mean, rel=1e-4)


def test_unless_told_otherwise_the_paper_s_methods_and_the_default_are_measured(text):
    pytest.importorskip("scipy")
    model, examples, masker = text
    found = evaluate(model, examples, masker=masker, limit=3, limits={"flow": 2})
    assert not found.errors
    assert [method.name for method in found] == [*PAPER, "LRP"]
    assert found["A-Flow"].rows == (0, 1) and found["GAE"].rows == (0, 1, 2)


def test_images_by_removed_and_by_masked_patches():
    images, labels = digit_samples()
    examples = ImageExamples(images[:4], labels[:4])
    model = digits()
    for masker in (RemovePatches(4), MaskPatches(4, -1.0)):
        found = evaluate(
            model, examples, ["GI", "Rollout"], masker=masker, target="label", at="input"
        )
        relevance = ConservativeGI(model, "gi").attribute(images[:4], target=labels[:4])
        expected = activation_curve(model, images[:4], relevance, labels[:4], masker=masker)
        torch.testing.assert_close(found["GI"].values("AUAC"), expected.area, rtol=1e-4, atol=1e-5)
        assert not found.errors


def test_a_method_that_does_not_apply_has_its_reason_in_the_table(text):
    model, examples, masker = text

    def refusing(model):
        raise InputError("needs a | different\nmodel")

    found = evaluate(model, examples, [("Mine", refusing), "Random"], masker=masker, limit=2)
    assert found.errors == {"Mine": "needs a | different model"}
    lines = found.markdown("Mine").splitlines()
    assert "does not apply: needs a \\| different model" in lines[2]
    assert len({line.replace("\\|", "").count("|") for line in lines[:4]}) == 1
    row = next(r for r in csv.DictReader(io.StringIO(found.csv())) if r["method"] == "Mine")
    assert row["reason"] == "needs a | different model" and row["AUAC"] == ""
    with pytest.raises(InputError, match=r"TextExamples\(texts, tokenizer\).*, not list"):
        evaluate(None, ["a film"], ["LRP"], masker=None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has no results"):
        found["Mine"].values("AUAC")


# ---- resuming ---------------------------------------------------------------------------------
class Interrupted:
    """A method that is stopped when it is called for the n-th time."""

    def __init__(self, stop: int) -> None:
        self.stop = stop
        self.rows = 0

    def __call__(self, model):
        inner, outer = RandomAttribution(model, seed=3), self

        class Method:
            def attribute(self, inputs, target):
                outer.rows += len(inputs["input_ids"])
                if outer.rows > outer.stop:
                    raise KeyboardInterrupt
                return inner.attribute(inputs, target)

        return Method()


def test_an_interrupted_evaluation_goes_on_where_it_stopped(text, tmp_path):
    model, examples, masker = text
    options = {"masker": masker, "block_size": 2}
    whole = evaluate(model, examples, [("Mine", Interrupted(99)), "GI"], **options)
    first = Interrupted(4)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, examples, [("Mine", first), "GI"], out=tmp_path, **options)
    lines = (tmp_path / "mine.jsonl").read_text().splitlines()
    stored = sum(len(json.loads(line)["rows"]) for line in lines)
    assert 0 < stored < len(TEXTS)
    second = Interrupted(99)
    resumed = evaluate(model, examples, [("Mine", second), "GI"], out=tmp_path, **options)
    assert second.rows == len(TEXTS) - stored
    assert without_seconds(resumed.csv()) == without_seconds(whole.csv())
    nothing = Interrupted(0)  # a third run computes nothing, and reads the same times
    again = evaluate(model, examples, [("Mine", nothing), "GI"], out=tmp_path, **options)
    assert nothing.rows == 0 and again.markdown() == resumed.markdown()


def test_half_a_line_is_cut_off(text, tmp_path):
    model, examples, masker = text
    options = {"masker": masker, "block_size": 2, "out": tmp_path}
    whole = evaluate(model, examples, ["GI"], **options)
    file = tmp_path / "gi.jsonl"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) - 40])
    resumed = evaluate(model, examples, ["GI"], **options)
    for metric in ("AUAC", "AU-MSE"):
        torch.testing.assert_close(
            resumed["GI"].values(metric), whole["GI"].values(metric), rtol=1e-5, atol=1e-6
        )
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(row for line in lines for row in line["rows"]) == list(range(len(TEXTS)))


def test_more_methods_metrics_and_examples_can_be_added(text, tmp_path):
    model, examples, masker = text
    options = {"masker": masker, "out": tmp_path}
    few = evaluate(model, examples, [("Mine", Interrupted(99))], limit=3, **options)
    counting = Interrupted(99)
    more = evaluate(model, examples, ["Random", ("Mine", counting)], **options)
    assert counting.rows == len(TEXTS) - 3
    assert torch.equal(more["Mine"].values("AUAC")[:3], few["Mine"].values("AUAC"))
    counting = Interrupted(99)
    evaluate(model, examples, [("Mine", counting)], metrics=["log-odds"], limit=2, **options)
    assert counting.rows == 2


def test_results_of_another_evaluation_are_refused(text, tmp_path):
    model, examples, masker = text
    options = {"masker": masker, "out": tmp_path, "limit": 2}
    evaluate(model, examples, ["Random"], **options)
    other = TextExamples(TEXTS[::-1], sentiment()[1], LABELS[::-1])
    changed = [
        ("seed", {"seed": 1}), ("target", {"target": "label"}), ("at", {"at": "input"}),
        ("fractions", {"fractions": (0.0, 1.0)}), ("masker", {"masker": MaskTokens(5)}),
    ]  # fmt: skip
    for key, option in changed:
        with pytest.raises(InputError, match=rf"different are: {key} .*--fresh"):
            evaluate(model, examples, ["Random"], **{**options, **option})
    with pytest.raises(InputError, match="data "):
        evaluate(model, other, ["Random"], **options)
    with pytest.raises(InputError, match="model "):
        evaluate(lambda **k: model(**k).logits, examples, ["Random"], **options)
    model.classifier.rule = GammaRule(0.5)
    with pytest.raises(InputError, match="model "):
        evaluate(model, examples, ["Random"], **options)
    del model.classifier.rule
    fresh = evaluate(model, examples, ["Random"], **{**options, "seed": 1}, fresh=True)
    assert fresh["Random"].rows == (0, 1)
    assert json.loads((tmp_path / "_settings.json").read_text())["seed"] == 1


def test_damaged_folders_are_named(tmp_path):
    store = Store(tmp_path, {"seed": 0})
    store.add("GI", [0], [{"pruning": [1.0]}])
    (tmp_path / "gi.jsonl").write_text('{"rows": 3}\n')
    with pytest.raises(InputError, match=r"line 1 of .*damaged"):
        Store(tmp_path, {"seed": 0}).entries("GI")
    (tmp_path / "_settings.json").write_text("{")
    with pytest.raises(InputError, match=r"settings\.json is damaged"):
        Store(tmp_path, {"seed": 0})
    assert Store(tmp_path, {"seed": 0}, fresh=True).entries("GI") == {}
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot use the folder"):
        Store(tmp_path / "file", {})


def test_names_that_share_a_file_do_not_mix(tmp_path):
    store = Store(tmp_path, {})
    store.add("LRP(AH)", [0], [{"pruning": 1.0}])
    store.add("LRP AH", [0], [{"pruning": 2.0}])
    again = Store(tmp_path, {})
    assert again.entries("LRP(AH)") == {0: {"pruning": 1.0}}
    assert again.entries("LRP AH") == {0: {"pruning": 2.0}}


# ---- tables and figures -----------------------------------------------------------------------
def test_table_has_means_intervals_and_the_best_in_bold(two):
    lines = two.markdown().splitlines()
    assert lines[0].split("|")[2].strip() == "AUAC ↑"
    for line, name in zip(lines[2:4], TWO, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        interval = two[name].interval("AUAC")
        assert cells[0] == name and cells[3] == str(len(TEXTS))
        assert cells[1].replace("*", "") == str(interval)
    means = {name: float(two[name].values("AU-MSE").mean()) for name in TWO}
    best = min(means, key=means.get)
    assert f"**{means[best]:.3f}**" in next(line for line in lines if line.startswith(f"| {best}"))
    assert "explained: the true class" in lines[-1]


def test_small_numbers_are_told_apart_as_large_ones(two):
    """All methods were the best ones, of 0.000."""

    def bold(found):
        lines = [line.split("|") for line in found.markdown("GI").splitlines()[2:4]]
        return [[cell.strip().startswith("**") for cell in cells] for cells in lines]

    def smaller(method):
        curves = {k: replace(c, values=c.values * 1e-6) for k, c in method.measured.items()}
        return replace(method, measured=curves)

    small = replace(two, methods=tuple(map(smaller, two.methods)))
    assert bold(small) == bold(two)
    assert not re.search(r"\b0\.000\b", small.markdown("GI"))
    for row, method in zip(csv.DictReader(io.StringIO(small.csv())), small, strict=True):
        mean = method.interval("AU-MSE").estimate
        assert float(row["AU-MSE"]) == pytest.approx(mean, rel=1e-6)
    assert str(Interval(1.23e-5, 1.1e-5, 2.04e-5)) == "0.000012 [0.000011, 0.000020]"


def test_differences_are_taken_in_pairs(two):
    found = two.difference("LRP(AH+LN)", "GI", "AUAC")
    expected = paired_bootstrap(two["LRP(AH+LN)"].values("AUAC"), two["GI"].values("AUAC"))
    assert found == expected
    assert f"{found.estimate:+.3f} (p" in two.markdown("GI")
    assert two.markdown("gi") == two.markdown("GI") and two["lrp (ah + ln)"] is two["LRP(AH+LN)"]
    with pytest.raises(KeyError):
        two.markdown("IG")
    with pytest.raises(InputError, match="was not measured"):
        two["GI"].values("log-odds")


def test_csv_has_the_numbers(two):
    rows = list(csv.DictReader(io.StringIO(two.csv())))
    assert [row["method"] for row in rows] == list(TWO)
    for row in rows:
        interval = two[row["method"]].interval("AU-MSE")
        assert float(row["AU-MSE"]) == pytest.approx(interval.estimate, abs=1e-6)
        assert float(row["AU-MSE high"]) == pytest.approx(interval.high, abs=1e-6)
        assert row["n"] == str(len(TEXTS))


def test_figure_draws_the_mean_curves(two):
    pytest.importorskip("matplotlib")
    drawing = two.figure(title="t")
    assert len(drawing.axes) == 2
    for axes, metric in zip(drawing.axes, ("activation", "pruning"), strict=True):
        for line, name in zip(axes.lines, TWO, strict=True):
            mean = two[name].measured[metric].values.mean(0)
            np.testing.assert_allclose(line.get_ydata(), mean)
            np.testing.assert_allclose(line.get_xdata(), np.linspace(0, 100, 11))
    assert [entry.get_text() for entry in drawing.legends[0].get_texts()] == list(TWO)


# ---- reading ----------------------------------------------------------------------------------
def test_texts_and_labels_are_read(tmp_path):
    table = tmp_path / "t.tsv"
    table.write_text('label\tsentence\r\n1\ta "good" film\r\n\r\n0\t \n0\tbad\n', encoding="utf-8")
    assert read_texts(table) == (['a "good" film', "bad"], ["1", "0"])
    table.write_text("\ufeffone\n\ntwo\n", encoding="utf-8")
    assert read_texts(table) == (["one", "two"], None)
    for content, message in [
        ("a\tb\nc\td\n", "without a column"), ("sentence\tlabel\nx\n", "line 2 .* no label"),
        ("sentence\n\n", "holds no text"),
    ]:  # fmt: skip
        table.write_text(content)
        with pytest.raises(InputError, match=message):
            read_texts(table)
    table.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InputError, match="no UTF-8"):
        read_texts(table)


def test_labels_are_numbers_or_names():
    names = ["negative", "positive"]
    assert class_numbers(["1", "0"], names) == [1, 0]
    assert class_numbers(["Positive", "NEGATIVE"], names) == [1, 0]
    assert class_numbers(["7", "3"], [str(i) for i in range(10)]) == [7, 3]
    for wrong in (["2"], ["neutral"], ["positive", "1"], ["-1"]):
        with pytest.raises(TargetError, match="no class"):
            class_numbers(wrong, names)


def test_data_sets_are_examples(text):
    """A data set with columns is read as `attribute_dataset` reads it: labels come along."""
    _, examples, _ = text

    class Columns(dict):
        column_names = ("sentence", "label")

    given = TextExamples(Columns(sentence=TEXTS, label=LABELS), sentiment()[1])
    assert given.labels == tuple(LABELS) and given.fingerprint() == examples.fingerprint()
    batch, expected = given.inputs([0, 3]), sentiment()[1]([TEXTS[0], TEXTS[3]], padding=True)
    assert {name: value.tolist() for name, value in batch.items()} == dict(expected)


def test_arrays_of_images_are_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4), dtype=np.uint8)
    expected = torch.from_numpy(pixels / 127.5 - 1).float()[:, None]
    np.save(tmp_path / "a.npy", pixels)
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.arange(3))
    head = b"\0\0\x08\x03" + np.array([3, 4, 4], ">u4").tobytes()
    (tmp_path / "a-idx3-ubyte.gz").write_bytes(gzip.compress(head + pixels.tobytes()))
    (tmp_path / "a-idx3-ubyte").write_bytes(head + pixels.tobytes())
    np.save(tmp_path / "f.npy", (pixels / 255).astype(np.float32))
    np.save(tmp_path / "s.npy", expected.numpy())
    for name in ("a.npy", "a.npz", "a-idx3-ubyte.gz", "a-idx3-ubyte", "f.npy", "s.npy"):
        torch.testing.assert_close(read_images(tmp_path / name), expected, atol=1e-6, rtol=0)
    np.save(tmp_path / "c.npy", np.stack([pixels] * 3, -1))
    torch.testing.assert_close(read_images(tmp_path / "c.npy"), expected.expand(-1, 3, -1, -1))
    assert read_labels(tmp_path / "a.npz") == ["0", "1", "2"]
    (tmp_path / "l-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x02\x07\x03")
    assert read_labels(tmp_path / "l-idx1-ubyte") == ["7", "3"]
    (tmp_path / "l.txt").write_text("cat\n dog\n")
    assert read_labels(tmp_path / "l.txt") == ["cat", "dog"]
    (tmp_path / "cut-idx3-ubyte").write_bytes(head + b"12")
    np.save(tmp_path / "big.npy", pixels.astype(np.int64) * 30)
    np.save(tmp_path / "flat.npy", np.zeros(3))
    for name, message in [
        ("cut-idx3-ubyte", "cut off"), ("big.npy", "0 to 255"), ("flat.npy", "shape"),
        ("missing.npy", "No such file"), ("l-idx1-ubyte", "shape"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=message):
            read_images(tmp_path / name)


def test_examples_are_checked(text, tmp_path):
    model, examples, masker = text
    cut = TextExamples(TEXTS, sentiment()[1], max_length=4)
    assert cut.inputs([0, 1])["input_ids"].shape == (2, 4) and max(cut.lengths()) == 4
    assert cut.truncated == sum(length > 4 for length in examples.lengths())
    assert cut.fingerprint() != examples.fingerprint()
    for make, message in [
        (lambda: TextExamples([], sentiment()[1]), "no texts"),
        (lambda: TextExamples(TEXTS, sentiment()[1], [1]), "1 labels for 7"),
        (lambda: ImageExamples(torch.zeros(3, 4, 4)), "images must be floats"),
        (lambda: ImageFiles([], lambda file: torch.zeros(1)), "no images"),
        (lambda: evaluate(model, cut, TWO, masker=masker, target="label"), "have no labels"),
        (lambda: evaluate(model, cut, [], masker=masker), "no method is named"),
        (lambda: evaluate(model, cut, "best", masker=masker), "unknown method 'best'"),
        (lambda: evaluate(model, cut, [3], masker=masker), "3 is no method"),
        (lambda: evaluate(model, cut, TWO, masker=masker, metrics=[]), "no metric is named; the"),
        (lambda: evaluate(model, cut, TWO, masker=masker, metrics=["auc"]), "unknown metric"),
        (lambda: evaluate(model, cut, TWO, masker=masker, limit=0), "must be positive"),
        (lambda: evaluate(model, cut, TWO, masker=masker, at="output"), "at is"),
        (lambda: evaluate(sentiment()[0].train(), cut, TWO, masker=masker), "training mode"),
    ]:
        with pytest.raises(InputError, match=message):
            make()
    wrong = TextExamples(TEXTS, sentiment()[1], [5] * 7)
    with pytest.raises(TargetError, match="out of range"):
        evaluate(model, wrong, TWO, masker=masker, target="label")


# ---- the command ------------------------------------------------------------------------------
@pytest.fixture
def table(tmp_path):
    path = tmp_path / "films.tsv"
    rows = [f"{text}\t{label}\n" for text, label in zip(TEXTS, LABELS, strict=True)]
    path.write_text("sentence\tlabel\n" + "".join(rows), encoding="utf-8")
    return path


def test_the_command_writes_table_and_figure(table, text, tmp_path, capsys):
    model, examples, masker = text
    out = tmp_path / "out"
    arguments = [
        "evaluate", "--data", str(table), "--methods", "gi,ah+ln", "--target", "label",
        "--limit", "4", "--out", str(out), "--reference", "gi",
    ]  # fmt: skip
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert (out / "table.md").read_text() == printed
    assert "4, the first of 7" in printed and "minus GI" in printed
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    expected = evaluate(model, examples, TWO, masker=masker, target="label", limit=4)
    assert without_seconds((out / "table.csv").read_text()) == without_seconds(expected.csv())
    assert main(arguments) == 0 and capsys.readouterr().out == printed  # from the folder
    assert main([*arguments, "--seed", "1"]) == 1
    assert "--fresh" in capsys.readouterr().err
    assert main([*arguments, "--seed", "1", "--fresh"]) == 0


def test_the_command_takes_images(tmp_path, capsys):
    images, labels = digit_samples()
    np.save(tmp_path / "x.npy", ((images[:3, 0] + 1) * 127.5).round().byte().numpy())
    np.save(tmp_path / "y.npy", labels[:3].numpy())
    arguments = ["evaluate", "--methods", "Random,GI", "--out", str(tmp_path / "out")]
    data = ["--data", str(tmp_path / "x.npy"), "--labels", str(tmp_path / "y.npy")]
    assert main([*arguments, *data, "--target", "label"]) == 0
    assert "RemovePatches(4" in capsys.readouterr().out
    image = pytest.importorskip("PIL.Image")
    for i in range(3):
        folder = tmp_path / "folder" / str(int(labels[i]))
        folder.mkdir(parents=True, exist_ok=True)
        pixels = ((images[i, 0] + 1) * 127.5).round().byte().numpy()
        image.fromarray(pixels).save(folder / f"{i}.png")
    data = ["--data", str(tmp_path / "folder"), "--mask-value", "-1", "--target", "label"]
    assert main([*arguments, *data, "--fresh"]) == 0
    printed = capsys.readouterr().out
    assert "MaskPatches(4, value=-1)" in printed and "examples: 3" in printed


def test_options_of_the_command_reach_the_evaluation(table, text, tmp_path, capsys):
    longer = sum(length > 4 for length in text[1].lengths())
    base = ["evaluate", "--data", str(table), "--methods", "Random", "--limit", "2"]
    for option, told in [
        (["--mask-token", "mask", "--keep-special"], "keep=(0, 2, 3, 4)"),
        (["--mask-token", "remove"], "RemoveTokens"),
        (["--every"], "after each feature"),
        (["--at", "input"], "at the token ids or pixels"),
        (["--max-length", "4"], f"texts cut to the model's length: {longer}"),
        (["--metrics", "log-odds"], "log-odds"),
    ]:
        out = tmp_path / option[0].strip("-") / "-".join(option)
        out.parent.mkdir(exist_ok=True)
        assert main([*base, *option, "--out", str(out)]) == 0
        assert told in capsys.readouterr().out, option


def test_errors_of_the_command(table, tmp_path, capsys):
    base = ["evaluate", "--out", str(tmp_path / "out")]
    data = ["--data", str(table)]
    empty = tmp_path / "empty"
    empty.mkdir()
    np.save(tmp_path / "small.npy", np.zeros((2, 5, 5), dtype=np.uint8))
    cases = [
        ([], 2, "--data"),
        (["--data", str(tmp_path / "none.tsv")], 1, "there is no"),
        ([*data, "--methods", "lime"], 2, "unknown method"),
        ([*data, "--methods", ","], 2, "names no method"),
        ([*data, "--metrics", "auc"], 2, "unknown metric"),
        ([*data, "--limit", "0"], 2, "no positive number"),
        ([*data, "--reference", "IG"], 1, "none of the methods"),
        ([*data, "--labels", str(table)], 2, "labels is for images"),
        (["--data", str(empty)], 1, "holds no images"),
        (["--data", str(tmp_path / "small.npy")], 1, "but the model takes"),
    ]  # fmt: skip
    for arguments, status, message in cases:
        assert main([*base, *arguments]) == status, arguments
        assert message in capsys.readouterr().err
