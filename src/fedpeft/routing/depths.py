"""Clients that hold a model up to a depth of their own, e.g. its first three blocks (ReeFL; Lee et
al., 2024, arXiv:2405.14791, and others with early exits)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fedpeft.core.depth import LIMIT, OWN
from fedpeft.core.facts import Fact
from fedpeft.core.types import ClientId, Tensors
from fedpeft.core.views import Condition, View
from fedpeft.errors import PlanError

USUAL = ("*layers.{}.*", "*layer.{}.*", "*blocks.{}.*", "*block.{}.*", "*.h.{}.*")
"""How models call what lies in block number {}, from 0."""
NUMBERED = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Depths:
    """Client k of the list has the first `depths[k mod len(depths)]` blocks and their exits. What
    lies beyond is neither computed there nor sent in either direction. A tensor's mean is over
    those who hold it.

    Attributes:
      depths: each one of the method's `exits`.
      blocks: patterns of the names of tensors in a block, as of file names, with {} for its number
        from 0.

    Raises:
      ValueError: there are no depths, or a pattern has no place for a number.
    """

    depths: tuple[int, ...]
    blocks: tuple[str, ...] = USUAL
    needs_always: ClassVar[Mapping[Fact, str]] = {
        Fact.DEPTHS: "depths are of a model that can end early: set method = {{ name = "
        '"early_exits", exits = [...] }}, or leave depths out',
    }
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.HANDS_OVER: "local.as_published hands momentum from client to client, which depths "
        "make unlike: choose one",
    }

    def __post_init__(self) -> None:
        if not self.depths or min(self.depths) < 1:
            raise ValueError(f"depths must be numbers of blocks from 1 on, got {list(self.depths)}")
        if wrong := next((one for one in self.blocks if one.count("{}") != 1), None):
            raise ValueError(f"blocks must have one {{}} each, for a number, got {wrong!r}")

    @property
    def differs(self) -> bool:
        """Whether clients hold different tensors."""
        return len(set(self.depths)) > 1

    @property
    def offers(self) -> frozenset[Fact]:
        return frozenset({Fact.MIXED_TENSORS, Fact.MIXED_VIEWS}) if self.differs else frozenset()

    @property
    def needs(self) -> Mapping[Fact, str]:
        if not self.differs:
            return self.needs_always
        words = (
            "depths let clients of one round train different tensors, and {aggregator} takes "
            'updates of one layout: set aggregator = "mean", or one depth'
        )
        return {**self.needs_always, Fact.PLAIN_MEAN: words}

    def view(self, client: ClientId, round: int, clients: Sequence[ClientId]) -> View:
        """Raises ValueError for a client that is not in the list."""
        depth = self.depths[list(clients).index(client) % len(self.depths)]
        receives = tuple(_within(pattern, depth) for pattern in dict.fromkeys((*self.blocks, OWN)))
        return View(receives=receives, sets=((f"*{LIMIT}", float(depth)),))

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError for a depth without an exit."""
        exits = getattr(plan.method, "exits", ()) or self.depths  # none stands for all blocks
        if wrong := sorted({*self.depths} - {*exits}):
            raise PlanError(
                f"depths: {wrong[0]} is none of method.exits = {list(exits)}, so that a client of "
                "that depth would have blocks without an exit: take some of these"
            )

    def check_params(self, params: Tensors) -> None:
        """Raises PlanError where the patterns put a tensor into two blocks, or none into any."""
        remedy = 'set blocks to patterns of this model\'s blocks, e.g. ["*.layers.{}.*"]'
        numbered = [name for name in params if NUMBERED.search(name)]
        places = {name: self._blocks_of(name) for name in numbered}
        for name, found in places.items():
            if len(found) > 1:
                told = " and ".join(found)
                raise PlanError(f"depths: {name!r} belongs to the blocks {told}: {remedy}")
        outside = [name for name, found in places.items() if not found]
        own = _matcher(OWN)
        inside = any(found and not own.search(name) for name, found in places.items())
        if outside and not inside:
            raise PlanError(f"depths: {outside[0]!r} belongs to no block: {remedy}")

    def _blocks_of(self, name: str) -> list[str]:
        """The numbers of the blocks that a tensor is in, by the patterns."""
        patterns = [_matcher(one) for one in (*self.blocks, OWN)]
        return sorted({match[1] for one in patterns for match in one.finditer(f".{name}")})


def _within(pattern: str, depth: int) -> Condition:
    """The names that are in no block at all, or in one of the first."""
    return (f"!{pattern.format('[0-9]*')}", *(pattern.format(k) for k in range(depth)))


def _matcher(pattern: str) -> re.Pattern[str]:
    """What finds the number in a name."""
    before, after = (re.escape(one.strip("*")) for one in pattern.split("{}"))
    return re.compile(rf"{before}(\d+)(?={after})")
