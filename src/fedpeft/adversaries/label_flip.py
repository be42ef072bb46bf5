"""Attackers that train on wrong labels (Biggio et al., 2012, arXiv:1206.6389; Fang et al., 2020,
arXiv:1911.11815)."""

from dataclasses import dataclass

from fedpeft.core.types import Tensors, Update


@dataclass(frozen=True)
class LabelFlip:
    """y ← classes − 1 − y on all that an attacker holds. For simulation.

    Attributes:
      share: of all clients that attack, rounded to whole ones.

    Raises:
      ValueError: a value out of range, or examples without labels.
    """

    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be in [0, 1], got {self.share}")

    def poison(self, rows: Tensors, classes: int) -> Tensors:
        if "label" not in rows:
            raise ValueError("there are no labels to flip")
        return {**rows, "label": classes - 1 - rows["label"]}

    def probe(self, rows: Tensors, classes: int) -> Tensors | None:
        return None

    def send(self, update: Update) -> Update:
        return update
