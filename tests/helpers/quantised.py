"""Layers with quantised weights for the tests: written here, and made by packages.

Each maker takes an ``nn.Linear`` and returns its quantised layer and the weight that its codes
stand for, read from the codes by other means than the engine's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Made = tuple[nn.Module, Tensor]


def codes_of(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of 8 bits and a scale for each output."""
    scale = weight.detach().abs().amax(1) / 127
    return (weight.detach() / scale[:, None]).round().to(torch.int8), scale


class Coded(nn.Module):
    """Codes, scales and a bias."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        codes, scale = codes_of(linear.weight)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def weight(self) -> Tensor:
        return self.codes.to(self.scale.dtype) * self.scale[:, None]


class Product(torch.autograd.Function):
    """A product with dequantised weights that keeps the codes only, as packages write it."""

    rounds = False

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.kept = codes, scale
        return F.linear(x, codes.to(x.dtype) * scale[:, None], bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        codes, scale = ctx.kept
        bias = grads[0].flatten(0, -2).sum(0) if ctx.needs_input_grad[3] else None
        return grads[0] @ (codes.to(grads[0].dtype) * scale[:, None]), None, None, bias


def rounded(x: Tensor) -> Tensor:
    size = x.abs().amax(-1, keepdim=True).clamp(min=1e-9) / 127
    return (x / size).round() * size


class RoundedProduct(Product):
    """The same, activations rounded to 8 bits on the way: the derivative goes straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        return Product.forward(ctx, rounded(x), codes, scale, bias)


class NarrowProduct(Product):
    """Computes in bfloat16, whatever it is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        bias = None if bias is None else bias.bfloat16()
        scale = scale.bfloat16()
        return Product.forward(ctx, x.bfloat16(), codes, scale, bias).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        back, *rest = Product.backward(ctx, grads[0].bfloat16())
        return back.to(grads[0].dtype), *rest


class Squared(Product):
    """No linear map, whatever its derivative says."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        return Product.forward(ctx, x, codes, scale, bias).square()


class ByFunction(Coded):
    function: Any = Product

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.function.apply(x, self.codes, self.scale, self.bias)
        return result


class ByRoundedFunction(ByFunction):
    function = RoundedProduct


class ByNarrowFunction(ByFunction):
    function = NarrowProduct


class BySquare(ByFunction):
    function = Squared


class ByKernel(Coded):
    """Torch's own kernel for codes of 8 bits, which has no derivative."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).contiguous()
        flat = torch._weight_int8pack_mm(rows, self.codes, self.scale.to(x.dtype))
        made = flat.view(*x.shape[:-1], -1)
        return made if self.bias is None else made + self.bias


class Detached(Coded):
    """Activations are rounded, and nothing has a derivative."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(rounded(x.detach()), self.weight(), self.bias.detach())


class CodedTensor(Tensor):
    """A weight as a tensor of a class of its own, which dequantises for ``F.linear`` alone."""

    rounds: bool
    codes: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor, rounds: bool = False) -> Any:
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)

    def __init__(self, codes: Tensor, scale: Tensor, rounds: bool = False) -> None:
        self.codes, self.scale, self.rounds = codes, scale, rounds

    def __tensor_flatten__(self) -> Any:
        return ["codes", "scale"], self.rounds

    @staticmethod
    def __tensor_unflatten__(inner: Any, rounds: Any, *_: Any) -> Any:
        return CodedTensor(inner["codes"], inner["scale"], rounds)

    def dequantize(self) -> Tensor:
        return self.codes.to(self.scale.dtype) * self.scale[:, None]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            x, weight, bias = (*args, *(None,) * (3 - len(args)))
            bias = (kwargs or {}).get("bias", bias)
            return F.linear(rounded(x) if weight.rounds else x, weight.dequantize(), bias)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            weight = args[0]
            return CodedTensor(weight.codes, weight.scale, weight.rounds)
        raise NotImplementedError(f"{func} of a weight that is stored as codes")


def by_tensor(linear: nn.Linear, rounds: bool = False) -> Made:
    weight = CodedTensor(*codes_of(linear.weight), rounds)
    made = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None)
    made.weight = nn.Parameter(weight, requires_grad=False)
    made.bias = linear.bias
    return made, weight.dequantize()


def _coded(kind: type[Coded]) -> Callable[[nn.Linear], Made]:
    def make(linear: nn.Linear) -> Made:
        made = kind(linear)
        return made, made.weight()

    return make


# ---- packages -----------------------------------------------------------------------------------
def _needs(package: str) -> None:
    try:
        found = importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        pytest.skip(f"needs {package}")


def _bitsandbytes_4bit(kind: str, **options: Any) -> Callable[[nn.Linear], Made]:
    def make(linear: nn.Linear) -> Made:
        _needs("bitsandbytes")
        import bitsandbytes as bnb

        made = bnb.nn.Linear4bit(
            linear.in_features, linear.out_features, bias=linear.bias is not None, quant_type=kind,
            **{"compute_dtype": linear.weight.dtype, **options},
        )  # fmt: skip
        made.load_state_dict(linear.state_dict())
        made = made.to("cpu")  # quantises
        plain = bnb.functional.dequantize_4bit(made.weight.data, made.weight.quant_state)
        return made, plain.to(linear.weight.dtype)

    return make


