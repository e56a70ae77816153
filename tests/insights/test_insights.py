"""Captum Insights: the list of methods, the pages, and what arrives in a browser.

What needs Insights runs under captum 0.8, the last version that has it.
"""

from __future__ import annotations

import base64
import copy
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients
from torch import nn

pytest.importorskip("transformers")

from captum_lrp_tx import (
    AttentionFlow,
    AttentionLast,
    AttentionRollout,
    Composite,
    ConservativeGI,
    ConservativeLRP,
    GenericAttention,
    RandomAttribution,
    TokenIntegratedGradients,
    TransformerAttribution,
    insights,
    rules,
)
from captum_lrp_tx.cli import main
from captum_lrp_tx.errors import (
    CaptumLRPError,
    InputError,
    MissingPackageError,
    UnsupportedModelError,
)
from captum_lrp_tx.insights import methods, registration
from captum_lrp_tx.models import digit_samples, digits, sentiment
from captum_lrp_tx.visualization.colours import colour_of

pytestmark = pytest.mark.captum

HAS_INSIGHTS = importlib.util.find_spec("captum.insights") is not None
HAS_SERVER = HAS_INSIGHTS and all(map(importlib.util.find_spec, ("flask", "flask_compress")))
needs_insights = pytest.mark.skipif(
    not HAS_SERVER, reason="needs captum 0.8, flask and flask-compress (extra: insights)"
)
TEXT = "the plot is thin, but the ending is charming"


@pytest.fixture(scope="module")
def text_model():
    return sentiment()


@pytest.fixture(scope="module")
def digit_model():
    return digits()


@pytest.fixture(scope="module")
def encoded(text_model):
    return text_model[1](TEXT, return_tensors="pt")


@pytest.fixture
def config():
    """The lists of Insights, which must be as before at the end of the test."""
    module = registration.insights_module("config")
    lists = (module.ATTRIBUTION_NAMES_TO_METHODS, module.ATTRIBUTION_METHOD_CONFIG)
    before = [list(entries.items()) for entries in lists]
    yield module
    insights.unregister()
    assert lists[0] is module.ATTRIBUTION_NAMES_TO_METHODS
    assert lists[1] is module.ATTRIBUTION_METHOD_CONFIG
    after = [list(entries.items()) for entries in lists]
    for entries, others in zip(after, before, strict=True):
        assert [key for key, _ in entries] == [key for key, _ in others]
        assert all(a is b for (_, a), (_, b) in zip(entries, others, strict=True))


# ---- without Insights ----------------------------------------------------------------------------


