"""Codecs that keep fewer entries of some clients (FLASC with heterogeneous densities; Kuo et al.,
2024, arXiv:2406.05233, section 4.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.core.facts import Fact
from fedpeft.core.types import ClientId
from fedpeft.core.views import View


@dataclass(frozen=True)
class Tiers:
    """Client k of the list has `budgets[k mod len(budgets)]` of the entries that the codecs keep,
    in both directions.

    With `uplink = { name = "topk", density = 0.25 }` and budgets of 1 and 1/4 every other client
    sends a sixteenth.

    Attributes:
      budgets: each above 0 and at most 1.

    Raises:
      ValueError: there are none, or one is out of range.
    """

    budgets: tuple[float, ...]
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.MIXED_BUDGETS})
    needs: ClassVar[Mapping[Fact, str]] = {
        Fact.SPARSE: "tiers are shares of the entries that a codec keeps, and the plan's codecs "
        'keep all: with tiers set uplink to "topk", "randk" or "ferret", with a density below 1',
    }

    def __post_init__(self) -> None:
        if not self.budgets or not all(0 < share <= 1 for share in self.budgets):
            raise ValueError(f"budgets must be shares in (0, 1], got {list(self.budgets)}")

    def view(self, client: ClientId, round: int, clients: Sequence[ClientId]) -> View:
        """Raises ValueError for a client that is not in the list."""
        place = list(clients).index(client)
        return View(budget=self.budgets[place % len(self.budgets)])
