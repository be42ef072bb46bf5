"""Which of n entries are meant: k increasing numbers below n in about log2(n / k) + 2 bits each.

Two codes, whichever is shorter; n and k settle which, so nothing is said about it on the wire:

* a bitmap of n bits;
* Elias and Fano's (Elias, 1974, "Efficient storage and retrieval by content and address of static
  files"): the low l = floor(log2(n / k)) bits of each number as they are, and of the rest h_i a
  bitmap with the bits h_i + i set, which needs k + (n >> l) bits.
"""

import numpy as np
import torch
from torch import Tensor

from fedpeft.core.wire import Body
from fedpeft.errors import WireError


def size(k: int, n: int) -> int:
    """The number of bytes for k of n."""
    if k == n:
        return 0
    low, high = _widths(k, n)
    return min(_bytes(n), _bytes(k * low) + _bytes(high))


def encode(index: Tensor, n: int) -> bytes:
    """The increasing numbers `index`, int64 (k,), all below n."""
    k, found = len(index), index.numpy()
    if k == n:
        return b""
    low, high = _widths(k, n)
    if _bytes(n) == size(k, n):
        return _bitmap(found, n)
    lows = (found[:, None] >> np.arange(low)) & 1
    return np.packbits(lows.astype(bool), bitorder="little").tobytes() + _bitmap(
        (found >> low) + np.arange(k), high
    )


def decode(body: Body, k: int, n: int) -> Tensor:
    """The inverse of `encode`.

    Raises:
      WireError: anything that `encode` cannot have made.
    """
    if len(body) != size(k, n):
        raise WireError(
            f"a payload has {len(body)} bytes of positions; {k} of {n} take {size(k, n)}"
        )
    if k == n:
        return torch.arange(n)
    low, high = _widths(k, n)
    if _bytes(n) == len(body):
        found = _set_bits(body, n)
    else:
        split = _bytes(k * low)
        highs = _set_bits(body[split:], high)
        if len(highs) != k:
            raise WireError(f"a payload marks {len(highs)} positions; {k} are sent")
        lows = _bits(body[:split], k * low).reshape(k, low) @ (1 << np.arange(low))
        found = ((highs - np.arange(k)) << low) + lows
    if len(found) != k or (np.diff(found) < 1).any() or found[-1] >= n:
        raise WireError(f"a payload's positions are not {k} increasing numbers below {n}")
    return torch.from_numpy(found)


def _widths(k: int, n: int) -> tuple[int, int]:
    """Bits of each number that are written as they are, and bits of the bitmap for the rest."""
    low = (n // k).bit_length() - 1
    return low, k + ((n - 1) >> low)


def _bytes(bits: int) -> int:
    return (bits + 7) // 8


def _bitmap(numbers: "np.ndarray[tuple[int], np.dtype[np.int64]]", bits: int) -> bytes:
    marks = np.zeros(bits, dtype=bool)
    marks[numbers] = True
    return np.packbits(marks, bitorder="little").tobytes()


def _bits(body: Body, bits: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    every = np.unpackbits(np.frombuffer(body, dtype=np.uint8), bitorder="little")
    if every[bits:].any():
        raise WireError("a payload's positions end in bits that mean nothing")
    return every[:bits]


def _set_bits(body: Body, bits: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.flatnonzero(_bits(body, bits)).astype(np.int64)
