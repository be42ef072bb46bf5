"""Some of the method's tensors are trained, all others stand still: for phases, e.g. the head
first."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.core.types import ClientId
from fedpeft.core.views import View


@dataclass(frozen=True)
class Subset:
    """Clients train, and send back, the tensors whose names match a pattern; all travel down.

    Attributes:
      trains: patterns of names, as of file names; a leading "!" stands for all other names.

    Raises:
      ValueError: there are no patterns.
    """

    trains: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.trains:
            raise ValueError("trains must name the tensors that are trained")

    def view(self, client: ClientId, round: int, clients: Sequence[ClientId]) -> View:
        return View(trains=(self.trains,))
