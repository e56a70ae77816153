"""Models, examples and maskers of the experiments."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from captum_lrp_tx.evaluation import Examples, ImageExamples, TextExamples
from captum_lrp_tx.methods import Chosen
from captum_lrp_tx.metrics import Masker, MaskPatches, MaskTokens, RemovePatches
from experiments.ali2022.data import TASKS, Split, SplitName, Task, digits, sample
from experiments.ali2022.finetune import AS_IS, BASE
from experiments.ali2022.methods import EVERYWHERE, METHODS, integrated

#: Texts of each data set. Explaining one of 28 tokens and measuring it costs 3 to 5 seconds of one
#: core; long documents cost ten times as much.
COUNTS: dict[str, int] = {
    "sst2": 200, "long": 20, "emotion": 150, "hate": 150, "sentiment": 150, "meld": 150,
}  # fmt: skip
#: Images of MNIST.
DIGITS = 200
MAX_TOKENS = 512
#: Of a pixel without ink.
BLACK = -1.0


@dataclass(frozen=True, eq=False)
class DataSet:
    """Examples of a data set, and the model that they are for.

    Attributes:
        name (str): Of the results.
        title (str): In tables.
        architecture (str): Of the model, in tables.
        model (nn.Module): In evaluation mode.
        examples (Examples): All, in random order.
        masker (Masker): How features are hidden.
        count (int): How many of the examples are used, from the first.
        methods (tuple): What applies.
        facts (dict): What else there is to say.
    """

    name: str
    title: str
    architecture: str
    model: Any
    examples: Examples
    masker: Masker
    count: int
    methods: tuple[Chosen, ...]
    facts: dict[str, str] = field(default_factory=dict)


def load_text(folder: Path) -> tuple[Any, Any]:
    """A classifier in single precision and its tokenizer.

    Args:
        folder (Path): In Hugging Face format.

    Raises:
        SystemExit: There is no model.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if not (folder / "config.json").exists():
        raise SystemExit(
            f"no model in {folder}: run 'python -m experiments.ali2022.finetune --models "
            f"{folder.parent}' first"
        )
    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.float().eval(), tokenizer


def text_data(
    task: Task, model: Any, tokenizer: Any, split: Split, count: int, seed: int = 0
) -> DataSet:
    """A random sample of texts with everything that is needed to explain and mask them.

    Tokens are masked by ``[UNK]``, ``[CLS]`` and ``[SEP]`` among them, as in the code of Ali et al.

    Args:
        task (Task): The data set.
        model (nn.Module): Its classifier.
        tokenizer: Its tokenizer.
        split (Split): The texts.
        count (int): How many; 0 for all.
        seed (int): Of the sample.
    """
    order = sample(split, 0, seed)
    examples = TextExamples(
        [split.texts[row] for row in order], tokenizer, [split.labels[row] for row in order],
        MAX_TOKENS,
    )  # fmt: skip
    methods = (
        *METHODS,
        integrated("IG [UNK]", tokenizer.unk_token_id),
        integrated("IG [MASK]", tokenizer.mask_token_id),
    )
    return DataSet(
        task.name, task.title, "6-layer BERT", model, examples,
        MaskTokens.from_tokenizer(tokenizer), min(count or len(order), len(order)), methods,
        {"notes": task.note} if task.note else {},
    )  # fmt: skip


def text_subject(
    name: str,
    shared: Path,
    models: Path | None,
    count: int | None,
    split: SplitName = "test",
) -> DataSet:
    """A split of a data set of the tables with the model for it.

    Args:
        name (str): One of ``TASKS``.
        shared (Path): Folder with ``data`` and ``models``.
        models (Path, optional): Folder of the fine-tuned models.
        count (int, optional): How many texts; as in ``COUNTS`` unless given.
        split (str): Which; tables report on ``"test"``.

    Raises:
        SystemExit: The model is not there.
    """
    if name in AS_IS:
        folder = shared / BASE
    elif models is None:
        raise SystemExit(f"{name} needs --models, the folder of the fine-tuned models")
    else:
        folder = models / name
    model, tokenizer = load_text(folder)
    task = TASKS[name]
    wanted = COUNTS[name] if count is None else count
    data = text_data(task, model, tokenizer, task.split(shared, split), wanted)
    return data if name == "sst2" else _everywhere(data)


def digit_subject(
    shared: Path, count: int | None, removed: bool = True, validation: bool = False
) -> DataSet:
    """MNIST with the shared vision transformer: the last 1,000 images of the file.

    Args:
        shared (Path): Folder with ``data`` and ``models``.
        count (int, optional): How many images, ``DIGITS`` unless given; 0 for all 1,000.
        removed (bool): See :func:`digit_data`.
        validation (bool): Take the 1,000 images before the last 1,000 of the file.
    """
    from transformers import AutoModelForImageClassification

    folder = shared / "models/vit-mnist"
    model = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)
    images, labels = digits(shared, before=1000 if validation else 0)
    wanted = DIGITS if count is None else count or len(labels)
    return _everywhere(digit_data(model.float().eval(), images, labels, wanted, removed))


def _everywhere(data: DataSet) -> DataSet:
    """With the methods that all data sets get."""
    known = [m for m in data.methods if (m if isinstance(m, str) else m[0]) in EVERYWHERE]
    return replace(data, methods=tuple(known))


def digit_data(
    model: Any, images: Tensor, labels: list[int], count: int, removed: bool = True
) -> DataSet:
    """Digits and a vision transformer; the features are its patches.

    Args:
        model (nn.Module): A ``ViTForImageClassification``.
        images (Tensor): Shape ``(examples, 1, height, width)``.
        labels (list of int): Their classes.
        count (int): How many, from the first.
        removed (bool): Take patches out of the sequence; or else paint them black.
    """
    size = model.config.patch_size
    masker = RemovePatches(size) if removed else MaskPatches(size, value=BLACK)
    how = "taken out of the sequence" if removed else "painted black"
    return DataSet(
        "mnist" if removed else "mnist-black",
        "MNIST" if removed else "MNIST, patches black",
        f"{model.config.num_hidden_layers}-layer ViT", model, ImageExamples(images, labels), masker,
        min(count, len(labels)), (*METHODS, integrated("IG black", BLACK)),
        {"notes": f"patches are {how}"},
    )  # fmt: skip
