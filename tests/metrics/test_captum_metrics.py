"""Captum's infidelity and sensitivity with every class, recomputed step by step."""

from __future__ import annotations

import copy
import csv
import functools
import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.metrics import infidelity, infidelity_perturb_func_decorator, sensitivity_max
from torch import Tensor, nn

import closeness
import zoo
from captum_lrp_tx import (
    AttentionFlow,
    AttentionLast,
    AttentionRollout,
    ConservativeGI,
    ConservativeLRP,
    GenericAttention,
    LayerConservativeGI,
    LayerConservativeLRP,
    RandomAttribution,
    TokenGradientShap,
    TokenIntegratedGradients,
    TokenSaliency,
    TransformerAttribution,
)
from captum_lrp_tx.attr.targets import Contrast
from captum_lrp_tx.errors import InputError, NonFiniteError, TargetError
from captum_lrp_tx.metrics.bootstrap import bootstrap_interval
from captum_lrp_tx.metrics.captum_arguments import (
    captum_inputs,
    embedded_inputs,
    explanation,
    spread_over_pixels,
)
from captum_lrp_tx.metrics.captum_perturbations import (
    GaussianNoise,
    NoiseOfEach,
    RandomMasking,
    UniformNoise,
)
from captum_lrp_tx.metrics.captum_scoring import captum_scores
from captum_lrp_tx.metrics.masking import MaskTokens, RemoveTokens
from captum_lrp_tx.metrics.patches import MaskPatches, RemovePatches

#: Scores of Captum may be float64.
close = functools.partial(closeness.close, check_dtype=False)
pytestmark = [
    pytest.mark.captum,
    pytest.mark.filterwarnings("ignore::captum_lrp_tx.errors.CaptumLRPWarning"),
    pytest.mark.filterwarnings("ignore:Setting (forward|backward):UserWarning"),
]

MASK, PAD, CLS, SEP = 40, 0, 1, 2
#: From a model and the module that embeds its inputs.
METHODS: dict[str, Callable[[Any, Any], Any]] = {
    "GI": lambda m, _: ConservativeGI(m, rules="gi"),
    "LRP(LN)": lambda m, _: ConservativeGI(m, rules="ln"),
    "LRP": lambda m, _: ConservativeLRP(m),
    "layer GI": lambda m, layer: LayerConservativeGI(m, layer),
    "layer LRP": lambda m, layer: LayerConservativeLRP(m, layer),
    "Random": lambda m, _: RandomAttribution(m),
    "A-Last": lambda m, _: AttentionLast(m),
    "Rollout": lambda m, _: AttentionRollout(m),
    "A-Flow": lambda m, _: AttentionFlow(m),
    "GAE": lambda m, _: GenericAttention(m),
    "Chefer": lambda m, _: TransformerAttribution(m),
    "IG": lambda m, _: TokenIntegratedGradients(m, baseline=0, n_steps=4),
    "GradientShap": lambda m, _: TokenGradientShap(m, baseline=0, n_samples=2),
    "Saliency": lambda m, _: TokenSaliency(m),
}


def made(name: str, model: Any, layer: Any) -> Any:
    if name == "A-Flow":
        pytest.importorskip("scipy")
    return METHODS[name](model, layer)


@functools.lru_cache
def bert() -> Any:
    return zoo.case("hf-BertForSequenceClassification-sdpa").model


@functools.lru_cache
def vit() -> Any:
    return zoo.case("hf-ViTForImageClassification-sdpa").model


def text() -> dict[str, Tensor]:
    """Two texts with special tokens and padding; no token occurs twice."""
    ids = torch.tensor([[CLS, 9, 17, 4, 30, 11, SEP], [CLS, 8, 5, 22, SEP, PAD, PAD]])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def images() -> Tensor:
    return zoo.floats(2, 3, 16, 16, seed=7)


def masker() -> MaskTokens:
    return MaskTokens(MASK, keep=(CLS, SEP))


# ---- forward functions --------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["Bert", "GPT2", "Llama"])
def test_forward_functions_return_the_models_logits(family: str) -> None:
    case = zoo.case(f"hf-{family}ForSequenceClassification-sdpa-padded")
    given = {"input_ids": case.inputs[0], **case.kwargs}
    expected = case.model(**given).logits
    for make in (captum_inputs, embedded_inputs):
        forward, inputs, more = make(case.model, given)
        assert torch.equal(forward(inputs, *more), expected)
    assert inputs.shape == (*case.inputs[0].shape, zoo.WIDTH)
    assert torch.equal(inputs, case.model.get_input_embeddings()(case.inputs[0]))


