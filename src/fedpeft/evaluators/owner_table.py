"""What owners counted, as plain values: each owner's metrics, and those of all together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from math import isfinite, nan
from typing import Any

from torch import Tensor

from fedpeft.compute.scores import conclude
from fedpeft.compute.tally import Counts, Curve
from fedpeft.core.interfaces import Task
from fedpeft.core.types import ClientId
from fedpeft.core.units import finite_or_none, is_less_better
from fedpeft.metrics.confusion import Accuracy
from fedpeft.metrics.intervals import Interval

CURVES, POINTS = 6, 100
"""Classes whose ROC curves are told, and points of one."""


def tabulate(each: Mapping[ClientId, Counts], metrics: Sequence[Any], task: Task) -> dict[str, Any]:
    """By metric, over the owners that have held-out examples.

    Args:
      each: the counts of those who answered.
      metrics: those of the plan, beside the task's own.

    Returns:
      `examples` has each owner's number of examples, and `without` the owners that have none.
      `metrics` has, by name, `mean` (each owner counts once), `worst_tenth` of the owners (at least
      one), `pooled` (as if all examples lay in one place) with its 95 % `interval`, and `each` and
      `intervals` by owner. A number that is not finite, or has no interval, is None. `classes` and
      `confusion`, truth by prediction, are of all examples, and so is `roc` where scores were
      counted: by class points of the share of others taken for it and of those found.
    """
    measured = {client: counts for client, counts in each.items() if counts.examples}
    found: dict[str, Any] = {
        "examples": {client: counts.examples for client, counts in measured.items()},
        "without": [client for client, counts in each.items() if not counts.examples],
        "metrics": {},
    }
    if not measured:
        return found
    pooled = reduce(pool_counts, measured.values())
    values = {client: values_of(counts, metrics, task) for client, counts in measured.items()}
    intervals = {
        client: _intervals(counts, metrics, resample=False) for client, counts in measured.items()
    }
    of_all = _intervals(pooled, metrics, resample=True)
    for name, value in values_of(pooled, metrics, task).items():
        own = {client: some.get(name, nan) for client, some in values.items()}
        found["metrics"][name] = {
            **_spread(own, name),
            "pooled": _finite(value),
            "interval": of_all.get(name),
            "each": finite_or_none(own),
            "intervals": _of_name(intervals, name),
        }
    return found | _of_classes(pooled)


def _of_classes(counts: Counts) -> dict[str, Any]:
    """The curves and the confusion matrix of all examples, where there are such."""
    found: dict[str, Any] = {}
    if roc := dict(_roc_curves(counts)):
        found["roc"] = roc
    if counts.confusion is not None:
        found |= {"classes": list(counts.classes), "confusion": counts.confusion.tolist()}
    return found


def _roc_curves(counts: Counts) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """By class its ROC curve, of the second class alone where there are two; none where there are
    too many classes to be drawn, or too few examples for one."""
    named = list(zip(counts.classes, counts.curves, strict=False))
    chosen = named[1:] if len(named) == 2 else named
    for name, curve in chosen if len(chosen) <= CURVES else []:
        positives, negatives = curve.positives.flip(0), curve.negatives.flip(0)
        if not (positives.sum() and negatives.sum()):
            continue
        # Thresholds that nobody's score lies at add no point.
        kept = (positives + negatives) > 0
        shares = [(each.cumsum(0) / each.sum())[kept].tolist() for each in (negatives, positives)]
        points = [(round(x, 4), round(y, 4)) for x, y in zip(*shares, strict=True)]
        yield name, [(0.0, 0.0), *points[:: -(-len(points) // POINTS)], (1.0, 1.0)]


def _of_name(every: Mapping[ClientId, Mapping[str, Interval]], name: str) -> dict[str, Interval]:
    return {client: some[name] for client, some in every.items() if name in some}


def values_of(counts: Counts, metrics: Sequence[Any], task: Task) -> dict[str, float]:
    """The task's metrics, and those of the plan."""
    found = conclude(task, counts.totals)
    for metric in metrics:
        found |= metric.measure(counts)
    return found


def pool_counts(one: Counts, other: Counts) -> Counts:
    """The counts of two tallies together."""
    names = dict.fromkeys((*one.totals, *other.totals))
    totals = {
        name: sum_of[0] if len(sum_of) == 1 else sum_of[0] + sum_of[1]
        for name in names
        if (sum_of := [of.totals[name] for of in (one, other) if name in of.totals])
    }
    return replace(
        one,
        examples=one.examples + other.examples,
        totals=totals,
        confusion=_sum(one.confusion, other.confusion),
        curves=tuple(map(_pool_curves, one.curves, other.curves)),
        confident=_sum(one.confident, other.confident),
        confidence=_sum(one.confidence, other.confidence),
    )


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return None if one is None or other is None else one + other


def _pool_curves(one: Curve, other: Curve) -> Curve:
    positives, negatives = one.positives + other.positives, one.negatives + other.negatives
    return replace(one, positives=positives, negatives=negatives)


def _intervals(counts: Counts, metrics: Sequence[Any], resample: bool) -> dict[str, Interval]:
    """By metric the interval, where it has one; those that draw anew only where that is asked for,
    as they take a while."""
    known = [Accuracy(), *metrics] if "accuracy" in counts.totals else list(metrics)
    found = {}
    for metric in known:
        if not hasattr(metric, "interval") or (getattr(metric, "resamples", False) > resample):
            continue
        interval = metric.interval(counts)
        if interval is not None:
            found[next(iter(metric.measure(counts)))] = interval
    return found


def _spread(own: Mapping[ClientId, float], name: str) -> dict[str, float | None]:
    """The mean over the owners and over the worst tenth of them; those of whom a metric is no
    number, such as an AUROC of one class, are in neither."""
    known = sorted((x for x in own.values() if isfinite(x)), reverse=is_less_better(name))
    if not known:
        return {"mean": None, "worst_tenth": None}
    tenth = max(1, len(known) // 10)
    return {"mean": sum(known) / len(known), "worst_tenth": sum(known[:tenth]) / tenth}


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
