"""FedEx-LoRA: averaged factors, and what they miss in the frozen weight (Singhal et al., 2025,
arXiv:2410.09432)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregators.low_rank_sums import (
    BASE_FORBIDS,
    FACTORS_FORBID,
    PLAIN_FORBIDS,
    gather_products,
)
from fedpeft.core.facts import Fact
from fedpeft.core.types import ClientId, State, Tensors, Update


@dataclass(frozen=True)
class FedEx:
    """A ← Σ p·A_k, B ← Σ p·B_k and W ← W + (α/r)·(Σ p·B_k·A_k − B·A): exact, and the factors go on.

    The residual has at most the sum of the clients' ranks and r; it goes down to all clients of
    later rounds, as factors or as whole weights, whichever is fewer numbers. Lower ranks are filled
    up with zeros.

    Raises:
      ValueError: no update, or a weight that is not positive.
    """

    plain: ClassVar[bool] = True
    offers: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.FACTORS, Fact.MIXED_RANKS_MERGED, Fact.AS_THEY_ARE, Fact.MERGES_BASE}
    )
    forbids: ClassVar[Mapping[Fact, str]] = {**FACTORS_FORBID, **PLAIN_FORBIDS, **BASE_FORBIDS}
    merges_base: ClassVar[bool] = True

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        came = gather_products(updates, state, received)
        missed = {}
        for layer, product in came.products.items():
            a, b = (state.params[n] + came.mean.delta[n] for n in came.factors(layer))
            missed[layer] = product.plus(b, a, -1.0).reduced()
        return came.change({}, missed)
