"""What no rule covers: the non-linear operations left on the path from the output to the leaves.

Reads the autograd graph after the forward pass and knows nothing of how rules were applied, so it
also catches operations that the interception never saw (foreign kernels, compiled graphs).
Operations are known to be harmless by name; whatever is not known is reported.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from captum_lrp_tx.propagation.autograd import functions
from captum_lrp_tx.propagation.graph import (
    KEEP_ENTRIES,
    Node,
    is_activation,
    is_softmax,
    node_name,
    parents,
    walk,
)
from captum_lrp_tx.propagation.judging.obstacles import foreign
from captum_lrp_tx.propagation.operations import Kind
from captum_lrp_tx.propagation.recognition import axes, degrees, homogeneity
from captum_lrp_tx.propagation.recognition.own_size import is_divided_by_its_size
from captum_lrp_tx.propagation.recognition.patterns import is_sink_gate
from captum_lrp_tx.propagation.recognition.recurrence import UNCLEAR, marked
from captum_lrp_tx.propagation.recognition.rescaling import UNTOLD
from captum_lrp_tx.propagation.recognition.weighing import SEEN, is_of_softmax
from captum_lrp_tx.propagation.state.scope import Scope

#: Linear in their arguments, or moving entries around.
_LINEAR = KEEP_ENTRIES | frozenset(
    """AccumulateGrad Add Sub Rsub Sum Mean Cat Stack Cumsum Trace AvgPool2D AvgPool3D
    AdaptiveAvgPool2D AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D UpsampleNearest1D
    UpsampleNearest2D UpsampleNearest3D UpsampleNearestExact2D UpsampleLinear1D
    UpsampleBilinear2D UpsampleBicubic2D UpsampleBilinear2DAa UpsampleBicubic2DAa
    UpsampleTrilinear3D PixelShuffle PixelUnshuffle Im2Col Col2Im ReflectionPad1D
    ReflectionPad2D ReplicationPad1D ReplicationPad2D ReplicationPad3D ReflectionPad3D IndexPut
    IndexAdd IndexCopy IndexFill Scatter ScatterAdd SliceScatter SelectScatter MaskedScatter
    MaskedSelect Embedding Put Take Where ViewAsReal ViewAsComplex FftR2C FftC2R FftC2C Conj
    ConjPhysical Lift LiftFresh CopySlices Rot90 Nansum MkldnnReshape ChannelShuffle
    GridSampler2D GridSampler3D Lerp Zero Fill BlockDiag DiagEmbed DiagonalScatter Complex
    LuUnpack NarrowCopy UpsampleNearestExact1D UpsampleNearestExact3D UnsafeMaskedIndex
    UnsafeMaskedIndexPutAccumulate Rad2Deg Deg2Rad NllLoss NllLoss2D AffineGridGenerator
    PackPaddedSequence""".split()
)

#: Positively homogeneous without bias: gradient x input conserves relevance exactly.
_HOMOGENEOUS = frozenset(
    """Relu LeakyRelu RreluWithNoise Abs Max Min Amax Amin Aminmax Maximum Minimum Fmax Fmin
    MaxPool2D MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D AdaptiveMaxPool3D Topk
    Sort Kthvalue Median Mode Cummax Cummin FractionalMaxPool2D FractionalMaxPool3D MaxUnpool2D
    MaxUnpool3D Nanmedian Copysign Hypot""".split()
)

#: Affine in the arguments at these places, as long as no other depends on the inputs.
_AFFINE_IN: dict[str, set[int]] = {
    "NativeLayerNorm": {1, 2}, "NativeGroupNorm": {1, 2}, "FusedRmsNorm": {1},
    "NativeBatchNorm": {1, 2}, "NativeBatchNormLegit": {1, 2}, "BatchNormWithUpdate": {1, 2},
    "LinalgSolveEx": {1}, "LinalgSolveTriangular": {1}, "LinalgLuSolve": {1},
    "TriangularSolve": {0}, "CholeskySolve": {0}, "Ormqr": {2}, "Copysign": {0}, "Ldexp": {0},
    "Xlogy": {0}, "SpecialXlog1Py": {0}, "Polar": {0}, "Lerp": {2},
    **{f"ScaledDotProduct{kernel}": {2} for kernel in (  # values under a pattern that is given
        "FlashAttention", "FlashAttentionForCpu", "EfficientAttention", "CudnnAttention",
    )},
}  # fmt: skip
#: Reductions of several kinds: sum and mean are linear, amax and amin homogeneous.
_REDUCING = frozenset({"ScatterReduce", "IndexReduce", "SegmentReduce", "SparseMmReduceImpl"})

_PRODUCTS = frozenset(
    """Mul Div Mm Bmm GroupedMm Addmm Baddbmm Addbmm Addmv Mv Dot Vdot Matmul Linear Convolution
    ConvolutionOverrideable MkldnnConvolution Addcmul Addcdiv Addr LinalgCross SparseAddmm
    ConvTbc Trilinear EmbeddingBag PreluKernel""".split()
)
#: Summands of products, which are no factors.
_SUMMANDS = {
    **dict.fromkeys("Addmm Baddbmm Addbmm Addmv Addcmul Addcdiv Addr SparseAddmm".split(), 0),
    **dict.fromkeys(
        "Linear Convolution ConvolutionOverrideable MkldnnConvolution ConvTbc".split(), 2
    ),
}
_CONTRACTIONS = _PRODUCTS - frozenset("Mul Div Addcmul Addcdiv LinalgCross PreluKernel".split())

_NORMS = frozenset(
    """NativeLayerNorm NativeGroupNorm FusedRmsNorm LinalgVectorNorm Norm Std StdMean Var VarMean
    CudnnBatchNorm NativeBatchNorm MiopenBatchNorm BatchNorm NativeBatchNormLegit
    BatchNormWithUpdate Cdist EuclideanDist Pdist""".split()
)

#: Those that give what they normalise, not a statistic.
_WHOLE = frozenset(
    n for n in _NORMS if n.endswith(("LayerNorm", "GroupNorm", "RmsNorm")) or "Batch" in n
)


@dataclass(frozen=True)
class Finding:
    """A non-linear operation that no rule covers.

    Attributes:
        operation (str): Name of the operation (of its autograd node).
        module (str): The module that ran it; empty outside every module.
        what (str): What it is, and why it matters.
        is_fault (bool): Whether the rule set promised to cover it.
    """

    operation: str
    module: str
    what: str
    is_fault: bool

    def __str__(self) -> str:
        return f"{self.operation} in {self.module or 'the forward function'} ({self.what})"


def is_ours(node: Node) -> bool:
    """Whether a node belongs to one of this package's autograd functions."""
    forward = getattr(type(node), "_forward_cls", None)
    return forward is not None and issubclass(forward, functions.RuleFunction)


