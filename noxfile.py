"""Versions that the tests run under: ``nox`` runs all sessions, ``nox -s coverage`` one of them.

CI may call the sessions one by one.  What they install is written here and nowhere else.
"""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "venv"

#: torch, captum, transformers and what else is pinned.
VERSIONS: dict[str, tuple[str, ...]] = {
    "lowest": ("torch==2.4.0", "captum==0.8.0", "transformers==4.48.0", "numpy<2"),
    "captum08": ("torch==2.13.0", "captum==0.8.0", "transformers>=5", "numpy<2"),
    "captum09": ("torch==2.13.0", "captum==0.9.0", "transformers>=5"),
    "newest": ("torch", "captum", "transformers"),
}
#: Tests that need no other package than these and cover the engine, the rules and the classes.
CORE = (
    "tests/test_composite.py", "tests/test_callers.py", "tests/test_errors.py",
    "tests/test_faults.py", "tests/test_threads.py", "tests/test_numerics.py",
    "tests/test_token_lookups.py", "tests/test_attnlrp.py", "tests/test_targets.py",
    "tests/test_oracle_agreement.py", "tests/test_captum_conventions.py", "tests/test_cli.py",
    "tests/test_fuzz.py", "tests/test_fuzz_cli.py", "tests/test_untrusted.py",
)  # fmt: skip


def _test(session: nox.Session, versions: tuple[str, ...]) -> None:
    session.install(*versions)
    session.install(".[test]", *versions)
    session.run("pip", "uninstall", "-q", "-y", "captum_lrp_tx", silent=True)  # test the checkout
    environment = {"HF_HUB_OFFLINE": "1", "CI": "true"}
    session.run("python", "-m", "pytest", "-q", *(session.posargs or CORE), env=environment)


@nox.session
@nox.parametrize("versions", list(VERSIONS.values()), ids=list(VERSIONS))
def versions(session: nox.Session, versions: tuple[str, ...]) -> None:
    """Core tests under one set of versions: ``nox -s "versions(lowest)"``."""
    _test(session, versions)


@nox.session
def coverage(session: nox.Session) -> None:
    """Lines and branches of the package that the tests run: benchmarks/coverage.md."""
    session.install("pytest-cov")
    session.install(".[test]")
    data, report = "../coverage.data", "benchmarks/coverage.md"
    session.run("python", "benchmarks/covered.py", "--data", data, "--report", report)


@nox.session
def mutants(session: nox.Session) -> None:
    """A random sample of mutants of the engine and the rules, after the session ``coverage``."""
    session.install("cosmic-ray", "pytest-cov", ".[test]")
    data, report = "../coverage.data", "benchmarks/mutants.md"
    session.run(
        "python", "benchmarks/mutants.py", "--data", data, "--report", report, *session.posargs
    )


@nox.session
def thorough(session: nox.Session) -> None:
    """The long loops: every place of a fault, thousands of fuzzed arguments, 2,000 attributions."""
    session.install(".[test]")
    tests = ("test_faults", "test_fuzz", "test_fuzz_cli", "test_numerics", "test_threads")
    session.run(
        "python", "-m", "pytest", "-q", *(f"tests/{name}.py" for name in tests),
        env={"CAPTUM_LRP_TX_THOROUGH": "1"},
    )  # fmt: skip
    session.run("python", "tests/stress.py", "--report", "benchmarks/stress.md")