def test_import_needs_no_server():
    code = (
        "import sys; sys.modules['flask'] = None\n"
        "from captum_lrp_tx import errors, insights\n"
        "insights.unregister()\n"
        "assert 'captum.insights' not in sys.modules\n"
        "try: insights.register()\n"
        "except errors.MissingPackageError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert "pip install" in done.stdout and "flask-compress" in done.stdout


@pytest.fixture
def retired(monkeypatch):
    find_spec = importlib.util.find_spec

    def without(name, *more):
        return None if name == "captum.insights" else find_spec(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)


@pytest.mark.parametrize("simulated", [False, True])
def test_retired_insights_are_explained(simulated, request, text_model, capsys):
    if simulated:
        request.getfixturevalue("retired")
    elif HAS_INSIGHTS:
        pytest.skip("this captum has Insights")
    calls = [
        insights.register,
        lambda: insights.text_page(*text_model, [TEXT], [0]),
        lambda: insights.image_page(nn.Identity(), torch.zeros(1, 1, 2, 2), [0], ["a"]),
        lambda: insights.PageServer({"a": object()}),
    ]
    for call in calls:
        with pytest.raises(MissingPackageError) as caught:
            call()
        for part in ("after captum 0.8", 'pip install "captum<0.9"', "report(...)", "tx report"):
            assert part in str(caught.value)
        assert isinstance(caught.value, ImportError) and isinstance(caught.value, CaptumLRPError)
    insights.unregister()  # nothing to undo, nothing to complain about
    assert main(["insights", "--no-browser"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1 and "retired after captum 0.8" in printed.err


# ---- methods as Insights calls them --------------------------------------------------------------


def call(cls, model, inputs, target, additional=None, **arguments):
    """As ``AttributionCalculation.calculate_attribution`` does."""
    method = cls(model)
    return method.attribute.__wrapped__(
        method, (inputs,), additional_forward_args=additional, target=target, **arguments
    )


GAMMA = rules.GeneralizedGammaRule(gamma=0.25, epsilon=0.01)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, lambda m: ConservativeLRP(m)),
        ({"rules": "attnlrp"}, lambda m: ConservativeLRP(m, "attnlrp")),
        ({"rules": "ah+ln", "epsilon": 0.1}, lambda m: ConservativeGI(m)),
        ({"epsilon": 0.1}, lambda m: ConservativeLRP(m, epsilon=0.1)),
        ({"bias": "distribute"}, lambda m: ConservativeLRP(m, bias="distribute")),
        (
            {"gamma": 0.25, "epsilon": 0.01, "bias": "distribute"},
            lambda m: ConservativeLRP(
                m, Composite({nn.Linear: GAMMA, nn.Conv2d: GAMMA}, base="lrp"), bias="distribute"
            ),
        ),
    ],
)
def test_arguments_of_conservative_lrp(arguments, expected, digit_model):
    images = digit_samples()[0][4:5]
    found = call(methods.FORMS[ConservativeLRP], digit_model, images, torch.tensor(2), **arguments)
    reference = expected(digit_model).attribute(images, target=2)
    assert isinstance(found, tuple) and len(found) == 1
    torch.testing.assert_close(found[0], reference)
    if arguments and arguments.get("rules") != "attnlrp":
        default = ConservativeLRP(digit_model).attribute(images, target=2)
        assert (reference - default).abs().max() > 1e-3 * default.abs().max()


def test_gamma_gives_way_to_the_rules_of_modules():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 2)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    model[0].rule = rules.FlatRule()
    found = call(methods.FORMS[ConservativeLRP], model, x, 1, gamma=0.5)[0]
    composite = Composite({"2": rules.GeneralizedGammaRule(gamma=0.5)}, base="lrp")
    torch.testing.assert_close(found, ConservativeLRP(model, composite).attribute(x, target=1))


def test_arguments_of_conservative_gi(digit_model):
    images = digit_samples()[0][6:7]
    found = call(methods.FORMS[ConservativeGI], digit_model, images, 3, rules="gi")[0]
    plain = InputXGradient(lambda x: digit_model(x).logits).attribute(images, target=3)
    torch.testing.assert_close(found, plain)
    found = call(methods.FORMS[ConservativeGI], digit_model, images, 3)[0]
    torch.testing.assert_close(found, ConservativeGI(digit_model).attribute(images, target=3))


MAPS = [
    (methods.FORMS[AttentionLast], AttentionLast, {"query": "mean"}, {}),
    (methods.FORMS[AttentionRollout], AttentionRollout, {"head_fusion": "max"}, {}),
    (methods.FORMS[GenericAttention], GenericAttention, {"start_layer": 1}, {}),
    (methods.FORMS[TransformerAttribution], TransformerAttribution, {}, {"form": "vit"}),
]


@pytest.mark.parametrize(("cls", "base", "arguments", "more"), MAPS)
def test_patches_become_pixels(cls, base, arguments, more, digit_model):
    images = digit_samples()[0][8:10]
    assert issubclass(cls, base) and cls.get_name() == base.get_name()
    found = call(cls, digit_model, images, 4, **arguments)[0]
    tokens = base(digit_model, **arguments, **more).attribute(images, target=4)
    assert found.shape == images.shape and tokens.shape == (2, 50)
    # averaged over patches of 4 x 4 pixels they are the tokens after the class token
    patches = nn.functional.avg_pool2d(found, 4)[:, 0] * 16
    torch.testing.assert_close(patches.flatten(1), tokens[:, 1:])
    assert found.reshape(2, 7, 4, 7, 4).transpose(2, 3).flatten(3).std(3).max() < 1e-7


