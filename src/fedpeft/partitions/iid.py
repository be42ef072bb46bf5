"""Clients that are alike: a random order of the examples, cut into equal parts (FedPEFT's
"homogeneous" setting)."""

from dataclasses import dataclass

import torch

from fedpeft.core.types import Division, Table
from fedpeft.errors import DataError
from fedpeft.partitions.naming import by_owner
from fedpeft.partitions.shares import check_share


@dataclass(frozen=True)
class IID:
    """`clients` clients whose sizes differ by one example at most.

    Attributes:
      clients: how many.
      held_out: the share of its examples that each client holds out, to be measured on; left out:
        none.

    Raises:
      ValueError: fewer clients than one.
      DataError: fewer examples than clients.
    """

    clients: int = 32
    held_out: float | None = None

    def __post_init__(self) -> None:
        check_share(self.held_out)
        if self.clients < 1:
            raise ValueError(f"clients must be at least 1, got {self.clients}")

    def split(self, table: Table, generator: torch.Generator) -> Division:
        n = len(table)
        if n < self.clients:
            raise DataError(f"{n} training examples are too few for {self.clients} clients")
        owner = torch.arange(n) % self.clients
        return Division(by_owner(owner[torch.randperm(n, generator=generator)], self.clients))
