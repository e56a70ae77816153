"""Token ids in real architectures, against gradients of the rows that were looked up for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captum_lrp_tx import ConservativeGI, ConservativeLRP, TokenIntegratedGradients

transformers = pytest.importorskip("transformers")
IDS = torch.tensor([[10, 11, 12, 13, 14, 15, 16, 2]])
SMALL = {
    "vocab_size": 60, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32, "num_labels": 3, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0,
    "decoder_start_token_id": 3,
}  # fmt: skip
BERT = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 64, "pad_token_id": 1,
}  # fmt: skip


def randomized(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.double().eval()


class Rows(TorchFunctionMode):
    """Every lookup of the vocabulary's table gives leaves, known by the ids looked up."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.found: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "embedding":
            ids, table = args[:2] if not args[0].is_floating_point() else args[1::-1]
            if len(table) == self.vocabulary:
                leaf = result.detach().requires_grad_()
                self.found.append((ids, leaf))
                return leaf.clone()
        return result


def by_rows(forward: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    """Word relevance under plain gradients; the ids must be all different."""
    rows = Rows(60)
    with rows:
        output = forward(ids)
    leaves = [leaf for _, leaf in rows.found]
    grads = torch.autograd.grad(output.sum(), leaves, allow_unused=True)
    of_id = torch.zeros(60, dtype=torch.float64)
    for (looked_up, leaf), grad in zip(rows.found, grads, strict=True):
        if grad is not None:
            of_id.index_add_(0, looked_up.flatten(), (leaf * grad).sum(-1).detach().flatten())
    return of_id[ids]


def bart(kind: str, **more: Any) -> nn.Module:
    config = getattr(transformers, f"{kind.split('For')[0]}Config")(**SMALL, **more)
    return randomized(getattr(transformers, kind)(config))


def t5(kind: str) -> nn.Module:
    config = transformers.T5Config(
        vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, num_labels=3,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    return randomized(getattr(transformers, kind)(config))


def windowed(kind: str) -> nn.Module:
    options: dict[str, Any] = {"attention_window": [4, 4]} if kind == "Longformer" else {}
    if kind == "BigBird":
        options = {"block_size": 2, "num_random_blocks": 1}
    config = getattr(transformers, f"{kind}Config")(**BERT, **options)
    return randomized(getattr(transformers, f"{kind}ForSequenceClassification")(config))


MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "BART classifier": (lambda: bart("BartForSequenceClassification"), 1),
    "mBART classifier": (lambda: bart("MBartForSequenceClassification"), 1),
    "PLBART classifier": (lambda: bart("PLBartForSequenceClassification"), 1),
    "BART, teacher forcing": (lambda: bart("BartForConditionalGeneration"), (3, 7)),
    "LED": (
        lambda: bart(
            "LEDForConditionalGeneration", attention_window=4, max_encoder_position_embeddings=32,
            max_decoder_position_embeddings=32,
        ),
        (3, 7),
    ),
    "T5 classifier": (lambda: t5("T5ForSequenceClassification"), 1),
    "Longformer": (lambda: windowed("Longformer"), 1),
    "BigBird": (lambda: windowed("BigBird"), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("length", [8, 6])
def test_words_of_models_that_move_ids(name: str, length: int) -> None:
    build, target = MODELS[name]
    model = build()
    ids = torch.cat([IDS[:, : length - 1], IDS[:, -1:]], 1)

    def forward(given: Tensor) -> Tensor:
        logits = model(given).logits
        return logits[:, target[0], target[1]] if isinstance(target, tuple) else logits[:, target]

    expected = by_rows(forward, ids)
    parts = ConservativeGI(model, rules="gi").attribute(ids, target=target, positions="separate")
    words = [v for k, v in parts.items() if "posit" not in k and "token_type" not in k]
    torch.testing.assert_close(sum(words), expected, rtol=1e-6, atol=1e-10)


def test_encoder_and_decoder_are_told_apart() -> None:
    for name, prefix in (("BART classifier", "model"), ("T5 classifier", "transformer")):
        build = MODELS[name][0]
        names = {f"{prefix}.{side}.embed_tokens" for side in ("encoder", "decoder")}
        parts = ConservativeGI(build()).attribute(IDS, target=1, positions="separate")
        assert names <= set(parts)


@pytest.mark.parametrize("rules", ["gi", "lrp"])
def test_shifted_ids_are_those_of_an_explicit_decoder(rules: str) -> None:
    model = MODELS["BART classifier"][0]()
    shifted = torch.cat([torch.tensor([[3]]), IDS[:, :-1]], 1)
    encoder, decoder = ConservativeLRP(
        lambda a, b: model(input_ids=a, decoder_input_ids=b).logits, rules=rules
    ).attribute((IDS, shifted), target=2)
    expected = encoder.clone()
    expected[:, :-1] += decoder[:, 1:]
    got = ConservativeLRP(model, rules=rules).attribute(IDS, target=2)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("bias", ["absorb", "distribute"])
def test_labels_and_texts_of_the_function_are_constants(bias: Any) -> None:
    model = t5("T5ForConditionalGeneration")
    labels = torch.tensor([[20, 21, 22, 23, 24, 25, 26, 27]])
    decoder = torch.cat([torch.tensor([[0]]), labels[:, :-1]], 1)
    expected = ConservativeLRP(model, bias=bias).attribute(
        {"input_ids": IDS, "decoder_input_ids": decoder}, target=(7, 5)
    )[0]
    for inputs, forward, more in (
        ({"input_ids": IDS, "labels": labels}, model, None),
        (IDS, lambda x: model(input_ids=x, decoder_input_ids=decoder), None),
        (IDS, lambda x, y: model(input_ids=x, decoder_input_ids=y), decoder),
    ):
        got = ConservativeLRP(forward, bias=bias).attribute(
            inputs, target=(7, 5), additional_forward_args=more
        )
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-12)


def test_multiple_choice() -> None:
    model: Any = randomized(transformers.BertForMultipleChoice(transformers.BertConfig(**BERT)))
    choices = torch.randint(5, 60, (2, 3, 7), generator=torch.Generator().manual_seed(0))
    got = ConservativeLRP(model).attribute({"input_ids": choices}, target=1, strict=True)
    one_by_one = ConservativeLRP(lambda i: model.classifier(model.bert(i).pooler_output))
    expected = one_by_one.attribute(choices.view(-1, 7), target=0).view(2, 3, 7)
    torch.testing.assert_close(got[:, 1], expected[:, 1], rtol=1e-8, atol=1e-12)
    assert not got[:, [0, 2]].any()


def test_virtual_tokens_are_no_words() -> None:
    peft = pytest.importorskip("peft")
    config = transformers.GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=40)
    base: Any = randomized(transformers.GPT2LMHeadModel(config))
    ids = IDS[:, :4]
    for count in (3, 4):
        tuned = (
            peft.get_peft_model(
                base,
                peft.PromptTuningConfig(
                    task_type=peft.TaskType.CAUSAL_LM, num_virtual_tokens=count
                ),
            )
            .double()
            .eval()
        )
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        parts = ConservativeLRP(tuned, rules="gi").attribute(
            inputs, target=(-1, 7), positions="separate"
        )
        words = base.transformer.wte(ids).detach().requires_grad_()
        joined = torch.cat([tuned.get_prompt(1).detach(), words], 1)
        base(inputs_embeds=joined).logits[0, -1, 7].backward()
        expected = (words * words.grad).sum(-1).detach()
        got = sum(v for k, v in parts.items() if "wpe" not in k)
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-12)


