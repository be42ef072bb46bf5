"""Metrics at a probability from which an example is called positive.

Of two classes the second is the positive one; of more, each class is in turn, and the metric is the
mean over those that have examples. Of a tally the threshold is the nearest edge of its bins, which
are 0.15 of log-odds wide: 0.5 is one exactly. Another threshold than 0.5 stands in the metric's
name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log
from statistics import fmean
from typing import ClassVar

from torch import Tensor

from fedpeft.compute.tally import SCORES, Counts, Curve
from fedpeft.core.facts import Fact
from fedpeft.metrics.classes import NEEDS_CLASSES
from fedpeft.metrics.ranking import one_against_rest


@dataclass(frozen=True)
class Sensitivity:
    """The share of positives that are called so.

    Attributes:
      threshold: the probability from which an example is called positive.

    Raises:
      ValueError: it is not between 0 and 1.
    """

    threshold: float = 0.5
    needs: ClassVar[Mapping[Fact, str]] = NEEDS_CLASSES
    reads: ClassVar[frozenset[str]] = frozenset({SCORES})

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)

    def measure(self, counts: Counts) -> Mapping[str, float]:
        return _mean_over("sensitivity", self.threshold, counts, self._of)

    def _of(self, curve: Curve) -> float:
        called = called_positive(curve, self.threshold)
        return int(curve.positives[called].sum()) / int(curve.positives.sum())


@dataclass(frozen=True)
class Specificity:
    """The share of negatives that are not called positive.

    Attributes:
      threshold: the probability from which an example is called positive.

    Raises:
      ValueError: it is not between 0 and 1.
    """

    threshold: float = 0.5
    needs: ClassVar[Mapping[Fact, str]] = NEEDS_CLASSES
    reads: ClassVar[frozenset[str]] = frozenset({SCORES})

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)

    def measure(self, counts: Counts) -> Mapping[str, float]:
        return _mean_over("specificity", self.threshold, counts, self._of)

    def _of(self, curve: Curve) -> float:
        called = called_positive(curve, self.threshold)
        return int(curve.negatives[~called].sum()) / int(curve.negatives.sum())


def called_positive(curve: Curve, threshold: float) -> Tensor:
    """Which scores of a curve are at or above a probability, (k,)."""
    odds = log(threshold / (1 - threshold))
    return curve.scores >= odds - curve.width / 2


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is a probability between 0 and 1, got {threshold}")


def _mean_over(
    name: str, threshold: float, counts: Counts, of: Callable[[Curve], float]
) -> Mapping[str, float]:
    if not counts.curves:
        return {}
    each = [of(curve) for curve in one_against_rest(counts)]
    called = name if threshold == 0.5 else f"{name} at {threshold:g}"
    return {called: fmean(each) if each else float("nan")}
