"""LoRA-FAIR: averaged factors, and a correction of B that the server computes (Bian et al., 2025,
arXiv:2411.14961)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregators.low_rank_sums import FACTORS_FORBID, PLAIN_FORBIDS, gather_products
from fedpeft.core.facts import Fact
from fedpeft.core.low_rank import Product
from fedpeft.core.types import ClientId, State, Tensors, Update


@dataclass(frozen=True)
class LoRAFair:
    """A ← Ā and B ← B̄ + D, for the means Ā and B̄ and M = Σ p·B_k·A_k, where D is the least of
    ‖M − (B̄ + D)·Ā‖² + λ'·‖D‖², which is D = (M − B̄·Ā)·Āᵀ·(Ā·Āᵀ + λ'·I)⁻¹ with
    λ' = λ·tr(Ā·Āᵀ)/r.

    The paper looks for D by gradient steps on a cosine similarity; its code was not to be had. This
    closed form, in squares, was derived here. M is never written out. Lower ranks are filled up
    with zeros.

    Attributes:
      ridge: λ. At 0, D is the least of all corrections that come as near to M as one of B can.

    Raises:
      ValueError: `ridge` is negative or not finite; no update, or a weight that is not positive.
    """

    ridge: float = 0.01
    plain: ClassVar[bool] = True
    offers: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.FACTORS, Fact.MIXED_RANKS_MERGED, Fact.AS_THEY_ARE}
    )
    forbids: ClassVar[Mapping[Fact, str]] = {**FACTORS_FORBID, **PLAIN_FORBIDS}

    def __post_init__(self) -> None:
        if not 0 <= self.ridge < float("inf"):
            raise ValueError(f"ridge must be 0 or positive, and finite, got {self.ridge}")

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        came = gather_products(updates, state, received)
        to: dict[str, Tensor] = {}
        for layer, product in came.products.items():
            a, b = (
                (state.params[n] + came.mean.delta[n]).double()
                if n in came.mean.delta
                else state.params[n].double()
                for n in came.factors(layer)
            )
            to[came.factors(layer)[1]] = b + self._correction(product, b, a)
        return came.change(to)

    def _correction(self, product: Product, b: Tensor, a: Tensor) -> Tensor:
        """D (out, r) for B̄ (out, r) and Ā (r, in)."""
        missed = product.plus(b, a, -1.0)
        gram = a @ a.T
        ridge = self.ridge * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype)
        # rows of Ā that no client has are zero: the pseudo-inverse leaves their columns of B alone
        inverse: Tensor = torch.linalg.pinv(gram + ridge, hermitian=True)
        correction: Tensor = missed.left @ (missed.right @ a.T) @ inverse
        return correction
