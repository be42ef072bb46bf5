"""Federated training without rounds to wait for: buffered asynchronous aggregation (FedBuff: Nguyen
et al., 2022, arXiv:2106.06639, Algorithm 1), driven by a simulated clock.

`cohort` clients train at a time, each at its own pace from the model that was current when it
began. After `buffer` replies the server takes a step along the mean of s(τ)·Δ, with
s(τ) = (1 + τ)^(−a) for an update that began τ steps ago; a client that has answered makes room for
another at once. The clock knows how long clients take and nothing of what they learn, so that it
can be run again from its beginning: a resume needs only the models that clients still train.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from heapq import heappop, heappush
from typing import Any, ClassVar

import torch

from fedpeft.algorithms.fedavg import merge
from fedpeft.core.conversation import DELTA, Answer, Flow
from fedpeft.core.facts import NOISE, Fact
from fedpeft.core.hooks import Inner
from fedpeft.core.rounds import Round
from fedpeft.core.seeds import generator
from fedpeft.core.tensors import add_prefix, scale, take_prefix
from fedpeft.core.types import ClientId, State, Tensors

OWNER = "fedbuff"
"""The owner, in the server's memory, of models that clients still train: `<version>/<name>`."""


@dataclass(frozen=True, order=True)
class Arrival:
    """A reply on the simulated clock.

    Attributes:
      time: when it comes; 1 is what the usual client takes.
      version: the steps that the server had taken when the client began.
    """

    time: float
    client: ClientId
    version: int


@dataclass(frozen=True)
class FedBuff:
    """A round of the plan is a step of the server.

    Attributes:
      buffer: replies to a step.
      staleness: a of the factor (1 + τ)^(−a) of an update that began τ steps ago; the default is
        that of the paper's experiments.
      pace_spread: σ of the time exp(σ·z) that a client takes, z a standard normal of its own.
      speeds: the time that each client takes, in the order of the clients, instead of drawn times.

    Raises:
      ValueError: a value out of range.
    """

    buffer: int = 10
    staleness: float = 0.5
    pace_spread: float = 0.5
    speeds: tuple[float, ...] = ()
    asynchronous: ClassVar[bool] = True
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.ASYNCHRONOUS})
    forbids: ClassVar[Mapping[Fact, str]] = {
        **{
            fact: "asynchronous steps are for clients that remember nothing: leave out fedbuff, or "
            "{other}"
            for fact in (Fact.REMEMBERS, Fact.HANDS_OVER, Fact.CONTROL, Fact.PERSONAL)
        },
        **{
            noise: "noise is accounted by rounds, and asynchronous steps have none: leave out "
            "fedbuff"
            for noise in NOISE
        },
        Fact.MANY_MESSAGES: "{other} asks clients in a round, and asynchronous steps have none: "
        "leave it out",
        Fact.MIXED_RANKS: "ranks are of one round's updates: leave out fedbuff, or the ranks",
        Fact.MIXED_TENSORS: "{other} {what}, and asynchronous steps have no rounds: "
        "leave out one of them",
        Fact.SUM_ONLY: "a sum is of one round's updates: leave out fedbuff, or secure sums",
    }

    def __post_init__(self) -> None:
        if self.buffer < 1:
            raise ValueError(f"buffer must be at least 1, got {self.buffer}")
        for key in ("staleness", "pace_spread"):
            if not 0 <= getattr(self, key) < float("inf"):
                raise ValueError(
                    f"{key} must not be negative, and be finite, got {getattr(self, key)}"
                )

    def round(self, state: State, round: Round, inner: Inner) -> Flow:
        """One step of the server; the inner algorithm has no part in it."""
        plan = round.plan
        steps = _timetable(self, plan.sampler, plan.cohort, plan.seed, plan.rounds, round.clients)
        came, later = steps[round.index], steps[round.index + 1 :]
        versions = {one.client: one.version for one in came}
        past = {version: self._then(state, version) for version in set(versions.values())}
        ask = round.ask_to_fit(
            sorted(versions), {c: past[version] for c, version in versions.items()}, versions
        )
        answers = yield ask
        fading = {c: (1 + state.round - v) ** -self.staleness for c, v in versions.items()}
        faded = (_fade(answer, fading[answer.client]) for answer in answers)
        needed = {one.version for arrivals in later for one in arrivals}
        kept = {n: x for v in sorted(needed) for n, x in self._kept(state, v).items()}
        after = merge(state, faded, round, planned=len(came))
        memory = {owner: x for owner, x in after.memory.items() if owner != OWNER}
        return replace(after, memory={**memory, **({OWNER: kept} if kept else {})})

    def _then(self, state: State, version: int) -> State:
        """As far as clients see, the state after so many steps."""
        if version == state.round:
            return state
        return replace(state, params=take_prefix(str(version), state.memory[OWNER]))

    def _kept(self, state: State, version: int) -> Tensors:
        """The model after `version` steps, as it is kept for those who still train it; nothing of
        one yet to come."""
        if version == state.round:
            return add_prefix(str(version), state.params)
        return add_prefix(str(version), take_prefix(str(version), state.memory.get(OWNER, {})))


def draw_speeds(spread: float, seed: int, clients: Sequence[ClientId]) -> dict[ClientId, float]:
    """How long each client takes: exp(σ·z) for a standard normal z of its own."""
    normal = {c: torch.randn((), generator=generator(seed, "pace", c)) for c in clients}
    return {client: float((spread * z).exp()) for client, z in normal.items()}


def timetable(
    sampler: Any,
    cohort: int,
    buffer: int,
    seed: int,
    clients: Sequence[ClientId],
    takes: Mapping[ClientId, float],
) -> Iterator[list[Arrival]]:
    """For each step of the server the replies that it is made of, as they come, and without end.

    A client begins once with each model and comes once in a buffer. Where too few are left, the
    buffer is what comes.
    """
    draws, underway, version = generator(seed, "asynchronous"), list[Arrival](), 0
    last: dict[ClientId, int] = {}
    now = 0.0
    while True:
        came: list[Arrival] = []
        while len(came) < buffer:
            busy = {one.client for one in (*underway, *came)}
            free = [c for c in clients if c not in busy and last.get(c) != version]
            wanted = min(cohort - len(underway), len(free))
            for client in sampler.choose(free, wanted, draws, version) if wanted > 0 else ():
                last[client] = version
                heappush(underway, Arrival(now + takes[client], client, version))
            if not underway:
                break
            came.append(heappop(underway))
            now = came[-1].time
        yield came
        version += 1


@lru_cache(maxsize=4)
def _steps(
    part: FedBuff, sampler: Any, cohort: int, seed: int, rounds: int, clients: tuple[str, ...]
) -> tuple[tuple[Arrival, ...], ...]:
    """The whole timetable; it is the same for each round of a run."""
    takes = draw_speeds(part.pace_spread, seed, clients)
    if part.speeds:
        takes = dict(zip(clients, part.speeds, strict=True))
    steps = timetable(sampler, cohort, part.buffer, seed, clients, takes)
    return tuple(tuple(next(steps)) for _ in range(rounds))


def _timetable(
    part: FedBuff, sampler: Any, cohort: int, seed: int, rounds: int, clients: Sequence[str]
) -> tuple[tuple[Arrival, ...], ...]:
    return _steps(part, sampler, cohort, seed, rounds, tuple(clients))


def _fade(answer: Answer, by: float) -> Answer:
    if by == 1:
        return answer
    tensors = {**answer.message.tensors, DELTA: scale(answer.message.tensors[DELTA], by)}
    return replace(answer, message=replace(answer.message, tensors=tensors))
