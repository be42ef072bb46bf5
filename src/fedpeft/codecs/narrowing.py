"""Tensors in a type of their own choice on the wire: what `Dense`, `Float16` and `BFloat16` have in
common."""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from fedpeft.core.types import Tensors
from fedpeft.wire.frames import cut, decode_tensors, encode_tensors, join


def narrow_dtype(dtype: torch.dtype, to: torch.dtype) -> torch.dtype:
    """`to` in place of a wider floating-point type; integers, and types as narrow, travel as they
    are."""
    return to if dtype.is_floating_point and dtype.itemsize > to.itemsize else dtype


def narrow_tensor(name: str, x: Tensor, to: torch.dtype, instead: str) -> Tensor:
    """The tensor as it travels in a narrower type.

    Raises:
      ValueError: an entry is not finite in that type: an infinity must not travel in its place.
    """
    dtype = narrow_dtype(x.dtype, to)
    narrow = x.to(dtype)
    if dtype is not x.dtype and not bool(narrow.isfinite().all()):
        raise ValueError(
            f"tensor {name!r} has an entry of magnitude {float(x.abs().max()):.3g}; "
            f"{str(to).removeprefix('torch.')} ends at {torch.finfo(to).max:.6g}: use the codec "
            f"{instead}"
        )
    return narrow


def encode_as(tensors: Tensors, carried: Callable[[str, Tensor], Tensor]) -> bytes:
    """The layout of the tensors, and the bytes of what carries each."""
    return encode_tensors([], tensors, join(carried(name, x) for name, x in tensors.items()))


def decode_as(blob: bytes, kind: Callable[[torch.dtype], torch.dtype]) -> Tensors:
    """The inverse of `encode_as`, for the types that `kind` gives.

    Raises:
      WireError: anything that `encode_as` cannot have made.
    """
    shapes, _, body = decode_tensors(blob)
    dtypes = [getattr(torch, dtype) for _, _, dtype in shapes]
    vectors = cut(
        body, [(prod(shape), kind(d)) for (_, shape, _), d in zip(shapes, dtypes, strict=True)]
    )
    rows = zip(shapes, dtypes, vectors, strict=True)
    return {name: vector.to(dtype).reshape(shape) for (name, shape, _), dtype, vector in rows}
