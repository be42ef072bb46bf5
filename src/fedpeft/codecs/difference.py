"""What the server sends is the change since its last message, compressed, with the server's own
error feedback (the server's half of DoubleSqueeze; Tang et al., 2019, arXiv:1905.05957)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.compute.trainable import STATISTICS
from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Codec, Coding
from fedpeft.core.tensors import Layout, layout
from fedpeft.core.types import Tensors
from fedpeft.registry import build, part
from fedpeft.wire.frames import layout_of

OTHERS: Mapping[Fact, str] = {
    Fact.MIXED_RANKS: "all clients hold one model, of which difference sends the change, and "
    "{other} {what}: leave out one of them",
    Fact.MIXED_BUDGETS: "all clients hold one model, of which difference sends the change, and "
    "{other} {what}: leave out one of them",
    Fact.SEVERAL_MODELS: "a client holds one model, of which difference sends the change, and "
    "{other} {what}: leave out one of them",
    Fact.ASYNCHRONOUS: "difference sends the change since the last round, and asynchronous steps "
    "have no rounds: leave it out",
}


@dataclass(frozen=True)
class Difference:
    """h ← h + C(θ − h), where h is what the clients hold and train from, and θ the server's
    parameters. What C drops is in the next difference, so that this is error feedback.

    Only clients that took part in the last round hold h. All others receive the new h as a whole,
    and so do all in the first round, in questions that are not to train, and where the layout of
    what is sent has changed. Integers differ exactly.

    body = what the codec makes of the change; of a whole, all tensors as they are. Which of both
           it is follows from what the receiver holds, so that nothing in the body tells.

    Attributes:
      codec: C.

    Raises:
      ValueError: the codec follows by itself.
    """

    codec: Codec = part("codec", "ternary")
    remembers: ClassVar[bool] = True
    remembers_clients: ClassVar[bool] = True
    follows: ClassVar[bool] = True
    forbids: ClassVar[Mapping[Fact, str]] = OTHERS
    _whole: Codec = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if getattr(self.codec, "follows", False) or getattr(self.codec, "reads_sent", False):
            raise ValueError("difference wraps a codec that needs no memory, such as ternary")
        object.__setattr__(self, "_whole", build("codec", "dense"))

    @property
    def offers(self) -> frozenset[Fact]:
        """What it drops of a change comes later, and entries that it drops are no zeros: so it is
        not sparse, whatever the codec is."""
        return frozenset({Fact.LOSSY})

    def encode(self, tensors: Tensors, how: Coding = Coding()) -> bytes:
        """Raises ValueError for a change that the codec cannot hold."""
        held = how.held
        if held is None or not _fits(held, layout(tensors)):
            return self._whole.encode(tensors, how)
        return self.codec.encode({name: _less(x, held[name]) for name, x in tensors.items()}, how)

    def decode(self, blob: bytes, how: Coding = Coding()) -> Tensors:
        """Raises WireError on anything that `encode` cannot have made."""
        held = how.held
        if held is None or not _fits(held, layout_of(blob)):
            return self._whole.decode(blob, how)
        changes = self.codec.decode(blob, how)
        return {name: _moved(name, held[name], by) for name, by in changes.items()}


def _fits(held: Tensors, declared: Layout) -> bool:
    """Whether these tensors are held, in whatever order: files do not keep it."""
    return sorted(layout(held)) == sorted(declared)


def _less(x: Tensor, held: Tensor) -> Tensor:
    return x ^ held if x.dtype == torch.bool else x - held


def _moved(name: str, held: Tensor, by: Tensor) -> Tensor:
    """What is held after the change; a variance stays one, whatever the codec drops."""
    moved = held ^ by if held.dtype == torch.bool else held + by
    return moved.clamp_min(0) if name.endswith(STATISTICS[1]) else moved
