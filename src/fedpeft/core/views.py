"""What one client sees of the server's tensors: what it receives, trains and keeps, at which rank.

A view is data, and hashable: clients with equal views share one payload, and the layout of what a
client receives and sends follows from it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

import torch
from torch import Tensor

from fedpeft.core.low_rank import cut
from fedpeft.core.types import Tensors

Condition: TypeAlias = tuple[str, ...]
"""Patterns of names, as of file names. A name meets the condition if one of them matches it; a
pattern that begins with "!" matches every name that the rest does not."""


@dataclass(frozen=True)
class View:
    """The default is everything: all tensors are received, trained and sent back.

    Attributes:
      receives: the conditions that a tensor's name must meet, all of them, to be sent down.
      trains: the same for those that are trained and sent back; others are frozen.
      keeps: patterns of tensors that never travel. Each client has its own.
      rank: the rank of LoRA's factors; None for the method's.
      budget: what share of their usual entries sparse codecs keep, in both directions.
      sets: patterns of the model's buffers, each with the value that such have at this client.
        Nothing of it travels, since a client knows its view.
    """

    receives: tuple[Condition, ...] = ()
    trains: tuple[Condition, ...] = ()
    keeps: tuple[str, ...] = ()
    rank: int | None = None
    budget: float = 1.0
    sets: tuple[tuple[str, float], ...] = ()

    def __and__(self, other: "View") -> "View":
        """What both views let through."""
        ranks = [rank for rank in (self.rank, other.rank) if rank is not None]
        return View(
            (*self.receives, *other.receives),
            (*self.trains, *other.trains),
            # Two parts may keep the same tensors. Repeats go, since views that let the same through
            # should be equal: equal views share a payload.
            tuple(dict.fromkeys((*self.keeps, *other.keeps))),
            min(ranks, default=None),
            min(self.budget, other.budget),
            tuple(dict.fromkeys((*self.sets, *other.sets))),
        )

    def select(self, params: Tensors) -> dict[str, Tensor]:
        """What of the parameters travels down, cut to the rank."""
        some = params
        if self.receives or self.keeps:
            some = {name: x for name, x in params.items() if self._travels(name)}
        return dict(cut(some, self.rank))

    def trained(self, received: Tensors) -> dict[str, Tensor]:
        """What of the received tensors is trained and sent back."""
        if not self.trains:
            return dict(received)
        return {name: x for name, x in received.items() if meets(name, self.trains)}

    def kept(self, params: Tensors) -> dict[str, Tensor]:
        """What of the parameters is each client's own."""
        return {name: x for name, x in params.items() if meets(name, [self.keeps])}

    def buffers(self, own: Tensors) -> dict[str, Tensor]:
        """The buffers of a model, `own`, that have another value at this client."""
        return {
            name: torch.full_like(x, value)
            for pattern, value in self.sets
            for name, x in own.items()
            if meets(name, [(pattern,)])
        }

    def _travels(self, name: str) -> bool:
        own = bool(self.keeps) and meets(name, [self.keeps])
        return not own and meets(name, self.receives)


EVERYTHING = View()


def meets(name: str, conditions: Iterable[Condition]) -> bool:
    """Whether a name meets all conditions."""
    return all(any(_matches(name, pattern) for pattern in patterns) for patterns in conditions)


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith("!"):
        # `fnmatch` would ignore case on some systems, and a plan means the same on all.
        return not fnmatchcase(name, pattern[1:])
    return fnmatchcase(name, pattern)
