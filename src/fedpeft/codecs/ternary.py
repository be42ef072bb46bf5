"""Entries of −w, 0 and w: about 1.5 bits each (T-FedAvg; Xu et al., 2020, arXiv:2003.03564, after
ternary weight networks; Li et al., 2016, arXiv:1605.04711)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.codecs.magnitudes import check_scales, mean_magnitude
from fedpeft.codecs.packed_bits import bytes_for, pack_bits, unpack_bits
from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Coding
from fedpeft.core.tensors import Layout
from fedpeft.core.types import Tensors
from fedpeft.core.views import meets
from fedpeft.errors import WireError
from fedpeft.wire.frames import Body, cut, decode_tensors, encode_tensors, join, kinds


@dataclass(frozen=True)
class Ternary:
    """Each tensor x becomes w·sign(x) on S and 0 elsewhere. S are the entries with |x| > D, for
    D = threshold·mean|x|, and w is the mean of |x| on S.

    Integers travel as they are. The length of what is sent tells how many entries are in S.

    body = w of each tensor that is rounded, float32 | one bit for each of their entries, 1 in S |
           one bit for each in S, 1 for a negative one | the other tensors

    Attributes:
      threshold: D in means of |x|. 0.7 is that of ternary weight networks; T-FedAvg's clients have
        0.07, its server 0.05, with which nearly all entries are in S.
      spares_vectors: whether tensors of fewer than two dimensions, as biases and norms, travel as
        they are. So do T-FedAvg's.
      keeps: patterns of names, as of file names, of tensors that travel as they are too, e.g.
        ["classifier.*"]: T-FedAvg keeps the first and the last layer.

    Raises:
      ValueError: `threshold` is not in [0, 1).
    """

    threshold: float = 0.7
    spares_vectors: bool = False
    keeps: tuple[str, ...] = ()
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.LOSSY, Fact.LENGTH_TELLS})

    def __post_init__(self) -> None:
        # From 1 on, a tensor of one magnitude would have none left, and a second pass change it.
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold must be in [0, 1), got {self.threshold}")

    def encode(self, tensors: Tensors, how: Coding = Coding()) -> bytes:
        """Raises ValueError for a tensor with an entry that is not finite: it has no scale."""
        floats = {
            name: x.detach().reshape(-1).cpu()
            for name, x in tensors.items()
            if self._is_rounded(name, x.dtype, x.shape)
        }
        inside = {name: self._inside(name, x) for name, x in floats.items()}
        scales = {name: mean_magnitude(name, x[inside[name]]) for name, x in floats.items()}
        marks = [inside[name] & (scale > 0) for name, scale in scales.items()]
        signs = [x[mark] < 0 for x, mark in zip(floats.values(), marks, strict=True)]
        rest = join(x.detach() for name, x in tensors.items() if name not in floats)
        bits = (pack_bits(torch.cat(each)) for each in (marks, signs) if each)
        return encode_tensors([], tensors, join(scales.values()) + b"".join(bits) + rest)

    def _is_rounded(self, name: str, dtype: torch.dtype, shape: Sequence[int]) -> bool:
        if not dtype.is_floating_point or (self.keeps and meets(name, [self.keeps])):
            return False
        return len(shape) >= 2 or not self.spares_vectors

    def _inside(self, name: str, x: Tensor) -> Tensor:
        """Which entries are in S."""
        mean_magnitude(name, x)  # so that what is not finite is refused
        size = x.abs().double()
        return size > self.threshold * size.mean() if x.numel() else size > 0

    def decode(self, blob: bytes, how: Coding = Coding()) -> Tensors:
        """Raises WireError on anything that `encode` cannot have made."""
        shapes, _, body = decode_tensors(blob)
        pairs = zip(shapes, kinds(shapes), strict=True)
        rounded = [self._is_rounded(name, dtype, shape) for (name, shape, _), (_, dtype) in pairs]
        counts = [count for (count, _), one in zip(kinds(shapes), rounded, strict=True) if one]
        start = 4 * len(counts)
        end = start + bytes_for(sum(counts))
        if len(body) < end:
            raise WireError(f"a payload's body has {len(body)} bytes; its marks end at {end}")
        [scales] = cut(body[:start], [(len(counts), torch.float32)])
        check_scales(scales)
        marks = unpack_bits(body[start:end], sum(counts))
        return _restored(shapes, rounded, scales, marks, body[end:])


def _restored(
    shapes: Layout, rounded: Sequence[bool], scales: Tensor, marks: Tensor, body: Body
) -> Mapping[str, Tensor]:
    every = list(zip(kinds(shapes), rounded, strict=True))
    marked = int(marks.sum())
    others = [kind for kind, has_scale in every if not has_scale]
    signs, *rest = cut(body, [(bytes_for(marked), torch.uint8), *others])
    whole = torch.zeros(len(marks))
    whole[marks] = 1 - 2 * unpack_bits(signs.numpy().data, marked).float()
    counts = [count for (count, _), has_scale in every if has_scale]
    scaled = zip(torch.split(whole, counts), scales, strict=True)
    left = iter(rest)
    found = {}
    for (name, shape, _), ((_, dtype), has_scale) in zip(shapes, every, strict=True):
        if has_scale:
            sign, scale = next(scaled)
            found[name] = (sign * scale).to(dtype).reshape(shape)
        else:
            found[name] = next(left).reshape(shape)
    return found
