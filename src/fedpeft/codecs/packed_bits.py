"""One bit an entry: truth values as bytes, eight in each, and back."""

import numpy as np
import torch
from torch import Tensor

from fedpeft.errors import WireError
from fedpeft.wire.frames import Body


def bytes_for(bits: int) -> int:
    """The number of bytes for so many bits."""
    return (bits + 7) // 8


def pack_bits(flags: Tensor) -> bytes:
    """Truth values (n,) as bytes; the bits past the last one are 0."""
    return np.packbits(flags.numpy(), bitorder="little").tobytes()


def unpack_bits(body: Body, count: int) -> Tensor:
    """The inverse of `pack_bits`: a bool tensor (count,).

    Raises:
      WireError: the body has another length, or bits set that mean nothing.
    """
    if len(body) != bytes_for(count):
        raise WireError(
            f"a payload's body has {len(body)} bytes for {count} bits; they take {bytes_for(count)}"
        )
    if count % 8 and body[-1] >> count % 8:
        raise WireError("a payload's bits end in some that mean nothing")
    bits = np.unpackbits(np.frombuffer(body, dtype=np.uint8), count=count, bitorder="little")
    return torch.from_numpy(bits.astype(bool))
