"""Methods side by side: the rows are what the classes give, and every method gets a line."""

from __future__ import annotations

import html as html_module
import inspect
import io
import re
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from captum.attr import GradientShap, IntegratedGradients, LayerIntegratedGradients, Saliency

from captum_lrp_tx import (
    ConservativeGI,
    ConservativeLRP,
    TokenGradientShap,
    TokenIntegratedGradients,
    TokenSaliency,
    compare,
)
from captum_lrp_tx.cli import main
from captum_lrp_tx.cli.tables import read_table
from captum_lrp_tx.errors import CaptumLRPError, InputError, NonFiniteError, TargetError
from captum_lrp_tx.methods import METHODS, choose_methods, find_method
from captum_lrp_tx.methods import run as run_method
from captum_lrp_tx.methods.registry import PAPER
from captum_lrp_tx.models import digit_samples, digits, sentiment
from captum_lrp_tx.visualization.colours import shade
from captum_lrp_tx.visualization.comparison import (
    Strip,
    TextComparison,
    comparison_terminal,
    image_comparison_terminal,
)
from captum_lrp_tx.visualization.comparison_figure import comparison_figure, image_comparison_figure
from captum_lrp_tx.visualization.comparison_page import comparison_html
from captum_lrp_tx.visualization.text import decimals_for
from captum_lrp_tx.visualization.wording import cells

pytestmark = pytest.mark.captum

SENTENCE = "a charming and often affecting film"
OURS = ("GI", "LRP(AH)", "LRP(LN)", "LRP(AH+LN)", "LRP", "AttnLRP")
CAPTUMS = ("IG", "GradientShap", "Saliency")
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def text():
    """Model, encoding, names of the tokens, mask token."""
    model, tokenizer = sentiment()
    inputs = tokenizer(SENTENCE, return_tensors="pt")
    tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    return model, inputs, tokens, tokenizer.mask_token_id


@pytest.fixture(scope="module")
def image():
    return digits(), digit_samples()[0][9:10]


@pytest.fixture(scope="module")
def everything(text):
    model, inputs, tokens, mask = text
    return compare(model, inputs, 1, tokens=tokens, baseline=mask)


def masked(inputs, mask):
    ids = inputs["input_ids"].clone()
    ids[:, 1:-1] = mask
    return ids


def by_hand(model, inputs):
    """A forward function of word embeddings, and the embeddings."""
    rest = {k: v for k, v in inputs.items() if k != "input_ids"}

    def forward(embedded):
        more = {k: v.expand(embedded.shape[0], -1) for k, v in rest.items()}
        return model(inputs_embeds=embedded, **more).logits

    return forward, model.get_input_embeddings()


# Names


def test_all_is_known_of_every_method():
    assert {*PAPER} < {method.name for method in METHODS}
    assert len({method.style for method in METHODS}) == len(METHODS)
    for method in METHODS:
        assert method.about and not method.about.endswith("."), method.name
        assert isinstance(method.make, type) and hasattr(method.make, "attribute"), method.name


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_what_the_registry_says_of_a_method_is_so(method, text):
    """Signs, targets, settings and layers: as the relevance and the classes have it."""
    if method.name == "A-Flow":
        pytest.importorskip("scipy")
    model, inputs, _, mask = text
    made = inspect.signature(method.make).parameters
    assert {*method.takes} == {"baseline", "seed"} & {*made}
    found = [run_method(method, model, inputs, t, baseline=mask).relevance for t in (0, 1)]
    assert torch.equal(*found) == (not method.uses_target)
    if method.signed is not None:
        negative = any(bool((relevance < 0).any()) for relevance in found)
        assert negative <= method.signed
    if method.at_layer is not None:
        at = run_method(method, model, inputs, 1, layer=model.bert.encoder.layer[0]).relevance
        assert at.shape == found[1].shape


def test_methods_are_chosen_once_and_by_selections():
    mine = ("mine", lambda model: ConservativeLRP(model))
    assert [m.name for m in choose_methods(["gi", "GI", mine])] == ["GI", "mine"]
    assert [m.name for m in choose_methods("all")] == [m.name for m in METHODS]
    assert tuple(m.name for m in choose_methods("Paper")) == PAPER
    assert [m.name for m in choose_methods(["paper", "LRP", "gi"])] == [*PAPER, "LRP"]
    assert choose_methods("rollout") == choose_methods([find_method("Rollout")])
    with pytest.raises(InputError, match="two methods are called 'mine'"):
        choose_methods([mine, ("mine", mine[1])])
    with pytest.raises(InputError, match="two methods are called 'GI'"):
        choose_methods(["GI", ("GI", mine[1])])


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lrp (ah + ln)", "LRP(AH+LN)"), ("ah+ln", "LRP(AH+LN)"), ("a-flow", "A-Flow"),
        ("Attention Rollout", "Rollout"), ("gradient x input", "GI"), ("ATTNLRP", "AttnLRP"),
        ("integrated gradients", "IG"), ("gradientshap", "GradientShap"), ("gae", "GAE"),
        ("lrp", "LRP"), ("Transformer Attribution", "Chefer"),
    ],
)  # fmt: skip
def test_spelling_does_not_matter(name, meant):
    assert find_method(name).name == meant


