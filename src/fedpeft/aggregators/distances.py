"""How far the updates of a cohort lie from each other, and what Krum makes of it (Blanchard et al.,
2017, arXiv:1703.02757)."""

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor

from fedpeft.core.tensors import map_tensors
from fedpeft.core.types import Update


def check_share(attackers: float) -> None:
    """Raises ValueError for a share of attackers that no such aggregator bears."""
    if not 0 <= attackers < 0.5:
        raise ValueError(f"attackers must be in [0, 0.5), got {attackers}")


def borne(share: float, clients: int) -> int:
    """f: the share rounded up to whole clients, at most what 2f + 2 < n leaves."""
    # the small number: 0.07 * 100 is a little more than 7 in floating point
    return max(0, min(ceil(share * clients - 1e-9), (clients - 3) // 2))


def squared_distances(cohort: Sequence[Update]) -> Tensor:
    """Squared distances (n, n) of all entries as one vector, float64; tensor by tensor, so that no
    copy is whole."""

    def between(*each: Tensor) -> Tensor:
        flat = torch.stack([x.detach().double().flatten() for x in each])
        return torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square()

    every = map_tensors(between, *(update.delta for update in cohort)).values()
    # Where nothing travels all are alike.
    return sum(every, torch.zeros(len(cohort), len(cohort), dtype=torch.float64))


def rank_by_krum(cohort: Sequence[Update], share: float) -> list[int]:
    """The places of the cohort by Krum's score, best first: Σ ‖Δᵢ − Δⱼ‖² over the n − f − 2 nearest
    j.

    Of equal scores, the one comes first that is nearer to all.
    """
    count = len(cohort)
    near = max(1, count - borne(share, count) - 2)
    rows = (
        squared_distances(cohort).sort(dim=1).values[:, 1:]
    )  # the first is the distance to itself
    scores, totals = rows[:, :near].sum(1).tolist(), rows.sum(1).tolist()
    return sorted(range(count), key=lambda place: (scores[place], totals[place]))
