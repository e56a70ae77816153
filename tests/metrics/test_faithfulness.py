"""Faithfulness metrics against straightforward loops and closed forms."""

from __future__ import annotations

import math
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from transformers import T5Config, T5ForSequenceClassification

from captum_lrp_tx import ConservativeGI, LayerConservativeGI, LayerConservativeLRP
from captum_lrp_tx.errors import (
    InputError,
    NonFiniteError,
    OutputError,
    TargetError,
    TrainingModeWarning,
    UnsupportedModelError,
)
from captum_lrp_tx.metrics.batches import Batch
from captum_lrp_tx.metrics.blocks import transformer_blocks
from captum_lrp_tx.metrics.bootstrap import bootstrap_interval, paired_bootstrap
from captum_lrp_tx.metrics.curves import (
    FRACTIONS,
    Curve,
    activation_curve,
    deletion_curve,
    insertion_curve,
    perturbation_curve,
    pruning_curve,
)
from captum_lrp_tx.metrics.eraser import BINS, comprehensiveness, log_odds, sufficiency
from captum_lrp_tx.metrics.masking import Masker, MaskTokens, RemoveTokens
from captum_lrp_tx.metrics.patches import MaskPatches, RemovePatches
from captum_lrp_tx.metrics.perturbation import Perturbation
from captum_lrp_tx.metrics.sums import RULES, conservation
from captum_lrp_tx.models import digit_samples, digits, sentiment

TEXTS = [
    "a charming and funny film", "a dull mess", "not bad at all", "it drags", "a waste of time",
    "warm , clever and alive", "the jokes fall flat", "a joy from beginning to end", "lifeless",
    "one of the best films of the year", "i was bored", "beautifully shot but empty",
    "never less than gripping", "too long by half", "the cast is wonderful", "a thin plot",
    "funny , sad and true", "an ugly little film", "it works", "forgettable in every way",
]  # fmt: skip


@pytest.fixture(scope="module")
def text():
    """Model, tokenizer, padded encoding, targets."""
    model, tokenizer = sentiment()
    inputs = dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))
    with torch.no_grad():
        targets = model(**inputs).logits.argmax(1)
    return model, tokenizer, inputs, targets


@pytest.fixture(scope="module")
def relevances(text):
    """GI and LRP(AH+LN) of the padded batch, at the output of the embedding block."""
    model, _, inputs, targets = text
    return {
        rules: LayerConservativeGI(model, model.bert.embeddings, rules)
        .attribute(inputs, target=targets)
        .sum(-1)
        for rules in ("gi", "ah+ln")
    }


