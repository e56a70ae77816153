"""Files and texts from strangers: no code is run, no markup gets through, no network is used."""

from __future__ import annotations

import ast
import json
import pickle
import re
import socket
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import transformers

import captum_lrp_tx
from captum_lrp_tx.cli import main
from captum_lrp_tx.files import write_atomically
from captum_lrp_tx.models import digit_samples, digits, sentiment
from captum_lrp_tx.visualization import TokenHeatmap, html
from tiny_models import bert_config, saved, wordpiece

pytestmark = pytest.mark.core

PACKAGE = Path(captum_lrp_tx.__file__).parent
EVIL = [
    "<script>alert(1)</script>", "</script><script>alert(1)//", "<img src=x onerror=alert(1)>",
    "\"><svg/onload=alert(1)>", "' onmouseover='alert(1)", "<!--", "]]>", "&lt;b&gt;", "</title>",
    "\u2028</style>", "javascript:alert(1)", "{{7*7}}", "<%= 1 %>", "\x00<b>",
]  # fmt: skip


class Markup(HTMLParser):
    """What a browser would run or fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.bad: list[str] = []
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._inside = tag
        if tag == "script":
            self.scripts.append(dict(attrs).get("type") or "")
        if tag in {"img", "svg", "iframe", "object", "embed", "link", "base", "form"}:
            source = dict(attrs).get("src") or ""
            if not source.startswith("data:image/png;base64,") and tag != "svg":
                self.bad.append(f"{tag} {source}")
        for name, value in attrs:
            link = name in {"src", "href", "action"} and "javascript:" in (value or "")
            if name.startswith("on") or link:
                self.bad.append(f"{tag} {name}={value}")
            if name in {"src", "href"} and re.match(r"\s*(https?:)?//", value or ""):
                self.bad.append(f"{tag} {name}={value}")


# ---- markup -------------------------------------------------------------------------------------
def test_a_heat_map_of_hostile_texts() -> None:
    harmless = TokenHeatmap(["a"] * len(EVIL), [0.1] * len(EVIL), title="a", prediction="a")
    hostile = TokenHeatmap(
        EVIL, [0.1] * len(EVIL), title=EVIL[0], prediction=EVIL[1], target=EVIL[2],
        delta=1.0, score=1.0, delta_label=EVIL[3],
    )  # fmt: skip
    found, expected = Markup(html(hostile)), Markup(html(harmless))
    assert not found.bad and found.scripts == expected.scripts


@pytest.mark.parametrize("command", ["explain", "compare", "report"])
def test_pages_of_hostile_models_and_texts(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scripts in labels, in tokens, in texts, in the title and in the name of the folder."""
    names = {0: EVIL[0], 1: EVIL[2], 2: EVIL[3]}
    model = transformers.BertForSequenceClassification(bert_config(id2label=names))
    folder = tmp_path / "<b onclick=alert(1)>"
    saved(folder, model, wordpiece())
    page = tmp_path / "page.html"
    texts = [text for text in EVIL if "\x00" not in text]
    if command == "explain":
        arguments = [EVIL[0], "--html", page]
    else:
        (tmp_path / "x.txt").write_text("\n".join(t.replace("\u2028", " ") for t in texts))
        arguments = [command, "--file", tmp_path / "x.txt", "--html", page, "--methods", "GI,LRP"]
        arguments += ["--title", EVIL[1]] if command == "report" else []
    assert main([*map(str, arguments), "--model", str(folder)]) == 0
    text = page.read_text(encoding="utf-8")
    found = Markup(text)
    assert not found.bad
    assert len(found.scripts) <= 2  # the data and the program of the report
    assert "alert(1)" not in "".join(re.findall(r"<script(?![^>]*json)[^>]*>(.*?)</script>", text))
    assert 'http-equiv="Content-Security-Policy"' in text


