"""JSON from outside, which is read only where what Python makes of it stays small.

One byte of JSON may become forty of memory: an empty list is two bytes of text with its comma
three, and 64 in a list of lists. So the text is bounded, and before it is read its marks are
counted: each value but the first follows a mark, and no value takes more than its mark costs here.
"""

import json
from typing import Any

LONGEST = 1 << 22
"""Bytes of a text."""
ROOM = 24 << 20
"""Bytes that its values may take beside their characters; the layout of 40,000 tensors does."""
COSTS = {b"{": 240, b"[": 120, b":": 120, b",": 96}
"""Bytes that a value, its slot and what a growing container keeps free take at most, by mark."""


def read(text: bytes) -> Any:
    """The value that a text stands for.

    Raises:
      ValueError: it is no JSON in UTF-8, or longer or with more values than is allowed.
      RecursionError: it is nested too deeply.
    """
    if len(text) > LONGEST:
        raise ValueError(f"it has {len(text)} bytes, and at most {LONGEST} are read")
    # Marks inside of strings count too: the bound may be too strict, and never too loose.
    cost = sum(each * text.count(mark) for mark, each in COSTS.items())
    if cost > ROOM:
        raise ValueError(
            f"its values could take {cost >> 20} MiB of memory, and at most {ROOM >> 20} are taken"
        )
    return json.loads(text.decode())
