"""``memory="low"``: the same relevance from blocks that are run twice, or a refusal."""

import functools
import threading
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules import module

from captum_lrp_tx import Composite, ConservativeGI, ConservativeLRP, rules
from captum_lrp_tx.errors import InputError, UnsupportedModelError
from captum_lrp_tx.propagation.backward.recomputation import repeated_blocks

pytestmark = pytest.mark.core

SMALL: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "vocab_size": 30,
}  # fmt: skip
IDS = torch.tensor([[1, 5, 7, 9, 3], [2, 4, 6, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@functools.cache
def model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "bert":
        return transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL)).eval()
    if kind == "llama":
        config = transformers.LlamaConfig(**SMALL, num_key_value_heads=1, use_cache=False)
        return transformers.LlamaForCausalLM(config).eval()
    if kind == "gpt2":
        config = transformers.GPT2Config(
            n_embd=16, n_layer=3, n_head=2, vocab_size=30, use_cache=False
        )
        return transformers.GPT2LMHeadModel(config).eval()
    if kind == "t5":
        config = transformers.T5Config(
            d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=30, num_labels=2,
            use_cache=False,
        )  # fmt: skip
        return transformers.T5ForTokenClassification(config).eval()
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, activation="gelu")
    return nn.Sequential(nn.TransformerEncoder(layer, 3), nn.Flatten(), nn.Linear(80, 3)).eval()


def asked(kind: str) -> tuple[Any, Any]:
    if kind == "torch":
        torch.manual_seed(2)
        return torch.randn(2, 5, 16), 1
    return {"input_ids": IDS, "attention_mask": MASK}, 1 if kind == "bert" else (2, 1)


KINDS = ("bert", "llama", "gpt2", "t5", "torch")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["gi", "ah+ln", "lrp", "lrp-gamma", "attnlrp", "attnlrp-gamma"])
def test_relevance_is_the_same_to_the_last_bit(kind: str, preset: str, untouched: Any) -> None:
    inputs, target = asked(kind)
    want = ConservativeLRP(model(kind), preset).attribute(inputs, target=target)
    with untouched(model(kind)):
        low = ConservativeLRP(model(kind), preset, memory="low")
        got = low.attribute(inputs, target=target)
    assert torch.equal(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_rules_of_blocks_and_of_their_parts(kind: str) -> None:
    inputs, target = asked(kind)
    blocks = repeated_blocks(list(model(kind).named_modules()))
    composite = Composite(
        {blocks[0][0] + "*": rules.GammaRule(0.3), nn.LayerNorm: None}, base="lrp"
    )
    want = ConservativeLRP(model(kind), composite).attribute(inputs, target=target)
    got = ConservativeLRP(model(kind), composite, memory="low").attribute(inputs, target=target)
    assert torch.equal(got, want)
    assert not torch.equal(want, ConservativeLRP(model(kind)).attribute(inputs, target=target))


def saved_between(attribution: ConservativeGI, inputs: Any, target: Any) -> int:
    """Bytes that autograd keeps for the backward pass, outside of what runs again."""
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        attribution.attribute(inputs, target=target)
    return total


def test_less_is_kept() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 128, batch_first=True, activation="gelu")
    deep = nn.Sequential(nn.TransformerEncoder(layer, 6), nn.Flatten(), nn.Linear(320, 2)).eval()
    x = torch.randn(2, 10, 32)
    standard, low = (ConservativeGI(deep, memory=m) for m in ("standard", "low"))  # type: ignore[arg-type]
    for attribution in (standard, low):
        attribution.attribute(x, target=0)
    assert saved_between(low, x, 0) < 0.1 * saved_between(standard, x, 0)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_every_block_but_the_last_runs_twice(kind: str) -> None:
    inputs, target = asked(kind)
    blocks = repeated_blocks(list(model(kind).named_modules()))
    begun, ended = ({name: 0 for name, _ in blocks} for _ in range(2))
    attribution = ConservativeLRP(model(kind), memory="low")
    attribution.attribute(inputs, target=target)
    handles = []
    for name, block in blocks:

        def begin(*_: Any, name: str = name) -> None:
            begun[name] += 1

        def end(*_: Any, name: str = name) -> None:
            ended[name] += 1

        handles.append(block.register_forward_pre_hook(begin))
        handles.append(block.register_forward_hook(end))
    attribution.attribute(inputs, target=target)
    for handle in handles:
        handle.remove()
    assert list(begun.values()) == [2, 2, 1]
    assert begun == ended, "no run is left halfway where hooks count on its end"


