"""Federated training without rounds to wait for: buffered asynchronous aggregation (FedBuff: Nguyen
et al., 2022, arXiv:2106.06639, Algorithm 1), driven by a simulated clock.

`cohort` clients train at a time, each at its own pace from the model that was current when it
began. After `buffer` replies the server takes a step along the mean of s(τ)·Δ, with s(τ) = (1 +
τ)^(−a) for an update that began τ steps ago; a client that has answered makes room for another at
once. The clock knows how long clients take and nothing of what they learn, so that it can be run
again from its beginning: a resume needs only the models that clients still train.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush

import torch

from fedpeft.admission import Door
from fedpeft.core.interfaces import Engine
from fedpeft.core.seeds import fold, generator
from fedpeft.core.tensors import beside, prefixed, scale, under
from fedpeft.core.types import ClientId, Cohort, Job, State, Tensors, Update
from fedpeft.errors import PlanError
from fedpeft.fitting import leaking
from fedpeft.loop import Beside, Ledger, Sent, advance, aggregate, remembers, start
from fedpeft.plan import Plan
from fedpeft.privacy import round_seed

STALENESS, SPREAD = 0.5, 0.5
"""What plans leave out; FedBuff's own experiments take the same root."""
PAST = "past"
"""Prefix, in the server's memory, of models that clients still train."""


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


def drawn_speeds(plan: Plan, clients: Sequence[ClientId]) -> dict[ClientId, float]:
    """How long each client takes: exp(σ·z) for σ = `pace_spread` and a standard normal z of its
    own."""
    spread = SPREAD if plan.pace_spread is None else plan.pace_spread
    normal = {
        client: torch.randn((), generator=generator(plan.seed, "pace", client))
        for client in clients
    }
    return {client: float((spread * z).exp()) for client, z in normal.items()}


def timetable(
    plan: Plan, clients: Sequence[ClientId], takes: Mapping[ClientId, float]
) -> Iterator[list[Arrival]]:
    """For each step of the server the replies that it is made of, as they come, and without end.

    A client begins once with each model and comes once in a buffer. Where too few are left, the
    buffer is what comes.
    """
    draws, underway, version = generator(plan.seed, "asynchronous"), list[Arrival](), 0
    last: dict[ClientId, int] = {}
    now = 0.0
    while True:
        came: list[Arrival] = []
        while len(came) < (plan.buffer or 1):
            busy = {one.client for one in (*underway, *came)}
            free = [
                client for client in clients if client not in busy and last.get(client) != version
            ]
            wanted = min(plan.cohort - len(underway), len(free))
            for client in plan.sampler.choose(free, wanted, draws, version) if wanted > 0 else ():
                last[client] = version
                heappush(underway, Arrival(now + takes[client], client, version))
            if not underway:
                break
            came.append(heappop(underway))
            now = came[-1].time
        yield came
        version += 1


def federate_async(
    plan: Plan,
    engine: Engine,
    state: State | None = None,
    takes: Mapping[ClientId, float] | None = None,
) -> Iterator[tuple[State, Ledger]]:
    """Yield the state and the ledger after each step of the server, `rounds` of them, from `state`
    on.

    Bytes are counted with the step that a reply belongs to; what is underway at the end is not.

    Args:
      takes: how long each client takes; drawn from the plan's seed if left out.

    Raises:
      PlanError: clients of this plan remember something, or its noise is made for rounds.
    """
    _check(plan)
    beside_engine = engine if isinstance(engine, Beside) else None
    state = state or start(plan, beside_engine.site.params() if beside_engine else None)
    steps = timetable(plan, engine.clients, takes or drawn_speeds(plan, engine.clients))
    ahead = [next(steps) for _ in range(plan.rounds)]
    for came in ahead[state.round :]:
        sent = {one.version: Sent.of(plan, _then(state, one.version), None) for one in came}
        jobs = [
            _job(plan, one, sent[one.version].payload)
            for one in sorted(came, key=lambda one: one.client)
        ]
        ledger = Ledger(state.round)
        door = Door.of(plan, state, {job.client: sent[job.round].wanted for job in jobs}, ledger)
        asked = door.asked([job.client for job in jobs])
        jobs = [job for job in jobs if job.client in asked]
        ledger.down.update({job.client: len(job.payload) for job in jobs})
        update = _gathered(plan, engine, jobs, sent, state, door)
        cohort = Cohort(
            state.round,
            len(engine.clients),
            len(came),
            ledger.weights,
            round_seed(plan, state.round),
        )
        own = replace(state, memory=beside((PAST,), state.memory))
        later = {one.version for some in ahead[state.round + 1 :] for one in some}
        past = {name: x for version in later for name, x in _kept(state, version).items()}
        state = advance(plan, own, update, cohort, ledger)
        memory = {**state.memory, **past}
        state = replace(state, memory=memory, norms=tuple(door.norms), refusals=door.refusals)
        yield state, ledger


def _check(plan: Plan) -> None:
    if remembers(plan) or leaking(plan):
        raise PlanError(
            "asynchronous steps are for clients that remember nothing: leave out `buffer`, or the "
            "memory"
        )
    if plan.private_part is not None:
        raise PlanError(
            "noise is accounted by rounds, and asynchronous steps have none: leave out `buffer`"
        )


def _then(state: State, version: int) -> State:
    """As far as clients see, the state after so many steps."""
    return (
        state
        if version == state.round
        else replace(state, params=under(f"{PAST}/{version}", state.memory))
    )


def _job(plan: Plan, one: Arrival, payload: bytes) -> Job:
    """What a client was given when it began."""
    run, seed = f"{plan.name}-{plan.fingerprint}", round_seed(plan, one.version)
    return Job(run, one.version, one.client, "fit", fold(seed, "client", one.client), None, payload)


def _gathered(
    plan: Plan,
    engine: Engine,
    jobs: Sequence[Job],
    sent: Mapping[int, Sent],
    state: State,
    door: Door,
) -> Update | None:
    """The replies as one update, each faded by how long ago it began; None if none is good."""
    exponent = STALENESS if plan.staleness is None else plan.staleness
    fading = {job.client: (1 + state.round - job.round) ** -exponent for job in jobs}
    received = {job.client: sent[job.round].received for job in jobs}
    came = door.bounded(plan.exchange.collect(engine, jobs, door))
    faded = (_faded(update, fading[update.client]) for update in came)
    return aggregate(plan, faded, state, received.__getitem__)


def _faded(update: Update, by: float) -> Update:
    return update if by == 1 else replace(update, delta=scale(update.delta, by))


def _kept(state: State, version: int) -> Tensors:
    """The model after `version` steps, as it is kept for those who still train it; nothing of one
    yet to come."""
    if version == state.round:
        return prefixed(f"{PAST}/{version}", state.params)
    return prefixed(f"{PAST}/{version}", under(f"{PAST}/{version}", state.memory))