def test_no_name_means_two_methods():
    names = [n for m in METHODS for n in (m.name, *m.aliases)]
    assert all(find_method(n).name == m.name for m in METHODS for n in (m.name, *m.aliases))
    assert len(names) == len(set(names))


def test_unknown_names_list_the_known_ones(text):
    with pytest.raises(InputError, match=r"unknown method 'shap'.*A-Last, Rollout.*Saliency"):
        compare(*text[:2], methods=["LRP", "shap"])
    with pytest.raises(InputError, match="no method is named"):
        compare(*text[:2], methods=[])
    with pytest.raises(InputError, match="3 is no method"):
        compare(*text[:2], methods=[3])


def test_optional_packages_are_imported_when_they_are_used():
    import subprocess

    code = (
        "import sys, captum_lrp_tx\n"
        "print([m for m in ('transformers', 'scipy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# Rows


def test_every_method_has_a_row(everything, text):
    assert [row.name for row in everything] == [m.name for m in METHODS]
    assert everything.output == pytest.approx(text[0](**text[1]).logits[0, 1].item(), abs=1e-5)
    assert everything.target == 1 and everything.tokens == tuple(text[2])
    for row in everything:
        assert tuple(row.relevance.shape) == (len(text[2]),)
        assert row.sum == pytest.approx(float(row.relevance.double().sum()), abs=1e-6)
        assert row.seconds > 0
    assert set(OURS) | set(CAPTUMS) <= {r.name for r in everything if r.error is None}


def test_rows_are_what_the_classes_give(everything, text):
    model, inputs, _, _ = text
    direct = [ConservativeGI(model, rules) for rules in ("gi", "ah", "ln", "ah+ln")]
    direct += [ConservativeLRP(model), ConservativeLRP(model, "attnlrp")]
    for name, explainer in zip(OURS, direct, strict=True):
        relevance, delta = explainer.attribute(inputs, 1, return_convergence_delta=True)
        assert torch.equal(everything[name].relevance, relevance[0])
        assert everything[name].delta == float(delta)
        assert everything[name].signed


@pytest.mark.parametrize("name", ["Random", "A-Last", "Rollout", "A-Flow", "GAE", "Chefer"])
def test_rows_of_methods_without_gradients_or_with_attention(everything, text, name):
    relevance = find_method(name).attribution(text[0]).attribute(text[1], target=1)
    torch.testing.assert_close(everything[name].relevance, relevance[0])
    assert everything[name].delta is None
    if name != "Random":
        assert not everything[name].signed


def test_integrated_gradients_are_captums_at_the_embedding_layer(everything, text):
    model, inputs, _, mask = text
    rest = (inputs["attention_mask"],)

    def forward(ids, attention_mask):
        return model(input_ids=ids, attention_mask=attention_mask).logits

    layer = LayerIntegratedGradients(forward, model.get_input_embeddings())
    expected, delta = layer.attribute(
        inputs["input_ids"], masked(inputs, mask), target=1, additional_forward_args=rest,
        n_steps=50, return_convergence_delta=True,
    )  # fmt: skip
    row = everything["IG"]
    torch.testing.assert_close(row.relevance, expected.sum(-1)[0], atol=1e-5, rtol=1e-4)
    assert row.delta == pytest.approx(-float(delta), abs=1e-4)
    # completeness
    start = forward(masked(inputs, mask), *rest)[0, 1].item()
    assert row.sum == pytest.approx(everything.output - start, abs=1e-2)
    assert row.sum + row.delta == pytest.approx(everything.output - start, abs=1e-4)
    assert row.relevance[0] == row.relevance[-1] == 0  # special tokens stay
    assert everything.baseline == f"token {mask} everywhere, special tokens as they are"


def test_integrated_gradients_do_not_depend_on_the_portions(text):
    model, inputs, _, _ = text
    one, all_ = (
        TokenIntegratedGradients(model, internal_batch_size=n).attribute(inputs, 1) for n in (1, 50)
    )
    torch.testing.assert_close(one, all_, atol=1e-5, rtol=1e-4)


def test_gradient_shap_and_saliency_are_captums(everything, text):
    import numpy as np

    model, inputs, _, mask = text
    forward, embedding = by_hand(model, inputs)
    embedded = embedding(inputs["input_ids"]).detach()
    start = embedding(masked(inputs, mask)).detach()
    np.random.seed(0)
    torch.manual_seed(0)
    expected = GradientShap(forward).attribute(embedded, start, n_samples=50, target=1)
    torch.testing.assert_close(
        everything["GradientShap"].relevance, expected.sum(-1)[0], atol=1e-5, rtol=1e-4
    )
    gradient = Saliency(forward).attribute(embedded.requires_grad_(), target=1)
    torch.testing.assert_close(
        everything["Saliency"].relevance, gradient.norm(dim=-1)[0], atol=1e-6, rtol=1e-4
    )
    assert not everything["Saliency"].signed and everything["Saliency"].delta is None


def test_gradient_shap_in_portions_converges_to_integrated_gradients(image):
    model, pixels = image
    shap = TokenGradientShap(model, n_samples=400).attribute(pixels, 4)
    path = TokenIntegratedGradients(model).attribute(pixels, 4)
    assert torch.corrcoef(torch.stack([shap.flatten(), path.flatten()]))[0, 1] > 0.97


def test_gradient_shap_of_an_example_does_not_depend_on_the_others():
    """Captum draws random numbers for a batch, and a baseline of any of its examples."""
    x, start = torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([[0.0, 0.0], [5.0, 5.0]])

    def model(values):
        return values.square() * torch.tensor([1.0, -2.0])

    targets = [0, 1]
    together = TokenGradientShap(model, baseline=start).attribute(x, targets)
    alone = [
        TokenGradientShap(model, baseline=start[[i]]).attribute(x[[i]], targets[i]) for i in (0, 1)
    ]
    torch.testing.assert_close(together, torch.cat(alone))
    with pytest.raises(TargetError, match="3 targets were given for 2 examples"):
        TokenGradientShap(model).attribute(x, [0, 1, 0])


def test_random_states_are_left_as_they_were(text):
    import numpy as np

    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = compare(*text[:2], 1, methods=["GradientShap"], seed=1)
    again = compare(*text[:2], 1, methods=["GradientShap"], seed=1)
    other = compare(*text[:2], 1, methods=["GradientShap"], seed=2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert torch.equal(first.rows[0].relevance, again.rows[0].relevance)
    assert not torch.equal(first.rows[0].relevance, other.rows[0].relevance)


def test_batches_with_padding_are_the_examples_one_by_one():
    model, tokenizer = sentiment()
    texts = [SENTENCE, "dull"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    for explainer in (TokenIntegratedGradients(model, n_steps=10), TokenSaliency(model)):
        together = explainer.attribute(batch, torch.tensor([1, 0]))
        for i, sentence in enumerate(texts):
            alone = explainer.attribute(tokenizer(sentence, return_tensors="pt"), 1 - i)
            torch.testing.assert_close(
                together[i, : alone.shape[1]], alone[0], atol=1e-4, rtol=1e-3
            )


class ByIndexing(nn.Module):
    """A model that looks its tokens up without an embedding module."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(11, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, ids, scale=None):
        x = self.table[ids.view(-1)].view(*ids.shape, -1).tanh().mean(1)
        return self.head(x if scale is None else x * scale)


def test_models_without_embedding_modules_and_without_attention():
    model, ids = ByIndexing(), torch.tensor([[3, 1, 4, 1]])
    args = (torch.tensor([[2.0]]),)  # one row for each example, as Captum has it
    rows = compare(model, ids, 2, args, methods=["A-Last", "IG", "Saliency"], baseline=0)
    path = rows["IG"]

    def forward(rows_):
        return model.head(rows_.tanh().mean(1) * 2.0)

    start = model.table[torch.zeros_like(ids)].detach()
    expected = IntegratedGradients(forward).attribute(model.table[ids].detach(), start, target=2)
    torch.testing.assert_close(path.relevance, expected.sum(-1)[0].detach().to(path.relevance))
    assert rows.tokens == ("3", "1", "4", "1") and rows.special == (False,) * 4
    assert rows["A-Last"].relevance is None and rows["A-Last"].error
    assert rows.baseline == "token 0 everywhere"


def test_ids_that_are_not_looked_up():
    class OneHot(nn.Module):
        def forward(self, ids):
            return nn.functional.one_hot(ids, 5).float().mean(1)

    with pytest.raises(InputError, match="did not look up"):
        TokenSaliency(OneHot()).attribute(torch.tensor([[1, 2]]), 1)


class Lookups(nn.Module):
    """Ids that are looked up in unusual ways; all tables are linear in what comes out."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.table, self.single = kind, nn.Embedding(5, 3), nn.Parameter(torch.randn(5))
        self.wide = nn.Embedding(5, 4)

    def forward(self, ids, more=None):
        if self.kind == "two" and int(ids[0, 0]) == 0:
            return self.wide(ids).mean(1)
        if self.kind == "numbers":
            return self.single[ids].sum(1, keepdim=True) * torch.tensor([2.0, -1.0])
        return self.table(ids).mean(1)


@pytest.mark.parametrize(
    ("kind", "inputs", "reason"),
    [
        ("two", torch.tensor([[1, 2]]), "other things for the baseline.*give another baseline="),
        ("plain", (torch.tensor([[1, 2]]), torch.tensor([[1, 2]])), "takes one input, not 2; pass"),
    ],
)
def test_lookups_that_have_no_path_are_refused(kind, inputs, reason):
    with pytest.raises(InputError, match=reason):
        TokenIntegratedGradients(Lookups(kind), baseline=0).attribute(inputs, 1)


def test_ids_that_look_up_one_number_each():
    model, ids = Lookups("numbers"), torch.tensor([[1, 2, 1], [4, 3, 0]])
    found = TokenIntegratedGradients(model, baseline=0).attribute(ids, target=1)
    expected = -(model.single[ids] - model.single[0]).detach()
    torch.testing.assert_close(found, expected)


def test_pixels_go_to_captum_as_they_are(image):
    model, pixels = image
    rows = compare(model, pixels, methods=["IG", "Saliency", "LRP", "GI"])
    forward = lambda x: model(x).logits  # noqa: E731
    assert rows.target == int(model(pixels).logits.argmax())
    expected = IntegratedGradients(forward).attribute(pixels, target=rows.target)
    torch.testing.assert_close(rows["IG"].relevance, expected[0].float(), atol=1e-4, rtol=1e-3)
    expected = Saliency(forward).attribute(pixels.clone().requires_grad_(), target=rows.target)
    torch.testing.assert_close(rows["Saliency"].relevance, expected[0])
    assert rows["LRP"].relevance.shape == pixels.shape[1:]
    assert torch.equal(rows.image, pixels[0]) and rows.tokens == ()
    black = compare(model, pixels, methods=["IG"], baseline=-1.0)
    assert black.baseline == "-1 everywhere"
    assert black["IG"].sum + black["IG"].delta == pytest.approx(
        (model(pixels).logits - model(-torch.ones_like(pixels)).logits)[0, rows.target].item(),
        abs=1e-3,
    )


def test_a_forward_function_and_embedded_tokens(text):
    model, inputs, tokens, _ = text
    forward, embedding = by_hand(model, inputs)
    rows = compare(
        forward, embedding(inputs["input_ids"]).detach(), 1, methods=["LRP", "IG"], tokens=tokens
    )
    assert rows["LRP"].relevance.shape == (len(tokens),)
    assert rows.image is None and "charming" in rows.terminal(80, False)


def test_tokens_of_what_is_no_image_are_no_patches():
    class Attends(nn.Module):
        def forward(self, x):  # 16 tokens of 64 features: 2 x 8 patches, if it were a picture
            return (torch.softmax(x @ x.mT, -1) @ x).mean(1)[:, :3]

    rows = compare(Attends(), torch.randn(1, 16, 64), 1, methods=["Rollout", "LRP"])
    assert rows["Rollout"].relevance is None and "give the names" in rows["Rollout"].error
    assert rows["LRP"].relevance.shape == (16, 64)


def test_nothing_of_the_model_changes(text, untouched):
    with untouched(text[0]):
        compare(*text[:2], 1)


def test_works_under_inference_mode(text):
    with torch.inference_mode():
        rows = compare(*text[:2], 1, methods=["IG", "GradientShap", "Saliency", "LRP"])
    assert not rows.errors


def test_a_method_of_ones_own(text):
    rows = compare(*text[:2], 1, methods=["LRP", ("spread", lambda m: ConservativeLRP(
        m, bias="distribute"))])  # fmt: skip
    assert rows["spread"].sum == pytest.approx(rows.output, abs=1e-3) and rows["spread"].signed
    with pytest.raises(KeyError):
        rows["IG"]


def test_names_that_differ_by_a_dot_are_two_methods(text):
    rows = compare(*text[:2], 1, methods=[
        (f"gamma {gamma}", lambda m, g=gamma: ConservativeLRP(m, "lrp-gamma" if g == 10 else "lrp"))
        for gamma in (1.0, 10)
    ])  # fmt: skip
    assert [rows[row.name] is row for row in rows] == [True, True]
    assert rows["Gamma (10)"] is rows["gamma 1.0"]  # in another spelling they are the same


@pytest.mark.parametrize("make", [TokenIntegratedGradients, TokenGradientShap, TokenSaliency])
def test_captums_methods_take_the_targets_of_the_others(make, text):
    model, inputs, *_ = text
    explainer, expected = make(model), make(model).attribute(inputs, 1)
    for target in ("positive", ["positive"], (1,), torch.tensor([1], dtype=torch.uint8)):
        assert torch.equal(explainer.attribute(inputs, target), expected)
    for target in ("pos", 2, [1, 1], True, 1.0, None):
        with pytest.raises(TargetError):
            explainer.attribute(inputs, target)


@pytest.mark.parametrize("sums_up", [True, False])
@pytest.mark.parametrize("least", [0.0, -1.0])
def test_what_sums_up_has_a_sign_even_if_nothing_is_negative(text, sums_up, least):
    class Own:
        def __init__(self, model):
            pass

        def has_convergence_delta(self):
            return sums_up

        def attribute(self, inputs, return_convergence_delta=False, **_):
            relevance = torch.arange(inputs["input_ids"].numel())[None] + least
            return (relevance, torch.zeros(1)) if return_convergence_delta else relevance

    rows = compare(*text[:2], 1, methods=[("own", Own)])
    assert rows["own"].signed == (sums_up or least < 0)


def test_rounding_errors_are_not_drawn(everything):
    # a norm right behind the embeddings is blind to their scale
    assert everything["GI"].note == "zero up to rounding"
    assert everything["GI"].relevance.abs().max() < 1e-5
    assert everything["LRP"].note == ""
    assert "(zero up to rounding)" in everything.terminal(200, True)


# What does not apply


class Broken:
    def __init__(self, error):
        self.error = error

    def has_convergence_delta(self):
        return False

    def attribute(self, inputs, **_):
        if isinstance(self.error, Exception):
            raise self.error
        return self.error


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (InputError("no attention here"), "no attention here"),
        (NotImplementedError("later"), "later"),
        (RuntimeError("two\nlines"), "RuntimeError: two lines"),
        (
            torch.full((1, 8), torch.nan),
            "the relevance is NaN or infinite; explain in single precision, or try another method",
        ),
        (torch.zeros(2, 8), "the relevance has the shape (2, 8), not (1, ...)"),
        (torch.zeros(1, 5), "the relevance has the shape (1, 5) for 8 tokens"),
    ],
)
def test_a_method_that_does_not_apply_is_a_row_with_the_reason(text, result, reason):
    rows = compare(*text[:2], 1, methods=["LRP", ("own", lambda _: Broken(result))])
    assert rows.errors == {"own": reason}
    assert rows["own"].relevance is None and rows["own"].sum is None
    for shown in (rows.terminal(99, False), rows.terminal(99, True), str(rows), rows.html()):
        assert reason in html_module.unescape(shown)


def test_if_none_applies_that_is_an_error(text):
    first = ("a", lambda _: Broken(InputError("why a")))
    second = ("b", lambda _: Broken(NotImplementedError("why b")))
    with pytest.raises(InputError, match=r"^why a$"):
        compare(*text[:2], 1, methods=[first])
    with pytest.raises(CaptumLRPError, match=r"none of the methods.*a: why a; b: why b"):
        compare(*text[:2], 1, methods=[first, second])


def test_arguments_that_do_not_fit(text, image):
    model, inputs, tokens, _ = text
    ids = inputs["input_ids"]
    with pytest.raises(InputError, match="one example, not a batch of shape"):
        compare(model, ids.repeat(2, 1))
    with pytest.raises(InputError, match="one input, not 2"):
        compare(model, (ids, ids))
    with pytest.raises(InputError, match="7 names of tokens for 8 tokens"):
        compare(model, inputs, tokens=tokens[1:])
    with pytest.raises(InputError, match="2 entries of special"):
        compare(model, inputs, special=[True, False])
    with pytest.raises(TargetError):
        compare(model, inputs, 2)
    with pytest.raises(TargetError, match="a target is needed"):
        compare(lambda x: model.bert(x)[0], ids)
    with pytest.raises(NonFiniteError):
        compare(lambda x: image[0](x).logits * torch.nan, image[1])
    with pytest.raises(InputError, match="a token id"):
        TokenIntegratedGradients(model, baseline=0.5).attribute(inputs, 1)
    with pytest.raises(InputError, match=r"baseline has the shape \(1, 3\)"):
        TokenIntegratedGradients(model, baseline=torch.zeros(1, 3).long()).attribute(inputs, 1)


# Drawings


def drawn(**more):
    strips = [
        Strip("GI", [0.0, 1.0, -0.5, 0.25], numbers=(("sum", "+0.75"),)),
        Strip("A-Last", [0.1, 0.2, 0.3, 0.4], signed=False, numbers=(("sum", "+1.0"),)),
        Strip("<b>", error="no <attention>"),
        Strip("LRP", [0.0, 2.0, 0.0, 0.0]),
    ]
    return TextComparison(["[CLS]", "charm", "##ing", "<i>"], strips, title="<t> $x$", **more)


def test_terminal_without_colours_has_a_column_for_each_word():
    shown = comparison_terminal(drawn(), 80, False).splitlines()
    assert shown[0].split() == ["[CLS]", "charming", "<i>"]
    assert shown[1].split() == ["GI", "+0.00", "+0.50", "+0.25"]
    assert shown[2].split() == ["A-Last", "0.10", "0.50", "0.40"]  # no sign
    assert shown[3].split(maxsplit=1) == ["<b>", "(no <attention>)"]
    nothing = comparison_terminal(TextComparison([], [Strip("LRP", [])]), 80, False)
    assert nothing.split(maxsplit=1) == ["LRP", "(no result)"]
    ends = [[m.end() for m in re.finditer(r"\S+", line)][-3:] for line in (shown[0], shown[1])]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("width", [24, 40, 80])
def test_terminal_keeps_to_its_width(colour, width):
    tokens = ["word", "x" * 60, "映画" * 9, "."] * 5
    strips = [Strip("LRP", [1.0] * 20), Strip("IG", [1e-6] * 20)]
    shown = comparison_terminal(TextComparison(tokens, strips), width, colour)
    lines = ESCAPES.sub("", shown).splitlines()
    assert max(map(cells, lines[:-1])) <= width
    assert shown.count("LRP") == (1 if colour else shown.count("IG"))


def test_each_strip_has_its_own_scale_unless_they_share_one():
    own = [scale for _, _, scale in drawn().lines()]
    common = [scale for _, _, scale in drawn(common_scale=True).lines()]
    assert own == [0.5, 0.5, 1.0, 2.0]
    assert common == [2.0, 0.5, 1.0, 2.0]


def test_methods_without_a_sign_have_their_own_colours():
    assert shade(0.0, 1.0, False)[0] == shade(0.0, 1.0, True)[0]
    red, green, blue = shade(1.0, 1.0, False)[0]
    assert blue > red > green
    assert shade(5.0, 1.0, False) == shade(1.0, 1.0, False)


@pytest.mark.parametrize("step", range(21))
def test_text_is_readable_on_purple(step):
    def luminance(rgb):
        parts = [c / 255 for c in rgb]
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    ground, ink = (luminance(rgb) for rgb in shade(step / 20, 1.0, False))
    assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) >= 3.9


