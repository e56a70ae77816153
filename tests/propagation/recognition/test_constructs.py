"""What modellers write, against a second run in which patterns and divisors are constants."""

from __future__ import annotations

import warnings

import pytest
import torch

import constructs
import spellings
from captum_lrp_tx import ConservativeLRP
from captum_lrp_tx.errors import UncoveredOperationError
from constructs import CONSTRUCTS
from rarer_constructs import RARER
from weights_in_disguise import DISGUISED, GATES, KERNELS, READS

ALL = CONSTRUCTS | RARER | DISGUISED

#: What is held constant under a preset: patterns, norms.
HELD = {"gi": "", "ah": "p", "ln": "n", "ah+ln": "pn"}
#: What strict refuses, and a part of the reason.
_SHIFTED = "cut off from them"
REFUSED = {
    # the greatest score is subtracted without its gradient; under "ah" this is part of the pattern
    ("gat", "ln"): _SHIFTED,
    ("gatv2", "ln"): _SHIFTED,
    ("transformer conv", "ln"): _SHIFTED,
    ("kv quant", "ln"): _SHIFTED,
    # gates of every channel that are divided by their sum over neighbours
    ("gated gcn", "ah"): "weights that were not recognised",
    ("gated gcn", "ah+ln"): "weights that were not recognised",
    ("idw", "ln"): "norm or statistic without a rule",
    ("cov whiten", "ah"): "system of input-dependent equations",
    ("cov whiten", "ah+ln"): "system of input-dependent equations",
    ("attention by lerp", "ah"): "Lerp",
    ("attention by lerp", "ah+ln"): "Lerp",
    **{("merged, lerp", preset): "Lerp" for preset in ("ah", "ah+ln")},
    # a gate that is multiplied in before the values has a gradient of its own
    **{(f"gated, {gate}", preset): "weights that were not recognised"
       for gate in GATES.keys() | READS.keys() - {"matmul"} for preset in ("ah", "ah+ln")},
    **{(f"kernels, {weights}", preset): "weights that were not recognised"
       for weights in KERNELS for preset in ("ah", "ah+ln")},
}  # fmt: skip


def skip_without_gradient(model: torch.nn.Module) -> None:
    """Torch 2.5 has no derivative of ``aminmax``."""
    try:
        model(spellings.inputs().requires_grad_()).sum().backward()
    except RuntimeError as error:
        pytest.skip(str(error))


# names of autograd's nodes change between versions of torch: one preset looks at all of them
@pytest.mark.parametrize(
    "preset", [pytest.param(p, marks=[pytest.mark.core] if p == "ah+ln" else []) for p in HELD]
)
@pytest.mark.parametrize("name", ALL)
def test_a_construct_is_the_frozen_function_or_refused(name: str, preset: str) -> None:
    model = spellings.Model(ALL[name]).eval()
    if name == "aminmax call":
        skip_without_gradient(model)
    explainer, x = ConservativeLRP(model, preset), spellings.inputs()
    try:
        relevance = explainer.attribute(x, target=1, strict=True)
    except UncoveredOperationError as error:
        if error.operations:
            assert REFUSED[name, preset] in str(error)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # there was nothing to recognise
            relevance = explainer.attribute(x, target=1)
    assert (name, preset) not in REFUSED
    leaf = x.clone().requires_grad_()
    held = spellings.Model(ALL[name], HELD[preset]).eval()
    (gradient,) = torch.autograd.grad(held(leaf)[:, 1].sum(), leaf)
    expected = x * gradient
    assert (relevance - expected).abs().max() <= 1e-6 * expected.abs().max()


#: Hold numbers for each of two examples, or mix them.
OF_TWO = {"attention by lerp", "kv cache", "mixup", "monotonic", "null key", "tensor fusion"}
WRITTEN = {f"{p}, {n}": f for p, table in spellings.PARTS.items() for n, f in table.items()}
EVERY = {name: f for name, f in (ALL | WRITTEN).items() if name not in OF_TWO}


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_of_one_is_no_other_case(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an axis is must not be told by its size."""
    model, x = spellings.Model(EVERY[name]).eval(), spellings.inputs()
    if name == "aminmax call":
        skip_without_gradient(model)
    explainer = ConservativeLRP(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = explainer.attribute(x, target=1)
        for module in (spellings, constructs):
            monkeypatch.setattr(module, "BATCH", 1)
        alone = explainer.attribute(x[1:], target=1)
    torch.testing.assert_close(
        alone, together[1:], rtol=1e-9, atol=1e-9 * float(together.abs().max())
    )
