"""Some of the method's tensors are trained, and all others are frozen: for phases, e.g. the head
first."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.core.types import ClientId
from fedpeft.core.views import View
from fedpeft.registry import unwritten


@dataclass(frozen=True)
class Subset:
    """Clients train, and send back, the tensors whose names match a pattern; all travel down.

    Attributes:
      trains: patterns of names, as of file names; a leading "!" stands for all other names.
      receives: patterns of those that travel down; none for all. A tensor that does not come has
        its first value at every client, so that this is for rounds before which nobody has trained
        it: a first phase then costs, in both directions, what its own tensors do.

    Raises:
      ValueError: there are no patterns.
    """

    trains: tuple[str, ...]
    receives: tuple[str, ...] = unwritten(())

    def __post_init__(self) -> None:
        if not self.trains:
            raise ValueError("trains must name the tensors that are trained")

    def view(self, client: ClientId, round: int, clients: Sequence[ClientId]) -> View:
        receives = (self.receives,) if self.receives else ()
        return View(receives=receives, trains=(self.trains,))