def _bitsandbytes_8bit(linear: nn.Linear) -> Made:
    _needs("bitsandbytes")
    import bitsandbytes as bnb

    made = bnb.nn.Linear8bitLt(
        linear.in_features, linear.out_features, bias=linear.bias is not None,
        has_fp16_weights=False,
    )  # fmt: skip
    made.load_state_dict(linear.state_dict())
    made = made.to("cpu")
    return made, made.weight.CB.float() * made.weight.SCB.float()[:, None] / 127


def _quanto(weights: str) -> Callable[[nn.Linear], Made]:
    def make(linear: nn.Linear) -> Made:
        _needs("optimum.quanto")
        import optimum.quanto as quanto

        model = nn.Sequential(linear)
        quanto.quantize(model, weights=getattr(quanto, weights))
        quanto.freeze(model)
        return model[0], model[0].weight.dequantize()

    return make


def _torchao(config: str, **options: Any) -> Callable[[nn.Linear], Made]:
    def make(linear: nn.Linear) -> Made:
        _needs("torchao")
        import torchao.quantization as ao

        if not hasattr(ao, config):
            pytest.skip(f"this torchao has no {config}")
        model = nn.Sequential(linear)
        given = {k: getattr(ao, v[0])(*v[1:]) for k, v in options.items()}
        ao.quantize_(model, getattr(ao, config)(**given))
        return model[0], model[0].weight.dequantize()

    return make


def _torch_dynamic(linear: nn.Linear) -> Made:
    made = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(linear), {nn.Linear}, dtype=torch.qint8
    )
    return made[0], made[0].weight().dequantize()


def _gguf(linear: nn.Linear) -> Made:
    """As diffusers does: codes in a buffer, dequantised by calls of torch in every forward."""
    _needs("gguf")
    import gguf

    kind = gguf.GGMLQuantizationType.Q8_0
    packed = gguf.quants.quantize(linear.weight.detach().numpy(), kind)
    plain = torch.from_numpy(gguf.quants.dequantize(packed, kind)).to(linear.weight.dtype)

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("blocks", torch.from_numpy(packed))
            self.bias = linear.bias

        def forward(self, x: Tensor) -> Tensor:
            blocks = self.blocks.view(-1, 34)  # a scale in float16 and 32 codes
            scale = blocks[:, :2].contiguous().view(torch.float16).to(x.dtype)
            weight = (scale * blocks[:, 2:].contiguous().view(torch.int8)).view(plain.shape)
            return F.linear(x, weight, self.bias)

    return Blocks(), plain


#: Weight-only quantisation.
WEIGHT_ONLY: dict[str, Callable[[nn.Linear], Made]] = {
    "function": _coded(ByFunction),
    "kernel without a derivative": _coded(ByKernel),
    "tensor": by_tensor,
    "bitsandbytes nf4": _bitsandbytes_4bit("nf4"),
    "bitsandbytes fp4": _bitsandbytes_4bit("fp4"),
    "quanto int8": _quanto("qint8"),
    "quanto float8": _quanto("qfloat8"),
    "torchao int8": _torchao("Int8WeightOnlyConfig"),
    "torchao float8": _torchao("Float8WeightOnlyConfig"),
    "torchao intx": _torchao("IntxWeightOnlyConfig"),
    "torchao int8 groups": _torchao("Int8WeightOnlyConfig", granularity=("PerGroup", 8)),
    "gguf": _gguf,
}
#: Activations are rounded, to codes or to 16 bits, and gradients go straight through.
STRAIGHT_THROUGH: dict[str, Callable[[nn.Linear], Made]] = {
    "rounding function": _coded(ByRoundedFunction),
    "narrow function": _coded(ByNarrowFunction),
    "bitsandbytes int8": _bitsandbytes_8bit,
    "bitsandbytes nf4 in bfloat16": _bitsandbytes_4bit(
        "nf4", compute_dtype=torch.bfloat16, quant_storage=torch.bfloat16
    ),
}
#: Activations are rounded, and there is no derivative, or a wrong one.
DYNAMIC: dict[str, Callable[[nn.Linear], Made]] = {
    "detached": _coded(Detached),
    "rounding tensor": lambda linear: by_tensor(linear, rounds=True),
    "torch.ao int8": _torch_dynamic,
    "torchao int8": _torchao("Int8DynamicActivationInt8WeightConfig"),
    "torchao intx": _torchao("Int8DynamicActivationIntxWeightConfig"),
    "torchao float8": _torchao("Float8DynamicActivationFloat8WeightConfig"),
}


def replace(
    model: nn.Module, make: Callable[[nn.Linear], Made], keep: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Quantise the linear layers of a model in place.

    Returns:
        dict: The weights that they stand for, by the name of the layer.
    """
    plain = {}
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and not name.endswith(keep or "\0"):
            made, plain[name] = make(module)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, made.eval())
    return {name: weight.detach().clone() for name, weight in plain.items()}