def test_embedded_forward_equals_inputs_embeds() -> None:
    given = text()
    forward, embedded, more = embedded_inputs(bert(), given)
    other = embedded + torch.randn_like(embedded)
    expected = bert()(inputs_embeds=other, attention_mask=given["attention_mask"]).logits
    close(forward(other, *more), expected)
    assert not torch.allclose(forward(embedded, *more), expected)
    ours = ConservativeLRP(forward).attribute(other, 1, more)
    theirs = ConservativeLRP(
        lambda x: bert()(inputs_embeds=x, attention_mask=given["attention_mask"]).logits
    ).attribute(other, 1)
    close(ours, theirs)


class Lookups(nn.Module):
    """Words looked up as ``how`` says, with a second argument and positional ids only."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.words, self.head = how, nn.Embedding(20, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor, factor: float = 1.0) -> Tensor:
        weight = self.words.weight
        if self.how == "module":
            rows = self.words(ids)
        elif self.how == "indexing":
            rows = weight[ids]
        elif self.how == "keyword":
            rows = torch.nn.functional.embedding(input=ids, weight=weight)
        elif self.how == "index_select":
            rows = weight.index_select(0, ids.flatten()).reshape(*ids.shape, -1)
        else:
            rows = torch.nn.functional.one_hot(ids, 20).to(weight.dtype) @ weight
        return self.head(rows.tanh().sum(1)) * factor


@pytest.mark.parametrize("how", ["module", "indexing", "keyword", "index_select"])
def test_lookups_of_all_kinds_are_replaced(how: str) -> None:
    model, ids = Lookups(how), torch.tensor([[3, 4, 5], [6, 7, 8]])
    forward, embedded, more = embedded_inputs(model, ids, 2.0)
    assert more[1:] == (2.0,)
    other = torch.randn_like(embedded)
    close(forward(other, *more), model.head(other.tanh().sum(1)) * 2.0)
    close(forward(embedded, *more), model(ids, 2.0))


def test_words_that_a_decoder_looks_up_again_are_no_constants() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0, num_labels=3,
    )  # fmt: skip
    model = zoo.randomise(transformers.T5ForSequenceClassification(config).eval())
    ids, other = torch.tensor([[5, 6, 7, 1]]), torch.tensor([[5, 6, 8, 1]])
    with pytest.raises(InputError, match=r"a second time, shifted.*'shifted' in the mapping"):
        embedded_inputs(model, ids)

    def given(input_ids: Tensor, shifted: Tensor) -> Any:  # as the message says
        return model(input_ids, decoder_input_ids=shifted)

    shifted = torch.tensor([[0, 5, 6, 7]])
    forward, _, more = embedded_inputs(given, {"input_ids": ids, "shifted": shifted})
    moved = embedded_inputs(given, {"input_ids": other, "shifted": shifted}).inputs
    close(forward(moved, *more), given(other, shifted).logits)


def test_mistakes_with_forward_functions_say_what_to_do() -> None:
    with pytest.raises(InputError, match="did not look up"):
        embedded_inputs(Lookups("one hot"), torch.tensor([[3, 4, 5]]))
    with pytest.raises(InputError, match="needs token ids"):
        embedded_inputs(vit(), images())
    forward, embedded, more = embedded_inputs(bert(), text())
    with pytest.raises(InputError, match="token ids must be the first"):
        forward(embedded)
    with pytest.raises(InputError, match="attention_mask"):
        forward(embedded, more[0])
    with pytest.raises(InputError, match="did not look up"):
        type(forward)(Lookups("one hot"))(torch.randn(1, 2, 4), torch.tensor([[3, 4]]))


# ---- explanations under noise -------------------------------------------------------------------
@pytest.mark.parametrize("name", METHODS)
def test_relevance_at_changed_embeddings_is_that_of_a_model_with_these_embeddings(
    name: str,
) -> None:
    given = text()
    forward, embedded, more = embedded_inputs(bert(), given)
    other = embedded + 0.3 * torch.randn_like(embedded)
    changed = copy.deepcopy(bert())
    with torch.no_grad():  # each id occurs once, but for [CLS], [SEP] and padding
        other[1, 0], other[1, 4:] = other[0, 0], embedded[1, 4:]
        other[0, 6] = other[1, 4]
        table = changed.get_input_embeddings().weight
        table[given["input_ids"]] = other
    found = forward.explanation(made(name, bert(), bert().bert.embeddings))(
        other, additional_forward_args=more, target=1
    )
    expected = made(name, changed, changed.bert.embeddings).attribute(given, target=1)
    assert len(found) == 1
    close(found[0], expected, atol=1e-4 * float(expected.abs().max()) + 1e-6)


@pytest.mark.parametrize("kind", ["pixels", "text"])
@pytest.mark.parametrize("name", METHODS)
def test_sensitivity_of_every_class(name: str, kind: str) -> None:
    if kind == "text":
        forward, start, more = embedded_inputs(bert(), text())
        method = made(name, bert(), bert().bert.embeddings)
        explain = forward.explanation(method)
        options: dict[str, Any] = {"additional_forward_args": more}
    else:
        start, method = images(), made(name, vit(), vit().vit.embeddings)
        explain, options = explanation(method), {}
    targets = [2, 0]
    found = sensitivity_max(
        explain, start, UniformNoise(3), perturb_radius=0.1, n_perturb_samples=3,
        max_examples_per_batch=4, target=targets, **options,
    )  # fmt: skip
    assert found.shape == (2,)
    # by hand: one noisy example at a time
    noise = UniformNoise(3)
    copies = torch.cat([noise(start.repeat_interleave(n, 0), 0.1).unflatten(0, (2, n))
                        for n in (2, 1)], 1)  # fmt: skip
    assert float((copies - start[:, None]).abs().max()) <= 0.1
    for i in range(2):
        one = {k: tuple(m[i : i + 1] for m in v) for k, v in options.items()}
        original = explain(start[i : i + 1], target=targets[i], **one)[0]
        changes = [
            float((explain(copy_[None], target=targets[i], **one)[0] - original).norm())
            for copy_ in copies[i]
        ]
        length = float(original.norm())
        if length < 1e-5:  # gradient x input behind a norm: rounding errors
            continue
        assert math.isclose(max(changes) / length, float(found[i]), rel_tol=2e-2, abs_tol=1e-5)


def test_explanations_are_tuples_whatever_a_method_returns() -> None:
    x = images()
    layers = [vit().vit.embeddings, vit().vit.layernorm]
    several = explanation(LayerConservativeLRP(vit(), layers))((x,), target=1)
    assert [tuple(t.shape) for t in several] == [(2, 17, 16), (2, 17, 16)]
    score = sensitivity_max(explanation(LayerConservativeLRP(vit(), layers)), x, target=1)
    assert score.shape == (2,) and bool((score > 0).all())
    bare = explanation(lambda inputs, target: inputs[..., target].mT)
    assert bare(x, target=1)[0].is_contiguous()


# ---- infidelity ---------------------------------------------------------------------------------
def squared_errors(
    hidden: Tensor, relevance: Tensor, whole: Tensor, perturbed: Tensor
) -> list[list[float]]:
    """(relevance of what is hidden - what the output loses)^2 of each sample of each example."""
    examples, samples = len(relevance), len(hidden) // len(relevance)
    found: list[list[float]] = []
    for i in range(examples):
        rows = range(i * samples, (i + 1) * samples)
        said = [float((hidden[r] * relevance[i]).double().sum()) for r in rows]
        lost = [float(whole[i] - perturbed[r]) for r in rows]
        found.append([(a - b) ** 2 for a, b in zip(said, lost, strict=True)])
    return found


@pytest.mark.parametrize("name", METHODS)
def test_infidelity_of_every_class_on_token_ids(name: str) -> None:
    given, targets = text(), [2, 0]
    relevance = made(name, bert(), bert().bert.embeddings).attribute(given, target=targets)
    relevance = relevance.sum(-1) if relevance.dim() == 3 else relevance
    forward, ids, more = captum_inputs(bert(), given)
    found = infidelity(
        forward, RandomMasking(masker(), given, seed=4), ids, relevance,
        additional_forward_args=more, target=targets, n_perturb_samples=6,
    )  # fmt: skip
    hidden, masked = RandomMasking(masker(), given, seed=4)(ids.repeat_interleave(6, 0))
    with torch.no_grad():
        whole = bert()(**given).logits[[0, 1], targets]
        lost = torch.stack([
            bert()(
                input_ids=row[None], attention_mask=given["attention_mask"][i // 6][None]
            ).logits[0, targets[i // 6]]
            for i, row in enumerate(masked)
        ])  # fmt: skip
    for i, errors in enumerate(squared_errors(hidden, relevance, whole, lost)):
        assert math.isclose(sum(errors) / 6, float(found[i]), rel_tol=1e-3, abs_tol=1e-7)


@pytest.mark.parametrize("name", METHODS)
def test_infidelity_of_every_class_on_pixels(name: str) -> None:
    x, targets = images(), [2, 0]
    relevance = made(name, vit(), vit().vit.embeddings).attribute(x, target=targets)
    relevance = relevance.sum(-1) if relevance.dim() == 3 else relevance
    spread = spread_over_pixels(relevance, x)
    forward, _, _ = captum_inputs(vit(), x)
    found = infidelity(
        forward, RandomMasking(MaskPatches(4, value=0.5), x, seed=4), x, spread, target=targets,
        n_perturb_samples=5,
    )  # fmt: skip
    hidden, masked = RandomMasking(MaskPatches(4, value=0.5), x, seed=4)(x.repeat_interleave(5, 0))
    # patches by hand: relevance of the hidden ones, counted once each
    patches = hidden[:, 0, ::4, ::4].flatten(1)
    if relevance.dim() == 2:
        per_patch = relevance[:, -16:]
    else:
        blocks = relevance.sum(1).reshape(2, 4, 4, 4, 4)
        per_patch = blocks.sum((2, 4)).flatten(1)
    with torch.no_grad():
        whole = vit()(x).logits[[0, 1], targets]
        lost = torch.stack([
            vit()(row[None]).logits[0, targets[i // 5]] for i, row in enumerate(masked)
        ])  # fmt: skip
    for i, errors in enumerate(squared_errors(patches, per_patch, whole, lost)):
        assert math.isclose(sum(errors) / 5, float(found[i]), rel_tol=2e-3, abs_tol=1e-6)


def test_gradient_x_input_of_a_linear_model_is_perfect() -> None:
    model, x = nn.Linear(6, 3), torch.randn(4, 6)
    relevance = ConservativeGI(model).attribute(x, target=1)
    for perturb in (GaussianNoise(0.3, seed=1), GaussianNoise(2.0, seed=2)):
        score = infidelity(model, perturb, x, relevance, target=1, n_perturb_samples=7)
        assert float(score.max()) < 1e-8
    gradient = model.weight[1].expand_as(x)
    raw = GaussianNoise(0.3, multiply_by_inputs=False)
    assert float(infidelity(model, raw, x, gradient, target=1).max()) < 1e-8
    assert float(infidelity(model, GaussianNoise(0.3), x, gradient, target=1).min()) > 1e-4


def test_noise_on_embeddings_with_entry_wise_relevance() -> None:
    forward, embedded, more = embedded_inputs(bert(), text())
    relevance = ConservativeGI(forward, rules="gi").attribute(embedded, 1, more)
    found = {
        stdev: infidelity(
            forward, GaussianNoise(stdev), embedded, relevance, additional_forward_args=more,
            target=1, n_perturb_samples=20,
        )
        for stdev in (1e-3, 1e-1)
    }  # fmt: skip
    nothing = infidelity(
        forward, GaussianNoise(1e-3), embedded, torch.zeros_like(relevance),
        additional_forward_args=more, target=1, n_perturb_samples=20,
    )  # fmt: skip
    # the gradient is right to first order: the error falls with the fourth power of the noise
    assert bool((found[1e-3] < 1e-2 * nothing).all())
    assert bool((found[1e-3] < 1e-5 * found[1e-1]).all())


# ---- perturbations ------------------------------------------------------------------------------
def test_special_tokens_and_padding_are_never_hidden() -> None:
    given = text()
    ids = given["input_ids"].repeat_interleave(200, 0)
    hidden, masked = RandomMasking(masker(), given)(ids)
    assert hidden.dtype == torch.float32 and masked.dtype == ids.dtype
    free = (ids != CLS) & (ids != SEP) & (ids != PAD)
    assert not bool(hidden[~free].any())
    assert torch.equal(masked, ids.masked_fill(hidden > 0, MASK))
    counts = hidden.sum(1)
    assert sorted(set(counts[:200].tolist())) == [1, 2, 3, 4, 5]  # every number of tokens
    assert sorted(set(counts[200:].tolist())) == [1, 2, 3]
    assert bool((hidden[:200].mean(0)[1:6] > 0.45).all())  # 3 of 5 on average


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_share_of_hidden_tokens(share: float) -> None:
    given = text()
    hidden, _ = RandomMasking(masker(), given, share=share)(
        given["input_ids"].repeat_interleave(4, 0)
    )
    for rows, count in ((hidden[:4], 5), (hidden[4:], 3)):
        assert set(rows.sum(1).tolist()) == {max(math.floor(share * count + 0.5), 1)}


def test_samples_do_not_depend_on_batches_and_come_again() -> None:
    given = text()
    forward, ids, more = captum_inputs(bert(), given)
    relevance = ConservativeLRP(bert()).attribute(given, target=1)
    perturb = RandomMasking(masker(), given, seed=9)
    scores = []
    for at_once in (2, 6, 14):
        perturb.restart()
        scores.append(
            infidelity(
                forward, perturb, ids, relevance, additional_forward_args=more, target=1,
                n_perturb_samples=7, max_examples_per_batch=at_once,
            )
        )  # fmt: skip
    close(scores[1], scores[0])
    close(scores[2], scores[0])
    other = RandomMasking(masker(), given, seed=10)(ids)[0]
    perturb.restart()
    assert not torch.equal(perturb(ids)[0], other)
    for noise in (GaussianNoise(seed=2), UniformNoise(2)):
        x = images()
        first, second = noise(x), noise(x)
        noise.restart()
        assert torch.equal(noise(x)[1], first[1]) and not torch.equal(second[1], first[1])


def test_perturbations_are_those_of_captums_decorator() -> None:
    x, given = images() + 5.0, text()  # nothing looks like what it is replaced by
    patches = RandomMasking(MaskPatches(4, value=0.5), x, seed=1)
    ours, perturbed = patches(x)
    decorated = infidelity_perturb_func_decorator(True)(lambda inputs, baselines: perturbed)
    close(ours, decorated(x, torch.full_like(x, 0.5))[0][0])
    assert set(ours.unique().tolist()) == {0.0, 1.0}
    tokens = RandomMasking(masker(), given, seed=1)
    ours, perturbed = tokens(given["input_ids"])
    decorated = infidelity_perturb_func_decorator(True)(lambda inputs, baselines: perturbed)
    close(ours, decorated(given["input_ids"], torch.full_like(perturbed, MASK))[0][0])
    noise = GaussianNoise(0.1, seed=3)
    for baselines in (None, torch.ones_like(x)):
        noise.restart()
        ours, perturbed = noise(x, baselines)
        plain = infidelity_perturb_func_decorator(True)(lambda *_, p=perturbed: p)
        close(ours, plain(x, baselines)[0][0], rtol=1e-3, atol=1e-5)


def test_noise_of_several_inputs() -> None:
    xs = (torch.randn(3, 4), torch.randn(3, 2, 2))
    noise, perturbed = GaussianNoise(0.5, multiply_by_inputs=False)(xs)
    for x, n, p in zip(xs, noise, perturbed, strict=True):
        close(x - n, p)
    assert [t.shape for t in UniformNoise()(xs, 0.1)] == [x.shape for x in xs]


def test_patches_at_the_border_and_embedded_tokens() -> None:
    x = torch.randn(1, 2, 10, 7)
    perturb = RandomMasking(MaskPatches(4), x, share=0.5)  # 3 x 2 patches, some smaller
    hidden, perturbed = perturb(x)
    assert torch.equal(perturbed, x.masked_fill(hidden > 0, 0.0))
    blocks = torch.nn.functional.pad(hidden[0, 0], (0, 1, 0, 2), value=-1.0)
    blocks = blocks.reshape(3, 4, 2, 4).transpose(1, 2).flatten(2).flatten(0, 1)
    assert sum(float(b[b >= 0].mean()) for b in blocks) == 3.0
    assert all(len(b[b >= 0].unique()) == 1 for b in blocks)


def test_mistakes_with_perturbations_say_what_to_do() -> None:
    given = text()
    perturb = RandomMasking(masker(), given)
    with pytest.raises(InputError, match="make a new one"):
        perturb(given["input_ids"][:, :5])
    with pytest.raises(InputError, match="make a new one"):
        perturb(given["input_ids"][:1])
    with pytest.raises(InputError, match="one input"):
        perturb((given["input_ids"], given["input_ids"]))
    with pytest.raises(InputError, match="use MaskTokens"):
        RandomMasking(RemoveTokens((CLS, SEP)), given)(given["input_ids"])
    with pytest.raises(InputError, match="use MaskTokens"):
        RandomMasking(RemovePatches(4), images())
    with pytest.raises(InputError, match="finds nothing to hide"):
        RandomMasking(masker(), torch.tensor([[CLS, SEP]]))
    with pytest.raises(InputError, match="share"):
        RandomMasking(masker(), given, share=0.0)
    with pytest.raises(InputError, match="embedded_inputs"):
        GaussianNoise()(given["input_ids"])
    with pytest.raises(InputError, match="embedded_inputs"):
        UniformNoise()(given["input_ids"])
    with pytest.raises(InputError, match="stdev"):
        GaussianNoise(0.0)


def test_relevance_of_patches_is_spread_in_equal_shares() -> None:
    x = images()
    relevance = torch.randn(2, 17)
    spread = spread_over_pixels(relevance, x)
    assert spread.shape == x.shape
    for patch in range(16):
        row, column = 4 * (patch // 4), 4 * (patch % 4)
        block = spread[:, :, row : row + 4, column : column + 4].flatten(1)
        close(block, (relevance[:, 1 + patch] / 48)[:, None].expand_as(block))
    assert spread_over_pixels(spread, x) is spread
    with pytest.raises(InputError, match="fit no grid"):
        spread_over_pixels(torch.randn(2, 60), torch.randn(2, 3, 16, 17))
    with pytest.raises(InputError, match="4 dimensions"):
        spread_over_pixels(relevance, torch.randn(2, 16))


def test_patches_that_do_not_fill_an_image_keep_to_their_own_pixels() -> None:
    x = torch.zeros(1, 3, 10, 11)
    spread = spread_over_pixels(torch.tensor([[9.0, 1.0, 2.0, 3.0, 4.0]]), x, patch_size=4)
    expected = torch.zeros_like(x)
    for value, row, column in ((1.0, 0, 0), (2.0, 0, 4), (3.0, 4, 0), (4.0, 4, 4)):
        expected[:, :, row : row + 4, column : column + 4] = value / 48
    close(spread, expected)


# ---- the table ----------------------------------------------------------------------------------
def test_scores_of_text_are_captums(untouched: Any) -> None:
    given = text()
    with untouched(bert()):
        scores = captum_scores(
            bert(), given, ["LRP(LN)", "LRP"], masker=masker(), target=[2, 0],
            n_perturb_samples=5, n_noise_samples=3, seed=6,
        )  # fmt: skip
    assert [row.method for row in scores] == ["LRP(LN)", "LRP"] and len(scores) == 2
    forward, ids, more = captum_inputs(bert(), given)
    embedded = embedded_inputs(bert(), given)
    rows = embedded.inputs[given["attention_mask"] > 0]
    radius = 0.1 * float(rows.double().std(correction=0))
    lengths = given["attention_mask"].sum(1).tolist()
    contents = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    for name in ("LRP(LN)", "LRP"):
        method = METHODS[name](bert(), None)
        relevance = method.attribute(given, target=[2, 0])
        for normalize, key in ((False, "infidelity"), (True, "scaled_infidelity")):
            expected = infidelity(
                forward, RandomMasking(masker(), given, seed=6), ids, relevance,
                additional_forward_args=more, target=[2, 0], n_perturb_samples=5,
                normalize=normalize,
            )  # fmt: skip
            close(scores[name].values[key], expected, rtol=1e-3, atol=1e-6)
        expected = sensitivity_max(
            embedded.forward.explanation(method), embedded.inputs,
            NoiseOfEach(contents, 6, lengths), perturb_radius=radius, n_perturb_samples=3,
            target=[2, 0],
            additional_forward_args=embedded.additional_forward_args,
        )  # fmt: skip
        close(scores[name].values["sensitivity"], expected, rtol=1e-3, atol=1e-5)
        interval = bootstrap_interval(scores[name].values["infidelity"], seed=6)
        assert scores[name].infidelity == interval
        assert scores[name].n == 2
    nothing = infidelity(
        forward, RandomMasking(masker(), given, seed=6), ids, torch.zeros(2, 7),
        additional_forward_args=more, target=[2, 0], n_perturb_samples=5,
    )  # fmt: skip
    assert math.isclose(scores.reference.estimate, float(nothing.mean()), rel_tol=1e-4)


def test_scores_of_a_linear_model_are_known() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    x = torch.randn(3, 2, 4, 4)
    scores = captum_scores(
        model, x, ["GI", "IG", ("wrong", lambda m: Constant(m)), ("twice", lambda m: Twice(m))],
        masker=MaskPatches(2), target=torch.tensor([0, 1, 2]), n_perturb_samples=30,
    )  # fmt: skip
    for name in ("GI", "IG"):
        assert scores[name].infidelity.estimate < 1e-8
        assert scores[name].scaled_infidelity.low >= 0
        assert scores[name].scaled_infidelity.high < 1e-8
        # relevance of noise: w * noise; relative to w * x, at most the largest of the samples
        assert 0 < scores[name].sensitivity.estimate < 0.3
    assert math.isclose(
        scores["twice"].infidelity.estimate, scores.reference.estimate, rel_tol=1e-3
    )
    assert scores["twice"].scaled_infidelity.estimate < 1e-6
    assert scores["wrong"].sensitivity.estimate == 0.0
    assert scores["wrong"].infidelity.estimate > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_factor_that_fits_best_fits_no_worse_than_none(dtype: torch.dtype) -> None:
    """What is left by it is the small difference of large sums, of outputs of hundreds."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).to(dtype)
    with torch.no_grad():
        model[1].weight *= 500
    x = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    scores = captum_scores(
        model, x, ["GI", "Random"], masker=MaskPatches(2, value=0.0), target=1,
        n_perturb_samples=50, n_noise_samples=1,
    )  # fmt: skip
    assert 1e4 < scores.reference.estimate < 1e6
    for row in scores:
        plain, scaled = row.values["infidelity"], row.values["scaled_infidelity"]
        assert bool((scaled >= 0).all() and (scaled <= plain * (1 + 1e-9)).all())