@pytest.mark.parametrize(("cls", "base", "arguments", "more"), MAPS)
def test_tokens_keep_their_sum(cls, base, arguments, more, text_model, encoded):
    model = text_model[0]
    embedded = insights.EmbeddedTokens(model)
    x, mask = embedded.embed(encoded["input_ids"]), encoded["attention_mask"]
    found = call(cls, embedded, x, 1, (mask,), **arguments)[0]
    expected = base(model, **arguments).attribute(encoded, target=1)
    assert found.shape == x.shape and expected.abs().max() > 1e-4
    torch.testing.assert_close(found.sum(-1), expected, rtol=1e-3, atol=1e-6)


def test_attention_flow(text_model, encoded):
    pytest.importorskip("scipy")

    embedded = insights.EmbeddedTokens(text_model[0])
    x, mask = embedded.embed(encoded["input_ids"]), encoded["attention_mask"]
    found = call(methods.FORMS[AttentionFlow], embedded, x, 1, (mask,), query="mean")[0]
    expected = AttentionFlow(text_model[0], query="mean").attribute(encoded)
    torch.testing.assert_close(found.sum(-1), expected, rtol=1e-3, atol=1e-6)


def test_random_takes_its_seed():
    x = torch.ones(1, 3, 4)
    found = call(methods.FORMS[RandomAttribution], nn.Identity(), x, None, seed=7)
    torch.testing.assert_close(found[0], RandomAttribution(nn.Identity(), 7).attribute(x))


def test_tokens_that_fit_no_feature():
    for tokens in (30, 53):
        with pytest.raises(UnsupportedModelError, match="no grid"):
            methods.spread_evenly(torch.ones(1, tokens), torch.zeros(1, 1, 28, 28))
    with pytest.raises(UnsupportedModelError, match="cannot be shown"):
        methods.spread_evenly(torch.ones(1, 4), torch.zeros(1, 5, 8))


@pytest.mark.parametrize("value", [None, "3", 0.5, float("nan"), True])
def test_whole_numbers(value):
    with pytest.raises(InputError, match="whole number"):
        methods.whole_number(value)
    assert methods.whole_number(3.0) == 3


# ---- embedded tokens -----------------------------------------------------------------------------


@pytest.mark.parametrize("bias", ["absorb", "distribute"])
def test_embedded_tokens_have_the_relevance_of_their_ids(bias, text_model, encoded, untouched):
    model = text_model[0]
    embedded = insights.EmbeddedTokens(model)
    with untouched(model):
        x, mask = embedded.embed(encoded["input_ids"]), encoded["attention_mask"]
        logits = embedded(x, mask)
        explainer = ConservativeLRP(embedded, bias=bias)
        found = explainer.attribute(x, 1, (mask,))
    torch.testing.assert_close(logits, model(**encoded).logits, rtol=1e-4, atol=1e-5)
    parts = ConservativeLRP(model, bias=bias).attribute(encoded, 1, positions="separate")
    whole = torch.stack([*parts.values()]).sum(0)
    torch.testing.assert_close(found.sum(-1), whole, rtol=1e-3, atol=1e-5)
    words = parts["bert.embeddings.word_embeddings"]
    assert (words - whole).abs().max() > 0.02 * whole.abs().max()  # the positions do matter


def test_embedded_tokens_start_from_padding(text_model, encoded):
    model, tokenizer = text_model
    embedded = insights.EmbeddedTokens(model)
    x, mask = embedded.embed(encoded["input_ids"]), encoded["attention_mask"]
    # as the page does: without the dimension of the batch
    baseline = embedded.padding(x[0])[None]
    found = IntegratedGradients(embedded).attribute(
        x, baseline, 1, (mask,), n_steps=20, internal_batch_size=5
    )
    tokens = TokenIntegratedGradients(model, baseline=tokenizer.pad_token_id, n_steps=20)
    expected = tokens.attribute(encoded, target=1)
    torch.testing.assert_close(found.sum(-1), expected, rtol=1e-3, atol=1e-4)


def test_embedded_tokens_follow_weights_that_were_trained(text_model, encoded):
    model = copy.deepcopy(text_model[0])
    embedded = insights.EmbeddedTokens(model)
    before = embedded.embed(encoded["input_ids"])
    with torch.no_grad():
        model.bert.embeddings.position_embeddings.weight.mul_(2)
    after = embedded.embed(encoded["input_ids"])
    assert not torch.allclose(after, before)
    assert torch.equal(after, insights.EmbeddedTokens(model).embed(encoded["input_ids"]))


