"""Relevance of whole data sets: the numbers, killing and resuming, many processes, refusals."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

pytest.importorskip("transformers")
pytest.importorskip("pyarrow", exc_type=ImportError)

import pyarrow as pa
from pyarrow import parquet

import zoo
from captum_lrp_tx import (
    ConservativeGI,
    ConservativeLRP,
    GenericAttention,
    attribute_dataset,
    read_dataset,
    targets,
)
from captum_lrp_tx.cli import main
from captum_lrp_tx.datasets.batching import plan_batches, plan_shards
from captum_lrp_tx.errors import InputError, MissingPackageError, TargetError
from captum_lrp_tx.models import sentiment
from captum_lrp_tx.rules import GammaRule
from captum_lrp_tx.runs.encoding import encode
from captum_lrp_tx.runs.subject import model_fingerprint, refuse_training

LONG = bool(os.environ.get("CAPTUM_LRP_TX_LONG"))
COUNT = 2000 if LONG else 100
WORDS = (
    "a charming and funny film the story drags on jokes fall flat not bad at all waste of time "
    "warm clever alive great actors two long hours , . unforgettable"
).split()

#: What the processes of these tests run; each may be told to kill itself.
SCRIPT = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {helpers!r}]
import torch
torch.set_num_threads(1)
from captum_lrp_tx import attribute_dataset, ConservativeLRP
from captum_lrp_tx.datasets import explaining, parquet, run
from captum_lrp_tx.models import sentiment
from test_datasets import texts_of, SETTINGS

def dying(function, count):
    calls = []
    def call(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

where, count = os.environ.get("DIE", "never:0").split(":")
if where == "replace":  # a file has been written, but not under its name yet
    os.replace = dying(os.replace, int(count))
if where == "batch":
    run.explain_batch = dying(run.explain_batch, int(count))
if os.environ.get("WITH_ACCELERATE"):
    from accelerate import PartialState
    PartialState(cpu=True)
model, tokenizer = sentiment()
attribute_dataset(
    ConservativeLRP(model), texts_of({count}), sys.argv[1], tokenizer=tokenizer, **SETTINGS
)
"""
SETTINGS = {"token_budget": 128, "batches_per_shard": 2, "show_progress": False}


def texts_of(count: int) -> list[str]:
    words = random.Random(0)
    return [" ".join(words.choices(WORDS, k=words.randint(1, 14))) for _ in range(count)]


def environment(**more: str) -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1", **more,
    }  # fmt: skip


