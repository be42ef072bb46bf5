"""Leaving out the examples of which a task learns nothing, before they are divided into clients."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from logging import getLogger
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fedpeft.core.types import Examples, Table
from fedpeft.data.pictures import Pictures
from fedpeft.data.recordings import Clips
from fedpeft.errors import DataError, say_count

Unfit: TypeAlias = Callable[[Table], Mapping[str, Sequence[int]]]


def leave_out_unfit(examples: Examples, task: object) -> Examples:
    """The examples without those that a task's method `unfit` names, which are counted and told;
    all where a task has none.

    Raises:
      DataError: none is left to train on.
    """
    unfit: Unfit | None = getattr(task, "unfit", None)
    if unfit is None:
        return examples
    both = (unfit(examples.train), unfit(examples.test))
    if not any(both):
        return examples
    counts = Counter(examples.left_out)
    for found in both:
        counts.update(_count(found))
    told = "; ".join(say_count(n, why) for why, n in counts.items())
    getLogger("fedpeft").warning("left out: %s", told)
    train, test = _without(examples.train, both[0]), _without(examples.test, both[1])
    if len(examples.train) and not len(train):
        raise DataError(f"no example is left to train on; left out: {told}")
    return replace(examples, train=train, test=test, left_out=dict(counts))


def _count(found: Mapping[str, Sequence[int]]) -> dict[str, int]:
    return {why: len(rows) for why, rows in found.items()}


def _without(table: Table, found: Mapping[str, Sequence[int]]) -> Table:
    gone = set(chain.from_iterable(found.values()))
    kept = [row for row in range(len(table)) if row not in gone]
    return choose_rows(table, kept)


def choose_rows(table: Table, rows: Sequence[int]) -> Table:
    """These rows of a table, in this order; a row may come several times."""
    return Table({name: _chosen(column, rows) for name, column in table.columns.items()})


def _chosen(column: Any, rows: Sequence[int]) -> Any:
    if isinstance(column, Tensor):
        return column[torch.tensor(rows, dtype=torch.int64)]
    if isinstance(column, Pictures | Clips):
        return replace(column, index=[column.index[row] for row in rows])
    return [column[row] for row in rows]
