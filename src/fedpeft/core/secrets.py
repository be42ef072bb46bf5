"""Randomness that nobody else can draw again: noise and Poisson samples, from a root that the
system made.

A `torch.Generator` starts from 32 bits whatever its seed, few enough to try them all. Here every
number comes from SHAKE-256 of a key of 256 bits, and a key from the root and the path of where it
is used.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, shake_256
from math import ceil, pi, prod
from pathlib import Path

import torch
from torch import Tensor

from fedpeft.core.types import Tensors
from fedpeft.errors import RunError

SIZE = 32


@dataclass(frozen=True)
class Secret:
    """A key. It is never shown, and crosses no wire.

    Attributes:
      root: 32 bytes.
    """

    root: bytes = field(repr=False)

    @classmethod
    def fresh(cls) -> "Secret":
        return cls(os.urandom(SIZE))

    def at(self, *path: str | int | None) -> "Secret":
        """The key of the stream at `path`; by it neither this key nor another stream's can be
        told."""
        # JSON tells ("a", "b") from "a/b" and 1 from "1", so no two paths share a key.
        return Secret(blake2b(json.dumps(path).encode(), key=self.root, digest_size=SIZE).digest())

    def bound(self, tensors: Tensors) -> "Secret":
        """A key that is another for other values: noise that is used twice on different ones takes
        itself away."""
        read = blake2b(digest_size=SIZE)
        for name, x in tensors.items():
            read.update(name.encode() + b"\0")
            read.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return self.at("bound", read.hexdigest())

    @property
    def commitment(self) -> str:
        """What tells whether a key is this one, and no more."""
        # This number is written into checkpoints; `person` keeps it apart from every key that is
        # derived.
        return blake2b(self.root, digest_size=16, person=b"commitment").hexdigest()

    @property
    def seed(self) -> int:
        """For what takes a seed and needs no more than that others do not know it."""
        return int.from_bytes(self.at("seed").root[:8], "big") >> 1

    def uniform(self, count: int) -> Tensor:
        """`count` multiples of 2⁻⁵³ in [0, 1), float64."""
        # Of no bytes torch makes no tensor, so that 8 stand in where nothing is asked for.
        drawn = torch.frombuffer(
            bytearray(shake_256(self.root).digest(8 * count) or bytes(8)), dtype=torch.int64
        )
        # A shift of signed numbers repeats the sign, which the mask takes away.
        return ((drawn[:count] >> 11) & ((1 << 53) - 1)).double() * 2.0**-53

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Independent standard normals of that shape, float64, by the transform of Box and Muller
        (1958)."""
        count = prod(shape)
        radius, angle = self.uniform(2 * ceil(count / 2)).view(2, -1)
        # A uniform number may be 0 and never 1: log(1 - u) is finite, log(u) need not be.
        radius, angle = (-2 * torch.log1p(-radius)).sqrt(), 2 * pi * angle
        return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count].view(tuple(shape))


def secret_at(path: Path) -> Secret:
    """The secret that the file holds, which only its owner may read; the first call makes it.

    Raises:
      RunError: it holds something else.
    """
    if not path.exists():
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        # A name for each process: two that begin at once must not write into one file.
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(os.urandom(SIZE))
            file.flush()
            # Noise from it must not leave before it is safe: one round under two secrets' noises
            # has less than either.
            os.fsync(file.fileno())
        try:
            os.link(part, path)  # of several processes the first one's stays
        except FileExistsError:
            pass
        finally:
            part.unlink(missing_ok=True)
    root = path.read_bytes()
    if len(root) != SIZE:
        raise RunError(f"{path} is damaged: a secret has {SIZE} bytes, not {len(root)}")
    return Secret(root)
