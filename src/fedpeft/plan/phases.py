"""Plans that change from round to round: phases that set keys, and numbers that follow a shape.

    [[phase]]
    until = 5                              # rounds 0 to 4
    set = ["routing=[{name='subset', trains=['classifier.*']}]", "local.lr=0.1"]

    [local]
    lr = { from = 0.1, to = 0.001, shape = "cosine" }    # over all rounds

A resume needs nothing of this: the plan of a round follows from its number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, pi
from typing import Any

from fedpeft.errors import PlanError, say_count, unknown

SHAPES = ("linear", "cosine", "exponential")
FIXED = (
    "name", "schema", "seed", "rounds", "classes", "engine", "task", "model", "data", "partition",
    "method", "compute", "nodes", "privacy", "phase", "schedule", "evaluate_at", "metrics",
    "select", "patience",
)  # fmt: skip
"""Keys that are the same in all rounds: what is trained, on what, and by whom."""


@dataclass(frozen=True)
class Phase:
    """`[[phase]]`: keys of the plan that are set in some rounds.

    The first phase whose `until` has not come is that of a round.

    Attributes:
      set: pairs `key=value`, as `--set` takes them.
      until: the first round, counted from 0, that is not in this phase; left out: the last of all.

    Raises:
      ValueError: a key that is the same in all rounds, or an `until` below 1.
    """

    set: tuple[str, ...]
    until: int | None = None

    def __post_init__(self) -> None:
        if self.until is not None and self.until < 1:
            raise ValueError(f"until must be at least 1, got {self.until}")
        for pair in self.set:
            key = pair.partition("=")[0].strip()
            _check_key(key)


@dataclass(frozen=True)
class Schedule:
    """A number of the plan that goes from one value to another over the rounds.

    With t = r / (rounds − 1) in round r, from 0: "linear" is a + (b − a)·t, "cosine"
    b + (a − b)·(1 + cos(π·t)) / 2, "exponential" a·(b / a)^t. Between whole numbers it is rounded
    to the nearest.

    Attributes:
      key: of the number, e.g. "local.lr".
      start, end: a and b.

    Raises:
      ValueError: a value out of range.
    """

    key: str
    start: float
    end: float
    shape: str = "linear"

    def __post_init__(self) -> None:
        _check_key(self.key)
        if self.shape not in SHAPES:
            raise ValueError(unknown("shape", self.shape, SHAPES))
        if self.shape == "exponential" and not (self.start > 0 and self.end > 0):
            raise ValueError(
                f"an exponential shape needs two positive numbers, got {self.start} and {self.end}"
            )

    def at(self, round: int, rounds: int) -> float | int:
        """The value in one of so many rounds."""
        t = min(1.0, round / (rounds - 1)) if rounds > 1 else 0.0
        if self.shape == "linear":
            value = self.start + (self.end - self.start) * t
        elif self.shape == "cosine":
            value = self.end + (self.start - self.end) * (1 + cos(pi * t)) / 2
        else:
            value = self.start * (self.end / self.start) ** t
        whole = float(self.start).is_integer() and float(self.end).is_integer()
        return round_half_up(value) if whole else value


def round_half_up(value: float) -> int:
    """To the nearest whole number."""
    # Python's `round` takes a half to the even side: two steps of a schedule would be of unlike
    # width.
    return int(value + 0.5) if value >= 0 else -int(-value + 0.5)


def take_schedules(values: Mapping[str, Any], path: str = "") -> tuple[dict[str, Any], list[Any]]:
    """The values with each `{from, to, shape}` replaced by where it begins, and the schedules."""
    plain: dict[str, Any] = {}
    found: list[Any] = []
    for key, value in values.items():
        where = f"{path}.{key}" if path else key
        if isinstance(value, Mapping) and {"from", "to"} <= value.keys() <= {"from", "to", "shape"}:
            plain[key] = value["from"]
            rest = {"shape": value["shape"]} if "shape" in value else {}
            found.append({"key": where, "start": value["from"], "end": value["to"], **rest})
        elif isinstance(value, Mapping):
            plain[key], more = take_schedules(value, where)
            found += more
        else:
            plain[key] = value
    return plain, found


def least_rounds(plan: Any) -> int:
    """The rounds that a plan must have at least, so that each phase and each part's course ends
    in them."""
    ends = [one.until or 0 for one in plan.phase]
    # A last phase without an end comes after all others, and needs a round.
    after = max(ends) + 1 if ends and plan.phase[-1].until is None else 0
    needed: list[int] = [
        count for needs in plan.hooks("needs_rounds") for count in needs().values()
    ]
    return max(1, after, *ends, *needed)


def check_span(plan: Any) -> None:
    """Raises PlanError for a phase or a part's course that goes on after the last round, and for a
    phase that never comes."""
    before = 0
    for number, phase in enumerate(plan.phase, 1):
        _check_phase(plan.rounds, number, phase, before)
        before = plan.rounds if phase.until is None else phase.until
    for part in plan.parts:
        for key, count in getattr(part, "needs_rounds", dict)().items():
            if count > plan.rounds:
                raise PlanError(
                    f"{type(part).__name__} with {key} = {getattr(part, key)} needs "
                    f"{say_count(count, 'rounds')} at least, and the plan has {plan.rounds}: lower "
                    f"{key}, or set rounds to "
                    f"{count} or more"
                )


def _check_phase(rounds: int, number: int, phase: Phase, before: int) -> None:
    """One phase, of which those before it end with round `before`."""
    longer = "set rounds to {} or more, or leave phases out: --set 'phase=[]'"
    if before and before >= rounds:
        raise PlanError(
            f"phase {number} never comes: the one before it has all of the plan's {rounds} rounds, "
            f"which are counted from 0. Lower its until, or {longer.format(before + 1)}"
        )
    if phase.until is None:
        return
    if phase.until <= before:
        raise PlanError(
            f"phase {number} never comes: it ends with until = {phase.until}, and the one before "
            f"it with until = {before}. Phases go one after another: raise the until of phase "
            f"{number} above {before}, or leave it out"
        )
    if phase.until > rounds:
        raise PlanError(
            f"phase {number} ends with until = {phase.until}, and the plan has "
            f"{say_count(rounds, 'rounds')}: "
            f"lower until, or {longer.format(phase.until)}"
        )


def _check_key(key: str) -> None:
    first = key.partition(".")[0]
    if first in FIXED or key in ("server", "server.name"):  # its memory is of one optimizer
        raise ValueError(f"{key} is the same in all rounds: a phase or a schedule cannot change it")
