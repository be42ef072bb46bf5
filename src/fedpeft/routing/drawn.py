"""Groups of tensors, some of which are drawn to be trained: modules of Fed-PLoRA (Zhang et al.,
2026, arXiv:2602.16936, section 3.3), or one block a round (stochastic block attention; Alkhunaizi
et al., 2024, arXiv:2407.11573)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import torch

from fedpeft.core.facts import Fact
from fedpeft.core.seeds import generator
from fedpeft.core.types import ClientId, Tensors
from fedpeft.core.views import View
from fedpeft.errors import PlanError, unknown

DRAWS = ("round", "client")


@dataclass(frozen=True)
class DrawnGroups:
    """In each round clients train some of the groups, drawn without replacement, and all tensors
    that are in no group. Only these travel back; all tensors travel down.

    The draw follows from `seed`, the round, and with by = "client" from the client, so that the
    server knows it. A tensor's mean is over the clients who trained it; one that nobody trained in
    a round rests.

    Attributes:
      pattern: of the names of a group's tensors, as of file names, with {} for the group's number.
      groups: how many there are, numbered from 0.
      counts: client k of the list trains `counts[k mod len(counts)]` groups.
      by: whether a draw is for all clients of a "round", or for each "client" of it.
      seed: of the draws.

    Raises:
      ValueError: a value out of range.
    """

    pattern: str
    groups: int
    counts: tuple[int, ...] = (1,)
    by: str = "round"
    seed: int = 0
    forbids: ClassVar[Mapping[Fact, str]] = {
        fact: "a client trains other tensors in each round, so that nothing can be remembered of "
        "the last: leave out {other}, or {one}"
        for fact in (Fact.REMEMBERS, Fact.HANDS_OVER)
    }

    def __post_init__(self) -> None:
        if self.pattern.count("{}") != 1:
            raise ValueError(
                f"pattern must have one {{}}, for the number of a group, e.g. "
                f'"*.layers.{{}}.attention.*", got {self.pattern!r}'
            )
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1, got {self.groups}")
        if not self.counts or not all(1 <= count <= self.groups for count in self.counts):
            raise ValueError(
                f"counts must be numbers from 1 to groups = {self.groups}, got {list(self.counts)}"
            )
        if self.by not in DRAWS:
            raise ValueError(unknown("by", self.by, DRAWS))

    @property
    def differs(self) -> bool:
        """Whether clients of one round train different tensors."""
        return min(self.counts) < self.groups and (self.by == "client" or len(set(self.counts)) > 1)

    @property
    def offers(self) -> frozenset[Fact]:
        mixed = {Fact.MIXED_TENSORS, Fact.MIXED_VIEWS} if self.differs else set()
        return frozenset({Fact.TURNS} | mixed)

    @property
    def needs(self) -> Mapping[Fact, str]:
        if not self.differs:
            return {}
        words = (
            "drawn lets clients of one round train different tensors, and {aggregator} takes "
            'updates of one layout: set aggregator = "mean", or by = "round" and one count'
        )
        return {Fact.PLAIN_MEAN: words}

    def view(self, client: ClientId, round: int, clients: Sequence[ClientId]) -> View:
        """Raises ValueError for a client that is not in the list."""
        count = self.counts[0]
        if len(self.counts) > 1:
            count = self.counts[list(clients).index(client) % len(self.counts)]
        whom = (client,) if self.by == "client" else ()
        order = torch.randperm(self.groups, generator=generator(self.seed, "drawn", round, *whom))
        still = sorted(order[count:].tolist())
        return View(trains=tuple((f"!{self._of(group)}",) for group in still))

    def check_params(self, params: Tensors) -> None:
        """Raises PlanError for a group without tensors, or for tensors of a further group."""
        for group in range(self.groups):
            if not any(fnmatchcase(name, self._of(group)) for name in params):
                raise PlanError(
                    f"drawn: no trained tensor has a name like {self._of(group)!r}, which is group "
                    f"{group} of {self.groups}; the first is called {next(iter(params), 'none')!r}"
                )
        more = self._of(self.groups)
        if found := next((name for name in params if fnmatchcase(name, more)), ""):
            raise PlanError(
                f"drawn: {found!r} would be of group {self.groups}, and groups = {self.groups} "
                f"ends at {self.groups - 1}: set groups to the number that there are"
            )

    def _of(self, group: int) -> str:
        return self.pattern.replace("{}", str(group))