def test_decimals_fit_the_scale():
    assert [decimals_for(x) for x in (1000.0, 1.0, 0.1, 0.05, 1e-4, 1e-20, 0.0)] == [
        2, 2, 2, 3, 5, 8, 2,
    ]  # fmt: skip


def test_html_is_escaped_and_self_contained():
    page = comparison_html([drawn(), drawn()], title="<h>", facts=[("<f>", "<g>")])
    for raw in ("<b></th>", "<i></span>", "<t>", "<h>", "<f>", "<g>", "<attention>", "<script"):
        assert raw not in page
    for escaped in ("&lt;b&gt;", "&lt;i&gt;", "&lt;t&gt;", "&lt;attention&gt;"):
        assert page.count(escaped) >= 2
    assert not re.search(r"https?://|src=|@import|url\(", page)
    assert page.count("<table>") == 2 and 'data-r="+0.5"' in page
    assert page.count("<tr>") == page.count("</tr>") == 10


@pytest.mark.parametrize(
    ("signed", "there", "missing"),
    [(True, "for", "largest (no sign)"), (False, "largest (no sign)", "against")],
)
def test_legends_tell_only_the_colours_that_are_there(signed, there, missing):
    pytest.importorskip("matplotlib")
    long = "no attention " * 30
    strips = [Strip("one", [0.5], signed=signed), Strip("other", error=long)]
    compared = TextComparison(["film"], strips)
    shown = ESCAPES.sub("", comparison_terminal(compared, 80, True)).splitlines()[-1]
    drawing = comparison_figure(compared)
    texts = [text.get_text() for axes in drawing.axes for text in axes.texts]
    for said in (shown.split("  "), texts):
        stripped = [part.strip() for part in said]
        assert any(part.endswith(there) for part in stripped)
        assert not any(part.endswith(missing) or part.startswith(missing) for part in stripped)
    (reason,) = [t for axes in drawing.axes for t in axes.texts if "no att" in t.get_text()]
    assert reason.get_text().endswith(" ...") and len(reason.get_text()) < len(long)
    assert long.startswith(reason.get_text()[:-4])
    box = reason.get_window_extent(drawing.canvas.get_renderer())
    assert box.x1 <= drawing.bbox.x1  # within the picture


