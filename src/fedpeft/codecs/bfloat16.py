"""Two bytes an entry, with the exponent of float32 (Kalamkar et al., 2019, arXiv:1905.12322)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedpeft.codecs.narrowing import decode_as, encode_as, narrow_dtype, narrow_tensor
from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Coding
from fedpeft.core.types import Tensors


@dataclass(frozen=True)
class BFloat16:
    """Eight significant bits over the whole range of float32.

    Wider floating-point tensors are rounded to nearest and decode to their own type, so sums run in
    it. Integers, and floats of two bytes, travel as they are.
    """

    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.LOSSY})

    def encode(self, tensors: Tensors, how: Coding = Coding()) -> bytes:
        """Raises ValueError when an entry is beyond 3.39e38: an infinity must not travel in its
        place."""
        return encode_as(tensors, lambda name, x: narrow_tensor(name, x, torch.bfloat16, "dense"))

    def decode(self, blob: bytes, how: Coding = Coding()) -> Tensors:
        """Raises WireError on anything that `encode` cannot have made."""
        return decode_as(blob, lambda dtype: narrow_dtype(dtype, torch.bfloat16))
