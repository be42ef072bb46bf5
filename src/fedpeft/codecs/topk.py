"""Only the entries of largest magnitude (Aji and Heafield, 2017, arXiv:1704.05021)."""

from dataclasses import dataclass
from math import ceil

import torch

from fedpeft.codecs import positions
from fedpeft.codecs.kept_entries import (
    VALUES,
    keep_entries,
    least_bytes,
    pack_values,
    scatter_entries,
)
from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Coding
from fedpeft.core.types import Tensors
from fedpeft.errors import WireError, unknown
from fedpeft.wire.frames import decode_tensors, encode_tensors, kinds


@dataclass(frozen=True)
class TopK:
    """Send the k = ceil(density·n) largest of all n entries, with where they were; the rest decodes
    to zero.

    All floating-point tensors are ranked as one vector under one header: a header for each tensor
    would cost more than it saves on small adapters. Integers are not ranked and travel as they are.

    body = where the k entries are | the values, tensor by tensor

    Attributes:
      density: k / n. Both ends must have the same: a payload with another number of entries is
        refused, which also bounds what a short payload can make its reader allocate.
      values: how the k entries travel. "exact": in their own type, so that density 1 is lossless;
        "float16": none wider than that; "sign": one bit each and one magnitude for all of a type,
        their mean (sparse ternary compression; Sattler et al., 2019, arXiv:1903.02891).

    Raises:
      ValueError: `density` is not in (0, 1], or `values` is another word.
    """

    density: float = 0.1
    values: str = "exact"

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be in (0, 1], got {self.density}")
        if self.values not in VALUES:
            raise ValueError(unknown("values", self.values, VALUES))

    @property
    def offers(self) -> frozenset[Fact]:
        if self.sparse:
            return frozenset({Fact.LOSSY, Fact.SPARSE})
        return frozenset() if self.values == "exact" else frozenset({Fact.LOSSY})

    @property
    def sparse(self) -> bool:
        """Whether entries are dropped, which fits changes of parameters, but not parameters."""
        return self.density < 1

    def encode(self, tensors: Tensors, how: Coding = Coding()) -> bytes:
        """Raises ValueError for an entry that `values` cannot hold."""
        ranked = [x.detach().abs().reshape(-1) for x in tensors.values() if x.is_floating_point()]
        every = torch.cat(ranked) if ranked else torch.zeros(0)
        # one type for all, the widest: a ranking in a narrower one would round small entries to
        # equal ones
        index = every.topk(self._kept(len(every), how), sorted=False).indices.sort().values
        where = positions.encode(index, len(every))
        kept = pack_values(keep_entries(tensors, index), self.values)
        return encode_tensors([], tensors, where + kept)

    def decode(self, blob: bytes, how: Coding = Coding()) -> Tensors:
        """Raises WireError on anything that `encode` cannot have made."""
        shapes, _, body = decode_tensors(blob)
        n = sum(count for count, dtype in kinds(shapes) if dtype.is_floating_point)
        k = self._kept(n, how)
        start = positions.size(k, n)
        least = least_bytes(k, shapes, self.values)
        if start + least > len(body):
            raise WireError(
                f"a payload's body has {len(body)} bytes; density {self.density} of its layout is "
                f"{k} entries, {least} bytes or more, and {start} bytes for where they are"
            )
        index = positions.decode(body[:start], k, n)
        return scatter_entries(shapes, body[start:], index, self.values)

    def _kept(self, n: int, how: Coding) -> int:
        return min(n, ceil(self.density * how.budget * n))
