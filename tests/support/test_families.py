"""Text families of Hugging Face, from tiny random configurations: right, or refused.

Each model is built by setting every size-like attribute of its configuration small, without
knowing the family.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oracle
import zoo
from captum_lrp_tx import ConservativeGI, ConservativeLRP, audit
from captum_lrp_tx.errors import UncoveredOperationError
from closeness import close_to_largest

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "vocab_size": 41, "num_labels": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "cls_token_id": 1, "sep_token_id": 2, "max_position_embeddings": 64, "n_positions": 64,
    "hidden_size": 16, "d_model": 16, "n_embd": 16, "dim": 16, "embedding_size": 16,
    "word_embed_proj_dim": 16, "intermediate_size": 32, "ffn_dim": 32, "hidden_dim": 32,
    "d_ff": 32, "moe_intermediate_size": 32, "num_hidden_layers": 2, "num_layers": 2,
    "n_layer": 2, "num_attention_heads": 4, "num_heads": 4, "n_head": 4, "n_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "d_kv": 4, "rotary_dim": 4, "num_experts": 4,
    "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4,
    "attention_types": [[["global", "local"], 1]], "global_attn_every_n_layers": 2,
}  # fmt: skip

VERIFIED = """DistilBert Roberta Albert Electra DebertaV2 MPNet ModernBert OPT GPTNeo GPTNeoX GPTJ
Falcon Mistral Mixtral Qwen2 Qwen3 Qwen3Moe Gemma Gemma2 Phi Phi3 Olmo2 Cohere Starcoder2 GptOss
Funnel BigBird Nystromformer FNet Bloom""".split()
#: Operations that no rule covers yet, by family.
REFUSED = {"Yoso": "YosoCumulation"}


def build(family: str) -> nn.Module:
    if not hasattr(transformers, family + "Config"):
        pytest.skip(f"this transformers has no {family}")
    config_class = getattr(transformers, family + "Config")
    known = set(inspect.signature(config_class.__init__).parameters)
    known |= set(getattr(config_class, "attribute_map", {}))
    for base in config_class.__mro__:
        known |= set(getattr(base, "__annotations__", {}))
    config = config_class(**{k: v for k, v in SMALL.items() if k in known})
    for head in ("ForSequenceClassification", "ForCausalLM"):
        if hasattr(transformers, family + head):
            torch.manual_seed(0)
            return zoo.randomise(getattr(transformers, family + head)(config).eval())
    pytest.skip(f"{family} has no classifier and no language model")


def explained(model: nn.Module) -> tuple[Tensor, Any, Any]:
    ids = torch.randint(3, 40, (2, 7))
    if model(ids).logits.dim() == 2:
        return ids, 1, lambda output: output[:, 1]
    return ids, (6, 1), lambda output: output[:, 6, 1]


@pytest.mark.parametrize("family", VERIFIED)
def test_family_is_verified(family: str, untouched: Any) -> None:
    model = build(family)
    ids, target, select = explained(model)
    with untouched(model):
        relevance = ConservativeGI(model).attribute(ids, target=target, strict=True)
    expected = oracle.oracle_token_relevance(lambda i: model(i).logits, ids, "ah+ln", select)
    close_to_largest(relevance, expected, 1e-4)
    report = audit.explainability(model, ids, target=target, file=None, strict=True)
    scale = abs(report.output) + sum(abs(v) for v in report.absorbed.values())
    assert abs(report.conservation_error) <= 1e-4 * scale


@pytest.mark.parametrize("family", REFUSED)
def test_family_is_refused_with_the_operation(family: str) -> None:
    model = build(family)
    ids, target, _ = explained(model)
    with pytest.raises(UncoveredOperationError, match=REFUSED[family]):
        ConservativeLRP(model).attribute(ids, target=target, strict=True)


@pytest.mark.parametrize("rules", ["ah+ln", "lrp", "lrp-gated"])
def test_the_inverse_that_landmarks_need_is_constant(
    rules: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nystromformer computes one by steps, which are part of the pattern."""
    from transformers.models.nystromformer import modeling_nystromformer as modeling

    config = transformers.NystromformerConfig(
        vocab_size=41, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, segment_means_seq_len=12, num_landmarks=3, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = zoo.randomise(transformers.NystromformerForSequenceClassification(config).eval())
    explainer, ids = ConservativeLRP(model, rules), torch.randint(3, 40, (2, 12))
    found = explainer.attribute(ids, target=1, strict=True)
    attention = modeling.NystromformerSelfAttention
    inverse = attention.iterative_inv
    monkeypatch.setattr(attention, "iterative_inv", lambda *args: inverse(*args).detach())
    close_to_largest(found, ConservativeLRP(model, rules).attribute(ids, target=1), 1e-4)


class Transposed(nn.Module):
    """Parameters seen through ``.T`` and ``.mT``, as Falcon multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.other = nn.Parameter(torch.randn(3, 6))
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight.T) @ self.other.mT + self.bias


def test_views_of_parameters_are_constants() -> None:
    model, x = Transposed(), torch.randn(4, 6)
    report = audit.explainability(model, x, target=1, file=None, strict=True)
    assert abs(report.conservation_error) < 1e-5
    assert report.absorbed == pytest.approx({"bias": 4 * float(model.bias[1].detach())}, rel=1e-5)
    assert {item.kind for item in report.applied} == {"linear", "activation"}
