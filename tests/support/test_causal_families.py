"""What ``explain`` takes for next tokens covers what the default covers, in every causal family."""

from __future__ import annotations

import os
import warnings

import pytest
import torch

from captum_lrp_tx import ConservativeLRP, Explanation, explain
from captum_lrp_tx.audit import Report, explainability
from captum_lrp_tx.errors import InputError
from families import common, huggingface

pytest.importorskip("transformers")

PRESET = "language-ah"
#: Mixtures of experts, sinks of the model's own, heads that share values, recurrences, gates.
SOME = """deepseek_v3 doge falcon falcon_h1 gpt2 gpt_bigcode gpt_oss granitemoe inkling_text llama
minimax nemotron_h rwkv""".split()
FAMILIES = huggingface.causal_names() if "CAPTUM_LRP_TX_THOROUGH" in os.environ else SOME


def report_of(case: common.Case, rules: str) -> Report:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return explainability(case.forward, case.inputs, case.target, rules=rules, file=None)
        except InputError as error:
            pytest.skip(str(error))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_default_covers_is_covered_with_sinks_too(family: str) -> None:
    try:
        cases = huggingface.cases(family, ("CAUSAL_LM",))
    except common.NotBuilt as error:
        pytest.skip(str(error))
    found = []
    for case in cases:
        before, report = report_of(case, "lrp"), report_of(case, PRESET)
        kept = [f for f in report.findings if f.is_fault]
        assert len(kept) <= sum(f.is_fault for f in before.findings), kept
        lost = abs(report.conservation_error) - abs(before.conservation_error)
        assert lost <= 1e-3 * abs(report.output)
        found.append(ConservativeLRP(case.forward, PRESET).attribute(case.inputs, case.target))
    for other in found[1:]:  # eager and fused
        scale = float(found[0].abs().max())
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-3 * scale)
    made = explain(cases[0].model, None, cases[0].inputs[:1], task="next token")
    assert isinstance(made, Explanation) and made.rules == PRESET
