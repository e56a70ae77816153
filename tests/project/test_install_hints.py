"""What messages say to install can be installed, also before the package is on any index."""

from __future__ import annotations

import ast
import configparser
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HINT = re.compile(r'pip install ((?:(?:"[^"]+"|--[a-z-]+|[a-z-]+)\s?)+)')
#: In no extra: what reads adapters and gives tables.
OTHERS = {"peft", "pandas"}


def requirements() -> set[str]:
    """What the package and its extras bring."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    return {re.split("[<>=]", line)[0] for lines in listed for line in lines.split()} | OTHERS


def text_of(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def hints() -> list[tuple[str, str]]:
    """Every command in a text of the package, with the file that has it."""
    found = set()
    for file in sorted((ROOT / "captum_lrp_tx").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "install" in text else ():
            found |= {(file.name, command.strip()) for command in HINT.findall(text_of(node))}
    return sorted(found)


@pytest.mark.parametrize(("file", "command"), hints())
def test_a_hint_names_what_an_extra_brings(file: str, command: str) -> None:
    words = [word.strip('"') for word in command.split() if not word.startswith("--")]
    named = {re.split("[<>=]", word)[0] for word in words}
    assert named and named <= requirements(), f"{file}: {named - requirements()}"


def test_there_are_hints() -> None:
    assert len(hints()) >= 10
