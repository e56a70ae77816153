"""What is measured of an example does not depend on those that run with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers

from captum_lrp_tx import ConservativeGI, ConservativeLRP, LayerConservativeGI, RandomAttribution
from captum_lrp_tx.attr.targets import Sum, Target
from captum_lrp_tx.cli import main
from captum_lrp_tx.errors import InputError, OutputError
from captum_lrp_tx.evaluation import ImageExamples, TextExamples, evaluate
from captum_lrp_tx.metrics.batches import Batch
from captum_lrp_tx.metrics.captum_scoring import captum_scores
from captum_lrp_tx.metrics.curves import activation_curve, pruning_curve
from captum_lrp_tx.metrics.masking import MaskTokens, RemoveTokens
from captum_lrp_tx.metrics.patches import MaskPatches
from captum_lrp_tx.metrics.sums import conservation
from captum_lrp_tx.models import digit_samples, digits, sentiment
from captum_lrp_tx.reporting import report

#: By the model's tokenizer of 3, 3, 3, 4, 5 and 12 tokens: as many of one length as tokens.
TEXTS = ["good", "bad", "dull", "not good", "a charming film", "it is one of the best films of all"]


def scaled(model: torch.nn.Module, factor: float) -> Any:
    return lambda pixels: model(pixels).logits * factor


def test_results_of_other_pixels_or_another_function_are_not_gone_on_with(tmp_path: Path) -> None:
    """Their texts are the same: "a tensor", and the modules that a function runs."""
    model, (images, _) = digits(), digit_samples()
    examples = ImageExamples(images[:2].bfloat16().float())
    black, white = (MaskPatches(4, torch.full((1, 1, 1), value)) for value in (-1.0, 1.0))
    runs: list[tuple[Any, Any, str]] = [
        (scaled(model, 1.0), black, ""), (scaled(model, 1.0), white, "masker"),
        (scaled(model, 2.0), black, "model"), (lambda x: model(x).logits, black, "model"),
        (scaled(model, 1.0), black, ""),
    ]  # fmt: skip
    for function, masker, different in runs:
        options: dict[str, Any] = {
            "masker": masker, "fractions": torch.tensor([0.0, 1.0]), "out": tmp_path,
        }  # fmt: skip
        if not different:
            evaluate(function, examples, ["Random"], **options)
            continue
        with pytest.raises(InputError, match=f"different are: {different}"):
            evaluate(function, examples, ["Random"], **options)


class Maps(torch.nn.Module):
    """Blocks of maps with as many channels as rows, which come first or last."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last, self.embed, self.head = last, torch.nn.Conv2d(1, 4, 2, 2), torch.nn.Linear(4, 3)

        def layer() -> torch.nn.Module:
            return torch.nn.Linear(4, 4) if last else torch.nn.Conv2d(4, 4, 1)

        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(layer(), layer(), layer()) for _ in range(2)
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        states = self.embed(pixels)
        states = states.movedim(1, -1) if self.last else states
        for block in self.blocks:
            states = block(states)
        logits: torch.Tensor = self.head(states.mean((1, 2) if self.last else (2, 3)))
        return logits


@pytest.mark.parametrize("last", [True, False])
def test_channels_are_not_taken_for_rows(last: bool) -> None:
    model, images = Maps(last).eval(), torch.randn(2, 1, 8, 8)
    (found,) = evaluate(model, ImageExamples(images), ["GI"], masker=MaskPatches(2))
    assert found.error is not None and "at='input'" in found.error
    # here only one of the readings has the sides of the image
    images = torch.randn(2, 1, 8, 16)
    (found,) = evaluate(model, ImageExamples(images), ["GI"], masker=MaskPatches(2))
    at_block = LayerConservativeGI(model, model.blocks[0], "gi").attribute(
        images, model(images).argmax(1), attribute_to_layer_input=True
    )
    relevance = at_block.sum(-1 if last else 1)
    curve = pruning_curve(model, images, relevance, masker=MaskPatches(2))
    torch.testing.assert_close(found.values("pruning"), curve.area)


def test_images_in_half_precision_and_limits_of_methods_of_ones_own() -> None:
    model, (images, _) = digits(), digit_samples()
    examples = ImageExamples(images[:3].bfloat16())
    mine = ("mine", lambda model: RandomAttribution(model, seed=3))
    found = evaluate(
        lambda x: model(x.float()).logits, examples, [mine], masker=MaskPatches(4),
        limits={"mine": 2},
    )  # fmt: skip
    assert found["mine"].rows == (0, 1) and found["mine"].error is None


