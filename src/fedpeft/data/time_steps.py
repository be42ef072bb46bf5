"""Columns of times and of measured values, as people write them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from math import isfinite, nan
from typing import Any

import torch
from torch import Tensor

from fedpeft.core.numbers import MISSING, read_number
from fedpeft.errors import DataError

TOO_LONG = 1.5
"""Usual steps from which on a step is a gap: February and daylight saving are none."""


@dataclass(frozen=True)
class Times:
    """A column of times.

    Attributes:
      at: (rows,) seconds in float64, or the numbers that stand there; not a number where there is
        none.
      months: of each row its month, such as "2014-01"; empty where the column holds numbers.
    """

    at: Tensor
    months: tuple[str, ...]


def read_times(values: Sequence[Any], where: str) -> Times:
    """Times from dates, texts in the form of ISO 8601, or numbers.

    Args:
      where: how errors call the column.

    Raises:
      DataError: a value is no time.
    """
    read = [_read_time(value, row, where) for row, value in enumerate(values)]
    at = [nan if one is None else _seconds(one) for one in read]
    dated = any(isinstance(one, datetime) for one in read)
    months = [f"{one:%Y-%m}" if isinstance(one, datetime) else "" for one in read]
    return Times(torch.tensor(at, dtype=torch.float64), tuple(months) if dated else ())


def _read_time(value: Any, row: int, where: str) -> datetime | float | None:
    if value is None or isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    if isinstance(value, int | float):
        return float(value) if isfinite(value) else None
    if str(value).strip().lower() in MISSING:
        return None
    try:
        return datetime.fromisoformat(str(value).strip().replace("/", "-"))
    except ValueError:
        raise DataError(
            f"{where} holds {value!r} in row {row + 1}, which is no time: write times as "
            "2014-01-31 23:30 (ISO 8601), or as numbers"
        ) from None


def _seconds(time: datetime | float) -> float:
    if isinstance(time, float):
        return time
    # without a zone all steps are of the same clock, so that any zone gives the same differences
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def holds_numbers(values: Sequence[Any]) -> bool:
    """Whether a column is numbers and missing values, with one number at least."""
    read = [read_number(value) for value in values]
    return None not in read and any(one is not None and isfinite(one) for one in read)


def find_gaps(at: Tensor) -> Tensor:
    """Which rows come after a gap, bool (rows,), of rising times (rows,): the step before is longer
    than `TOO_LONG` times the median one."""
    gaps = torch.zeros(len(at), dtype=torch.bool)
    if len(at) > 1:
        steps = at.diff()
        gaps[1:] = steps > TOO_LONG * steps.median()
    return gaps
