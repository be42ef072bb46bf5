"""Every entry, as it is."""

from dataclasses import dataclass

from fedpeft.codecs.narrowing import decode_as, encode_as
from fedpeft.core.interfaces import Coding
from fedpeft.core.types import Tensors


@dataclass(frozen=True)
class Dense:
    """Lossless: the tensors' own bytes, one after another."""

    def encode(self, tensors: Tensors, how: Coding = Coding()) -> bytes:
        return encode_as(tensors, lambda _, x: x)

    def decode(self, blob: bytes, how: Coding = Coding()) -> Tensors:
        """Raises WireError on anything that `encode` cannot have made."""
        return decode_as(blob, lambda dtype: dtype)