@pytest.mark.parametrize("kind", ["bert", "vit"])
@pytest.mark.parametrize("preset", ["ah+ln", "lrp"])
def test_second_run_stops_before_the_last_product(
    kind: str, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = {**SMALL, "hidden_size": 128, "intermediate_size": 192}
    torch.manual_seed(0)
    net: nn.Module
    if kind == "bert":
        config = transformers.BertConfig(**wide)
        net = transformers.BertForSequenceClassification(config).eval()
        first, last = "intermediate.dense", "output.dense"
        inputs: Any = {"input_ids": IDS, "attention_mask": MASK}
    else:
        del wide["vocab_size"]
        vit = transformers.ViTConfig(**wide, image_size=16, patch_size=4)
        net = transformers.ViTForImageClassification(vit).eval()
        names = [name for name, m in net.named_modules() if isinstance(m, nn.Linear)]
        first, last = (".".join(names[i].split(".")[-2:]) for i in (-3, -2))
        inputs = torch.randn(2, 3, 16, 16)
    want = ConservativeLRP(net, preset).attribute(inputs, target=1)
    low = ConservativeLRP(net, preset, memory="low")
    low.attribute(inputs, target=1)
    names_of = {id(m): name for name, m in net.named_modules()}
    runs: dict[str, int] = {}
    plain = nn.Linear.forward

    def forward(self: nn.Linear, x: Tensor) -> Tensor:
        runs[names_of[id(self)]] = runs.get(names_of[id(self)], 0) + 1
        return plain(self, x)

    monkeypatch.setattr(nn.Linear, "forward", forward)
    assert torch.equal(low.attribute(inputs, target=1), want)
    blocks = [name for name, _ in repeated_blocks(list(net.named_modules()))]
    assert [runs[f"{name}.{first}"] for name in blocks] == [2, 2, 1]
    assert [runs[f"{name}.{last}"] for name in blocks] == [1, 1, 1]


def test_delta_and_many_targets() -> None:
    inputs, _ = asked("bert")
    standard, low = (ConservativeLRP(model("bert"), memory=m) for m in ("standard", "low"))  # type: ignore[arg-type]
    want = standard.attribute(inputs, target=0, return_convergence_delta=True)
    got = low.attribute(inputs, target=0, return_convergence_delta=True)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    torch.testing.assert_close(
        low.attribute_targets(inputs, [0, 1]), standard.attribute_targets(inputs, [0, 1])
    )


def test_dropout_draws_the_same_numbers() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, 0.3, batch_first=True)
    net = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(80, 3)).train()
    x = torch.randn(2, 5, 16)
    results = []
    for memory in ("standard", "low"):
        torch.manual_seed(5)
        with pytest.warns(UserWarning) if not results else _nothing():
            results.append(ConservativeGI(net, memory=memory).attribute(x, target=1))  # type: ignore[arg-type]
        after = torch.rand(1)
        torch.manual_seed(5)
    assert torch.equal(*results)
    assert after.numel() == 1


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: Any) -> None: ...


CACHING: dict[str, Any] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=30)
    ),
    "mistral": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**SMALL, num_key_value_heads=1, sliding_window=3)
    ),
    "gemma": lambda: transformers.GemmaForCausalLM(
        transformers.GemmaConfig(**SMALL, num_key_value_heads=1, head_dim=8)
    ),
}


@pytest.mark.parametrize("preset", ["ah+ln", "lrp-gamma", "attnlrp"])
@pytest.mark.parametrize("kind", CACHING)
def test_language_models_that_fill_a_cache(kind: str, preset: str) -> None:
    torch.manual_seed(0)
    caching = CACHING[kind]().eval()
    assert caching.config.use_cache, "as transformers makes it"
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    want = ConservativeLRP(caching, preset).attribute(inputs, target=(2, 1))
    low = ConservativeLRP(caching, preset, memory="low")
    assert torch.equal(low.attribute(inputs, target=(2, 1)), want)


