"""Examples in memory, cut into clients."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from fedpeft.compute.feature_cache import FEATURES
from fedpeft.core.interfaces import Task
from fedpeft.core.seeds import generator
from fedpeft.core.tensors import bytes_moved, count
from fedpeft.core.types import Batch, ClientId, Tensors
from fedpeft.errors import DataError

EVALUATION_BATCH = 256
STRETCH = 50
"""Batches that are sorted together, as `transformers` has it in its own training loop."""
Parts: TypeAlias = Mapping[ClientId, Tensor]


@dataclass(frozen=True)
class Partitioned:
    """A task's prepared rows and which of them each client holds.

    Attributes:
      train: the rows of all clients, tensors of shape (n, ...).
      test: the held-out rows, common to all.
      parts: by client the indices (k,) into `train`.
      notes: what the partition did beside cutting, counted.
      apart: by client the indices into `train` of examples that it holds out of its training.
      tested: by client the indices of its own examples in `test`.
      device: where rows of bytes, such as pictures, become batches; all else of a batch lies on the
        CPU.
    """

    task: Task
    train: Tensors
    test: Tensors
    parts: Parts
    notes: Mapping[str, int] = field(default_factory=dict)
    device: str = "cpu"
    apart: Parts = field(default_factory=dict)
    tested: Parts = field(default_factory=dict)

    @property
    def clients(self) -> Sequence[ClientId]:
        return list(self.parts)

    def size(self, client: ClientId) -> int:
        return len(self.parts[client])

    def batches(
        self,
        client: ClientId,
        size: int,
        epochs: int,
        generator: torch.Generator,
        by_length: bool = False,
    ) -> Iterator[Batch]:
        """`epochs` passes, each in an order of its own; one batch of a pass may be smaller.

        Raises:
          DataError: `by_length`, and the rows have no length.
        """
        mine = self.parts[client]
        tokens = lengths(self.train, mine) if by_length else None
        for _ in range(epochs):
            order = torch.randperm(len(mine), generator=generator)
            chunks = (
                [order[at : at + size] for at in range(0, len(order), size)]
                if tokens is None
                else alike(order, tokens, size, generator)
            )
            for chunk in chunks:
                yield self._batch(self.train, mine[chunk], generator)

    def chosen(self, client: ClientId, places: Tensor, generator: torch.Generator) -> Batch:
        """A client's rows at these places, counted from 0, as one batch."""
        return self._batch(self.train, self.parts[client][places], generator)

    def training(self, client: ClientId) -> Iterator[Batch]:
        """The rows that a client trains on, in order and without augmentation."""
        yield from self._in_order(self.train, self.parts[client])

    def held_out(self, client: ClientId | None = None) -> Iterator[Batch]:
        """The common held-out rows; of one client its own ones, of which there may be none."""
        if client is None:
            yield from self._in_order(self.test, torch.arange(count(self.test)))
            return
        for rows, parts in ((self.train, self.apart), (self.test, self.tested)):
            if len(parts.get(client, ())):
                yield from self._in_order(rows, parts[client])

    def own_size(self, client: ClientId) -> int:
        """How many held-out examples of its own a client has."""
        return sum(len(parts[client]) for parts in (self.apart, self.tested) if client in parts)

    def _in_order(self, rows: Tensors, index: Tensor) -> Iterator[Batch]:
        for chunk in torch.split(index, EVALUATION_BATCH) if len(index) else ():
            yield self._batch(rows, chunk, None)

    def _batch(self, rows: Tensors, index: Tensor, generator: torch.Generator | None) -> Batch:
        chosen = {name: x[index] for name, x in rows.items()}
        # of what has features, pictures are left unread
        rows = chosen if FEATURES in chosen else bytes_moved(chosen, self.device)
        batch = self.task.batch(rows, generator)
        return {**batch, "mask": torch.ones(len(index))}


def lengths(rows: Tensors, index: Tensor | slice = slice(None)) -> Tensor:
    """The tokens of each of these rows.

    Raises:
      DataError: the rows are no text.
    """
    if "attention_mask" not in rows:
        raise DataError(
            f"only text has a length to group by; these examples have {', '.join(sorted(rows))}"
        )
    return rows["attention_mask"][index].flatten(1).sum(1)


def alike(order: Tensor, tokens: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of texts of about the same length, in a random order. Of `order`, each stretch of
    `STRETCH` batches is sorted by itself, so that two texts of one length do not meet in every
    pass."""
    chunks = [
        chunk
        for stretch in torch.split(order, size * STRETCH)
        for chunk in torch.split(stretch[tokens[stretch].argsort(stable=True)], size)
    ]
    return (chunks[place] for place in torch.randperm(len(chunks), generator=generator).tolist())


def set_apart(
    parts: Parts, share: float, seed: int
) -> tuple[dict[ClientId, Tensor], dict[ClientId, Tensor]]:
    """What each client trains on, and what it sets apart: ⌊share·n⌋ of its n examples, of few
    none."""
    kept, apart = {}, {}
    for client, part in parts.items():
        few = int(share * len(part))
        order = part[torch.randperm(len(part), generator=generator(seed, "apart", client))]
        kept[client] = order[few:].sort().values
        if few:
            apart[client] = order[:few].sort().values
    return kept, apart
