"""Metrics of a confusion matrix: which class was taken for which.

All take matrices (..., classes, classes), truth by prediction, of which the last two dimensions
are the matrix. A class that is not there, and that nothing was taken for, is in no mean, as in
scikit-learn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.compute.tally import Counts
from fedpeft.core.facts import Fact
from fedpeft.metrics.classes import NEEDS_CLASSES
from fedpeft.metrics.intervals import Interval, bootstrap, wilson


def accuracy_of(confusion: Tensor) -> Tensor:
    """The share of right predictions, (...); NaN of no example."""
    return confusion.diagonal(dim1=-2, dim2=-1).sum(-1) / confusion.sum((-2, -1))


def recalls(confusion: Tensor) -> Tensor:
    """The share of each class's examples that was found, (..., classes); NaN without any."""
    return confusion.diagonal(dim1=-2, dim2=-1) / confusion.sum(-1)


def f1_scores(confusion: Tensor) -> Tensor:
    """2·TP / (2·TP + FP + FN) of each class, (..., classes); NaN where that is 0 / 0."""
    right = confusion.diagonal(dim1=-2, dim2=-1)
    return 2 * right / (confusion.sum(-1) + confusion.sum(-2))


def correlations(confusion: Tensor) -> Tensor:
    """Matthews' correlation of truth and prediction, (...), in its form for any number of classes
    (Gorodkin, 2004): with s examples, c of them right, t_k of class k and p_k taken for it,

        (c·s − Σ t_k·p_k) / √((s² − Σ p_k²)·(s² − Σ t_k²))

    It is 0 where all are of one class, or taken for one, as in scikit-learn.
    """
    truth, taken = confusion.sum(-1), confusion.sum(-2)
    examples, right = truth.sum(-1), confusion.diagonal(dim1=-2, dim2=-1).sum(-1)
    together = right * examples - (truth * taken).sum(-1)
    # Roots first: of many examples the product of both squares would be lost to rounding.
    apart = (examples**2 - taken.square().sum(-1)).sqrt() * (
        examples**2 - truth.square().sum(-1)
    ).sqrt()
    return torch.where(apart > 0, together / apart, torch.zeros_like(apart))


@dataclass(frozen=True)
class Accuracy:
    """The share of right predictions; its interval is Wilson's (1927)."""

    needs: ClassVar[Mapping[Fact, str]] = NEEDS_CLASSES
    reads: ClassVar[frozenset[str]] = frozenset()

    def measure(self, counts: Counts) -> Mapping[str, float]:
        if counts.confusion is None:
            return {}
        return {"accuracy": float(accuracy_of(counts.confusion.double()))}

    def interval(self, counts: Counts) -> Interval | None:
        if counts.confusion is None:
            return None
        return wilson(int(counts.confusion.diagonal().sum()), counts.examples)


@dataclass(frozen=True)
class BalancedAccuracy:
    """The mean of the classes' recalls; its interval is a bootstrap's."""

    needs: ClassVar[Mapping[Fact, str]] = NEEDS_CLASSES
    reads: ClassVar[frozenset[str]] = frozenset()
    resamples: ClassVar[bool] = True

    def measure(self, counts: Counts) -> Mapping[str, float]:
        if counts.confusion is None:
            return {}
        return {"balanced_accuracy": float(_mean_recall(counts.confusion.double()))}

    def interval(self, counts: Counts) -> Interval | None:
        return None if counts.confusion is None else bootstrap(counts.confusion, _mean_recall)


@dataclass(frozen=True)
class MacroF1:
    """The mean of the classes' F1; its interval is a bootstrap's."""

    needs: ClassVar[Mapping[Fact, str]] = NEEDS_CLASSES
    reads: ClassVar[frozenset[str]] = frozenset()
    resamples: ClassVar[bool] = True

    def measure(self, counts: Counts) -> Mapping[str, float]:
        if counts.confusion is None:
            return {}
        return {"macro_f1": float(_mean_f1(counts.confusion.double()))}

    def interval(self, counts: Counts) -> Interval | None:
        return None if counts.confusion is None else bootstrap(counts.confusion, _mean_f1)


@dataclass(frozen=True)
class Matthews:
    """Matthews' correlation of truth and prediction, from -1 to 1; its interval is a
    bootstrap's."""

    needs: ClassVar[Mapping[Fact, str]] = NEEDS_CLASSES
    reads: ClassVar[frozenset[str]] = frozenset()
    resamples: ClassVar[bool] = True

    def measure(self, counts: Counts) -> Mapping[str, float]:
        if counts.confusion is None:
            return {}
        return {"matthews": float(correlations(counts.confusion.double()))}

    def interval(self, counts: Counts) -> Interval | None:
        return None if counts.confusion is None else bootstrap(counts.confusion, correlations)


@dataclass(frozen=True)
class ClassF1:
    """The F1 of each class, as "f1 of <class>"; a class that is not there has none."""

    needs: ClassVar[Mapping[Fact, str]] = NEEDS_CLASSES
    reads: ClassVar[frozenset[str]] = frozenset()

    def measure(self, counts: Counts) -> Mapping[str, float]:
        if counts.confusion is None:
            return {}
        each = f1_scores(counts.confusion.double()).tolist()
        return {f"f1 of {name}": x for name, x in zip(counts.classes, each, strict=True)}


def _mean_recall(confusion: Tensor) -> Tensor:
    return torch.nanmean(recalls(confusion), -1)


def _mean_f1(confusion: Tensor) -> Tensor:
    return torch.nanmean(f1_scores(confusion), -1)
