"""Causal language models: Captum's LLM attribution, and our own classes at single positions."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from captum.attr import (
    FeatureAblation,
    LLMAttribution,
    LLMGradientAttribution,
    TextTemplateInput,
    TextTokenInput,
)
from torch import Tensor, nn

from captum_lrp_tx import (
    ConservativeGI,
    ConservativeLRP,
    GenericAttention,
    LayerConservativeGI,
    LayerConservativeLRP,
)
from captum_lrp_tx.attr.targets import Contrast, LogProbability, Sum
from captum_lrp_tx.errors import CaptumLRPWarning
from language_models import ANSWER, WORDS, answer, close, language_model, tokenizer

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

pytestmark = pytest.mark.captum

FAMILIES = ["llama", "gpt2", "qwen2"]
PROMPTS = ["cat", "the old cat", "the big red dog sat on a mat"]
CLASSES = {
    "gi": (LayerConservativeGI, ConservativeGI),
    "lrp": (LayerConservativeLRP, ConservativeLRP),
}


def embedded(model: Any) -> nn.Module:
    """The layer whose output is the embedded tokens, positions included."""
    return model.transformer.drop if hasattr(model, "transformer") else model.model.embed_tokens


@pytest.fixture(autouse=True)
def _no_warnings() -> Any:
    """Captum's log-softmax is what it explains: nothing to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", CaptumLRPWarning)
        yield


# ---- LLMGradientAttribution against our classes at single positions ------------------------------
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("kind", list(CLASSES))
@pytest.mark.parametrize("family", FAMILIES)
def test_against_single_positions(family: str, kind: str, prompt: str, untouched: Any) -> None:
    model = language_model(family)
    layer_cls, own_cls = CLASSES[kind]
    method = layer_cls(model, embedded(model))
    explained = LLMGradientAttribution(method, tokenizer())
    ids, tokens, length = answer(prompt)
    with untouched(model):
        result = explained.attribute(
            TextTokenInput(prompt, tokenizer()), target=tokens, strict=True
        )
    assert method.forward_func is model
    assert result.token_attr.shape == (len(tokens), length)
    assert result.input_tokens == ["<s>", *prompt.split()]
    assert result.output_tokens == ANSWER.split()
    own = own_cls(model)
    probabilities = model(ids).logits[0].softmax(-1).detach()
    for i, token in enumerate(tokens.tolist()):
        place, shown = length - 1 + i, ids[:, : length + i]
        single = own.attribute(shown, target=LogProbability((place, token)))[0]
        assert float(single.abs().max()) > 1e-3
        close(result.token_attr[i], single[:length])
        # at logit level: that of the logit, minus that of each logit by its probability
        targets = [(place, k) for k in range(len(WORDS))]
        logits = own.attribute(shown.expand(len(WORDS), -1), target=targets)
        mean = (probabilities[place, :, None] * logits).sum(0)
        close(result.token_attr[i], (logits[token] - mean)[:length])
    close(result.seq_attr, result.token_attr.sum(0))
    # the whole answer in one pass
    parts = [LogProbability((length - 1 + i, t)) for i, t in enumerate(tokens.tolist())]
    close(own.attribute(ids, target=Sum(*parts))[0, :length], result.seq_attr)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_relevance_of_a_log_probability_adds_up_to(family: str, prompt: str) -> None:
    model = language_model(family)
    method = LayerConservativeLRP(model, embedded(model), bias="distribute", epsilon=1e-12)
    ids, tokens, length = answer(prompt)
    result = LLMGradientAttribution(method, tokenizer()).attribute(
        TextTokenInput(prompt, tokenizer()), target=tokens
    )
    logits = model(ids).logits[0].detach()
    logs = logits.log_softmax(-1)
    entropy = -(logs.exp() * logs).sum(-1)
    own = ConservativeLRP(model, bias="distribute", epsilon=1e-12)
    for i, token in enumerate(tokens.tolist()):
        place = length - 1 + i
        expected = logs[place, token] + entropy[place]
        close(expected, logits[place, token] - (logs[place].exp() * logits[place]).sum())
        generated = own.attribute(ids, target=LogProbability((place, token)))[0, length:].sum()
        close(result.token_attr[i].sum(), expected - generated)
        relevance, delta = own.attribute(
            ids, target=LogProbability((place, token)), return_convergence_delta=True
        )
        close(relevance.sum(), expected)
        close(delta[0], -entropy[place])
        logit, delta = own.attribute(ids, target=(place, token), return_convergence_delta=True)
        close(logit.sum(), logits[place, token])
        assert abs(float(delta)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_all_generated_tokens_in_one_pass(family: str) -> None:
    model = language_model(family)
    ids, tokens, length = answer(PROMPTS[1])
    places = range(length - 1, ids.shape[1] - 1)
    target = [(p, int(ids[0, p + 1])) for p in places]
    own = ConservativeLRP(model)
    together = own.attribute(ids.expand(len(target), -1), target=target)
    assert together.shape == (len(tokens), ids.shape[1])
    for row, (place, token) in zip(together, target, strict=True):
        alone = own.attribute(ids[:, : place + 1], target=(-1, token))[0]
        close(row[: place + 1], alone)
        assert bool((row[place + 1 :] == 0).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_generated_answers(family: str) -> None:
    model = language_model(family)
    explained = LLMGradientAttribution(LayerConservativeLRP(model, embedded(model)), tokenizer())
    inp = TextTokenInput("the old cat", tokenizer())
    result = explained.attribute(inp, gen_args={"max_new_tokens": 3, "do_sample": False})
    ids = inp.inp_tensor
    for word in result.output_tokens:
        ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1)[:, None]], 1)
        assert word == WORDS[int(ids[0, -1])]
    assert result.token_attr.shape == (len(result.output_tokens), 4)


