"""FlexLoRA: the mean product, cut to rank by its singular values (Bai et al., 2024,
arXiv:2402.11505)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregators.low_rank_sums import (
    FACTORS_FORBID,
    PLAIN_FORBIDS,
    gather_products,
)
from fedpeft.core.facts import Fact
from fedpeft.core.types import ClientId, State, Tensors, Update


@dataclass(frozen=True)
class FlexLoRA:
    """U·diag(s)·Vᵀ = Σ p·B_k·A_k; B ← U·diag(s) and A ← Vᵀ, of the r largest s: the nearest product
    of rank r, of which a client of rank k gets the nearest of rank k.

    What is decomposed is the product of the stacks' triangular factors; the mean itself is never
    written out. Where it has fewer than r directions, the further rows of A stay, with zeros in B,
    so that they still learn.

    Raises:
      ValueError: no update, or a weight that is not positive.
    """

    plain: ClassVar[bool] = True
    offers: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.FACTORS, Fact.MIXED_RANKS_MERGED, Fact.AS_THEY_ARE, Fact.ORDERED}
    )
    forbids: ClassVar[Mapping[Fact, str]] = {**FACTORS_FORBID, **PLAIN_FORBIDS}

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        came = gather_products(updates, state, received)
        to: dict[str, Tensor] = {}
        for layer, product in came.products.items():
            a, b = came.factors(layer)
            u, s, vt = product.svd()
            k = min(len(state.params[a]), len(s))
            to[a] = torch.cat([vt[:k], state.params[a][k:].double()])
            to[b] = torch.zeros_like(state.params[b], dtype=torch.float64)
            to[b][:, :k] = u[:, :k] * s[:k]
        return came.change(to)
