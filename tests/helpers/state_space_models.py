"""Tiny state space models of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zoo

# ---- the mixers of transformers -----------------------------------------------------------------
COMMON = {
    "vocab_size": 41, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_size": 16, "num_hidden_layers": 2,
}  # fmt: skip
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32}
CHUNKS = {
    "mamba_d_state": 4, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_expand": 2,
    "mamba_n_groups": 2, "mamba_chunk_size": 4, "mamba_d_conv": 3,
}  # fmt: skip
STEPS = {"state_size": 4, "conv_kernel": 3, "time_step_rank": 3, "expand": 2}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "Mamba": STEPS,
    "FalconMamba": STEPS,
    "Mamba2": {"state_size": 4, "conv_kernel": 3, "num_heads": 4, "head_dim": 8, "expand": 2,
               "n_groups": 2, "chunk_size": 4},
    "Jamba": {**ATTENTION, "mamba_d_state": 4, "mamba_d_conv": 3, "mamba_dt_rank": 3,
              "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
              "expert_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2},
    "FalconH1": {**ATTENTION, **CHUNKS, "mamba_d_ssm": 32, "head_dim": 4},
    "Bamba": {**ATTENTION, **CHUNKS, "attn_layer_indices": [1]},
    "GraniteMoeHybrid": {**ATTENTION, **CHUNKS, "layer_types": ["mamba", "attention"],
                         "shared_intermediate_size": 32, "num_local_experts": 4,
                         "num_experts_per_tok": 2},
    "Zamba2": {**ATTENTION, "mamba_d_state": 4, "mamba_d_conv": 3, "mamba_expand": 2,
               "mamba_ngroups": 2, "n_mamba_heads": 4, "chunk_size": 4, "num_mem_blocks": 1,
               "use_mem_rope": True, "layers_block_type": ["mamba", "hybrid"], "adapter_rank": 4},
    "NemotronH": {**ATTENTION, "ssm_state_size": 4, "mamba_num_heads": 4, "mamba_head_dim": 8,
                  "n_groups": 2, "conv_kernel": 3, "chunk_size": 4, "expand": 2, "head_dim": 4,
                  "hybrid_override_pattern": "M*", "n_routed_experts": 4,
                  "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}  # fmt: skip


def build(family: str) -> Any:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, family + "Config"):
        pytest.skip(f"this transformers has no {family}")
    if int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("configurations and mixers are those of transformers 5")
    config = getattr(transformers, family + "Config")(**COMMON, **CONFIGURATIONS[family])
    torch.manual_seed(0)
    return zoo.randomise(getattr(transformers, family + "ForCausalLM")(config).eval())
