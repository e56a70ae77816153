"""NoiseTunnel around the classes of the package, against an explicit loop over the same noise."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import DataLoaderAttribution, FeatureAblation, NoiseTunnel
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import zoo
from captum_lrp_tx import (
    AttentionLast,
    AttentionRollout,
    ConservativeGI,
    ConservativeLRP,
    GenericAttention,
    LayerConservativeGI,
    LayerConservativeLRP,
    TokenGradientShap,
    TokenIntegratedGradients,
    TokenSaliency,
    TransformerAttribution,
)
from captum_lrp_tx.attr.dataloader import LoaderAttribution
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.metrics.captum_arguments import embedded_inputs

pytestmark = [
    pytest.mark.captum,
    pytest.mark.filterwarnings("ignore::captum_lrp_tx.errors.CaptumLRPWarning"),
    pytest.mark.filterwarnings("ignore:Setting (forward|backward):UserWarning"),
]

SAMPLES, STDEV = 3, 0.2
TYPES = ["smoothgrad", "smoothgrad_sq", "vargrad"]
#: From a forward function and a layer behind the inputs.
METHODS: dict[str, Callable[[Any, Any], Any]] = {
    "GI": lambda f, _: ConservativeGI(f, rules="gi"),
    "LRP(AH+LN)": lambda f, _: ConservativeGI(f),
    "LRP": lambda f, _: ConservativeLRP(f),
    "AttnLRP": lambda f, _: ConservativeLRP(f, rules="attnlrp"),
    "layer GI": lambda f, layer: LayerConservativeGI(f, layer),
    "layer LRP": lambda f, layer: LayerConservativeLRP(f, layer),
    "GAE": lambda f, _: GenericAttention(f),
    "Chefer": lambda f, _: TransformerAttribution(f),
    "IG": lambda f, _: TokenIntegratedGradients(f, n_steps=4),
    "GradientShap": lambda f, _: TokenGradientShap(f, n_samples=2),
    "Saliency": lambda f, _: TokenSaliency(f),
    "A-Last": lambda f, _: AttentionLast(f),
    "Rollout": lambda f, _: AttentionRollout(f),
}


@functools.lru_cache
def pixels() -> tuple[Any, Any, Tensor, tuple[Any, ...] | None]:
    case = zoo.case("hf-ViTForImageClassification-sdpa")
    return case.model, case.model.vit.embeddings, case.inputs[0], None


@functools.lru_cache
def embeddings() -> tuple[Any, Any, Tensor, tuple[Any, ...] | None]:
    model = zoo.case("hf-BertForSequenceClassification-sdpa").model
    ids = torch.tensor([[3, 9, 17, 4, 30], [8, 5, 22, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    given = {"input_ids": ids, "attention_mask": mask}
    forward, embedded, more = embedded_inputs(model, given)
    return forward, model.bert.embeddings, embedded, more


def smoothed(values: Tensor, examples: int, nt_type: str) -> Tensor:
    """The definitions of Smilkov et al. 2017, Hooker et al. 2019 and Adebayo et al. 2018."""
    rows = []
    for i in range(examples):
        own = [values[i * SAMPLES + k].double() for k in range(SAMPLES)]
        mean = sum(own) / SAMPLES
        if nt_type == "smoothgrad":
            rows.append(mean)
        elif nt_type == "smoothgrad_sq":
            rows.append(sum(r * r for r in own) / SAMPLES)
        else:
            rows.append(sum((r - mean) ** 2 for r in own) / SAMPLES)
    return torch.stack(rows)


def noisy(x: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    repeated = x.repeat_interleave(SAMPLES, 0)
    return repeated + torch.normal(0.0, torch.full(repeated.shape, STDEV))


@pytest.mark.parametrize("nt_type", TYPES)
@pytest.mark.parametrize("inputs", [pixels, embeddings])
@pytest.mark.parametrize("name", METHODS)
def test_noise_tunnel_is_a_loop_over_noisy_inputs(name: str, inputs: Any, nt_type: str) -> None:
    forward, layer, x, more = inputs()
    targets = [2, 0, 1][: len(x)]
    method = METHODS[name](forward, layer)
    torch.manual_seed(5)
    found = NoiseTunnel(method).attribute(
        x, nt_type=nt_type, nt_samples=SAMPLES, stdevs=STDEV, target=targets,
        additional_forward_args=more,
    )  # fmt: skip
    rows = noisy(x, 5)
    repeated = None if more is None else tuple(m.repeat_interleave(SAMPLES, 0) for m in more)
    owners = [t for t in targets for _ in range(SAMPLES)]
    values = torch.cat([
        METHODS[name](forward, layer).attribute(
            rows[i : i + 1], target=owners[i],
            additional_forward_args=repeated and tuple(m[i : i + 1] for m in repeated),
        )
        for i in range(len(rows))
    ])  # fmt: skip
    expected = smoothed(values, len(x), nt_type)
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=2e-5 * max(scale, 1.0))


def test_samples_in_portions_tuples_and_deltas() -> None:
    forward, _, x, more = embeddings()
    method = ConservativeLRP(forward)
    options = {"stdevs": 0.0, "target": 1, "additional_forward_args": more}
    exact, delta = method.attribute(x, 1, more, return_convergence_delta=True)
    found, deltas = NoiseTunnel(method).attribute(
        (x,), nt_samples=5, nt_samples_batch_size=2, return_convergence_delta=True, **options
    )
    assert isinstance(found, tuple) and len(found) == 1
    torch.testing.assert_close(found[0], exact, rtol=1e-4, atol=1e-6)
    # Captum appends the deltas of each portion: 2 + 2 + 1 samples of each example
    expected = [delta[i] for n in (2, 2, 1) for i in (0, 1) for _ in range(n)]
    torch.testing.assert_close(deltas, torch.stack(expected), rtol=1e-3, atol=1e-4)


# ---- loaders ------------------------------------------------------------------------------------
def test_captums_loader_attribution_takes_feature_ablation_only() -> None:
    forward, *_ = embeddings()
    for method in (ConservativeLRP(forward), ConservativeGI(forward)):
        with pytest.raises(AssertionError, match="does not support"):
            DataLoaderAttribution(method)
    assert DataLoaderAttribution(FeatureAblation(lambda x: x)).attr_method is not None


def loader(batch_size: int) -> tuple[DataLoader[Any], Tensor, Tensor]:
    images = pixels()[2]
    labels = torch.tensor([2, 0, 1])[: len(images)]
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size), images, labels


@pytest.mark.parametrize("batch_size", [1, 2, 10])
def test_a_loader_gives_what_its_batches_give(batch_size: int) -> None:
    model = pixels()[0]
    batches, images, labels = loader(batch_size)
    method = ConservativeLRP(model)
    expected = torch.cat([
        method.attribute(images[i : i + 1], target=int(labels[i])) for i in range(len(images))
    ])  # fmt: skip
    explainer = LoaderAttribution(method)
    with pytest.raises(InputError, match="input_roles are for batches that are tuples or lists"):
        explainer.attribute([images], input_roles=(0, 1), target=1)
    options = {"input_roles": (0, 1), "target": lambda batch: batch[1]}
    found = explainer.attribute(batches, **options)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    total = explainer.attribute(batches, **options, reduce="sum")
    torch.testing.assert_close(total, expected.sum(0, keepdim=True), rtol=1e-4, atol=1e-5)
    mean = explainer.attribute(batches, **options, reduce="mean")
    torch.testing.assert_close(mean, expected.mean(0, keepdim=True), rtol=1e-4, atol=1e-5)


def test_relevance_of_the_sum_of_outputs_is_the_sum_over_the_loader() -> None:
    model = pixels()[0]
    batches, images, labels = loader(2)
    explainer = LoaderAttribution(ConservativeLRP(model, bias="distribute"))
    total = explainer.attribute(batches, (0, 1), target=lambda batch: batch[1], reduce="sum")
    whole = ConservativeLRP(
        lambda x: model(x).logits.gather(1, labels[:, None]).sum().reshape(1),
        bias="distribute",
    ).attribute(images)
    torch.testing.assert_close(total[0], whole.sum(0), rtol=1e-3, atol=1e-4)


def test_roles_and_mappings_of_a_loader() -> None:
    forward, _, x, more = embeddings()
    ids, mask = more
    method = ConservativeLRP(forward.model)
    expected = method.attribute({"input_ids": ids, "attention_mask": mask}, target=1)
    parts = [{"input_ids": ids[i][None], "attention_mask": mask[i][None]} for i in (0, 1)]
    found = LoaderAttribution(method).attribute(parts, target=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    rows = DataLoader(TensorDataset(x, ids, mask), batch_size=1)
    by_role = LoaderAttribution(ConservativeLRP(forward)).attribute(rows, (0, 2, 2), target=1)
    torch.testing.assert_close(
        by_role, ConservativeLRP(forward).attribute(x, 1, more), rtol=1e-4, atol=1e-6
    )
    two = LoaderAttribution(ConservativeLRP(lambda a, b: (a + b).sum(1, keepdim=True)))
    pair = two.attribute(DataLoader(TensorDataset(torch.ones(3, 2), torch.ones(3, 2)), 2))
    assert isinstance(pair, tuple)
    assert [tuple(part.shape) for part in pair] == [(3, 2), (3, 2)]


def test_loader_mistakes_say_what_to_do() -> None:
    model = pixels()[0]
    explainer = LoaderAttribution(ConservativeLRP(model))
    batches, *_ = loader(2)
    with pytest.raises(InputError, match="attribute method"):
        LoaderAttribution(model)
    with pytest.raises(InputError, match="do not fit batches of 2"):
        explainer.attribute(batches, (0,), target=1)
    with pytest.raises(InputError, match="contain a 0"):
        explainer.attribute(batches, (1, 2), target=1)
    with pytest.raises(InputError, match="reduce"):
        explainer.attribute(batches, (0, 1), target=1, reduce="max")
    with pytest.raises(InputError, match="empty"):
        explainer.attribute([], target=1)
    ids = [torch.tensor([[3, 4, 5]]), torch.tensor([[3, 4]])]
    text = LoaderAttribution(ConservativeLRP(embeddings()[0].model))
    with pytest.raises(InputError, match="pad them to one length"):
        text.attribute(ids, target=1)
    assert [r.shape[1] for r in text.batches(ids, target=1)] == [3, 2]
