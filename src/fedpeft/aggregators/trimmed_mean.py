"""The coordinate-wise trimmed mean (Yin et al., 2018, arXiv:1803.01498, Definition 2)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

from torch import Tensor

from fedpeft.aggregators.reduce import collect_updates, reduce_cohort
from fedpeft.core.facts import Fact
from fedpeft.core.types import ClientId, State, Tensors, Update


@dataclass(frozen=True)
class TrimmedMean:
    """The mean of each coordinate without the `trim` share of its largest and of its smallest
    values.

    Every client counts once: a weight is a claim, and this aggregator does not trust claims. It
    holds the whole cohort in memory.

    Attributes:
      trim: the share dropped at each end, rounded up to whole clients, so that in a small cohort
        too the extremes go; at least one value, of an even number two, are kept.

    Raises:
      ValueError: `trim` is not in [0, 0.5), or no update arrived.
    """

    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.COMPARES})

    trim: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.trim < 0.5:
            raise ValueError(f"trim must be in [0, 0.5), got {self.trim}")

    def dropped(self, clients: int) -> int:
        """How many values go at each end."""
        # the small number: 0.07 * 100 is a little more than 7 in floating point
        return min(ceil(self.trim * clients - 1e-9), (clients - 1) // 2)

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        return reduce_cohort(collect_updates(updates), self._kept_mean)

    def _kept_mean(self, stacked: Tensor) -> Tensor:
        cut = self.dropped(len(stacked))
        return stacked.sort(dim=0).values[cut : len(stacked) - cut].mean(dim=0)