def xlnet(words: int) -> torch.nn.Module:
    """Has the tokens in the first dimension, and reads the last place."""
    config = transformers.XLNetConfig(
        vocab_size=words, d_model=16, n_layer=2, n_head=2, d_inner=32, dropout=0.0
    )
    return transformers.XLNetForSequenceClassification(config)


def fnet(words: int) -> torch.nn.Module:
    """Knows no mask: padding is mixed into all places."""
    config = transformers.FNetConfig(
        vocab_size=words, hidden_size=16, num_hidden_layers=2, intermediate_size=32
    )
    return transformers.FNetForSequenceClassification(config)


def gpt2(words: int, padding: int | None = 5) -> torch.nn.Module:
    """Reads the last place that is no padding, and pads by another token than the tokenizer."""
    config = transformers.GPT2Config(
        vocab_size=words, n_embd=16, n_layer=2, n_head=2, pad_token_id=padding, bos_token_id=1,
        eos_token_id=1,
    )  # fmt: skip
    return transformers.GPT2ForSequenceClassification(config)


@pytest.mark.parametrize("masked", [MaskTokens, RemoveTokens])
@pytest.mark.parametrize("build", [xlnet, fnet, gpt2])
def test_numbers_are_those_of_each_text_alone(build: Any, masked: Any) -> None:
    _, tokenizer = sentiment()
    torch.manual_seed(0)
    model = build(len(tokenizer)).eval()
    examples = TextExamples(TEXTS, tokenizer)
    assert sorted(examples.lengths())[:3] == [3, 3, 3]
    found = [
        evaluate(
            model, examples, ["GI", "LRP"], masker=masked.from_tokenizer(tokenizer), block_size=size
        )
        for size in (1, len(TEXTS))
    ]
    for alone, together in zip(*found, strict=True):
        assert alone.error is None and together.error is None
        for name, measured in alone.measured.items():
            torch.testing.assert_close(
                torch.as_tensor(measured.values), torch.as_tensor(together.measured[name].values),
                rtol=1e-4, atol=1e-6,
            )  # fmt: skip


def test_the_first_block_of_a_decoder_is_not_the_first_of_the_model() -> None:
    _, tokenizer = sentiment()
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        pad_token_id=0, eos_token_id=tokenizer.sep_token_id, decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForSequenceClassification(config).eval()
    options = {"masker": MaskTokens.from_tokenizer(tokenizer, keep_special=True)}
    examples = TextExamples(TEXTS[:2], tokenizer)
    (refused,) = evaluate(model, examples, ["LRP"], **options)
    assert refused.error is not None and "at='input'" in refused.error
    (measured,) = evaluate(model, examples, ["LRP"], at="input", **options)
    assert measured.error is None


class WithoutMask:
    """A tokenizer of which the model gets no mask, as that of FNet."""

    def __init__(self) -> None:
        _, self.tokenizer = sentiment()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        found = dict(self.tokenizer(*args, **options))
        return {name: value for name, value in found.items() if name != "attention_mask"}


