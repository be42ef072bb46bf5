"""Multi-Krum (Blanchard et al., 2017, arXiv:1703.02757, section 4)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregators.distances import borne, check_share, rank_by_krum
from fedpeft.aggregators.reduce import collect_updates, reduce_cohort
from fedpeft.core.facts import Fact
from fedpeft.core.types import ClientId, State, Tensors, Update


@dataclass(frozen=True)
class MultiKrum:
    """The mean of the n − f updates with the smallest Σ ‖Δᵢ − Δⱼ‖² over their n − f − 2 nearest.

    Every client counts once: a weight is a claim, and this aggregator does not trust claims. It
    holds the whole cohort in memory.

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
        kept = sorted(
            rank_by_krum(cohort, self.attackers)[: len(cohort) - borne(self.attackers, len(cohort))]
        )
        return reduce_cohort(cohort, lambda stacked: stacked[kept].mean(dim=0))
