"""The geometric median by smoothed Weiszfeld steps (Pillutla et al., 2022: RFA, arXiv:1912.13445,
Algorithm 2)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregators.gathering import gathered, reduced
from fedpeft.core.facts import Fact
from fedpeft.core.tensors import map_tensors
from fedpeft.core.types import ClientId, State, Tensors, Update

CLOSE = 1e-9
"""Of the usual distance: a step shorter than this is the last."""


@dataclass(frozen=True)
class GeometricMedian:
    """argmin_z Σ ‖Δᵢ − z‖, all entries as one vector: z ← Σ βᵢΔᵢ / Σ βᵢ with βᵢ = 1 / max(ν, ‖Δᵢ −
    z‖), in float64.

    It begins at the coordinate-wise median. Every client counts once: a weight is a claim, and this
    aggregator does not trust claims. It holds the whole cohort in memory, as float64 while it
    computes.

    Attributes:
      steps: at most; the paper finds three or four enough.
      smoothing: ν, in usual distances from where it begins.

    Raises:
      ValueError: a value out of range, or no update arrived.
    """

    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.COMPARES})

    steps: int = 32
    smoothing: float = 1e-6

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.smoothing < 1:
            raise ValueError(
                f"steps must be at least 1 and smoothing in (0, 1), got {self.steps}, "
                f"{self.smoothing}"
            )

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        cohort = gathered(updates)
        shares = self._shares(cohort)
        return reduced(
            cohort,
            lambda stacked: torch.tensordot(shares, stacked.double(), dims=1).to(stacked.dtype),
        )

    def _shares(self, cohort: Sequence[Update]) -> Tensor:
        """What each counts in the mean that is the median, (n,) float64."""
        stacks = map_tensors(
            lambda *each: torch.stack(each).double(), *(update.delta for update in cohort)
        )
        if not stacks:  # nothing travels
            return torch.full((len(cohort),), 1 / len(cohort), dtype=torch.float64)
        at: Tensors = {name: x.median(dim=0).values for name, x in stacks.items()}
        distances = _distances(stacks, at)
        usual = float(distances.median())
        if not usual:  # where half of them lie, the sum is least
            return (distances == 0).double() / (distances == 0).sum()
        for _ in range(self.steps):
            closeness = 1 / distances.clamp_min(self.smoothing * usual)
            shares = closeness / closeness.sum()
            before, at = (
                at,
                {name: torch.tensordot(shares, x, dims=1) for name, x in stacks.items()},
            )
            distances = _distances(stacks, at)
            if (
                float(_distances({name: x[None] for name, x in before.items()}, at))
                <= CLOSE * usual
            ):
                break
        return shares


def _distances(stacks: Tensors, at: Tensors) -> Tensor:
    """Of each of n vectors from one, (n,)."""
    every = [(x - at[name]).reshape(len(x), -1).square().sum(1) for name, x in stacks.items()]
    return torch.stack(every).sum(0).sqrt()
