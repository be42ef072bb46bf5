"""LoRA of another rank for each client, assigned in turn along the list of all clients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fedpeft.core.facts import Fact
from fedpeft.core.types import ClientId
from fedpeft.core.views import View
from fedpeft.errors import PlanError


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
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.MIXED_RANKS})
    needs: ClassVar[Mapping[Fact, str]] = {
        Fact.MIXED_RANKS_MERGED: "{aggregator} takes tensors of one shape: with ranks set "
        'aggregator to one that knows low-rank factors, such as "fedit", "flora", "fedex", '
        '"flexlora" or "hetlora"',
    }
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.HANDS_OVER: "local.as_published hands momentum from client to client, which ranks "
        "make unlike: choose one",
    }

    def __post_init__(self) -> None:
        if not self.ranks or min(self.ranks) < 1:
            raise ValueError(f"ranks must be numbers from 1 on, got {list(self.ranks)}")

    def view(self, client: ClientId, round: int, clients: Sequence[ClientId]) -> View:
        """Raises ValueError for a client that is not in the list."""
        place = list(clients).index(client)
        return View(rank=self.ranks[place % len(self.ranks)])

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError for ranks that the method does not have."""
        most = getattr(plan.method, "rank", None)
        if most is None:
            raise PlanError(
                f"ranks = {list(self.ranks)}: {type(plan.method).__name__} has no rank; LoRA and "
                "its variants have"
            )
        if max(self.ranks) > most:
            raise PlanError(
                f"ranks = {list(self.ranks)}: each must be from 1 to method.rank = {most}"
            )