def picture_of(drawing):
    pil = pytest.importorskip("PIL.Image")
    content = io.BytesIO()
    drawing.savefig(content, format="png", dpi=100)
    with pil.open(content) as picture:
        picture.load()
        return picture.convert("RGB")


def test_figure_shows_both_scales_and_grows_with_the_text(recwarn):
    pytest.importorskip("matplotlib")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    np = pytest.importorskip("numpy")
    before = pyplot.get_fignums()
    picture = picture_of(comparison_figure(drawn(facts=[("baseline", "$0$")])))
    pixels = np.asarray(picture).reshape(-1, 3).astype(int)
    for colour in (shade(1.0, 1.0, True)[0], shade(0.5, 0.5, False)[0]):
        assert (np.abs(pixels - colour).max(1) <= 2).sum() > 100
    long = TextComparison(["word"] * 100, [Strip("LRP", [1.0] * 100)] * 3)
    assert picture.size[0] == 650
    assert picture_of(comparison_figure(long)).size[1] > picture.size[1]
    assert pyplot.get_fignums() == before
    assert not [w for w in recwarn if "lyph" in str(w.message)]


def test_image_figure_has_a_panel_for_each_method():
    pytest.importorskip("matplotlib")
    strips = [
        Strip("LRP", torch.randn(1, 8, 8)), Strip("Rollout", torch.rand(2, 2), signed=False),
        Strip("A-Flow", error="no attention " * 30), Strip("GI", torch.zeros(1, 8, 8)),
    ]  # fmt: skip
    drawing = image_comparison_figure(torch.rand(1, 8, 8), strips, title="$t$", facts=[("a", "b")])
    assert [axes.get_title() for axes in drawing.axes[:5]] == [
        "input", "LRP", "Rollout", "A-Flow", "GI",
    ]  # fmt: skip
    low, high = drawing.axes[1].images[0].get_clim()
    assert low == -high
    assert drawing.axes[2].images[0].get_clim()[0] == 0
    assert picture_of(drawing).size[0] == 650
    shared = image_comparison_figure(torch.rand(3, 8, 8), strips, common_scale=True)
    assert shared.axes[1].images[0].get_clim() == shared.axes[4].images[0].get_clim()


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("width", [24, 60, 100])
def test_images_in_the_terminal(colour, width):
    strips = [
        Strip("LRP", torch.randn(1, 28, 28)), Strip("Rollout", torch.rand(7, 7), signed=False),
        Strip("A-Flow", error="none"), Strip("a" * 60, torch.ones(3, 224, 224)),
    ]  # fmt: skip
    shown = image_comparison_terminal(strips, width, colour)
    lines = ESCAPES.sub("", shown).splitlines()
    assert max(map(cells, lines[: None if colour else -1])) <= width
    assert "A-Flow: (none)" in lines


