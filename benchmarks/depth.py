"""Conservation error as a function of depth: does rounding add up over layers?

``python benchmarks/depth.py --report benchmarks/depth.md`` explains transformers with random
weights, biases and norms included, of 1 to 48 layers under ``lrp``, in four precisions, and prints
what is missing between the output and the relevance of inputs and constants, relative to the
output.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from commits import made_with
from torch import Tensor, nn

from captum_lrp_tx import audit
from captum_lrp_tx.rules.rule import Bias

DEPTHS = (1, 3, 6, 12, 24, 48)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
WIDTH = 32


class Block(nn.Module):
    """A transformer block with its norms before or behind the residual sums."""

    def __init__(self, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def attend(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, 2, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(y.reshape(batch, tokens, width))

    def forward(self, x: Tensor) -> Tensor:
        if self.pre_norm:
            x = x + self.attend(self.norm1(x))
            return x + self.down(F.gelu(self.up(self.norm2(x))))
        x = self.norm1(x + self.attend(x))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Net(nn.Module):
    """Blocks and a head; one number for each example."""

    def __init__(self, depth: int, pre_norm: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(pre_norm) for _ in range(depth)))
        self.head = nn.Linear(WIDTH, 1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.18 if parameter.dim() > 1 else 0.1)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x)).mean((1, 2))


def error(depth: int, pre_norm: bool, dtype: torch.dtype, bias: Bias, seed: int) -> float:
    """What is missing, relative to the output summed over two examples."""
    torch.manual_seed(seed)
    model, x = Net(depth, pre_norm).to(dtype).eval(), torch.randn(2, 8, WIDTH).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = audit.explainability(model, x, rules="lrp", bias=bias, file=None)
    return abs(report.conservation_error / report.output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    made = made_with("torch")
    lines = [
        "# Conservation error by depth",
        "",
        f"`python benchmarks/depth.py --seeds {arguments.seeds}` ({made}): "
        "|output - relevance of inputs and constants| / |output| of random transformers under "
        f"`lrp`, median (largest) of {arguments.seeds} models, each with norms before and behind "
        "the sums, biases absorbed and distributed. What is left is rounding; half precision "
        "includes that of the model's own output.",
        "",
        "| layers | " + " | ".join(str(d)[6:] for d in DTYPES) + " |",
        "|---" * (len(DTYPES) + 1) + "|",
    ]
    for depth in DEPTHS:
        cells = []
        for dtype in DTYPES:
            found = [
                error(depth, pre_norm, dtype, bias, seed)
                for pre_norm in (True, False)
                for bias in ("absorb", "distribute")
                for seed in range(arguments.seeds)
            ]
            cells.append(f"{statistics.median(found):.0e} ({max(found):.0e})")
        lines.append(f"| {depth} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    if arguments.report is not None:
        arguments.report.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
