"""One byte an entry and one scale a tensor (symmetric linear quantization; Krishnamoorthi, 2018,
arXiv:1806.08342)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.codecs.deflating import deflate_body, read_body
from fedpeft.codecs.magnitudes import check_scales
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

    Attributes:
      deflate: whether the body is deflated where that is shorter. It pays where a few entries of a
        tensor are much larger than the rest: 6.9 bits an entry of Gaussian ones, 4.2 of Student's t
        with 3 degrees of freedom. Both kinds of body are read, whatever this is.
    """

    deflate: bool = False

    @property
    def offers(self) -> frozenset[Fact]:
        return frozenset({Fact.LOSSY, Fact.LENGTH_TELLS} if self.deflate else {Fact.LOSSY})

    def encode(self, tensors: Tensors, how: Coding = Coding()) -> bytes:
        """Raises ValueError for a tensor with an entry that is not finite: it has no scale."""
        peaks = {name: _peak(name, x) for name, x in tensors.items() if x.is_floating_point()}
        codes = (_quantize(x, peaks[name]) if name in peaks else x for name, x in tensors.items())
        body = join(peaks.values()) + join(codes)
        values, body = deflate_body(body, how) if self.deflate else ([], body)
        return encode_tensors(values, tensors, body)

    def decode(self, blob: bytes, how: Coding = Coding()) -> Tensors:
        """Raises WireError on anything that `encode` cannot have made."""
        shapes, values, body = decode_tensors(blob, extra=None)
        body = read_body(values, body, how)
        carried = [
            (count, torch.int8 if dtype.is_floating_point else dtype)
            for count, dtype in kinds(shapes)
        ]
        scaled = sum(dtype.is_floating_point for _, dtype in kinds(shapes))
        peaks, *codes = cut(body, [(scaled, torch.float32), *carried])
        check_scales(peaks)
        return dict(_restore(shapes, iter(peaks), codes))


def _peak(name: str, x: Tensor) -> Tensor:
    peak = x.detach().abs().max().float() if x.numel() else torch.zeros(())
    if not bool(peak.isfinite()):
        raise ValueError(
            f"tensor {name!r} has an entry that is not finite in float32, so it has no scale for "
            "int8"
        )
    return peak


def _quantize(x: Tensor, peak: Tensor) -> Tensor:
    if not peak:
        return torch.zeros(x.shape, dtype=torch.int8)
    return (x.float() / peak * LEVELS).round().to(torch.int8)


def _restore(
    shapes: Layout, peaks: Iterator[Tensor], codes: list[Tensor]
) -> Iterator[tuple[str, Tensor]]:
    for (name, shape, kind), code in zip(shapes, codes, strict=True):
        dtype = getattr(torch, kind)
        if dtype.is_floating_point:
            if code.numel() and int(code.min()) < -LEVELS:
                raise WireError(f"tensor {name!r} has a level below {-LEVELS}")
            code = (code.float() / LEVELS * next(peaks)).to(dtype)
        yield name, code.reshape(shape)
