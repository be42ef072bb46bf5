"""TIES merging: small changes dropped, a sign elected, the mean of those who agree (Yadav et al.,
2023, arXiv:2306.01708)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregators.mean import Mean
from fedpeft.aggregators.reduce import back, collect_updates, wide
from fedpeft.compute.trainable import is_statistic
from fedpeft.core.facts import Fact
from fedpeft.core.tensors import map_tensors
from fedpeft.core.types import ClientId, State, Tensors, Update


@dataclass(frozen=True)
class Ties:
    """Each client's largest changes, the share `density` of all its entries as one vector; of each
    entry the sign of Σ p·Δ_k; and λ times the weighted mean over the clients that have this sign.

    An entry that nobody kept, or whose sum is 0, does not move: the reference gives the latter the
    majority's sign, and `peft` a plus. The published rule counts all alike, as `weighting =
    "uniform"` does. Counts and running statistics, which are measured, go to their mean, and so do
    control variates and the like, which travel beside the parameters.

    Attributes:
      density: 1 keeps all changes.
      strength: λ.

    Raises:
      ValueError: a value out of range; no update, names that differ, or a weight that is not
        positive.
    """

    density: float = 0.2
    strength: float = 1.0
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.COMPARES})

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be above 0 and at most 1, got {self.density}")
        if not 0 < self.strength < float("inf"):
            raise ValueError(f"strength must be positive and finite, got {self.strength}")

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        cohort = collect_updates(updates)
        mean = Mean()(cohort, state, received)
        weights = [update.weight for update in cohort]
        kept = [self._keep_largest(update.delta, state.params) for update in cohort]

        def elect(like: Tensor, *each: Tensor) -> Tensor:
            return back(self.strength * mean_of_agreeing(each, weights), like.dtype)

        learned = {name: x for name, x in cohort[0].delta.items() if name in kept[0]}
        return replace(mean, delta={**mean.delta, **map_tensors(elect, learned, *kept)})

    def _keep_largest(self, delta: Tensors, params: Tensors) -> dict[str, Tensor]:
        """What is learned of a change, with zeros for its small entries."""
        learned = {name: wide(x) for name, x in delta.items() if _is_learned(name, x, params)}
        count = sum(x.numel() for x in learned.values())
        if not count or self.density == 1:
            return learned
        sizes = torch.cat([x.abs().flatten() for x in learned.values()])
        least = sizes.kthvalue(count - ceil(self.density * count) + 1).values
        return {name: torch.where(x.abs() >= least, x, 0.0) for name, x in learned.items()}


def _is_learned(name: str, x: Tensor, params: Tensors) -> bool:
    return name in params and x.is_floating_point() and not is_statistic(name)


def mean_of_agreeing(each: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean of each entry over those with the sign of the weighted sum; 0 where the sum
    is."""
    stacked = torch.stack(list(each))
    shape = (-1, *[1] * (stacked.ndim - 1))
    share = torch.tensor(weights, dtype=torch.float64).div(sum(weights)).to(stacked).view(shape)
    sign = (share * stacked).sum(0).sign()
    agree = share * ((stacked.sign() == sign) & (sign != 0))
    total = agree.sum(0)
    return torch.where(total > 0, (agree * stacked).sum(0) / total.clamp_min(1e-30), 0.0)
