"""How each tool explains, as its own documentation says: for ``rivals.py`` and ``parity.py``.

lxt patches classes of transformers and torch for good, so whatever is prepared for it runs
:func:`apart`, in a process of its own.  Tools that are not installed are imported nowhere.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import multiprocessing
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rival_families
import torch
from torch import Tensor, nn

#: A model, an input and the index of a logit to the relevance of the input.
Explain = Callable[[nn.Module, Tensor, int], Tensor]


@dataclass(frozen=True)
class Tool:
    """One way to explain.

    ``prepare(family)`` is what has to be done before the model is made; ``refusals`` are the types
    of errors by which the tool says that it is not for this model.
    """

    package: str
    explain: Explain
    prepare: Callable[[str], None] = lambda family: None
    refusals: tuple[str, ...] = ()


def ours(rules: str = "lrp", **more: Any) -> Explain:
    """This package; ``strict`` goes to the call."""

    def explain(model: nn.Module, x: Tensor, target: int) -> Tensor:
        from captum_lrp_tx import ConservativeLRP

        options = {k: v for k, v in more.items() if k == "strict"}
        explainer = ConservativeLRP(model, rules, **{k: more[k] for k in more if k not in options})
        return explainer.attribute(x, target=target, **options)

    return explain


def of_captum(name: str) -> Explain:
    """A class of Captum, as it comes."""

    def explain(model: nn.Module, x: Tensor, target: int) -> Tensor:
        method = getattr(importlib.import_module("captum.attr"), name)(model)
        return method.attribute(x.requires_grad_(), target=target).detach()

    return explain


def captum_with_rules(model: nn.Module, x: Tensor, target: int) -> Tensor:
    """Captum's ``LRP``, told to hand relevance through every module that it has no rule for."""
    from captum.attr import LRP
    from captum.attr._core.lrp import SUPPORTED_LAYERS_WITH_RULES, SUPPORTED_NON_LINEAR_LAYERS
    from captum.attr._utils.lrp_rules import IdentityRule

    known = (*SUPPORTED_LAYERS_WITH_RULES, *SUPPORTED_NON_LINEAR_LAYERS)
    for module in model.modules():
        if not list(module.children()) and type(module) not in known:
            module.rule = IdentityRule()
    return LRP(model).attribute(x.requires_grad_(), target=target).detach()


def by_zennit(model: nn.Module, x: Tensor, target: int) -> Tensor:
    """The epsilon rule on all linear layers, and the rest as in all of zennit's composites.

    Linear layers and activations that transformers has classes of its own for get these rules too,
    and norms what the composites give to batch norms.
    """
    from transformers.pytorch_utils import Conv1D
    from zennit.attribution import Gradient
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.composites import LayerMapComposite, layer_map_base
    from zennit.rules import Epsilon, Pass
    from zennit.types import Linear

    activations = tuple(
        kind
        for kind in vars(importlib.import_module("transformers.activations")).values()
        if isinstance(kind, type) and issubclass(kind, nn.Module)
    )
    norms = tuple({type(m) for m in model.modules() if re.search("(Layer|RMS)Norm", repr(type(m)))})
    layers = [
        *layer_map_base(), ((*activations, *norms), Pass()),
        ((Linear, Conv1D), Epsilon()),
    ]  # fmt: skip
    composite = LayerMapComposite(layers, canonizers=[SequentialMergeBatchNorm()])
    with Gradient(model, composite) as attributor:
        start = torch.eye(model(x).shape[-1], dtype=x.dtype)[[target]]
        _, relevance = attributor(x, lambda output: output * start)
    return relevance.detach()


#: The module of transformers or torchvision that a family comes from, for lxt to patch.
_MODULES = {
    "BERT": "bert", "RoBERTa": "roberta", "DistilBERT": "distilbert", "ALBERT": "albert",
    "GPT-2": "gpt2", "Llama": "llama", "Qwen2": "qwen2", "Gemma 3": "gemma3",
    "ViT (transformers)": "vit", "T5 encoder": "t5", "Mamba": "mamba",
}  # fmt: skip


def _source(family: str) -> Any:
    if family == "ViT (torchvision)":
        return importlib.import_module("torchvision.models.vision_transformer")
    name = _MODULES.get(family)
    found = f"transformers.models.{name}.modeling_{name}" if name else rival_families.__name__
    return importlib.import_module(found)