def uncovered(
    scope: Scope, roots: list[Node], leaves: list[Tensor], base: Mapping[Kind, Any]
) -> list[Finding]:
    """Non-linear operations between the output and the leaves that no rule covers.

    Args:
        scope (Scope): Of the traced pass; names the module of each operation.
        roots (list of Node): ``grad_fn`` of the explained output.
        leaves (list of Tensor): What relevance is computed for.
        base (mapping of Kind to rule): What the rule set promises to cover.

    Returns:
        list of Finding: one for each module and operation, in the order of the forward pass.
    """
    on_path = _on_path(roots, leaves)
    used = {(e, i) for node in on_path for e, i in node.next_functions if e is not None}
    path = _Path(on_path, used)
    found: dict[tuple[str, str, str], Finding] = {}

    def report(operation: str, module: str, what: str, is_fault: bool) -> None:
        found.setdefault((operation, module, what), Finding(operation, module, what, is_fault))

    for node in sorted(on_path, key=_sequence):
        judged = _judge(node, path, base)
        if judged is None:
            continue
        what, is_fault = judged
        module = scope.owner(_sequence(node))
        if is_fault and module in scope.left_plain:
            is_fault, what = False, what + "; plain gradient was chosen"
        report(_display_name(node), module, what, is_fault)
    reached = {_sequence(node) for node in walk(roots)} if scope.cut else set()
    for (operation, module, how), numbers in scope.cut.items():
        if not numbers & reached:
            continue  # a side output
        what = (
            f"uses what was computed from the inputs and cut off from them ({how}), so part of "
            "the relevance is lost; compute it with gradients"
        )
        report(operation, module, what, bool(base))
    for node in walk(roots):
        if node_name(node) == "AccumulateGrad" and isinstance(node.variable, nn.Parameter):
            what = (
                "used inside torch.vmap or a transform of torch.func, where no rule acts; call the "
                "model on the whole batch" if scope.is_transformed else
                "a parameter was taken for an input-dependent tensor; please report this model"
            )  # fmt: skip
            report(f"Parameter of shape {tuple(node.variable.shape)}", "", what, True)
    if scope.holds_everything:
        what = (
            "the output reads values that do not depend on the inputs, weighted by them: every "
            "path leads through what the rules hold constant, so the relevance is zero; the preset "
            "gi gives the gradient of the weights"
        )
        report("Attention", "", what, True)
    return list(found.values())


#: All kinds promised, none with a rule of its own.
_EVERYTHING: dict[Kind, Any] = dict.fromkeys(Kind)


def made_since(node: Node, start: int) -> set[Node]:
    """The nodes behind this one that were made since autograd's counter stood at ``start``."""
    made: set[Node] = set()
    stack = [node]
    while stack:
        one = stack.pop()
        if one in made or node_name(one) == "AccumulateGrad" or _sequence(one) < start:
            continue
        made.add(one)
        stack.extend(parents(one))
    return made


