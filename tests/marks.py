"""Which values of a parameter the normal run tries, and which are left to `make test-all`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(fast: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """The values as parameters of a test; all are slow but those in `fast`.

    Raises:
      ValueError: one of `fast` is no value, so that the normal run would lack it.
    """
    values = list(values)
    if missing := [one for one in fast if one not in values]:
        raise ValueError(f"{missing} are none of {values}")
    return [one if one in fast else pytest.param(one, marks=pytest.mark.slow) for one in values]
