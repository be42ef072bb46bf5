"""The geometric median by Weiszfeld's steps, which leave an update that they meet as Vardi and
Zhang's do (2000, https://doi.org/10.1073/pnas.97.4.1423); for federations Pillutla et al. (2022:
RFA, arXiv:1912.13445)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregators.reduce import collect_updates, reduce_cohort
from fedpeft.core.facts import Fact
from fedpeft.core.tensors import map_tensors
from fedpeft.core.types import ClientId, State, Tensors, Update

CLOSE = 1e-9
"""Of the usual distance: what is nearer than this lies in the same place."""


@dataclass(frozen=True)
class GeometricMedian:
    """argmin_z Σ ‖Δᵢ − z‖, all entries as one vector: z ← Σ βᵢΔᵢ / Σ βᵢ with βᵢ = 1 / ‖Δᵢ − z‖, in
    float64.

    It begins at the coordinate-wise median. It ends where the others pull so weakly that the sum of
    distances is within `tolerance` of the least, or at an update that the others do not pull away.
    Every client counts once: a weight is a claim, and this aggregator does not trust claims. It
    holds the whole cohort in memory, as float64 while it computes.

    Attributes:
      steps: at most; some tens are usual.
      tolerance: how far the sum of distances may be above the least, as a share of it.

    Raises:
      ValueError: a value out of range, or no update arrived.
    """

    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.COMPARES})

    steps: int = 1000
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.tolerance < 1:
            raise ValueError(
                f"steps must be at least 1 and tolerance in (0, 1), got {self.steps}, "
                f"{self.tolerance}"
            )

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        cohort = collect_updates(updates)
        shares = self._shares(cohort)
        return reduce_cohort(
            cohort,
            lambda stacked: torch.tensordot(shares, stacked.double(), dims=1).to(stacked.dtype),
        )

    def _shares(self, cohort: Sequence[Update]) -> Tensor:
        """What each counts in the mean that is the median, (n,) float64."""
        stacks = map_tensors(_around_the_middle, *(update.delta for update in cohort))
        if not stacks:  # nothing travels
            return torch.full((len(cohort),), 1 / len(cohort), dtype=torch.float64)
        at: Tensors = {name: torch.zeros_like(x[0]) for name, x in stacks.items()}
        distances = _distances(stacks, at)
        usual = float(distances.median())
        if not usual:  # where half of them lie, the sum is least
            return (distances == 0).double() / (distances == 0).sum()
        tried: set[int] = set()
        for _ in range(self.steps):
            nearest = int(_distances(stacks, at).argmin())
            if nearest not in tried:  # steps towards an update grow ever shorter: is it the median?
                tried.add(nearest)
                there = {name: x[nearest] for name, x in stacks.items()}
                shares, pull = _step(stacks, there, CLOSE * usual)
                if pull < -CLOSE:
                    return shares
            shares, pull = _step(stacks, at, CLOSE * usual)
            at = {name: torch.tensordot(shares, x, dims=1) for name, x in stacks.items()}
            # the sum is convex, and the median no farther than two mean distances
            if 2 * pull <= self.tolerance * len(cohort):
                break
        return shares


def _around_the_middle(*each: Tensor) -> Tensor:
    """(n, *shape) float64 without the coordinate-wise median: close to it small numbers count."""
    stacked = torch.stack(each).double()
    return stacked - stacked.median(dim=0).values


def _step(stacks: Tensors, at: Tensors, close: float) -> tuple[Tensor, float]:
    """What each counts in the next place, and how strongly the updates pull there.

    Each update pulls with the strength 1; those that lie here hold with as much.
    """
    distances = _distances(stacks, at)
    here = (distances <= close).double()
    closeness = torch.where(distances <= close, 0.0, 1 / distances)
    pulls = [
        torch.tensordot(closeness, x, dims=1) - at[name] * closeness.sum()
        for name, x in stacks.items()
    ]
    pull = float(torch.stack([x.square().sum() for x in pulls]).sum().sqrt())
    holding = float(here.sum())
    shares = closeness / closeness.sum()
    if holding:
        stay = min(1.0, holding / pull) if pull else 1.0
        shares = shares * (1 - stay) + here / holding * stay
    return shares, pull - holding


def _distances(stacks: Tensors, at: Tensors) -> Tensor:
    """Of each of n vectors from one, (n,)."""
    every = [(x - at[name]).reshape(len(x), -1).square().sum(1) for name, x in stacks.items()]
    return torch.stack(every).sum(0).sqrt()
