"""Products with frozen weights, which never change: laid out once for the processor's matrix
kernels, or in four bits.

oneDNN multiplies by a weight that it has laid out itself about twice as fast in float32 as
PyTorch's default does, and in bfloat16 about four times as fast on processors that have it. PyTorch
keeps these calls to itself, so they are made here alone, and where they are missing everything runs
as it would without this file.

Weights in four bits (QLoRA: Dettmers et al., 2023, arXiv:2305.14314) are quantized by
`bitsandbytes` and written out for the time of a product. Its own layer is not called: on processors
with bfloat16 it lays the codes out again, in place, when a model is evaluated, and passes no
gradient from then on; and it cannot be mapped over clients. Weights that are held in bfloat16 are
written out in the same way where a product is in float32.
"""

from collections.abc import Collection
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

BASE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LEAST_WEIGHT = 2**14
"""Entries of a weight below which calling the kernel costs more than it saves, however many rows
there are."""
LEAST_PRODUCT = 2**21
"""The same for the multiplications of one product."""
WRITTEN = 2**23
"""Entries of a weight in bfloat16 that are written out at a time: an output layer of 150,000 words
would take more in float32 than all activations of a step."""


@cache
def can_pack(base_dtype: str) -> bool:
    """Whether PyTorch has the kernels on this processor."""
    one, ones = (make(16, 16, dtype=BASE_DTYPES[base_dtype]) for make in (torch.eye, torch.ones))
    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(one)
        given = torch.ops.mkldnn._linear_pointwise(ones, weight, None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.equal(given, ones)


def gains_by_packing(base_dtype: str) -> bool:
    """Whether laid-out weights are multiplied faster on this processor: by its instructions and not
    by a timing, so that a run has the same bits each time.

    With units of 512 bits a product takes half the time, with those of 256 bits as long as a plain
    one. On Intel's own processors plain products in float32 are as fast (docs/performance.md).
    """
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    by_mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    fast_already = base_dtype == "float32" and by_mkl and is_intel()
    return wide and not fast_already and can_pack(base_dtype)


@cache
def is_intel() -> bool:
    """Whether Intel made this processor: its library, by which PyTorch multiplies, then uses all
    instructions. False where the system does not tell."""
    told = Path("/proc/cpuinfo")
    return told.exists() and "GenuineIntel" in told.read_text(encoding="utf-8", errors="replace")


def slowed_by(base_dtype: str) -> str:
    """What to know of products in that type on this processor; empty where nothing is."""
    capability = torch.backends.cpu.get_cpu_capability()
    if base_dtype != "bfloat16" or not capability.startswith(("AVX2", "DEFAULT")):
        return ""
    return (
        "compute.base_dtype = 'bfloat16': this processor has no instructions for it, so that a "
        f"product takes many times as long as in float32 ({capability}). It spares memory alone: "
        'for speed set "float32"'
    )


@dataclass(frozen=True, eq=False)
class Packed:
    """x ↦ x·Wᵀ + b for constants W (out, in) and b (out,), and as `back` its derivative g ↦ g·W.

    Laying out waits for the first use: where no gradient is asked for, nothing is kept for a
      backward pass.
    """

    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    kernels: bool

    def __call__(self, x: Tensor) -> Tensor:
        if self.kernels and (
            self.dtype != x.dtype or x.numel() * len(self.weight) >= LEAST_PRODUCT
        ):
            weight, bias = self._laid_out
            y: Tensor = torch.ops.mkldnn._linear_pointwise(
                x.to(self.dtype), weight, bias, "none", [], ""
            )
            return y.to(x.dtype)
        if self.dtype == x.dtype == self.weight.dtype:
            return linear(x, self.weight, self.bias)
        if self.kernels:  # too small for them, and what is laid out is for them alone
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return linear(x, self.weight.to(x.dtype), bias)
        return linear(x.to(self.dtype), *self._laid_out).to(x.dtype)

    @cached_property
    def back(self) -> "Packed":
        return Packed(self.weight.t(), None, self.dtype, self.kernels)

    @cached_property
    def _laid_out(self) -> tuple[Tensor, Tensor | None]:
        with torch.inference_mode(False), torch.no_grad():
            weight = self.weight.detach().to(self.dtype).contiguous()
            bias = None if self.bias is None else self.bias.detach().to(self.dtype)
            return torch.ops.mkldnn._reorder_linear_weight(weight) if self.kernels else weight, bias


@dataclass(eq=False)
class Page:
    """Where the layers of a model write out weights, one after another: over and over in the same
    place.

    A block of its own for each would let the heap grow by as much as the whole model in float32, as
    what a step keeps comes to lie between the blocks that are given back.
    """

    _held: Tensor | None = field(default=None, repr=False)

    def write(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight in `dtype`, until the next one is written."""
        if weight.dtype == dtype:
            return weight
        held = self._held
        fits = held is not None and held.dtype == dtype and held.device == weight.device
        if held is None or not fits or held.numel() < weight.numel():
            with torch.inference_mode(False):
                held = torch.empty(weight.numel(), dtype=dtype, device=weight.device)
            self._held = held
        with torch.no_grad():
            return held[: weight.numel()].view(weight.shape).copy_(weight)


@dataclass(frozen=True, eq=False)
class Quantized:
    """x ↦ x·Wᵀ for a constant W (out, in) in four bits or in bfloat16, computed in `dtype`, and as
    `back` its derivative g ↦ g·W.

    W is written out at each call and let go; a large one in bfloat16 some rows at a time.
    """

    weight: Any
    dtype: torch.dtype
    turned: bool = False
    page: Page = field(default_factory=Page)

    def __call__(self, x: Tensor) -> Tensor:
        weight, given = plain(self.weight), x.to(self.dtype)
        rows = max(1, WRITTEN // weight.shape[1])
        if weight.dtype == self.dtype or len(weight) <= rows:
            whole = self.page.write(weight, self.dtype)
            return linear(given, whole.t() if self.turned else whole).to(x.dtype)
        multiply = self._derived if self.turned else self._multiplied
        return multiply(given, weight, rows).to(x.dtype)

    def _multiplied(self, x: Tensor, weight: Tensor, rows: int) -> Tensor:
        """x·Wᵀ, some rows of W at a time."""
        y = x.new_empty((*x.shape[:-1], len(weight)))
        for at in range(0, len(weight), rows):
            some = self.page.write(weight[at : at + rows], self.dtype)
            y[..., at : at + rows] = linear(x, some)
        return y

    def _derived(self, gradient: Tensor, weight: Tensor, rows: int) -> Tensor:
        """g·W, some rows of W at a time."""
        total = gradient.new_zeros((*gradient.shape[:-1], weight.shape[1]))
        for at in range(0, len(weight), rows):
            some = self.page.write(weight[at : at + rows], self.dtype)
            total += linear(gradient[..., at : at + rows], some.t())
        return total

    @property
    def back(self) -> "Quantized":
        return Quantized(self.weight, self.dtype, not self.turned, self.page)


def plain(weight: Any) -> Tensor:
    """A parameter of `bitsandbytes` in four bits as a matrix (out, in) of numbers; any other as it
    is.

    It is asked for one long row: of rows that are no whole number of blocks, e.g. of 96, its kernel
    for the processor takes wrong scales.
    """
    if not hasattr(weight, "quant_state"):
        return weight.detach()  # type: ignore[no-any-return]
    from bitsandbytes.functional import QuantState, dequantize_4bit

    held = weight.quant_state
    shape = torch.Size([held.shape.numel()])
    row = QuantState(held.absmax, shape, held.code, held.blocksize, held.quant_type, held.dtype)
    numbers: Tensor = dequantize_4bit(weight.data, row)
    return numbers.view(held.shape)


class _Product(torch.autograd.Function):
    """One of both with its derivative, and over clients or examples at once: to it these are rows
    like others."""

    @staticmethod
    def forward(x: Tensor, by: Packed | Quantized) -> Tensor:
        return by(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Packed | Quantized], output: Tensor) -> None:
        ctx.by = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Product.apply(gradient, ctx.by.back), None  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], x: Tensor, by: Packed | Quantized) -> Any:
        return _Product.apply(x.movedim(in_dims[0], 0), by), 0  # type: ignore[no-untyped-call]


@dataclass(eq=False)
class Forward:
    """What a linear layer with a frozen weight does when it is called, in place of its class's
    forward.

    The weight stays in its place. Another that is swapped in for a call is multiplied by as any is;
    one that was written to is laid out again.

    Attributes:
      bias: the layer's where it is frozen too; one that is trained is added to the product.
    """

    layer: nn.Linear
    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    kernels: bool
    _packed: Packed | None = field(default=None, repr=False)
    _versions: tuple[int, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        device = x.device.type
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == self.dtype:
            x = x.to(self.dtype)  # as autocast does, which would cast the weight anew at each call
        elif x.dtype != weight.dtype or torch.is_autocast_enabled(device):
            return linear(x, weight, bias)
        if weight is not self.weight:
            return linear(x, weight, bias)
        inside = self.bias is not None and bias is self.bias
        y: Tensor = _Product.apply(x, self._current(self.bias if inside else None))  # type: ignore[no-untyped-call]
        return y if bias is None or inside else y + bias.to(y.dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Forward":
        layer, weight, bias = deepcopy((self.layer, self.weight, self.bias), memo)
        made = Forward(layer, weight, bias, self.dtype, self.kernels)
        if _at(weight) == _at(self.weight) and _at(bias) == _at(self.bias):
            # of a copy that shares this layer's weights: it shares what is laid out too
            made._packed, made._versions = self._current(self.bias), self._versions
        return made

    def _current(self, bias: Tensor | None) -> Packed:
        versions = tuple(x._version for x in (self.weight, bias) if x is not None)
        if self._packed is None or versions != self._versions:
            self._packed, self._versions = (
                Packed(self.weight, bias, self.dtype, self.kernels),
                versions,
            )
        return self._packed


def _at(x: Tensor | None) -> int | None:
    """Where a tensor lies."""
    return None if x is None else x.data_ptr()


@dataclass(eq=False)
class QuantizedForward:
    """What a linear layer with a weight in four bits or in bfloat16 does when it is called; a bias
    is as it always is, and so is a weight in float32 that takes the place of the frozen one.

    Attributes:
      dtype: of the product; under autocast it is that of autocast.
      page: where the weight is written out.
    """

    layer: nn.Linear
    dtype: torch.dtype = torch.float32
    page: Page = field(default_factory=Page)

    def __call__(self, x: Tensor) -> Tensor:
        dtype, device = self.dtype, x.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x = x.to(dtype)
        if self.layer.weight.dtype == torch.float32:
            return linear(x, self.layer.weight, self.layer.bias)
        y: Tensor = _Product.apply(x, Quantized(self.layer.weight, dtype, page=self.page))  # type: ignore[no-untyped-call]
        return y if self.layer.bias is None else y + self.layer.bias.to(y.dtype)


@dataclass(eq=False)
class WideRows:
    """What an embedding in bfloat16 does when it is called: what follows is in float32."""

    layer: nn.Embedding

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        rows: Tensor = type(self.layer).forward(self.layer, *args, **kwargs)
        return rows.float()


def prepare_half(model: nn.Module) -> float:
    """Let a model that was loaded in bfloat16 compute in float32, with its linear layers' and its
    embeddings' weights as they are; all other tensors become float32. In place.

    Returns:
      The share of the parameters that stay in bfloat16.
    """
    kept, page = dict[int, int](), Page()
    for layer in model.modules():
        if type(layer) is nn.Linear:
            layer.forward = QuantizedForward(layer, page=page)  # type: ignore[method-assign, assignment]
        elif isinstance(layer, nn.Embedding):
            layer.forward = WideRows(layer)  # type: ignore[method-assign]
        else:
            continue
        kept[id(layer.weight)] = layer.weight.numel()
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.float()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.float()
    return sum(kept.values()) / max(1, sum(x.numel() for x in model.parameters()))


def prepare_quantized(model: nn.Module) -> nn.Module:
    """Let the layers that `bitsandbytes` holds in four bits multiply as frozen weights do here; in
    place."""
    from bitsandbytes.nn import Linear4bit

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.forward = QuantizedForward(layer)
    return model


def prepare_frozen(
    model: nn.Module, trained: Collection[str], base_dtype: str = "float32", pack: bool = True
) -> bool:
    """Let the linear layers whose weights are not among `trained` use copies in `base_dtype`, laid
    out for the kernels.

    In place; tensors, their names and what is saved stay as they are. The copies take once or twice
    (forward; backward too, where a gradient passes) the memory of the weights, half of that in
    bfloat16. Weights in four bits are not copied, but multiplied in `base_dtype`.

    Returns:
      Whether the kernels are used.
    """
    kernels = (
        pack and can_pack(base_dtype) and all(x.device.type == "cpu" for x in model.parameters())
    )
    dtype = BASE_DTYPES[base_dtype]
    if not kernels and dtype == torch.float32:
        return False
    learned = {
        id(x) for name, x in model.named_parameters(remove_duplicate=False) if name in trained
    }
    for layer in model.modules():
        if isinstance(layer.forward, QuantizedForward):
            layer.forward.dtype = dtype
        if (
            type(layer) is not nn.Linear
            or id(layer.weight) in learned
            or layer.weight.dtype != torch.float32
        ):
            continue
        if layer.weight.numel() >= LEAST_WEIGHT:
            bias = layer.bias if layer.bias is not None and id(layer.bias) not in learned else None
            layer.forward = Forward(layer, layer.weight, bias, dtype, kernels)  # type: ignore[method-assign, assignment]
    return kernels
