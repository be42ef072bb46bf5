"""One bit an entry and one scale a tensor (signSGD with error feedback; Karimireddy et al., 2019,
arXiv:1901.09847, Algorithm 1)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.codecs.magnitudes import check_scales, mean_magnitude
from fedpeft.codecs.packed_bits import bytes_for, pack_bits, unpack_bits
from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Coding
from fedpeft.core.types import Tensors
from fedpeft.errors import WireError
from fedpeft.wire.frames import cut, decode_tensors, encode_tensors, join, kinds


@dataclass(frozen=True)
class Sign:
    """x ≈ mean|x|·sign(x), where an entry of 0 counts as positive; of a tensor of zeros, zeros.

    This is a contraction, so that error feedback makes good what is lost; without it the entries
    near zero do harm. Integers travel as they are.

    body = one scale for each floating-point tensor, float32 | one bit for each of their entries, 1
           for a negative one | the other tensors
    """

    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.LOSSY})

    def encode(self, tensors: Tensors, how: Coding = Coding()) -> bytes:
        """Raises ValueError for a tensor with an entry that is not finite: it has no scale."""
        floats = {name: x.detach() for name, x in tensors.items() if x.is_floating_point()}
        scales = [mean_magnitude(name, x) for name, x in floats.items()]
        negative = [
            (x < 0).reshape(-1).cpu() & (scale > 0)
            for x, scale in zip(floats.values(), scales, strict=True)
        ]
        bits = pack_bits(torch.cat(negative)) if negative else b""
        rest = join(x for x in tensors.values() if not x.is_floating_point())
        return encode_tensors([], tensors, join(scales) + bits + rest)

    def decode(self, blob: bytes, how: Coding = Coding()) -> Tensors:
        """Raises WireError on anything that `encode` cannot have made."""
        shapes, _, body = decode_tensors(blob)
        every = kinds(shapes)
        counts = [count for count, dtype in every if dtype.is_floating_point]
        others = [kind for kind in every if not kind[1].is_floating_point]
        start = 4 * len(counts)
        end = start + bytes_for(sum(counts))
        if len(body) < end:
            raise WireError(f"a payload's body has {len(body)} bytes; its signs end at {end}")
        [scales] = cut(body[:start], [(len(counts), torch.float32)])
        rest = iter(cut(body[end:], others))
        check_scales(scales)
        signs = zip(
            torch.split(unpack_bits(body[start:end], sum(counts)), counts), scales, strict=True
        )
        found = {}
        for (name, shape, _), (_, dtype) in zip(shapes, every, strict=True):
            whole = _signed(signs, dtype) if dtype.is_floating_point else next(rest)
            found[name] = whole.reshape(shape)
        return found


def _signed(signs: Iterator[tuple[Tensor, Tensor]], dtype: torch.dtype) -> Tensor:
    """The next tensor's entries."""
    negative, scale = next(signs)
    return torch.where(negative, -scale, scale).to(dtype)
