"""``explain`` for images with texts, sounds, objects and regions, on small models."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

import transformers

import captum_lrp_tx as lrp
from captum_lrp_tx import ConservativeLRP
from captum_lrp_tx.errors import InputError, OutputError, TargetError, UnsupportedModelError
from captum_lrp_tx.models import digits
from explanations import SMALL, alike, conserved
from explanations import tokenizer as tokenizer

PIXELS = torch.linspace(-1, 1, 3 * 32 * 32).sin().reshape(1, 3, 32, 32)
LABELS = {0: "road", 1: "sky", 2: "tree"}


@pytest.fixture(scope="module", autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def clip() -> Any:
    text = {**SMALL, "vocab_size": 40, "max_position_embeddings": 16, "bos_token_id": 2}
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(
        text_config={**text, "eos_token_id": 3}, vision_config=vision, projection_dim=8
    )
    return transformers.CLIPModel(config).eval()


def vilt(kind: str = "ForQuestionAnswering", **more: Any) -> Any:
    config = transformers.ViltConfig(
        **{**SMALL, "max_position_embeddings": 16}, vocab_size=40, image_size=32, patch_size=8,
        **more,
    )  # fmt: skip
    return getattr(transformers, f"Vilt{kind}")(config).eval()


def processor(tokenizer: Any) -> Any:
    class Both:
        def __init__(self) -> None:
            self.tokenizer = tokenizer
            self.image_processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})

    return Both()


# ---- text and image -----------------------------------------------------------------------------
def test_similarity_of_text_and_image(tokenizer: Any) -> None:
    model = clip()
    made = lrp.explain(model, tokenizer, ("a good film", PIXELS))
    conserved(made)
    inputs = {**tokenizer("a good film", return_tensors="pt"), "pixel_values": PIXELS}
    inputs.pop("token_type_ids", None)
    output = model(**inputs)
    cosine = torch.cosine_similarity(output.text_embeds, output.image_embeds)
    assert made.value == pytest.approx(cosine.item(), abs=1e-6)

    def forward(**given: Any) -> torch.Tensor:
        out = model(**given)
        return (out.text_embeds * out.image_embeds).sum(-1)

    words, pixels = ConservativeLRP(forward).attribute(inputs)
    assert torch.allclose(made.relevance, words[0], atol=1e-6)
    assert made.image_relevance is not None
    assert torch.allclose(made.image_relevance, pixels[0], atol=1e-6)
    assert made.sum == pytest.approx(float(words.sum() + pixels.sum()), abs=1e-5)
    assert (made.task, made.explains) == ("similarity of text and image", "cosine similarity")
    assert [w.text for w in made.words()] == ["a", "good", "film"]
    assert len(made.embeddings) == 2
    assert torch.equal(lrp.explain(model, tokenizer, inputs).relevance, made.relevance)
    again = lrp.explain(model, tokenizer, (PIXELS, "a good film"))
    assert torch.equal(again.relevance, made.relevance)
    with pytest.raises(InputError, match=r"takes a text and an image: \(text, image\)"):
        lrp.explain(model, tokenizer, "a film")
    with pytest.raises(TargetError, match="one number"):
        lrp.explain(model, tokenizer, ("a film", PIXELS), target=0)
    with pytest.raises(OutputError, match="gives no text_embeds and image_embeds to compare"):
        lrp.explain(vilt(), tokenizer, ("a film", PIXELS), task="similarity of text and image")


def test_texts_that_are_always_as_long_as_can_be(tokenizer: Any) -> None:
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    config = transformers.SiglipConfig(
        text_config={**SMALL, "vocab_size": 40, "max_position_embeddings": 12},
        vision_config=vision,
    )
    made = lrp.explain(transformers.SiglipModel(config).eval(), tokenizer, ("a film", PIXELS))
    conserved(made)
    assert len(made) == 12 and [w.text for w in made.words()] == ["a", "film"]


def test_questions_about_an_image(tokenizer: Any) -> None:
    image = pytest.importorskip("PIL.Image")
    model = vilt(id2label={0: "yes", 1: "no", 2: "two"})
    picture = image.new("RGB", (40, 30), (200, 30, 60))
    made = lrp.explain(model, processor(tokenizer), ("is it good?", picture), target="no")
    conserved(made)
    assert made.task == "classification of text and image"
    assert made.explains == "logit of no" and made.image is not None
    assert made.image_relevance is not None and made.image_relevance.shape == (3, 32, 32)
    logits = model(
        **tokenizer("is it good?", return_tensors="pt"),
        pixel_values=processor(tokenizer).image_processor(picture, return_tensors="pt")[
            "pixel_values"
        ],
    ).logits[0]
    assert made.value == pytest.approx(logits[1].item(), abs=1e-5)
    assert made.probability == pytest.approx(logits.sigmoid().max().item(), abs=1e-5)
    against = lrp.explain(model, processor(tokenizer), ("is it good?", picture), contrast=True)
    conserved(against)
    every = lrp.explain(model, processor(tokenizer), ("is it good?", picture), target="all")
    assert [e.target for e in every] == ["yes", "no", "two"]
    encoding = {**tokenizer("is it good?", return_tensors="pt"), "pixel_values": PIXELS}
    encoding["pixel_mask"] = torch.ones(1, 32, 32, dtype=torch.long)
    conserved(lrp.explain(model, processor(tokenizer), encoding))
    # transformers 5 has no pipeline for such models any more
    for parts in (vars(processor(tokenizer)), {"processor": processor(tokenizer)}):
        pipe: Any = SimpleNamespace(model=model, **parts)
        piped = lrp.explain(pipe, ("is it good?", picture), target="no")
        assert torch.allclose(piped.relevance, made.relevance, atol=1e-7)


def test_whether_text_and_image_go_together(tokenizer: Any) -> None:
    made = lrp.explain(vilt("ForImageAndTextRetrieval"), tokenizer, ("a film", PIXELS))
    conserved(made)
    assert made.explains == "the score"


# ---- sounds -------------------------------------------------------------------------------------
WAVE = torch.linspace(0, 60, 800).sin()


def wav2vec2() -> Any:
    config = transformers.Wav2Vec2Config(
        **{**SMALL, "vocab_size": 10}, conv_dim=(16, 16), conv_stride=(5, 4), conv_kernel=(10, 8),
        num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        classifier_proj_size=8, id2label={0: "up", 1: "down"},
    )  # fmt: skip
    return transformers.Wav2Vec2ForSequenceClassification(config).eval()


def test_sounds_as_samples() -> None:
    model, extractor = wav2vec2(), transformers.Wav2Vec2FeatureExtractor()
    made = lrp.explain(model, extractor, WAVE, target="down")
    conserved(made)
    inputs = extractor(WAVE.numpy(), sampling_rate=16000, return_tensors="pt")
    expected = ConservativeLRP(model).attribute(inputs, target=1)[0]
    assert torch.allclose(made.relevance, expected, atol=1e-7) and len(made) == 800
    assert made.task == "audio classification" and made.seconds == 0.05
    assert made.audio is not None and torch.equal(made.audio, inputs["input_values"][0])
    given: list[Any] = [
        WAVE.numpy(), WAVE.tolist(), WAVE[None], inputs,
        {"array": WAVE.numpy(), "sampling_rate": 16000}, {"raw": WAVE, "sampling_rate": 16000},
    ]  # fmt: skip
    for item in given:
        assert torch.allclose(lrp.explain(model, extractor, item, 1).relevance, made.relevance)
    many = lrp.explain(model, extractor, [WAVE, WAVE[:600]], target=["up", "down"])
    assert [(e.target, len(e)) for e in many] == [("up", 800), ("down", 600)]
    pipe = transformers.pipeline("audio-classification", model=model, feature_extractor=extractor)
    assert torch.equal(lrp.explain(pipe, WAVE, target=1).relevance, made.relevance)
    with pytest.raises(InputError, match="audio has no words"):
        made.words()


@pytest.mark.parametrize(
    ("item", "reason"),
    [({"array": [0.1], "sampling_rate": 8000}, "8000 samples a second, but the model takes 16000"),
     ("song.wav", "soundfile.read"), (torch.zeros(2, 800), "of several channels take the mean"),
     (torch.zeros(9, dtype=torch.int16), "32768"), (3000.0 * WAVE, "float32 up to 2999.+32768"),
     ({"input_values": torch.zeros(1, 1, 1, 5)}, r"shape \(1, samples\), .*not \(1, 1, 1, 5\)"),
     ({"array": np.array(["up"]), "sampling_rate": 16000}, r"the audio holds no numbers \("),
     ({"text": "a"}, "'array' and 'sampling_rate'")],
)  # fmt: skip
def test_sounds_that_are_refused(item: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        lrp.explain(wav2vec2(), transformers.Wav2Vec2FeatureExtractor(), item)


def test_samples_need_their_extractor() -> None:
    with pytest.raises(InputError, match="AutoFeatureExtractor"):
        lrp.explain(wav2vec2(), None, WAVE)
    conserved(lrp.explain(wav2vec2(), None, {"input_values": WAVE}))


def test_sounds_as_spectrograms() -> None:
    whisper = transformers.WhisperForAudioClassification(
        transformers.WhisperConfig(
            d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32,
            decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, num_mel_bins=8,
            max_source_positions=50, vocab_size=40, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            decoder_start_token_id=1, classifier_proj_size=8,
        )
    ).eval()  # fmt: skip
    extractor = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    made = lrp.explain(whisper, extractor, WAVE, target=1)
    conserved(made)
    assert made.relevance.shape == (8, 100) and made.seconds == 1.0
    inputs = extractor(WAVE.numpy(), sampling_rate=16000, return_tensors="pt")
    expected = ConservativeLRP(whisper).attribute(inputs, target=1)[0]
    assert torch.allclose(made.relevance, expected, atol=1e-7)


def test_sounds_as_spectrograms_of_frames() -> None:
    config = transformers.ASTConfig(
        **SMALL, max_length=32, num_mel_bins=16, patch_size=8, frequency_stride=8, time_stride=8
    )
    model, wave = transformers.ASTForAudioClassification(config).eval(), WAVE.repeat(6)
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=16, max_length=32)
    made = lrp.explain(model, extractor, wave, target=1)
    conserved(made)
    inputs = extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt")
    expected = ConservativeLRP(model).attribute(inputs, target=1)[0]
    assert made.relevance.shape == (16, 32)  # frequencies first, unlike what the model takes
    assert torch.allclose(made.relevance, expected.T, atol=1e-7)
    assert len(lrp.explain(model, None, {"input_values": inputs["input_values"]})) == 32
    longer = lrp.explain(model, extractor, WAVE.repeat(9), target=1)
    longest = lrp.explain(model, extractor, WAVE.repeat(10), target=1)
    assert torch.equal(longer.relevance, longest.relevance)  # of the same 32 frames
    assert "the sound was cut" in longer.warnings[0] and "the sound was cut" in str(longest)


def test_seconds_of_spectrograms_of_frames() -> None:
    extractor = SimpleNamespace(sampling_rate=16000, hop_length=160)
    config = transformers.ASTConfig(
        **SMALL, max_length=32, num_mel_bins=16, patch_size=8, frequency_stride=8, time_stride=8
    )
    model = transformers.ASTForAudioClassification(config).eval()
    made = lrp.explain(model, extractor, {"input_values": torch.randn(1, 32, 16)}, target=1)
    assert made.seconds == pytest.approx(0.32)  # of frames, not of frequencies


def test_frames_that_stand_side_by_side_follow_each_other_in_pictures() -> None:
    """w2v-BERT gets two frames of 80 frequencies in a row of 160."""
    config = transformers.Wav2Vec2BertConfig(
        **SMALL, feature_projection_input_dim=12, num_labels=2, classifier_proj_size=8
    )
    model = transformers.Wav2Vec2BertForSequenceClassification(config).eval()
    extractor = SimpleNamespace(sampling_rate=16000, hop_length=160, num_mel_bins=6)
    heard = torch.randn(1, 5, 12)
    made = lrp.explain(model, extractor, {"input_features": heard}, target=1)
    expected = ConservativeLRP(model).attribute({"input_features": heard}, target=1)[0]
    for seen, given in ((made.audio, heard[0]), (made.relevance, expected)):
        assert seen is not None and seen.shape == (6, 10)
        torch.testing.assert_close(seen[:, ::2], given[:, :6].T)
        torch.testing.assert_close(seen[:, 1::2], given[:, 6:].T)
    assert made.seconds == pytest.approx(0.1)


def test_square_spectrograms_are_not_turned() -> None:
    whisper = transformers.WhisperForAudioClassification(
        transformers.WhisperConfig(
            d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32,
            decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, num_mel_bins=16,
            max_source_positions=8, vocab_size=40, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            decoder_start_token_id=1, classifier_proj_size=8,
        )
    ).eval()  # fmt: skip
    heard = torch.randn(1, 16, 16)
    made = lrp.explain(whisper, None, {"input_features": heard})
    assert made.audio is not None and torch.equal(made.audio, heard[0])


# ---- pictures however they are stored ----------------------------------------------------------
def test_pictures_of_sixteen_bits_are_no_white_ones(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    grey = np.arange(28 * 28, dtype="uint16").reshape(28, 28) % 256
    expected = lrp.explain(digits(), None, image.fromarray(grey.astype("uint8"))).image
    deep = image.fromarray(grey * 257)
    deep.save(tmp_path / "deep.png")
    for given in (deep, tmp_path / "deep.png", deep.convert("I"), image.fromarray(grey * 1.0)):
        assert torch.equal(lrp.explain(digits(), None, given).image, expected)
    with pytest.raises(InputError, match="values from 0 to 65535; give it with values from 0 to"):
        lrp.explain(digits(), None, image.fromarray(grey * 257.0))


def test_pictures_of_a_turned_camera(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    picture = image.fromarray(np.arange(28 * 28, dtype="uint8").reshape(28, 28) // 4)
    exif = image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture.save(tmp_path / "a.png", exif=exif)
    model, opened = digits(), image.open(tmp_path / "a.png")
    turned, stored = (lrp.explain(model, None, item) for item in (tmp_path / "a.png", opened))
    assert turned.image is not None and stored.image is not None
    assert torch.equal(turned.image, stored.image.rot90(-1, (1, 2)))
    told = [any("as it is stored" in text for text in e.warnings) for e in (turned, stored)]
    assert told == [False, True]


def test_arrays_are_the_pictures_that_they_hold() -> None:
    image = pytest.importorskip("PIL.Image")
    config = transformers.ViTConfig(**SMALL, image_size=32, patch_size=8)
    model = transformers.ViTForImageClassification(config).eval()
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    seen = np.arange(40 * 40 * 4).reshape(40, 40, 4) % 251
    picture = image.fromarray(seen.astype("uint8"))  # see-through: on black ground
    expected = lrp.explain(model, processor, picture).image
    for given in (seen, seen.astype("uint8"), seen.astype("int32")):
        assert torch.equal(lrp.explain(model, processor, given).image, expected)
    floats = PIXELS[0].numpy()
    assert not lrp.explain(model, processor, floats).warnings
    made = lrp.explain(model, processor, floats / 2 + 0.5)
    assert "the image processor was left out" in made.warnings[0]
    grey = np.arange(28 * 28).reshape(28, 28) % 256  # whole numbers of two dimensions: no texts
    assert lrp.explain(digits(), None, grey).image.shape == (1, 28, 28)


# ---- objects and regions ------------------------------------------------------------------------
def yolos() -> Any:
    config = transformers.YolosConfig(
        **SMALL, image_size=[32, 32], patch_size=8, num_detection_tokens=5, id2label=LABELS
    )
    return transformers.YolosForObjectDetection(config).eval()


def detr() -> Any:
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=backbone, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, num_queries=5, id2label=LABELS,
    )  # fmt: skip
    return transformers.DetrForObjectDetection(config).eval()


@pytest.mark.parametrize("build", [yolos, detr])
def test_objects(build: Any) -> None:
    model = build()
    made = lrp.explain(model, None, PIXELS, target=(3, "sky"))
    conserved(made)
    expected = ConservativeLRP(model).attribute(PIXELS, target=(3, 1))[0]
    assert torch.allclose(made.relevance, expected, atol=1e-6)
    output = model(PIXELS)
    odds = output.logits[0].softmax(-1)[:, :-1]
    x, y, width, height = (output.pred_boxes[0, 3] * 32).tolist()
    assert made.explains == (
        f"logit of sky for query 3, x {x - width / 2:.0f} to {x + width / 2:.0f}, "
        f"y {y - height / 2:.0f} to {y + height / 2:.0f}"
    )
    assert made.probability == pytest.approx(odds[3].max().item(), abs=1e-5)
    assert made.prediction == LABELS[int(odds[3].argmax())]
    named = lrp.explain(model, None, PIXELS, target="tree")
    assert f"for query {int(odds[:, 2].argmax())}," in named.explains
    surest = lrp.explain(model, None, PIXELS)
    assert f"for query {int(odds.max(-1).values.argmax())}," in surest.explains
    numbered = lrp.explain(model, None, PIXELS, target=2, contrast=True)
    conserved(numbered)
    assert "for query 2," in numbered.explains and " rather than " in numbered.target
    with pytest.raises(TargetError, match="a query from 0 to 4"):
        lrp.explain(model, None, PIXELS, target=9)
    with pytest.raises(TargetError, match="no class 'dog'"):
        lrp.explain(model, None, PIXELS, target="dog")


def test_padding_of_images_of_several_sizes_is_no_picture() -> None:
    model = detr()
    mask = torch.ones(2, 32, 32, dtype=torch.long)
    mask[1, :, 20:] = 0
    batch = {"pixel_values": torch.cat([PIXELS, PIXELS.flip(3)]) * mask[:, None]}
    batch["pixel_mask"] = mask
    output = model(**batch)
    for number, made in enumerate(lrp.explain(model, None, batch, target=(3, "sky"))):
        conserved(made)
        assert made.value == pytest.approx(output.logits[number, 3, 1].item(), abs=1e-5)
        x, _, width, _ = (output.pred_boxes[number, 3] * (32, 20)[number]).tolist()
        assert f"x {x - width / 2:.0f} to {x + width / 2:.0f}," in made.explains
    one, model = {name: value[:1] for name, value in batch.items()}, yolos()  # takes no mask
    alike(lrp.explain(model, None, one), lrp.explain(model, None, one["pixel_values"]))


def test_detectors_without_a_class_for_nothing() -> None:
    """All classes of such a model have names, and each its own probability."""
    model = yolos()
    model.config.id2label = {**LABELS, 3: "house"}
    odds = model(PIXELS).logits[0].sigmoid()
    made = lrp.explain(model, None, PIXELS, target="house")
    conserved(made)
    query = int(odds[:, 3].argmax())
    assert made.explains.startswith(f"logit of house for query {query},")
    assert made.probability == pytest.approx(odds[query].max().item(), abs=1e-5)


@pytest.mark.parametrize(
    ("task", "shape", "reason"),
    [
        ("object detection", (1, 3), r"shape \(1, 3\), not \(1, queries, classes\)"),
        ("semantic segmentation", (1, 3), r"shape \(1, 3\), not \(1, classes, rows, columns\)"),
    ],
)
def test_outputs_of_another_task(task: str, shape: tuple[int, ...], reason: str) -> None:
    class Other(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> Any:
            logits = pixel_values.sum().expand(shape)
            return SimpleNamespace(logits=logits, pred_boxes=torch.ones(1, 3, 4))

    with pytest.raises(OutputError, match=reason):
        lrp.explain(Other().eval(), None, PIXELS, task=task)


def test_every_object() -> None:
    model = yolos()
    if model(PIXELS).logits[0].softmax(-1)[:, :-1].max() < 0.5:
        with pytest.raises(TargetError, match="sure of no object"):
            lrp.explain(model, None, PIXELS, target="all")
    head = model.class_labels_classifier.layers[-1]
    with torch.no_grad():
        head.bias[2] += 9
    many = lrp.explain(model, None, PIXELS, target="all")
    assert [e.target for e in many] == ["tree"] * 5
    assert [e.explains.split(",")[0][-1] for e in many] == list("01234")


def test_detectors_that_are_told_what_to_look_for() -> None:
    text = {**SMALL, "vocab_size": 40, "max_position_embeddings": 16}
    config = transformers.OwlViTConfig(
        text_config=text, vision_config={**SMALL, "image_size": 32, "patch_size": 8}
    )
    model = transformers.OwlViTForObjectDetection(config).eval()
    with pytest.raises(UnsupportedModelError, match="told by texts what to look for"):
        lrp.explain(model, None, PIXELS)


def segformer() -> Any:
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16],
        patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2],
        decoder_hidden_size=16, id2label=LABELS,
    )  # fmt: skip
    return transformers.SegformerForSemanticSegmentation(config).eval()


def test_regions() -> None:
    model = segformer()
    logits = model(PIXELS).logits[0]
    present = logits.argmax(0).unique().tolist()
    made = lrp.explain(model, None, PIXELS, target=LABELS[present[-1]])
    conserved(made)
    where = logits.argmax(0) == present[-1]
    assert made.value == pytest.approx(logits[present[-1]][where].sum().item(), abs=1e-3)
    pixel = lrp.explain(model, None, PIXELS, target=(LABELS[1], 2, 3))  # a name here, too
    assert pixel.value == pytest.approx(logits[1, 2, 3].item(), abs=1e-4)
    count = int(where.sum())
    assert made.explains.endswith(f"summed over {count} of 64 pixels where it is predicted")
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:5, 3:7] = True
    chosen = lrp.explain(model, None, PIXELS, target=("sky", mask))
    conserved(chosen)
    parts = [
        lrp.explain(model, None, PIXELS, target=(1, row, column)).relevance
        for row, column in mask.nonzero().tolist()
    ]
    assert torch.allclose(chosen.relevance, torch.stack(parts).sum(0), atol=1e-5)
    large = mask.repeat_interleave(4, 0).repeat_interleave(4, 1)
    for same in (large, large.numpy()):
        scaled = lrp.explain(model, None, PIXELS, target=("sky", same))
        assert torch.equal(scaled.relevance, chosen.relevance)
    against = lrp.explain(model, None, PIXELS, target=("sky", mask), contrast="road")
    other = lrp.explain(model, None, PIXELS, target=("road", mask))
    assert against.target == "sky rather than road"
    assert torch.allclose(against.relevance, chosen.relevance - other.relevance, atol=1e-5)
    rival = lrp.explain(model, None, PIXELS, target=("sky", mask), contrast=True)
    best = "road" if logits[0][mask].sum() > logits[2][mask].sum() else "tree"
    assert rival.target == f"sky rather than {best}"
    many = lrp.explain(model, None, PIXELS, target="all")
    assert [e.target for e in many] == [LABELS[i] for i in present]
    with pytest.raises(InputError, match=r"shape \(3, 3\).*\(32, 32\).*\(8, 8\)"):
        lrp.explain(model, None, PIXELS, target=("sky", torch.ones(3, 3)))
    with pytest.raises(TargetError, match="contrast= goes with the name or number of a class"):
        lrp.explain(model, None, PIXELS, target=(1, 2, 3), contrast=True)
    with pytest.raises(TargetError, match="no pixel"):
        lrp.explain(model, None, PIXELS, target=("sky", torch.zeros(8, 8)))
    with torch.no_grad():
        model.decode_head.classifier.bias[0] += 99
    with pytest.raises(TargetError, match="predicted nowhere"):
        lrp.explain(model, None, PIXELS, target="sky")
    assert lrp.explain(model, None, PIXELS).prediction == "road in 100 % of the picture"
    (only,) = lrp.explain(model, None, PIXELS, target="all")  # a sequence, by what was asked
    assert only.target == "road"


# ---- files and pictures -------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_there_and_back(suffix: str, tokenizer: Any, tmp_path: Path) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    both = lrp.explain(clip(), tokenizer, ("a good film", PIXELS))
    heard = lrp.explain(wav2vec2(), transformers.Wav2Vec2FeatureExtractor(), WAVE)
    for made in (both, heard):
        made.save(tmp_path / f"one.{suffix}")
        again = lrp.Explanation.load(tmp_path / f"one.{suffix}")
        alike(made, again)
        assert again.seconds == made.seconds and again.sum == pytest.approx(made.sum)
        for name in ("image_relevance", "audio"):
            a, b = getattr(made, name), getattr(again, name)
            assert a is b is None or torch.equal(a, b)


def test_tables_and_pictures(tokenizer: Any, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    both = lrp.explain(clip(), tokenizer, ("a good film", PIXELS))
    heard = lrp.explain(wav2vec2(), transformers.Wav2Vec2FeatureExtractor(), WAVE)
    assert list(heard.to_frame().columns) == ["sample", "relevance"]
    assert len(both.to_frame()) == 5
    drawn = both.plot()
    assert len(drawn.axes) == 4  # text, image, its relevance, colours
    assert all(0 <= a.get_position().y0 < a.get_position().y1 <= 1.001 for a in drawn.axes)
    assert [a.get_ylabel() for a in heard.plot().axes] == ["input", "relevance"]
    for made, count in ((both, 1), (heard, 1)):
        for suffix in ("html", "png", "svg"):
            made.save(tmp_path / f"x.{suffix}")
        page = (tmp_path / "x.html").read_text(encoding="utf-8")
        assert page.count("data:image/png") == count
        assert "against" in str(made)
    assert ">good</span>" in both._repr_html_()
