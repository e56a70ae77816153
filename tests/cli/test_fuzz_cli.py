"""Damaged model folders and data files: the command line says in one line what is wrong.

Either a command succeeds, or it ends with status 1 or 2 and one line on standard error: no
traceback, and nothing called unexpected.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hypothesis")
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captum_lrp_tx.cli import main
from tiny_models import bert_config, saved, vision_config, wordpiece

pytestmark = pytest.mark.thorough

FEW = settings(
    max_examples=400 if os.environ.get("CAPTUM_LRP_TX_THOROUGH") else 40,
    suppress_health_check=list(HealthCheck),
)
JUNK: Any = st.sampled_from([None, -1, 0, 3, 17, 1.5, "a", "", [], [1, "b"], {}, {"a": 1}, True])


@pytest.fixture(scope="module")
def models(tmp_path_factory: Any) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    names = {0: "bad", 1: "so <so>", 2: "good"}
    text = transformers.BertForSequenceClassification(bert_config(id2label=names))
    saved(folder / "text", text, wordpiece())
    saved(folder / "image", transformers.ViTForImageClassification(vision_config()))
    return {"text": folder / "text", "image": folder / "image"}


def check(*arguments: Any) -> int:
    """Runs a command; the rules of this file hold."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(a) for a in arguments])
    told = [
        line
        for line in err.getvalue().splitlines()
        if not line.startswith(("captum_lrp_tx: warning: ", "wrote ", "the image is scaled"))
    ]
    told_all = err.getvalue()
    assert "Traceback" not in told_all and "captum_lrp_tx: unexpected" not in told_all, told_all
    assert status in (0, 1, 2)
    if status == 1:
        assert len(told) == 1 and told[0].startswith("captum_lrp_tx: "), err.getvalue()
        assert len(told[0]) > 30
    elif status == 2:  # the usage, with the reason at the end unless there were no arguments
        # an argument in the reason may break the line
        reason = ": error: " in told_all or told[-1].startswith("captum_lrp_tx: ")
        assert reason or (told[0].startswith("usage: ") and "examples:" in told)
    return status


@st.composite
def damage(draw: Any) -> Any:
    """What to do to the bytes of a file."""
    how = draw(st.sampled_from(["cut", "flip", "garbage", "insert", "empty", "zeros"]))
    seed = draw(st.integers(0, 10_000))

    def apply(content: bytes) -> bytes:
        generator = random.Random(seed)
        position = generator.randrange(len(content) + 1)
        if how == "cut":
            return content[:position]
        if how == "flip":
            changed = bytearray(content)
            for _ in range(generator.choice([1, 8])):
                # headers are at the beginning
                at = generator.randrange(min(len(content), generator.choice([64, 10**9])) or 1)
                changed[at] ^= 1 << generator.randrange(8)
            return bytes(changed)
        if how == "garbage":
            return generator.randbytes(generator.choice([1, 9, 300]))
        if how == "insert":
            return content[:position] + generator.randbytes(5) + content[position:]
        return b"" if how == "empty" else bytes(len(content))

    return apply


# ---- model folders ------------------------------------------------------------------------------
FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@FEW
@given(st.sampled_from(FILES), damage())
def test_damaged_model_folders(models: Any, tmp_path: Path, file: str, apply: Any) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models["text"], folder, dirs_exist_ok=True)
    if (folder / file).exists():
        (folder / file).write_bytes(apply((models["text"] / file).read_bytes()))
    check("a film at his best", "--model", folder, "--no-color")


@FEW
@given(
    st.sampled_from(["config.json", "tokenizer_config.json", "tokenizer.json"]),
    st.data(),
    JUNK,
)
def test_folders_with_other_settings(
    models: Any, tmp_path: Path, file: str, data: Any, value: Any
) -> None:
    """Valid JSON with one entry changed or gone."""
    folder = tmp_path / "model"
    shutil.copytree(models["text"], folder, dirs_exist_ok=True)
    if not (models["text"] / file).exists():
        return
    settings_ = json.loads((models["text"] / file).read_text())
    key = data.draw(st.sampled_from(sorted(settings_)))
    if data.draw(st.booleans()):
        settings_[key] = value
    else:
        del settings_[key]
    (folder / file).write_text(json.dumps(settings_))
    check("a film at his best", "--model", folder, "--no-color")


