"""Whether a model's probabilities are what they say."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.compute.tally import CONFIDENT, Counts
from fedpeft.core.facts import Fact
from fedpeft.metrics.classes import NEEDS_CLASSES


@dataclass(frozen=True)
class Ece:
    """The expected calibration error (Guo et al., 2017, arXiv:1706.04599, equation 3).

    Over 15 bins of the largest probability, Σ |right − Σ probability| / n.
    """

    needs: ClassVar[Mapping[Fact, str]] = NEEDS_CLASSES
    reads: ClassVar[frozenset[str]] = frozenset({CONFIDENT})

    def measure(self, counts: Counts) -> Mapping[str, float]:
        if counts.confident is None or counts.confidence is None:
            return {}
        if not counts.examples:
            return {"ece": float("nan")}
        gaps = (counts.confident[:, 0].double() - counts.confidence).abs()
        return {"ece": float(gaps.sum() / counts.examples)}