def test_embedded_tokens_need_a_hugging_face_model():
    with pytest.raises(InputError, match="get_input_embeddings"):
        insights.EmbeddedTokens(nn.Linear(2, 2))


# ---- the list of methods -------------------------------------------------------------------------


@needs_insights
class TestRegistration:
    def test_it_can_be_undone(self, config):
        names = insights.register().names
        methods_of, parameters = (
            config.ATTRIBUTION_NAMES_TO_METHODS, config.ATTRIBUTION_METHOD_CONFIG,
        )  # fmt: skip
        assert list(methods_of)[-len(names) :] == list(names)
        assert issubclass(methods_of["Conservative LRP"], ConservativeLRP)
        assert issubclass(methods_of[ConservativeGI.get_name()], ConservativeGI)
        fields = parameters["Conservative LRP"].params
        assert list(fields) == ["rules", "epsilon", "gamma", "bias"]
        assert {*fields["rules"].limit} == {*rules.PRESETS} and fields["rules"].type == "enum"
        insights.unregister()
        assert not {*names} & ({*methods_of} | {*parameters})
        insights.unregister()

    def test_twice_is_once(self, config):
        first = insights.register()
        before = [*config.ATTRIBUTION_NAMES_TO_METHODS.items()]
        assert insights.register().names == first.names
        assert [*config.ATTRIBUTION_NAMES_TO_METHODS.items()] == before

    def test_a_method_of_the_same_name_stays(self, config):
        own, name = type("Own", (IntegratedGradients,), {}), "Conservative LRP"
        config.ATTRIBUTION_NAMES_TO_METHODS[name] = own
        parameters = config.ConfigParameters(params={})
        config.ATTRIBUTION_METHOD_CONFIG[name] = parameters
        try:
            names = insights.register().names
            assert config.ATTRIBUTION_NAMES_TO_METHODS[name] is own
            assert config.ATTRIBUTION_METHOD_CONFIG[name] is parameters
            assert names[0] == "Conservative LRP (captum_lrp_tx)"
            ours = config.ATTRIBUTION_NAMES_TO_METHODS[names[0]]
            assert issubclass(ours, ConservativeLRP)
            insights.unregister()
            assert config.ATTRIBUTION_NAMES_TO_METHODS[name] is own
            assert config.ATTRIBUTION_METHOD_CONFIG[name] is parameters
        finally:
            del config.ATTRIBUTION_NAMES_TO_METHODS[name]
            del config.ATTRIBUTION_METHOD_CONFIG[name]

    def test_what_took_its_place_stays(self, config):
        name = insights.register().names[0]
        own = type("Own", (IntegratedGradients,), {})
        config.ATTRIBUTION_NAMES_TO_METHODS[name] = own
        insights.unregister()
        assert config.ATTRIBUTION_NAMES_TO_METHODS.pop(name) is own

    def test_as_a_context_manager(self, config):
        methods_of = config.ATTRIBUTION_NAMES_TO_METHODS
        with pytest.raises(KeyError), insights.register() as outer:
            with insights.register() as inner:
                assert inner.names == outer.names
            assert {*outer.names} <= {*methods_of}  # they were there before the inner block
            raise KeyError
        assert not {*outer.names} & {*methods_of}

    def test_from_many_threads(self, config):
        errors = []

        def work():
            try:
                for _ in range(20):
                    names = insights.register().names
                    assert len({*names}) == len(methods.FORMS)
                    insights.unregister()
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors

    def test_every_method_with_what_the_page_sends(self, config, text_model, digit_model, encoded):
        from captum.insights.attr_vis.attribution_calculation import AttributionCalculation

        embedded = insights.EmbeddedTokens(text_model[0])
        x = embedded.embed(encoded["input_ids"])
        names = insights.register().names
        assert len(names) == 8
        for name in names:
            cls = config.ATTRIBUTION_NAMES_TO_METHODS[name]
            if cls is methods.FORMS[AttentionFlow] and not importlib.util.find_spec("scipy"):
                continue
            fields = config.ATTRIBUTION_METHOD_CONFIG[name].params
            sent = json.loads(json.dumps({key: field.value for key, field in fields.items()}))
            for model, data, additional in (
                (embedded, x, (encoded["attention_mask"],)),
                (digit_model, digit_samples()[0][:1], None),
            ):
                page = AttributionCalculation([model], ["a", "b"], [])
                found = page.calculate_attribution(
                    None, (data,), additional, torch.tensor(1), name, dict(sent), model
                )
                expected = cls(model).attribute((data,), 1, additional)
                assert found[0].shape == data.shape and found[0].abs().sum() > 0, name
                torch.testing.assert_close(found[0], expected[0], msg=name)


