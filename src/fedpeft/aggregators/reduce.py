"""What every aggregator does beside its own: sums of metrics, the cohort as one stack a tensor,
types kept."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fedpeft.core.tensors import map_tensors
from fedpeft.core.types import Update, Weighted


def plus(a: Mapping[str, Weighted], b: Mapping[str, Weighted]) -> dict[str, Weighted]:
    """Metrics of two groups of clients as those of both."""
    return {**a, **{name: a[name] + value if name in a else value for name, value in b.items()}}


def wide(x: Tensor) -> Tensor:
    """In a type to compute in: at least float32; float64 for integers, which it holds exactly up to
    2^53."""
    if not x.is_floating_point():
        return x.double()
    return x if x.dtype.itemsize >= torch.float32.itemsize else x.float()


def back(x: Tensor, dtype: torch.dtype) -> Tensor:
    """In the type it came in; integers are rounded to nearest."""
    return x.to(dtype) if dtype.is_floating_point else x.round().to(dtype)


def collect_updates(updates: Iterable[Update]) -> list[Update]:
    """The whole cohort.

    Raises:
      ValueError: no update arrived.
    """
    cohort = list(updates)
    if not cohort:
        raise ValueError("no update arrived")
    return cohort


def reduce_cohort(cohort: Sequence[Update], middle: Callable[[Tensor], Tensor]) -> Update:
    """Reduce (clients, *shape) to (*shape) tensor by tensor, where every client counts once.

    Raises:
      ValueError: their names differ.
    """
    metrics: Mapping[str, Weighted] = {}
    for update in cohort:
        metrics = plus(metrics, update.metrics)

    def one(*each: Tensor) -> Tensor:
        return back(middle(wide(torch.stack(each))), each[0].dtype)

    delta = map_tensors(one, *(update.delta for update in cohort))
    return Update("", delta, sum(update.weight for update in cohort), metrics)
