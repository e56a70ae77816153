"""Data as people have it, taken apart or refused: examples of reports, files, targets."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_lrp_tx.cli.reading import is_array, read_images, read_labels, read_texts
from captum_lrp_tx.errors import InputError, NonFiniteError, OutputError, TargetError
from captum_lrp_tx.metrics import Perturbation
from captum_lrp_tx.metrics.patches import MaskPatches
from captum_lrp_tx.metrics.targets import split_target, target_outputs
from captum_lrp_tx.reporting.samples import read_samples
from captum_lrp_tx.runs.encoding import encode
from captum_lrp_tx.runs.subject import device_of

IDS = torch.tensor([[5, 6, 0], [7, 8, 9]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


# ---- examples of a report ------------------------------------------------------------------------
def model(x: Tensor) -> Tensor:
    return x.float().flatten(1).sum(1)


def test_token_ids_without_a_tokenizer() -> None:
    given = {"input_ids": IDS, "attention_mask": MASK, "kind": torch.tensor([[1], [2]]),
             "scale": torch.tensor(3)}  # fmt: skip
    samples = read_samples(given, model)
    assert (samples.kind, samples.key, len(samples)) == ("text", "input_ids", 2)
    assert samples.shared == {"scale": given["scale"]}
    first, second = samples.items
    assert first.tokens == ("5", "6") and second.tokens == ("7", "8", "9")
    assert first.special == (False, False) and first.text == ""
    assert first.main.tolist() == [5, 6] and first.others["attention_mask"].tolist() == [1, 1]
    assert first.others["kind"].tolist() == [1] and second.others["kind"].tolist() == [2]
    assert samples.groups() == [[0], [1]]
    batch: Any = samples.batch([1, 1])
    assert batch["input_ids"].tolist() == [[7, 8, 9]] * 2 and batch["scale"] is given["scale"]


def test_names_and_special_tokens_of_ones_own() -> None:
    names, special = [["a", "b", "pad"], ["c", "d", "e"]], [[True, False], [False, True, False]]
    given = {"input_ids": IDS, "attention_mask": MASK}
    samples = read_samples(given, model, tokens=names, special=special)
    assert [item.tokens for item in samples.items] == [("a", "b"), ("c", "d", "e")]
    assert [item.special for item in samples.items] == [(True, False), (False, True, False)]
    marked = read_samples(given, model, tokens=[["[CLS]", "b"], ["c", "[SEP]", "e"]])
    assert [item.special for item in marked.items] == [(True, False), (False, True, False)]
    plain = read_samples(IDS, model)
    assert plain.key is None and torch.equal(plain.batch([0, 1]), IDS)  # type: ignore[arg-type]


def test_images_and_what_goes_with_them() -> None:
    given = {"pixel_values": torch.randn(2, 1, 4, 4), "bias": torch.tensor([[1.0], [2.0]]).half(),
             "labels": torch.arange(3)}  # fmt: skip
    with pytest.raises(InputError, match="one input of the model, not 2"):
        read_samples(given, model)
    given["bias"] = torch.tensor([[1], [2]])
    given["bias_mask"] = given.pop("bias").bool()
    samples = read_samples(given, model)
    assert samples.kind == "image" and set(samples.shared) == {"labels"}
    assert samples.items[1].others["bias_mask"].tolist() == [True]


@pytest.mark.parametrize(
    "inputs, options, why",
    [
        (["a"], {"tokens": [["a"]]}, "for texts pass the tokenizer"),
        (["a"], {"special": [[True]]}, "for texts pass the tokenizer"),
        (torch.randn(1, 1, 4, 4), {"tokens": [["a"]]}, "but the inputs are images"),
        (torch.randn(2, 4), {}, "not torch.float32 of shape"),
        (torch.ones(2, 3, 4, dtype=torch.long), {}, "not torch.int64 of shape"),
        (IDS, {"tokens": [["a", "b", "c"]]}, "entries for 1 examples, but there are 2"),
        (IDS, {"tokens": [["a"], ["b", "c", "d"]]}, r"tokens\[0\] has 1 entries for 3 tokens"),
        ({"input_ids": IDS, "attention_mask": MASK * 0}, {}, "example 0 is nothing but padding"),
    ],
)
def test_examples_that_do_not_fit(inputs: Any, options: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        read_samples(inputs, model, **options)


def test_a_text_without_tokens_is_named() -> None:
    class Empty:
        all_special_ids: tuple[int, ...] = ()
        unk_token_id = 0

        def __call__(self, texts: Any, **_: Any) -> dict[str, Any]:
            return {"input_ids": [[] for _ in texts]}

    with pytest.raises(InputError, match="text 0 has no token: 'a'"):
        read_samples(["a"], model, Empty())


def test_the_device_of_a_model_is_that_of_its_first_parameter() -> None:
    assert device_of(nn.Sequential(nn.ReLU(), nn.Linear(2, 2))) == torch.device("cpu")
    assert device_of(nn.ReLU()) is None and device_of(lambda x: x) is None
    offloaded = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.Linear(2, 2))
    assert device_of(offloaded) == torch.device("cpu")


# ---- files --------------------------------------------------------------------------------------
def test_texts_and_labels(tmp_path: Path) -> None:
    file = tmp_path / "a.tsv"
    file.write_text("label\tsentence\n1\tgood\n\t\n0\t bad \n1\n", encoding="utf-8")
    assert read_texts(file) == (["good", "bad"], ["1", "0"])
    file.write_text("sentence\tlabel\ngood\t1\nbad\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"line 3 of .* has no label"):
        read_texts(file)
    file.write_text("sentence\tother\ngood\t1\n", encoding="utf-8")
    assert read_texts(file) == (["good"], None)
    file.write_text("one\n\n two \n", encoding="utf-8")
    assert read_texts(file) == (["one", "two"], None)
    file.write_text("a\tb\nc\td\n", encoding="utf-8")
    with pytest.raises(InputError, match='without a column "sentence"'):
        read_texts(file)


PIXELS = np.arange(2 * 4 * 5, dtype=np.uint8).reshape(2, 4, 5)


def test_images_however_they_are_stored(tmp_path: Path) -> None:
    expected = torch.from_numpy(PIXELS.astype("float32"))[:, None] / 127.5 - 1
    np.save(tmp_path / "a.npy", PIXELS)
    np.save(tmp_path / "b.npy", (PIXELS / 255).astype("float32"))
    np.save(tmp_path / "c.npy", expected.numpy())
    np.savez(tmp_path / "d.npz", other=np.zeros(3), images=PIXELS)
    np.savez(tmp_path / "e.npz", x=PIXELS[..., None])
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in PIXELS.shape)
    (tmp_path / "f-idx3-ubyte").write_bytes(header + PIXELS.tobytes())
    with gzip.open(tmp_path / "g.gz", "wb") as stream:
        stream.write(header + PIXELS.tobytes())
    assert not is_array(tmp_path / "reviews_by_idx.tsv")  # texts
    for name in ("a.npy", "b.npy", "c.npy", "d.npz", "e.npz", "f-idx3-ubyte", "g.gz"):
        torch.testing.assert_close(read_images(tmp_path / name), expected, rtol=1e-5, atol=1e-6)
    colours = np.random.default_rng(0).random((2, 3, 4, 5), dtype=np.float32)
    np.save(tmp_path / "h.npy", colours)
    np.save(tmp_path / "i.npy", colours.transpose(0, 2, 3, 1))
    torch.testing.assert_close(read_images(tmp_path / "h.npy"), read_images(tmp_path / "i.npy"))


@pytest.mark.parametrize(
    "content, why",
    [
        (np.zeros((2, 2, 4, 4)), "has the shape"),
        (np.zeros((4, 4)), "has the shape"),
        (np.zeros((0, 4, 4)), "has the shape"),
        (np.full((1, 2, 2), np.nan), "not finite or far out of range"),
        (np.full((1, 2, 2), 2e4), "not finite or far out of range"),
        (np.full((1, 2, 2), -2e4), "not finite or far out of range"),
        (np.full((1, 2, 2), 300), "values from 300 to 300"),
        (np.full((1, 2, 2), -3), "values from -3 to -3"),
        (np.full((1, 2, 2), 300.5), "values from 300.5 to 300.5"),
        (np.full((1, 2, 2), "a"), "images have numbers"),
    ],
)
def test_arrays_that_are_no_images(tmp_path: Path, content: Any, why: str) -> None:
    np.save(tmp_path / "a.npy", content)
    with pytest.raises(InputError, match=why):
        read_images(tmp_path / "a.npy")


def test_labels_however_they_are_stored(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n two\n", encoding="utf-8")
    assert read_labels(tmp_path / "a.txt") == ["one", "two"]
    np.save(tmp_path / "b.npy", np.array([3, 1]))
    np.savez(tmp_path / "c.npz", y=np.array([3, 1]))
    (tmp_path / "d-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 3, 1]))
    for name in ("b.npy", "c.npz", "d-idx1-ubyte"):
        assert read_labels(tmp_path / name) == ["3", "1"]
    np.save(tmp_path / "e.npy", np.array([0.5]))
    np.savez(tmp_path / "f.npz", z=np.array([1]))
    (tmp_path / "g-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 3, 1]))
    (tmp_path / "h-idx1").write_bytes(b"no such thing")
    (tmp_path / "i.gz").write_bytes(b"no such thing")
    (tmp_path / "j.txt").write_bytes("caf\u00e9".encode("latin-1"))
    for name, why in (
        ("e.npy", "one integer for each example"), ("f.npz", "one must be called labels or y"),
        ("g-idx1-ubyte", "it is cut off"), ("h-idx1", "neither .npy nor"),
        ("i.gz", "cannot read"), ("j.txt", "it is no UTF-8 text"), ("k.txt", "No such file"),
        ("l.npy", "No such file"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=why):
            read_labels(tmp_path / name)


# ---- targets and relevance of metrics ----------------------------------------------------------
def test_targets_with_positions() -> None:
    assert split_target(3, 2) == (None, 3)
    assert split_target([1, 2], 2) == (None, [1, 2])
    assert split_target((4, 1), 2) == ([(4,), (4,)], [1, 1])
    assert split_target([(4, 1), (0, 2)], 2) == ([(4,), (0,)], [1, 2])
    assert split_target([(1,), (2,)], 2) == (None, [1, 2])
    for target in ([(4, 1)], [(4, 1), (1,)]):
        with pytest.raises(TargetError, match="targets for 2 examples"):
            split_target(target, 2)


def test_outputs_at_positions() -> None:
    outputs = torch.arange(24.0).reshape(2, 3, 4)
    got = target_outputs(outputs, [(2,), (0,), (1,)], torch.tensor([1, 2]))
    assert torch.equal(got, torch.stack([outputs[0, 0], outputs[1, 1]]))
    with pytest.raises(TargetError, match="a target of 2 entries does not fit"):
        target_outputs(outputs[..., 0], [(2,), (0,)], torch.tensor([0, 1]))
    with pytest.raises(OutputError, match="for 3 examples"):
        target_outputs(outputs, None, torch.arange(3))


def test_relevance_that_metrics_take() -> None:
    images = torch.rand(2, 1, 4, 4)
    perturbation = Perturbation(
        lambda x: x.flatten(1) @ torch.eye(16)[:, :3], images, [0, 1], masker=MaskPatches(2)
    )
    relevance = torch.randn(2, 1, 4, 4)
    expected = relevance.reshape(2, 2, 2, 2, 2).sum((2, 4)).flatten(1).double()
    for given in (relevance, (relevance,), relevance.numpy(), relevance.to_sparse()):
        torch.testing.assert_close(perturbation.scores(given), expected)  # type: ignore[arg-type]
    for given, error, why in (
        ("relevance", InputError, "must be a tensor, not str"),
        (relevance.to(torch.complex64), InputError, "must be real numbers"),
        (relevance.to("meta"), InputError, "must be real numbers"),
        (relevance * torch.nan, NonFiniteError, "no order in them"),
    ):
        with pytest.raises(error, match=why):
            perturbation.scores(given)  # type: ignore[arg-type]


def test_values_of_patches() -> None:
    with pytest.raises(InputError, match="patch_size must be positive"):
        MaskPatches(0)
    with pytest.raises(InputError, match="patch_size must be positive"):
        MaskPatches((2, 0))
    for value in (torch.zeros(3), torch.zeros(5, 1, 1, 1)):
        masker = MaskPatches(2, value)
        images = torch.rand(2, 1, 4, 4)
        with pytest.raises(InputError, match="does not fit images of shape"):
            _ = Perturbation(lambda x: x.flatten(1)[:, :3], images, [0, 1], masker=masker).blank


def test_token_ids_are_not_cut() -> None:
    batch = {"input_ids": torch.tensor([[1, 2, 3, 4]]), "attention_mask": torch.ones(1, 4)}
    assert encode([batch], max_length=4).lengths() == [4]
    with pytest.raises(InputError, match="max_length=3 cuts texts, and these are token ids"):
        encode([batch], max_length=3)