def test_characters_through_hashes() -> None:
    config = transformers.CanineConfig(
        **{**BERT, "bos_token_id": 0, "eos_token_id": 2}, num_hash_functions=2, num_hash_buckets=60,
        downsampling_rate=2, local_transformer_stride=4,
    )  # fmt: skip
    model: Any = randomized(transformers.CanineForSequenceClassification(config)).float()
    ids = torch.tensor([[9, 10, 11, 12, 13, 14, 15, 16]])
    rows = Rows(60)
    with rows:
        output = model(ids).logits[:, 1].sum()
    leaves = [leaf for _, leaf in rows.found if leaf.shape[-1] == 8]  # positions are wider
    assert len(leaves) == 2
    grads = torch.autograd.grad(output, leaves)
    expected = sum((leaf * g).sum(-1).detach() for leaf, g in zip(leaves, grads, strict=True))
    parts = ConservativeGI(model, rules="gi").attribute(ids, target=1, positions="separate")
    words = sum(v for k, v in parts.items() if "HashBucket" in k)
    torch.testing.assert_close(words, expected, rtol=1e-3, atol=1e-5)


def test_two_padded_texts_of_a_bi_encoder() -> None:
    encoder: Any = randomized(transformers.BertModel(transformers.BertConfig(**BERT)))

    def pooled(ids: Tensor) -> Tensor:
        mask = (ids != 1).long()
        states = encoder(ids, attention_mask=mask).last_hidden_state * mask[..., None]
        return states.sum(1) / mask.sum(1, keepdim=True)

    first = torch.tensor([[3, 10, 11, 4, 1, 1]])
    second = torch.tensor([[3, 20, 21, 22, 4, 1]])
    with torch.no_grad():
        fixed = pooled(second)
    expected = ConservativeLRP(lambda a: (pooled(a) * fixed).sum(-1)).attribute(first)
    got = ConservativeLRP(lambda a: (pooled(a) * pooled(second)).sum(-1)).attribute(first)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-12)
    both = ConservativeGI(lambda a, b: (pooled(a) * pooled(b)).sum(-1), rules="gi")
    mirrored = both.attribute((second, first))
    for one, other in zip(both.attribute((first, second)), reversed(mirrored), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


def test_integrated_gradients_follow_ids_too() -> None:
    """Completeness: with the decoder's words left out, half of the difference was missing."""
    model = MODELS["BART classifier"][0]()
    ids = IDS

    def forward(given: Tensor) -> Tensor:
        return model(given).logits[:, 1]

    baseline = torch.full_like(ids, 5)
    baseline[:, -1] = 2  # the classifier reads where the end token stands
    explainer = TokenIntegratedGradients(model, baseline=baseline, n_steps=300)
    got = explainer.attribute(ids, target=1)
    difference = float(forward(ids) - forward(baseline))
    assert float(got.sum()) == pytest.approx(difference, abs=0.01 * abs(difference) + 1e-4)
