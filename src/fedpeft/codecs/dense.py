"""Every entry, as it is."""

from dataclasses import dataclass

import torch

from fedpeft.core.types import Tensors
from fedpeft.core.wire import decode_tensors, encode_tensors, raw, unraw
from fedpeft.errors import WireError


@dataclass(frozen=True)
class Dense:
    """Lossless: the tensors' own bytes, one after another."""

    def encode(self, tensors: Tensors) -> bytes:
        return encode_tensors([], tensors, b"".join(map(raw, tensors.values())))

    def decode(self, blob: bytes) -> Tensors:
        """Raises WireError on anything that `encode` cannot have made."""
        shapes, _, body = decode_tensors(blob)
        found, start = {}, 0
        for name, shape, kind in shapes:
            dtype = getattr(torch, kind)
            count = torch.Size(shape).numel()
            end = start + count * dtype.itemsize
            (vector,) = unraw(body[start:end], dtype, [count])
            found[name], start = vector.reshape(shape), end
        if start != len(body):
            raise WireError(f"a payload has {len(body) - start} bytes too many")
        return found
