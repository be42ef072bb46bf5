"""Metrics of sums that a task gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp
from typing import ClassVar

from fedpeft.compute.tally import Counts


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean loss: of a language model by the token."""

    reads: ClassVar[frozenset[str]] = frozenset()

    def measure(self, counts: Counts) -> Mapping[str, float]:
        found = counts.totals.get("loss")
        if found is None or not found.weight:
            return {}
        mean = found.total / found.weight
        return {"perplexity": exp(mean) if mean < 700 else float("inf")}
