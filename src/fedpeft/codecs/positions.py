"""Which of n entries are meant: k increasing numbers below n in about log2(n / k) + 2 bits each.

Two codes, whichever is shorter; n and k settle which, so nothing is said about it on the wire:

* a bitmap of n bits;
* Elias and Fano's (Elias, 1974, "Efficient storage and retrieval by content and address of static
  files"). The low l = floor(log2(n / k)) bits of each number stay as they are. Of the rest
  h_i there is a bitmap with the bits h_i + i set, which needs k + (n >> l) bits.
"""

import numpy as np
import torch
from torch import Tensor

from fedpeft.errors import WireError
from fedpeft.wire.frames import Body

CHUNK = 1 << 14
"""Bytes of a bitmap, or numbers, that are worked on at once."""


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
        found = _set_bits(body, n, k)
    else:
        split = _bytes(k * low)
        found = _set_bits(body[split:], high, k)
        _check_end(body[:split], k * low)
        for start in range(0, k, CHUNK):  # so that what is taken meanwhile stays small
            some = found[start : start + CHUNK]
            some -= np.arange(start, start + len(some))
            some <<= low
            some += _lows(body[:split], start, len(some), low)
    if (found[1:] <= found[:-1]).any() or found[-1] >= n:
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


def _lows(
    body: Body, start: int, count: int, low: int
) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """The low bits of `count` numbers from number `start` on, a multiple of 8."""
    part = body[start * low // 8 : _bytes((start + count) * low)]
    bits = np.unpackbits(np.frombuffer(part, dtype=np.uint8), count=count * low, bitorder="little")
    lows: np.ndarray[tuple[int], np.dtype[np.int64]]
    lows = bits.reshape(count, low) @ (1 << np.arange(low))
    return lows


def _check_end(body: Body, bits: int) -> None:
    if bits % 8 and body[-1] >> bits % 8:
        raise WireError("a payload's positions end in bits that mean nothing")


def _set_bits(body: Body, bits: int, k: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Where the k bits are that are set; another number of them is refused before they are looked
    for."""
    _check_end(body, bits)
    every = np.frombuffer(body, dtype=np.uint8)
    found, marked = np.empty(k, dtype=np.int64), 0
    for start in range(0, len(every), CHUNK):
        bitmap = np.unpackbits(every[start : start + CHUNK], bitorder="little")
        some = np.flatnonzero(bitmap) + 8 * start
        found[marked : marked + len(some)] = some[: max(k - marked, 0)]
        marked += len(some)
    if marked != k:
        raise WireError(f"a payload marks {marked} positions; {k} are sent")
    return found
