"""Which client gets which channel, by the scores of all pairs."""

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Scores: TypeAlias = NDArray[np.float64]


def match(scores: Scores, rule: Literal["max_min", "sum"]) -> list[tuple[int, int]]:
    """Pairs of a client and a channel, as many as there are of the fewer, each in one pair alone.

    `sum` makes the sum of their scores largest. `max_min` makes the smallest score largest, as a
    round waits for its slowest client, and the sum among all that do. A pair of infinite score
    comes before any other.

    Args:
      scores: shape (clients, channels); infinite for pairs that were never tried.
    """
    from scipy.optimize import linear_sum_assignment

    if not scores.size:
        return []
    finite = _bounded(scores)
    if rule == "max_min":
        # Worse than what all other pairs could make up for, so that it is never taken.
        worst = finite.min() - min(scores.shape) * (np.ptp(finite) + 1)
        finite = np.where(finite >= _bottleneck(finite), finite, worst)
    clients, channels = linear_sum_assignment(finite, maximize=True)
    return list(zip(clients.tolist(), channels.tolist(), strict=True))


def _bounded(scores: Scores) -> Scores:
    """The same with a number in the place of infinity, which no sum of finite ones makes up for."""
    known = scores[np.isfinite(scores)]
    if not known.size:
        return np.zeros_like(scores)
    above = known.max() + min(scores.shape) * (np.ptp(known) + 1)
    return np.where(np.isfinite(scores), scores, above)


def _bottleneck(scores: Scores) -> float:
    """The largest score that a matching of full size need not go below, by bisection."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    values = np.unique(scores)
    low, high = 0, len(values) - 1  # with the smallest score all pairs are allowed
    while low < high:
        middle = (low + high + 1) // 2
        allowed = csr_array(scores >= values[middle])
        partners = maximum_bipartite_matching(allowed, perm_type="column")
        if (partners >= 0).sum() == min(scores.shape):
            low = middle
        else:
            high = middle - 1
    return float(values[low])