class Constant:
    def __init__(self, model: Any) -> None:
        self.model = model

    def attribute(self, inputs: Tensor, target: Any, additional_forward_args: Any) -> Tensor:
        return torch.ones_like(inputs)


class Twice(Constant):
    def attribute(self, inputs: Tensor, target: Any, additional_forward_args: Any) -> Tensor:
        return 2 * ConservativeGI(self.model).attribute(inputs, target)


def test_scores_do_not_depend_on_batches_padding_or_company() -> None:
    ids = torch.cat([text()["input_ids"], torch.tensor([[CLS, 12, 33, SEP, PAD, PAD, PAD]])])
    given = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    options: dict[str, Any] = {"masker": masker(), "n_perturb_samples": 4, "n_noise_samples": 2}
    together = captum_scores(bert(), given, ["LRP", "GAE"], target=1, **options)
    alone = captum_scores(bert(), given, ["LRP"], target=1, **options)
    close(alone["LRP"].values["infidelity"], together["LRP"].values["infidelity"])
    wider = {k: torch.nn.functional.pad(v, (0, 3)) for k, v in given.items()}
    padded = captum_scores(bert(), wider, ["LRP"], target=1, **options)
    close(
        padded["LRP"].values["infidelity"],
        alone["LRP"].values["infidelity"],
        rtol=1e-3,
        atol=1e-5,
    )
    # with batch_size=1 each example is a batch of its own, with the same random numbers
    single = captum_scores(bert(), given, ["LRP"], target=1, batch_size=1, **options)
    turned = {key: value.flip(0) for key, value in given.items()}
    other = captum_scores(bert(), turned, ["LRP"], target=1, batch_size=2, **options)
    for name, expected in alone["LRP"].values.items():
        close(single["LRP"].values[name], expected, rtol=1e-3, atol=1e-5)
        close(other["LRP"].values[name].flip(0), expected, rtol=1e-3, atol=1e-5)


