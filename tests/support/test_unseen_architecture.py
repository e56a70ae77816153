"""A family that appears next month works without a change if it is made of standard parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import captum_lrp_tx
import unseen_architecture
import zoo
from captum_lrp_tx import ConservativeLRP, audit
from families.common import Case, check


def _case(fused: bool) -> Case:
    model = zoo.randomise(unseen_architecture.TowerForCausalLM(fused))
    ids = zoo.token_ids(False)[0]
    return Case("", "unseen", "TowerForCausalLM", "", model, lambda i: model(i).logits, ids, (6, 9))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("preset", ["ah", "ln", "ah+ln", "lrp"])
def test_an_unseen_architecture_is_explained_exactly(preset: str, fused: bool) -> None:
    outcome = check(_case(fused), preset)
    assert outcome.status == "verified", outcome


@pytest.mark.parametrize("fused", [False, True])
def test_its_audit_is_clean_and_the_model_untouched(fused: bool, untouched: Any) -> None:
    case = _case(fused)
    with untouched(case.model):
        report = audit.explainability(
            case.model, case.inputs, target=case.target, file=None, strict=True
        )
        relevance = ConservativeLRP(case.model).attribute(case.inputs, target=case.target)
    assert {item.kind for item in report.applied} >= {"attention", "norm", "product", "linear"}
    assert abs(report.conservation_error) <= 1e-4 * abs(report.output)
    assert relevance.shape == case.inputs.shape and bool(relevance.abs().sum() > 0)


def test_no_name_of_it_is_known_to_the_package() -> None:
    code = "".join(p.read_text("utf-8") for p in Path(captum_lrp_tx.__file__).parent.rglob("*.py"))
    names = [n for n, v in vars(unseen_architecture).items() if isinstance(v, type)]
    own = {n for n in names if issubclass(getattr(unseen_architecture, n), torch.nn.Module)}
    assert len(own) == 5 and not any(f'"{name}"' in code for name in own)
