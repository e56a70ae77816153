"""``PartRelevance``: parts add up to what arrives, and equal plain hooks on the plain model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from captum_lrp_tx import ConservativeLRP, Directions, LayerConservativeLRP, PartRelevance
from captum_lrp_tx.errors import (
    InputError,
    RuleError,
    UncoveredOperationWarning,
    UnsupportedModelError,
)
from captum_lrp_tx.propagation.operations import Kind
from captum_lrp_tx.rules import Composite, EpsilonRule, Rule
from parts import CASES, by_head, explained, readers


@pytest.mark.parametrize("preset", ("lrp", "attnlrp", "gi"))
@pytest.mark.parametrize("name", CASES)
def test_heads_and_neurons_are_those_at_named_layers(name: str, preset: str) -> None:
    """The relevance at the modules that read them, found by the names of the model."""
    case = zoo.case(name)
    case.model.double()
    inputs, target = explained(case)
    found = PartRelevance(case.model, preset, neurons=True).attribute(inputs, target)
    heads, neurons = readers(case, name)
    layers = LayerConservativeLRP(case.model, [*heads, *neurons], preset)
    expected: Any = layers.attribute(inputs, target, attribute_to_layer_input=True)
    attention = [part for part in found.parts if part.kind == "attention"]
    mlps = [part for part in found.parts if part.kind == "mlp"]
    assert len(attention) == len(heads) and len(mlps) == len(neurons)
    assert [part.layer for part in found.parts] == [0, 0, 1, 1]
    batch, tokens = mlps[0].relevance.shape
    for part, want in zip(attention, expected[: len(heads)], strict=True):
        torch.testing.assert_close(part.heads, by_head(want), rtol=1e-5, atol=1e-8)
    for part, want in zip(mlps, expected[len(heads) :], strict=True):
        want = want.reshape(batch, tokens, -1)
        torch.testing.assert_close(part.neurons, want, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ("hf-LlamaForCausalLM-sdpa", "hf-ViTForImageClassification-eager"))
def test_plain_gradients_equal_hooks_on_the_plain_model(name: str) -> None:
    """Without rules a head carries value times gradient, which autograd says by itself."""
    case = zoo.case(name)
    case.model.double()
    inputs, target = explained(case)
    found = PartRelevance(case.model, "gi").attribute(inputs, target)
    kept: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        args[0].retain_grad()
        kept.append(args[0])

    handles = [m.register_forward_pre_hook(keep) for m in readers(case, name)[0]]
    output = case.model(**inputs) if isinstance(inputs, dict) else case.model(inputs)
    case.select(output.logits).sum().backward()
    for handle in handles:
        handle.remove()
    attention = [part for part in found.parts if part.kind == "attention"]
    for part, x in zip(attention, kept, strict=True):
        assert x.grad is not None
        torch.testing.assert_close(part.heads, by_head(x * x.grad).detach(), rtol=1e-5, atol=1e-8)


def test_freezing_all_but_one_head() -> None:
    """A head's relevance is what the rest, held as it is, makes of it: the model is linear in it.

    With patterns, norms and gates frozen, taking a share of one head away takes the same share of
    its relevance from the output. The last layer of a model without MLP behind it shows this by
    finite differences alone.
    """
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4, batch_first=True).double()

    class Block(nn.Module):
        scale: tuple[int, float] | None = None

        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor) -> Tensor:
            query, key, value = (x @ attention.in_proj_weight.T).chunk(3, -1)
            query, key, value = (
                t.unflatten(-1, (4, 4)).transpose(1, 2) for t in (query, key, value)
            )
            heads = (query @ key.mT / 2).softmax(-1) @ value
            if self.scale is not None:
                scale = torch.ones(4, dtype=x.dtype)
                scale[self.scale[0]] = self.scale[1]
                heads = heads * scale[:, None, None]
            out = attention.out_proj(heads.transpose(1, 2).flatten(2))
            return (x + out).sum((1, 2))

    block, x = Block(), torch.randn(2, 5, 16).double()
    (part,) = PartRelevance(block).attribute(x).parts
    assert part.heads is not None
    whole = block(x)
    for head in range(4):
        block.scale = head, 0.0
        torch.testing.assert_close(part.heads[:, head].sum(1), (whole - block(x)).detach())


@pytest.mark.parametrize("bias", ("absorb", "distribute"))
@pytest.mark.parametrize("name", CASES)
def test_parts_of_a_layer_add_up_to_what_enters_it(name: str, bias: Any) -> None:
    case = zoo.case(name)
    case.model.double()
    inputs, target = explained(case)
    found = PartRelevance(case.model, neurons=True, bias=bias).attribute(inputs, target)
    for part in found.parts:
        total = sum(relevance for _, _, relevance in part.units())
        torch.testing.assert_close(total, part.arriving)
        shares = {kind: relevance for kind, _, relevance in part.units()}
        if bias == "distribute" and part.kind == "attention":
            assert float(shares["constants"].sum().abs()) < 1e-5
    last = found.parts[-1].arriving.sum(1)
    if bias == "distribute" and "Llama" in name:  # nothing but norms and the head above
        torch.testing.assert_close(last, found.output, rtol=1e-4, atol=1e-5)


def test_biases_are_spread_under_rules_of_modules_too() -> None:
    case = zoo.case("hf-BertForSequenceClassification-eager")
    case.model.double()
    inputs, target = explained(case)
    case.model.bert.encoder.layer[0].intermediate.dense.rule = EpsilonRule()
    plain = ConservativeLRP(case.model, bias="distribute").attribute(inputs, target)
    found = PartRelevance(case.model, bias="distribute").attribute(inputs, target)
    torch.testing.assert_close(found.attributions, plain)


def test_encoder_decoder_and_plain_torch() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = zoo.randomise(transformers.T5ForConditionalGeneration(config)).double()
    ids, generated = torch.randint(1, 40, (2, 6)), torch.randint(1, 40, (2, 3))
    inputs = {"input_ids": ids, "decoder_input_ids": generated}
    found = PartRelevance(model).attribute(inputs, (-1, 5))
    shapes = [part.heads.shape[2] for part in found.parts if part.heads is not None]
    assert shapes == [6, 6, 3, 3, 3, 3]  # encoder; decoder, each with cross-attention
    last = found.parts[-1]
    assert last.module.startswith("decoder") and last.kind == "mlp"
    layers = [model.decoder.block[-1].layer[1].EncDecAttention.o]
    (expected,) = LayerConservativeLRP(model, layers).attribute(
        inputs, (-1, 5), attribute_to_layer_input=True
    )
    assert found.parts[-2].heads is not None and isinstance(expected, Tensor)
    torch.testing.assert_close(found.parts[-2].heads, by_head(expected), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(last.arriving.sum(1), found.output, rtol=1e-4, atol=1e-5)

    for name in ("torch-encoder-pre-seqfirst", "torch-encoder-post-batchfirst-padded-ids"):
        case = zoo.case(name)
        case.model.double()
        x = case.inputs[0].double() if case.kind == "floats" else case.inputs[0]
        parts = PartRelevance(lambda x, case=case: case.forward(x)).attribute(x, case.target).parts
        assert [part.kind for part in parts] == ["attention", "mlp"] * 2
        for part in parts:
            assert part.relevance.shape == (zoo.BATCH, zoo.TOKENS)
            if part.heads is not None:
                assert part.heads.shape == (zoo.BATCH, zoo.HEADS, zoo.TOKENS)


def test_attention_and_mlp_side_by_side() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTNeoXConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=24, use_parallel_residual=True,
    )  # fmt: skip
    model = zoo.randomise(transformers.GPTNeoXForCausalLM(config)).double()
    found = PartRelevance(model).attribute(torch.randint(1, 40, (2, 5)), (-1, 3))
    assert [(part.layer, part.kind) for part in found.parts] in (
        [(0, "mlp"), (0, "attention"), (1, "mlp"), (1, "attention")],
        [(0, "attention"), (0, "mlp"), (1, "attention"), (1, "mlp")],
    )


def test_directions() -> None:
    """Orthogonal directions of a whole space add up; a given encoder is used as it is."""
    case = zoo.case("hf-LlamaForCausalLM-sdpa")
    case.model.double()
    inputs, target = explained(case)
    layer = case.model.model.layers[0]
    basis = torch.linalg.qr(torch.randn(zoo.WIDTH, zoo.WIDTH).double()).Q
    decoder = torch.randn(30, zoo.WIDTH).double()

    def encode(x: Tensor) -> Tensor:
        return (x @ decoder.T).relu()

    explainer = PartRelevance(
        case.model, directions=[Directions(layer, basis), Directions(layer, decoder, encode)]
    )
    found = explainer.attribute(inputs, target)
    expected = LayerConservativeLRP(case.model, layer).attribute(inputs, target)
    gradient = LayerConservativeLRP(case.model, layer, multiply_by_inputs=False).attribute(
        inputs, target
    )
    assert isinstance(expected, Tensor) and isinstance(gradient, Tensor)
    for along in found.directions:
        torch.testing.assert_close(along.sum(-1), expected.sum(-1), rtol=1e-6, atol=1e-9)
    assert float(found.directions[0][..., -1].abs().max()) < 1e-9
    kept: list[Tensor] = []
    with torch.no_grad():
        handle = layer.register_forward_hook(
            lambda m, a, out: kept.append(out[0] if isinstance(out, tuple) else out)
        )
        case.model(**inputs)
        handle.remove()
    want = encode(kept[0]) * (gradient @ decoder.T)
    torch.testing.assert_close(found.directions[1][..., :-1], want, rtol=1e-6, atol=1e-9)
    with pytest.raises(InputError, match="features"):
        PartRelevance(case.model, directions=[Directions(layer, decoder[:, :3])]).attribute(
            inputs, target
        )
    with pytest.raises(InputError, match="matrix"):
        Directions(layer, decoder[0])
    with pytest.raises(InputError, match=r"floating-point dtype, not torch\.int64"):
        Directions(layer, decoder.long())


def test_the_model_is_left_alone_and_the_inputs_are_explained(untouched: Any) -> None:
    from captum_lrp_tx import ConservativeLRP

    case = zoo.case("hf-BertForSequenceClassification-sdpa-padded")
    inputs, target = explained(case)
    with untouched(case.model):
        found = PartRelevance(case.model).attribute(inputs, target)
    expected = ConservativeLRP(case.model).attribute(inputs, target)
    assert isinstance(found.attributions, Tensor) and isinstance(expected, Tensor)
    torch.testing.assert_close(found.attributions, expected)


def test_table_and_picture() -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    case = zoo.case("hf-LlamaForCausalLM-sdpa")
    inputs, target = explained(case)
    found = PartRelevance(case.model).attribute(inputs, target)
    table = found.table()
    assert len(table) == zoo.BATCH * 2 * (zoo.HEADS + 2 + 2)
    sums = table.groupby(["module", "example"])["relevance"].sum()
    first = found.parts[0]
    assert sums[first.module, 0] == pytest.approx(float(first.arriving[0].sum()), abs=1e-5)
    by_token = found.table(by_token=True)
    assert len(by_token) == len(table) * zoo.TOKENS
    assert len(found.figure().axes[0].patches) == 2 * (zoo.HEADS + 1)
    assert len(found.figure(by="token").axes[0].patches) == 4 * zoo.TOKENS
    with pytest.raises(InputError, match="by must be"):
        found.figure(by="neuron")  # type: ignore[arg-type]


def test_a_branch_that_leads_nowhere_has_no_relevance() -> None:
    used, unused = (
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)).double() for _ in range(2)
    )

    def forward(x: Tensor) -> Tensor:
        y = x + used(x)
        assert (y + unused(y)).shape == x.shape
        return y.sum((1, 2))

    x = torch.randn(2, 3, 4).double()
    first, second = PartRelevance(forward, neurons=True).attribute(x).parts
    torch.testing.assert_close(first.arriving, (x + used(x)).sum(2).detach())
    assert second.neurons is not None
    for relevance in (second.relevance, second.stream, second.neurons):
        assert not relevance.any() and relevance.shape[:2] == (2, 3)


def test_a_map_that_reads_the_stream_itself_has_no_neurons() -> None:
    """What arrives there is that of the stream, too, which passes the branch by."""
    layer, hidden = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
    x = torch.randn(2, 3, 4).double()
    (bare,) = PartRelevance(lambda x: (x + layer(x)).sum((1, 2)), neurons=True).attribute(x).parts
    assert bare.neurons is None and [kind for kind, _, _ in bare.units()] == ["mlp", "stream"]

    def forward(x: Tensor) -> Tensor:
        return (x + layer(hidden(x))).sum((1, 2))

    (part,) = PartRelevance(forward, neurons=True).attribute(x).parts
    expected = (hidden(x) * layer.weight.sum(0)).detach()
    torch.testing.assert_close(part.neurons, expected)


def test_sums_that_are_one_branch_or_none() -> None:
    """Two MLPs side by side are one branch; what is computed without a graph is a constant."""
    one, two = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
    x = torch.randn(2, 3, 4).double()

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            constant = two(x)
        y = x + constant
        return (y + (one(y) + two(y))).sum((1, 2))

    with pytest.warns(UncoveredOperationWarning, match=r"cut off .*under torch\.no_grad"):
        (part,) = PartRelevance(forward).attribute(x).parts
    y = (x + two(x)).detach()
    assert part.kind == "mlp"
    torch.testing.assert_close(part.relevance, (one(y) + two(y)).sum(2).detach())
    torch.testing.assert_close(part.stream, y.sum(2))


def test_neurons_are_not_told_of_what_mixes_tokens() -> None:
    mix = nn.Linear(3, 3).double()
    x = torch.randn(2, 3, 4).double()
    explainer = PartRelevance(lambda x: (x + mix(x.mT).mT).sum((1, 2)), neurons=True)
    (part,) = explainer.attribute(x).parts
    assert part.neurons is None and [kind for kind, _, _ in part.units()] == ["mlp", "stream"]
    torch.testing.assert_close(part.relevance, mix(x.mT).sum(1).detach())


def test_one_example_without_its_dimension() -> None:
    layer, x = nn.Linear(4, 4).double(), torch.randn(4).double()
    found = PartRelevance(lambda x: (x + layer(x)).sum(-1)).attribute(x)
    (one,), (expected,) = found.parts, PartRelevance(lambda x: (x + layer(x)).sum(-1)).attribute(
        x[None]
    ).parts  # fmt: skip
    torch.testing.assert_close(one.relevance, expected.relevance)
    assert one.relevance.shape == (1, 1)


def test_layers_of_mlps_only_have_a_row_each() -> None:
    pytest.importorskip("matplotlib")
    layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(x: Tensor) -> Tensor:
        for layer in layers:
            x = x + layer(x)
        return x.sum((1, 2))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor) -> Tensor:
            return forward(x)

    drawing = PartRelevance(Model()).attribute(torch.randn(1, 3, 4)).figure()
    texts = [text.get_text() for text in drawing.axes[0].texts]
    assert texts == ["0", "1", "MLP"] and len(drawing.axes[0].patches) == 2


def test_layers_with_directions_run_once() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(2, 3, 4)
    directions = [Directions(layer, torch.eye(4))]

    def without_graph(x: Tensor) -> Tensor:
        with torch.no_grad():
            y = layer(x)
        return (x + y).sum((1, 2))

    for forward, times in ((lambda x: layer(layer(x)).sum((1, 2)), 2), (without_graph, 0)):
        with pytest.raises(InputError, match=f"Linear ran {times} times.*runs once is needed"):
            PartRelevance(forward, directions=directions).attribute(x)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="residual"):
        PartRelevance(nn.Linear(4, 2)).attribute(torch.randn(2, 4), 1)

    class Halves(Rule):
        kinds = frozenset({Kind.RESIDUAL})

        def propagate(self, operation: Any) -> Tensor:
            return operation.plain()

    case = zoo.case("hf-ViTForImageClassification-eager")
    halves = Composite({nn.Module: Halves()}, base="lrp")
    with pytest.raises(RuleError, match="parts do not add up"):
        PartRelevance(case.model, halves).attribute(case.inputs[0], 1)
