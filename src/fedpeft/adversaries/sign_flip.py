"""Attackers that send the opposite of what they trained (Li et al., 2019: RSA,
arXiv:1811.03761)."""

from dataclasses import dataclass, replace

from fedpeft.core.tensors import scale
from fedpeft.core.types import Tensors, Update


@dataclass(frozen=True)
class SignFlip:
    """Δ ← −factor·Δ. For simulation.

    Attributes:
      share: of all clients that attack, rounded to whole ones.
      factor: how many times as long the opposite update is.

    Raises:
      ValueError: a value out of range.
    """

    share: float = 0.2
    factor: float = 4.0

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and self.factor > 0):
            raise ValueError(
                f"share must be in [0, 1] and factor positive, got {self.share} and {self.factor}"
            )

    def poison(self, rows: Tensors, classes: int) -> Tensors:
        return rows

    def probe(self, rows: Tensors, classes: int) -> Tensors | None:
        return None

    def send(self, update: Update) -> Update:
        return replace(update, delta=scale(update.delta, -self.factor))