def test_a_cache_that_is_handed_in() -> None:
    caching = CACHING["llama"]().eval()
    with torch.no_grad():
        cache = caching(IDS).past_key_values
    length = cache.get_seq_length()

    def forward(ids: Tensor, past: Any) -> Tensor:
        logits: Tensor = caching(input_ids=ids, past_key_values=past).logits
        return logits

    standard, low = (
        ConservativeLRP(forward, memory=m).attribute(  # type: ignore[arg-type]
            IDS[:, :3], target=(2, 1), additional_forward_args=(cache,)
        )
        for m in ("standard", "low")
    )
    assert torch.equal(low, standard)
    assert cache.get_seq_length() == length


class Notes:
    """What blocks hand on beside their output."""

    def __init__(self) -> None:
        self.written: list[Tensor] = []
        self.lock: Any = None


class Noting(nn.Module):
    """Blocks that write to an object, a list or a dictionary, and may read what others wrote."""

    def __init__(self, reads: bool, kind: str, lock: Any = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(NotingBlock(reads) for _ in range(3))
        self.kind, self.lock = kind, lock

    def forward(self, x: Tensor) -> Tensor:
        notes = Notes()
        notes.lock = self.lock
        held: Any = {"object": notes, "list": notes.written, "dict": {"w": notes.written}}
        for block in self.blocks:
            x = block(x, held[self.kind])
        return x


class NotingBlock(nn.Module):
    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.linear, self.reads = nn.Linear(4, 4), reads

    def forward(self, x: Tensor, notes: Any) -> Tensor:
        written = notes.written if isinstance(notes, Notes) else notes
        written = written["w"] if isinstance(written, dict) else written
        written.append(self.linear(x))
        y = written[-1] * len(written)
        return (y * written[0]).tanh() if self.reads else y.tanh()


@pytest.mark.parametrize("kind", ["object", "list", "dict"])
def test_what_blocks_write_is_theirs_alone_the_second_time(kind: str) -> None:
    torch.manual_seed(0)
    net = Noting(False, kind)
    x = torch.randn(2, 4)
    want = ConservativeGI(net, "gi").attribute(x, target=0)
    assert torch.equal(ConservativeGI(net, "gi", memory="low").attribute(x, target=0), want)


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_blocks_may_read_tensors_in_containers(kind: str) -> None:
    torch.manual_seed(0)
    net = Noting(True, kind)
    x = torch.randn(2, 4)
    want = ConservativeGI(net, "gi").attribute(x, target=0)
    assert torch.equal(ConservativeGI(net, "gi", memory="low").attribute(x, target=0), want)


def test_reading_what_other_blocks_wrote_to_an_object_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="other blocks have written"):
        ConservativeGI(Noting(True, "object"), "gi", memory="low").attribute(
            torch.randn(2, 4), target=0
        )


def test_objects_that_cannot_be_copied_are_refused() -> None:
    net = Noting(False, "object", threading.Lock())
    with pytest.raises(UnsupportedModelError, match="Notes, which cannot be copied"):
        ConservativeGI(net, "gi", memory="low").attribute(torch.randn(2, 4), target=0)


class Block(nn.Module):
    def __init__(self, act: Any) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(4, 4), act

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.act(self, x)
        return result


