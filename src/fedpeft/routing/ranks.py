"""LoRA of another rank for each client, dealt out in turn along the list of all clients."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.core.types import ClientId
from fedpeft.core.views import View


@dataclass(frozen=True)
class Ranks:
    """Client k of the list has rank `ranks[k mod len(ranks)]`: the first rows of A, the first
    columns of B.

    Attributes:
      ranks: each from 1 to the method's rank.

    Raises:
      ValueError: there are none, or one is below 1.
    """

    ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.ranks or min(self.ranks) < 1:
            raise ValueError(f"ranks must be numbers from 1 on, got {list(self.ranks)}")

    def view(self, client: ClientId, round: int, clients: Sequence[ClientId]) -> View:
        """Raises ValueError for a client that is not in the list."""
        place = list(clients).index(client)
        return View(rank=self.ranks[place % len(self.ranks)])
