"""Versions that the tests run under: ``nox`` runs all sessions, ``nox -s "versions(lowest)"`` one.

The markers that choose the tests are declared in ``pyproject.toml``.

CI calls the sessions of other versions (``.ci/run``); what they install is written here only.
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["versions"]

WHICH = ("lowest", "captum08", "captum09", "newest")


def _install(session: nox.Session, extras: str, *versions: str) -> None:
    if versions:
        session.install("-q", *versions)  # first: pip then keeps them
    session.install("-q", f".[{extras}]", *versions)
    session.run("pip", "uninstall", "-q", "-y", "captum_lrp_tx", silent=True)  # test the checkout


def _test(session: nox.Session, *arguments: str) -> None:
    chosen = session.posargs or arguments
    environment = {"HF_HUB_OFFLINE": "1", "CI": "true"}
    session.run("python", "-m", "pytest", "-q", "-n", "2", *chosen, env=environment)


def _marked(*markers: str) -> list[str]:
    """The files that hold marked tests: no other needs to be imported."""
    files = sorted(Path(__file__).with_name("tests").rglob("test_*.py"))
    return [str(f) for f in files if any(f"mark.{m}" in f.read_text() for m in markers)]


@nox.session
@nox.parametrize("which", WHICH, ids=WHICH)
def versions(session: nox.Session, which: str) -> None:
    """The tests under one set of versions.

    ``lowest``: all that ``setup.cfg`` allows; ``captum08``: the last with Captum Insights;
    ``captum09``: as in the README; ``newest``: whatever the registry has, with timm.
    """
    if which == "lowest":
        _install(
            session, "test", "torch==2.5.0", "captum==0.8.0", "transformers==4.48.0", "numpy<2"
        )
        _test(session, *_marked("core"), "-m", "core")
    elif which == "captum08":
        # later pyarrow needs NumPy 2
        _install(session, "test,insights", "torch==2.13.0", "captum==0.8.0", "pyarrow<26")
        # what is core runs under captum 0.8 in the session ``lowest``
        _test(session, *_marked("captum"), "-m", "captum and not core")
    elif which == "captum09":
        _install(session, "test", "torch==2.13.0", "captum==0.9.0")
        _test(session)
    else:
        _install(session, "test,timm", "torch", "torchvision", "timm")
        # MobileNetV5 has 300 million parameters however it is made: benchmarks/families.py has it
        chosen = ["-m", "image_models or (core and not thorough)", "-k", "not mobilenetv5"]
        _test(session, *_marked("image_models", "core"), *chosen)


@nox.session
def quantised(session: nox.Session) -> None:
    """Quantised layers as four packages make them; without these the tests use layers by hand."""
    session.install("-q", "torch==2.13.0")
    session.install("-q", ".[test]", "bitsandbytes", "optimum-quanto", "torchao", "gguf")
    session.run("pip", "uninstall", "-q", "-y", "captum_lrp_tx", silent=True)  # test the checkout
    _test(session, "tests/propagation/interception/test_quantised_maps.py")


@nox.session
def docs(session: nox.Session) -> None:
    """The pages, in docs/_build; a warning is an error."""
    session.install("-q", "torch==2.13.0")
    session.install("-q", ".[docs]")
    session.run("sphinx-build", "-q", "-W", "--keep-going", "docs", "docs/_build")


@nox.session
def coverage(session: nox.Session) -> None:
    """Lines and branches of the package that the tests run: benchmarks/coverage.md."""
    session.install("-q", "torch==2.13.0")
    session.install("-q", "pytest-cov", ".[test]")
    data, report = "../coverage.data", "benchmarks/coverage.md"
    session.run("python", "benchmarks/covered.py", "--data", data, "--report", report)


@nox.session
def mutants(session: nox.Session) -> None:
    """A random sample of mutants of the engine and the rules, after the session ``coverage``."""
    session.install("-q", "torch==2.13.0")
    session.install("-q", "cosmic-ray", "pytest-cov", ".[test]")
    data, report = "../coverage.data", "benchmarks/mutants.md"
    session.run(
        "python", "benchmarks/mutants.py", "--data", data, "--report", report, *session.posargs
    )


@nox.session
def thorough(session: nox.Session) -> None:
    """The long loops: every place of a fault, thousands of fuzzed arguments, 2,000 attributions."""
    session.install("-q", "torch==2.13.0")
    session.install("-q", ".[test]")
    session.run("python", "benchmarks/thorough.py", "--report", "benchmarks/thorough.md")
    session.run("python", "benchmarks/threads.py", "--report", "benchmarks/threads.md")
