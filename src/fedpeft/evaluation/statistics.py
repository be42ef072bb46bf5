"""Means over seeds with their uncertainty, and which points nothing else beats."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over runs that differ in the seed.

    Three or more give Student's t interval of the mean, mean ± t(n - 1) s / √n at 95 %; two only
    their range, since a t interval of two values is twelve times as wide as they are apart; one
    gives nothing.

    Attributes:
      low, high: the interval, None if n = 1.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def kind(self) -> str:
        return {1: "one run", 2: "range of 2"}.get(self.n, "95 % t interval")

    @property
    def half(self) -> float | None:
        """Half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def within(self, least: float, most: float) -> "Estimate":
        """The same of a quantity that is never below `least` nor above `most`."""
        if self.low is None or self.high is None:
            return self
        return Estimate(self.mean, max(least, self.low), min(most, self.high), self.n)

    def text(self, shown: Callable[[float], str], spread: Callable[[float], str]) -> str:
        """The one form in which tables, reports and pages have it.

        "97.2 ± 0.3" is a t interval; "97.2 (96.9 to 97.5)" is the range of two runs, or a t
        interval that ends where the quantity does; "97.2" is one run.

        Args:
          shown: a value as people read it; `spread`: half the width of an interval.
        """
        if self.low is None or self.high is None:
            return shown(self.mean)
        above, below = self.high - self.mean, self.mean - self.low
        if self.n == 2 or abs(above - below) > 1e-9 * max(above, below):
            return f"{shown(self.mean)} ({shown(self.low)} to {shown(self.high)})"
        return f"{shown(self.mean)} ± {spread(above)}"


def estimate_or_none(values: Sequence[float]) -> Estimate | None:
    """The mean of runs; None of none."""
    return estimate(values) if values else None


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one run or more."""
    n = len(values)
    if n < 2:
        return Estimate(values[0], None, None, 1)
    if n == 2:
        return Estimate(fmean(values), min(values), max(values), n)
    from scipy.stats import t

    mean, half = fmean(values), float(t.ppf((1 + LEVEL) / 2, n - 1)) * stdev(values) / sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the points (cost, worth) that no other equals or beats in both and beats in
    one; cheapest first."""
    front = [
        k
        for k, (cost, worth) in enumerate(points)
        if not any(c <= cost and w >= worth and (c, w) != (cost, worth) for c, w in points)
    ]
    return sorted(front, key=lambda k: points[k])
