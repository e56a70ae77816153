"""``MaskedLRP``: maps of a partition add up to the whole, and equal freezing all but one part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from captum_lrp_tx import ConservativeLRP, MaskedLRP, PartRelevance
from captum_lrp_tx.errors import InputError
from parts import explained

NAMES = (
    "hf-BertForSequenceClassification-sdpa-padded",
    "hf-LlamaForCausalLM-sdpa",
    "hf-GPT2LMHeadModel-eager",
    "hf-ViTForImageClassification-eager",
)


def ready(name: str) -> tuple[zoo.Case, Any, Any]:
    case = zoo.case(name)
    case.model.double()
    return (case, *explained(case))


@pytest.mark.parametrize("bias", ("absorb", "distribute"))
@pytest.mark.parametrize("name", NAMES)
def test_masks_of_a_partition_add_up_to_the_whole(name: str, bias: Any) -> None:
    case, inputs, target = ready(name)
    masked = MaskedLRP(case.model, bias=bias)
    whole = ConservativeLRP(case.model, bias=bias).attribute(inputs, target)
    assert isinstance(whole, Tensor)
    for part in PartRelevance(case.model, bias=bias).attribute(inputs, target).parts:
        count = zoo.HEADS if part.kind == "attention" else (64 if "GPT2" in name else 32)
        groups: list[Any] = [[0], list(range(1, count)), "stream"]
        sums = sum(masked.attribute(inputs, target, through={part.module: g}) for g in groups)
        torch.testing.assert_close(sums, whole, rtol=1e-5, atol=1e-8)
        everything = masked.attribute(inputs, target, through={part.module: "all"})
        heads = masked.attribute(inputs, target, through={part.module: range(count)})
        torch.testing.assert_close(everything, heads)


def test_freezing_all_but_one_head() -> None:
    """Plain autograd in which all but one head, and the way past them, are constants."""
    torch.manual_seed(0)

    class Block(nn.Module):
        only: int | None = None

        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Linear(16, 16, bias=False)
            self.out = nn.Linear(16, 3, bias=False)
            self.project = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            query, key = (x.unflatten(-1, (4, 4)).transpose(1, 2) for _ in range(2))
            pattern = (query @ key.mT).softmax(-1)
            if self.only is not None:
                pattern = pattern.detach()
            heads = pattern @ self.value(x).unflatten(-1, (4, 4)).transpose(1, 2)
            if self.only is not None:
                frozen = heads.detach().clone()
                frozen[:, self.only] = heads[:, self.only]
                heads, x = frozen, x.detach()
            return self.out((x + self.project(heads.transpose(1, 2).flatten(2))).mean(1))

    block, x = Block().double(), torch.randn(2, 5, 16).double()
    (part,) = PartRelevance(block).attribute(x, 1).parts
    for head in range(4):
        found = MaskedLRP(block).attribute(x, 1, through={part.module: [head]})
        leaf = x.clone().requires_grad_()
        block.only = head
        block(leaf)[:, 1].sum().backward()
        block.only = None
        assert isinstance(found, Tensor) and leaf.grad is not None
        torch.testing.assert_close(found, x * leaf.grad)


def test_a_path_through_two_layers() -> None:
    """What passes the head of one layer is split again by those of the layer below."""
    case, inputs, target = ready("hf-LlamaForCausalLM-sdpa")
    masked = MaskedLRP(case.model)
    high, low = "model.layers.1.self_attn", "model.layers.0.self_attn"
    upper = masked.attribute(inputs, target, through={high: [2]})
    below: list[Any] = [[0, 1], [2], [3], "stream"]
    paths = sum(masked.attribute(inputs, target, through={high: [2], low: g}) for g in below)
    torch.testing.assert_close(paths, upper, rtol=1e-5, atol=1e-8)


def test_encoder_decoder_and_sequences_first() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = zoo.randomise(transformers.T5ForConditionalGeneration(config)).double()
    inputs: Any = {"input_ids": torch.randint(1, 40, (2, 6)),
                   "decoder_input_ids": torch.randint(1, 40, (2, 3))}  # fmt: skip
    case = zoo.case("torch-encoder-pre-seqfirst")
    case.model.double()
    for net, given, target in (
        (model, inputs, (-1, 5)),
        (lambda x: case.forward(x), case.inputs[0].double(), case.target),
    ):
        whole = ConservativeLRP(net).attribute(given, target)
        for part in PartRelevance(net).attribute(given, target).parts:
            if part.kind != "attention":
                continue
            found = [MaskedLRP(net).attribute(given, target, through={part.module: g})
                     for g in ([0, 3], [1, 2], "stream")]  # fmt: skip
            want, *got = (
                f[part.module.startswith("decoder")] if isinstance(f, tuple) else f
                for f in (whole, *found)
            )  # of the input whose stream it is: the other's is not cut
            torch.testing.assert_close(sum(got), want, rtol=1e-5, atol=1e-8)


def test_what_does_not_fit_is_refused() -> None:
    case, inputs, target = ready("hf-LlamaForCausalLM-sdpa")
    masked = MaskedLRP(case.model)
    branch = "model.layers.1.self_attn"
    for through, message in (
        ({}, "at least one"),
        ({"layer 1": [0]}, "No branch is called"),
        ({branch: [9]}, "no number 9"),
        ({branch: "heads"}, "must be 'all'"),
        ({branch: 0}, r"must be 'all', 'stream' or numbers, \[6\] say, not 0"),
        ({branch: [0.5]}, "must be 'all'"),
        (branch, "{name: numbers}"),
    ):
        with pytest.raises(InputError, match=message):
            masked.attribute(inputs, target, through=through)


def test_heads_and_neurons_that_cannot_be_told_are_refused() -> None:
    layer = nn.Linear(4, 4)

    def forward(x: Tensor) -> Tensor:
        return (x + torch.einsum("...qk,...kd->...qd", layer(x @ x.mT).softmax(-1), x)).sum((1, 2))

    x = torch.randn(2, 4, 4)
    (part,) = PartRelevance(forward).attribute(x).parts
    assert part.heads is None and [kind for kind, _, _ in part.units()] == ["attention", "stream"]
    with pytest.raises(InputError, match="cannot be told; choose 'all' or 'stream'"):
        MaskedLRP(forward).attribute(x, through={part.module: [0]})


#: A block with attention and MLP side by side: how what they add comes to the residual stream.
SIDE_BY_SIDE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "together": lambda x, a, m: a + m + x,
    "attention first": lambda x, a, m: (x + a) + m,
    "attention last": lambda x, a, m: (x + m) + a,
}


@pytest.mark.parametrize("form", SIDE_BY_SIDE)
def test_masks_of_attention_and_mlp_side_by_side(form: str) -> None:
    """What a branch beside adds passes the named one by: it is cut off with the stream."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(12, elementwise_affine=False)
            self.out = nn.Linear(12, 12, bias=False)
            self.up, self.down = nn.Linear(12, 8, bias=False), nn.Linear(8, 12, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(x)
            q = h.unflatten(-1, (3, -1)).transpose(1, 2)
            heads = ((q @ q.mT).softmax(-1) @ q).transpose(1, 2).flatten(2)
            return SIDE_BY_SIDE[form](x, self.out(heads), self.down(torch.relu(self.up(h))))

    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block()).double()
    x = torch.randn(2, 5, 12).double()

    def score(x: Tensor) -> Tensor:
        result: Tensor = model(x)[:, 0, :3].sum(1)
        return result

    masked = MaskedLRP(score)
    whole = ConservativeLRP(score).attribute(x)
    found = PartRelevance(score, neurons=True).attribute(x)
    assert len(found.parts) == 4
    for part in found.parts:
        count = 3 if part.kind == "attention" else 8
        chosen: list[Any] = [*([i] for i in range(count)), "stream"]
        maps = [masked.attribute(x, through={part.module: passing}) for passing in chosen]
        torch.testing.assert_close(torch.stack([torch.as_tensor(m) for m in maps]).sum(0), whole)
    arrives = [float(p.arriving.sum()) for p in found.parts]
    if form == "together":  # all of it at both parts of a block
        assert arrives == pytest.approx([float(whole.sum())] * 4)
    for part in found.parts[-2:]:
        through = masked.attribute(x, through={part.module: "all"})
        torch.testing.assert_close(torch.as_tensor(through).sum((1, 2)), part.relevance.sum(1))
