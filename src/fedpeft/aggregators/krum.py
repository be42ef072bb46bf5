"""Krum (Blanchard et al., 2017, arXiv:1703.02757)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregators.distances import check_share, rank_by_krum
from fedpeft.aggregators.reduce import collect_updates, reduce_cohort
from fedpeft.core.facts import Fact
from fedpeft.core.types import ClientId, State, Tensors, Update


@dataclass(frozen=True)
class Krum:
    """The one update with the smallest Σ ‖Δᵢ − Δⱼ‖² over its n − f − 2 nearest, as it is.

    Every client counts once: a weight is a claim, and this aggregator does not trust claims. It
    holds the whole cohort in memory. With clients whose data differ it follows one of them alone,
    whom it often takes again.

    Attributes:
      attackers: the share of the cohort that may be hostile, rounded up to f clients where 2f + 2 <
        n allows it.

    Raises:
      ValueError: `attackers` is not in [0, 0.5), or no update arrived.
    """

    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.COMPARES})

    attackers: float = 0.2

    def __post_init__(self) -> None:
        check_share(self.attackers)

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        cohort = collect_updates(updates)
        best = rank_by_krum(cohort, self.attackers)[0]
        return reduce_cohort(cohort, lambda stacked: stacked[best])
