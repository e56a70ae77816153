"""What ``rivals.md`` and ``parity.md`` say beside what is measured."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any

from commits import commit

_PACKAGES = (
    "torch", "torchvision", "captum", "transformers", "lxt", "zennit", "autolrp"
)  # fmt: skip


def introduction(title: str, script: str) -> list[str]:
    """The title, the command, the commit and the versions."""
    versions = [
        f"{p} {importlib.metadata.version(p)}" for p in _PACKAGES if importlib.util.find_spec(p)
    ]
    return [
        f"# {title}", "",
        f"`python benchmarks/{script}.py --report benchmarks/{script}.md` at commit {commit()}, "
        f"with {', '.join(versions)}. transformers is 4.52.4 because lxt 2.1 patches the modules "
        "of that version; nothing else needs it. The environment:", "",
        "```bash",
        "python -m venv rivals",
        "rivals/bin/pip install torch==2.13.0 torchvision==0.28.0 captum==0.9.0",
        "rivals/bin/pip install transformers==4.52.4 jinja2 lazy_loader tabulate matplotlib",
        "rivals/bin/pip install --no-deps lxt==2.1 zennit==0.5.1 autolrp==0.2.0",
        f"PYTHONPATH=. rivals/bin/python benchmarks/{script}.py --report benchmarks/{script}.md",
        "```", "",
    ]  # fmt: skip


def table(heads: list[str], lines: list[list[str]]) -> list[str]:
    """Of Markdown."""
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *lines)] + [""]


def number(word: str, found: Any, exact: bool = False) -> str:
    """A share or an error, or a dash where there is none."""
    if word in ("refuses", "raises"):
        return "-"
    value = found[0]
    return f"{value:.0e}" if exact or abs(value) >= 100 else f"{value:.3f}"


#: What stands above each table of rivals.md.
WORDS = {
    "coverage": """Small models with random weights, made by configuration, in float64, with the
attention that transformers chooses by itself. All are called with embeddings or pixels, and the
largest logit is explained. *Refuses*: the tool says by itself that it is not for this model;
*raises*: something else went wrong. *Runs* says nothing about the result; the tables below do.

How each tool was used, after its own documentation: ours with the default preset `lrp`; Captum's
`LRP` with the rules it sets by itself, and, *told*, with its `IdentityRule` set on every module
it has no rule for; zennit with the epsilon rule on linear layers, GPT-2's own `Conv1D` and the
activations of transformers included, norms handled as its composites handle batch norms, the rest
as in these, and batch norms merged by its canonizer; lxt by `monkey_patch` with its default table
on the modelling module, before the model is made, then gradient x input with frozen parameters;
autoLRP with `LRPConfig.cplrp()`, its preset after Ali et al.; Captum's two gradient methods as
they come. lxt lists BERT, GPT-2, Llama, Qwen2 and 3, Gemma 3 and torchvision's ViT; zennit is
made for networks whose sums are modules, and leaves what it has no rule for to the gradient, as
it documents. What travels between modules in zennit and in Captum's `LRP` is relevance: a sum
that is no module hands all of it to each of its terms, and a product multiplies it, so their
numbers in transformers below are no relevance in any sense.""",
    "without": """Relevance of the inputs over the logit, where everything that is only added
(biases, positions, class tokens) is 0: an account that adds up gives 1. Integrated gradients
promise the difference to the logit of a zero input, so that is what they are divided by; with 50
steps (the default) they miss it where norms without biases let the logit jump beside zero.
AttnLRP (lxt on BERT, GPT-2, Llama, Qwen2 and Gemma 3) keeps relevance in the softmax, by
definition. Of models whose RMSNorm computes in float32 whatever the model is (Llama, Qwen2, Gemma
3, Mamba), more than seven digits are not to be had.""",
    "with": """The same models with biases, positions and class tokens drawn at random, with a
standard deviation of 0.2. Here every tool lets them take their part, so 1 is expected only of the
first column, in which the constants that our audit names are counted, and of `bias="distribute"`
where nothing but biases of layers is added: learned positions and class tokens keep theirs.
autoLRP gives biases a share by magnitude, as of every sum, so more of them than a share by value
where terms of both signs meet.""",
    "oracle": """Largest difference over the largest entry, in float64, from
`tests/helpers/oracle.py`, which recomputes relevance from the definitions by a second forward
pass with recorded constants and shares no code with the package. In brackets: the rules of the
oracle. The models have biases, which keep their relevance. Where the rules of a tool differ from
those of the oracle the number says how much the convention matters, not that something is wrong:
lxt's `cp_LRP` holds the gate of a gated MLP (Llama, Qwen2, Gemma 3) constant, where `lrp` gives
it half; autoLRP splits sums by magnitude, |a| / (|a| + |b|), also of residual streams, means and
biases, where the oracle splits them by value, a / (a + b). It is exact by its own rules where
both mean the same: [parity](parity.md). zennit's merged batch norm keeps dividing by the root of
1 + 1e-5, and its rules have an epsilon of 1e-6, Captum's one of 1e-9. Mamba's scan is out of the
oracle's reach under `lrp` (it does not know that coefficients of a scan are constants there), so
ours is judged there by the sum above and by a loop over the scan in
`tests/rules/test_state_space.py`. 0e+00 is the same to the last bit. A dash: the tool does not
explain this model, or has no such table for it.""",
    "state": """Compared before and after: parameters, buffers and logits to the last bit, hooks
