"""RoLoRA: B and A trained in turn (Chen et al., 2025, arXiv:2502.01755)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregators.low_rank_sums import (
    FACTORS_FORBID,
    PLAIN_FORBIDS,
    TURNS_FORBID,
    gather_products,
)
from fedpeft.core.facts import Fact
from fedpeft.core.types import ClientId, State, Tensors, Update
from fedpeft.core.views import View


@dataclass(frozen=True)
class RoLoRA:
    """In rounds 1, 3, ... clients train B with one A for all, in rounds 2, 4, ... A with one B.
    Since Σ p·B_k·A is (Σ p·B_k)·A, the mean of what is trained is exact; only that goes up.

    Lower ranks are filled up with zeros, which is exact too.

    Raises:
      ValueError: no update, or a weight that is not positive.
    """

    plain: ClassVar[bool] = True
    offers: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.FACTORS, Fact.MIXED_RANKS_MERGED, Fact.AS_THEY_ARE, Fact.TURNS}
    )
    forbids: ClassVar[Mapping[Fact, str]] = {**FACTORS_FORBID, **PLAIN_FORBIDS, **TURNS_FORBID}
    turns: ClassVar[tuple[str, ...]] = ("A", "B")  # the factors that stand still, in turn

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        return gather_products(updates, state, received).change({})

    def view(self, client: ClientId, round: int, clients: Sequence[ClientId]) -> View:
        """All receive both factors, and send back the one that is trained in this round."""
        still = self.turns[round % len(self.turns)]
        return View(trains=((f"!*.lora_{still}.*",),))
