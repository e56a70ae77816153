"""A text with an image, and sounds, on the command line as in Python."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("PIL.Image")

import transformers
from PIL import Image

import captum_lrp_tx as lrp
from captum_lrp_tx.cli import main
from captum_lrp_tx.models import model_path, sentiment

TEXT = "is it good"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models with what they read inputs by, a picture, and sounds."""
    made = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    tokenizer = sentiment()[1]
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 32, "vocab_size": len(tokenizer)}  # fmt: skip
    seen = {**size, "image_size": 32, "patch_size": 8}
    names = {0: "yes", 1: "no"}
    vilt = transformers.ViltConfig(**seen, id2label=names, label2id={"yes": 0, "no": 1})
    transformers.ViltForQuestionAnswering(vilt).save_pretrained(made / "vilt")
    pixels = transformers.ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=8)
    transformers.ViltProcessor(pixels, tokenizer).save_pretrained(made / "vilt")
    layers = {"conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (9, 8)}
    heard = transformers.Wav2Vec2Config(
        **size, **layers, num_feat_extract_layers=2, num_conv_pos_embedding_groups=2
    )
    transformers.Wav2Vec2ForSequenceClassification(heard).save_pretrained(made / "wav2vec2")
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(made / "wav2vec2")
    Image.fromarray(generator.integers(0, 256, (32, 32, 3), "uint8")).save(made / "x.png")
    samples = (generator.uniform(-0.5, 0.5, 1600) * 2**15).astype("<i2")
    for name, channels, rate in (("one", 1, 16000), ("two", 2, 16000), ("slow", 1, 8000)):
        with wave.open(str(made / f"{name}.wav"), "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(samples.tobytes())
    return made


def said(capsys: Any, *arguments: Any, status: int = 0) -> str:
    assert main([*map(str, arguments), "--no-color"]) == status
    streams = capsys.readouterr()
    text: str = streams.err if status else streams.out
    return text


def test_a_text_with_an_image(folder: Path, tmp_path: Path, capsys: Any) -> None:
    picture, page = tmp_path / "x.png", tmp_path / "x.html"
    shown = said(
        capsys, TEXT, "--image", folder / "x.png", "--model", folder / "vilt", "--target", "no",
        "--png", picture, "--html", page,
    )  # fmt: skip
    model = transformers.ViltForQuestionAnswering.from_pretrained(folder / "vilt").eval()
    processor = transformers.ViltProcessor.from_pretrained(folder / "vilt")
    e = lrp.explain(model, processor, (TEXT, str(folder / "x.png")), "no")
    assert f"sum of relevance       {e.sum:+.4f}" in shown and "logit of no" in shown
    good = next(word for word in e.words() if word.text == "good")
    assert f"{good.relevance:+.4f}" in shown
    assert picture.read_bytes()[:4] == b"\x89PNG" and "<img" in page.read_text(encoding="utf-8")


def test_a_sound(folder: Path, tmp_path: Path, capsys: Any) -> None:
    picture = tmp_path / "s.png"
    shown = said(
        capsys, "--audio", folder / "one.wav", "--model", folder / "wav2vec2", "--target", "1",
        "--png", picture,
    )  # fmt: skip
    model = transformers.Wav2Vec2ForSequenceClassification.from_pretrained(folder / "wav2vec2")
    with wave.open(str(folder / "one.wav")) as file:
        samples = np.frombuffer(file.readframes(1600), "<i2").astype("float32") / 2**15
    e = lrp.explain(model.eval(), transformers.Wav2Vec2FeatureExtractor(), samples, 1)
    assert f"sum of relevance       {e.sum:+.4f}" in shown and "audio classification" in shown
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_what_does_not_fit(folder: Path, tmp_path: Path, capsys: Any) -> None:
    vilt, wav, sound = folder / "vilt", folder / "wav2vec2", folder / "one.wav"
    (tmp_path / "x.wav").write_bytes(b"no sound")
    for arguments, status, told in (
        ((TEXT, "--image", folder / "x.png"), 2, "no model of text and image together comes"),
        (("--audio", sound), 2, "no model of sounds comes"),
        ((TEXT, "--audio", sound, "--model", wav), 2, "--audio explains a sound alone"),
        (("--audio", folder / "two.wav", "--model", wav), 1, "2 channels of 16 bits"),
        (("--audio", folder / "slow.wav", "--model", wav), 1, "8000"),
        (("--audio", tmp_path / "x.wav", "--model", wav), 1, "a WAV file with 16 bits"),
        (("--audio", tmp_path / "missing.wav", "--model", wav), 1, "No such file"),
        (("--audio", sound, "--model", model_path("sentiment")), 1, "takes text: explain TEXT"),
        ((TEXT, "--model", wav), 1, "takes sounds: explain --audio FILE"),
        ((TEXT, "--model", vilt), 1, "takes a text and an image: explain TEXT --image FILE"),
        ((TEXT, "--image", tmp_path / "no.png", "--model", vilt), 1, "there is no image"),
        (("compare", TEXT, "--image", folder / "x.png", "--model", vilt), 2, "not both"),
    ):
        assert told in said(capsys, *arguments, status=status).replace("\n", " "), arguments
