"""A lower bound of ε from how many canaries an auditor tells right (Steinke, Nasr and Jagielski,
2023, arXiv:2305.08846, Theorem 5.2).

Each of m canaries is in or out by a fair coin of its own. The auditor sees what the mechanism
gives away, guesses the coins of r of them and is right v times. Under (ε, δ)-differential privacy

    P[right ≥ v] ≤ β + 2·m·δ·α,    W ~ Binomial(r, e^ε / (e^ε + 1))
    β = P[W ≥ v]
    α = max over i = 1 ... v of P[v > W ≥ v − i] / i

Every ε at which the right-hand side is below 1 − confidence is refuted, and a lower bound. Which
canaries are guessed may depend on all that the mechanism gives away; their number r may not, and is
fixed before.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import betainc, expit, gammaln, xlog1py, xlogy
from torch import Tensor

CONFIDENCE = 0.95
LARGEST = 100.0
"""No ε beyond it is told: e^−ε is then below what float64 tells from nothing."""
STEPS = 40
"""Of the bisection, after which ε is known to LARGEST / 2⁴⁰."""


@dataclass(frozen=True)
class Guesses:
    """What came of an audit.

    Attributes:
      canaries: m.
      made: r, guesses beside abstentions.
      right: v.
    """

    canaries: int
    made: int
    right: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.made <= self.canaries:
            raise ValueError(
                f"of {self.canaries} canaries {self.made} were guessed and {self.right} right: "
                "each number must be at most the one before"
            )


def p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """The most that the probability of so many right guesses can be under (ε, δ)-privacy."""
    made, right = guesses.made, guesses.right
    if not right:
        return 1.0
    chance = float(expit(epsilon))
    beta = float(betainc(right, made - right + 1, chance))  # P[W ≥ v]
    fewer = np.arange(right - 1, -1, -1, dtype=np.float64)  # v − 1, v − 2, ..., 0
    logs = gammaln(made + 1) - gammaln(fewer + 1) - gammaln(made - fewer + 1)
    logs = logs + xlogy(fewer, chance) + xlog1py(made - fewer, -chance)
    below = np.exp(logs).cumsum()  # P[v > W ≥ v − i] for i = 1 ... v
    alpha = float((below / np.arange(1, right + 1)).max())
    return min(1.0, beta + 2 * guesses.canaries * delta * alpha)


def bound_epsilon(guesses: Guesses, delta: float, confidence: float = CONFIDENCE) -> float:
    """The largest ε, at most `LARGEST`, that so many right guesses speak against; 0 for none."""
    least = 1 - confidence
    if p_value(guesses, 0.0, delta) >= least:
        return 0.0
    low, high = 0.0, LARGEST
    for _ in range(STEPS):
        middle = (low + high) / 2
        if p_value(guesses, middle, delta) < least:
            low = middle
        else:
            high = middle
    return low


def guess(scores: Tensor, included: Tensor, number: int) -> Guesses:
    """Call the canaries with the highest scores in and those with the lowest out, `number` // 2 of
    each.

    Args:
      scores: (m,), higher for what looks as if it were in.
      included: (m,), true for what is in.
    """
    half = number // 2
    order = scores.argsort(descending=True, stable=True)
    right = int(included[order[:half]].sum()) + int((~included[order[len(order) - half :]]).sum())
    return Guesses(len(scores), 2 * half, right)
