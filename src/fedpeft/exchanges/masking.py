"""Weighted updates as integers modulo 2^k, and the masks that hide them until they are added up.

An entry of Δ becomes round(w·Δ·2^f) for the largest f with which n clients' sum cannot leave
±2^(k−1); the weight is one more entry. f follows from the plan and n, which all clients know, so
integers add up to what the rounded values do.
"""

from math import frexp, prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpeft.core.tensors import Layout
from fedpeft.core.types import Tensors, Update

Integers = npt.NDArray[np.unsignedinteger]
"""Of 32 or 64 bits; sums and differences wrap around."""


def shift(bits: int, clients: int, largest: float) -> int:
    """f, where no |w·Δ| is larger than `largest`: n·(largest·2^f + ½) < 2^(bits − 1)."""
    return frexp(((2 ** (bits - 1) - 1) / clients - 0.5) / largest)[1] - 1


def integers(update: Update, bits: int, by: int) -> Integers:
    """A client's share of the sum: all entries in the order of the names, and the weight."""
    flat = torch.cat(
        [update.delta[name].detach().double().reshape(-1) for name in sorted(update.delta)]
    )
    scaled = (flat * update.weight * 2.0**by).round().long().numpy()
    whole = np.append(scaled, round(update.weight)).astype(np.int64)
    return whole.view(np.uint64) if bits == 64 else whole.astype(np.uint32)


def mean(total: Integers, by: int, layout: Layout) -> Update:
    """The weighted mean that a sum of `integers` stands for; its weight is the sum of the
    weights."""
    signed = torch.from_numpy(
        total.view(np.int64 if total.itemsize == 8 else np.int32).astype(np.int64)
    )
    weight = int(signed[-1])
    if weight < 1:
        raise ValueError(f"the weights add up to {weight}")
    shapes = {name: (shape, getattr(torch, dtype)) for name, shape, dtype in layout}
    pieces = torch.split(
        signed[:-1].double() * 2.0**-by / weight, [prod(shapes[n][0]) for n in sorted(shapes)]
    )
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
    return np.frombuffer(stream, dtype=f"<u{bits // 8}").astype(f"u{bits // 8}")


def carried(values: Integers) -> Tensor:
    """As a codec takes them: signed integers of the same bits."""
    return torch.from_numpy(values.view(np.int64 if values.itemsize == 8 else np.int32).copy())


def read(x: Tensor) -> Integers:
    """The inverse of `carried`."""
    return x.numpy().view(np.uint64 if x.dtype == torch.int64 else np.uint32)