def test_targets_of_all_kinds() -> None:
    given, options = text(), {"masker": masker(), "n_perturb_samples": 3, "n_noise_samples": 1}
    predicted = bert()(**given).logits.argmax(1)
    by_default = captum_scores(bert(), given, ["LRP"], **options)["LRP"].values["infidelity"]
    for target in (predicted, predicted.tolist()):
        found = captum_scores(bert(), given, ["LRP"], target=target, **options)
        close(found["LRP"].values["infidelity"], by_default)
    contrast = captum_scores(bert(), given, ["LRP"], target=Contrast(1, 0), **options)
    forward = lambda **kw: (lambda z: z[:, 1:2] - z[:, 0:1])(bert()(**kw).logits)  # noqa: E731
    spelled = captum_scores(forward, given, ["LRP"], target=0, **options)
    close(
        contrast["LRP"].values["infidelity"],
        spelled["LRP"].values["infidelity"],
        rtol=1e-3,
        atol=1e-5,
    )
    with pytest.raises(TargetError):
        captum_scores(bert(), given, ["LRP"], target=[0, 1, 2], **options)
    with pytest.raises(TargetError):
        captum_scores(bert(), given, ["LRP"], target=77, **options)


def test_rows_without_numbers_say_why() -> None:
    class Broken:
        def __init__(self, _: Any) -> None: ...

        def attribute(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("no luck")

    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    x = torch.randn(2, 2, 4, 4)
    scores = captum_scores(
        model, x, ["Rollout", "GI", ("broken", Broken)], masker=MaskPatches(2), target=1,
        n_perturb_samples=2, n_noise_samples=1,
    )  # fmt: skip
    assert "attention" in scores["Rollout"].error
    assert scores["broken"].error == "RuntimeError: no luck"
    assert scores["Rollout"].infidelity is None and scores["GI"].error == ""
    assert scores["rollout"] is scores["Rollout"]
    with pytest.raises(KeyError, match="Rollout, GI, broken"):
        scores["LRP"]
    # gradient x input of tokens behind a norm is a rounding error: no scale, no sensitivity
    zero = captum_scores(
        bert(), text(), ["GI", "LRP"], masker=masker(), n_perturb_samples=2, n_noise_samples=1
    )
    assert zero["GI"].sensitivity is None and zero["GI"].scaled_infidelity is None
    assert "zero up to rounding" in zero["GI"].note and "GI: the relevance is zero" in str(zero)
    assert zero["LRP"].sensitivity is not None and zero["LRP"].note == ""
    assert math.isclose(zero["GI"].infidelity.estimate, zero.reference.estimate, rel_tol=1e-3)


def test_formats_of_the_table() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    x = torch.randn(3, 2, 4, 4)
    scores = captum_scores(
        model, x, ["LRP", "Rollout", "Saliency"], masker=MaskPatches(2, value=1.0), target=1,
        n_perturb_samples=4, n_noise_samples=2,
    )  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(scores.csv())))
    assert [row["method"] for row in rows] == ["LRP", "Rollout", "Saliency"]
    for row, score in zip(rows, scores, strict=True):
        if score.error:
            assert row["infidelity"] == "" and row["note"] == score.error
        else:
            assert float(row["infidelity"]) == score.infidelity.estimate
            assert float(row["sensitivity_high"]) == score.sensitivity.high
            assert int(row["n"]) == 3
    lines = scores.markdown().splitlines()
    assert lines[0].count("|") == lines[2].count("|") == 6
    assert lines[4].startswith("| Saliency | ")
    shown = f"{scores['LRP'].infidelity.estimate:.3g} ["
    assert shown in lines[2] and shown in str(scores)
    assert "3 examples" in str(scores) and "MaskPatches(2, value=1)" in str(scores)