def test_skipped_tokens_and_bfloat16() -> None:
    model = language_model("llama")
    explained = LLMGradientAttribution(LayerConservativeGI(model, embedded(model)), tokenizer())
    whole = explained.attribute(
        TextTokenInput("the old cat", tokenizer()), target=torch.tensor([7])
    )
    skipped = explained.attribute(
        TextTokenInput("the old cat", tokenizer(), skip_tokens=["<s>", "old"]),
        target=torch.tensor([7]),
    )
    close(skipped.token_attr, whole.token_attr[:, [1, 3]])
    half = language_model.__wrapped__("llama").bfloat16()
    explained = LLMGradientAttribution(LayerConservativeGI(half, embedded(half)), tokenizer())
    result = explained.attribute(
        TextTokenInput("the old cat", tokenizer()), target=torch.tensor([7])
    )
    difference = (result.token_attr.double() - whole.token_attr).norm() / whole.token_attr.norm()
    assert float(difference) < 0.1


def test_templates_are_for_perturbation() -> None:
    model = language_model("gpt2")
    inp = TextTemplateInput("the {} {} sat", ["old", "cat"])
    result = LLMAttribution(FeatureAblation(model), tokenizer()).attribute(inp, target="on")
    assert result.seq_attr.shape == (2,)
    explained = LLMGradientAttribution(LayerConservativeGI(model, embedded(model)), tokenizer())
    with pytest.raises(AssertionError, match="TextTemplateInput"):
        explained.attribute(inp, target="on")


def test_a_model_that_ends_in_a_log_softmax_is_told() -> None:
    """The log-softmax is part of the question only where Captum puts it."""
    model = language_model.__wrapped__("llama")  # warned of once per model

    def forward(ids: Tensor) -> Tensor:
        return model(ids).logits[:, -1].log_softmax(-1)

    ids, _, _ = answer("cat")
    with pytest.raises(CaptumLRPWarning, match="LogSoftmax"):
        ConservativeLRP(forward).attribute(ids, target=3)


def test_plot() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    model = language_model("llama")
    explained = LLMGradientAttribution(LayerConservativeLRP(model, embedded(model)), tokenizer())
    result = explained.attribute(
        TextTokenInput("the old cat", tokenizer()), target=torch.tensor([7, 9])
    )
    figure, axes = result.plot_token_attr(show=False)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["<s>", "the", "old", "cat"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["sat", "on"]
    matplotlib.pyplot.close(figure)


# ---- our own classes: contrasts and padded batches -----------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
def test_contrast_of_two_tokens(family: str) -> None:
    model = language_model(family)
    ids, _, length = answer(PROMPTS[2])
    dog, cat = WORDS.index("dog"), WORDS.index("cat")
    contrast = Contrast((length, dog), (length, cat))
    for cls in (ConservativeGI, ConservativeLRP):
        own = cls(model)
        relevance, delta = own.attribute(ids, target=contrast, return_convergence_delta=True)
        a, b = (own.attribute(ids, target=(length, k)) for k in (dog, cat))
        close(relevance, a - b)
        logits = model(ids).logits[0, length].detach()
        close(relevance.sum() + delta[0], logits[dog] - logits[cat])
        layered = LayerConservativeLRP if cls is ConservativeLRP else LayerConservativeGI
        close(layered(model, embedded(model)).attribute(ids, target=contrast).sum(-1), relevance)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_token_of_padded_texts(family: str, implementation: str, side: str) -> None:
    model = language_model(family, implementation)
    if implementation == "eager":  # the masks of eager attention overflow in float64
        model = language_model.__wrapped__(family, implementation).float()
    inputs = tokenizer()(PROMPTS, padding=True, padding_side=side, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    mask = inputs["attention_mask"]
    count = mask.cumsum(1)
    inputs["position_ids"] = (count - 1).clamp(min=0)
    last = count.argmax(1)
    tokens = model(**inputs).logits[range(len(last)), last].argmax(-1)
    target = list(zip(last.tolist(), tokens.tolist(), strict=True))
    contrasts = [Contrast(best, (best[0], 5)) for best in target]
    for cls in (ConservativeGI, ConservativeLRP, GenericAttention):
        own = cls(model)
        relevance = own.attribute(inputs, target=target)
        contrasted = own.attribute(inputs, target=contrasts)
        assert relevance.shape == mask.shape
        assert bool((relevance[mask == 0] == 0).all())
        for i, prompt in enumerate(PROMPTS):
            alone = tokenizer().encode(prompt, return_tensors="pt")
            best = (-1, int(tokens[i]))
            assert int(model(alone).logits[0, -1].argmax()) == best[1]
            close(relevance[i][mask[i] == 1], own.attribute(alone, target=best)[0])
            expected = own.attribute(alone, target=Contrast(best, (-1, 5)))[0]
            close(contrasted[i][mask[i] == 1], expected)
