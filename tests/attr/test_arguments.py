"""Arguments of ``attribute`` that are easily mistaken: refused with a way out, and it works."""

from __future__ import annotations

import functools
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from captum._utils.gradient import construct_neuron_grad_fn

import captum_lrp_tx as lrp
from captum_lrp_tx import audit
from captum_lrp_tx.attr.targets import Contrast
from captum_lrp_tx.errors import InputError, TargetError
from captum_lrp_tx.metrics.sums import conservation
from captum_lrp_tx.models import sentiment

pytestmark = pytest.mark.captum

TEXT = "a charming and funny film"


@pytest.fixture(scope="module")
def model() -> Any:
    return sentiment()[0]


@pytest.fixture(scope="module")
def inputs() -> Any:
    return sentiment()[1](TEXT, return_tensors="pt")


# ---- strict ------------------------------------------------------------------------------------
@pytest.mark.parametrize("strict", ["paper", "Papers", "", "no", 1, 0, None, [], torch.ones(2)])
def test_strict_is_one_of_three(strict: Any, model: Any, inputs: Any) -> None:
    message = "strict must be True, False or 'papers', not"
    calls = [
        lambda: lrp.ConservativeGI(model).attribute(inputs, target=1, strict=strict),
        lambda: lrp.ConservativeLRP(model).attribute_targets(inputs, [1], strict=strict),
        lambda: lrp.LayerConservativeLRP(model, model.bert).attribute(
            inputs, target=1, strict=strict
        ),
        lambda: audit.explainability(model, inputs, target=1, strict=strict, file=None),
        lambda: lrp.explain(model, sentiment()[1], TEXT, strict=strict),
    ]
    for call in calls:
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize("strict", [True, False, "papers"])
def test_strict_as_it_may_be(strict: Any, model: Any, inputs: Any) -> None:
    found = lrp.ConservativeLRP(model).attribute(inputs, target=1, strict=strict)
    assert found.shape == inputs["input_ids"].shape


# ---- the delta of separate positions -----------------------------------------------------------
def test_separate_positions_have_a_delta(model: Any, inputs: Any) -> None:
    explainer = lrp.ConservativeLRP(model)
    parts, delta = explainer.attribute(
        inputs, target=1, positions="separate", return_convergence_delta=True
    )
    logit = model(**inputs).logits[:, 1].detach()
    left = logit - torch.stack(list(parts.values())).sum(0).sum(1)
    torch.testing.assert_close(delta, left, atol=1e-5, rtol=1e-5)
    assert set(parts) == set(explainer.attribute(inputs, target=1, positions="separate"))


# ---- bytes and truth values --------------------------------------------------------------------
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_are_no_text(kind: Any, model: Any) -> None:
    tokenizer, given = sentiment()[1], TEXT.encode()
    with pytest.raises(InputError, match=r"bytes; decode a text, inputs\.decode\(\)"):
        lrp.explain(model, tokenizer, kind(given))
    with pytest.raises(InputError, match=r"a text \(decode it\)"):
        lrp.explain(model, tokenizer, [given, given])
    found = lrp.explain(model, tokenizer, given.decode())
    assert isinstance(found, lrp.Explanation) and found.target == "positive"


TRUTHS = [True, False, torch.tensor(True), torch.tensor([True]), numpy.bool_(True), [True]]


@pytest.mark.parametrize("target", TRUTHS, ids=repr)
def test_truth_values_are_no_targets(target: Any, model: Any, inputs: Any) -> None:
    tokenizer = sentiment()[1]
    calls = [
        lambda: lrp.ConservativeGI(model).attribute(inputs, target=target),
        lambda: lrp.ConservativeLRP(model).attribute_targets(inputs, [target]),
        lambda: lrp.LayerConservativeGI(model, model.bert).attribute(inputs, target=target),
        lambda: lrp.AttentionRollout(model).attribute(inputs, target=target),
        lambda: audit.explainability(model, inputs, target=target, file=None),
        lambda: lrp.compare(model, inputs, target=target),
        lambda: lrp.explain(model, tokenizer, TEXT, target=target),
    ]
    for call in calls:
        with pytest.raises(TargetError, match=r"is a truth value, not an index.*write target=1"):
            call()


def test_a_tuple_with_a_truth_value() -> None:
    with pytest.raises(TargetError, match="truth value"):
        lrp.ConservativeGI(nn.Linear(3, 2)).attribute(torch.ones(1, 4, 3), target=(1, True))


def test_a_mask_of_classes_as_numbers(model: Any, inputs: Any) -> None:
    mask = torch.tensor([True])
    found = lrp.ConservativeLRP(model).attribute(inputs, target=mask.long())
    torch.testing.assert_close(found, lrp.ConservativeLRP(model).attribute(inputs, target=1))


# ---- mappings ----------------------------------------------------------------------------------
class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, k: Any = 1.0) -> Tensor:
        return torch.as_tensor(self.linear(x) * k)


