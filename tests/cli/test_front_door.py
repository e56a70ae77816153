"""What the command line says to words, folders and files that are not what they seem."""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from captum_lrp_tx import ConservativeLRP
from captum_lrp_tx.cli import _warnings_in_one_line, main
from captum_lrp_tx.cli.arguments.names import SELECTIONS
from captum_lrp_tx.cli.arguments.shared import add_methods
from captum_lrp_tx.cli.explain import _short_names
from captum_lrp_tx.errors import CaptumLRPWarning, TargetError
from captum_lrp_tx.models import model_path

pytestmark = pytest.mark.captum


def said(capsys: Any, *arguments: Any, status: int) -> str:
    assert main([str(a) for a in arguments]) == status
    streams = capsys.readouterr()
    text: str = streams.out if status == 0 else streams.err
    return text


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("comapre", "compare"), ("exlain", "explain"), ("adit", "audit"), ("reprot", "report"),
     ("insight", "insights"), ("explain-datasets", "explain-dataset"), ("audti", "audit"),
     ("uadit", "audit"), ("explain_dataste", "explain-dataset"), ("evalaute", "evaluate")],
)  # fmt: skip
def test_near_misses_of_commands(typed: str, meant: str, capsys: Any) -> None:
    message = said(capsys, typed, "a film", status=2)
    assert repr(typed) in message and f"did you mean {meant!r}" in message


def test_words_that_are_no_command_are_text(capsys: Any) -> None:
    for words in (
        ["exlain"], ["a", "film", "to", "compare"], ["explosive", "fun"], ["audio", "is", "bad"],
        ["resort", "fun"], ["reports", "of", "war"], ["compared", "to", "others"], ["adult", "fun"],
    ):  # fmt: skip
        assert "prediction" in said(capsys, *words, "--no-color", status=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "mine"
    shutil.copytree(model_path("sentiment"), made)
    return made


def test_audit_of_a_folder_is_about_the_model_in_it(folder: Path, capsys: Any) -> None:
    config = folder / "config.json"
    text = config.read_text(encoding="utf-8")
    assert '"positive"' in text
    config.write_text(text.replace('"positive"', '"splendid"'), encoding="utf-8")
    assert "logit of splendid" in said(capsys, "audit", folder, status=0)
    assert "logit of" in said(capsys, "audit", folder, "a dull mess", status=0)
    config.unlink()
    assert "no config.json" in said(capsys, "audit", folder, status=1)
    assert "there is no folder ./missing" in said(capsys, "audit", "./missing", status=1)


def test_a_mistyped_model_is_no_text_to_audit(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentiment model would be audited on the name of the folder, and nobody would notice."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for rest in ([], ["a dull mess"]):
        told = said(capsys, "audit", "models/my-bret", *rest, status=1)
        assert told.startswith("captum_lrp_tx: there is no folder models/my-bret, and")
    assert "logit of" in said(capsys, "audit", "and", "so on", status=0)


def test_a_file_in_place_of_a_text(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "film.txt"
    file.write_text("a film")
    told = said(capsys, file, status=2)
    assert f"{file} is a file, and would be read as a text of this name" in told
    assert "logit of" in said(capsys, f"{file} is dull", status=0)


def test_a_folder_in_place_of_a_text(folder: Path, capsys: Any) -> None:
    assert "--model" in said(capsys, folder, status=2)
    assert "--model" in said(capsys, "compare", folder, status=2)


def test_a_folder_without_tokenizer_is_refused(folder: Path, capsys: Any) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "holds no tokenizer" in said(capsys, "a film", "--model", folder, status=1)


def test_texts_that_are_no_text(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    assert said(capsys, "-", status=2) == "captum_lrp_tx: standard input is not utf-8 text\n"
    told = said(capsys, "caf\udce9", status=2)  # as Python reads bytes that it cannot decode
    assert told.startswith("captum_lrp_tx: the text is not UTF-8; check the encoding of the term")


def test_warnings_are_the_users_where_python_was_told_of_them(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else only those of the package are shown."""
    shown = []
    for options in ([], ["always"]):
        monkeypatch.setattr(sys, "warnoptions", options)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            with _warnings_in_one_line():
                warnings.warn("of\n another package", UserWarning, stacklevel=1)
                warnings.warn("of this one", CaptumLRPWarning, stacklevel=1)
        shown.append(capsys.readouterr().err.splitlines())
    own, other = (f"captum_lrp_tx: warning: of {of}" for of in ("this one", "another package"))
    assert shown == [[own], [other, own]]


def test_parts_of_embeddings_are_called_by_what_they_mean() -> None:
    words = torch.zeros(2)
    names = ("bert.word_embeddings", "bert.position_embeddings", "bert.token_type_embeddings",
             "visual.patches", "a.rows", "b.rows")  # fmt: skip
    assert list(_short_names(dict.fromkeys(names, words)).values()) == [
        "word", "position", "segment", "patches", "a.rows", "b.rows",
    ]  # fmt: skip


def test_names_of_files_that_say_something_else(tmp_path: Path, capsys: Any) -> None:
    for option, name in (("--png", "x.txt"), ("--html", "x.png"), ("--png", "x.html")):
        message = said(capsys, "a film", option, tmp_path / name, status=1)
        assert "must end in" in message and not (tmp_path / name).exists()
    assert "must end in .png" in said(
        capsys, "compare", "a film", "--methods", "gi", "--png", tmp_path / "x.txt", status=1
    )


@pytest.mark.parametrize(("shape", "wanted"), [
    ((2, 3, 4), r"target=\(position, token\), e\.g\. target=\(-1, 0\)"),
    ((2, 3, 2, 4), "a tuple of 3 indices"),
])  # fmt: skip
def test_targets_of_outputs_with_positions(shape: tuple[int, ...], wanted: str) -> None:
    size = torch.Size(shape[1:]).numel()
    model = nn.Sequential(nn.Linear(5, size), nn.Unflatten(1, shape[1:]))
    for target in (None, 1):
        with pytest.raises(TargetError, match=wanted):
            ConservativeLRP(model).attribute(torch.randn(2, 5), target=target)
    suggested = (*(-1,) * (len(shape) - 2), 0)
    ConservativeLRP(model).attribute(torch.randn(2, 5), target=suggested)


@pytest.mark.parametrize(
    ("started", "name"),
    [("captum-lrp-tx", "captum-lrp-tx"), ("captum-lrp-tx.exe", "captum-lrp-tx"),
     ("__main__.py", "python -m captum_lrp_tx")],
)  # fmt: skip
def test_help_names_the_program_as_it_was_started(
    started: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", [f"/somewhere/bin/{started}", "--help"])
    told = said(capsys, "--help", status=0)
    assert told.startswith(f"usage: {name} ")
    assert f'{name} "has a lot of the virtues' in told
    others = {"captum-lrp-tx", "python -m captum_lrp_tx"} - {name}
    assert not any(other in told for other in others)


def test_selections_of_methods_may_stand_in_a_list() -> None:
    """``paper`` beside names, each method once; unless told otherwise the default is measured."""
    parser = argparse.ArgumentParser()
    add_methods(parser, "paper,LRP")
    assert parser.parse_args([]).methods == [*SELECTIONS["paper"], "LRP"]
    listed = parser.parse_args(["--methods", "GI, Paper,ig"]).methods
    assert listed == ["GI", *[m for m in SELECTIONS["paper"] if m != "GI"], "IG"]
