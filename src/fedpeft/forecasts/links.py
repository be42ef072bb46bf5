"""The speed of a link as people write it."""

import re
from dataclasses import dataclass

from fedpeft.errors import PlanError

UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_FORM = re.compile(r"(\d+(?:\.\d+)?) ?([kmg]?bit)(?:/s)?", re.IGNORECASE)


@dataclass(frozen=True)
class Link:
    """Bits in a second, the same in both directions."""

    rate: float

    def seconds(self, count: float) -> float:
        """How long so many bytes take, without waiting and without what a network adds to them."""
        return 8 * count / self.rate


def read_link(text: str) -> Link:
    """A link such as "10mbit", "500kbit" or "1gbit".

    Raises:
      PlanError: it is written in another way, or is 0.
    """
    match = _FORM.fullmatch(text.strip())
    rate = float(match[1]) * UNITS[match[2].lower()] if match else 0.0
    if not rate:
        raise PlanError(
            f"--link is a speed in bits a second, such as 500kbit, 10mbit or 1gbit, got {text!r}"
        )
    return Link(rate)