# ---- files that hold code -----------------------------------------------------------------------
class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_nothing_is_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np = pytest.importorskip("numpy")
    trigger, folder = tmp_path / "run", tmp_path / "model"
    saved(folder, transformers.BertForSequenceClassification(bert_config()), wordpiece())
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(trigger)))
    capsys.readouterr()  # saving may have shown its progress
    assert main(["a film", "--model", str(folder)]) == 1
    error = capsys.readouterr().err
    assert "cannot load the model" in error and error.count("\n") == 1
    np.save(tmp_path / "x.npy", np.array([Bomb(trigger)], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", images=np.array([Bomb(trigger)], dtype=object))
    for name in ("x.npy", "x.npz"):
        for arguments in (["--image", name], ["report", "--images", name, "--html", "a.html"]):
            paths = [str(tmp_path / a) if "." in a else a for a in arguments]
            assert main(paths) == 1
            assert capsys.readouterr().err.count("\n") == 1
    assert not trigger.exists()


def test_weights_that_are_no_safetensors_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even harmless ones: the format is what is not trusted."""
    model = transformers.BertForSequenceClassification(bert_config())
    saved(tmp_path, model, wordpiece())
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert main(["a film", "--model", str(tmp_path)]) == 1
    assert "safetensors" in capsys.readouterr().err


def test_code_that_comes_with_a_model_is_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, transformers.BertForSequenceClassification(bert_config()), wordpiece())
    trigger = tmp_path / "run"
    (tmp_path / "own.py").write_text(f"open({str(trigger)!r}, 'w').close()\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = "own"
    config["auto_map"] = {"AutoConfig": "own.C", "AutoModelForSequenceClassification": "own.M"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    capsys.readouterr()  # saving may have shown its progress
    assert main(["a film", "--model", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1 and not trigger.exists()


def _calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)
        elif isinstance(node, ast.Import):
            yield from (f"import {alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"import {node.module}"


def test_the_source_uses_nothing_that_runs_code_or_fetches() -> None:
    forbidden = re.compile(
        r"(torch\.load|eval|exec|compile|__import__|os\.system|os\.popen|pickle\.\w+|yaml\.load"
        r"|joblib\.\w+|marshal\.\w+)$"
        r"|import (pickle|shelve|marshal|subprocess|urllib.*|requests.*|http\.client|ftplib)$"
    )
    found = [
        f"{file.relative_to(PACKAGE)}: {name}"
        for file in PACKAGE.rglob("*.py")
        for name in _calls(ast.parse(file.read_text(encoding="utf-8")))
        if forbidden.fullmatch(name)
    ]
    assert found == []
    assert forbidden.fullmatch("torch.load") and forbidden.fullmatch("import urllib.request")


# ---- network ------------------------------------------------------------------------------------
@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    asked: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        asked.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


def test_no_network_unless_a_hub_model_is_named(
    no_network: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    saved(tmp_path, transformers.BertForSequenceClassification(bert_config()), wordpiece())
    sentiment(), digits(), digit_samples()
    assert main(["a film", "--no-color"]) == 0
    assert main(["a film", "--model", str(tmp_path), "--html", str(tmp_path / "x.html")]) == 0
    assert main(["a film", "--model", "./nowhere"]) == 1
    assert main(["a film", "--model", str(tmp_path / "nowhere")]) == 1
    page = ["--html", str(tmp_path / "y.html"), "--methods", "GI", "--limit", "2"]
    assert main(["report", "--digits", *page]) == 0
    assert no_network == []


# ---- writing ------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError, MemoryError])
@pytest.mark.parametrize("where", ["os.fdopen", "os.chmod", "os.replace"])
def test_half_a_file_is_never_seen(
    where: str, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    for before in (None, b"old"):
        if before is not None:
            path.write_bytes(before)

        def fail(*_: Any, **__: Any) -> Any:
            raise kind("injected")

        with monkeypatch.context() as patch:
            patch.setattr(where, fail)
            with pytest.raises(kind, match="injected"):
                write_atomically(path, b"new")
        assert [p.name for p in tmp_path.iterdir()] == ([] if before is None else ["page.html"])
        assert before is None or path.read_bytes() == before
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
