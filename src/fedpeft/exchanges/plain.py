"""One message to each client and one back, in the open (McMahan et al., 2017, arXiv:1602.05629)."""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedpeft.core.conversation import Answer, Ask
from fedpeft.core.rounds import Round
from fedpeft.core.types import ClientId


@dataclass(frozen=True)
class Plain:
    """The server sees each client's update."""

    @property
    def sums(self) -> bool:
        return False

    @property
    def signers(self) -> Mapping[ClientId, str]:
        return {}

    def collect(self, ask: Ask, round: Round) -> Generator[Ask, Iterator[Answer], Iterator[Answer]]:
        return (yield ask)

    def seal(self, client: Any, packed: bytes) -> bytes:
        return packed
