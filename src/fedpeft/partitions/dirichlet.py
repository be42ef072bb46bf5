"""Label skew: each class is divided over the clients by a draw of Dirichlet(alpha) (Hsu et al.,
arXiv:1909.06335).

With the balance rule of FedPEFT (arXiv:2210.01708, code): a client that already holds n / N
examples or more gets no share of further classes. A division is drawn again while a client has
fewer than `min_per_client` examples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.core.seeds import seed_torch
from fedpeft.core.types import Division, Table
from fedpeft.errors import DataError
from fedpeft.partitions.labels import labels_of
from fedpeft.partitions.naming import by_owner
from fedpeft.partitions.shares import check_share


@dataclass(frozen=True)
class Dirichlet:
    """`clients` clients; the smaller alpha, the fewer classes each of them sees. Notes `draws` and
    `moved`.

    Attributes:
      clients: how many.
      alpha: of the distribution; below 1 most of a class goes to few clients.
      min_per_client: examples that each client has at least.
      tries: how many divisions are drawn before examples are moved.
      repair: after that, whether as few examples as will do are moved, in the division that lacks
        the fewest, from the largest clients to those that lack some; if not, it is an error.
      held_out: the share of its examples that each client holds out, to be measured on; left out:
        none.

    Raises:
      ValueError: a value out of range.
      DataError: no valid division, with `repair = false`, or fewer examples than the clients need.
    """

    clients: int = 32
    alpha: float = 0.3
    min_per_client: int = 10
    tries: int = 100
    repair: bool = True
    held_out: float | None = None

    def __post_init__(self) -> None:
        check_share(self.held_out)
        if self.clients < 1 or self.min_per_client < 1 or self.tries < 1:
            raise ValueError("clients, min_per_client and tries must be at least 1")
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha must be positive and finite, got {self.alpha}")

    def split(self, table: Table, generator: torch.Generator) -> Division:
        labels = labels_of(table, "dirichlet")
        if len(labels) < self.clients * self.min_per_client:
            need = f"{self.clients} clients x {self.min_per_client} examples (min_per_client)"
            raise DataError(f"{len(labels)} training examples are too few for {need}")
        counts, draws = self._valid_counts(torch.unique(labels, return_counts=True)[1], generator)
        if (lacking := self._lacking(counts)) and not self.repair:
            raise DataError(
                f"in {self.tries} draws of Dirichlet({self.alpha}) some client always had fewer "
                f"than {self.min_per_client} examples ({lacking} are missing at best): "
                "raise alpha, lower min_per_client or clients, or set repair = true to move "
                f"{lacking} examples"
            )
        # The examples of each class in random order, class by class; so many of them to the first
        # client, and so on.
        order = torch.randperm(len(labels), generator=generator)
        order = order[labels[order].sort(stable=True).indices]
        owner = torch.empty_like(labels)
        owner[order] = (
            torch.arange(self.clients).repeat(len(counts)).repeat_interleave(counts.flatten())
        )
        moved = self._repair(owner, generator) if lacking else 0
        return Division(by_owner(owner, self.clients), {"draws": draws, "moved": moved})

    def _valid_counts(self, sizes: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        """The first division in which nobody lacks anything, else the one that lacks the least; and
        the draws taken."""
        best = self._counts(sizes, generator)
        for draws in range(1, self.tries):
            if self._lacking(best) == 0:
                return best, draws
            best = min(best, self._counts(sizes, generator), key=self._lacking)
        return best, self.tries

    def _counts(self, sizes: Tensor, generator: torch.Generator) -> Tensor:
        """Examples by class and client, int64 (classes, clients), for classes of `sizes` examples
        (classes,)."""
        weights = _log_gammas(self.alpha, (len(sizes), self.clients), generator)
        share = int(sizes.sum()) / self.clients
        held = torch.zeros(self.clients, dtype=torch.int64)
        counts = torch.empty_like(weights, dtype=torch.int64)
        for k, size in enumerate(sizes.tolist()):
            part = weights[k].masked_fill(held >= share, -torch.inf).softmax(0)
            ends = (part.cumsum(0) * size).round().long()
            ends[-1] = size
            counts[k] = ends.diff(prepend=ends.new_zeros(1))
            held += counts[k]
        return counts

    def _lacking(self, counts: Tensor) -> int:
        return int((self.min_per_client - counts.sum(0)).clamp(min=0).sum())

    def _repair(self, owner: Tensor, generator: torch.Generator) -> int:
        """Give examples of the largest clients to those that lack some, in place; how many."""
        sizes, moved = torch.bincount(owner, minlength=self.clients), 0
        for poor in (sizes < self.min_per_client).nonzero()[:, 0].tolist():
            while (need := self.min_per_client - int(sizes[poor])) > 0:
                rich = int(sizes.argmax())
                take = min(need, int(sizes[rich]) - self.min_per_client)
                held = (owner == rich).nonzero()[:, 0]
                owner[held[torch.randperm(len(held), generator=generator)[:take]]] = poor
                sizes[rich], sizes[poor], moved = (
                    sizes[rich] - take,
                    sizes[poor] + take,
                    moved + take,
                )
        return moved


def _log_gammas(alpha: float, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Logarithms of draws of Gamma(alpha), float64; the softmax of a row is a draw of
    Dirichlet(alpha, ..., alpha).

    Gamma(a) is drawn as Gamma(a + 1) * U^(1/a), in logarithms, since for small alpha the numbers
    underflow.
    """
    with seed_torch(int(torch.randint(1 << 62, (1,), generator=generator))):
        one = torch.ones((), dtype=torch.float64)
        gamma = torch.distributions.Gamma(one * (alpha + 1), one).sample(torch.Size(shape))
    return gamma.log() + torch.rand(shape, generator=generator, dtype=torch.float64).log() / alpha
