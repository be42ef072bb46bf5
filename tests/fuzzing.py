"""How many mutants the tests try that feed a decoder with anything."""

import os
from typing import Any

import pytest

VARIABLE = "FEDPEFT_FUZZ"


def counts(quick: int, slow: int) -> list[Any]:
    """A quick count and a slow one; just one, of what FEDPEFT_FUZZ says, where it is set."""
    asked = os.environ.get(VARIABLE)
    return [int(asked)] if asked else [quick, pytest.param(slow, marks=pytest.mark.slow)]
