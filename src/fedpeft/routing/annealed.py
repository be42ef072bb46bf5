"""LoRA whose rank shrinks over the rounds, as in SA-FedLoRA (2024, arXiv:2405.09394;
its second version has the title SPD-CFL: Stepwise Parameter Dropout for Efficient Continual
Federated Learning).

The paper's abstract has two stages: first clients stay near the global model, then the budget is
high and shrinks ("heating", "cooling"). Its code is not public and its formulas were not to be had.
So the course here is derived: AdaLoRA's cubic one (Zhang et al., 2023, arXiv:2303.10512).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fedpeft.core.facts import Fact
from fedpeft.core.types import ClientId
from fedpeft.core.views import View
from fedpeft.errors import PlanError


@dataclass(frozen=True)
class Annealed:
    """In round t, from 0, all clients have the rank

        ⌈to + (start − to)·(1 − (t − warm) / (until − warm))³⌉

    which is `start` before round `warm`, and `to` from round `until` on. They receive and send the
    first rows of A and the first columns of B. The server keeps factors of the method's rank.

    Attributes:
      start: the highest rank, at most the method's.
      to: the lowest.
      warm: the last round that has `start`.
      until: the first round that has `to`; at most the plan's rounds.

    Raises:
      ValueError: a value out of range.
    """

    start: int
    to: int
    warm: int
    until: int
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.MIXED_RANKS})
    needs: ClassVar[Mapping[Fact, str]] = {
        Fact.ORDERED: "{aggregator} leaves the rows of low-rank factors in no order, so that a "
        'lower rank would drop any of them: with annealed set aggregator = "flexlora"',
    }
    forbids: ClassVar[Mapping[Fact, str]] = {
        fact: "factors have other ranks in other rounds, so that nothing can be remembered of the "
        "last: leave out {other}, or {one}"
        for fact in (Fact.REMEMBERS, Fact.HANDS_OVER)
    }

    def __post_init__(self) -> None:
        if not 1 <= self.to <= self.start:
            raise ValueError(
                f"the rank falls from start = {self.start} to = {self.to}: both must be at least "
                "1, and start no less than to"
            )
        if not 0 <= self.warm <= self.until:
            raise ValueError(
                f"the rank falls from round warm = {self.warm} to round until = {self.until}: warm "
                "must be at least 0, and until no less"
            )

    @property
    def ranks(self) -> tuple[int, ...]:
        """All that there are, the highest first."""
        every = {self.rank(round) for round in range(self.warm, self.until + 1)}
        return tuple(sorted(every | {self.rank(0)}, reverse=True))

    def rank(self, round: int) -> int:
        """The rank of a round."""
        if round < self.warm:
            return self.start
        if round >= self.until:
            return self.to
        # in whole numbers: a power in floats may lie just above one, and would be rounded up
        above = (self.start - self.to) * (self.until - round) ** 3
        return self.to - -above // (self.until - self.warm) ** 3

    def view(self, client: ClientId, round: int, clients: Sequence[ClientId]) -> View:
        return View(rank=self.rank(round))

    def needs_rounds(self) -> Mapping[str, int]:
        return {"until": self.until}

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError for ranks that the method does not have."""
        most = getattr(plan.method, "rank", None)
        if most is None:
            raise PlanError(
                f"annealed: {type(plan.method).__name__} has no rank; LoRA and its variants have"
            )
        if self.start > most:
            raise PlanError(
                f"annealed: start = {self.start} must be at most method.rank = {most}: lower it, "
                "or raise method.rank"
            )
