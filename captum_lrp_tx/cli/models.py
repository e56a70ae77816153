"""Models, tokenizers and their labels: from a folder, from the Hub, or shipped."""

from __future__ import annotations

import fnmatch
import importlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from captum_lrp_tx.cli.adapters import CONFIGURATION, Adapter, attached, is_trained, read_adapter
from captum_lrp_tx.cli.status import status
from captum_lrp_tx.errors import CaptumLRPError, InputError, UnsupportedModelError
from captum_lrp_tx.models import model_path
from captum_lrp_tx.packages import needed

Kind = Literal["text", "next token", "image", "text and image", "sound"]
Loaded = TypeVar("Loaded")

_AUTO_CLASSES: dict[Kind, str] = {
    "text": "AutoModelForSequenceClassification",
    "next token": "AutoModelForCausalLM",
    "image": "AutoModelForImageClassification",
    "sound": "AutoModelForAudioClassification",
}
#: Models of text and image: what their names end in, and the class that loads them.
_TEXT_AND_IMAGE: tuple[tuple[str, str], ...] = (
    ("CLIPModel", "AutoModel"),
    ("SiglipModel", "AutoModel"),
    ("Siglip2Model", "AutoModel"),
    ("ViltForQuestionAnswering", "AutoModelForVisualQuestionAnswering"),
)
#: What a model wants that was given something else.
_WANTS: dict[Kind, str] = {
    "text": "text: explain TEXT",
    "next token": "text: explain TEXT",
    "image": "images: explain --image FILE",
    "text and image": "a text and an image: explain TEXT --image FILE",
    "sound": "sounds: explain --audio FILE",
}
_SUFFIXES: tuple[tuple[str, Kind], ...] = (
    ("ForSequenceClassification", "text"),
    ("ForCausalLM", "next token"),
    ("LMHeadModel", "next token"),
    ("ForImageClassification", "image"),
    ("ForAudioClassification", "sound"),
    *((name, "text and image") for name, _ in _TEXT_AND_IMAGE),
)


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        name (str): Folder, or name on the Hub.
        is_local (bool): Whether it is a folder, so that the network is not needed.
        adapter (Adapter, optional): What was trained on top of it.
    """

    name: str
    is_local: bool
    adapter: Adapter | None = None

    def load(self, what: str, load: Callable[..., Loaded]) -> Loaded:
        """Calls a ``from_pretrained``, whose many exceptions become one.

        Args:
            what (str): What is loaded, for the message.
            load (callable): Gets the name and the options.

        Returns:
            What ``load`` returns.

        Raises:
            InputError: If it fails.
        """
        try:
            with status(f"loading the {what}"):
                # code that comes with a model is never run, nor is the user asked whether to
                return load(self.name, local_files_only=self.is_local, trust_remote_code=False)
        except BaseException as error:
            if not _is_failure(error):
                raise
            reason = _first_sentence(error)
            if self.is_local:
                message = f"cannot load the {what} in the folder {self.name}: {reason}"
            else:
                message = (
                    f"there is no folder {self.name}, and the {what} of that name cannot be "
                    f"loaded from the Hugging Face Hub: {reason}"
                )
            raise InputError(message) from error

    def use(self, what: str, run: Callable[[], Loaded]) -> Loaded:
        """Calls what was loaded: a damaged folder may show only then.

        Args:
            what (str): What is called, for the message.
            run (callable): Calls it.

        Returns:
            What ``run`` returns.

        Raises:
            InputError: If it fails.
        """
        try:
            return run()
        except BaseException as error:
            if isinstance(error, CaptumLRPError | MemoryError) or not _is_failure(error):
                raise
            kind = type(error).__name__
            raise InputError(
                f"the {what} of {self.name} fails on this input: {kind}: {_first_sentence(error)}"
            ) from error


#: Files of which every tokenizer has at least one.
_TOKENIZER_FILES = (
    "tokenizer*", "vocab*", "merges.txt", "tekken.json", "*.model", "*.tiktoken", "*.vocab",
    "*.bpe",
)  # fmt: skip


def transformers() -> Any:
    """The module transformers, told to keep quiet.

    Raises:
        MissingPackageError: If it is not installed.
    """
    purpose = "the command line needs transformers"
    hint = 'pip install "transformers>=4.48" safetensors tqdm'
    with status("importing transformers"):
        module = needed("transformers", purpose, hint)
        # imports its parts when they are first used
        needed("transformers.models.auto.configuration_auto", purpose, hint)
    module.utils.logging.set_verbosity_error()
    module.utils.logging.disable_progress_bar()
    return module


def find(name: str | None, shipped: str) -> Source:
    """The model that is meant.

    Args:
        name (str, optional): Folder or name on the Hub.
        shipped (str): Model of the package that is used without a name.

    Raises:
        InputError: If there is no such folder and it cannot be a name on the Hub.
    """
    if name is None:
        return Source(str(model_path(shipped)), True)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            if (folder / CONFIGURATION).is_file():
                adapter = read_adapter(folder)
                return replace(find(adapter.base, shipped), adapter=adapter)
            raise InputError(
                f"the folder {name} holds no model in Hugging Face format: no config.json"
            )
        return Source(str(folder), True)
    if folder.exists():
        raise InputError(f"{name} is a file; --model takes the folder that holds config.json")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise InputError(f"there is no folder {name}")
    return Source(name, False)


def kind_of(source: Source, wanted: tuple[Kind, ...]) -> tuple[Kind, Any]:
    """What a model predicts, and its configuration.

    Args:
        source (Source): The model.
        wanted (tuple of str): What the input allows; the first is assumed if the model does not
            say.

    Raises:
        InputError: If the configuration cannot be read, or is for other inputs.
        UnsupportedModelError: If the model predicts neither classes nor tokens.
    """
    config = source.load("configuration", transformers().AutoConfig.from_pretrained)
    names = getattr(config, "architectures", None) or []
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"{source.name}: architectures in its config.json must be a list of class names, e.g. "
            f'["BertForSequenceClassification"]; it is {names!r}'
        )
    kinds = [kind for name in names for suffix, kind in _SUFFIXES if name.endswith(suffix)]
    if kinds == ["text"] and names[0] in _audio_classes():
        kinds = ["sound"]  # Wav2Vec2ForSequenceClassification and its like
    if source.adapter is not None and source.adapter.kind is not None:
        kinds = [source.adapter.kind]
    if names and not kinds:
        raise UnsupportedModelError(
            f"{source.name} is a {names[0]}; only ...ForSequenceClassification, ...ForCausalLM, "
            "...ForImageClassification, ...ForAudioClassification, CLIP, SigLIP and ViLT can be "
            "explained here. Use captum_lrp_tx.explain or ConservativeLRP in Python."
        )
    kind = kinds[0] if kinds else wanted[0]
    if kind not in wanted and kind == "next token" and "text" in wanted:
        raise InputError(
            f"{source.name} is a {names[0]}, which predicts tokens; this command is for "
            "classifiers. Use explain, compare or explain-dataset"
        )
    if kind not in wanted:
        raise InputError(f"{source.name} is a {names[0]}, which takes {_WANTS[kind]}")
    return kind, config


def _audio_classes() -> set[str]:
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    return set(auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES.values())


def load_processor(source: Source, kind: Kind) -> Any:
    """What turns the inputs of a model of text and image, or of sounds, into tensors.

    Raises:
        InputError: If it cannot be loaded.
    """
    if kind == "sound":
        return source.load("feature extractor", transformers().AutoFeatureExtractor.from_pretrained)
    return source.load("processor", transformers().AutoProcessor.from_pretrained)


def load_tokenizer(source: Source) -> Any:
    """The tokenizer of a model.

    Raises:
        InputError: If it cannot be loaded, or a folder has no files of one: transformers makes an
            empty one then, to which every word is unknown.
    """
    if source.adapter is not None and _has_tokenizer(source.adapter.folder):
        source = Source(source.adapter.folder, True)
    if source.is_local and not _has_tokenizer(source.name):
        raise InputError(
            f"the folder {source.name} holds no tokenizer; save it there with "
            "tokenizer.save_pretrained(folder)"
        )
    return source.load("tokenizer", transformers().AutoTokenizer.from_pretrained)


def _has_tokenizer(folder: str) -> bool:
    names = [file.name for file in Path(folder).iterdir()]
    return any(fnmatch.fnmatch(name, pattern) for name in names for pattern in _TOKENIZER_FILES)


def load_model(source: Source, kind: Kind) -> Any:
    """A model for inference, in single precision.

    Raises:
        InputError: If it cannot be loaded, or if weights are missing: a head with random weights
            would be explained as if it had been trained.
    """
    loader = getattr(transformers(), _auto_class(source, kind)).from_pretrained

    def load(name: str, **options: Any) -> Any:
        # the other formats are pickles, which can run code
        return loader(name, output_loading_info=True, use_safetensors=True, **options)

    model, info = source.load("model", load)
    missing = sorted(str(key) for key in info["missing_keys"])
    adapter = source.adapter
    if adapter is not None:
        model = source.load(
            f"adapter {adapter.folder} for the", lambda *_, **__: attached(model, adapter)
        )
        missing = [key for key in missing if not is_trained(key, model)]
    if missing:
        raise InputError(
            f"{source.name} has no weights for {', '.join(missing[:3])}"
            f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}: it was not trained "
            f"as a {type(model).__name__}"
        )
    # a cache of keys and values is of no use in a single pass
    model.config.use_cache = False
    return model.float().eval()


def together(source: Source, model: Any, tokenizer: Any) -> Any:
    """A classifier that takes several texts at once.

    GPT-like ones do if their configuration names the padding token, which they look for.

    Raises:
        InputError: If neither the configuration nor the tokenizer names one, and the model needs
            it.
    """
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = getattr(tokenizer, "pad_token_id", None)
    if model.config.pad_token_id is None:
        two = source.use("tokenizer", lambda: tokenizer(["a", "a"], return_tensors="pt"))
        try:
            with torch.no_grad():
                model(**two)
        except (RuntimeError, ValueError) as error:
            said = _first_sentence(error).rstrip(".")
            raise InputError(
                f"the model of {source.name} fails on two texts, and names no padding token: "
                f'{said}; name one as "pad_token_id" in its config.json'
            ) from error
    return model


def _auto_class(source: Source, kind: Kind) -> str:
    if kind != "text and image":
        return _AUTO_CLASSES[kind]
    config = source.load("configuration", transformers().AutoConfig.from_pretrained)
    for name in getattr(config, "architectures", None) or []:
        for suffix, loader in _TEXT_AND_IMAGE:
            if name.endswith(suffix):
                return loader
    raise UnsupportedModelError(
        f"{source.name} does not say in its config.json which model of text and image it is"
    )


def _is_failure(error: BaseException) -> bool:
    """Whether code failed: a panic of a tokenizer's Rust code counts, which is no Exception."""
    return isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime"


def _first_sentence(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"invalid JSON ({error})"
    text = " ".join(str(error).split())
    if isinstance(error, KeyError) or not text:
        text = f"{type(error).__name__} {text}".strip()
    sentence = re.split(r"(?<=[a-z)'\"])[.!] (?=[A-Z])", text)[0]
    return sentence if len(sentence) <= 240 else sentence[:237] + "..."