class Blocks(nn.Module):
    def __init__(self, act: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(act) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def in_place(block: Any, x: Tensor) -> Tensor:
    return x.add_(block.linear(x).relu())


def spoiling(block: Any, x: Tensor) -> Tensor:
    result: Tensor = block.linear(x).exp()  # keeps its output for the backward pass
    return result.add_(1.0)


def changing(block: Any, x: Tensor) -> Tensor:
    block.calls = getattr(block, "calls", 0) + 1
    x = block.linear(x)
    return (x.exp() if block.calls > 1 else x).tanh()


def drifting(block: Any, x: Tensor) -> Tensor:
    block.calls = getattr(block, "calls", 0) + 1
    result: Tensor = (block.linear(x) * block.calls).tanh()
    return result


def wavering(block: Any, x: Tensor) -> Tensor:
    block.calls = getattr(block, "calls", 0) + 1
    result: Tensor = (block.linear(x) * (1 + 1e-4 * block.calls)).tanh()
    return result


def shrinking(block: Any, x: Tensor) -> Tensor:
    block.calls = getattr(block, "calls", 0) + 1
    x = block.linear(x)
    return x if block.calls > 1 else x.tanh()


def growing(block: Any, x: Tensor) -> Tensor:
    block.calls = getattr(block, "calls", 0) + 1
    x = block.linear(x).tanh()
    return x.exp() if block.calls > 1 else x


def reshaping(block: Any, x: Tensor) -> Tensor:
    block.calls = getattr(block, "calls", 0) + 1
    x = block.linear(x)
    return x.mT.tanh().mT if block.calls > 1 else x.tanh()


def failing(block: Any, x: Tensor) -> Tensor:
    block.calls = getattr(block, "calls", 0) + 1
    if block.calls > 1:
        raise ValueError("the second time")
    result: Tensor = block.linear(x).tanh()
    return result


@pytest.mark.parametrize(
    "act, error, words",
    [
        (in_place, UnsupportedModelError, "changes its inputs in place"),
        (spoiling, UnsupportedModelError, "changed in place afterwards"),
        (changing, UnsupportedModelError, "second time"),
        (drifting, UnsupportedModelError, "second time"),
        (wavering, UnsupportedModelError, "second time"),
        (shrinking, UnsupportedModelError, "second time"),
        (reshaping, UnsupportedModelError, "second time"),
        (failing, ValueError, "the second time"),
    ],
)
def test_blocks_that_cannot_run_twice(
    act: Any, error: type[Exception], words: str, untouched: Any
) -> None:
    net = Blocks(act)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    with pytest.raises(error, match=words):
        ConservativeGI(net, "gi", memory="low").attribute(torch.randn(2, 4), target=0)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()] == hooks


def test_what_comes_after_the_last_saved_tensor() -> None:
    """It is not run again, and may be anything, unless hooks ask for the whole run."""
    x = torch.randn(2, 4)
    torch.manual_seed(0)
    net = Blocks(growing)
    want = ConservativeGI(net, "gi").attribute(x, target=0)
    for block in net.blocks:
        block.calls = 0
    assert torch.equal(ConservativeGI(net, "gi", memory="low").attribute(x, target=0), want)
    for block in net.blocks:
        block.calls = 0
    net.blocks[0].linear.register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedModelError, match="second time"):
        ConservativeGI(net, "gi", memory="low").attribute(x, target=0)


def test_weights_that_come_and_go_are_not_held() -> None:
    accelerate = pytest.importorskip("accelerate")
    torch.manual_seed(0)
    net = transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL)).eval()
    inputs, target = asked("bert")
    want = ConservativeLRP(net).attribute(inputs, target=target)
    accelerate.cpu_offload(net, execution_device=torch.device("cpu"))
    moved = net.bert.encoder.layer[0].output.dense
    assert moved.weight.device.type == "meta"
    low, standard = (ConservativeLRP(net, memory=m) for m in ("low", "standard"))  # type: ignore[arg-type]
    got = low.attribute(inputs, target=target)
    assert torch.equal(got, standard.attribute(inputs, target=target))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-8)
    assert moved.weight.device.type == "meta"