def start(script: Path, folder: Path, *launcher: str, **more: str) -> Any:
    here, helpers = Path(__file__).parent, Path(zoo.__file__).parent
    script.write_text(SCRIPT.format(tests=str(here), helpers=str(helpers), count=COUNT))
    return subprocess.run(
        [sys.executable, *launcher, str(script), str(folder)],
        env=environment(**more), capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def model() -> Any:
    return sentiment()


@pytest.fixture(scope="module")
def whole(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    again(model, folder)
    return folder


def again(model: Any, folder: Path, **more: Any) -> Any:
    network, tokenizer = model
    return attribute_dataset(
        ConservativeLRP(network), texts_of(COUNT), folder, tokenizer=tokenizer,
        **{**SETTINGS, **more},
    )  # fmt: skip


# ---- numbers --------------------------------------------------------------------------------
def test_rows_equal_single_explanations(model: Any, whole: Path) -> None:
    network, tokenizer = model
    rows = read_dataset(whole)
    texts = texts_of(COUNT)
    assert len(rows) == COUNT
    assert [row["example"] for row in rows] == list(range(COUNT))
    explainer = ConservativeLRP(network)
    for number in range(0, COUNT, 37):
        row = rows[number]
        inputs = tokenizer(texts[number], return_tensors="pt")
        logits = network(**inputs).logits[0].detach()
        target = int(logits.argmax())
        relevance, delta = explainer.attribute(inputs, target=target, return_convergence_delta=True)
        assert row["token_ids"] == inputs["input_ids"][0].tolist()
        assert row["tokens"] == tokenizer.convert_ids_to_tokens(row["token_ids"])
        assert (row["target"], row["prediction"], row["position"]) == (target, target, None)
        assert row["logit"] == pytest.approx(float(logits[target]), abs=1e-5)
        assert row["delta"] == pytest.approx(float(delta), abs=1e-4)
        torch.testing.assert_close(
            torch.tensor(row["relevance"]), relevance[0], rtol=1e-4, atol=1e-5
        )


def test_schema_and_metadata(whole: Path) -> None:
    (first, *_) = sorted(whole.glob("*.parquet"))
    schema = parquet.read_schema(first)
    assert schema.field("relevance").type == pa.list_(pa.float32())
    settings = json.loads(schema.metadata[b"captum_lrp_tx"])
    assert settings["method"] == "ConservativeLRP"
    assert "AHRule()" in settings["rules"]["composite"]
    assert settings["torch"] == torch.__version__ and settings["model"] == "sentiment"
    assert settings == read_dataset(whole).settings


def test_targets_ids_and_other_methods(model: Any, tmp_path: Path) -> None:
    network, tokenizer = model
    texts = texts_of(7)
    names = [f"review-{i}" for i in range(7)]
    wanted = [0, 1, 1, targets.Contrast(1, 0), 0, 0, 1]
    options: Any = {"tokenizer": tokenizer, "ids": names, "target": wanted, "show_progress": False}
    for cls in (ConservativeGI, GenericAttention):
        rows = attribute_dataset(cls(network), texts, tmp_path / cls.__name__, **options)
        assert [row["id"] for row in rows] == names
        assert [row["target"] for row in rows] == [0, 1, 1, None, 0, 0, 1]
        assert rows[3]["explained"] == "Contrast(1, 0)"
        for i in (0, 3, 6):
            inputs = tokenizer(texts[i], return_tensors="pt")
            expected = cls(network).attribute(inputs, target=wanted[i])
            torch.testing.assert_close(
                torch.tensor(rows[i]["relevance"])[None], expected, rtol=1e-4, atol=1e-5
            )


def test_language_model_with_a_loader_of_padded_batches(tmp_path: Path) -> None:
    case = zoo.case("hf-LlamaForCausalLM-sdpa")
    lengths = [7, 3, 5, 6, 4]
    ids = [torch.randint(1, zoo.WORDS, (n,), generator=torch.Generator().manual_seed(n))
           for n in lengths]  # fmt: skip

    def collate(examples: list[Tensor]) -> dict[str, Tensor]:
        width = max(map(len, examples))  # padded on the left
        rows = [torch.cat([torch.zeros(width - len(e), dtype=torch.long), e]) for e in examples]
        mask = [torch.arange(width) >= width - len(e) for e in examples]
        return {"input_ids": torch.stack(rows), "attention_mask": torch.stack(mask).long()}

    loader: Any = DataLoader(ids, batch_size=2, collate_fn=collate)  # type: ignore[arg-type]
    found = attribute_dataset(case.model, loader, tmp_path, show_progress=False, token_budget=16)
    explainer = ConservativeLRP(case.model)
    for row, own in zip(found, ids, strict=True):
        logits = case.model(own[None]).logits[0, -1].detach()
        token = int(logits.argmax())
        assert row["token_ids"] == own.tolist() and row["tokens"] is None
        assert (row["position"], row["target"], row["prediction"]) == (len(own) - 1, token, token)
        expected = explainer.attribute(own[None], target=(len(own) - 1, token))[0]
        torch.testing.assert_close(torch.tensor(row["relevance"]), expected, rtol=1e-4, atol=1e-5)
    chosen = [(-1, 3), (0, 5), 7, targets.Contrast((-2, 1), (-2, 2)), (1, 1)]
    asked = attribute_dataset(
        case.model, loader, tmp_path / "asked", show_progress=False, target=chosen
    )
    assert [row["position"] for row in asked] == [-1, 0, 4, None, 1]
    for row, own, target in zip(asked, ids, chosen, strict=True):
        plain = (len(own) - 1, target) if isinstance(target, int) else target
        expected = explainer.attribute(own[None], target=plain)[0]
        torch.testing.assert_close(torch.tensor(row["relevance"]), expected, rtol=1e-4, atol=1e-5)


class Columns:
    """What is used of a ``datasets.Dataset``."""

    def __init__(self, **columns: list[Any]) -> None:
        self._columns = columns
        self.column_names = list(columns)

    def __getitem__(self, name: str) -> list[Any]:
        return self._columns[name]


@pytest.mark.parametrize("real", [False, True])
def test_data_sets_with_columns(model: Any, tmp_path: Path, real: bool) -> None:
    network, tokenizer = model
    make = pytest.importorskip("datasets").Dataset.from_dict if real else (lambda d: Columns(**d))
    texts = texts_of(5)
    data = make({"idx": [9, 8, 7, 6, 5], "sentence": texts, "label": [1, 0, 0, 1, 1]})
    options: Any = {"tokenizer": tokenizer, "show_progress": False}
    found = attribute_dataset(network, data, tmp_path / "text", target="label", **options)
    assert [row["target"] for row in found] == [1, 0, 0, 1, 1]
    encoded = make({**tokenizer(texts), "label": [1, 0, 0, 1, 1]})
    same = attribute_dataset(network, encoded, tmp_path / "ids", target="label", **options)
    assert list(same) == list(found)
    for side in ("right", "left"):  # as `map(..., padding=True)` leaves it; `list` made the ids
        full = make({**tokenizer(texts, padding=True, padding_side=side), "label": [1, 0, 0, 1, 1]})
        unpadded = attribute_dataset(network, full, tmp_path / side, target="label", **options)
        assert list(unpadded) == list(found)
    listed = attribute_dataset(
        network, texts, tmp_path / "list", target=[1, 0, 0, 1, 1], workers=2, **options
    )
    assert list(listed) == list(found)


def test_without_a_mask_only_equal_lengths_are_put_together(tmp_path: Path) -> None:
    torch.manual_seed(0)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(20, 4), nn.Linear(4, 3)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.head(self.words(input_ids)).mean(1)

    network = Plain().eval()
    rows = [torch.randint(1, 20, (1, n)) for n in (4, 2, 4, 3)]
    found = attribute_dataset(
        network, [{"input_ids": r} for r in rows], tmp_path, show_progress=False
    )
    for row, own in zip(found, rows, strict=True):
        weight = network.head.weight[row["prediction"]]
        expected = (network.words(own)[0] @ weight / own.shape[1]).tolist()
        assert row["relevance"] == pytest.approx(expected, abs=1e-6)


# ---- batches ----------------------------------------------------------------------------------
@pytest.mark.parametrize("padded", [True, False])
def test_batches_hold_every_example_once_within_the_budget(padded: bool) -> None:
    lengths = [random.Random(i).randint(1, 60) for i in range(500)]
    batches = plan_batches(lengths, 128, padded)
    assert sorted(row for batch in batches for row in batch) == list(range(500))
    for batch in batches:
        own = [lengths[row] for row in batch]
        assert len(own) == 1 or len(own) * max(own) <= 128
        assert padded or len(set(own)) == 1
    shards = plan_shards(batches, 3)
    assert [batch for shard in shards for batch in shard] == batches
    assert {len(shard) for shard in shards[:-1]} == {3}
    assert plan_batches([500, 2], 128) == [[0], [1]]


# ---- killed, resumed, shared ------------------------------------------------------------------
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("die", ["replace:3", "batch:6"])
def test_killed_and_started_again(model: Any, whole: Path, tmp_path: Path, die: str) -> None:
    folder = tmp_path / "killed"
    done = start(tmp_path / "script.py", folder, DIE=die)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = {path.name for path in folder.iterdir()}
    shards = [name for name in left if name.startswith("shard-")]
    assert 1 <= len(shards) < read_dataset(whole).settings["shards"]
    assert any(name.startswith(".shard-") for name in left) == die.startswith("replace")
    with pytest.raises(InputError, match="has not come to its end"):
        read_dataset(folder)
    assert 0 < len(read_dataset(folder, partial=True)) < COUNT
    kept = {name: (folder / name).stat().st_mtime_ns for name in shards}
    rows = again(model, folder)
    assert {name: (folder / name).stat().st_mtime_ns for name in shards} == kept
    assert files(folder) == files(whole)
    assert rows.table.equals(read_dataset(whole).table)


@pytest.mark.skipif(os.name != "posix", reason="gloo")
@pytest.mark.parametrize("accelerate", [False, True])
def test_two_processes_give_the_same_as_one(whole: Path, tmp_path: Path, accelerate: bool) -> None:
    more = {}
    if accelerate:
        pytest.importorskip("accelerate")
        more = {"WITH_ACCELERATE": "1", "ACCELERATE_USE_CPU": "1"}
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = start(tmp_path / "script.py", tmp_path / "two", *launcher, **more)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "two") == files(whole)


def test_nothing_is_computed_twice(
    model: Any, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr("captum_lrp_tx.datasets.run.explain_batch", refuse)
    assert len(again(model, whole)) == COUNT


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_damaged_files_are_computed_anew(
    model: Any, whole: Path, tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for name, content in files(whole).items():
        (folder / name).write_bytes(content)
    path = sorted(folder.glob("*.parquet"))[1]
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[len(content) // 4] ^= 16
    elif damage == "empty":
        content = bytearray()
    else:
        content = bytearray(sorted(folder.glob("*.parquet"))[0].read_bytes())
    path.write_bytes(content)
    if damage != "other":
        with pytest.raises(InputError, match="start the run again"):
            read_dataset(folder)
    again(model, folder)
    assert files(folder) == files(whole)


# ---- refusals ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"token_budget": 64}, "token_budget"),
        ({"target": 1}, "target"),
        ({"max_length": 4}, "data"),
        ({"options": {"strict": True}}, "options"),
    ],
)
def test_other_settings_are_refused(model: Any, whole: Path, more: Any, what: str) -> None:
    before = files(whole)
    with pytest.raises(InputError, match=f"different are: .*{what} "):
        again(model, whole, **more)
    assert files(whole) == before


def test_other_rules_or_weights_are_refused(model: Any, tmp_path: Path) -> None:
    network, tokenizer = sentiment()
    options: Any = {"tokenizer": tokenizer, "show_progress": False}
    attribute_dataset(ConservativeLRP(network), ["dull"], tmp_path, **options)
    for other in (
        ConservativeLRP(network, epsilon=0.1), ConservativeLRP(network, bias="distribute"),
        ConservativeGI(network),
    ):  # fmt: skip
        with pytest.raises(InputError, match="rules"):
            attribute_dataset(other, ["dull"], tmp_path, **options)
    with torch.no_grad():
        network.classifier.bias += 1
    with pytest.raises(InputError, match="weights"):
        attribute_dataset(ConservativeLRP(network), ["dull"], tmp_path, **options)
    fresh = attribute_dataset(ConservativeLRP(network), ["dull"], tmp_path, fresh=True, **options)
    assert len(fresh) == 1
    network.classifier.rule = GammaRule(0.5)  # of the module, by Captum's convention
    with pytest.raises(InputError, match="weights"):
        attribute_dataset(ConservativeLRP(network), ["dull"], tmp_path, **options)


def _scaled(model: Any, scale: float, by: str) -> Any:
    """A function with the same code and another number in it."""
    if by == "keyword":

        def forward(*, factor: float = scale, **inputs: Any) -> Tensor:
            return model(**inputs).logits * factor

        return forward
    held: Any = {"tensor": torch.tensor(scale), "dictionary": {"by": scale}}.get(by)

    class Scaled:
        def __init__(self) -> None:
            self.model, self.factor = model, scale

        def __call__(self, **inputs: Any) -> Tensor:
            return self.model(**inputs).logits * self.factor

    if held is None:
        return Scaled() if by == "object" else Scaled().__call__
    return lambda **inputs: model(**inputs).logits * (held["by"] if by == "dictionary" else held)


@pytest.mark.parametrize("by", ["keyword", "tensor", "dictionary", "object", "method"])
def test_functions_with_other_numbers_are_other_models(model: Any, by: str) -> None:
    network = model[0]
    one, same, other = (model_fingerprint(_scaled(network, s, by)) for s in (1.0, 1.0, 2.0))
    assert one == same != other


@pytest.mark.parametrize("change", ["eps", "heads", "activation", "nothing"])
def test_what_a_model_computes_with_beside_weights_counts(change: str) -> None:
    def built() -> Any:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        return nn.Sequential(layer, nn.LayerNorm(8)).eval()

    plain, other = built(), built()
    if change == "eps":
        other[1].eps = 0.1
    elif change == "heads":
        other[0].self_attn.num_heads = 4
    elif change == "activation":
        other[0].activation = nn.functional.gelu
    same = change == "nothing"
    assert (model_fingerprint(plain) == model_fingerprint(other)) is same
    before = model_fingerprint(sentiment()[0])
    sentiment()[0](torch.tensor([[2, 5, 3]]))
    assert model_fingerprint(sentiment()[0]) == before


def test_containers_around_a_model_in_evaluation_mode(model: Any, tmp_path: Path) -> None:
    """They are in training mode as they were made, and do nothing with it."""
    network, tokenizer = model
    more: Any = {"tokenizer": tokenizer, "show_progress": False}
    wrapped = nn.DataParallel(network)
    assert wrapped.training
    one, same = (
        attribute_dataset(net, ["a film"], tmp_path / str(i), **more)
        for i, net in enumerate((network, wrapped))
    )
    assert one[0]["relevance"] == same[0]["relevance"]
    with pytest.raises(InputError, match=r"training mode \(1\); call model\.eval"):
        refuse_training(nn.Sequential(nn.Linear(2, 2).eval(), nn.Dropout()))


def _helper(x: Tensor) -> Tensor:
    return x * 2


def _other_helper(x: Tensor) -> Tensor:
    return x * 3


class _Helped:
    """Calls another method, or a function of its file."""

    def __call__(self, **inputs: Any) -> Tensor:
        return self.scaled(inputs["x"])

    def scaled(self, x: Tensor) -> Tensor:
        return _helper(x)


def test_functions_with_other_helpers_are_other_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run went on with the numbers of before where what a function calls had changed."""
    helped: list[Any] = [_Helped(), _Helped().scaled, lambda x: _helper(x)]
    before = [model_fingerprint(one) for one in helped]
    assert before == [model_fingerprint(one) for one in helped]
    monkeypatch.setitem(globals(), "_helper", _other_helper)
    after = [model_fingerprint(one) for one in helped]
    monkeypatch.undo()
    monkeypatch.setattr(_Helped, "scaled", lambda self, x: x * 5)
    after.append(model_fingerprint(_Helped()))
    assert len({*before, *after}) == 7


def test_a_function_may_call_itself(model: Any) -> None:
    """It was a RecursionError."""

    def forward(depth: int = 0, **inputs: Any) -> Tensor:
        return model[0](**inputs).logits if depth else forward(1, **inputs)

    assert model_fingerprint(forward) == model_fingerprint(forward)


def test_folders_of_before_are_told_what_to_do(tmp_path: Path) -> None:
    """Files that have lost their settings, or have those of an older version, are kept."""
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(InputError, match=r"with settings\.json\), run that again with fresh=True"):
        read_dataset(tmp_path)
    kept = tmp_path / "shard-000000.parquet"
    kept.write_bytes(b"")
    with pytest.raises(InputError, match=r"no _settings\.json .* start anew with fresh=True"):
        attribute_dataset(sentiment()[0], ["dull"], tmp_path, tokenizer=sentiment()[1])
    assert kept.exists()


class Table:
    """What a data frame looks like."""

    columns = ("text", "label")


def test_columns_of_pandas_and_classes_by_name(model: Any, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    network, tokenizer = model
    more: Any = {"tokenizer": tokenizer, "show_progress": False}
    rows = attribute_dataset(network, texts_of(2), tmp_path / "list", target=[1, 0], **more)
    column = pandas.Series(texts_of(2))
    same = attribute_dataset(
        network, column, tmp_path / "column", target=["positive", "Negative"], **more
    )
    assert [row["relevance"] for row in rows] == [row["relevance"] for row in same]


def test_batches_bring_their_labels(model: Any, tmp_path: Path) -> None:
    network, tokenizer = model
    texts, labels = texts_of(3), [1, 0, 1]
    batches = [
        {**tokenizer(texts[rows], padding=True, return_tensors="pt"),
         "labels": torch.tensor(labels[rows])}
        for rows in (slice(2), slice(2, 3))
    ]  # fmt: skip
    more: Any = {"target": "label", "show_progress": False}
    rows = attribute_dataset(network, batches, tmp_path / "batches", **more)
    assert [row["target"] for row in rows] == labels
    del batches[1]["labels"]
    with pytest.raises(TargetError, match="no labels that are numbers"):
        attribute_dataset(network, batches, tmp_path / "some", **more)


def test_a_regression_with_several_numbers_predicts_none_of_them(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, tokenizer = model
    monkeypatch.setattr(network.config, "problem_type", "regression")
    with pytest.raises(TargetError, match="2 numbers; name one as target: negative, positive"):
        attribute_dataset(network, ["a film"], tmp_path / "out", tokenizer=tokenizer)
    rows = attribute_dataset(
        network, ["a film"], tmp_path / "out", tokenizer=tokenizer, target="positive"
    )
    assert rows[0]["explained"] == "1" and rows[0]["prediction"] is None


def test_labels_and_texts_that_are_none(model: Any, tmp_path: Path) -> None:
    sentiment_model, tokenizer = model

    def of(**columns: Any) -> Any:
        return attribute_dataset(
            sentiment_model, Columns(**columns), tmp_path / str(sorted(columns)),
            tokenizer=tokenizer, target="label",
        )  # fmt: skip

    with pytest.raises(InputError, match=r"example 1 of 'text' is None, no text"):
        of(text=["good", None], label=[1, 0])
    # -1 stands for a label that is kept back, and would be the last class
    with pytest.raises(TargetError, match=r"the label of example 1 is -1, no class"):
        of(text=["good", "bad"], label=[1, -1])
    for label in (["good", "bad"], [0.4, 1.0], [None, 1]):
        with pytest.raises(TargetError, match="no labels that are numbers of classes"):
            of(text=["good", "bad"], label=label)
    assert [row["target"] for row in of(text=["good", "bad"], label=[1.0, 0.0])] == [1, 0]


def test_what_cannot_be_explained(model: Any, tmp_path: Path) -> None:
    network, tokenizer = model
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ([], {}, "no examples"),
        ("one text", {}, "list of texts"),
        (["text"], {"tokenizer": None}, "tokenizer"),
        (3, {}, "DataLoader"),
        ([torch.zeros(2, 3)], {}, "mapping"),
        ([{"input_ids": torch.ones(2, 3, dtype=torch.long), "pixels": torch.ones(2, 3, 4, 4)}], {},
         "'pixels'"),
        ([{"input_ids": torch.ones(2, 3, dtype=torch.long), "names": ["a", "b"]}], {},
         "an entry of a batch, 'names', has list"),
        (Columns(words=["a"]), {}, "text_column"),
        (["a"], {"ids": ["x", "y"]}, "2 ids for 1"),
        (["a"], {"token_budget": 0}, "positive"),
        (["a"], {"target": "label"}, "no labels"),
        (["a"], {"target": "best"}, "no class 'best'; the classes are: 0 negative, 1 positive"),
        (["a", None], {}, "example 1 is None, and others are texts"),
        (Table(), {}, r"several columns \(text, label\); give one of them"),
        (["a"], {"target": [0, 1]}, "2 targets for 1"),
        (["a"], {"target": 7}, "does not fit"),
    ]  # fmt: skip
    for data, more, match in cases:
        with pytest.raises((InputError, TargetError), match=match):
            attribute_dataset(
                network, data, tmp_path / "x",
                **{"tokenizer": tokenizer, "show_progress": False, "fresh": True, **more},
            )  # fmt: skip
    network.train()
    try:
        with pytest.raises(InputError, match="training mode"):
            attribute_dataset(network, ["a"], tmp_path / "y", tokenizer=tokenizer)
    finally:
        network.eval()
    with pytest.raises(InputError, match="no results that can be read"):
        read_dataset(tmp_path)


def test_mask_with_holes() -> None:
    batch = {
        "input_ids": torch.ones(1, 4, dtype=torch.long),
        "attention_mask": torch.tensor([[1, 0, 1, 1]]),
    }
    with pytest.raises(InputError, match="in the middle"):
        encode([batch])


def test_without_pyarrow(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match="pip install pyarrow"):
        attribute_dataset(model[0], ["dull"], tmp_path, tokenizer=model[1])
    with pytest.raises(MissingPackageError, match="pyarrow"):
        read_dataset(tmp_path)
    assert not list(tmp_path.iterdir())


# ---- devices, command line --------------------------------------------------------------------
def test_a_model_spread_over_devices_gets_its_inputs_on_the_first(
    model: Any, tmp_path: Path
) -> None:
    accelerate = pytest.importorskip("accelerate")
    network, tokenizer = sentiment()
    expected = attribute_dataset(
        network, ["a dull mess"], tmp_path / "a", tokenizer=tokenizer, show_progress=False
    )
    # everything but the embeddings is kept elsewhere and fetched when its module runs
    spread = accelerate.dispatch_model(
        network,
        {"bert.embeddings": "cpu", "bert.encoder": "disk", "bert.pooler": "cpu",
         "classifier": "cpu"},
        main_device="cpu", offload_dir=str(tmp_path / "offloaded"), force_hooks=True,
    )  # fmt: skip
    assert any(p.is_meta for p in spread.parameters())
    found = attribute_dataset(
        spread, ["a dull mess"], tmp_path / "b", tokenizer=tokenizer, show_progress=False
    )
    assert found[0]["relevance"] == pytest.approx(expected[0]["relevance"], abs=1e-6)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.tsv"
    lines = [f"{text}\t{i % 2}" for i, text in enumerate(texts_of(6))]
    data.write_text("\n".join(["sentence\tlabel", *lines]))
    out = tmp_path / "out"
    command = ["explain-dataset", "--data", str(data), "--out", str(out), "--limit", "4"]
    assert main([*command, "--target", "label", "--rules", "ah+ln"]) == 0
    assert "4 texts in 1 files" in capsys.readouterr().err
    assert [row["target"] for row in read_dataset(out)] == [0, 1, 0, 1]
    assert main([*command, "--target", "label"]) == 1
    assert "different are: rules" in capsys.readouterr().err
    assert main([*command, "--fresh", "--target", "positive"]) == 0
    assert {row["target"] for row in read_dataset(out)} == {1}
    assert main([*command, "--fresh", "--target", "nonsense"]) == 1
    assert main(["explain-dataset", "--data", str(tmp_path / "none"), "--out", str(out)]) == 1
