"""Two small trained models that come with the package, for examples, tests and first steps.

* :func:`sentiment`: a BERT of 2 layers that tells positive from negative film reviews.
* :func:`digits`: a vision transformer of 4 layers that reads handwritten digits, with
  :func:`digit_samples` as input.

Both are ordinary Hugging Face models, stored in half precision next to this file and loaded in
single precision. Loading needs the optional extra ``hf`` and no network. The ``README.md`` in
the folder of each model says where it comes from and how good it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from captum_lrp_tx.packages import needed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["MODELS_DIR", "digit_samples", "digits", "model_path", "sentiment"]

MODELS_DIR: Path = Path(__file__).resolve().parent
"""Folder that holds one folder for each shipped model."""


def model_path(name: str) -> Path:
    """Gives the folder of a shipped model, in Hugging Face format.

    Args:
        name (str): ``"sentiment"`` or ``"digits"``.

    Returns:
        Path: Folder with ``config.json`` and ``model.safetensors``, which the
        ``from_pretrained`` methods of transformers accept.

    Raises:
        ValueError: If there is no model of that name.

    Examples::

        >>> from transformers import AutoTokenizer
        >>> tokenizer = AutoTokenizer.from_pretrained(model_path("sentiment"))
    """
    names = sorted(path.parent.name for path in MODELS_DIR.glob("*/config.json"))
    if name not in names:
        raise ValueError(f"no shipped model is called {name!r}; there are {', '.join(names)}")
    return MODELS_DIR / name


def sentiment() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads the sentiment classifier and its tokenizer.

    The model is a ``BertForSequenceClassification`` for English text in lower or upper case,
    up to 256 tokens. Class 0 is negative, class 1 positive.

    Returns:
        tuple[PreTrainedModel, PreTrainedTokenizerBase]: The model, in evaluation mode and in
        single precision on the CPU, and the tokenizer.

    Raises:
        ImportError: If transformers is not installed.

    Examples::

        >>> model, tokenizer = sentiment()
        >>> batch = tokenizer(["a moving and funny film"], return_tensors="pt")
        >>> model.config.id2label[model(**batch).logits.argmax(-1).item()]
        'positive'
    """
    transformers = _optional("transformers")
    folder = model_path("sentiment")
    tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
        folder, local_files_only=True
    )
    return _load(transformers.AutoModelForSequenceClassification, folder), tokenizer


def digits() -> PreTrainedModel:
    """Loads the digit classifier.

    The model is a ``ViTForImageClassification`` for images of shape (batch, 1, 28, 28) with
    values from -1 (background) to 1 (ink). Class ``i`` is the digit ``i``.

    Returns:
        PreTrainedModel: The model, in evaluation mode and in single precision on the CPU.

    Raises:
        ImportError: If transformers is not installed.

    Examples::

        >>> model = digits()
        >>> images, labels = digit_samples()
        >>> model(images).logits.shape
        torch.Size([20, 10])
    """
    transformers = _optional("transformers")
    return _load(transformers.AutoModelForImageClassification, model_path("digits"))


def digit_samples() -> tuple[Tensor, Tensor]:
    """Loads 20 handwritten digits that the digit classifier has not been trained on.

    They are the first two images of each class in the test set of the model, whether or not
    the model reads them correctly.

    Returns:
        tuple[Tensor, Tensor]: Images of shape (20, 1, 28, 28), dtype float32, values from -1
        to 1, and their classes of shape (20,), dtype int64.

    Raises:
        ImportError: If safetensors, which comes with transformers, is not installed.

    Examples::

        >>> images, labels = digit_samples()
        >>> labels.tolist()[:4]
        [0, 0, 1, 1]
    """
    safetensors = _optional("safetensors.torch")
    stored = safetensors.load_file(model_path("digits") / "samples.safetensors")
    images: Tensor = (stored["images"].float() / 255 - 0.5) / 0.5
    labels: Tensor = stored["labels"]
    return images.unsqueeze(1), labels


def _load(auto_class: Any, folder: Path) -> PreTrainedModel:
    """A model in evaluation mode and in single precision.

    The keyword for the precision is ``dtype`` in some versions of transformers and
    ``torch_dtype`` in others, so the model is converted after loading, which is exact.
    """
    stored = auto_class.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    model: PreTrainedModel = stored.float().eval()
    return model


def _optional(name: str) -> Any:
    """A module of the optional extra ``hf``."""
    purpose = f"the shipped models need {name.partition('.')[0]}"
    return needed(name, purpose, 'pip install "transformers>=4.48" safetensors tqdm')
