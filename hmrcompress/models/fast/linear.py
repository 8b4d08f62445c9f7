"""Linear layers for inference alone, each with its weights laid out as one kind of processor wants them.

All of them compute `x W^T + b`, where asked for through an exact GELU, where asked for plus a residual, and differ in
where the time goes: the weights of a ViT-H are read from memory once a pass, which at batch 1 is most of the work.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["plain", "mkl", "onednn", "int8", "int8_unsigned", "int8_rows"]
INT8_KINDS: tuple[Kind, ...] = ("int8", "int8_unsigned", "int8_rows")
"""Ways to multiply in 8 bits: oneDNN's signed by signed and unsigned by signed numbers, and `torch._int_mm` with a
scale a row. Which is fastest, and right at all, depends on the processor: `timing.int8_kernels`."""
PACK_ROWS = 192
"""Rows that oneDNN lays weights out for; its layout is the same for all but a few rows."""
FEW_ROWS = 16
"""Below so many rows oneDNN has a layout of its own, which is slower for more."""
INT8_LARGEST = 127
UNSIGNED_ZERO = 128
"""What zero is as an unsigned 8-bit number."""


class PlainLinear(nn.Module):
    """torch's own operators, on every device and in every dtype. weight (out,in), bias (out,) or None."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor, *, gelu: bool = False, residual: Tensor | None = None) -> Tensor:
        """(…,in) -> (…,out): the product, through GELU with `gelu`, or plus `residual` (…,out). Not both."""
        out = F.linear(x, self.weight, self.bias)
        if gelu:
            return F.gelu(out)
        return out if residual is None else out.add_(residual)