def patched_by_lxt(kind: str = "") -> Callable[[str], None]:
    """Patches the modelling module, by lxt's default table or by its ``cp_LRP`` or ``attnLRP``."""

    def prepare(family: str) -> None:
        from lxt.efficient import monkey_patch

        module = _source(family)
        table = None
        if kind:
            name = "vit_torch" if "torchvision" in family else _MODULES[family]
            table = getattr(importlib.import_module(f"lxt.efficient.models.{name}"), kind)
        monkey_patch(module, table)
        if family == "BERT":  # another module is put in place of this one
            import transformers

            name = "BertForSequenceClassification"
            setattr(transformers, name, getattr(sys.modules[module.__name__], name))

    return prepare


def by_lxt(model: nn.Module, x: Tensor, target: int) -> Tensor:
    """Parameters frozen, gradient x input."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    leaf = x.detach().clone().requires_grad_()
    try:
        model(leaf)[:, target].sum().backward()
    finally:
        for parameter in trained:
            parameter.requires_grad_()
    return leaf.detach() * leaf.grad


def by_autolrp(preset: str) -> Explain:
    """One of the presets; it starts from 1, not from the logit."""

    def explain(model: nn.Module, x: Tensor, target: int) -> Tensor:
        import autolrp

        wrapped = autolrp.tensor(x)
        logit = model(wrapped)[0, target]
        logit.lrp(config=getattr(autolrp.LRPConfig, preset)())
        start = logit.detach().as_subclass(torch.Tensor)
        return wrapped.relevance.detach().as_subclass(torch.Tensor) * start

    return explain


IG, GRADIENT = "Captum IntegratedGradients", "Captum InputXGradient"
TOOLS: dict[str, Tool] = {
    "ours": Tool("captum_lrp_tx", ours(), refusals=("UncoveredOperationError",)),
    "Captum LRP": Tool("captum", of_captum("LRP"), refusals=("TypeError",)),
    "Captum LRP, told": Tool("captum", captum_with_rules),
    "zennit": Tool("zennit", by_zennit),
    "lxt": Tool("lxt", by_lxt, patched_by_lxt(), refusals=("ValueError",)),
    "autoLRP": Tool("autolrp", by_autolrp("cplrp")),
    IG: Tool("captum", of_captum("IntegratedGradients")),
    GRADIENT: Tool("captum", of_captum("InputXGradient")),
}
#: What is compared with the oracle, by the rules of the oracle that say the same.
EXACT: dict[str, tuple[Tool, str]] = {
    "ours, `lrp`": (TOOLS["ours"], "lrp"),
    "ours, `ah+ln`": (Tool("captum_lrp_tx", ours("ah+ln")), "ah+ln"),
    "Captum LRP": (TOOLS["Captum LRP"], "lrp"),
    "zennit": (TOOLS["zennit"], "lrp"),
    "lxt, `cp_LRP`": (Tool("lxt", by_lxt, patched_by_lxt("cp_LRP")), "lrp"),
    "autoLRP, `cplrp()`": (TOOLS["autoLRP"], "lrp"),
    GRADIENT: (TOOLS[GRADIENT], "gi"),
}


def installed(tool: Tool) -> bool:
    """Whether the package of a tool is here."""
    return importlib.util.find_spec(tool.package) is not None


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, in which it may patch what it likes.

    Raises:
        RuntimeError: the function raised; the message says what.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def work() -> None:
        torch.set_num_threads(1)
        try:
            there.send((function(*arguments), ""))
        except Exception as failure:
            there.send((None, f"{type(failure).__name__}: {failure}"))

    process = context.Process(target=work)
    process.start()
    there.close()
    result, failed = here.recv()
    process.join()
    if failed:
        raise RuntimeError(failed)
    return result


def attempt(function: Callable[[], Any], tool: Tool) -> tuple[str, Any]:
    """``runs``, ``warns``, ``refuses`` or ``raises``, and the result or the reason."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = function()
        except Exception as error:
            kind = type(error).__name__
            known = "refuses" if kind in tool.refusals else "raises"
            return known, f"{kind}: {' '.join(str(error).split())}"
    told = [w for w in caught if issubclass(w.category, UserWarning)]
    return ("warns" if told else "runs"), (result, [str(w.message) for w in told])


def preload() -> None:
    """Import everything once, so that the processes of :func:`apart` need not."""
    for family in rival_families.LISTED:
        rival_families.build(family)
    for name in ("captum.attr", "zennit.composites", "lxt.efficient", "autolrp", "captum_lrp_tx"):
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)


def write(about: str | None, page: Callable[[], list[str]]) -> None:
    """The command line of ``rivals.py`` and ``parity.py``: measures, prints, writes the page.

    Args:
        about (str, optional): The script's docstring; its first line is the help text.
        page (callable): Measures, and gives the lines.
    """
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    preload()
    text = "\n".join(page())
    if arguments.report is not None:
        arguments.report.write_text(text.rstrip() + "\n", encoding="utf-8")
    print(text)
