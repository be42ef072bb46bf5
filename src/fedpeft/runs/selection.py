"""Which round of a run is the best by a metric, and whether a run waits too long for a better one.

All of it follows from rounds.jsonl, so that a resume needs nothing else.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedpeft.core.units import is_less_better
from fedpeft.errors import PlanError
from fedpeft.plan.plan import Plan


@dataclass(frozen=True)
class Best:
    """The best round so far.

    Attributes:
      metric: by which it is the best; empty where a plan selects none.
      round: rounds done with it, of equals the first; 0 before the first that was measured.
      value: of the metric; None where none was a finite number yet.
      waited: evaluations since.
    """

    metric: str
    patience: int = 0
    round: int = 0
    value: float | None = None
    waited: int = 0

    @classmethod
    def of(cls, plan: Plan, rounds: Iterable[Mapping[str, Any]] = ()) -> "Best":
        """The best of the lines of rounds.jsonl."""
        found = cls(plan.select, plan.patience)
        for line in rounds:
            found = found.after(line)
        return found

    @property
    def exhausted(self) -> bool:
        """Whether the run is to end, as nothing better came for so long."""
        return bool(self.patience) and self.waited >= self.patience

    @property
    def why(self) -> str:
        """Why it ends, in words."""
        return (
            f"{self.metric} is no better after {self.waited} more evaluations than the "
            f"{self.value} of round {self.round}: the run ends early (patience)"
        )

    def after(self, line: Mapping[str, Any]) -> "Best":
        """The best with one more round, a line of rounds.jsonl.

        Raises:
          PlanError: it was measured, and without the metric.
        """
        measured = measured_in(line)
        if not self.metric or not measured:
            return self
        if self.metric not in measured:
            raise PlanError(
                f"select = {self.metric!r} is not measured in this run; measured are "
                f"{', '.join(measured)}: choose one of them, or add it to the plan's metrics"
            )
        value = measured[self.metric]
        if value is None or not self._beats(value):
            return replace(self, waited=self.waited + 1)
        return replace(self, round=line["round"], value=value, waited=0)

    def _beats(self, value: float) -> bool:
        if self.value is None:
            return True
        return value < self.value if is_less_better(self.metric) else value > self.value


def measured_in(line: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics of a round: the server's, and what only owners measured of all their examples
    together."""
    owners = (line.get("reports") or {}).get("owners") or {}
    pooled = {name: one["pooled"] for name, one in owners.get("metrics", {}).items()}
    # Where both measured a metric the server's decides, since that is what a run's curve shows.
    return {**pooled, **(line.get("held_out") or {})}