# ---- pages and server ----------------------------------------------------------------------------


def settings(method="Conservative LRP", prediction="all", classes=(), **arguments):
    return {
        "attribution_method": method,
        "arguments": arguments,
        "prediction": prediction,
        "classes": list(classes),
    }


def post(url, data):
    request = urllib.request.Request(
        url, json.dumps(data).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def server():
    if not HAS_SERVER:
        pytest.skip("needs captum 0.8, flask and flask-compress (extra: insights)")
    from captum_lrp_tx.cli.insights import shipped_pages

    with insights.PageServer(shipped_pages()) as running:
        yield running


@needs_insights
class TestServer:
    def test_only_this_machine_can_reach_it(self, server):
        host, port = server._server.server_address
        assert host == "127.0.0.1" and server.url == f"http://127.0.0.1:{port}/"

    def test_pages_have_their_own_data(self, server):
        reviews = json.load(urllib.request.urlopen(server.urls["reviews"] + "init", timeout=60))
        digit = json.load(urllib.request.urlopen(server.urls["digits"] + "init", timeout=60))
        first = json.load(urllib.request.urlopen(server.url + "init", timeout=60))
        assert reviews["classes"] == first["classes"] == ["negative", "positive"]
        assert digit["classes"] == list("0123456789")
        assert reviews["selected_method"] == "Conservative LRP"
        html = urllib.request.urlopen(server.url + "digits", timeout=60).read().decode()
        assert re.search(r'href="/digits/" aria-current="page">Digits<', html)
        assert "<title>Captum Insights</title>" in html

    def test_a_filter_that_nothing_passes_ends(self, server):
        url = server.urls["digits"] + "fetch"
        wrong = post(url, settings("Random", "incorrect"))
        assert 0 < len(wrong) < 4
        for (example,) in wrong:
            assert example["predicted"][0]["label"] != example["actual"]["label"]
        (told,) = post(url, settings("Random", "incorrect", ["9"]))
        assert " ".join(told[0]["feature_outputs"][0]["base"]) == "No example passes the filter."
        gone = post(server.urls["digits"] + "attribute",
                    {"inputIndex": 3, "modelIndex": 0, "labelIndex": 1})  # fmt: skip
        assert "press Fetch" in " ".join(gone["feature_outputs"][0]["base"])

    def test_a_method_that_fails_says_why(self, server):
        empty = {"sliding_window_shapes": "", "strides": "", "perturbations_per_eval": 1}
        (told,) = post(server.urls["reviews"] + "fetch", settings("Occlusion", **empty))
        assert " ".join(told[0]["feature_outputs"][0]["base"]).startswith("Occlusion failed: ")
        (told,) = post(server.url + "fetch", settings("Random", seed=None))
        assert "whole number" in " ".join(told[0]["feature_outputs"][0]["base"])

    def test_examples_stay_while_the_method_changes(self, server):
        def shown(*args, **more):
            answer = post(server.url + "fetch", settings(*args, **more))
            return [" ".join(row[0]["feature_outputs"][0]["base"]) for row in answer]

        first = shown("Random", seed=0)
        assert shown("Random", seed=1) == first and len({*first}) == 4
        assert shown("Conservative LRP", rules="gi") == first
        rounds = [first] + [shown("Conservative LRP", rules="gi") for _ in range(4)]
        assert len({text for texts in rounds for text in texts}) == 16 and rounds[4] == rounds[0]

    def test_rounding_errors_are_not_coloured(self, server):
        """Gradient x input is zero behind a norm; Captum's own method goes through the same."""
        for asked in (settings(rules="gi"), settings("Input X Gradient")):
            feature = post(server.url + "fetch", asked)[0][0]["feature_outputs"][0]
            assert feature["name"] == "Review: zero but for rounding"
            assert {*feature["modified"]} == {*feature["relevance"]} == {0.0}

    def test_names_of_pages(self):
        page = object()
        for name in ("", "a b", "a/b", "fetch", "init", "static", "\u00e4"):
            with pytest.raises(InputError, match="name"):
                insights.PageServer({name: page})
        with pytest.raises(InputError, match="no page"):
            insights.PageServer({})

    def test_inputs_that_do_not_fit(self, text_model, digit_model):
        with pytest.raises(InputError, match="no example"):
            insights.text_page(*text_model, [], [])
        with pytest.raises(InputError, match="1 labels for 2"):
            insights.text_page(*text_model, ["a", "b"], [1])
        with pytest.raises(InputError, match="no class 2"):
            insights.text_page(*text_model, ["a"], [2])
        with pytest.raises(InputError, match="float tensor"):
            insights.image_page(digit_model, torch.zeros(1, 28, 28), [1])
        with pytest.raises(InputError, match="classes="):
            insights.image_page(nn.Identity(), torch.zeros(1, 1, 2, 2), [0])

    def test_positions_that_are_not_added_are_refused(self):
        import transformers

        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=16,
        )  # fmt: skip

        class Scaled(transformers.BertForSequenceClassification):
            """Doubles the words that it looks up itself, so that these are not what it is given."""

            def forward(self, input_ids=None, inputs_embeds=None, **more):
                if inputs_embeds is None:
                    inputs_embeds = 2 * self.get_input_embeddings()(input_ids)
                return super().forward(inputs_embeds=inputs_embeds, **more)

        def tokenizer(text, return_tensors):
            ids = torch.tensor([[5, 6, 7]])
            return transformers.BatchEncoding({"input_ids": ids})

        with pytest.raises(UnsupportedModelError, match="report"):
            insights.text_page(Scaled(config).eval(), tokenizer, ["a"], [1])

    def test_port_in_use(self, capsys):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            assert main(["insights", "--no-browser", "--port", str(port)]) == 1
        printed = capsys.readouterr().err.splitlines()
        assert len(printed) == 1 and f"port {port} cannot be used" in printed[0]


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
@needs_insights
def test_command_stops_at_ctrl_c_even_while_it_computes():
    command = [sys.executable, "-m", "captum_lrp_tx", "insights", "--no-browser"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert url, process.communicate(timeout=60)
        slow = settings("Feature Ablation", perturbations_per_eval=1)  # thousands of passes
        answers = []

        def ask():
            try:
                answers.append(post(url[0] + "fetch", slow))
            except OSError as error:
                answers.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(0.5)
        assert not answers
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        thread.join(60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0 and err == "", (out, err)
    assert out.rstrip().endswith("stopped") and isinstance(answers[0], OSError)


# ---- in a browser --------------------------------------------------------------------------------

RECORD = """
window.answers = [];
const original = window.fetch;
window.fetch = (...sent) => original(...sent).then(
  answer => { answer.clone().json().then(data => window.answers.push(data)); return answer; });
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--window-size=1400,1100", f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    started = webdriver.Chrome(options=options, service=service)
    yield started
    started.quit()


class Driver:
    """What a user does on the page."""

    def __init__(self, browser, url):
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.ui import Select, WebDriverWait

        self._by, self._select = By, Select
        self._browser, self._wait = browser, WebDriverWait(browser, 60)
        browser.get(url)
        browser.execute_script(RECORD)
        self._wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, "[name=selected_method] *"))

    def all(self, css, within=None):
        return (within or self._browser).find_elements(self._by.CSS_SELECTOR, css)

    def choose(self, **fields):
        for name, value in fields.items():
            (element,) = self.all(f"select[name={name}]")
            self._select(element).select_by_visible_text(value)

    def chosen(self, name):
        (element,) = self.all(f"select[name={name}]")
        return self._select(element).first_selected_option.text

    def answer_to(self, button):
        """Presses it and waits until what was sent is on the page."""
        before = self._browser.execute_script("return window.answers.length")
        button.click()
        self._wait.until(
            lambda b: (
                b.execute_script("return window.answers.length") > before
                and not self.all("[class*=spinner]")
                and self.all("[class*=visualization-container]")
            )
        )
        return self._browser.execute_script("return window.answers.at(-1)")

    def fetch(self):
        (button,) = [b for b in self.all("form button") if b.text == "Fetch"]
        return self.answer_to(button)

    def rows(self):
        return self.all("[class*=visualization-container]")

    def tokens(self, row):
        """Text, number and background colour of each token on the page."""
        script = """return [...arguments[0].querySelectorAll('[class*=text-feature-word]')].map(
            e => [e.firstChild.textContent,
                  parseFloat(e.querySelector('[class*=label]').textContent),
                  getComputedStyle(e).backgroundColor])"""
        found = self._browser.execute_script(script, row)
        return [(t, v, tuple(map(int, re.findall(r"\d+", colour)[:3]))) for t, v, colour in found]

    def complaints(self):
        return [entry for entry in self._browser.get_log("browser") if entry["level"] == "SEVERE"]


def check_tokens(driver, row, answer, model, inputs, tokenizer, target, explainer):
    """What was sent and what is drawn are the relevance of the token ids."""
    expected = explainer(model).attribute(inputs, target=target)[0]
    (feature,) = answer["feature_outputs"]
    sent = torch.tensor(feature["relevance"])
    scale = expected.abs().max()
    assert scale > 1e-3
    torch.testing.assert_close(sent, expected, rtol=0, atol=1e-4 * float(scale))
    drawn = driver.tokens(row)
    assert [t for t, _, _ in drawn] == tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    percent = 100 * expected / scale
    torch.testing.assert_close(
        torch.tensor([v for _, v, _ in drawn]), percent, rtol=0, atol=0.02, check_dtype=False
    )
    for value, (_, _, drawn_colour) in zip(percent.tolist(), drawn, strict=True):
        colour, _ = colour_of(value, 100)  # of the other figures of the package
        assert max(abs(a - b) for a, b in zip(colour, drawn_colour, strict=True)) <= 3
    return expected


@needs_insights
def test_text_page_in_a_browser(server, browser, text_model):
    from captum_lrp_tx.cli.insights import REVIEWS

    model, tokenizer = text_model
    driver = Driver(browser, server.url)
    names = [option.text for option in driver.all("[name=selected_method] option")]
    assert {cls.get_name() for cls in methods.FORMS.values()} <= {*names}
    driver.choose(selected_method="Conservative LRP")
    defaults = {"rules": "lrp", "epsilon": "0", "gamma": "0", "bias": "absorb"}
    assert {name: driver.chosen(name) for name in defaults} == defaults
    by_tokens = {
        tuple(tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])): text
        for text, _ in REVIEWS
    }

    def check(answers, explainer):
        rows = driver.rows()
        assert len(rows) == len(answers) == 4
        found = []
        for row, (answer,) in zip(rows, answers, strict=True):
            text = by_tokens[tuple(answer["feature_outputs"][0]["base"])]
            inputs = tokenizer(text, return_tensors="pt")
            target = int(model(**inputs).logits.argmax())
            assert answer["active_index"] == target
            found.append(
                check_tokens(driver, row, answer, model, inputs, tokenizer, target, explainer)
            )
        return found

    default = check(driver.fetch(), lambda m: ConservativeLRP(m))
    driver.choose(rules="ah+ln")
    other = check(driver.fetch(), lambda m: ConservativeGI(m))
    for a, b in zip(default, other, strict=True):  # the same examples, other numbers
        assert a.shape == b.shape and (a - b).abs().max() > 0.01 * a.abs().max()
    driver.choose(rules="lrp", epsilon="0.01", gamma="0.25", bias="distribute")
    composite = Composite({nn.Linear: GAMMA}, base="lrp")
    answers = driver.fetch()
    check(answers, lambda m: ConservativeLRP(m, composite, bias="distribute"))
    # the other class of the first example
    row, (answer,) = driver.rows()[0], answers[0]
    other_class = answer["predicted"][1]["index"]
    (button,) = [b for b in driver.all("button", row)
                 if b.text.startswith(answer["predicted"][1]["label"] + " (")]  # fmt: skip
    answer = driver.answer_to(button)
    assert answer["active_index"] == other_class
    text = by_tokens[tuple(answer["feature_outputs"][0]["base"])]
    check_tokens(
        driver, driver.rows()[0], answer, model, tokenizer(text, return_tensors="pt"), tokenizer,
        other_class, lambda m: ConservativeLRP(m, composite, bias="distribute"),
    )  # fmt: skip
    assert driver.complaints() == []


BLUE_TO_RED = [
    (33, 102, 172), (67, 147, 195), (146, 197, 222), (209, 229, 240), (247, 247, 247),
    (253, 219, 199), (244, 165, 130), (214, 96, 77), (178, 24, 43),
]  # fmt: skip


@needs_insights
def test_digit_page_in_a_browser(server, browser, digit_model):
    import matplotlib.image
    import numpy

    images, labels = digit_samples()
    driver = Driver(browser, server.urls["digits"])
    driver.choose(selected_method="Conservative LRP", prediction="Correct")
    first = None
    for preset in ("lrp", "ah+ln"):
        driver.choose(rules=preset)
        answers = driver.fetch()
        pictures = driver.all("img[alt=attribution]")
        originals = driver.all("img[alt=original]")
        assert len(answers) == len(pictures) == len(originals) == 4
        shown = [row[0]["actual"]["index"] for row in answers]
        first = first or shown
        assert shown == first
        for (answer,), picture, original in zip(answers, pictures, originals, strict=True):
            pixels = [
                matplotlib.image.imread(
                    io.BytesIO(base64.b64decode(element.get_attribute("src").split(",")[1]))
                )[..., :3]
                for element in (original, picture)
            ]
            cell = pixels[0].shape[0] // 28
            image = pixels[0][cell // 2 :: cell, cell // 2 :: cell, 0]
            (number,) = [i for i, x in enumerate(images)
                         if numpy.allclose(x[0] / 2 + 0.5, image, atol=0.01)]  # fmt: skip
            assert labels[number] == answer["actual"]["index"] == answer["active_index"]
            expected = ConservativeLRP(digit_model, preset).attribute(
                images[number : number + 1], target=labels[number : number + 1]
            )[0, 0]
            sent = torch.tensor(answer["feature_outputs"][0]["relevance"])
            torch.testing.assert_close(sent, expected, rtol=1e-4, atol=1e-6)
            # colours of the picture, by linear interpolation between the stops of the scale
            scale = numpy.percentile(expected.abs().double().numpy(), 99.5)
            position = (numpy.clip(expected.numpy() / scale, -1, 1) + 1) / 2 * 8
            colours = numpy.stack(
                [numpy.interp(position, range(9), channel) for channel in zip(*BLUE_TO_RED)], -1
            )
            side = cell * 28
            drawn = pixels[1][:side, :side][cell // 2 :: cell, cell // 2 :: cell] * 255
            assert numpy.abs(drawn - colours).max() < 4
    assert driver.complaints() == []


@needs_insights
def test_hostile_tokens_and_classes_are_text_on_the_page(browser, text_model):
    model, tokenizer = text_model
    hostile = "<img src=x onerror=window.hit=1><script>window.hit=1</script>"

    class Hostile:
        """Its tokens look like HTML."""

        def __call__(self, text, **options):
            return tokenizer(text, **options)

        def convert_ids_to_tokens(self, ids):
            return [f"{hostile}{i}" for i in ids]

    page = insights.text_page(model, Hostile(), ["a fine film"], [1], [hostile, f"{hostile}2"])
    ids = tokenizer("a fine film")["input_ids"]
    with insights.PageServer({"hostile": page}) as running:
        driver = Driver(browser, running.url)
        driver.choose(selected_method="Conservative LRP")
        driver.fetch()
        (row,) = driver.rows()
        assert [text for text, _, _ in driver.tokens(row)] == [f"{hostile}{i}" for i in ids]
        assert hostile in row.text  # the class too, as it is written
        assert browser.execute_script("return window.hit") is None
        assert driver.all("img", row) == driver.all("script", row) == []
        assert driver.complaints() == []