class MklLinear(PlainLinear):
    """float32 on a CPU: packed for MKL for the number of rows that comes first, which is when it is packed.

    Other numbers of rows go through the weight itself, so that any batch gives the same result. MKL's packed form
    belongs to one number of rows, and a second one would take the weight's memory once more.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.rows = 0
        self._packed: Tensor | None = None

    def forward(self, x: Tensor, *, gelu: bool = False, residual: Tensor | None = None) -> Tensor:
        """As `PlainLinear.forward`."""
        if torch.compiler.is_compiling():  # inductor lowers MKL's product only for weights that are frozen in the graph
            return super().forward(x, gelu=gelu, residual=residual)
        rows = x.numel() // x.shape[-1]
        if self._packed is None:
            self._packed = torch.ops.mkl._mkl_reorder_linear_weight(self.weight, rows)
            self.rows = rows
        if rows != self.rows:
            out = F.linear(x, self.weight, self.bias)
        else:
            out = torch.ops.mkl._mkl_linear(x, self._packed, self.weight, self.bias, rows)
        if gelu:
            return torch.ops.aten.gelu_(out)
        return out if residual is None else out.add_(residual)


class OneDnnLinear(nn.Module):
    """bfloat16 or float16 on a CPU: packed once in oneDNN's blocked layout, GELU and residual inside the product.

    torch would lay the matrix out anew in every pass. The packed weight takes the place of the one that is given.
    """

    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int = PACK_ROWS) -> None:
        super().__init__()
        self.register_buffer("bias", bias, persistent=False)
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)

    def forward(self, x: Tensor, *, gelu: bool = False, residual: Tensor | None = None) -> Tensor:
        """As `PlainLinear.forward`."""
        if residual is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._packed, self.bias, "add")
        name, algorithm = ("gelu", "none") if gelu else ("none", "")
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, name, [], algorithm)


@lru_cache(maxsize=1)
def has_exact_int8() -> bool:
    """Whether oneDNN's 8-bit products are right on this processor, tried out once.

    Without VNNI or AMX (or where ONEDNN_MAX_CPU_ISA hides them) it adds pairs of products in 16 bits, which saturate
    without a word: "Nuances of int8 Computations" in its developer guide.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    weight = torch.full((FEW_ROWS, 64), INT8_LARGEST, dtype=torch.int8)
    scale, zero = torch.ones(FEW_ROWS), torch.zeros(FEW_ROWS, dtype=torch.int64)
    for rows in (1, PACK_ROWS):
        packed = torch.ops.onednn.qlinear_prepack(weight, [rows, 64])
        x = torch.full((rows, 64), INT8_LARGEST, dtype=torch.int8)
        found = torch.ops.onednn.qlinear_pointwise(
            x, 1.0, 0, packed, scale, zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        if not bool((found == 64 * INT8_LARGEST**2).all()):
            return False
    return True


@lru_cache(maxsize=len(INT8_KINDS))
def exact_int8(kind: Kind) -> bool:
    """Whether products of the largest 8-bit numbers are right in that way on this processor, tried out once."""
    if kind == "int8":
        return has_exact_int8()
    weight = torch.full((FEW_ROWS, 64), INT8_LARGEST, dtype=torch.int8)
    try:
        for rows in (1, PACK_ROWS):
            if kind == "int8_rows":
                x = torch.full((rows, 64), INT8_LARGEST, dtype=torch.int8)
                if not bool((torch._int_mm(x, weight.T.contiguous()) == 64 * INT8_LARGEST**2).all()):
                    return False
                continue
            packed = torch.ops.onednn.qlinear_prepack(weight, [rows, 64])
            scale, zero = torch.ones(FEW_ROWS), torch.zeros(FEW_ROWS, dtype=torch.int64)
            x = torch.full((rows, 64), 255, dtype=torch.uint8)
            found = torch.ops.onednn.qlinear_pointwise(
                x, 1.0, UNSIGNED_ZERO, packed, scale, zero, None, 1.0, 0, torch.float32, "none", [], ""
            )
            if not bool((found == 64 * (255 - UNSIGNED_ZERO) * INT8_LARGEST).all()):
                return False
    except (RuntimeError, AttributeError):  # this build of torch has none such
        return False
    return True


class RowInt8Linear(nn.Module):
    """8-bit weights, one scale an output channel, and 8-bit activations, one scale a row, through `torch._int_mm`.

    Both are symmetric and rounded to nearest, in float32: rounding a bfloat16 quotient would itself be off by a few
    percent. Sums are int32 and exact.
    """

    packed: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        rounded, scale = rounded_to_int8(weight)
        self.register_buffer("packed", rounded.T.contiguous(), persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.float(), persistent=False)

    def forward(self, x: Tensor, *, gelu: bool = False, residual: Tensor | None = None) -> Tensor:
        """As `PlainLinear.forward`."""
        wide = x.flatten(0, -2).float()
        step = wide.abs().amax(1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny).div_(INT8_LARGEST)
        quantized = (wide / step).round_().to(torch.int8)
        out = torch._int_mm(quantized, self.packed).float().mul_(step).mul_(self.scale)
        out = out if self.bias is None else out.add_(self.bias)
        out = (F.gelu(out) if gelu else out).to(x.dtype).unflatten(0, x.shape[:-1])
        return out if residual is None else out.add_(residual)


def rounded_to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight (out,in) -> 8-bit numbers of the same shape, and their scale (out,): symmetric, to nearest."""
    low, high = (each.float() for each in weight.aminmax(dim=1))
    scale = torch.maximum(-low, high).clamp(min=torch.finfo(torch.float32).tiny) / INT8_LARGEST
    return weight.to(torch.float32, copy=True).div_(scale[:, None]).round_().to(torch.int8), scale


class Int8Linear(nn.Module):
    """8-bit weights, one scale an output channel, and 8-bit activations, one scale a call, on a CPU through oneDNN.

    Both are symmetric and rounded to nearest; a product is summed in int32 and comes out in the dtype of x. The scale
    of x is its largest magnitude / 127, found anew in every call (dynamic quantization), so nothing is calibrated.
    Where oneDNN's 8-bit products saturate (`has_exact_int8`), the same rounded numbers are multiplied in float32, which
    is exact up to sums of 2^24: no faster than float32, but the same result. unsigned: activations are given to oneDNN
    as unsigned numbers around 128; their values are the same.
    """

    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int = PACK_ROWS, *, unsigned: bool = False) -> None:
        super().__init__()
        rounded, scale = rounded_to_int8(weight)
        self.unsigned = unsigned
        self.exact = exact_int8("int8_unsigned") if unsigned else has_exact_int8()
        self._packed: Tensor = (
            torch.ops.onednn.qlinear_prepack(rounded, [rows, weight.shape[1]]) if self.exact else rounded
        )
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("zero", torch.zeros(len(scale), dtype=torch.int64), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.float(), persistent=False)

    def forward(self, x: Tensor, *, gelu: bool = False, residual: Tensor | None = None) -> Tensor:
        """As `PlainLinear.forward`, and x is overwritten: in a block nothing else reads it."""
        low, high = x.aminmax()
        step = max(-float(low), float(high)) / INT8_LARGEST or 1.0
        quantized = x.mul_(1 / step).round_()
        if not self.exact:
            out = F.linear(quantized.float(), self._packed.float()).mul_(step * self.scale)
            out = out if self.bias is None else out.add_(self.bias)
            out = (F.gelu(out) if gelu else out).to(x.dtype)
            return out if residual is None else out.add_(residual)
        zero = UNSIGNED_ZERO if self.unsigned else 0
        quantized = quantized.add_(zero).to(torch.uint8) if self.unsigned else quantized.to(torch.int8)
        name, algorithm = ("gelu", "none") if gelu else ("none", "")
        out = torch.ops.onednn.qlinear_pointwise(
            quantized, step, zero, self._packed, self.scale, self.zero, self.bias, 1.0, 0, x.dtype, name, [], algorithm
        )
        return out if residual is None else out.add_(residual)


def kind_for(device: torch.device, dtype: torch.dtype, *, int8: bool | Kind = False) -> Kind:
    """The layout that is fastest there among those that this build of torch has; `int8`, or one of `INT8_KINDS`, is
    taken at its word."""
    if device.type != "cpu":
        return "plain"
    if int8:
        return "int8" if isinstance(int8, bool) else int8
    if dtype == torch.float32:
        return "mkl" if torch.backends.mkl.is_available() else "plain"
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    check = getattr(torch.ops.mkldnn, supported.get(dtype, ""), None)
    return "onednn" if torch.backends.mkldnn.is_available() and check is not None and check() else "plain"


def linear(kind: Kind, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A layer of that kind over weight (out,in) and bias (out,) or None, in their dtype."""
    if kind == "int8_unsigned":
        return Int8Linear(weight, bias, unsigned=True)
    kinds = {"plain": PlainLinear, "mkl": MklLinear, "onednn": OneDnnLinear, "int8": Int8Linear}
    return (kinds | {"int8_rows": RowInt8Linear})[kind](weight, bias)


class Norm(nn.Module):
    """Layer norm over the last dimension, of a `source` whose scale and shift either stay or have been folded away."""

    def __init__(self, source: nn.LayerNorm, dtype: torch.dtype, *, folded: bool) -> None:
        super().__init__()
        self.shape, self.eps = source.normalized_shape, source.eps
        for name in ("weight", "bias"):
            self.register_buffer(name, None if folded else getattr(source, name).detach().to(dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…,D) -> (…,D)."""
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)  # type: ignore[arg-type]


def folded(norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """A linear layer (out,in) that reads a norm -> the one that reads it without scale and shift; float32 or wider."""
    exact = torch.promote_types(weight.dtype, torch.float32)
    moved = weight.detach().to(exact, copy=True)
    shift = moved @ norm.bias.detach().to(exact)
    # In place: while a network is converted, this copy is what stands beside its weights.
    moved.mul_(norm.weight.detach().to(exact))
    return moved, shift if bias is None else shift + bias.detach().to(exact)


def norm_and_linear(
    norm: nn.LayerNorm, layer: nn.Linear, kind: Kind, dtype: torch.dtype
) -> tuple[nn.Module, nn.Module]:
    """The two for the fast path, in `dtype`, the norm folded unless the layer works on the tensors that it is given."""
    if kind == "mkl":
        return Norm(norm, dtype, folded=False), converted(layer, kind, dtype)
    weight, bias = folded(norm, layer.weight, layer.bias)
    if kind not in INT8_KINDS:
        weight = weight.to(dtype)
    return Norm(norm, dtype, folded=True), linear(kind, weight, bias.to(dtype))


def converted(layer: nn.Linear, kind: Kind, dtype: torch.dtype) -> nn.Module:
    """A linear layer for the fast path in `dtype`."""
    bias = None if layer.bias is None else layer.bias.detach().to(dtype)
    return linear(kind, layer.weight.detach().to(dtype), bias)