@pytest.mark.parametrize("how", ["", "replaced", "pre-hook", "global hook", "global pre-hook"])
def test_runs_are_whole_where_something_counts_on_their_end(how: str) -> None:
    torch.manual_seed(0)
    net = Blocks(lambda block, x: block.linear(x).tanh())
    ended: list[nn.Module] = []
    plain = Block.forward

    def forward(self: Block, x: Tensor) -> Tensor:
        out = plain(self, x).relu()  # after the last tensor that is needed
        ended.append(self)
        return out + 0.0

    handles: list[Any] = []
    first = net.blocks[0]
    if how == "replaced":
        first.linear.forward = first.linear.forward  # as packages that move weights about do
    elif how == "pre-hook":
        handles = [first.linear.register_forward_pre_hook(lambda *_: None)]
    elif how == "global hook":
        handles = [module.register_module_forward_hook(lambda *_: None)]
    elif how == "global pre-hook":
        handles = [module.register_module_forward_pre_hook(lambda *_: None)]
    low = ConservativeGI(net, "gi", memory="low")
    low.attribute(torch.randn(2, 4), target=0)
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Block, "forward", forward)
            low.attribute(torch.randn(2, 4), target=0)
    finally:
        for handle in handles:
            handle.remove()
    assert [b is first for b in ended] == [True, False, True][: 3 if how else 2]


def test_what_the_first_run_saves_is_not_changed_either() -> None:
    net = Blocks(spoiling)
    net.blocks[0].act = lambda block, x: block.linear(x).tanh()  # the last is not run again
    with pytest.raises(UnsupportedModelError, match="changed in place afterwards"):
        ConservativeGI(net, "gi", memory="low").attribute(torch.randn(2, 4), target=0)


def test_error_in_the_first_run_leaves_no_hooks() -> None:
    def refuse(_block: Any, _x: Tensor) -> Tensor:
        raise ValueError("no")

    net = Blocks(refuse)
    with pytest.raises(ValueError, match="no"):
        ConservativeGI(net, memory="low").attribute(torch.randn(2, 4), target=0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    packed = []
    with saved_tensors_hooks(lambda t: packed.append(1) or t, lambda t: t):
        (torch.randn(2, requires_grad=True) ** 2).sum()
    assert packed, "no hook of ours is left on the stack of saved tensors"


def test_outermost_lists_only() -> None:
    inner = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    outer = nn.ModuleList([nn.Sequential(*inner), nn.Sequential(nn.Linear(2, 2))])
    net = nn.ModuleDict({"layers": outer, "head": nn.Sequential(nn.Linear(2, 2), nn.ReLU())})
    names = [name for name, _ in repeated_blocks(list(net.named_modules()))]
    assert names == ["layers.0", "layers.1"]


def test_unknown_value() -> None:
    with pytest.raises(InputError, match="memory"):
        ConservativeGI(model("torch"), memory="tiny")  # type: ignore[arg-type]


class Scaled(nn.Module):
    """A block whose map is scaled and shifted by constants, as norms of MobileBERT are."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(6, 6)
        self.scale, self.shift = nn.Parameter(torch.rand(6)), nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.map(x) * self.scale + self.shift)


@pytest.mark.parametrize("options", [{}, {"bias": "distribute"}, {"rules": "lrp-gamma"}])
def test_factors_of_maps_are_read_in_the_second_run(options: Any) -> None:
    torch.manual_seed(0)
    blocks = nn.Sequential(Scaled(), Scaled(), Scaled())
    network = nn.Sequential(blocks, nn.Flatten(), nn.Linear(18, 2)).eval()
    x = torch.randn(2, 3, 6)
    plain, saving = (
        ConservativeLRP(network, memory=memory, **options).attribute(x, target=1)
        for memory in ("standard", "low")
    )
    assert torch.equal(saving, plain)


def test_blocks_of_stock_models_that_scale_by_parameters() -> None:
    """Of MobileBERT, whose norms are factors and summands, and of DeBERTa."""
    small = {**SMALL, "hidden_size": 16}
    configs = [
        transformers.MobileBertConfig(
            **small, embedding_size=16, true_hidden_size=16, intra_bottleneck_size=16
        ),
        transformers.DebertaV2Config(**small, relative_attention=True, pos_att_type=["p2c"]),
    ]
    for config in configs:
        torch.manual_seed(0)
        network = transformers.AutoModelForSequenceClassification.from_config(config).eval()
        for options in ({}, {"bias": "distribute"}):
            plain, saving = (
                ConservativeLRP(network, memory=memory, **options).attribute(
                    {"input_ids": IDS, "attention_mask": MASK}, target=1
                )
                for memory in ("standard", "low")
            )
            assert torch.equal(saving, plain)
