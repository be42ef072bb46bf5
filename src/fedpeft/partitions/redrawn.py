"""A mistake of FedPEFT's published code (arXiv:2210.01708), for comparison with it: the subset is
drawn twice."""

from dataclasses import dataclass

import torch

from fedpeft.core.interfaces import Partition
from fedpeft.core.types import Division, Table
from fedpeft.errors import DataError
from fedpeft.partitions.labels import labels_of
from fedpeft.partitions.shares import check_share
from fedpeft.registry import part


@dataclass(frozen=True)
class Redrawn:
    """The partition `of` is computed on one random subset, and its indices are taken into another.

    Clients keep their sizes, while their labels become those of the data: a Dirichlet skew is lost.
    The right thing is `data.subset`, drawn once before the partition. The published code draws the
    second subset again for each client, so that clients share examples. Here all take from one, and
    no example is held twice. The loss of the skew is the same.

    Attributes:
      of: the partition, one that looks at labels only.
      subset: examples in all.
      held_out: the share of its examples that each client holds out, to be measured on; left out:
        none.

    Raises:
      ValueError: no examples.
      DataError: more than there are; or see `of`.
    """

    subset: int
    of: Partition = part("partition", "dirichlet")
    held_out: float | None = None

    def __post_init__(self) -> None:
        check_share(self.held_out)
        if getattr(self.of, "held_out", None):
            raise ValueError("held_out belongs to the partition `redrawn` itself, not to its `of`")
        if self.subset < 1:
            raise ValueError(f"subset must be at least 1, got {self.subset}")

    def split(self, table: Table, generator: torch.Generator) -> Division:
        labels = labels_of(table, "redrawn")
        if self.subset > len(labels):
            raise DataError(
                f"subset = {self.subset}, but there are {len(labels)} training examples"
            )
        seen, taken = (
            torch.randperm(len(labels), generator=generator)[: self.subset] for _ in range(2)
        )
        division = self.of.split(Table({"label": labels[seen]}), generator)
        parts = {client: taken[index].sort().values for client, index in division.parts.items()}
        return Division(parts, division.notes)