@pytest.mark.parametrize("forward", ["module", "keywords only"])
def test_arguments_beside_a_mapping_go_into_it(forward: str) -> None:
    net, x = Scaled(), torch.randn(2, 4)
    called: Any = net if forward == "module" else lambda **given: net(**given)
    explainer = lrp.ConservativeLRP(called)
    message = r"into the mapping, too.*functools\.partial\(model, name=value\)"
    with pytest.raises(InputError, match=message):
        explainer.attribute({"x": x}, target=1, additional_forward_args=(2.0,))
    expected = lrp.ConservativeLRP(net).attribute(x, target=1, additional_forward_args=(2.0,))
    torch.testing.assert_close(explainer.attribute({"x": x, "k": 2.0}, target=1), expected)
    bound = lrp.ConservativeLRP(functools.partial(called, k=torch.tensor(2.0)))
    torch.testing.assert_close(bound.attribute({"x": x}, target=1), expected)


def test_entries_that_a_model_does_not_take_are_named_as_before() -> None:
    with pytest.raises(InputError, match=r"does not take x, other .*leave out the entries"):
        lrp.ConservativeLRP(Scaled()).attribute(
            {"x": torch.ones(1, 4), "other": 1}, target=1, additional_forward_args=(2.0,)
        )


def test_what_is_said_to_a_model_that_takes_the_mapping_itself_works() -> None:
    """A SentenceTransformer takes all that its tokenizer returns as one argument."""
    net, x = Scaled(), torch.randn(2, 4)

    class Whole(nn.Module):
        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            return {**features, "y": net(features["x"], 2.0)}

    model = Whole()
    with pytest.raises(InputError, match=r"lambda \*\*kwargs: model\(kwargs\)\['its output'\]"):
        lrp.ConservativeLRP(model).attribute({"x": x}, target=1)
    got = lrp.ConservativeLRP(lambda **kwargs: model(kwargs)["y"]).attribute({"x": x}, target=1)
    expected = lrp.ConservativeLRP(net).attribute(x, target=1, additional_forward_args=(2.0,))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", ["label_embeds", "masked_embeds"])
def test_floats_that_are_named_like_masks(name: str) -> None:
    net, x = nn.Linear(4, 3), torch.randn(2, 4)

    def labelled(label_embeds: Tensor) -> Tensor:
        return torch.as_tensor(net(label_embeds))

    def masked(masked_embeds: Tensor) -> Tensor:
        return torch.as_tensor(net(masked_embeds))

    model: Any = labelled if name == "label_embeds" else masked
    message = rf"\['{name}'\] are taken for masks or labels.*lambda x: model\({name}=x\)"
    with pytest.raises(InputError, match=message):
        lrp.ConservativeLRP(model).attribute({name: x}, target=1)
    found = lrp.ConservativeLRP(lambda x: model(**{name: x})).attribute(x, target=1)
    torch.testing.assert_close(found, lrp.ConservativeLRP(net).attribute(x, target=1))


# ---- names of classes --------------------------------------------------------------------------
def test_names_of_classes_in_comparisons_and_measures(model: Any, inputs: Any) -> None:
    by_name = lrp.compare(model, inputs, target="positive", methods=["LRP", "GI"])
    by_number = lrp.compare(model, inputs, target=1, methods=["LRP", "GI"])
    assert by_name.target == 1 and by_name.output == by_number.output
    for one, other in zip(by_name.rows, by_number.rows, strict=True):
        torch.testing.assert_close(one.relevance, other.relevance)
    rules = {"LRP": "lrp"}
    sums = conservation(model, inputs, target="positive", rules=rules)
    expected = conservation(model, inputs, target=1, rules=rules)
    torch.testing.assert_close(sums.sums["LRP"]["input"], expected.sums["LRP"]["input"])
    with pytest.raises(TargetError, match="no class 'odd'; the classes are: 0 negative, 1 pos"):
        conservation(model, inputs, target="odd", rules=rules)


def test_a_name_without_names() -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(TargetError, match="no names of classes; give the number"):
        conservation(net, torch.ones(1, 3), target="good", layers=[net[0]], rules={"GI": "gi"})
    with pytest.raises(TargetError, match=r"model\.config\.label2id\[name\] for a class"):
        lrp.compare(net, torch.ones(1, 3), target="good")


def test_names_inside_of_targets_are_numbers(model: Any, inputs: Any) -> None:
    with pytest.raises(TargetError, match=r"model\.config\.label2id\[name\] for a class"):
        Contrast("positive", "negative")
    number = model.config.label2id
    target = Contrast(number["positive"], number["negative"])
    found = lrp.ConservativeLRP(model).attribute(inputs, target=target)
    expected = lrp.ConservativeLRP(model).attribute(inputs, target=Contrast(1, 0))
    torch.testing.assert_close(found, expected)


# ---- gradient_func -----------------------------------------------------------------------------
@pytest.mark.parametrize("cls", [lrp.ConservativeGI, lrp.ConservativeLRP])
def test_another_gradient_func_is_refused(cls: Any) -> None:
    net, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 4)
    explainer = cls(net, rules="gi")
    explainer.gradient_func = construct_neuron_grad_fn(net[0], 2)
    with pytest.raises(InputError, match=rf"gradient_func of {cls.__name__} was set.*a neuron"):
        explainer.attribute(x, target=0)
    with pytest.raises(InputError, match="gradient_func"):
        explainer.attribute_targets(x, [0])
    found = cls(net[0], rules="gi").attribute(x, target=2)
    torch.testing.assert_close(found, x * net[0].weight[2].detach())
    layer = lrp.LayerConservativeGI(net, net[1])
    layer.gradient_func = construct_neuron_grad_fn(net[0], 2)
    with pytest.raises(InputError, match="gradient_func of LayerConservativeGI"):
        layer.attribute(x, target=0)
