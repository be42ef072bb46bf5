"""Numbers as people write them in the cells of a table."""

from collections.abc import Iterable
from math import isfinite, nan
from typing import Any

import torch
from torch import Tensor

from fedpeft.errors import DataError

MISSING = ("", "na", "n/a", "nan", "null", "none", "?", "-")
"""What stands for a value that nobody measured, in any case."""


def read_number(value: Any) -> float | None:
    """A cell as a finite number; NaN where nobody measured, which infinity says too; None for any
    other text."""
    if value is None or str(value).strip().lower() in MISSING:
        return nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if isfinite(number) else nan


def read_numbers(values: Iterable[Any], where: str, remedy: str, each: str = "row") -> Tensor:
    """Cells as numbers (rows,) in float64; NaN where nobody measured.

    Args:
      where: whose cells they are, for an error, in which `remedy` says what to do and `each` is
        what a cell belongs to.

    Raises:
      DataError: a cell is no number.
    """
    found = []
    for row, value in enumerate(values):
        number = read_number(value)
        if number is None:
            place = f"{each} {row + 1}"
            raise DataError(f"{where} holds {value!r} in {place}, which is no number: {remedy}")
        found.append(number)
    return torch.tensor(found, dtype=torch.float64)
