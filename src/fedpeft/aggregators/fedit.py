"""FedIT: A and B averaged each for itself (Zhang et al., 2024, arXiv:2305.05644)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregators.low_rank_sums import (
    FACTORS_FORBID,
    gather_products,
)
from fedpeft.core.facts import Fact
from fedpeft.core.types import ClientId, State, Tensors, Update


@dataclass(frozen=True)
class FedIT:
    """A ← Σ p·A_k and B ← Σ p·B_k, which is not Σ p·B_k·A_k: the error says how far from it.

    Of one rank this is the weighted mean to the bit. Lower ranks are filled up with zeros.

    Raises:
      ValueError: no update, or a weight that is not positive.
    """

    plain: ClassVar[bool] = False
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.FACTORS, Fact.MIXED_RANKS_MERGED})
    forbids: ClassVar[Mapping[Fact, str]] = FACTORS_FORBID

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        return gather_products(updates, state, received).change({})
