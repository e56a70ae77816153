"""The recipe for conda says what ``setup.cfg`` says."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Any

import pytest

import captum_lrp_tx

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
FILE = ROOT / "tools" / "conda" / "recipe.yaml"
#: Packages that conda-forge has under another name than PyPI.
NAMES = {"torch": "pytorch", "lazy_loader": "lazy-loader"}


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    """The recipe, with the variables of its ``context`` filled in."""
    text = FILE.read_text(encoding="utf-8")
    for name, value in yaml.safe_load(text)["context"].items():
        text = text.replace("${{ " + name + " }}", value)
    return yaml.safe_load(text)


@pytest.fixture(scope="module")
def config() -> configparser.ConfigParser:
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "setup.cfg", encoding="utf-8")
    return parsed


def wanted(requirement: str) -> tuple[str, str]:
    """Name at conda-forge and versions of a line of ``setup.cfg``."""
    name, versions = re.fullmatch(r"([\w.-]+)(.*)", requirement).groups()
    return NAMES.get(name, name), versions


def given(requirement: str) -> tuple[str, str]:
    """Name and versions of a line of the recipe."""
    name, _, versions = requirement.partition(" ")
    return name, versions


def test_it_installs_what_setup_cfg_requires(
    recipe: dict[str, Any], config: configparser.ConfigParser
) -> None:
    run = dict(map(given, recipe["requirements"]["run"]))
    assert run.pop("python") == config["options"]["python_requires"]
    assert run == dict(map(wanted, config["options"]["install_requires"].split()))


def test_it_builds_with_what_pyproject_requires(recipe: dict[str, Any]) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    backend = re.search(r'^requires = \["(.*)"\]$', text, re.MULTILINE)[1]
    host = dict(map(given, recipe["requirements"]["host"]))
    name, versions = wanted(backend)
    assert host[name] == versions and "pip" in host
    assert recipe["build"]["noarch"] == "python"


def test_names_versions_and_licence_agree(
    recipe: dict[str, Any], config: configparser.ConfigParser
) -> None:
    metadata = config["metadata"]
    assert recipe["package"]["name"] == metadata["name"]
    assert recipe["package"]["version"] == captum_lrp_tx.__version__
    assert recipe["about"]["summary"] == metadata["description"]
    assert recipe["about"]["license"] == metadata["license"]
    files = [line.removesuffix("*") for line in metadata["license_files"].split()]
    assert recipe["about"]["license_file"] == files
    assert all((ROOT / file).exists() for file in files)


def test_commands_are_those_of_setup_cfg(
    recipe: dict[str, Any], config: configparser.ConfigParser
) -> None:
    lines = config["options.entry_points"]["console_scripts"].strip().splitlines()
    assert recipe["build"]["python"]["entry_points"] == lines
    script = next(test["script"] for test in recipe["tests"] if "script" in test)
    assert script == [f"{line.split(' = ')[0]} --version" for line in lines]


def test_every_variable_is_filled_in(recipe: dict[str, Any]) -> None:
    """All but the interpreter, which rattler-build knows."""
    assert set(re.findall(r"\$\{\{ (\w+) \}\}", str(recipe))) == {"PYTHON"}


def test_rattler_build_understands_it(recipe: dict[str, Any]) -> None:
    """The program that conda-forge builds with renders what stands in the file."""
    rattler_build = pytest.importorskip("rattler_build")
    file = rattler_build.Stage0Recipe.from_file(FILE)
    (variant,) = file.render(rattler_build.VariantConfig())
    rendered = variant.recipe.to_dict()
    assert rendered["package"] == recipe["package"]
    assert rendered["requirements"] == recipe["requirements"]
    assert rendered["build"]["noarch"] == "python"
    assert rendered["build"]["python"] == recipe["build"]["python"]