def conserving(nodes: set[Node]) -> Literal["linear", "homogeneous"] | None:
    """Whether these operations conserve relevance by their plain gradient, and why.

    Args:
        nodes (set of Node): What one call made; none may be of a rule.

    Returns:
        str or None: ``"linear"`` up to a constant, positively ``"homogeneous"`` in all operands,
        constants included; or None if neither, or if a rule has acted.
    """
    used = {(e, i) for node in nodes for e, i in node.next_functions if e is not None}
    on_path = {e for e, _ in used} | nodes
    # what is used of the results is not known here: all may be
    used |= {(node, i) for node in nodes for i in range(2)}
    path = _Path(on_path, used)
    if any(is_ours(node) or _judge(node, path, _EVERYTHING) for node in nodes):
        return None
    return "homogeneous" if any(_is_homogeneous(node) for node in nodes) else "linear"


def _is_homogeneous(node: Node) -> bool:
    """Whether a node that conserves relevance is homogeneous, but not linear."""
    name = node_name(node)
    if name in _REDUCING:
        return node._saved_reduce in ("amax", "amin", "max", "min")
    # of an embedding bag the mode 2 is the maximum
    largest = name == "EmbeddingBag" and node._saved_mode == 2
    return name in _HOMOGENEOUS or name.startswith("Prelu") or largest


def _sequence(node: Node) -> int:
    return int(node._sequence_nr())


def _display_name(node: Node) -> str:
    name: str = node.name()
    return name.rsplit("::", 1)[-1].split("Backward")[0]


def _on_path(roots: list[Node], leaves: list[Tensor]) -> set[Node]:
    """Nodes that lead from the roots to a leaf."""
    targets = {leaf.grad_fn for leaf in leaves if leaf.grad_fn is not None}
    order: list[Node] = []
    children: dict[Node, list[Node]] = {}
    for node in walk(roots):
        order.append(node)
        for parent in parents(node):
            children.setdefault(parent, []).append(node)
    ours = {id(leaf) for leaf in leaves}
    reached = [
        n
        for n in order
        if n in targets or (node_name(n) == "AccumulateGrad" and id(n.variable) in ours)
    ]
    on_path: set[Node] = set()
    while reached:
        node = reached.pop()
        if node in on_path:
            continue
        on_path.add(node)
        reached.extend(children.get(node, ()))
    return on_path - targets


def _is_shared_out(node: Node) -> bool:
    """Whether a factor of a product has its gradient scaled by a rule (uniform rule)."""
    while node_name(node) != "ScaleGradient":
        before = parents(node)
        if node_name(node) not in KEEP_ENTRIES or len(before) != 1:
            return False
        node = before[0]
    return True


