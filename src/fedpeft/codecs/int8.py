"""One byte an entry and one scale a tensor (symmetric linear quantization; Krishnamoorthi, 2018,
arXiv:1806.08342)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Coding
from fedpeft.core.tensors import Layout
from fedpeft.core.types import Tensors
from fedpeft.errors import WireError
from fedpeft.wire.frames import cut, decode_tensors, encode_tensors, join, kinds

LEVELS = 127


@dataclass(frozen=True)
class Int8:
    """x ≈ (q / 127)·peak for q in [−127, 127] and peak = max|x| in float32; q is rounded to
    nearest.

    The error of an entry is at most peak / 254. The peak, not the step between two levels, is what
    travels: the largest entry then decodes to itself, so that a second round through the codec
    changes nothing. Integers travel as they are.

    body = one peak for each floating-point tensor | all tensors, in the order of the layout
    """

    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.LOSSY})

    def encode(self, tensors: Tensors, how: Coding = Coding()) -> bytes:
        """Raises ValueError for a tensor with an entry that is not finite: it has no scale."""
        peaks = {name: _peak(name, x) for name, x in tensors.items() if x.is_floating_point()}
        codes = (_quantized(x, peaks[name]) if name in peaks else x for name, x in tensors.items())
        return encode_tensors([], tensors, join(peaks.values()) + join(codes))

    def decode(self, blob: bytes, how: Coding = Coding()) -> Tensors:
        """Raises WireError on anything that `encode` cannot have made."""
        shapes, _, body = decode_tensors(blob)
        carried = [
            (count, torch.int8 if dtype.is_floating_point else dtype)
            for count, dtype in kinds(shapes)
        ]
        scaled = sum(dtype.is_floating_point for _, dtype in kinds(shapes))
        peaks, *codes = cut(body, [(scaled, torch.float32), *carried])
        if not bool((peaks.isfinite() & (peaks >= 0)).all()):
            raise WireError("a payload has a scale that is negative or not finite")
        return dict(_restored(shapes, iter(peaks), codes))


def _peak(name: str, x: Tensor) -> Tensor:
    peak = x.detach().abs().max().float() if x.numel() else torch.zeros(())
    if not bool(peak.isfinite()):
        raise ValueError(
            f"tensor {name!r} has an entry that is not finite in float32, so it has no scale for "
            "int8"
        )
    return peak


def _quantized(x: Tensor, peak: Tensor) -> Tensor:
    if not peak:
        return torch.zeros(x.shape, dtype=torch.int8)
    return (x.float() / peak * LEVELS).round().to(torch.int8)


def _restored(
    shapes: Layout, peaks: Iterator[Tensor], codes: list[Tensor]
) -> Iterator[tuple[str, Tensor]]:
    for (name, shape, kind), code in zip(shapes, codes, strict=True):
        dtype = getattr(torch, kind)
        if dtype.is_floating_point:
            if code.numel() and int(code.min()) < -LEVELS:
                raise WireError(f"tensor {name!r} has a level below {-LEVELS}")
            code = (code.float() / LEVELS * next(peaks)).to(dtype)
        yield name, code.reshape(shape)
