"""``EdgeRelevance``: edges add up at every node, and equal a decomposition by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from captum_lrp_tx import (
    ConservativeLRP,
    EdgeRelevance,
    LayerConservativeLRP,
    PartGraph,
    PartRelevance,
)
from captum_lrp_tx.errors import (
    InputError,
    NonFiniteError,
    UncoveredOperationError,
    UnreachedInputError,
    UnsupportedModelError,
)
from parts import explained

#: Four shapes: norms behind sums; RMS norms and gated MLPs; fused projections; images.
BY_HAND = {
    "hf-BertForSequenceClassification-eager": "bert.encoder.layer",
    "hf-LlamaForCausalLM-eager": "model.layers",
    "hf-GPT2LMHeadModel-eager": "transformer.h",
    "hf-ViTForImageClassification-eager": "",
}
CASES = (*BY_HAND, "hf-BertForSequenceClassification-sdpa-padded", "torch-encoder-pre-seqfirst",
         "torch-encoder-post-batchfirst-padded-ids")  # fmt: skip


def double(name: str) -> tuple[zoo.Case, Any, Any, Any]:
    """A case in double precision: model, inputs and target."""
    case = zoo.case(name)
    case.model.double()
    if name.startswith("hf"):
        return case, case.model, *explained(case)
    x = case.inputs[0].double() if case.kind == "floats" else case.inputs[0]
    return case, lambda x: case.forward(x), x, case.target


class ByHand:
    """What every writer adds to the stream, followed upwards through the model held as it is.

    Patterns come from ``output_attentions``, values from hooks on the plain model, and gradients at
    named modules from :class:`LayerConservativeLRP`; all between is matrix products written here.
    """

    def __init__(self, name: str, preset: str) -> None:
        _, self.model, self.inputs, self.target = double(name)
        self.preset, self.is_post = preset, "Bert" in name
        path = BY_HAND[name]
        lists = [m for m in self.model.modules() if isinstance(m, nn.ModuleList)]
        self.layers = list(self.model.get_submodule(path) if path else lists[0])
        self.norms = [[m for m in layer.modules() if hasattr(m, "weight")
                       and "Norm" in type(m).__name__] for layer in self.layers]  # fmt: skip
        self.maps = [[m for m in layer.modules() if isinstance(m, nn.Linear)
                      or type(m).__name__ == "Conv1D"] for layer in self.layers]  # fmt: skip
        top = [m for m in self.model.modules() if "Norm" in type(m).__name__]
        self.top = next(m for m in reversed(top) if not any(m in n for n in self.norms))
        self.edges: dict[tuple[str, str], Tensor] = {}
        self.follow()

    def value_and_output(self, layer: int) -> tuple[Tensor, Tensor, nn.Module]:
        """``(heads, channels, width)``, ``(heads, width, channels)``, and what reads the heads."""
        maps, width = self.maps[layer], zoo.WIDTH
        if type(maps[0]).__name__ == "Conv1D":
            value, out = maps[0].weight[:, 2 * width :].T, maps[1].weight.T
            reads = maps[1]
        else:
            value, out, reads = maps[2].weight, maps[3].weight, maps[3]
        value = value.unflatten(0, (-1, width // zoo.HEADS))
        value = value.repeat_interleave(zoo.HEADS // len(value), 0)  # shared by groups of heads
        return value, out.unflatten(1, (zoo.HEADS, -1)).transpose(0, 1), reads

    def gradients(self, modules: list[nn.Module], at_input: bool = True) -> list[Tensor]:
        explainer = LayerConservativeLRP(self.model, modules, self.preset, multiply_by_inputs=False)
        found: Any = explainer.attribute(
            self.inputs, self.target, attribute_to_layer_input=at_input
        )
        return [found] if isinstance(found, Tensor) else list(found)

    def at_mlps(self) -> list[Tensor]:
        """What the first maps of each MLP, one or two of them, make of their input."""
        found = []
        for maps in self.maps:
            is_fused = type(maps[0]).__name__ == "Conv1D"
            first = maps[2 if is_fused else 4 : -1]
            outputs = self.gradients(first, at_input=False)
            weights = [m.weight.T if is_fused else m.weight for m in first]
            found.append(sum(g @ w for g, w in zip(outputs, weights, strict=True)))
        return found

    def follow(self) -> None:
        attention = [self.value_and_output(i)[2] for i in range(len(self.layers))]
        last = [maps[-1] for maps in self.maps]
        kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            kept[module] = args[0], output[0] if isinstance(output, tuple) else output

        watched = [*self.layers, *attention, *last, *(n for ns in self.norms for n in ns)]
        handles = [module.register_forward_hook(keep) for module in watched]
        self.model.config.output_attentions = True
        with torch.no_grad():
            output = self.model(**self.inputs) if isinstance(self.inputs, dict) else (
                self.model(self.inputs))  # fmt: skip
        self.model.config.output_attentions = False
        for handle in handles:
            handle.remove()
        arrived, at_mlps = self.gradients(attention), self.at_mlps()
        self.written = {"embedding": kept[self.layers[0]][0]}
        for i, norms in enumerate(self.norms):
            value, out, reads = self.value_and_output(i)
            heads = kept[reads][0].unflatten(-1, (zoo.HEADS, -1)).transpose(1, 2)
            at_heads = arrived[i].unflatten(-1, (zoo.HEADS, -1)).transpose(1, 2)
            for writer, x in self.written.items():
                x = x if self.is_post else linear(norms[0], kept[norms[0]][0], x)
                moved = output.attentions[i] @ torch.einsum("btd,hcd->bhtc", x, value)
                for h, found in enumerate((moved * at_heads).sum((2, 3)).T):
                    self.edges[writer, f"a{i}.h{h}"] = found
            adds = torch.einsum("bhtc,hdc->hbtd", heads, out)
            self.written.update({f"a{i}.h{h}": x for h, x in enumerate(adds)})
            self.pass_norm(norms[0], kept)
            for writer, x in self.written.items():
                x = x if self.is_post else linear(norms[1], kept[norms[1]][0], x)
                self.edges[writer, f"m{i}"] = (x * at_mlps[i].view_as(x)).sum((1, 2))
            self.written[f"m{i}"] = kept[last[i]][1].view_as(self.written["embedding"])
            self.pass_norm(norms[-1], kept)
        last_norm = self.norms[-1][1] if self.is_post else self.top
        (grad,) = self.gradients([last_norm], at_input=not self.is_post)
        self.edges.update({(w, "output"): (x * grad).sum((1, 2)) for w, x in self.written.items()})

    def pass_norm(self, norm: nn.Module, kept: dict[nn.Module, tuple[Tensor, Tensor]]) -> None:
        if self.is_post:
            self.written = {w: linear(norm, kept[norm][0], x) for w, x in self.written.items()}


def linear(norm: Any, at: Tensor, x: Tensor) -> Tensor:
    """A norm of ``x`` whose divisor is that at another input, without its bias."""
    if "RMS" in type(norm).__name__:
        return x * norm.weight * (at.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    divisor = (at.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    return (x - x.mean(-1, keepdim=True)) * norm.weight / divisor


@pytest.mark.parametrize("preset", ("lrp", "ah+ln"))
@pytest.mark.parametrize("name", BY_HAND)
def test_edges_are_those_followed_by_hand(name: str, preset: str) -> None:
    found = ByHand(name, preset)
    graph = EdgeRelevance(found.model, preset).attribute(found.inputs, found.target)
    assert len(found.edges) >= 5 + 5 + 10 + 10 and len({r for _, r in found.edges}) >= 10
    for (writer, reader), expected in found.edges.items():
        torch.testing.assert_close(
            graph.edge(writer, reader), expected.detach(), rtol=1e-5, atol=1e-8,
            msg=lambda text, edge=f"{writer} to {reader}": f"{edge}: {text}",
        )  # fmt: skip


@pytest.mark.parametrize("bias", ("absorb", "distribute"))
@pytest.mark.parametrize("preset", ("lrp", "lrp-gamma", "attnlrp", "gi"))
@pytest.mark.parametrize("name", CASES)
def test_as_much_is_read_as_written(name: str, preset: str, bias: Any) -> None:
    """At every node of every example; what is read of the parts is their relevance."""
    _, model, inputs, target = double(name)
    graph = EdgeRelevance(model, preset, bias=bias).attribute(inputs, target)
    inner = [i for i, n in enumerate(graph.nodes) if n.kind in ("embedding", "head", "mlp")]
    torch.testing.assert_close(graph.read[:, inner], graph.written[:, inner])
    torch.testing.assert_close(graph.read[:, -1], graph.output.flatten())
    parts = PartRelevance(model, preset, bias=bias).attribute(inputs, target).parts
    for part in parts:
        heads = [part.relevance] if part.heads is None else part.heads.unbind(1)
        own = [i for i, n in enumerate(graph.nodes) if n.module == part.module
               and n.kind in ("head", "mlp")]  # fmt: skip
        for i, want in zip(own, heads, strict=True):
            torch.testing.assert_close(graph.written[:, i], want.sum(1))
    if preset != "gi":
        assert graph.unexplained < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_constants_and_inputs_are_those_of_the_whole(name: str) -> None:
    """What constants absorb, by name, is what one pass with a ledger says."""
    from captum_lrp_tx import audit

    _, model, inputs, target = double(name)
    graph = EdgeRelevance(model).attribute(inputs, target)
    report = audit.explainability(model, inputs, target, file=None)
    found: dict[str, float] = {}
    for node in graph.nodes:
        for constant, value in node.constants.items():
            found[constant] = found.get(constant, 0.0) + value
    assert {k for k, v in report.absorbed.items() if abs(v) > 1e-9} <= set(found)
    # norms of Llama round to float32 in any model
    for constant, value in found.items():
        assert value == pytest.approx(report.absorbed.get(constant, 0.0), abs=1e-7), constant
    relevance: Any = ConservativeLRP(model).attribute(inputs, target)
    sources = [i for i, node in enumerate(graph.nodes) if node.kind == "input"]
    written = graph.written[:, sources].sum(1)
    torch.testing.assert_close(written, relevance.flatten(1).sum(1), rtol=1e-6, atol=1e-9)


def test_strict_refuses_what_is_unexplained() -> None:
    _, model, inputs, target = double("hf-LlamaForCausalLM-sdpa")
    EdgeRelevance(model).attribute(inputs, target, strict=True)
    loose = EdgeRelevance(model, "gi").attribute(inputs, target)
    assert loose.unexplained > 0.1
    with pytest.raises(UncoveredOperationError, match="unexplained"):
        EdgeRelevance(model, "gi").attribute(inputs, target, strict=True)
    with pytest.raises(UnsupportedModelError, match="residual"):
        EdgeRelevance(nn.Linear(4, 2)).attribute(torch.randn(2, 4), 1)


def test_encoder_decoder_and_side_by_side() -> None:
    """Cross-attention reads what the encoder wrote; attention does not read the MLP beside it."""
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = zoo.randomise(transformers.T5ForConditionalGeneration(config)).double()
    ids, generated = torch.randint(1, 40, (2, 6)), torch.randint(1, 40, (2, 3))
    found = EdgeRelevance(model).attribute(
        {"input_ids": ids, "decoder_input_ids": generated}, (-1, 5), strict=True
    )
    cross = [n.name for n in found.nodes if "EncDecAttention" in n.module and n.kind == "head"]
    assert len(cross) == 2 * 4 and float(found.edge("a0.h1", cross[0]).abs().min()) > 1e-6
    check(found)
    config = transformers.GPTNeoXConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=24, use_parallel_residual=True,
    )  # fmt: skip
    model = zoo.randomise(transformers.GPTNeoXForCausalLM(config)).double()
    found = EdgeRelevance(model).attribute(torch.randint(1, 40, (2, 5)), (-1, 3), strict=True)
    check(found)
    heads = [i for i, node in enumerate(found.nodes) if node.kind == "head"]
    mlps = [i for i, node in enumerate(found.nodes) if node.kind == "mlp"]
    assert not found.edges[:, heads[:4], mlps[0]].any() and found.edges[:, heads[:4], mlps[1]].all()


def check(graph: PartGraph) -> None:
    inner = [i for i, n in enumerate(graph.nodes) if n.kind in ("embedding", "head", "mlp")]
    torch.testing.assert_close(graph.read[:, inner], graph.written[:, inner])
    torch.testing.assert_close(graph.read[:, -1], graph.output.flatten())


def test_circuits_are_grown_from_the_output() -> None:
    _, model, inputs, target = double("hf-GPT2LMHeadModel-sdpa")
    whole = EdgeRelevance(model).attribute(inputs, target)
    size = whole.edges.mean(0).abs()
    for share in (0.3, 0.8, 1.0):
        part = whole.circuit(share)
        kept = part.edges.mean(0).abs()
        assert float(kept.sum()) >= share * float(size.sum()) - 1e-9
        assert float(kept.sum() - kept[kept > 0].min()) < share * float(size.sum()) or share == 1
        assert part.nodes[-1].name == "output"
        readers = {j for _, j in kept.nonzero().tolist()}
        writers = {i for i, _ in kept.nonzero().tolist()}
        assert readers - {len(part.nodes) - 1} <= writers  # every reader is read
        for i, j in kept.nonzero().tolist():
            edge = whole.edge(part.nodes[i].name, part.nodes[j].name)
            torch.testing.assert_close(part.edges[:, i, j], edge)
    few = whole.circuit(edges=6, constants=False)
    assert int((few.edges != 0).any(0).sum()) == 6
    assert not any(node.kind == "constants" for node in few.nodes)
    first = max((n.name for n in whole.nodes[:-1] if n.kind != "constants"),
                key=lambda n: float(whole.edge(n, "output").mean().abs()))  # fmt: skip
    assert first in [node.name for node in whole.circuit(edges=1, constants=False).nodes]
    with pytest.raises(InputError, match="share"):
        whole.circuit(0.0)
    with pytest.raises(InputError, match="no node"):
        whole.edge("a9.h9", "output")


def test_table_and_graph() -> None:
    pytest.importorskip("pandas")
    nx = pytest.importorskip("networkx")
    _, model, inputs, target = double("hf-ViTForImageClassification-eager")
    whole = EdgeRelevance(model).attribute(inputs, target)
    table = whole.table()
    assert len(table) == int((whole.edges != 0).sum())
    at_output = table[(table["reader"] == "output") & (table["example"] == 1)]
    assert at_output["relevance"].sum() == pytest.approx(float(whole.output[1]))
    graph = whole.to_networkx(example=1)
    assert nx.is_directed_acyclic_graph(graph)
    assert graph.in_degree("output", weight="weight") == pytest.approx(float(whole.output[1]))
    for name, kind in graph.nodes(data="kind"):
        if kind in ("head", "mlp", "embedding"):
            flow = [graph.in_degree(name, "weight"), graph.out_degree(name, "weight")]
            assert flow[0] == pytest.approx(flow[1], abs=1e-9)
    mean = whole.to_networkx()
    assert mean["embedding"]["a0.h0"]["weight"] == pytest.approx(
        float(whole.edge("embedding", "a0.h0").mean())
    )


def test_picture() -> None:
    pytest.importorskip("matplotlib")
    _, model, inputs, target = double("hf-LlamaForCausalLM-sdpa")
    whole = EdgeRelevance(model).attribute(inputs, target)
    circuit = whole.circuit(edges=12)
    drawing = circuit.figure(title="next token")
    lines = drawing.axes[0].patches
    assert len(lines) == 12 and len(drawing.axes[0].lines) == len(circuit.nodes)
    widths = sorted(line.get_linewidth() for line in lines)
    assert widths[-1] > widths[0]
    assert "output" in {t.get_text() for t in drawing.axes[0].texts}
    assert [t.get_text() for t in drawing.texts] == ["next token"]
    assert len(whole.figure(0).axes[0].patches) == int((whole.edges[0] != 0).sum())


LAYER = nn.Linear(4, 4).double()


def residual(x: Tensor) -> Tensor:
    return (x + LAYER(x)).flatten(1).sum(1)


def flat_attention(x: Tensor) -> Tensor:
    y = x.flatten(0, 1)
    return residual(x + ((y @ y.mT).softmax(-1) @ y).view_as(x))


def sum_of_two(x: Tensor, added: Tensor) -> Tensor:
    return residual(x + added)


def in_windows(x: Tensor) -> Tensor:
    y = x.unflatten(1, (-1, 3)).flatten(0, 1)
    return (y + LAYER(y)).reshape(len(x), -1).sum(1)


@pytest.mark.parametrize(
    ("forward", "shapes", "error", "reason"),
    [
        (lambda x: residual(x).sum(), [(2, 4, 4)], InputError,
         "are 2 examples and 1 outputs; edges need one output for each example. Explain one"),
        (flat_attention, [(2, 4, 4)], InputError, "heads of single examples cannot be told"),
        (in_windows, [(2, 6, 4)], InputError,
         r"2 examples cannot be told apart in a tensor of shape \(4, 3, 4\); explain one at a"),
        (sum_of_two, [(2, 4, 4), (4,)], InputError, r"apart in a tensor of shape \(1, 1, 4\)"),
        (lambda x: residual(x).detach() + 0 * x.detach().sum(), [(2, 4, 4)], UnreachedInputError,
         "output does not depend on the inputs, or the rules hold all .* there are no edges"),
        (lambda x: residual(x * 0 + (x * 0).sqrt()), [(2, 4, 4)], NonFiniteError,
         "relevance of some edge is NaN or infinite although the output is finite. Run the model"),
    ],
)  # fmt: skip
def test_edges_that_cannot_be_told_are_refused(
    forward: Any, shapes: Any, error: Any, reason: str
) -> None:
    inputs = tuple(torch.randn(shape).double() for shape in shapes)
    with pytest.raises(error, match=reason):
        EdgeRelevance(forward).attribute(inputs)


@pytest.mark.parametrize(
    ("forward", "shapes"),
    [
        (in_windows, [(1, 6, 4)]),
        (sum_of_two, [(1, 4, 4), (4,)]),  # an input without examples
        (lambda x: residual(x[None]).sum(), [(4,)]),
    ],
)
def test_one_example_may_have_any_shape(forward: Any, shapes: Any) -> None:
    inputs = tuple(torch.randn(shape).double() for shape in shapes)
    graph = EdgeRelevance(forward).attribute(inputs)
    ends = [i for i, node in enumerate(graph.nodes) if node.kind == "input"]
    expected = ConservativeLRP(forward).attribute(inputs)
    assert len(ends) == len(inputs)
    for end, relevance in zip(ends, expected, strict=True):
        torch.testing.assert_close(graph.written[0, end], relevance.sum())


def test_token_ids_of_one_example_without_their_dimension() -> None:
    table = nn.Embedding(9, 4).double()
    ids = torch.tensor([[1, 2, 3]])
    explainer = EdgeRelevance(lambda ids: residual(table(ids).view(1, 3, 4)))
    torch.testing.assert_close(explainer.attribute(ids[0]).edges, explainer.attribute(ids).edges)


class Doubled(torch.autograd.Function):
    """Has a graph of its own, of a weight that the pass does not know."""

    @staticmethod
    def forward(_: Any, weight: Tensor) -> Tensor:
        return weight * 2

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * 2


def test_an_output_that_comes_from_no_input_is_written_by_constants() -> None:
    weight = torch.tensor([1.0, -3.0], requires_grad=True)

    def forward(x: Tensor) -> Tensor:
        assert len(residual(x)) == 2
        return Doubled.apply(weight)

    graph = EdgeRelevance(forward).attribute(torch.randn(2, 3, 4).double())
    names = [node.name for node in graph.nodes]
    written = graph.edges[:, names.index("constants in output")]
    assert written[:, names.index("output")].tolist() == [2.0, -6.0]
    assert int((graph.edges != 0).sum()) == 2  # the only edge of both examples


def test_the_model_is_left_alone(untouched: Any) -> None:
    case = zoo.case("hf-BertForSequenceClassification-sdpa-padded")
    inputs, target = explained(case)
    with untouched(case.model):
        EdgeRelevance(case.model).attribute(inputs, target)
