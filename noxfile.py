"""Versions that the tests run under: ``nox`` runs all sessions, ``nox -s "versions(lowest)"`` one.

CI calls the sessions of other versions (``.ci/run``); what they install is written here only.
"""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["versions"]

WHICH = ("lowest", "captum08", "captum09", "newest")
#: Tests of rules, engine and files, which call Captum nowhere or as others do as well.
ENGINE = (
    "affine_calls", "attention_without_softmax", "biased_maps", "bilrp", "bookkeeping",
    "compact", "conservation", "cut_off", "datasets", "decoders", "depth_rules",
    "drawn_models", "elementwise_and_norm_calls", "engine_parts", "every_function",
    "families", "faults", "following_ids", "foreign", "fuzz", "fuzz_cli", "graphormer",
    "ids_in_models", "judgements", "layers", "low_precision", "many_targets", "masked_lrp",
    "memory", "models_from_folders", "names", "norms_by_homogeneity", "numerics", "oracle",
    "oracle_agreement", "part_relevance", "paths_less_travelled", "pattern_product",
    "properties", "quantised_maps", "recorder", "recurrence", "recurrent_layers",
    "roles_of_factors", "rows", "search_limits", "shortcuts", "signed_rules", "sink_rule",
    "softmax_constant", "spans", "spelled_attention", "spellings", "state_space", "threads",
    "token_lookups", "torch_families", "uniform_attention", "unseen_architecture", "wild",
)  # fmt: skip
#: Tests of whole programs, whose calls of Captum other tests make as well.
PROGRAMS = (
    "cli", "documentation", "evaluate", "explain_tasks", "language_models_experiment",
    "many_targets", "paper", "tables", "tuning", "tutorials",
)  # fmt: skip
#: The walk over all families of transformers.
FAMILIES = ("huggingface_families",)
#: What versions of torch and transformers can break first.
CORE = (
    "attnlrp", "callers", "captum_conventions", "composite", "errors", "faults", "memory",
    "oracle_agreement", "pattern_product", "rows", "targets", "token_lookups", "untrusted",
)  # fmt: skip
#: Models of other packages, which only the newest torch has (no CPU build of torchvision).
VISION = ("vision_families", "torch_families", "oracle_agreement", "conservation")


def _files(*names: str) -> list[str]:
    return [f"tests/test_{name}.py" for name in names]


def _install(session: nox.Session, extras: str, *versions: str) -> None:
    if versions:
        session.install("-q", *versions)  # first: pip then keeps them
    session.install("-q", f".[{extras}]", *versions)
    session.run("pip", "uninstall", "-q", "-y", "captum_lrp_tx", silent=True)  # test the checkout


def _test(session: nox.Session, *arguments: str) -> None:
    session.run(
        "python", "-m", "pytest", "-q", "-n", "2", *(session.posargs or arguments),
        env={"HF_HUB_OFFLINE": "1", "CI": "true"},
    )  # fmt: skip


@nox.session
@nox.parametrize("which", WHICH, ids=WHICH)
def versions(session: nox.Session, which: str) -> None:
    """The tests under one set of versions.

    ``lowest``: all that ``setup.cfg`` allows; ``captum08``: the last with Captum Insights;
    ``captum09``: as in the README; ``newest``: whatever the registry has, with timm.
    """
    if which == "lowest":
        _install(
            session, "test", "torch==2.4.0", "captum==0.8.0", "transformers==4.48.0", "numpy<2"
        )
        _test(session, *_files(*CORE))
    elif which == "captum08":
        # later pyarrow needs NumPy 2
        _install(session, "test,insights", "torch==2.13.0", "captum==0.8.0", "pyarrow<26")
        ignored = [f"--ignore={file}" for file in _files(*ENGINE, *FAMILIES, *PROGRAMS)]
        _test(session, *ignored, "tests")
    elif which == "captum09":
        _install(session, "test", "torch==2.13.0", "captum==0.9.0")
        _test(session, "tests")
    else:
        _install(session, "test,timm", "torch", "torchvision", "timm")
        only = "timm or torchvision or vision or vit"
        _test(session, *_files(*VISION), "-k", only)
        if not session.posargs:
            beside = sorted(set(CORE) - {"oracle_agreement", "faults"})
            _test(session, *_files(*beside))


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
    session.run("python", "tests/stress.py", "--report", "benchmarks/stress.md")