def test_mistakes_with_scores_say_what_to_do() -> None:
    x = torch.randn(2, 2, 4, 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    patches = MaskPatches(2)
    with pytest.raises(InputError, match="unknown method"):
        captum_scores(model, x, ["LIME"], masker=patches)
    with pytest.raises(InputError, match="is no method"):
        captum_scores(model, x, [ConservativeLRP], masker=patches)  # type: ignore[list-item]
    with pytest.raises(InputError, match="no method"):
        captum_scores(model, x, [], masker=patches)
    for name in ("n_perturb_samples", "n_noise_samples", "batch_size", "perturb_radius"):
        with pytest.raises(InputError, match=name):
            captum_scores(model, x, ["GI"], masker=patches, **{name: 0})
    with pytest.raises(InputError, match="MaskPatches"):
        captum_scores(model, x, ["GI"], masker=masker())
    with pytest.raises(NonFiniteError):
        captum_scores(lambda v: model(v) / 0, x, ["GI"], masker=patches, target=0)
    with pytest.raises(TargetError, match="tuple"):
        captum_scores(lambda v: model(v)[:, None].repeat(1, 2, 1), x, ["GI"], masker=patches)


def test_no_warnings_of_captum_about_batches() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        captum_scores(
            nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), torch.randn(3, 2, 4, 4), ["GI"],
            masker=MaskPatches(2), target=1, n_perturb_samples=5, n_noise_samples=1, batch_size=4,
        )  # fmt: skip