and attributes of all modules, `requires_grad` and `.grad`, and every function of the classes of
the model, of their files, of `torch`, `torch.nn.functional` and `torch.Tensor`. Then the same
where a linear layer in the middle raises. Last, two threads explain two inputs with one model ten
times each, beside what one thread gives (a difference above 1e-9 counts as wrong). Captum's `LRP`
and zennit, which hang hooks into the model, do not promise that threads may share it; a copy of
the model for each thread helps. What lxt leaves is its way of working: the patch stays until the
process ends, and another model in it is patched, too; its layer norm is computed in another
order, hence the last bit of the logits.""",
    "odd": """Linear, ReLU, the operation, linear; no biases. *Silent*: a result without a word.
The number is relevance over logit. Integrated gradients and gradient x input have no rules, so
there is nothing they could warn of.""",
}

_HEADS = ["", "ours", "Captum", "zennit", "lxt", "autoLRP"]
_FEATURES = [
    ["made for", "transformers, state space models, CNNs", "any model; `LRP` for CNNs and MLPs",
     "CNNs and MLPs", "seven transformer families", "whatever autograd records"],
    ["acts on", "calls of torch, as they run", "modules", "modules", "classes, patched",
     "nodes of the autograd graph"],
    ["token ids as input", "yes", "`LayerIntegratedGradients` and others; `LRP` no", "no",
     "embeddings", "embeddings"],
    ["graph networks", "yes (an experiment with molecules)", "-", "-", "-", "-"],
    ["relevance of layers", "yes", "`LayerLRP`, many more", "`retain_grad` in its documentation",
     "activation x gradient, anywhere", "`capture_layers`, by node"],
    ["parts: heads, neurons, edges", "yes", "neuron methods", "-", "neurons, by gradient", "-"],
    ["targets", "index, list, tuple, function of outputs", "index, list, tuple",
     "any output relevance", "any scalar", "any scalar, also differences and masks"],
    ["rules", "by kind, class, name, module", "by module", "by class, name, first layer",
     "by class, functions of one's own", "by kind of node or found role"],
    ["tells which rule acted where", "audit", "`verbose=True`", "`composite.handles`",
     "`verbose=True`", "`explain()`, before the backward pass"],
    ["less memory", "`memory=\"low\"`", "`internal_batch_size` of some", "-",
     "checkpointing of transformers", "-"],
    ["quantised models", "yes", "-", "-", "yes (bitsandbytes)", "-"],
    ["metrics", "faithfulness, also Captum's", "infidelity, sensitivity", "-", "-",
     "deletion, insertion, conservation"],
    ["pictures", "text, images, HTML, PNG, Insights", "text, images, Insights",
     "images, colour maps", "text, by LaTeX", "-"],
    ["BiLRP", "yes", "-", "-", "-", "yes"],
    ["command line, whole data sets", "yes", "-", "-", "-", "-"],
]  # fmt: skip
#: From the documentation of each, not measured.
FEATURES = [
    "From what each documents, not measured; a dash where nothing is said. Time and memory: "
    "[beside lxt](lxt.md), [beside Captum](speed.md).", "",
    *(f"| {' | '.join(row)} |" for row in (_HEADS, ["---"] * len(_HEADS), *_FEATURES)),
]  # fmt: skip
CLOSING = """## What the others do better

- **autoLRP** runs in every model here, too, and needs nothing but a wrapped input: no names of
  modules, no list of classes. Without biases its inputs sum to the logit in all of them, and its
  shares of sums and biases, by magnitude, do not grow where terms nearly cancel, as shares by
  value do. What is explained is whatever number was computed last, a difference of two logits for
  instance. A rule set for a node that cannot run it is an error at once, and `explain()` tells
  the rule of each node before anything runs. Contrastive LRP is a function.
- **lxt** is the reference of AttnLRP, by the authors of that paper. The relevance of every hidden
  activation is there without asking, because it is activation x gradient; after the patch
  everything that works on a model works, checkpointing and quantised weights included, and costs
  what a gradient costs. A table of one's own makes it know another class in a few lines.
- **zennit** has the composites that papers on CNNs use, by name, canonizers for VGG and ResNet,
  attributors of other kinds (SmoothGrad, occlusion, integrated gradients), colour maps with which
  most heat maps of CNNs are drawn, and gradients of relevance.
- **Captum** is maintained by many, explains any model by methods that need no rule, and
  integrated gradients keep their promise wherever the path is smooth, whatever the operations
  are: with biases they are at 1.000 in most models above, where the inputs alone of ours are not.
  Its `LRP` equals ours on CNNs up to its epsilon, and refuses at once what it has no rule for,
  where ours warns unless `strict=True`.
""".splitlines()
