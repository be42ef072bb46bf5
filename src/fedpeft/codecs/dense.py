"""Every entry, as it is."""

from dataclasses import dataclass

from fedpeft.codecs.narrowing import decode_as, encode_as
from fedpeft.core.types import Tensors


@dataclass(frozen=True)
class Dense:
    """Lossless: the tensors' own bytes, one after another."""

    def encode(self, tensors: Tensors) -> bytes:
        return encode_as(tensors, lambda _, x: x)

    def decode(self, blob: bytes) -> Tensors:
        """Raises WireError on anything that `encode` cannot have made."""
        return decode_as(blob, lambda dtype: dtype)
