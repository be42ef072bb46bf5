"""Only the entries of largest magnitude (Aji and Heafield, 2017, arXiv:1704.05021)."""

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from fedpeft.codecs import positions
from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Coding
from fedpeft.core.tensors import Layout
from fedpeft.core.types import Tensors
from fedpeft.errors import WireError
from fedpeft.wire.frames import Body, cut, decode_tensors, encode_tensors, join, kinds


@dataclass(frozen=True)
class TopK:
    """Send the k = ceil(density·n) largest of all n entries, with where they were; the rest decodes
    to zero.

    All floating-point tensors are ranked as one vector under one header: a header for each tensor
    would cost more than it saves on small adapters. Values keep their type, so density 1 is
    lossless; integers are not ranked and travel as they are.

    body = where the k entries are | the values, tensor by tensor

    Attributes:
      density: k / n. Both ends must have the same: a payload with another number of entries is
        refused, which also bounds what a short payload can make its reader allocate.

    Raises:
      ValueError: `density` is not in (0, 1].
    """

    density: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be in (0, 1], got {self.density}")

    @property
    def offers(self) -> frozenset[Fact]:
        return frozenset({Fact.LOSSY, Fact.SPARSE}) if self.sparse else frozenset()

    @property
    def sparse(self) -> bool:
        """Whether entries are dropped, which fits changes of parameters, but not parameters."""
        return self.density < 1

    def encode(self, tensors: Tensors, how: Coding = Coding()) -> bytes:
        flat = {name: x.detach().reshape(-1) for name, x in tensors.items()}
        ranked = [x.abs() for x in flat.values() if x.is_floating_point()]
        every = torch.cat(ranked) if ranked else torch.zeros(0)
        # one type for all, the widest: a ranking in a narrower one would round small entries to
        # equal ones
        index = every.topk(self._kept(len(every)), sorted=False).indices.sort().values
        local = iter(_by_tensor(index.clone(), [len(x) for x in ranked]))
        values = [x[next(local)] if x.is_floating_point() else x for x in flat.values()]
        return encode_tensors([], tensors, positions.encode(index, len(every)) + join(values))

    def decode(self, blob: bytes, how: Coding = Coding()) -> Tensors:
        """Raises WireError on anything that `encode` cannot have made."""
        shapes, _, body = decode_tensors(blob)
        counts = [count for count, dtype in kinds(shapes) if dtype.is_floating_point]
        n = sum(counts)
        k = self._kept(n)
        start = positions.size(k, n)
        least = min((t.itemsize for _, t in kinds(shapes) if t.is_floating_point), default=0)
        if start + k * least > len(body):
            raise WireError(
                f"a payload's body has {len(body)} bytes; density {self.density} of its layout is "
                f"{k} entries, {least} bytes each or more, and {start} bytes for where they are"
            )
        local = _by_tensor(positions.decode(body[:start], k, n), counts)
        return _scattered(shapes, body[start:], local)

    def _kept(self, n: int) -> int:
        return min(n, ceil(self.density * n))


def _by_tensor(index: Tensor, counts: list[int]) -> list[Tensor]:
    """Increasing positions in one vector as positions in each of the tensors that it was made of;
    they are written into the same memory."""
    ends = torch.tensor([0, *counts]).cumsum(0)
    pieces = index.tensor_split(torch.searchsorted(index, ends[1:-1])) if counts else ()
    return [piece.sub_(start) for piece, start in zip(pieces, ends[:-1], strict=True)]


def _scattered(shapes: Layout, body: Body, local: list[Tensor]) -> Tensors:
    every = kinds(shapes)
    where = iter(local)
    places = [next(where) if dtype.is_floating_point else None for _, dtype in every]
    carried = [
        (count if place is None else len(place), dtype)
        for (count, dtype), place in zip(every, places, strict=True)
    ]
    found = {}
    for (name, shape, _), (count, dtype), place, values in zip(
        shapes, every, places, cut(body, carried), strict=True
    ):
        whole = values if place is None else torch.zeros(count, dtype=dtype)
        if place is not None:
            whole[place] = values
        found[name] = whole.reshape(shape)
    return found
