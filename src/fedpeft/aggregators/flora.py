"""FLoRA: factors stacked and merged into the base (Wang et al., 2024, arXiv:2409.05976)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregators.low_rank_sums import (
    BASE_FORBIDS,
    FACTORS_FORBID,
    PLAIN_FORBIDS,
    gather_products,
)
from fedpeft.core.facts import Fact
from fedpeft.core.seeds import generator
from fedpeft.core.types import ClientId, State, Tensors, Update


@dataclass(frozen=True)
class FLoRA:
    """W ← W + (α/r)·λ·[p₁·B₁ ... pₘ·Bₘ]·[A₁; ...; Aₘ], which is the mean of the products for any
    ranks; A and B begin again in each round, A uniformly in ±1/√in as `peft` does, B at zero.

    What was merged goes down to all clients of later rounds: stacked, or as whole weights once
    these are fewer numbers. What is trained beside the factors goes to its mean.

    Attributes:
      strength: λ.
      seed: where new A's come from, the same in all runs.

    Raises:
      ValueError: `strength` is not positive and finite; no update, or a weight that is not
        positive.
    """

    strength: float = 1.0
    seed: int = 0
    plain: ClassVar[bool] = True
    offers: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.FACTORS, Fact.MIXED_RANKS_MERGED, Fact.AS_THEY_ARE, Fact.MERGES_BASE}
    )
    forbids: ClassVar[Mapping[Fact, str]] = {**FACTORS_FORBID, **PLAIN_FORBIDS, **BASE_FORBIDS}
    merges_base: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.strength < float("inf"):
            raise ValueError(f"strength must be positive and finite, got {self.strength}")

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        came = gather_products(updates, state, received)
        begun: dict[str, Tensor] = {}
        for layer in came.products:
            a, b = came.factors(layer)
            begun[a] = self._fresh(state.params[a], layer, state.round)
            begun[b] = torch.zeros_like(state.params[b])
        return came.change(
            begun, {layer: each.times(self.strength) for layer, each in came.products.items()}
        )

    def _fresh(self, like: Tensor, layer: str, round: int) -> Tensor:
        draws = generator(self.seed, "flora", round, layer)
        return (torch.rand(like.shape, generator=draws) * 2 - 1) / sqrt(like.shape[1])