def test_image_page(image):
    pytest.importorskip("matplotlib")
    page = compare(*image, methods=["LRP", "IG"]).html(title="<4>", facts=[("a", "b")])
    assert "data:image/png;base64," in page and "&lt;4&gt;" in page
    assert "0 everywhere" in page


# Command line


@pytest.fixture
def run(capsys):
    def call(*arguments):
        status = main(["compare", *map(str, arguments)])
        return (status, *capsys.readouterr())

    return call


def test_command_prints_every_method(run):
    status, out, err = run(SENTENCE)
    assert (status, err) == (0, "")
    assert re.match(
        r"prediction  positive \(probability 0\.\d+\)\nexplained   logit of positive .*\n"
        r"baseline    token 0 \(padding\) everywhere\n",
        out,
    )
    for method in METHODS:
        assert re.search(rf"^{re.escape(method.name)} ", out, re.M)
    assert "charming" in out and "\x1b" not in out


def test_command_agrees_with_the_function(run, text):
    _, out, _ = run(SENTENCE, "--methods", "ah+ln, LRP", "--target", "negative", "--pieces")
    model, inputs, _, _ = text
    table = dict(re.findall(r"^(\S+) +([+-]\d+\.\d{3}) +[+-]\S+ +\d", out, re.M))
    assert set(table) == {"LRP(AH+LN)", "LRP"}
    for name, row in zip(table, compare(model, inputs, 0, methods=list(table)), strict=True):
        assert float(table[name]) == pytest.approx(row.sum, abs=1e-3)
    assert "baseline" not in out


