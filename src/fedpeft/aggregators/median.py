"""The coordinate-wise median (Yin et al., 2018, arXiv:1803.01498)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedpeft.aggregators.reduce import collect_updates, reduce_cohort
from fedpeft.core.facts import Fact
from fedpeft.core.types import ClientId, State, Tensors, Update


@dataclass(frozen=True)
class Median:
    """The middle value of each coordinate; of an even number of clients, the mean of the two in the
    middle.

    Every client counts once: a weight is a claim, and this aggregator does not trust claims. It
    holds the whole cohort in memory. Two middle values of opposite sign near the end of their type
    overflow; the loop keeps its state then.

    Raises:
      ValueError: no update arrived.
    """

    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.COMPARES})

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        return reduce_cohort(collect_updates(updates), _middle)


def _middle(stacked: Tensor) -> Tensor:
    ordered, count = stacked.sort(dim=0).values, len(stacked)
    low, high = ordered[(count - 1) // 2], ordered[count // 2]
    return low.lerp(high, 0.5)
