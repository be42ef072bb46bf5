"""Weighted updates as integers modulo 2^k, and the masks that hide them until they are added up.

An entry of Δ becomes round(w·Δ·2^f) for the largest f with which n clients' sum cannot leave
±2^(k−1). The weight is one more entry. f follows from the plan and n, which all clients know, so
integers add up to what the rounded values do.

w·Δ is a float64 before it is rounded, and the sum is one after it: both have 53 significant bits.
With k = 64 an entry therefore has a step of 2^−f or of 2^−53 of itself, whichever is larger.
"""

from fractions import Fraction
from math import isfinite, prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpeft.core.tensors import Layout
from fedpeft.core.types import Tensors, Update
from fedpeft.errors import PlanError

Integers = npt.NDArray[np.unsignedinteger]
"""Of 32 or 64 bits; sums and differences wrap around."""

MASKED = "masked"
"""The group of a message that holds masked integers, and their name in it."""
LEAST_SHIFT = 8
"""A plan must leave entries this many bits behind the point."""


def shift(bits: int, clients: int, largest: float) -> int:
    """f, where no |w·Δ| is larger than `largest`: n·(largest·2^f + ½) < 2^(bits − 1).

    Fractions decide, as float64 cannot tell 2^63 − 1 from 2^63. Rounding keeps the order of
    numbers, so no w·Δ in float64 is larger than the largest weight times the limit in float64.

    Raises:
      ValueError: so many clients leave no room for any number.
    """
    room = Fraction(2 ** (bits - 1) - 1, clients) - Fraction(1, 2)
    if room <= 0:
        raise ValueError(f"{bits} bits cannot hold a sum of {clients} clients")
    ratio = room / Fraction(largest)
    power = ratio.numerator.bit_length() - ratio.denominator.bit_length()
    return power if Fraction(2) ** power <= ratio else power - 1


def check_room(bits: int, clients: int, limit: float, max_weight: int) -> None:
    """Raises PlanError where a sum of so many clients could overflow, or has no precision left."""
    if clients * max_weight >= 2 ** (bits - 1):
        raise PlanError(
            f"exchange.bits = {bits} cannot hold the sum of {clients} weights of at most "
            f"max_weight = {max_weight}: set bits = 64, or a smaller max_weight"
        )
    largest = max_weight * limit
    if not isfinite(largest) or shift(bits, clients, largest) < LEAST_SHIFT:
        raise PlanError(
            f"exchange.bits = {bits} cannot hold {clients} updates of limit * max_weight = "
            f"{largest:g}: set bits = 64, or a smaller limit"
        )


def integers(update: Update, bits: int, by: int) -> Integers:
    """A client's share of the sum: all entries in the order of the names, and the weight.

    Raises:
      ValueError: an entry, or the weight, that so many bits cannot hold.
    """
    flat = torch.cat(
        [update.delta[name].detach().double().reshape(-1) for name in sorted(update.delta)]
    )
    scaled = np.rint(np.ldexp((flat * update.weight).numpy(), by))
    whole = np.append(scaled, np.rint(update.weight))
    # NaN is below nothing, and is refused too.
    if not bool((np.abs(whole) < 2.0 ** (bits - 1)).all()):
        raise ValueError(f"an entry times its weight, or the weight, is beyond {bits} bits")
    signed = whole.astype(np.int64)
    return signed.view(np.uint64) if bits == 64 else signed.astype(np.uint32)


def mean(total: Integers, by: int, layout: Layout) -> Update:
    """The weighted mean that a sum of `integers` stands for; its weight is the sum of the
    weights."""
    signed = total.view(np.int64 if total.itemsize == 8 else np.int32).astype(np.int64)
    weight = int(signed[-1])
    if weight < 1:
        raise ValueError(f"the weights add up to {weight}")
    shapes = {name: (shape, getattr(torch, dtype)) for name, shape, dtype in layout}
    entries = np.ldexp(signed[:-1].astype(np.float64), -by) / weight
    pieces = torch.split(torch.from_numpy(entries), [prod(shapes[n][0]) for n in sorted(shapes)])
    named = dict(zip(sorted(shapes), pieces, strict=True))
    delta: Tensors = {
        name: named[name].reshape(shape).to(dtype) for name, (shape, dtype) in shapes.items()
    }
    return Update("", delta, float(weight))


def mask(key: bytes, count: int, bits: int) -> Integers:
    """Pseudo-random integers from a key of 256 bits, which is used for nothing else: the key stream
    of ChaCha20."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    stream = (
        Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(count * bits // 8))
    )
    # Little-endian on every machine, so that both of a pair draw the same numbers.
    return np.frombuffer(stream, dtype=f"<u{bits // 8}").astype(f"u{bits // 8}")


def add_mask(values: Integers, masked: Integers, plus: bool) -> Integers:
    """The values with a mask added, or taken away by the other one of the pair."""
    return values + masked if plus else values - masked


def as_signed(values: Integers) -> Tensor:
    """Signed integers of the same bits, which a codec takes."""
    return torch.from_numpy(values.view(np.int64 if values.itemsize == 8 else np.int32).copy())


def read(x: Tensor) -> Integers:
    """The inverse of `as_signed`."""
    return x.numpy().view(np.uint64 if x.dtype == torch.int64 else np.uint32)