def test_colours(run, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def shown(*options):
        monkeypatch.setattr(sys, "stdout", Terminal())
        assert main(["compare", "good film", "--methods", "lrp", *options]) == 0
        return sys.stdout.getvalue()

    assert "\x1b[48;2;" in shown()
    assert "\x1b" not in shown("--no-color")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown()


def test_files_are_written(run, tmp_path):
    pytest.importorskip("matplotlib")
    pil = pytest.importorskip("PIL.Image")
    status, _, err = run(
        "<script>alert(1)</script> good", "--methods", "gi,lrp,saliency",
        "--html", tmp_path / "a.html", "--png", tmp_path / "a.png",
    )  # fmt: skip
    assert status == 0 and err.count("note: wrote") == 2
    assert "<script" not in (tmp_path / "a.html").read_text(encoding="utf-8")
    with pil.open(tmp_path / "a.png") as picture:
        assert picture.size[0] == 1300


def test_an_image(run, tmp_path, image):
    np = pytest.importorskip("numpy")
    pytest.importorskip("matplotlib")
    np.save(tmp_path / "four.npy", image[1][0].numpy())
    status, out, err = run(
        "--image", tmp_path / "four.npy", "--png", tmp_path / "a.png", "--html", tmp_path / "a.html"
    )
    assert status == 0 and err.count("note: wrote") == 2
    assert out.startswith("prediction  4") and "baseline    0 everywhere" in out
    assert re.search(r"^LRP +[+-]", out, re.M)
    assert "base64" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_many_texts(run, tmp_path):
    (tmp_path / "table.tsv").write_text(
        "label\tsentence\n1\ta fine film\n\n0\tdull <b>\n1\t" + "very " * 300 + "\n1\tlast\n",
        encoding="utf-8",
    )
    options = ("--file", tmp_path / "table.tsv", "--methods", "lrp,ig", "--html", tmp_path / "p")
    status, out, err = run(*options)
    assert status == 0
    assert re.findall(r"^(\d)\. (.*)$", out, re.M) == [
        ("1", "a fine film"), ("2", "dull <b>"), ("3", "last"),
    ]  # fmt: skip
    assert "note: line 5 is left out: the text has" in err
    page = (tmp_path / "p").read_text(encoding="utf-8")
    assert page.count("<table>") == 3 and "2. dull &lt;b&gt;" in page
    status, out, _ = run(*options, "--limit", "1")
    assert status == 0 and "2. " not in out


def test_texts_of_files(tmp_path):
    path = tmp_path / "lines"
    path.write_text("one\n\n two \nthree", encoding="utf-8")
    assert read_table(path).rows == [(1, "one", ""), (3, "two", ""), (4, "three", "")]
    path.write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="holds no text"):
        read_table(path)
    path.write_text("a\tb\n1\t2\n", encoding="utf-8")
    with pytest.raises(InputError, match='without a column "sentence"'):
        read_table(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="no UTF-8 text"):
        read_table(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--methods", "lrp,nope"], "unknown method 'nope'; the methods are: Random, A-Last"),
        (["x", "--methods", ","], "names no method"),
        (["x", "--limit", "0"], "'0' is no positive number"),
        (["x", "--limit", "3"], "--limit is for --file"),
        (["x", "--file", "y"], "give one of TEXT, --image and --file"),
        (["--file", "y", "--png", "z"], "--png is for a single text or image"),
    ],
)
def test_usage_errors(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1]


def test_failures_are_one_line(run, tmp_path):
    for status, message, arguments in (
        (1, "cannot read", ["--file", tmp_path / "missing"]),
        (1, "there is no folder", ["x", "--model", "./nowhere"]),
        (1, "there is no class", ["x", "--target", "great"]),
        (1, "there is no folder", ["x", "--html", tmp_path / "no" / "x.html"]),
    ):
        found, out, err = run(*arguments)
        assert (found, out) == (status, "")
        assert err.startswith("captum_lrp_tx: ") and err.count("\n") == 1 and message in err


def test_help_lists_the_methods(run):
    status, out, _ = run("--help")
    assert status == 0 and "LRP(AH+LN)" in out and "--common-scale" in out
