"""Tensors that never travel: each client keeps its own (FedPer: Arivazhagan et al., 2019,
arXiv:1912.00818)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.core.facts import Fact
from fedpeft.core.types import ClientId
from fedpeft.core.views import View


@dataclass(frozen=True)
class Personal:
    """Each client begins with the initial tensors and keeps what it makes of them.

    Attributes:
      patterns: of the names of trained tensors, as of file names. ["*"] is training without
        federation, ["classifier.*"] a personal head.

    Raises:
      ValueError: there are no patterns.
    """

    patterns: tuple[str, ...]
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.PERSONAL})
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.CONTROL: "SCAFFOLD's control variates belong to tensors that travel: leave out "
        "personal, or SCAFFOLD",
    }

    def __post_init__(self) -> None:
        if not self.patterns:
            raise ValueError("patterns must name the tensors that stay with the clients")

    def view(self, client: ClientId, round: int, clients: Sequence[ClientId]) -> View:
        return View(keeps=self.patterns)
