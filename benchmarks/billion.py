r"""What explanations of one billion parameters cost: ``billion.md``.

    python benchmarks/billion.py --output benchmarks/billion.md

The model has the sizes of Llama 3.2 1B and random weights.  Ratios are those of medians of calls
in turns, as in ``speed.py``.  The last table loads every layer from the disk when it is needed
(``accelerate.disk_offload``) and compares the relevance with that of the model in memory.  Without
instructions for bfloat16 (the page names what the processor has) a call takes minutes for a long
text: ``--dtype float32 --tokens 64 256`` is what such a machine can do.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import accelerate
import torch
import transformers
from captum.attr import InputXGradient
from methods import FORWARD, REFERENCE, Method, low
from speed import conditions
from torch import Tensor, nn
from turns import HEADS, rows, table
from workloads import FromEmbeddings

from captum_lrp_tx import ConservativeLRP

PRESETS = ("lrp", "attnlrp")


def llama(dtype: torch.dtype) -> nn.Module:
    """The sizes of Llama 3.2 1B: 16 layers, 2,048 wide, 32 query heads on 8."""
    config = transformers.LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128_256, tie_word_embeddings=True,
        max_position_embeddings=4096, dtype=dtype,
    )  # fmt: skip
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def by_length(model: nn.Module, lengths: list[int], turns: int) -> Iterator[list[str]]:
    """Presets over gradient x input, for texts of these lengths."""
    last = FromEmbeddings(model, last=True)
    for tokens in lengths:
        x = model.get_input_embeddings()(_ids(model, tokens)).detach()

        def forward(x: Tensor = x) -> None:
            with torch.no_grad():
                last(x)

        explainers = {REFERENCE: InputXGradient(last)}
        explainers |= {preset: ConservativeLRP(last, preset) for preset in PRESETS}
        explainers[low("lrp")] = ConservativeLRP(last, memory="low")
        found = {FORWARD: Method(forward)}
        for name, explainer in explainers.items():
            found[name] = Method(functools.partial(explainer.attribute, x, target=0))
        cells = [row.cells()[:6] for row in rows(found, {}, turns, time.perf_counter)]
        count = f"{turns} turn{'s' * (turns > 1)}."
        yield [f"## 1 x {tokens:,} tokens", "", count, "", *table(HEADS[:6], cells), ""]


def from_disk(model: nn.Module, tokens: int) -> list[str]:
    """The model as transformers makes it, its cache included, in memory and on the disk."""
    ids, target = _ids(model, tokens), (tokens - 1, 0)
    kinds = {"lrp": {}, low("lrp"): {"memory": "low"}}
    wanted, lines = {}, []
    for where in ("in memory", "on the disk"):
        with tempfile.TemporaryDirectory() as folder:
            if where == "on the disk":
                accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))
            for name, options in kinds.items():
                explainer = ConservativeLRP(model, **options)
                explainer.attribute(ids, target=target)
                start = time.perf_counter()
                relevance = explainer.attribute(ids, target=target).float()
                seconds = time.perf_counter() - start
                expected = wanted.setdefault("lrp", relevance)
                error = (relevance - expected).abs().max() / expected.abs().max()
                lines.append([where, name, f"{seconds:.1f}", f"{float(error):.0e}"])
    heads = ("weights", f"{tokens} token ids", "seconds", "greatest difference from the first row")
    return ["## Weights on the disk", "", *table(heads, lines), ""]


def _ids(model: nn.Module, tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.config.vocab_size, (1, tokens), generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    args.clock = "wall"
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = llama(getattr(torch, args.dtype))
    count = sum(p.numel() for p in model.parameters())
    size = sum(p.nbytes for p in model.parameters())
    lines = [
        f"# One billion parameters in {args.dtype}", "", conditions(args), "",
        f"{count / 1e9:.2f} billion parameters, {size / 2**20:,.0f} MiB; peaks are what comes "
        f"on top. The processor has {torch.backends.cpu.get_cpu_capability()}.", "",
    ]  # fmt: skip
    for made in itertools.chain(
        by_length(model, args.tokens, args.turns),
        (from_disk(model, tokens) for tokens in args.tokens[:1]),
    ):
        print("\n".join(made), flush=True)
        lines += made
        if args.output is not None:  # what there is, should the rest not come to an end
            args.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