# ---- images -------------------------------------------------------------------------------------
def pictures() -> dict[str, bytes]:
    image, np = pytest.importorskip("PIL.Image"), pytest.importorskip("numpy")
    picture = image.new("RGB", (8, 8))
    picture.putdata([((7 * i) % 256, i, 255 - i) for i in range(64)])
    stored = {}
    for name, kind in (("png", "PNG"), ("jpg", "JPEG"), ("gif", "GIF"), ("bmp", "BMP")):
        stream = io.BytesIO()
        picture.save(stream, kind)
        stored[name] = stream.getvalue()
    stream = io.BytesIO()
    np.save(stream, np.arange(64, dtype=np.uint8).reshape(8, 8))
    return {**stored, "npy": stream.getvalue()}


@FEW
@given(st.sampled_from(["png", "jpg", "gif", "bmp", "npy"]), st.none() | damage())
def test_damaged_images(models: Any, tmp_path: Path, kind: str, apply: Any) -> None:
    content = pictures()[kind]
    (tmp_path / f"x.{kind}").write_bytes(content if apply is None else apply(content))
    status = check("--image", tmp_path / f"x.{kind}", "--model", models["image"], "--no-color")
    if apply is None:
        assert status == 0


@FEW
@given(
    st.sampled_from(["float32", "float64", "float16", "int64", "uint8", "bool", "complex64", "U3"]),
    st.lists(st.sampled_from([0, 1, 3, 8, 9]), max_size=4),
    st.sampled_from([0, 1, -1, 255, 256, 1e5, 1e30]),
)
def test_arrays_of_any_shape(
    models: Any, tmp_path: Path, dtype: str, shape: list[int], value: float
) -> None:
    np = pytest.importorskip("numpy")
    with np.errstate(all="ignore"):
        np.save(tmp_path / "x.npy", np.full(shape, value).astype(dtype))
    check("--image", tmp_path / "x.npy", "--model", models["image"], "--no-color")


# ---- texts and tables ---------------------------------------------------------------------------
TABLES = (
    st.binary(max_size=60)
    | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.lists(
        st.sampled_from(
            ["sentence", "label", "a film", "0", "good", "", '"', "\ufeff", "9", "x\ty\tz", "\r"]
        ),
        max_size=8,
    ).flatmap(
        lambda cells: st.sampled_from(["\t", "\n", "\t\n", ",", "\r\n"]).map(
            lambda gap: gap.join(cells).encode()
        )
    )
    | st.sampled_from(
        [b"sentence\tlabel\na film\t1\n", b"label\tsentence\n1\ta film\n", b"a film\n\nat his\n"]
    )
)


@FEW
@given(TABLES, st.sampled_from(["tsv", "txt", "csv"]), st.sampled_from(["compare", "report"]))
def test_tables_of_any_kind(
    models: Any, tmp_path: Path, content: bytes, ending: str, command: str
) -> None:
    file, page = tmp_path / f"data.{ending}", tmp_path / "page.html"
    file.write_bytes(content)
    page.unlink(missing_ok=True)
    options = ["--methods", "GI,LRP", "--model", models["text"], "--html", page]
    status = check(command, "--file", file, *options)
    assert page.exists() == (status == 0)


@FEW
@given(TABLES)
def test_data_sets_of_any_kind(models: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.tsv").write_bytes(content)
    check(
        "evaluate", "--data", tmp_path / "data.tsv", "--model", models["text"], "--fresh",
        "--methods", "GI", "--metrics", "comprehensiveness", "--out", tmp_path / "out",
    )  # fmt: skip


# ---- arguments ----------------------------------------------------------------------------------
WORDS: Any = st.sampled_from(
    [
        "--model", "--image", "--target", "--rules", "--bias", "--epsilon", "--positions",
        "--audit",
        "--html", "--png", "--pieces", "--methods", "--file", "--limit", "--seed", "--classes",
        "lrp", "gi", "attnlrp", "absorb", "ignore", "0", "1", "-1", "1e-400", "nan", "inf", "good",
        "a film", "", "-", "--", "so <so>", "99999999999999999999", "no/such", "\x00", "\udcff",
        "explain", "audit", "compare", "report", "evaluate", ".", "/", "LRP,GI", ",",
    ]
)  # fmt: skip


@FEW
@given(st.lists(WORDS | st.text(max_size=4), max_size=5))
def test_arguments_of_any_kind(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("sys.stdin", io.StringIO("a film"))
    check(*words)  # "insights", which would serve for ever, is no word