class BagOfWords(nn.Module):
    """Two logits, s and -s, where s is the sum of the weights of the tokens."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.calls: list[int] = []

    def forward(self, ids: Tensor) -> Tensor:
        self.calls.append(len(ids))
        total = self.weights[ids].sum(1)
        return torch.stack([total, -total], 1)


def bag(weights):
    """A model, ids of tokens with these weights, and a masker whose token weighs nothing."""
    table = torch.tensor([0.0, *weights], dtype=torch.float64)
    return BagOfWords(table), torch.arange(1, len(weights) + 1)[None], MaskTokens(0)


def loop(model, ids, relevance, target, unknown, task):
    """One sentence and one step at a time, as in the published code of Ali et al."""
    with torch.no_grad():
        whole = model(ids).logits[0].numpy()
    activation = task == "activation"
    order = np.argsort(relevance)[::-1] if activation else np.argsort(np.abs(relevance))
    values = []
    for fraction in np.linspace(0, 1, 11):
        flipped = order[: int(np.ceil(fraction * len(relevance)))].tolist()
        given = ids.clone() if task == "pruning" else torch.full_like(ids, unknown)
        for i in flipped:
            given[0, i] = unknown if task == "pruning" else ids[0, i]
        with torch.no_grad():
            logits = model(given).logits[0].numpy()
        if task == "activation":
            exponentials = np.exp(logits - logits.max())
            values.append(exponentials[target] / exponentials.sum())
        else:
            values.append(np.sum((whole - logits) ** 2))
    return values


def trapezoid(values, fractions=FRACTIONS):
    return sum(
        (b - a) * (x + y) / 2
        for a, b, x, y in zip(fractions, fractions[1:], values, values[1:], strict=False)
    )


# ---- against loops ----------------------------------------------------------------------------
@pytest.mark.parametrize("rules", ["gi", "ah+ln"])
@pytest.mark.parametrize(
    ("task", "curve"), [("activation", activation_curve), ("pruning", pruning_curve)]
)
def test_curves_are_those_of_a_loop_over_sentences(text, relevances, rules, task, curve):
    model, tokenizer, inputs, targets = text
    masker = MaskTokens.from_tokenizer(tokenizer)
    found = curve(model, inputs, relevances[rules], targets, masker=masker)
    areas = []
    for i in range(len(TEXTS)):
        ids = tokenizer(TEXTS[i], return_tensors="pt")["input_ids"]
        alone = LayerConservativeGI(model, model.bert.embeddings, rules)
        relevance = alone.attribute(ids, target=int(targets[i])).sum(-1)[0].detach().numpy()
        values = loop(model, ids, relevance, int(targets[i]), tokenizer.unk_token_id, task)
        np.testing.assert_allclose(found.values[i], values, rtol=1e-4, atol=2e-5)
        areas.append(trapezoid(values))
    np.testing.assert_allclose(found.area, areas, rtol=1e-4, atol=2e-5)
    assert found.mean == pytest.approx(np.mean(areas), rel=1e-4)


def test_eraser_and_log_odds_are_those_of_a_loop(text, relevances):
    model, tokenizer, inputs, targets = text
    masker = MaskTokens.from_tokenizer(tokenizer, "mask", keep_special=True)
    used = Perturbation(model, inputs, targets, masker=masker)
    relevance = relevances["ah+ln"]
    found = [f(used, attributions=relevance) for f in (comprehensiveness, sufficiency, log_odds)]
    for i in range(len(TEXTS)):
        ids = tokenizer(TEXTS[i], return_tensors="pt")["input_ids"]
        words = range(1, ids.shape[1] - 1)
        order = sorted(words, key=lambda j: -float(relevance[i, j]))

        def p(hidden, ids=ids, target=int(targets[i])):
            given = ids.clone()
            given[0, hidden] = tokenizer.mask_token_id
            with torch.no_grad():
                return float(model(given).logits.softmax(1)[0, target])

        counts = [math.ceil(share * len(order)) for share in BINS]
        whole = p([])
        expected = [
            np.mean([whole - p(order[:n]) for n in counts]),
            np.mean([whole - p(order[n:]) for n in counts]),
            math.log(p(order[: math.ceil(0.2 * len(order))])) - math.log(whole),
        ]
        np.testing.assert_allclose([float(f[i]) for f in found], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("order", ["morf", "lerf"])
def test_insertion_and_deletion_are_mirror_images(text, relevances, order):
    model, tokenizer, inputs, targets = text
    masker = MaskTokens.from_tokenizer(tokenizer)
    used = Perturbation(model, inputs, targets, masker=masker)
    other = "lerf" if order == "morf" else "morf"
    inserted = insertion_curve(used, attributions=relevances["gi"], order=order, fractions="all")
    deleted = deletion_curve(used, attributions=relevances["gi"], order=other, fractions="all")
    for i, count in enumerate(used.counts.tolist()):
        forward, backward = inserted.values[i, : count + 1], deleted.values[i, : count + 1]
        torch.testing.assert_close(forward, backward.flip(0), rtol=1e-4, atol=1e-5)


def test_activation_is_insertion_of_the_most_relevant(text, relevances):
    model, tokenizer, inputs, targets = text
    used = Perturbation(model, inputs, targets, masker=MaskTokens.from_tokenizer(tokenizer))
    one = activation_curve(used, attributions=relevances["gi"])
    other = insertion_curve(used, attributions=relevances["gi"])
    torch.testing.assert_close(one.values, other.values)


# ---- closed forms -----------------------------------------------------------------------------
def test_activation_of_a_bag_of_words_in_closed_form():
    weights = [0.5, -1.0, 2.0, 0.25]
    model, ids, masker = bag(weights)
    curve = activation_curve(model, ids, torch.tensor([weights]), 0, masker=masker, fractions="all")
    sums = np.cumsum([0, 2.0, 0.5, 0.25, -1.0])
    np.testing.assert_allclose(curve.values[0], 1 / (1 + np.exp(-2 * sums)), rtol=1e-6)
    np.testing.assert_allclose(curve.fractions[0], [0, 0.25, 0.5, 0.75, 1])


def test_pruning_of_a_bag_of_words_in_closed_form():
    weights = [0.5, -1.0, 2.0, 0.25]
    model, ids, masker = bag(weights)
    curve = pruning_curve(model, ids, torch.tensor([weights]), 0, masker=masker, fractions="all")
    removed = np.cumsum([0, 0.25, 0.5, -1.0, 2.0])
    np.testing.assert_allclose(curve.values[0], 2 * removed**2, rtol=1e-6)


def test_no_order_has_more_area_than_the_weights():
    hypothesis = pytest.importorskip("hypothesis")
    strategies = hypothesis.strategies
    numbers = strategies.lists(
        strategies.floats(-3, 3, allow_nan=False, width=32), min_size=2, max_size=8
    )

    @hypothesis.settings(max_examples=60)
    @hypothesis.given(numbers, strategies.randoms(use_true_random=False))
    def check(weights, random):
        model, ids, masker = bag(weights)
        used = Perturbation(model, ids, 0, masker=masker)
        best = activation_curve(used, attributions=torch.tensor([weights]), fractions="all")
        places = list(range(len(weights)))
        random.shuffle(places)
        other = activation_curve(
            used, attributions=torch.tensor([places], dtype=torch.float), fractions="all"
        )
        assert best.mean >= other.mean - 1e-9

    check()


def test_rounding_of_fractions_is_that_of_numpy():
    # 0.3 of numpy.linspace(0, 1, 11) is a little more than 0.3: 4 of 10 tokens, as published
    weights = [float(i) for i in range(10, 0, -1)]
    model, ids, masker = bag(weights)
    curve = activation_curve(model, ids, torch.tensor([weights]), 0, masker=masker, measure="logit")
    counts = [int(np.ceil(f * 10)) for f in np.linspace(0, 1, 11)]
    assert counts[3] == 4
    assert curve.values[0].tolist() == pytest.approx([sum(weights[:n]) for n in counts])


def test_equal_relevance_keeps_the_order_of_the_tokens():
    model, ids, masker = bag([1.0, 2.0, 4.0])
    curve = deletion_curve(
        model, ids, torch.zeros(1, 3), 0, masker=masker, measure="logit", fractions="all"
    )
    assert curve.values[0].tolist() == [7.0, 6.0, 4.0, 0.0]


def test_measures_of_a_single_example():
    model, ids, masker = bag([1.0, -0.5])
    used = Perturbation(model, ids, 0, masker=masker)
    relevance = torch.tensor([[2.0, 1.0]])

    def values(measure):
        return deletion_curve(used, attributions=relevance, measure=measure, fractions="all").values

    torch.testing.assert_close(values("logit"), torch.tensor([[0.5, -0.5, 0.0]]).double())
    torch.testing.assert_close(values("sigmoid"), values("logit").sigmoid())
    torch.testing.assert_close(values("log probability"), values("probability").log())
    torch.testing.assert_close(values("squared change"), (2 * (values("logit") - 0.5) ** 2))
    torch.testing.assert_close(values(lambda out, whole, target: out[:, 1]), -values("logit"))


def test_areas_and_interpolation_of_a_curve():
    curve = Curve("c", torch.tensor([0.0, 0.5, 1.0]), torch.tensor([[0.0, 1.0, 1.0], [2.0, 0, 0]]))
    assert curve.area.tolist() == [0.75, 0.5]
    assert curve.mean == 0.625
    assert curve.at([0.25, 1.0]).tolist() == [[0.5, 1.0], [1.0, 0.0]]
    interval = curve.interval(resamples=500)
    assert interval.low == 0.5 and interval.high == 0.75


def test_joined_curves_keep_their_areas():
    short = Curve("c", torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 3.0]]))
    long = Curve("c", torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[0.0, 1.0, 0.0]]))
    joined = Curve.joined([short, long])
    assert joined.area.tolist() == [2.0, 0.5]
    with pytest.raises(InputError, match="different fractions"):
        Curve.joined([
            Curve("c", torch.tensor([0.0, 1.0]), torch.zeros(1, 2)),
            Curve("c", torch.tensor([0.0, 0.5]), torch.zeros(1, 2)),
        ])  # fmt: skip
    with pytest.raises(InputError, match="no curves"):
        Curve.joined([])


# ---- batches ----------------------------------------------------------------------------------
def test_padding_and_batch_size_do_not_matter(text, relevances):
    model, tokenizer, inputs, targets = text
    masker = MaskTokens.from_tokenizer(tokenizer)
    whole = pruning_curve(model, inputs, relevances["ah+ln"], targets, masker=masker)
    single = pruning_curve(model, inputs, relevances["ah+ln"], targets, masker=masker, batch_size=1)
    torch.testing.assert_close(whole.values, single.values, rtol=1e-4, atol=1e-5)
    length = inputs["input_ids"].shape[1] + 7
    wider = dict(tokenizer(TEXTS, padding="max_length", max_length=length, return_tensors="pt"))
    noise = torch.full((len(TEXTS), 7), 1e6)  # whatever stands at padding is of no account
    padded = torch.cat([relevances["ah+ln"], noise], 1)
    again = pruning_curve(model, wider, padded, targets, masker=masker)
    torch.testing.assert_close(whole.values, again.values, rtol=1e-4, atol=1e-5)


def test_the_order_of_the_examples_does_not_matter(text, relevances):
    model, tokenizer, inputs, targets = text
    masker = MaskTokens.from_tokenizer(tokenizer)
    back = torch.arange(len(TEXTS)).flip(0)
    one = activation_curve(model, inputs, relevances["gi"], targets, masker=masker)
    turned = {key: value[back] for key, value in inputs.items()}
    other = activation_curve(
        model, turned, relevances["gi"][back], targets[back].tolist(), masker=masker
    )
    torch.testing.assert_close(one.values, other.values[back], rtol=1e-4, atol=1e-5)


def test_variants_run_in_few_large_batches():
    weights = [float(i + 1) for i in range(20)]
    model, ids, masker = bag(weights)
    many = ids.expand(10, -1)
    relevance = torch.tensor([weights]).expand(10, -1)
    used = Perturbation(model, many, 0, masker=masker)
    activation_curve(used, attributions=relevance)
    # the whole inputs, the fully masked ones, and 10 x 9 others of 20 tokens, 102 at once
    assert model.calls == [10, 10, 90]
    pruning_curve(used, attributions=relevance)
    assert model.calls == [10, 10, 90, 90]
    model.calls.clear()
    activation_curve(model, many, relevance, 0, masker=masker, batch_size=7)
    assert max(model.calls) == 7 and sum(model.calls) == 110


def test_a_part_of_the_examples_needs_no_new_outputs(text, relevances):
    model, tokenizer, inputs, targets = text
    used = Perturbation(model, inputs, targets, masker=MaskTokens.from_tokenizer(tokenizer))
    whole = activation_curve(used, attributions=relevances["gi"])
    rows = [4, 0, 11]
    calls = []
    with model.register_forward_hook(lambda *_: calls.append(1)):
        part = used.take(rows)
        assert torch.equal(part.whole, used.whole[rows])
        assert torch.equal(part.blank, used.blank[rows])
    assert not calls
    again = activation_curve(part, attributions=relevances["gi"][rows])
    torch.testing.assert_close(again.values, whole.values[rows], rtol=1e-4, atol=1e-5)


def test_the_model_is_left_alone(text, relevances, untouched):
    model, tokenizer, inputs, targets = text
    with untouched(model):
        activation_curve(
            model, inputs, relevances["gi"], targets, masker=MaskTokens.from_tokenizer(tokenizer)
        )


def test_arguments_beside_the_inputs_go_with_their_example():
    def model(ids, scale, name):
        assert name == "x" and len(scale) == len(ids)
        total = ids.sum(1) * scale
        return torch.stack([total, -total], 1).double()

    ids, scale = torch.tensor([[1, 2], [3, 4]]), torch.tensor([1.0, 10.0])
    curve = deletion_curve(
        model, ids, torch.tensor([[2.0, 1.0]] * 2), 0, (scale, "x"), masker=MaskTokens(0),
        measure="logit", fractions="all",
    )  # fmt: skip
    assert curve.values.tolist() == [[3, 2, 0], [70, 40, 0]]


def test_targets_at_a_position():
    def model(ids):  # next-token logits: (examples, tokens, 3)
        return torch.stack([ids, 2 * ids, 3 * ids], -1).double()

    ids = torch.tensor([[1, 5], [2, 7]])
    relevance = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    options = {"masker": MaskTokens(0), "measure": "logit", "fractions": "all"}
    same = deletion_curve(model, ids, relevance, (1, 2), **options)
    assert same.values.tolist() == [[15, 15, 0], [21, 0, 0]]
    each = deletion_curve(model, ids, relevance, [(0, 1), (1, 0)], **options)
    assert each.values.tolist() == [[2, 0, 0], [7, 0, 0]]
    with pytest.raises(TargetError, match="give a tuple"):
        deletion_curve(model, ids, relevance, 1, **options)
    with pytest.raises(TargetError, match="out of range"):
        deletion_curve(model, ids, relevance, (4, 1), **options)


def test_places_counted_from_the_end_are_those_that_are_explained():
    def model(input_ids, attention_mask):  # next-token logits, of padding too
        return (input_ids[..., None] + attention_mask.sum(1)[:, None, None]).double()

    ids, mask = torch.tensor([[1, 5, 4], [2, 7, 9]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    inputs, relevance = {"input_ids": ids, "attention_mask": mask}, torch.ones(2, 3)
    curve = deletion_curve(
        model, inputs, relevance, (-1, 0), masker=MaskTokens(0), measure="logit", fractions=[0, 1]
    )
    whole = model(**inputs)[:, -1, 0]  # what ConservativeLRP explains of the padded batch
    assert curve.values[:, 0].tolist() == whole.tolist() == [7, 11]


# ---- maskers ----------------------------------------------------------------------------------
def test_special_tokens_stay_if_asked_to(text):
    _, tokenizer, inputs, _ = text
    batch = Batch.of(inputs)
    everything = MaskTokens.from_tokenizer(tokenizer).features(batch)
    assert torch.equal(everything, inputs["attention_mask"].bool())
    words = MaskTokens.from_tokenizer(tokenizer, keep_special=True).features(batch)
    assert torch.equal(words.sum(1), everything.sum(1) - 2)
    special = torch.tensor([
        tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
        for ids in inputs["input_ids"].tolist()
    ])  # fmt: skip
    assert torch.equal(MaskTokens(1, keep=special).features(batch), words)


def test_tokenizers_without_the_token_say_which_others_they_have():
    ids = {"unk_token_id": None, "mask_token_id": None, "pad_token_id": None}
    with pytest.raises(InputError, match=r"no unk token; give an id: MaskTokens\(3\)"):
        MaskTokens.from_tokenizer(SimpleNamespace(**ids))
    with pytest.raises(InputError, match="no mask token; it has: pad"):
        MaskTokens.from_tokenizer(SimpleNamespace(**{**ids, "pad_token_id": 1}), "mask")


def test_padding_is_known_by_its_id_too(text):
    _, tokenizer, inputs, _ = text
    masker = MaskTokens.from_tokenizer(tokenizer)
    found = masker.features(Batch.of(inputs["input_ids"]))
    assert torch.equal(found, inputs["attention_mask"].bool())


def test_removed_tokens_are_not_attended_to(text, relevances):
    model, tokenizer, inputs, targets = text
    masker = RemoveTokens.from_tokenizer(tokenizer)
    assert repr(RemoveTokens((1, 2))) == "RemoveTokens(keep=(1, 2))"
    curve = deletion_curve(
        model, inputs, relevances["gi"], targets, masker=masker, fractions=(0.0, 1.0)
    )
    for i in range(3):
        encoded = tokenizer(TEXTS[i], return_tensors="pt")
        encoded["attention_mask"][0, 1:-1] = 0
        with torch.no_grad():
            expected = model(**encoded).logits.softmax(1)[0, targets[i]]
        assert float(curve.values[i, 1]) == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(InputError, match="every token"):
        deletion_curve(model, inputs, relevances["gi"], targets, masker=RemoveTokens(()))
    with pytest.raises(InputError, match="attention_mask"):
        deletion_curve(model, inputs["input_ids"], relevances["gi"], targets, masker=masker)


def t5():
    """A classifier whose decoder reads the token ids again, shifted."""
    config = T5Config(
        vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0, num_labels=3,
    )  # fmt: skip
    return T5ForSequenceClassification(config).eval()


def test_tokens_cannot_be_removed_where_a_decoder_reads_them_again():
    ids = torch.tensor([[5, 6, 7, 1], [8, 9, 1, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    relevance, model = torch.rand(2, 4), t5()
    for _ in range(2):
        with pytest.raises(InputError, match="the decoder of the model does not heed"):
            deletion_curve(model, inputs, relevance, 1, masker=RemoveTokens((1,)))
    deletion_curve(model, inputs, relevance, 1, masker=MaskTokens(2, keep=(1,)))


def test_blocks_of_an_encoder_beside_a_decoder_are_no_cut():
    model, ids = t5(), torch.tensor([[5, 6, 7, 1], [8, 9, 4, 1]])
    with pytest.raises(UnsupportedModelError, match=r"cross-attention does not go.*layers="):
        conservation(model, ids, 1)
    shifted = torch.tensor([[0, 5, 6, 7], [0, 8, 9, 4]])

    def encoded(input_ids, shifted):
        return model(input_ids, decoder_input_ids=shifted)

    inputs = {"input_ids": ids, "shifted": shifted}
    blocks = list(model.transformer.encoder.block)  # as the message says
    made = conservation(encoded, inputs, 1, rules={"LRP": "lrp"}, layers=blocks, absorbed=True)
    assert made.unaccounted("LRP") < 1e-4


def test_patches_are_replaced_in_order():
    class Sums(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([images.sum((1, 2, 3)), images.sum((1, 2, 3)) * 0], 1)

    images = torch.arange(30.0).reshape(1, 1, 5, 6)  # patches of 2 x 3, the last row cut
    patches = [float(images[0, 0, r : r + 2, c : c + 3].sum()) for r in (0, 2, 4) for c in (0, 3)]
    curve = deletion_curve(
        Sums(), images, images, 0, masker=MaskPatches((2, 3)), measure="logit", fractions="all"
    )
    order = sorted(patches, reverse=True)
    expected = [sum(patches) - sum(order[:n]) for n in range(7)]
    assert curve.values[0].tolist() == pytest.approx(expected)
    filled = MaskPatches((2, 3), value=-1.0).masked(
        Batch.of(images), torch.tensor([[True, False, False, False, False, True]])
    )
    assert filled.main[0, 0, 0].tolist() == [-1, -1, -1, 3, 4, 5]
    assert filled.main[0, 0, 4].tolist() == [24, 25, 26, -1, -1, -1]


def test_relevance_of_patches_comes_in_several_shapes():
    masker, batch = MaskPatches(2), Batch.of(torch.zeros(2, 3, 4, 4))
    pixels = torch.rand(2, 3, 4, 4)
    expected = torch.stack(
        [pixels[:, :, r : r + 2, c : c + 2].sum((1, 2, 3)) for r in (0, 2) for c in (0, 2)], 1
    )
    torch.testing.assert_close(masker.scores(pixels, batch), expected)
    torch.testing.assert_close(masker.scores(pixels.sum(1), batch), expected)
    torch.testing.assert_close(masker.scores(expected.reshape(2, 2, 2), batch), expected)
    tokens = torch.cat([torch.full((2, 1), 9.0), expected], 1)  # a class token first
    torch.testing.assert_close(masker.scores(tokens, batch), expected)
    for wrong in (torch.zeros(2, 3), torch.zeros(2, 3, 5, 5), torch.zeros(1, 4)):
        with pytest.raises(InputError, match="attributions of shape"):
            masker.scores(wrong, batch)


def test_tokens_of_images_that_are_no_whole_patches():
    """Models drop the rest, so that rows and columns of their patches are other ones."""
    tokens = torch.tensor([[9.0, 1, 2, 3, 4]])
    masker = MaskPatches(2)
    found = masker.scores(tokens, Batch.of(torch.zeros(1, 1, 5, 5)))
    assert found.tolist() == [[1, 2, 0, 3, 4, 0, 0, 0, 0]]
    several = torch.zeros(1, 9)  # 3 x 3, or 2 x 2 with a class token and registers
    for size, wrong in (((5, 5), several), ((4, 4), torch.zeros(1, 17))):
        with pytest.raises(InputError, match="beyond doubt"):
            masker.scores(wrong, Batch.of(torch.zeros(1, 1, *size)))
    with pytest.raises(InputError, match="whole patches"):
        RemovePatches(2).features(Batch.of(torch.zeros(1, 1, 4, 5)))


def test_patches_are_taken_out_of_their_grid_only():
    model, images = digits(), digit_samples()[0][:1]
    batch = Batch.of(images)
    for size, why in ((14, "patch size of the model"), (28, "patch size of the model")):
        masker = RemovePatches(size)
        with torch.no_grad(), pytest.raises(UnsupportedModelError, match=why):
            masker.run(model, batch, torch.ones_like(masker.features(batch)))
    mean = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    masker = RemovePatches(2, layer=mean[0])
    batch = Batch.of(torch.randn(1, 1, 4, 4))

    def patches_only(x: Tensor) -> Tensor:
        return mean(nn.functional.unfold(x, 2, stride=2).mT).mean(1)

    with torch.no_grad(), pytest.raises(UnsupportedModelError, match="nothing is left"):
        masker.run(patches_only, batch, torch.ones(1, 4, dtype=torch.bool))


def test_removed_patches_never_reach_the_blocks():
    model, images = digits(), digit_samples()[0][:3]
    masker = RemovePatches(model.config.patch_size)
    batch = Batch.of(images)
    hidden = torch.rand(masker.features(batch).shape) < torch.tensor([[1.0], [0.0], [0.4]])
    with torch.no_grad():
        found = masker.run(model, batch, hidden)
        for i in range(3):
            tokens = model.vit.embeddings(images[i : i + 1])
            stays = torch.cat([torch.tensor([True]), ~hidden[i]])
            tokens = tokens[:, stays]
            for block in transformer_blocks(model):
                tokens = block(tokens)
                tokens = tokens[0] if isinstance(tokens, tuple) else tokens
            expected = model.classifier(model.vit.layernorm(tokens)[:, 0])
            torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-4, atol=1e-5)
        whole = model(images[1:2]).logits
        torch.testing.assert_close(found[1:2], whole, rtol=1e-4, atol=1e-5)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_other_threads_keep_their_patches():
    model, images = digits(), digit_samples()[0][:1]
    masker = RemovePatches(model.config.patch_size)
    beside: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        thread = threading.Thread(target=lambda: beside.append(model(images).logits.detach()))
        thread.start()
        thread.join()
        return model(x).logits

    hidden = torch.zeros(masker.features(Batch.of(images)).shape, dtype=torch.bool)
    hidden[:, 1:] = True
    with torch.no_grad():
        masker.run(forward, Batch.of(images), hidden)
        torch.testing.assert_close(beside[0], model(images).logits)


def test_patches_whose_positions_stay_are_not_removed():
    class Rotary(nn.Module):
        """A ViT whose blocks turn the last tokens by their positions, as DINOv3 does."""

        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Turned(), Turned()])

        def forward(self, x):
            tokens = nn.functional.pad(x.reshape(len(x), -1, 1), (0, 0, 3, 0), value=1.0)
            for block in self.blocks:
                tokens = block(tokens, places=(torch.arange(16.0)[:, None],))
            return tokens.sum(1)

    class Turned(nn.Module):
        def forward(self, x, places):
            return torch.cat([x[:, :-16], x[:, -16:] * places[0].cos()], 1)

    model, images = Rotary(), torch.rand(1, 1, 4, 4)
    masker = RemovePatches(1, layer=model.blocks[0])
    with pytest.raises(UnsupportedModelError, match="gets the positions of all tokens"):
        deletion_curve(model, images, images, 0, masker=masker, measure="logit", fractions=[0, 0.1])


def test_removing_patches_needs_blocks_of_tokens(text):
    images = torch.zeros(1, 1, 4, 4)
    convolution = nn.Conv2d(1, 2, 3, padding=1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = convolution

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).sum((2, 3))

    masker = RemovePatches(2, layer=convolution)
    with pytest.raises(UnsupportedModelError, match="MaskPatches"):
        deletion_curve(Net(), images, torch.zeros(1, 4), 0, masker=masker)
    with pytest.raises(InputError, match="no list of blocks"):
        deletion_curve(Net(), images, torch.zeros(1, 4), 0, masker=RemovePatches(2))
    with pytest.raises(UnsupportedModelError, match="did not run"):
        deletion_curve(
            Net(), images, torch.zeros(1, 4), 0, masker=RemovePatches(2, layer=nn.Linear(2, 2))
        )
    assert len(transformer_blocks(text[0])) == text[0].config.num_hidden_layers


def test_a_masker_of_ones_own():
    class Zeros(Masker):
        """Entries of a vector."""

        def features(self, batch):
            return torch.ones(batch.main.shape, dtype=torch.bool)

        def scores(self, attributions, batch):
            return attributions

        def masked(self, batch, hidden):
            return batch.with_main(batch.main * ~hidden)

    linear = nn.Linear(3, 2, bias=False).eval()
    x = torch.tensor([[1.0, 2.0, 3.0]])
    relevance = (x * linear.weight[1]).detach()
    curve = activation_curve(
        linear, x, relevance, 1, masker=Zeros(), measure="logit", fractions="all"
    )
    expected = np.cumsum([0, *sorted(relevance[0].tolist(), reverse=True)])
    np.testing.assert_allclose(curve.values[0], expected, rtol=1e-5, atol=1e-6)


# ---- errors -----------------------------------------------------------------------------------
def test_errors_say_what_to_do(text, relevances):
    model, tokenizer, inputs, targets = text
    masker = MaskTokens.from_tokenizer(tokenizer)
    good = relevances["gi"]

    def curve(given=inputs, relevance=good, target=targets, **options):
        return activation_curve(model, given, relevance, target, **{"masker": masker, **options})

    cases = [
        (InputError, "do not fit", {"relevance": good[:, :-1]}),
        (InputError, "missing", {"relevance": None}),
        (NonFiniteError, "no order", {"relevance": good * float("nan")}),
        (TargetError, "out of range", {"target": 7}),
        (TargetError, "does not fit", {"target": [0, 1]}),
        (TargetError, "does not fit", {"target": 0.5}),
        (InputError, "rising", {"fractions": (0.5, 0.1)}),
        (InputError, "rising", {"fractions": (0.0, 1.5)}),
        (InputError, "fractions", {"fractions": "every"}),
        (InputError, "measure", {"measure": "accuracy"}),
        (InputError, "masker", {"masker": None}),
        (InputError, "must be a Masker", {"masker": 100}),
        (InputError, "batch_size", {"batch_size": 0}),
        (InputError, "tensor or a mapping", {"given": [1, 2]}),
        (InputError, "input_ids", {"given": {"labels": torch.zeros(2)}}),
        (InputError, "finds nothing to hide", {"masker": MaskTokens(1, keep=range(40000))}),
        (InputError, "token ids", {"masker": MaskTokens(1), "given": torch.zeros(2, 3, 4, 4)}),
        (InputError, "float images", {"masker": MaskPatches(2)}),
    ]  # fmt: skip
    for error, message, options in cases:
        with pytest.raises(error, match=message):
            curve(**options)
    used = Perturbation(model, inputs, targets, masker=masker)
    with pytest.raises(InputError, match="holds inputs"):
        activation_curve(used, inputs, good)
    for order in ("most", "least"):
        with pytest.raises(InputError, match="order must be one of"):
            deletion_curve(used, attributions=good, order=order)
    with pytest.raises(InputError, match="start must be one of"):
        perturbation_curve(used, attributions=good, start="empty")
    with pytest.raises(InputError, match="shares of the features"):
        comprehensiveness(used, attributions=good, bins=(0.0, 0.5))
    with pytest.raises(InputError, match="token_id"):
        MaskTokens(-1)
    with pytest.raises(InputError, match="no mask token; it has: unk"):
        MaskTokens.from_tokenizer(_Tokenizer(), "mask")


class _Tokenizer:
    unk_token_id, mask_token_id, pad_token_id = 1, None, None
    all_special_ids = (1,)


@pytest.mark.parametrize(
    ("curve", "option"),
    [(pruning_curve, {"ranking": "signed"}), (pruning_curve, {"order": "morf"}),
     (activation_curve, {"start": "whole"}), (insertion_curve, {"start": "masked"}),
     (deletion_curve, {"start": "whole"}), (log_odds, {"fractions": [0.5]}),
     (comprehensiveness, {"fractions": [0.5]}), (sufficiency, {"fractions": "all"})],
)  # fmt: skip
def test_options_without_effect_are_refused(text, relevances, curve, option):
    model, tokenizer = text[:2]
    inputs = tokenizer(["a charming film"], return_tensors="pt")
    masker = MaskTokens.from_tokenizer(tokenizer)
    relevance = torch.zeros(inputs["input_ids"].shape)
    with pytest.raises(InputError, match=rf"has {next(iter(option))}=.* and takes no other"):
        curve(model, inputs, relevance, masker=masker, **option)


def test_outputs_that_cannot_be_measured():
    ids, masker = torch.tensor([[1, 2]]), MaskTokens(0)
    relevance = torch.zeros(1, 2)
    with pytest.raises(OutputError, match="single output"):
        activation_curve(lambda x: x.sum(1).float(), ids, relevance, masker=masker)
    score = activation_curve(
        lambda x: x.sum(1).float(), ids, relevance, masker=masker, measure="logit"
    )
    assert score.values[0, -1] == 3
    with pytest.raises(NonFiniteError, match="whole inputs"):
        activation_curve(lambda x: x / 0, ids, relevance, 0, masker=masker)
    with pytest.raises(NonFiniteError, match="masked inputs"):
        activation_curve(lambda x: 1 / x, ids, relevance, 0, masker=masker)
    with pytest.raises(OutputError, match="for 1 examples"):
        activation_curve(lambda x: torch.zeros(3, 2), ids, relevance, 0, masker=masker)


def test_active_dropout_is_told():
    model = nn.Sequential(nn.Embedding(5, 2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4, 2))
    ids = torch.tensor([[1, 2]])
    with pytest.warns(TrainingModeWarning, match=r"model\.eval"):
        Perturbation(model, ids, 0, masker=MaskTokens(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Perturbation(model.eval(), ids, 0, masker=MaskTokens(0))


def test_dropout_without_a_module_for_it_is_told():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(5, 4), nn.Linear(4, 2)

        def forward(self, ids):
            words = nn.functional.dropout(self.words(ids), 0.5, self.training)
            return self.head(words.mean(1))

    ids = torch.tensor([[1, 2]])
    with pytest.warns(TrainingModeWarning, match=r"If the model drew them.*model\.eval"):
        Perturbation(Own(), ids, 0, masker=MaskTokens(0))
    noisy = Own().eval()
    with pytest.warns(TrainingModeWarning, match=r"If the model drew them.*manual_seed"):
        Perturbation(lambda ids: noisy(ids) + torch.rand(1), ids, 0, masker=MaskTokens(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Perturbation(Own().eval(), ids, 0, masker=MaskTokens(0))
        Perturbation(nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(4, 2)), ids, 0,
                     masker=MaskTokens(0))  # fmt: skip


# ---- bootstrap --------------------------------------------------------------------------------
def test_interval_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).gamma(2.0, size=60)
    ours = bootstrap_interval(torch.tensor(values), resamples=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(5)
    ).confidence_interval
    assert ours.estimate == pytest.approx(values.mean())
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_paired_p_value_agrees_with_the_t_test():
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(2)
    for shift in (0.05, 0.12, 0.2):
        first, second = generator.normal(shift, 1, 200), generator.normal(0, 1, 200)
        found = paired_bootstrap(first, second)
        expected = stats.ttest_rel(first, second).pvalue
        assert found.estimate == pytest.approx(first.mean() - second.mean())
        assert found.p == pytest.approx(expected, abs=0.02)
        assert found.low < found.estimate < found.high


def test_bootstrap_of_special_cases():
    same = paired_bootstrap([1.0, 2.0, 4.0], [1.0, 2.0, 4.0])
    assert same.p == 1.0 and same.low == same.high == 0.0
    sure = paired_bootstrap([2.0] * 30, [1.0] * 30, resamples=999)
    assert sure.p == 1 / 1000 and sure.low == 1.0
    values = np.arange(50.0)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    with pytest.raises(InputError, match="in pairs"):
        paired_bootstrap([1.0], [1.0, 2.0])
    for wrong in ([], [float("nan")], [[1.0]]):
        with pytest.raises(InputError):
            bootstrap_interval(wrong)
    with pytest.raises(InputError, match="confidence"):
        bootstrap_interval([1.0], confidence=95)
    with pytest.raises(InputError, match="resamples"):
        bootstrap_interval([1.0], resamples=0)


# ---- conservation -----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def conserved(text):
    model, _, inputs, _ = text
    some = {key: value[:6] for key, value in inputs.items()}
    return conservation(model, some, batch_size=4)


def test_sums_of_relevance_are_those_of_the_classes(text, conserved):
    model, tokenizer, _, targets = text
    blocks = transformer_blocks(model)
    for i in range(6):
        alone = tokenizer(TEXTS[i], return_tensors="pt")
        target = int(targets[i])
        with torch.no_grad():
            output = float(model(**alone).logits[0, target])
        assert float(conserved.output[i]) == pytest.approx(output, rel=1e-4)
        found = {
            ("GI", "embeddings"): LayerConservativeGI(model, model.bert.embeddings, "gi"),
            ("LRP(AH+LN)", "block 1"): LayerConservativeGI(model, blocks[0]),
            ("LRP", "block 2"): LayerConservativeLRP(model, blocks[1]),
            ("LRP(LN)", "input"): ConservativeGI(model, "ln"),
        }
        for (rules, level), explainer in found.items():
            relevance = explainer.attribute(alone, target=target)
            relevance = relevance[0] if isinstance(relevance, tuple) else relevance
            expected = float(relevance.double().sum())
            assert float(conserved.sums[rules][level][i]) == pytest.approx(
                expected, rel=1e-3, abs=1e-4
            )


def test_conservation_in_numbers(conserved):
    output = conserved.output.numpy()
    for rules in RULES:
        sums = conserved.sums[rules]["embeddings"].numpy()
        row = conserved.at(rules)
        assert row.slope == pytest.approx(np.polyfit(output, sums, 1)[0], rel=1e-6)
        assert row.correlation == pytest.approx(np.corrcoef(output, sums)[0, 1], rel=1e-6)
        assert row.error == pytest.approx(
            np.abs(output - sums).mean() / np.abs(output).mean(), rel=1e-9
        )
    for level in conserved.levels:
        exact = conserved.at("LRP, biases distributed", level)
        assert exact.error < 1e-4 and exact.slope == pytest.approx(1, abs=1e-4)
    # token ids: the norm behind the embeddings is blind to their scale
    assert conserved.at("GI", "input").error == pytest.approx(1, abs=1e-4)
    lines = conserved.markdown().splitlines()
    assert len(lines) == 2 + len(RULES) and "| LRP(AH+LN) " in conserved.markdown()
    assert conserved.markdown(None).splitlines()[0].count("|") == 2 + len(conserved.levels)


def test_conservation_of_a_linear_model_is_exact():
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(3, 3, bias=False), nn.Identity(), nn.Identity())
                for _ in range(2)
            )

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    model = Linear().double()
    x = torch.randn(5, 3, dtype=torch.float64)
    found = conservation(model, x, target=1, rules={"GI": "gi"})
    torch.testing.assert_close(found.output, model(x)[:, 1].detach())
    assert found.levels == ("input", "embeddings", "block 1", "block 2")
    for level in found.levels:
        torch.testing.assert_close(found.sums["GI"][level], found.output)
    tokens = torch.randn(2, 4, 3, dtype=torch.float64)
    each = conservation(model, tokens, target=[(3, 0), (1, 2)], rules={"GI": "gi"}, batch_size=1)
    torch.testing.assert_close(each.output, model(tokens)[[0, 1], [3, 1], [0, 2]].detach())
    torch.testing.assert_close(each.sums["GI"]["input"], each.output)
    with pytest.raises(InputError, match="no rule set is named"):
        conservation(model, x, target=1, rules={})
    with pytest.raises(TargetError, match="out of range"):
        conservation(model, x, target=3, rules={"GI": "gi"})


def test_conservation_is_drawn(conserved, tmp_path):
    pytest.importorskip("matplotlib")
    conserved.png(tmp_path / "sums.png", title="sums")
    assert (tmp_path / "sums.png").read_bytes().startswith(b"\x89PNG")
    drawing = conserved.figure(rules=["GI", "LRP"])
    points = sum(len(c.get_offsets()) for c in drawing.axes[0].collections)
    assert points == len(conserved.output)
    depth = drawing.axes[-1].lines
    assert [len(line.get_xdata()) for line in depth] == [len(conserved.levels)] * 2
    with pytest.raises(InputError, match="no rules"):
        conserved.figure(rules=["IG"])


def test_relevance_and_what_constants_absorb_are_the_output(text, conserved, tmp_path):
    model, _, inputs, _ = text
    some = {key: value[:6] for key, value in inputs.items()}
    rules = {name: RULES[name] for name in ("GI", "LRP", "LRP, biases distributed")}
    found = conservation(model, some, rules=rules, absorbed=True, batch_size=4)
    for name in rules:
        torch.testing.assert_close(found.sums[name], conserved.sums[name])
    assert found.at("LRP").error > 0.05 and found.unaccounted("LRP") < 1e-5
    assert found.unaccounted("GI") > 0.5
    assert float(found.absorbed["LRP, biases distributed"].abs().max()) < 1e-4
    pytest.importorskip("matplotlib")
    rings, points = found.figure().axes[1].collections
    assert len(rings.get_facecolors()) == 0 and len(points.get_facecolors()) > 0
    account = found.sums["LRP"]["embeddings"] + found.absorbed["LRP"]
    np.testing.assert_allclose(points.get_offsets()[:, 1], account)
    with pytest.raises(KeyError):
        conserved.unaccounted("LRP")


def test_a_method_has_one_colour(conserved):
    pytest.importorskip("matplotlib")
    colours = pytest.importorskip("matplotlib.colors")
    from captum_lrp_tx.methods.line_styles import STYLES, styles

    for place, axes in enumerate(conserved.figure().axes[:-1]):
        colour = colours.to_hex(axes.collections[0].get_facecolors()[0])
        assert colour == STYLES[list(RULES)[place]][0]
    mine = styles([*STYLES, "mine", "other"])
    assert len(set(mine.values())) == len(mine), "two methods look alike"
