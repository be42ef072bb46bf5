"""One client after another, each from the last one's result (Chang et al., 2018, cyclical weight
transfer)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedpeft.core.facts import Fact
from fedpeft.core.types import ClientId


@dataclass(frozen=True)
class SequentialChain:
    """In each round the next client, in the order of the list, again from the first after the last:
    `rounds` is the number of visits, and the mean of one is that one.

    This is not federated averaging, in which all clients of a round start from the same state. The
    published code of arXiv:2412.04650 trains its clients so, without resetting them, and then
    averages what it saved on the way.
    """

    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.ONE_AT_A_TIME})
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.MANY_AT_A_TIME: "a chain has one client in each round: set cohort = 1, and rounds to "
        "the clients times the passes over them",
        Fact.ASYNCHRONOUS: "a chain waits for each client: leave out fedbuff, or the chain",
    }

    def choose(
        self, clients: Sequence[ClientId], cohort: int, generator: torch.Generator, round: int
    ) -> list[ClientId]:
        return [clients[round % len(clients)]]
