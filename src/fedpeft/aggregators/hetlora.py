"""HetLoRA: ranks filled up with zeros, clients weighted by what they learnt (Cho et al., 2024,
arXiv:2401.06432)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregators.low_rank_sums import (
    FACTORS_FORBID,
    gather_products,
    product,
)
from fedpeft.core.facts import Fact
from fedpeft.core.low_rank import Product, pairs
from fedpeft.core.types import ClientId, State, Tensors, Update


@dataclass(frozen=True)
class HetLoRA:
    """A ← Σ p·A_k and B ← Σ p·B_k with zeros for the rows and columns that a client has not, and p
    in proportion to ‖B_k·A_k‖, over all layers, rather than to the plan's weights. Its error is
    against the mean product by the plan's weights, as that of all aggregators.

    The paper's pruning of ranks in training is not here.

    Raises:
      ValueError: no update, or a weight that is not positive.
    """

    plain: ClassVar[bool] = False
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.FACTORS, Fact.MIXED_RANKS_MERGED})
    forbids: ClassVar[Mapping[Fact, str]] = FACTORS_FORBID

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        names = pairs(state.params)

        def learnt(update: Update) -> float:
            each = [product(update, received, a, b) for a, b in names.values()]
            squares = (Product((b.double(),), (a.double(),)).norm() ** 2 for b, a in each)
            # the least number: one who learnt nothing counts for nothing, unless nobody learnt
            return max(sum(squares) ** 0.5, 1e-30) if names else update.weight

        return gather_products(updates, state, received, learnt).change({})