@dataclass(frozen=True)
class _Path:
    """The nodes between the output and the leaves, and which of their results are used."""

    nodes: set[Node]
    used: set[tuple[Node, int]]

    @functools.cached_property
    def users(self) -> dict[Node, list[tuple[Node, int]]]:
        """The nodes that use a node, and as which argument."""
        users: dict[Node, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for position, (parent, _) in enumerate(node.next_functions):
                if parent is not None:
                    users.setdefault(parent, []).append((node, position))
        return users

    def divides(self, statistic: Node) -> bool:
        """Whether a statistic divides something, behind operations entry by entry."""
        todo, seen = [statistic], set[Node]()
        while todo:
            node = todo.pop()
            for user, position in self.users.get(node, ()):
                name = node_name(user)
                exponent = getattr(user, "_saved_exponent", 1)
                negative = name == "Pow" and isinstance(exponent, (int, float)) and exponent < 0
                if name in ("Rsqrt", "Reciprocal") or negative or (name, position) == ("Div", 1):
                    return True
                if degrees.is_shifted(user):
                    continue  # 1 + distance is no norm
                if user not in seen and (name in _ENTRYWISE or name == "Pow"):
                    seen.add(user)
                    todo.append(user)
        return False


def _is_of_weights(norm: Node) -> bool:
    """Whether what a norm takes the size of is positive: the norm is the sum of weights."""
    source = axes.moved(parents(norm)[0])
    return source is not None and is_activation(source)


def _is_of_pattern(weight: Node) -> bool:
    return is_of_softmax(weight) or is_sink_gate(weight)


#: What keeps a statistic one, before it divides.
_ENTRYWISE = KEEP_ENTRIES | frozenset("Add Sqrt Clamp ClampMin Maximum Mul".split())


def _judge(node: Node, path: _Path, base: Mapping[Kind, Any]) -> tuple[str, bool] | None:
    """What is wrong with a node and whether it is a fault under these kinds; None if nothing."""
    if is_ours(node):
        return None
    name = node_name(node)
    full = Kind.ACTIVATION in base
    if marked(node) == UNCLEAR and Kind.SCAN in base:
        return "product of a recurrence whose coefficients cannot be told from its signal", True
    edges = [e for e, _ in node.next_functions]
    live = [i for i, e in enumerate(edges) if e is not None and e in path.nodes]
    if name in _AFFINE_IN and _AFFINE_IN[name].issuperset(live):
        return None
    if name.startswith("ScaledDotProduct") or "EfficientAttention" in name:
        return "fused attention without a rule", full or Kind.ATTENTION in base
    told = foreign(name)
    if told is not None:
        return told, bool(base)
    if name in _REDUCING and getattr(node, "_saved_reduce", "prod") != "prod":
        return None
    if getattr(node, "_saved_rounding_mode", None) is not None:
        return "rounded, so that no gradient passes", full
    exponent = getattr(node, "_saved_exponent", None)
    if name == "Pow" and not isinstance(exponent, Tensor) and exponent in (0, 1):
        return None
    if (name, live) in (("Div", [1]), ("Addcdiv", [2])):
        return "division by an input-dependent tensor", full
    if name == "Lerp" and 2 in live:
        by_pattern = Kind.ATTENTION in base and _is_of_pattern(node.next_functions[2][0])
        return "product of two input-dependent tensors", full or by_pattern
    if name == "LinalgSolveTriangular":
        return "system of input-dependent equations", full or Kind.ATTENTION in base
    if name.startswith("GridSampler") and 1 in live:
        return "sampling at input-dependent places", full
    if node.metadata.get(UNTOLD) and Kind.ATTENTION in base:
        return "product with weights that were not recognised as an attention pattern", True
    if node.metadata.get(homogeneity.IN_STEPS) and Kind.NORM in base:
        return "last of several divisions by parts of a norm; divide by the whole at once", True
    if node.metadata.get(homogeneity.IS_RATIO) and Kind.NORM in base and not full:
        return "norms compared with their own mean, which multiply nothing as they are", True
    is_plain = name in ("Mul", "Div") and live == [0, 1] and not full
    if is_plain and Kind.NORM in base and is_divided_by_its_size(node):
        return "divided by its own size, in a way that was not recognised as a norm", True
    in_eval = "BatchNorm" in name and not getattr(node, "_saved_training", True)
    if name in _PRODUCTS or in_eval:
        return _judge_product(name, [e for i, e in enumerate(edges) if i in live], live, base)
    if name in _NORMS:
        if name in ("VarMean", "StdMean") and (node, 0) not in path.used:
            return None  # only the mean is used, to centre
        if name == "LinalgVectorNorm" and node._saved_ord == 1 and _is_of_weights(node):
            return None
        told = "norm or statistic without a rule"
        source = axes.moved(parents(node)[0])
        divides = path.divides(node) and not (
            source and homogeneity.is_weight(degrees.Source.at(source))
        )
        return told, full or (Kind.NORM in base and (name in _WHOLE or divides))
    if is_softmax(name):
        rule = base.get(Kind.ATTENTION)
        if rule is not None and rule.covers_softmax:
            return None
        return "softmax that is no attention pattern", full
    if name in _LINEAR or name in _HOMOGENEOUS:
        return None
    return _judge_unknown(node, name, base)


def _judge_product(
    name: str, factors: list[Node], live: list[int], base: Mapping[Kind, Any]
) -> tuple[str, bool] | None:
    """The same for products, from those of their arguments that depend on the inputs."""
    summand = _SUMMANDS.get(name)
    factors = [e for i, e in zip(live, factors, strict=True) if i != summand]
    if len(factors) < 2 or all(_is_shared_out(e) for e in factors):
        return None
    full = Kind.ACTIVATION in base
    if name in _CONTRACTIONS:
        unseen = [f for f in map(axes.moved, factors) if f is not None and is_softmax(node_name(f))]
        if Kind.ATTENTION in base and any(not f.metadata.get(SEEN) for f in unseen):
            return "matrix product of a softmax, made where the rules do not see it", True
        return "matrix product of two input-dependent tensors", full
    return "product of two input-dependent tensors", full


def _judge_unknown(node: Node, name: str, base: Mapping[Kind, Any]) -> tuple[str, bool]:
    """The same for what is not known to conserve relevance."""
    if name.startswith("Compiled"):
        return "compiled function; explain the module without torch.compile", bool(base)
    if hasattr(type(node), "_forward_cls"):
        what = (
            "custom autograd function that no rule can see into; if it is an attention kernel, "
            "load the model with attn_implementation='sdpa'; if it is a product with weights or a "
            "usual activation, let a module of its own run it; otherwise let the model call the "
            "operations that it stands for"
        )
        return what, bool(base)
    return "non-linear function", Kind.ACTIVATION in base
