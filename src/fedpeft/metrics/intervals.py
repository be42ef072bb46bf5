"""95 % intervals of metrics, from counts alone."""

from collections.abc import Callable, Sequence
from math import sqrt
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
DRAWS = 1000
ROOM = 4_000_000
"""Entries of the matrices that are drawn together."""
Interval: TypeAlias = tuple[float, float]


def wilson(right: int, of: int) -> Interval | None:
    """The shares p for which right / of lies within z standard errors (Wilson, 1927).

    Returns None of no example.
    """
    if not of:
        return None
    share = right / of
    middle = (share + Z * Z / (2 * of)) / (1 + Z * Z / of)
    half = Z * sqrt(share * (1 - share) / of + Z * Z / (4 * of * of)) / (1 + Z * Z / of)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(confusion: Tensor, metric: Callable[[Tensor], Tensor]) -> Interval | None:
    """Percentiles of a metric over confusion matrices of as many examples, drawn with replacement.

    To draw examples again is to draw the matrix's cells from a multinomial distribution. The draws
    are the same for equal matrices.

    Returns None of fewer than two examples.
    """
    n = int(confusion.sum())
    if n < 2:
        return None
    cells = confusion.reshape(-1).nonzero()[:, 0]
    shares = confusion.reshape(-1)[cells].double().numpy()
    draws, found = np.random.default_rng(0), []
    for some in _portions(max(1, ROOM // confusion.numel())):
        drawn = draws.multinomial(n, shares / shares.sum(), size=some)
        whole = torch.zeros(some, confusion.numel(), dtype=torch.float64)
        whole[:, cells] = torch.from_numpy(drawn).double()
        found.append(metric(whole.view(some, *confusion.shape)))
    values = torch.cat(found)
    low, high = values.nanquantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2]).double())
    return float(low), float(high)


def _portions(at_most: int) -> Sequence[int]:
    whole, rest = divmod(DRAWS, min(DRAWS, at_most))
    return [min(DRAWS, at_most)] * whole + [rest] * (rest > 0)


def normal_interval(value: float, deviation: float) -> Interval | None:
    """value ± z·deviation, of what lies between 0 and 1; None where the deviation is 0 or none."""
    if not 0 < deviation < float("inf"):
        return None
    return max(0.0, value - Z * deviation), min(1.0, value + Z * deviation)
