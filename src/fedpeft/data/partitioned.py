"""Examples in memory, cut into clients."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedpeft.core.interfaces import Task
from fedpeft.core.tensors import count
from fedpeft.core.types import Batch, ClientId, Tensors

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Partitioned:
    """A task's prepared rows and which of them each client holds.

    Attributes:
      train: the rows of all clients, tensors of shape (n, ...).
      test: the held-out rows, common to all.
      parts: by client the indices (k,) into `train`.
      notes: what the partition did beside cutting, counted.
    """

    task: Task
    train: Tensors
    test: Tensors
    parts: Mapping[ClientId, Tensor]
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def clients(self) -> Sequence[ClientId]:
        return list(self.parts)

    def size(self, client: ClientId) -> int:
        return len(self.parts[client])

    def batches(self, client: ClientId, size: int, epochs: int, generator: torch.Generator) -> Iterator[Batch]:
        """`epochs` passes, each in an order of its own; the last batch of a pass may be smaller."""
        mine = self.parts[client]
        for _ in range(epochs):
            for chunk in torch.split(mine[torch.randperm(len(mine), generator=generator)], size):
                yield self._batch(self.train, chunk, generator)

    def chosen(self, client: ClientId, places: Tensor, generator: torch.Generator) -> Batch:
        """A client's rows at these places, counted from 0, as one batch."""
        return self._batch(self.train, self.parts[client][places], generator)

    def held_out(self, client: ClientId | None = None) -> Iterator[Batch]:
        """The common held-out rows; of one client, its own training rows without augmentation."""
        rows, index = (self.test, None) if client is None else (self.train, self.parts[client])
        index = torch.arange(count(rows)) if index is None else index
        for chunk in torch.split(index, EVALUATION_BATCH):
            yield self._batch(rows, chunk, None)

    def _batch(self, rows: Tensors, index: Tensor, generator: torch.Generator | None) -> Batch:
        batch = self.task.batch({name: x[index] for name, x in rows.items()}, generator)
        return {**batch, "mask": torch.ones(len(index))}
