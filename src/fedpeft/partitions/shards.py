"""Few classes a client: examples sorted by label, cut in shards, and assigned (McMahan et al.,
arXiv:1602.05629)."""

from dataclasses import dataclass

import torch

from fedpeft.core.types import Division, Table
from fedpeft.errors import DataError
from fedpeft.partitions.labels import labels_of
from fedpeft.partitions.naming import by_owner
from fedpeft.partitions.shares import check_share


@dataclass(frozen=True)
class Shards:
    """`clients` clients with `shards` shards each; shards differ in size by one example at most.

    Attributes:
      clients: how many.
      shards: pieces of the examples, sorted by class, that each client has.
      held_out: the share of its examples that each client holds out, to be measured on; left out:
        none.

    Raises:
      ValueError: a value out of range.
      DataError: fewer examples than shards.
    """

    clients: int = 32
    shards: int = 2
    held_out: float | None = None

    def __post_init__(self) -> None:
        check_share(self.held_out)
        if self.clients < 1 or self.shards < 1:
            raise ValueError(
                f"clients and shards must be at least 1, got {self.clients} and {self.shards}"
            )

    def split(self, table: Table, generator: torch.Generator) -> Division:
        labels, total = labels_of(table, "shards"), self.clients * self.shards
        if len(labels) < total:
            raise DataError(f"{len(labels)} training examples are too few for {total} shards")
        order = torch.randperm(len(labels), generator=generator)
        order = order[labels[order].sort(stable=True).indices]
        dealt = torch.randperm(total, generator=generator) % self.clients
        owner = torch.empty_like(order)
        owner[order] = dealt[torch.arange(len(labels)) * total // len(labels)]
        return Division(by_owner(owner, self.clients))
