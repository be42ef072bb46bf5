"""Metrics of how a model ranks examples, one class against the others.

Of two classes the second is the positive one; of more, each class is in turn, and the metric is the
mean over those that have examples and that others have examples beside. Scores that count as equal
share their rank: of a tally those of one bin, on a server with the examples equal ones alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean
from typing import ClassVar

from torch import Tensor

from fedpeft.compute.tally import SCORES, Counts, Curve
from fedpeft.core.facts import Fact
from fedpeft.metrics.classes import NEEDS_CLASSES
from fedpeft.metrics.intervals import Interval, normal_interval


def auroc_of(curve: Curve) -> float:
    """P(score of a positive > of a negative) + ½·P(they are equal); NaN without one of either."""
    positives, negatives = curve.positives.double(), curve.negatives.double()
    below = _below(negatives) + negatives / 2
    pairs = positives.sum() * negatives.sum()
    return float((positives * below).sum() / pairs)


def delong_deviation(curve: Curve) -> float:
    """The standard error of an AUROC (DeLong, DeLong and Clarke-Pearson, 1988): with V₁₀ the share
    of negatives that a positive beats and V₀₁ that of positives that beat a negative,
    √(var V₁₀ / positives + var V₀₁ / negatives). NaN with fewer than two of either."""
    positives, negatives = curve.positives.double(), curve.negatives.double()
    p, n = float(positives.sum()), float(negatives.sum())
    if p < 2 or n < 2:
        return float("nan")
    beaten = (_below(negatives) + negatives / 2) / n
    beating = (p - _below(positives) - positives / 2) / p
    return sqrt(_variance(beaten, positives) / p + _variance(beating, negatives) / n)


def average_precision_of(curve: Curve) -> float:
    """Σ (Rₖ − Rₖ₋₁)·Pₖ over falling thresholds, with recall R and precision P; NaN without a
    positive.

    Where scores of one bin count as equal, they are not, and the sum would be too low. The i-th of
    p positives in a bin with n negatives then has n·i / (p + 1) of these before it, as in a random
    order. Its sum over i is an integral by the midpoint rule.
    """
    positives, negatives = curve.positives.double().flip(0), curve.negatives.double().flip(0)
    found, taken = positives.cumsum(0), (positives + negatives).cumsum(0)
    if not curve.width:
        precision = positives * found / taken.clamp_min(1)
        return float(precision.sum() / positives.sum())
    before = found - positives
    rate = negatives / (positives + 1)
    slope, offset = 1 + rate, taken - positives - negatives - before - before * rate
    first, last = before + 0.5, found + 0.5
    grows = ((slope * last + offset) / (slope * first + offset)).log()
    precision = positives / slope - offset / slope**2 * grows
    return float(precision.sum() / positives.sum())


def one_against_rest(counts: Counts) -> Sequence[Curve]:
    """The curves that a metric of ranks is the mean over."""
    curves = counts.curves[1:] if len(counts.curves) == 2 else counts.curves
    return [one for one in curves if one.positives.sum() and one.negatives.sum()]


def _below(counts: Tensor) -> Tensor:
    """How many have a lower score, at each score."""
    return counts.cumsum(0) - counts


def _variance(values: Tensor, weights: Tensor) -> float:
    """Of values that stand for so many examples, with n − 1."""
    n = weights.sum()
    mean = (values * weights).sum() / n
    return float((weights * (values - mean) ** 2).sum() / (n - 1))


@dataclass(frozen=True)
class Auroc:
    """The area under the ROC curve; its interval is DeLong's.

    Of several classes the interval's half width is the mean of theirs, which is no less than the
    mean's own, however the classes' errors go together.
    """

    needs: ClassVar[Mapping[Fact, str]] = NEEDS_CLASSES
    reads: ClassVar[frozenset[str]] = frozenset({SCORES})

    def measure(self, counts: Counts) -> Mapping[str, float]:
        if not counts.curves:
            return {}
        each = [auroc_of(curve) for curve in one_against_rest(counts)]
        return {"auroc": fmean(each) if each else float("nan")}

    def interval(self, counts: Counts) -> Interval | None:
        curves = one_against_rest(counts)
        if not curves:
            return None
        deviation = fmean(delong_deviation(curve) for curve in curves)
        return normal_interval(self.measure(counts)["auroc"], deviation)


@dataclass(frozen=True)
class AveragePrecision:
    """The area under the curve of precision by recall, without interpolation."""

    needs: ClassVar[Mapping[Fact, str]] = NEEDS_CLASSES
    reads: ClassVar[frozenset[str]] = frozenset({SCORES})

    def measure(self, counts: Counts) -> Mapping[str, float]:
        if not counts.curves:
            return {}
        each = [average_precision_of(curve) for curve in one_against_rest(counts)]
        return {"average_precision": fmean(each) if each else float("nan")}
