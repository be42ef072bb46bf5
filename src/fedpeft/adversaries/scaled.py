"""Attackers that send more than their share (Bagdasaryan et al., 2020, arXiv:1807.00459, section
4.2)."""

from dataclasses import dataclass, replace

from fedpeft.core.tensors import scale
from fedpeft.core.types import Tensors, Update


@dataclass(frozen=True)
class Scaled:
    """Δ ← factor·Δ: alone it makes the mean follow one client, with another attack it makes that
    one count. For simulation.

    Attributes:
      share: of all clients that attack, rounded to whole ones; those of several attacks are the
        same.
      factor: what the update is multiplied by.

    Raises:
      ValueError: a value out of range.
    """

    share: float = 0.2
    factor: float = 10.0

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
        return replace(update, delta=scale(update.delta, self.factor))
