"""How long AttentionFlow takes: the table in ``attention_flow.md``.

    python benchmarks/attention_flow.py --output benchmarks/attention_flow.md

A BERT with random weights, 12 heads; one example, one query row, i.e. one maximum flow for each
input token.  ``forward`` is reading the attention maps, ``flow`` the maximum flows.  Real models
have sparser attention than random weights: ``sharp`` multiplies queries by 8.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import torch
import transformers
from commits import made_with
from torch import Tensor

from captum_lrp_tx.attr.attention_alone import AttentionFlow, AttentionRollout

SIZES = [(32, 6), (128, 6), (128, 12), (256, 6), (512, 6)]


def bert(tokens: int, layers: int, sharpness: float) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=1000,
        hidden_size=192,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=384,
        max_position_embeddings=tokens,
        initializer_range=0.2,
    )
    model = transformers.BertForSequenceClassification(config).eval()
    for name, parameter in model.named_parameters():
        if ".self.query." in name:
            parameter.data *= sharpness
    return model


def seconds(method: AttentionRollout | AttentionFlow, ids: Tensor) -> float:
    start = time.perf_counter()
    method.attribute(ids, target=0)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made = made_with("torch", "transformers", "scipy")
    lines = [
        "| tokens | layers | attention | forward (s) | forward + flow (s) |",
        "|---|---|---|---|---|",
    ]
    for tokens, layers in SIZES:
        for name, sharpness in (("random", 1.0), ("sharp", 8.0)):
            model = bert(tokens, layers, sharpness)
            ids = torch.randint(1, 1000, (1, tokens))
            AttentionRollout(model).attribute(ids, target=0)
            forward = seconds(AttentionRollout(model), ids)
            total = seconds(AttentionFlow(model), ids)
            lines.append(f"| {tokens} | {layers} | {name} | {forward:.3f} | {total:.2f} |")
            print(lines[-1], flush=True)
    lines += [
        "",
        f"One example, one query row; {platform.machine()}, {options.threads} thread(s), {made}.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