@pytest.mark.parametrize("build", [xlnet, fnet])
def test_without_a_mask_numbers_are_those_of_each_text_alone(build: Any) -> None:
    tokenizer = WithoutMask()
    torch.manual_seed(0)
    model = build(len(sentiment()[1])).eval()
    masker = MaskTokens.from_tokenizer(tokenizer)
    methods = ["Random", "GradientShap"]
    found = evaluate(model, TextExamples(TEXTS, tokenizer), methods, masker=masker)
    for row, text in enumerate(TEXTS):
        alone = evaluate(model, TextExamples([text], tokenizer), methods, masker=masker)
        for one, together in zip(alone, found, strict=True):
            for metric in one.measured:
                torch.testing.assert_close(
                    together.values(metric)[row], one.values(metric)[0], rtol=1e-4, atol=1e-7
                )
    # padded by hand
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    relevance = torch.arange(float(inputs["input_ids"].numel())).view(len(TEXTS), -1)
    curve = pruning_curve(model, inputs, relevance, masker=masker)
    for row, text in enumerate(TEXTS):
        one = tokenizer([text], return_tensors="pt")
        own = relevance[row : row + 1, : one["input_ids"].shape[1]]
        area = pruning_curve(model, one, own, masker=masker).area
        torch.testing.assert_close(curve.area[row], area[0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("has_mask", [True, False])
@pytest.mark.parametrize("build", [xlnet, fnet, gpt2])
def test_conservation_without_padding(build: Any, has_mask: bool) -> None:
    tokenizer: Any = sentiment()[1] if has_mask else WithoutMask()
    torch.manual_seed(0)
    model = build(len(sentiment()[1])).eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    found = conservation(
        model, tokenizer(TEXTS, padding=True, return_tensors="pt"), rules={"GI": "gi"}
    )
    for row, text in enumerate(TEXTS):
        alone = conservation(model, tokenizer([text], return_tensors="pt"), rules={"GI": "gi"})
        torch.testing.assert_close(found.output[row], alone.output[0], rtol=1e-4, atol=1e-6)
        for level, sums in alone.sums["GI"].items():
            torch.testing.assert_close(found.sums["GI"][level][row], sums[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("has_mask", [True, False])
@pytest.mark.parametrize("build", [fnet, gpt2])
def test_captums_scores_without_padding(build: Any, has_mask: bool) -> None:
    tokenizer: Any = sentiment()[1] if has_mask else WithoutMask()
    torch.manual_seed(0)
    model = build(len(sentiment()[1])).eval()
    # everything is hidden, so that nothing is random
    options: dict[str, Any] = {
        "masker": MaskTokens.from_tokenizer(tokenizer), "share": 1.0, "n_perturb_samples": 2,
        "n_noise_samples": 1,
    }  # fmt: skip
    methods = ["GI", "IG"]
    found = captum_scores(
        model, tokenizer(TEXTS, padding=True, return_tensors="pt"), methods, **options
    )
    for row, text in enumerate(TEXTS):
        alone = captum_scores(model, tokenizer([text], return_tensors="pt"), methods, **options)
        for name in methods:
            together, one = (each[name].values["infidelity"] for each in (found, alone))
            torch.testing.assert_close(together[row], one[0], rtol=1e-3, atol=1e-7)


class AtTheEnd(Target):
    """A function of the output of which only its own code tells what it reads."""

    def select(self, output: torch.Tensor) -> torch.Tensor:
        return output[:, -1, 7]


def test_places_counted_from_the_end_are_those_that_attribute_explains() -> None:
    """Of texts filled up on the right these lie in the padding, which is not cut off then."""
    _, tokenizer = sentiment()
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2)
    model, target = transformers.GPT2LMHeadModel(config).eval(), (-1, 7)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids")
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1, 7]
    sums = conservation(model, inputs, target, rules={"GI": "gi"})
    torch.testing.assert_close(sums.output, logits.double(), rtol=1e-5, atol=1e-7)
    # everything is hidden: what changes, and what relevance says of it
    masker = MaskTokens.from_tokenizer(tokenizer)
    batch = Batch.of(inputs)
    hidden = masker.masked(batch, masker.features(batch))
    with torch.no_grad():
        change = logits - hidden.call(model)[:, -1, 7]
    relevance = ConservativeGI(model, rules="gi").attribute(inputs, target=target)
    expected = ((relevance * masker.features(batch)).sum(1) - change) ** 2
    for asked in (target, AtTheEnd(), Sum([target])):
        scores = captum_scores(
            model, inputs, ["GI"], masker=masker, target=asked, share=1.0, n_perturb_samples=2,
            n_noise_samples=1,
        )  # fmt: skip
        torch.testing.assert_close(
            scores["GI"].values["infidelity"], expected.double(), rtol=1e-3, atol=1e-9
        )


def test_conservation_with_tokens_in_the_first_dimension() -> None:
    _, tokenizer = sentiment()
    torch.manual_seed(0)
    model = xlnet(len(tokenizer)).eval()
    inputs = tokenizer(TEXTS[:3], return_tensors="pt")
    assert inputs["input_ids"].shape == (3, 3)
    together = conservation(model, inputs, rules={"GI": "gi", "LRP": "lrp"})
    alone = conservation(model, inputs, rules={"GI": "gi", "LRP": "lrp"}, batch_size=1)
    for name, levels in alone.sums.items():
        for level, sums in levels.items():
            torch.testing.assert_close(together.sums[name][level], sums, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("names_padding", [True, False])
def test_commands_with_a_classifier_that_names_no_padding_token(
    names_padding: bool, tmp_path: Path, capsys: Any
) -> None:
    """The tokenizer's is taken; without one the message says where to write it, which works."""
    _, tokenizer = sentiment()
    torch.manual_seed(0)
    model = gpt2(len(tokenizer), None)
    folder, out, file = tmp_path / "model", tmp_path / "results", tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS))
    model.save_pretrained(folder)
    pad, tokenizer.pad_token = tokenizer.pad_token, tokenizer.pad_token if names_padding else None
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.pad_token = pad
    commands = [
        ["evaluate", "--data", str(file), "--out", str(out), "--methods", "GI"],
        ["report", "--file", str(file), "--html", str(tmp_path / "report.html"), "--methods", "GI"],
    ]
    for command in commands:
        status = main([*command, "--model", str(folder)])
        told = capsys.readouterr().err
        if not names_padding:
            assert status == 1 and 'name one as "pad_token_id" in its config.json' in told, told
            model.config.pad_token_id = 5
            model.config.save_pretrained(folder)
            status = main([*command, "--model", str(folder)])
            model.config.pad_token_id = None
            model.config.save_pretrained(folder)
        assert status == 0, capsys.readouterr().err
    assert "GI" in (out / "table.md").read_text()


def test_classes_that_are_asked_about_one_by_one_have_sigmoids() -> None:
    """In curves and in reports, which show these probabilities."""
    model, tokenizer = sentiment()
    model.config.problem_type = "multi_label_classification"
    try:
        inputs = tokenizer(TEXTS[:2], return_tensors="pt")
        relevance = ConservativeLRP(model).attribute(inputs, target=1)
        options = {"masker": MaskTokens.from_tokenizer(tokenizer), "fractions": (0.0, 1.0)}
        curve = activation_curve(model, inputs, relevance, [1, 1], **options)
        made = report(model, TEXTS[:2], tokenizer=tokenizer, methods=["LRP"])
        logs = activation_curve(
            model, inputs, relevance, [1, 1], measure="log probability", **options
        )
        logits = model(**inputs).logits.detach().double()
    finally:
        model.config.problem_type = None
    torch.testing.assert_close(curve.values[:, 1], logits.sigmoid()[:, 1], rtol=1e-5, atol=1e-6)
    shown = torch.stack([example.probabilities for example in made.examples])
    end = made.methods[0].activation.values[:, -1]
    torch.testing.assert_close(end.float(), shown.max(1).values.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logs.values, curve.values.log(), rtol=1e-5, atol=1e-6)


def test_numbers_of_a_regression_have_no_probability() -> None:
    model, tokenizer = sentiment()
    inputs = tokenizer(TEXTS[:2], return_tensors="pt")
    relevance = ConservativeLRP(model).attribute(inputs, target=1)
    options: dict[str, Any] = {"masker": MaskTokens.from_tokenizer(tokenizer)}
    model.config.problem_type = "regression"
    try:
        for measure in ("probability", "log probability"):
            with pytest.raises(OutputError, match=r"no probability; pass measure='logit'"):
                activation_curve(model, inputs, relevance, 1, measure=measure, **options)
        found = activation_curve(model, inputs, relevance, 1, measure="logit", **options)
        examples = TextExamples(TEXTS[:2], tokenizer, [1, 0])
        pruned = evaluate(model, examples, ["LRP"], target="label", metrics=["pruning"], **options)
    finally:
        model.config.problem_type = None
    expected = activation_curve(model, inputs, relevance, 1, measure="logit", **options)
    assert torch.equal(found.values, expected.values) and not pruned.errors


def test_an_example_that_fails_does_not_fail_its_neighbours() -> None:
    model, tokenizer = sentiment()

    def picky(of: Any) -> Any:
        class Picky(ConservativeLRP):
            def attribute(self, inputs: Any, *args: Any, **more: Any) -> Any:
                if bool((inputs["input_ids"] == bad).any()):
                    raise KeyError("bad")
                return ConservativeLRP.attribute(self, inputs, *args, **more)

        return Picky(of)

    bad = tokenizer("bad")["input_ids"][1]
    made = report(
        model, TEXTS[:3], tokenizer=tokenizer, methods=[("picky", picky)], faithfulness=False
    )
    assert list(made.methods[0].errors) == [1] and "KeyError" in made.methods[0].errors[1]
