"""Folders of adapters (LoRA, prompt tuning, ...) that the package peft has saved."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.packages import needed

#: What a folder of an adapter holds in place of ``config.json``.
CONFIGURATION = "adapter_config.json"
_KINDS: dict[str, Literal["text", "next token"]] = {"SEQ_CLS": "text", "CAUSAL_LM": "next token"}


@dataclass(frozen=True)
class Adapter:
    """What was trained on top of another model.

    Attributes:
        folder (str): Where it is.
        base (str): Folder or name of the model below.
        kind (str, optional): What it predicts, if it says so.
    """

    folder: str
    base: str
    kind: Literal["text", "next token"] | None


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder.

    Raises:
        InputError: If its configuration cannot be read, or it has no weights in safetensors.
    """
    try:
        configuration = json.loads((folder / CONFIGURATION).read_text("utf-8"))
        base, task = configuration["base_model_name_or_path"], configuration.get("task_type")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"cannot read {folder / CONFIGURATION}: {error}") from error
    if not isinstance(base, str) or not base:
        raise InputError(f"{folder / CONFIGURATION} does not name the model that it is for")
    if not (folder / "adapter_model.safetensors").is_file():
        raise InputError(f"the folder {folder} has no adapter_model.safetensors")
    return Adapter(str(folder), base, _KINDS.get(str(task)))


def attached(model: Any, adapter: Adapter) -> Any:
    """A model with its adapter on top.

    Raises:
        ImportError: If peft is not installed.
    """
    peft = needed("peft", f"{adapter.folder} holds an adapter of peft", "pip install peft")
    whole = peft.PeftModel.from_pretrained(model, adapter.folder)
    return _WithoutPrompt(whole) if adapter.kind == "next token" else whole


def is_trained(key: str, model: Any) -> bool:
    """Whether the adapter brings the weights of this name, which the model below lacks."""
    whole = model.model if isinstance(model, _WithoutPrompt) else model
    brought = getattr(whole, "modules_to_save", None) or ()
    return any(part in brought for part in key.split("."))


class _WithoutPrompt(nn.Module):
    """A language model whose output has one position for each token, none for learned prompts."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids: Any, **more: Any) -> Any:
        output = self.model(input_ids=input_ids, **more)
        output.logits = output.logits[:, -input_ids.shape[1] :]
        return output
