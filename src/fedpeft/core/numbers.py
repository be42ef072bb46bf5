"""Numbers as people write them in the cells of a table."""

from math import isfinite, nan
from typing import Any

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
