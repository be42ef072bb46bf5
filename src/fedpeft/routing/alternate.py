"""Tensors that are trained in turn: in each round some of them are frozen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.core.facts import Fact
from fedpeft.core.types import ClientId
from fedpeft.core.views import View


@dataclass(frozen=True)
class Alternate:
    """In round t, from 0, clients train the tensors of `turns[t mod len(turns)]` and those that no
    turn names; only these travel back. All tensors travel down.

    Attributes:
      turns: a pattern of names for each turn, e.g. ["*.lora_B.*", "*.lora_A.*"], which is RoLoRA's
        order (Chen et al., 2025, arXiv:2502.01755).

    Raises:
      ValueError: there are fewer than two turns.
    """

    turns: tuple[str, ...] = ("*.lora_B.*", "*.lora_A.*")
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.TURNS})
    forbids: ClassVar[Mapping[Fact, str]] = {
        fact: "a client trains other tensors in each round, so that nothing can be remembered of "
        "the last: leave out {other}, or {one}"
        for fact in (Fact.REMEMBERS, Fact.HANDS_OVER)
    }

    def __post_init__(self) -> None:
        if len(self.turns) < 2:
            raise ValueError(f"turns must be two patterns or more, got {list(self.turns)}")

    def view(self, client: ClientId, round: int, clients: Sequence[ClientId]) -> View:
        now = round % len(self.turns)
        still = [turn for place, turn in enumerate(self.turns) if place != now]
        return View(trains=tuple((f"!{pattern}",) for pattern in still))
