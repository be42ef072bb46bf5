"""Label skew: each class is divided over the clients by a draw of Dirichlet(alpha) (Hsu et al., 2019, arXiv:1909.06335).

With the balance rule of FedPEFT (arXiv:2210.01708, code): a client that already holds n / N examples or more gets no
share of further classes. A division is drawn anew while a client has fewer than `min_per_client` examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.core.types import ClientId, Table
from fedpeft.errors import DataError
from fedpeft.partitions.naming import client_names


@dataclass(frozen=True)
class Dirichlet:
    """`clients` clients; the smaller alpha, the fewer classes each of them sees.

    Attributes:
      tries: how many divisions are drawn before examples are moved.
      repair: after that, whether the fewest examples are moved from the largest clients to those that lack some; if
        not, it is an error.

    Raises:
      ValueError: a value out of range.
      DataError: no valid division, with `repair = false`, or fewer examples than the clients need.
    """

    clients: int = 32
    alpha: float = 0.3
    min_per_client: int = 10
    tries: int = 100
    repair: bool = True

    def __post_init__(self) -> None:
        if self.clients < 1 or self.min_per_client < 1 or self.tries < 1:
            raise ValueError("clients, min_per_client and tries must be at least 1")
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha must be positive and finite, got {self.alpha}")

    def split(self, table: Table, generator: torch.Generator) -> Mapping[ClientId, Tensor]:
        labels = table.columns["label"]
        if len(labels) < self.clients * self.min_per_client:
            need = f"{self.clients} clients x {self.min_per_client} examples (min_per_client)"
            raise DataError(f"{len(labels)} training examples are too few for {need}")
        best = self._draw(labels, generator)
        for _ in range(self.tries - 1):
            if self._lacking(best) == 0:
                break
            best = min(best, self._draw(labels, generator), key=self._lacking)
        if (lacking := self._lacking(best)) and not self.repair:
            raise DataError(
                f"in {self.tries} draws of Dirichlet({self.alpha}) some client always had fewer than "
                f"{self.min_per_client} examples ({lacking} are missing at best): raise alpha, lower min_per_client "
                f"or clients, or set repair = true to move {lacking} examples"
            )
        return dict(zip(client_names(self.clients), self._repaired(best, generator), strict=True))

    def _draw(self, labels: Tensor, generator: torch.Generator) -> list[Tensor]:
        share = len(labels) / self.clients
        parts: list[list[Tensor]] = [[] for _ in range(self.clients)]
        held = torch.zeros(self.clients)
        for label in labels.unique():
            index = (labels == label).nonzero()[:, 0]
            index = index[torch.randperm(len(index), generator=generator)]
            part = _dirichlet(self.alpha, self.clients, generator) * (held < share)
            if part.sum() == 0:
                part = (held < share).double()
            ends = (part.cumsum(0) / part.sum() * len(index)).round().long()
            ends[-1] = len(index)
            for k, piece in enumerate(index.tensor_split(ends[:-1])):
                parts[k].append(piece)
                held[k] += len(piece)
        return [torch.cat(pieces).sort().values for pieces in parts]

    def _lacking(self, parts: list[Tensor]) -> int:
        return sum(max(0, self.min_per_client - len(part)) for part in parts)

    def _repaired(self, parts: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        parts = list(parts)
        for poor, part in enumerate(parts):
            while len(parts[poor]) < self.min_per_client:
                rich = max(range(self.clients), key=lambda k: len(parts[k]))
                order = torch.randperm(len(parts[rich]), generator=generator)
                spare = min(self.min_per_client - len(parts[poor]), len(parts[rich]) - self.min_per_client)
                take, keep = parts[rich][order].tensor_split([max(1, spare)])
                parts[poor] = torch.cat([parts[poor], take]).sort().values
                parts[rich] = keep.sort().values
        return parts


def _dirichlet(alpha: float, size: int, generator: torch.Generator) -> Tensor:
    """One draw of Dirichlet(alpha, ..., alpha), in float64, shape (size,).

    Gamma(a) is drawn as Gamma(a + 1) * U^(1/a), in logarithms, since for small alpha the numbers underflow.
    """
    root = generator.initial_seed() ^ int(torch.randint(1 << 62, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(root)
        gamma = torch.distributions.Gamma(torch.full((size,), alpha + 1.0).double(), torch.ones(size).double()).sample()
    uniform = torch.rand(size, generator=generator, dtype=torch.float64)
    return torch.softmax(gamma.log() + uniform.log() / alpha, 0)
