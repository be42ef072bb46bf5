"""Shapley values of a few players, exactly."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from math import factorial

Coalition = frozenset[str]


def shapley_values(players: Sequence[str], worth: Callable[[Coalition], float]) -> dict[str, float]:
    """By player what joining adds to a coalition, on average over the orders in which all n join
    (Shapley, 1953, A value for n-person games):

        φᵢ = Σ |S|!·(n − |S| − 1)! / n! · (v(S ∪ {i}) − v(S))    over the coalitions S without i

    They sum to v(all) − v(none).

    Args:
      worth: v, which is asked for once of each of the 2ⁿ coalitions.

    >>> v = {"": 0.0, "a": 0.6, "b": 0.5, "ab": 0.8}
    >>> values = shapley_values("ab", lambda coalition: v["".join(sorted(coalition))])
    >>> {player: round(value, 6) for player, value in values.items()}
    {'a': 0.45, 'b': 0.35}
    """
    worths = {coalition: worth(coalition) for coalition in _coalitions(players)}
    n = len(players)
    values = dict.fromkeys(players, 0.0)
    for coalition, without in worths.items():
        size = len(coalition)
        for player in players:
            if player not in coalition:
                share = factorial(size) * factorial(n - size - 1) / factorial(n)
                values[player] += share * (worths[coalition | {player}] - without)
    return values


def _coalitions(players: Sequence[str]) -> Iterator[Coalition]:
    for size in range(len(players) + 1):
        for some in combinations(players, size):
            yield frozenset(some)
