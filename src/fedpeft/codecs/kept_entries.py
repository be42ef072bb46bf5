"""Some entries of all floating-point tensors, as one vector: what sparse codecs have in common."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedpeft.codecs.magnitudes import check_scales, mean_magnitude
from fedpeft.codecs.narrowing import narrow_dtype, narrow_tensor
from fedpeft.codecs.packed_bits import bytes_for, pack_bits, unpack_bits
from fedpeft.core.tensors import Layout
from fedpeft.core.types import Tensors
from fedpeft.wire.frames import Body, cut, join, kinds

VALUES = ("exact", "float16", "sign")
"""How the kept entries travel."""
Kinds = Sequence[tuple[int, torch.dtype]]
"""Of each tensor the number of entries that travel, and its type."""


def split_by_tensor(index: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Increasing positions in one vector as positions in each of the tensors that it was made of,
    of so many entries; they are written into the same memory."""
    ends = torch.tensor([0, *counts]).cumsum(0)
    pieces = index.tensor_split(torch.searchsorted(index, ends[1:-1])) if counts else ()
    return [piece.sub_(start) for piece, start in zip(pieces, ends[:-1], strict=True)]


def keep_entries(tensors: Tensors, index: Tensor) -> dict[str, Tensor]:
    """By name the entries at some positions in the vector of all floating-point tensors, and all
    entries of the others."""
    flat = {name: x.detach().reshape(-1) for name, x in tensors.items()}
    counts = [len(x) for x in flat.values() if x.is_floating_point()]
    local = iter(split_by_tensor(index.clone(), counts))
    return {n: x[next(local)] if x.is_floating_point() else x for n, x in flat.items()}


def scatter_entries(shapes: Layout, body: Body, index: Tensor, values: str) -> Tensors:
    """The inverse of `keep_entries` and `pack_values`: zero but at the positions."""
    every = kinds(shapes)
    places = iter(split_by_tensor(index, [n for n, dtype in every if dtype.is_floating_point]))
    where = [next(places) if dtype.is_floating_point else None for _, dtype in every]
    carried = [
        (count if place is None else len(place), dtype)
        for (count, dtype), place in zip(every, where, strict=True)
    ]
    found = {}
    for (name, shape, _), (count, dtype), place, kept in zip(
        shapes, every, where, unpack_values(body, carried, values), strict=True
    ):
        whole = kept if place is None else torch.zeros(count, dtype=dtype)
        if place is not None:
            whole[place] = kept
        found[name] = whole.reshape(shape)
    return found


def least_bytes(kept: int, shapes: Layout, values: str) -> int:
    """The fewest bytes that so many entries take, whichever tensors they are of."""
    if values == "sign":
        return bytes_for(kept)
    sizes = [
        _as_sent(dtype, values).itemsize for _, dtype in kinds(shapes) if dtype.is_floating_point
    ]
    return kept * min(sizes, default=0)


def pack_values(kept: Mapping[str, Tensor], values: str) -> bytes:
    """The bytes of what `keep_entries` gives.

    "sign" sends one magnitude for each floating-point type, the mean of all kept entries of that
    type, and one bit for each entry: sparse ternary compression (Sattler et al., 2019,
    arXiv:1903.02891).

    Raises:
      ValueError: an entry is not finite, or float16 cannot hold it.
    """
    if values == "exact":
        return join(kept.values())
    if values == "float16":
        instead = 'topk with values = "exact"'
        return join(narrow_tensor(name, x, torch.float16, instead) for name, x in kept.items())
    return _signs(kept)


def _signs(kept: Mapping[str, Tensor]) -> bytes:
    floats = {name: x for name, x in kept.items() if x.is_floating_point()}
    scales = {}
    for dtype in dict.fromkeys(x.dtype for x in floats.values()):
        alike = [x for x in floats.values() if x.dtype is dtype]
        name = next(name for name, x in floats.items() if x.dtype is dtype)
        scales[dtype] = mean_magnitude(name, torch.cat(alike))
    negative = [(x < 0).cpu() & (scales[x.dtype] > 0) for x in floats.values()]
    bits = pack_bits(torch.cat(negative)) if negative else b""
    return join(scales.values()) + bits + join(x for n, x in kept.items() if n not in floats)


def unpack_values(body: Body, carried: Kinds, values: str) -> list[Tensor]:
    """The inverse of `pack_values`.

    Raises:
      WireError: the body has another length, or a scale that nobody sends.
    """
    if values != "sign":
        vectors = cut(body, [(count, _as_sent(dtype, values)) for count, dtype in carried])
        return [x.to(dtype) for x, (_, dtype) in zip(vectors, carried, strict=True)]
    return _from_signs(body, carried)


def _from_signs(body: Body, carried: Kinds) -> list[Tensor]:
    types = list(dict.fromkeys(dtype for _, dtype in carried if dtype.is_floating_point))
    counts = [count for count, dtype in carried if dtype.is_floating_point]
    others = [kind for kind in carried if not kind[1].is_floating_point]
    parts = [(len(types), torch.float32), (bytes_for(sum(counts)), torch.uint8), *others]
    scales, bits, *rest = cut(body, parts)
    check_scales(scales)
    scale_of = dict(zip(types, scales, strict=True))
    signs = iter(torch.split(unpack_bits(bits.numpy().data, sum(counts)), counts))
    left = iter(rest)
    found = []
    for _, dtype in carried:
        if dtype.is_floating_point:
            scale = scale_of[dtype]
            found.append(torch.where(next(signs), -scale, scale).to(dtype))
        else:
            found.append(next(left))
    return found


def _as_sent(dtype: torch.dtype, values: str) -> torch.dtype:
    return narrow_dtype(dtype, torch.float16) if values == "float16" else dtype
