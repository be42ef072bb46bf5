"""FedASK: B is trained on a frozen A, and the mean product is split again (Wen et al., 2025,
arXiv:2507.09990)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregators.low_rank_sums import FACTORS_FORBID, PLAIN_FORBIDS, gather_products
from fedpeft.core.facts import Fact
from fedpeft.core.types import ClientId, State, Tensors, Update
from fedpeft.core.views import View

NULL = 1e-6
"""A singular value below this share of the largest one is none: float32 cannot tell it from 0."""


@dataclass(frozen=True)
class FedASK:
    """In each round clients train B with one A for all, and only B goes up. The server splits the
    mean product evenly, B̄·A = U·S·Vᵀ, B ← U·√S and A ← √S·Vᵀ: so A learns, though nobody trains
    it.

    Since Σ p·B_k·A is (Σ p·B_k)·A, the product is exact. The mean of the B's is all that the server
    needs, so a secure sum will do, and noise on B is not multiplied with noise on A. The published
    code sends two random sketches of the product instead; with A still, B̄·A has rank r already and
    needs none (derived here). Directions in which the product is nothing keep a row of length 1 in
    A and a zero column in B, so that they still learn; the largest entry of each row of A is
    positive. Lower ranks are filled up with zeros, which is exact too.

    Raises:
      ValueError: no update, or a weight that is not positive.
    """

    plain: ClassVar[bool] = True
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.MIXED_RANKS_MERGED, Fact.AS_THEY_ARE})
    forbids: ClassVar[Mapping[Fact, str]] = {
        **FACTORS_FORBID,
        **PLAIN_FORBIDS,
        Fact.REMEMBERS: "{one} turns the columns of B after each round, so that what a client "
        "remembers of them no longer fits, and {other} remembers: leave out error feedback, or "
        "restart_schedule = false",
    }
    turns: ClassVar[tuple[str, ...]] = ("A",)  # the factor that stands still

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        # of a sum of clients nobody says what each had received; all had the same
        came = gather_products(updates, state, lambda client: received(client) or state.params)
        to: dict[str, Tensor] = {}
        for layer, product in came.products.items():
            a, b = came.factors(layer)
            u, s, vt = product.svd()
            to[a], to[b] = split_evenly(u, s, vt, state.params[a])
        return came.change(to)

    def view(self, client: ClientId, round: int, clients: Sequence[ClientId]) -> View:
        """All receive both factors, and send B back."""
        return View(trains=(("!*.lora_A.*",),))


def split_evenly(u: Tensor, s: Tensor, vt: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) with B·A = U·diag(s)·Vᵀ cut to rank r.

    Args:
      old: the A before, (r, in), of which rows stay where there are fewer than r singular values.
    """
    rank = min(len(old), len(s))
    u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    largest = vt.gather(1, vt.abs().argmax(1, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(vt)
    there = s > NULL * s.max() if len(s) else s > 0
    root = s.sqrt()
    a = torch.where(there, root, 1.0)[:, None] * vt * signs
    b = torch.where(there, root, 0.0) * u * signs.T
    missing = old[rank:].double()
    return torch.cat([a, missing]), torch.cat([b, b.new_zeros(len(b), len(missing))], 1)
