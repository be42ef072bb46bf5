"""Entries at random places, which both ends draw, so that no place travels (random-k; Stich et al.,
2018, arXiv:1809.07599)."""

from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.codecs.kept_entries import keep_entries, least_bytes, pack_values, scatter_entries
from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Coding
from fedpeft.core.seeds import generator
from fedpeft.core.types import Tensors
from fedpeft.errors import WireError
from fedpeft.wire.frames import decode_tensors, encode_tensors, kinds


@dataclass(frozen=True)
class RandK:
    """Send k = ceil(density·n) of all n entries, drawn without replacement from the message's seed;
    the rest decodes to zero.

    The places are others in each round and for each client. Entries are sent as they are, not
    divided by the density: the mean change is then shorter by that factor, which the server's rate
    can make up for, and error feedback makes up for by itself. Integers travel as they are.

    body = the values, tensor by tensor

    Attributes:
      density: k / n. Both ends must have the same.

    Raises:
      ValueError: `density` is not in (0, 1].
    """

    density: float = 0.1
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.LOSSY, Fact.SPARSE})

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be in (0, 1], got {self.density}")

    def encode(self, tensors: Tensors, how: Coding = Coding()) -> bytes:
        n = sum(x.numel() for x in tensors.values() if x.is_floating_point())
        kept = keep_entries(tensors, self._drawn(n, how))
        return encode_tensors([], tensors, pack_values(kept, "exact"))

    def decode(self, blob: bytes, how: Coding = Coding()) -> Tensors:
        """Raises WireError on anything that `encode` cannot have made."""
        shapes, _, body = decode_tensors(blob)
        n = sum(count for count, dtype in kinds(shapes) if dtype.is_floating_point)
        least = least_bytes(self._kept(n, how), shapes, "exact")
        if least > len(body):
            raise WireError(
                f"a payload's body has {len(body)} bytes; density {self.density} of its layout is "
                f"{self._kept(n, how)} entries, {least} bytes or more"
            )
        return scatter_entries(shapes, body, self._drawn(n, how), "exact")

    def _kept(self, n: int, how: Coding) -> int:
        return min(n, ceil(self.density * how.budget * n))

    def _drawn(self, n: int, how: Coding) -> Tensor:
        """The places, increasing, int64 (k,)."""
        order = torch.randperm(n, generator=generator(how.seed, "randk"))
        return order[: self._kept(n, how)].sort().values
