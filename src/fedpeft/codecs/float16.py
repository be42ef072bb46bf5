"""Two bytes an entry, in IEEE half precision (Micikevicius et al., 2018, arXiv:1710.03740)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedpeft.codecs.narrowing import decode_as, encode_as, narrow_dtype, narrow_tensor
from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Coding
from fedpeft.core.types import Tensors


@dataclass(frozen=True)
class Float16:
    """Eleven significant bits, magnitudes from 6e-8 to 65504; what is smaller becomes 0.

    Wider floating-point tensors are rounded to nearest and decode to their own type, so sums run in
    it. Integers, and floats of two bytes, travel as they are.
    """

    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.LOSSY})

    def encode(self, tensors: Tensors, how: Coding = Coding()) -> bytes:
        """Raises ValueError when an entry is beyond 65504: an infinity must not travel in its
        place."""
        return encode_as(tensors, lambda name, x: narrow_tensor(name, x, torch.float16, "bfloat16"))

    def decode(self, blob: bytes, how: Coding = Coding()) -> Tensors:
        """Raises WireError on anything that `encode` cannot have made."""
        return decode_as(blob, lambda dtype: narrow_dtype(dtype, torch.float16))
