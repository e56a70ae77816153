"""The command line: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import tokenizers
import transformers

import captum_lrp_tx
from captum_lrp_tx import ConservativeLRP
from captum_lrp_tx.attr.class_names import class_number
from captum_lrp_tx.cli import main
from captum_lrp_tx.errors import TargetError
from captum_lrp_tx.files import write_atomically
from tiny_models import bert_config, fast_tokenizer, saved, vision_config, wordpiece

SENTENCE = "has a lot of the virtues of eastwood at his best."
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


# Models: tiny, with random weights, saved as Hugging Face saves them


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    names = {0: "bad", 1: "so <so>", 2: "good"}
    model = transformers.BertForSequenceClassification(bert_config(id2label=names))
    return saved(tmp_path_factory.mktemp("text"), model, wordpiece())


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [("c", "a"), ("ca", "t"), ("Ġ", "cat")]
    tokens = [*letters, "ca", "cat", "Ġcat"]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    config = transformers.GPT2Config(
        vocab_size=len(tokens), n_positions=32, n_embd=16, n_layer=2, n_head=2
    )
    model = transformers.GPT2LMHeadModel(config)
    return saved(tmp_path_factory.mktemp("language"), model, fast_tokenizer(backend))


@pytest.fixture(scope="module")
def vision_model(tmp_path_factory):
    model = transformers.ViTForImageClassification(vision_config())
    return saved(tmp_path_factory.mktemp("vision"), model)


@pytest.fixture(scope="module")
def image_file(tmp_path_factory):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path_factory.mktemp("images") / "picture.png"
    picture = image.new("L", (8, 8))
    picture.putdata([(7 * i) % 256 for i in range(64)])
    picture.save(path)
    return path


@pytest.fixture
def run(capsys):
    """Runs main() and gives its exit status, standard output and standard error."""

    def call(*arguments):
        capsys.readouterr()  # what saving a model for the test has printed
        status = main([str(argument) for argument in arguments])
        return (status, *capsys.readouterr())

    return call


@pytest.fixture
def fails(run):
    """Runs main(), which must fail with one line on standard error; gives that line."""

    def call(status, *arguments):
        found, out, err = run(*arguments)
        assert (found, out) == (status, "")
        assert err.count("\n") == 1 and err.startswith("captum_lrp_tx: ")
        return err

    return call


def process(*arguments, text=None, **variables):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
    return subprocess.run(
        [sys.executable, "-m", "captum_lrp_tx", *map(str, arguments)],
        input=text, capture_output=True, env=environment, timeout=300, encoding="utf-8",
        cwd=Path(captum_lrp_tx.__file__).parents[1],
    )  # fmt: skip


def numbers_of(out):
    """The three lines of the sum."""
    lines = [line.rsplit("  ", 1) for line in out.split("\n\n")[-1].strip().splitlines()]
    return {name.strip(): float(value) for name, value in lines}


# What it prints


def test_text_is_explained(run, text_model):
    status, out, err = run(SENTENCE, "--model", text_model)
    assert (status, err) == (0, "")
    assert re.match(
        r"prediction  (bad|so <so>|good) \(probability 0\.\d{3}\)\n"
        r"explained   logit of \1 [+-]\d+\.\d{4}\n"
        r"task        sequence classification\n"
        r"rules       lrp, bias absorb\n\n",
        out,
    )
    assert "eastwood" in out and "virtues" in out
    assert re.search(r"^eastwood +[+-]\d+\.\d{4}  .*\|", out, re.M)


def test_sum_agrees_with_attribute(run, text_model):
    _, out, _ = run(SENTENCE, "--model", text_model, "--target", "good", "--rules", "lrp")
    tokenizer = transformers.AutoTokenizer.from_pretrained(text_model)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(text_model).eval()
    inputs = tokenizer(SENTENCE, return_tensors="pt")
    relevance, delta = ConservativeLRP(model).attribute(
        inputs, target=2, return_convergence_delta=True
    )
    shown = numbers_of(out)
    expected = {
        "sum of relevance": float(relevance.sum()),
        "absorbed by constants": float(delta),
        "logit": model(**inputs).logits[0, 2].item(),
    }
    assert shown == pytest.approx(expected, abs=1e-4)
    column = re.findall(r"^\S+ +([+-]\d+\.\d{4})  ", out, re.M)
    assert [float(n) for n in column] == pytest.approx(relevance[0].tolist(), abs=1e-4)


@pytest.mark.parametrize("rules", ["gi", "ah", "ln", "ah+ln", "lrp", "lrp-gamma", "attnlrp"])
@pytest.mark.parametrize("bias", ["absorb", "distribute"])
def test_rules_and_bias_are_passed_on(run, text_model, rules, bias):
    status, out, _ = run("best film", "--model", text_model, "--rules", rules, "--bias", bias)
    assert status == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(text_model)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(text_model).eval()
    inputs = tokenizer("best film", return_tensors="pt")
    target = int(model(**inputs).logits.argmax())
    relevance = ConservativeLRP(model, rules, bias=bias).attribute(inputs, target=target)
    assert numbers_of(out)["sum of relevance"] == pytest.approx(float(relevance.sum()), abs=1e-4)
    shown = numbers_of(out)
    assert sum(shown.values()) - shown["logit"] == pytest.approx(shown["logit"], abs=5e-4)


def test_epsilon_is_passed_on(run, text_model):
    first = run("best film", "--model", text_model)[1]
    second = run("best film", "--model", text_model, "--epsilon", "0.5")[1]
    assert numbers_of(first)["logit"] == numbers_of(second)["logit"]
    assert numbers_of(first)["sum of relevance"] != numbers_of(second)["sum of relevance"]


def test_target_by_index_and_by_name(run, text_model):
    by_name = run("best film", "--model", text_model, "--target", "BAD")
    by_index = run("best film", "--model", text_model, "--target", "0")
    assert by_name == by_index
    assert "logit of bad" in by_name[1]


def test_class_index_prefers_exact_names():
    assert class_number("a", ["A", "a"]) == 1
    assert class_number("1", ["x", "y"]) == 1
    with pytest.raises(TargetError, match="0 A, 1 AA"):
        class_number("aaa", ["A", "AA"])
    with pytest.raises(TargetError, match="2 classes are called 'a': 0, 1; give the number"):
        class_number("a", ["a", "a", "b"])
    assert class_number(1, ["a", "a"]) == 1
    np = pytest.importorskip("numpy")
    assert class_number(np.int64(1), ["x", "y"]) == 1
    for wanted in (True, 1.0, None):
        with pytest.raises(TargetError, match=f"no class {wanted}; the classes are: 0 x, 1 y"):
            class_number(wanted, ["x", "y"])
    with pytest.raises(TargetError, match=r"\(30 classes\)"):
        class_number("-1", [f"c{i}" for i in range(30)])


def test_positions_are_parts_of_the_relevance(run, text_model):
    status, out, _ = run("best film", "--model", text_model, "--positions")
    assert status == 0
    head = next(line for line in out.splitlines() if line.startswith("token"))
    assert sorted(head.split()[2:]) == ["position", "segment", "word"]
    for line in re.findall(r"^(?:best|film) .*", out, re.M)[-2:]:
        total, *parts = map(float, re.findall(r"[+-]\d+\.\d+", line))
        assert total == pytest.approx(sum(parts), abs=2e-4)


def test_pieces_are_joined_unless_they_shall_not_be(run, text_model):
    def words(*options):
        _, out, _ = run("the virtues", "--model", text_model, *options)
        return out.split("\n\n")[1].splitlines()[0].split()

    assert words() == ["[CLS]", "the", "virtues", "[SEP]"]
    assert words("--pieces") == ["[CLS]", "the", "virt", "ues", "[SEP]"]


def test_unquoted_words_are_one_text(run, text_model):
    assert run("best", "film", "--model", text_model) == run("best film", "--model", text_model)


def test_audit_is_printed(run, text_model):
    _, with_audit, _ = run("best film", "--model", text_model, "--audit")
    status, alone, _ = run("audit", "best film", "--model", text_model)
    report = with_audit[with_audit.index("Rules: ") :]
    assert status == 0 and alone.endswith(report)
    assert "AHRule" in report and "Conservation" in report


def test_a_language_model_explains_the_next_token(run, language_model):
    status, out, _ = run("a cat cat", "--model", language_model, "--target", "cat")
    assert status == 0
    assert re.search(r"explained   logit of ' ?cat' ", out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(language_model)
    model = transformers.AutoModelForCausalLM.from_pretrained(language_model).eval()
    inputs = tokenizer("a cat cat", return_tensors="pt")
    last = model(**inputs).logits[0, -1].detach()
    token = max(map(tokenizer.convert_tokens_to_ids, ("cat", "Ġcat")), key=lambda i: last[i])
    relevance = ConservativeLRP(model, "language-ah").attribute(
        inputs, target=(inputs["input_ids"].shape[1] - 1, token)
    )
    assert "rules       language-ah" in out
    assert numbers_of(out)["sum of relevance"] == pytest.approx(float(relevance.sum()), abs=1e-4)
    assert numbers_of(out)["logit"] == pytest.approx(float(last[token]), abs=1e-4)
    by_id = run("a cat cat", "--model", language_model, "--target", f"id:{token}")[1]
    assert by_id == out


def test_one_token_or_class_rather_than_another(run, language_model):
    asked = ("a cat cat", "--model", language_model, "--target", "cat", "--contrast")
    named, runner_up = run(*asked, "a")[1], run(*asked)[1]
    assert re.search(r"explained   logit of ' ?cat' minus that of ' ?a' ", named)
    assert re.search(r"explained   logit of ' ?cat' minus that of ' ?\S+' ", runner_up)
    out = run("a dull film", "--contrast")[1]
    assert "explained   logit of negative minus that of positive" in out
    assert numbers_of(out)["difference of logits"] > 0
    status, _, err = run("a dull film", "--contrast", "nope")
    assert status == 1 and "the classes are: 0 negative, 1 positive" in err


def test_a_text_behind_contrast_is_not_swallowed(capsys):
    assert main(["--contrast", "a dull film"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--contrast took 'a dull film' for a class; write TEXT in front of it" in said


def test_an_audit_is_of_the_rules_that_the_explanation_has(run, language_model):
    out = run("audit", "a cat", "--model", language_model)[1]
    assert "Rules: Composite(base='language-ah')" in out and "Explained: logit of" in out
    assert "Rules: Composite(base='lrp')" in run("audit", "a dull film")[1]


def test_an_image_is_explained(run, vision_model, image_file, tmp_path):
    np = pytest.importorskip("numpy")
    status, out, err = run("--image", image_file, "--model", vision_model)
    assert (status, err) == (0, "")
    assert re.match(r"prediction  (cat|dog) \(probability ", out)
    assert {"sum of relevance", "absorbed by constants", "logit"} == set(numbers_of(out))
    from PIL import Image

    pixels = np.asarray(Image.open(image_file))
    # the same image as bytes, as fractions, and as the model takes it
    for name, values in {
        "bytes": pixels,
        "fractions": pixels[None] / 255,
        "scaled": ((pixels / 255 - 0.5) / 0.5).astype("float32")[..., None],
    }.items():
        np.save(tmp_path / f"{name}.npy", values)
        assert run("--image", tmp_path / f"{name}.npy", "--model", vision_model)[1] == out


def test_an_image_processor_in_the_folder_is_used(run, tmp_path, image_file):
    folder = tmp_path / "model"
    model = transformers.ViTForImageClassification(vision_config(channels=3))
    saved(folder, model)
    plain = run("--image", image_file, "--model", folder)[1]
    settings = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True,
        "do_normalize": True, "image_mean": [0, 0, 0], "image_std": [2, 2, 2],
        "size": {"height": 8, "width": 8}, "rescale_factor": 1 / 255, "resample": 2,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    status, out, err = run("--image", image_file, "--model", folder)
    if "torchvision" in err:
        pytest.skip("this version of transformers needs torchvision for image processors")
    assert status == 0 and out != plain


def test_an_image_of_another_size_is_scaled(run, vision_model, tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.new("RGBA", (20, 10), (255, 0, 0, 128)).save(tmp_path / "large.png")
    status, _, err = run("--image", tmp_path / "large.png", "--model", vision_model)
    assert status == 0
    assert err == "captum_lrp_tx: note: the image is scaled from 20 x 10 to 8 x 8\n"


# Shipped models


def test_shipped_sentiment_model(run):
    if not _shipped("sentiment"):
        pytest.skip("the weights of the sentiment model are not there")
    status, out, _ = run(SENTENCE)
    assert status == 0
    assert out.startswith("prediction  positive")
    shown = numbers_of(out)
    assert shown["sum of relevance"] + shown["absorbed by constants"] == pytest.approx(
        shown["logit"], abs=2e-4
    )


def test_shipped_digits(run, tmp_path):
    if not _shipped("digits"):
        pytest.skip("the weights of the digit model are not there")
    np = pytest.importorskip("numpy")
    from captum_lrp_tx.models import digit_samples, digits

    images, _ = digit_samples()
    np.save(tmp_path / "digit.npy", images[9].numpy())
    status, out, _ = run("--image", tmp_path / "digit.npy")
    model = digits()
    logits = model(images[9:10]).logits[0]
    assert status == 0
    assert out.startswith(f"prediction  {int(logits.argmax())} (probability")
    relevance = ConservativeLRP(model).attribute(images[9:10], target=int(logits.argmax()))
    assert numbers_of(out)["sum of relevance"] == pytest.approx(float(relevance.sum()), abs=1e-3)


def _shipped(name):
    from captum_lrp_tx.models import MODELS_DIR

    return (MODELS_DIR / name / "model.safetensors").is_file()


# Files


def test_html_of_a_hostile_text(run, text_model, tmp_path):
    page = tmp_path / "page.html"
    status, _, err = run("<script>alert(1)</script>", "--model", text_model, "--html", page)
    assert status == 0 and err == f"captum_lrp_tx: note: wrote {page}\n"
    content = page.read_text(encoding="utf-8")
    assert "<script" not in content and "<so>" not in content
    assert "alert" in content and "&lt;" in content


def test_png_is_written(run, text_model, tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    status, _, _ = run(SENTENCE, "--model", text_model, "--png", tmp_path / "map.png")
    assert status == 0
    with image.open(tmp_path / "map.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.size[0] == 1300 and 150 < picture.size[1] < 600
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]


def test_files_of_an_image(run, vision_model, image_file, tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    status, _, _ = run(
        "--image", image_file, "--model", vision_model,
        "--png", tmp_path / "map.png", "--html", tmp_path / "map.html",
    )  # fmt: skip
    assert status == 0
    with image.open(tmp_path / "map.png") as picture:
        assert picture.size[0] == 1300 and 400 < picture.size[1] < 900
    assert "data:image/png;base64," in (tmp_path / "map.html").read_text(encoding="utf-8")


def test_writing_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    path.chmod(0o640)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o640

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"newer")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name != "posix", reason="needs links and /dev/null")
def test_links_and_devices_are_written_through(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_atomically(tmp_path / "link", b"content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"content"
    write_atomically(Path("/dev/null"), b"content")
    assert not Path("/dev/null").is_file()


# How it fails


def test_nothing_to_explain_prints_help(run):
    status, out, err = run()
    assert (status, out) == (2, "")
    assert "usage: python -m captum_lrp_tx" in err and "examples:" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--image", "y.png"], "no model of text and image together"),
        (["--image", "y.png", "--positions"], "--positions is for texts"),
        (["x", "--rules", "deeplift"], "invalid choice: 'deeplift'"),
        (["x", "--bias", "none"], "invalid choice: 'none'"),
        (["x", "--epsilon", "-1"], "'-1' is no number >= 0"),
        (["x", "--epsilon", "nan"], "'nan' is no number >= 0"),
        (["x", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["   "], "the text is empty"),
    ],
)
def test_usage_errors(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1]


def test_version_and_help(run):
    assert run("--version")[:2] == (0, f"captum_lrp_tx {captum_lrp_tx.__version__}\n")
    status, out, _ = run("--help")
    assert status == 0
    for option in ("--model", "--target", "--rules", "--bias", "--epsilon", "--image", "--html",
                   "--png", "--audit", "--no-color", "--positions", "--version"):  # fmt: skip
        assert option in out


def test_unknown_targets_list_the_valid_ones(fails, text_model, language_model):
    for target in ("great", "3", "-1"):
        err = fails(1, "x", "--model", text_model, "--target", target)
        assert f"there is no class '{target}'; the classes are: 0 bad, 1 so <so>, 2 good" in err
    assert "not one token but 2 ('cat' 's')" in fails(
        1, "a", "--model", language_model, "--target", "cats"
    )
    asked = ("a", "--model", language_model, "--target")
    assert "ids go from 0 to 258" in fails(1, *asked, "id:999")
    assert "not one token but 3 ('9' '9' '9'); name one" in fails(1, *asked, "999")


def test_numbers_as_text_are_tokens(run, language_model):
    """The answer to "2 + 2 =" is no token id; the id is asked for as such."""
    asked = ("2 + 2 =", "--model", language_model, "--no-color", "--target")
    assert "logit of '4' " in run(*asked, "4")[1]
    assert "logit of '4' minus that of '5' " in run(*asked, "4", "--contrast", "5")[1]
    assert run(*asked, "id:20")[1].splitlines()[1].startswith("explained   logit of")


@pytest.mark.parametrize("command", ["explain", "audit", "compare"])
def test_all_classes_at_once(fails, run, text_model, language_model, command):
    err = fails(1, command, "x", "--model", text_model, "--target", "all")
    assert "'all' stands for every output" in err and "one is explained at a time" in err
    assert "AssertionError" not in err
    if command == "explain":  # a word like any other where tokens are predicted
        err = fails(1, command, "a", "--model", language_model, "--target", "all")
        assert "not one token but" in err


def test_epsilon_of_zero_is_none(run, text_model):
    without = run("best film", "--model", text_model, "--no-color")[1]
    assert run("best film", "--model", text_model, "--no-color", "--epsilon", "0")[1] == without


def test_epsilon_without_effect(fails, text_model):
    err = fails(1, "x", "--model", text_model, "--rules", "ah+ln", "--epsilon", "0.1")
    assert "no rule for linear layers" in err


def test_missing_and_corrupt_models(fails, text_model, tmp_path):
    assert "there is no folder ./nowhere" in fails(1, "x", "--model", "./nowhere")
    assert "there is no folder a/b/c" in fails(1, "x", "--model", "a/b/c")
    assert "no config.json" in fails(1, "x", "--model", tmp_path)
    broken = tmp_path / "config.json"
    broken.write_text("{")
    assert "is a file" in fails(1, "x", "--model", broken)
    assert "cannot load the configuration" in fails(1, "x", "--model", tmp_path)
    for file in Path(text_model).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot load the model in the folder" in fails(1, "x", "--model", tmp_path)
    weights.unlink()
    assert "cannot load the model in the folder" in fails(1, "x", "--model", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "cannot load the tokenizer in the folder" in fails(1, "x", "--model", tmp_path)


def test_a_head_without_weights_is_not_explained(fails, text_model, tmp_path):
    saved(tmp_path, transformers.BertModel(bert_config()), wordpiece())
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    err = fails(1, "x", "--model", tmp_path)
    assert "has no weights for classifier.bias, classifier.weight" in err


def test_models_for_other_inputs(fails, text_model, vision_model, image_file, tmp_path):
    assert "explain --image FILE" in fails(1, "x", "--model", vision_model)
    assert "explain TEXT" in fails(1, "--image", image_file, "--model", text_model)
    transformers.BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(tmp_path)
    assert "is a BertForMaskedLM; only" in fails(1, "x", "--model", tmp_path)


def test_too_long_texts(fails, text_model):
    err = fails(1, "film " * 40, "--model", text_model)
    assert "42 tokens, but the model takes at most 32" in err


def test_unreadable_images(fails, vision_model, tmp_path):
    np = pytest.importorskip("numpy")

    def message(name):
        return fails(1, "--image", tmp_path / name, "--model", vision_model)

    assert "there is no image" in message("missing.png")
    assert "is a folder" in message("")
    (tmp_path / "text.png").write_text("no image")
    assert "as an image" in message("text.png")
    (tmp_path / "text.npy").write_text("no array")
    assert "as an array" in message("text.npy")
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "as an array" in message("object.npy")
    np.save(tmp_path / "shape.npy", np.zeros((3, 5)))
    assert "has the shape (3, 5), but the model takes (1, 8, 8)" in message("shape.npy")
    np.save(tmp_path / "nan.npy", np.full((8, 8), np.nan))
    assert "not finite" in message("nan.npy")
    np.save(tmp_path / "deep.npy", np.full((8, 8), 4095))  # twelve bits, not eight
    assert "deep.npy has values from 4095 to 4095: give values from 0" in message("deep.npy")
    np.save(tmp_path / "names.npy", np.array(["a"]))
    assert "as an array" in message("names.npy")


def test_files_that_cannot_be_written_are_refused_at_once(fails, tmp_path):
    # before a model is loaded: there is none here
    nowhere = tmp_path / "no" / "page.html"
    assert "there is no folder" in fails(1, "x", "--html", nowhere, "--model", "./nowhere")
    assert "it is a folder" in fails(1, "x", "--png", tmp_path, "--model", "./nowhere")


def test_missing_extras_are_named(fails, monkeypatch, text_model, tmp_path):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)
        err = fails(1, "x", "--model", text_model, "--png", tmp_path / "x.png")
        assert "pip install matplotlib pillow" in err
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert 'pip install "transformers>=4.48"' in fails(1, "x", "--model", text_model)


def test_unexpected_errors_have_no_traceback(fails, monkeypatch, text_model):
    def broken(*_, **__):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(ConservativeLRP, "_propagate", broken)
    err = fails(1, "x", "--model", text_model)
    assert "unexpected RuntimeError: first line second line" in err
    assert "CAPTUM_LRP_TX_DEBUG=1" in err
    monkeypatch.setenv("CAPTUM_LRP_TX_DEBUG", "1")
    with pytest.raises(RuntimeError, match="first line"):
        main(["x", "--model", text_model])


def test_interruption(fails, monkeypatch, text_model):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ConservativeLRP, "_propagate", interrupted)
    assert "interrupted" in fails(130, "x", "--model", text_model)


def test_nothing_is_fetched_for_a_folder(run, text_model, vision_model, image_file, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert run("best film", "--model", text_model)[0] == 0
    assert run("--image", image_file, "--model", vision_model)[0] == 0


def test_a_package_warning_is_one_line(run, monkeypatch, text_model):
    import warnings

    from captum_lrp_tx.errors import UncoveredOperationWarning

    original = ConservativeLRP._propagate

    def warns(*arguments, **options):
        warnings.warn("two\nlines", UncoveredOperationWarning, stacklevel=1)
        warnings.warn("of no interest", DeprecationWarning, stacklevel=1)
        return original(*arguments, **options)

    monkeypatch.setattr(ConservativeLRP, "_propagate", warns)
    status, _, err = run("x", "--model", text_model)
    assert (status, err) == (0, "captum_lrp_tx: warning: two lines\n")


# Colours and terminals


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("options", "no_color", "coloured"),
    [([], "", True), (["--no-color"], "", False), ([], "1", False)],
)
def test_colours_on_a_terminal(monkeypatch, text_model, options, no_color, coloured):
    out, err = Terminal(), Terminal()
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main(["best film", "--model", text_model, *options]) == 0
    assert bool(ESCAPES.search(out.getvalue())) is coloured
    # the status lines were shown and wiped out
    assert "loading the model ..." in err.getvalue()
    assert err.getvalue().endswith(" \r") and "\n" not in err.getvalue()


# As a program


def test_program_with_standard_input(text_model):
    done = process("-", "--model", text_model, text="best film\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("prediction  ")
    assert "\x1b" not in done.stdout


def test_program_exit_status(text_model):
    assert process().returncode == 2
    done = process("x", "--model", text_model, "--target", "great", PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert done.stdout == "" and done.stderr.count("\n") == 1


def test_program_prints_what_the_encoding_lacks(text_model):
    done = process("best 映画", "--model", text_model, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_program_survives_a_closed_pipe(text_model):
    command = f'"{sys.executable}" -m captum_lrp_tx best film --model "{text_model}" --audit'
    done = subprocess.run(
        f"{command} | true", shell=True, capture_output=True, text=True, timeout=300,
        cwd=Path(captum_lrp_tx.__file__).parents[1],
    )  # fmt: skip
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
