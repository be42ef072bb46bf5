"""Federated training in synchronous rounds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol, runtime_checkable

from fedpeft.admission import Door
from fedpeft.admission import Ledger as Ledger
from fedpeft.core.interfaces import Engine, Store
from fedpeft.core.lowrank import EXACT, accumulated, cut
from fedpeft.core.secrets import Secret
from fedpeft.core.seeds import fold
from fedpeft.core.stores import Nowhere
from fedpeft.core.tensors import Layout, beside, layout, prefixed, under, zeros_like
from fedpeft.core.trainable import STATISTICS, is_statistic
from fedpeft.core.types import ClientId, Cohort, Failure, Job, Reply, State, Tensors, Update
from fedpeft.core.wire import headers
from fedpeft.errors import PlanError
from fedpeft.head_rows import Rows, rows_told
from fedpeft.head_start import PHASE, with_class_means
from fedpeft.plan import Plan
from fedpeft.privacy import chosen, opened, round_seed
from fedpeft.ranks import dealt, trained
from fedpeft.registry import describe
from fedpeft.site import Site, open_site
from fedpeft.vote import PHASE as VOTE
from fedpeft.vote import ballot, between, counted, merges, weighted


@runtime_checkable
class Beside(Engine, Protocol):
    """An engine in this process, beside the data of its clients and what they remember."""

    @property
    def site(self) -> Site: ...
    @property
    def store(self) -> Store: ...


def start(plan: Plan, params: Tensors | None = None) -> State:
    """The state before the first round; `params` are the method's, where the model is at hand
    already.

    Raises:
      PlanError: the plan asks for rows of a head that is not there.
    """
    params = open_site(plan).params() if params is None else params
    personal = plan.personal_of(params)
    shared = {n: x for n, x in params.items() if n not in personal}
    rows_told(plan, shared)  # before anybody trains
    return State(0, *plan.server.init(shared))


def federate(
    plan: Plan, engine: Engine, state: State | None = None, secret: Secret | None = None
) -> Iterator[tuple[State, Ledger]]:
    """Yield the state and the ledger after each round, from `state` on.

    The server's noise is drawn from `secret`; if there is none, from one that nobody keeps.

    This is McMahan et al. (arXiv:1602.05629), Algorithm 1, line for line; what varies is behind a
    name of the plan. Evaluation, logging, checkpoints and early stopping are the body of the
    caller's `for`.

    Raises:
      PlanError: the clients must remember something and the engine has no place for it, or the
        downlink's codec cannot hold the state.
    """
    beside = engine if isinstance(engine, Beside) else None
    if beside and isinstance(beside.store, Nowhere) and remembers(plan):
        raise PlanError(
            "this plan's clients have a memory: give the engine a store for it, e.g. "
            "store=Folder(path)"
        )
    state = state or start(plan, beside.site.params() if beside else None)
    run, secret = _run(plan), secret or Secret.fresh()
    spending, ranks = opened(plan, engine.clients, state.round), dealt(plan, engine.clients)
    state, ledger = headed(plan, engine, state)
    while state.round < plan.rounds:
        seed = round_seed(plan, state.round)
        clients = chosen(plan, engine.clients, state.round)
        sent = {rank: Sent.of(plan, state, rank) for rank in {ranks[client] for client in clients}}
        wanted = {client: sent[ranks[client]].wanted for client in clients}
        ledger = ledger if ledger.round == state.round else Ledger(state.round)
        door = Door.of(plan, state, wanted, ledger)
        jobs = [
            _job(run, state, client, seed, sent[ranks[client]].payload)
            for client in door.asked(clients)
        ]
        for job in jobs:
            ledger.down[job.client] = ledger.down.get(job.client, 0) + len(job.payload)

        updates = door.bounded(plan.exchange.collect(engine, jobs, door))
        received = {client: sent[ranks[client]].received for client in clients}
        hidden = secret.at("round", state.round)
        cohort = Cohort(
            state.round, len(engine.clients), len(clients), ledger.weights, seed, hidden
        )
        spending.count(clients)
        ledger.privacy = spending.so_far()
        if plan.vote is None:
            state = advance(
                plan, state, aggregate(plan, updates, state, received.__getitem__), cohort, ledger
            )
        else:
            state = _voted(plan, engine, state, list(updates), received.__getitem__, cohort, ledger)
        state = replace(state, norms=tuple(door.norms), refusals=door.refusals)
        yield state, ledger


def headed(plan: Plan, engine: Engine, state: State) -> tuple[State, Ledger]:
    """Before the first round, where the plan asks for it, the head from all clients' class means;
    what that cost."""
    ledger = Ledger(state.round)
    if plan.head_start is None or state.round:
        return state, ledger
    seed, ranks = round_seed(plan, 0), dealt(plan, engine.clients)
    payloads = {rank: encoded(plan, state, rank) for rank in set(ranks.values())}
    run = _run(plan)
    jobs = [
        replace(_job(run, state, c, seed, payloads[ranks[c]]), phase=PHASE) for c in engine.clients
    ]
    params = with_class_means(
        plan, state.params, _answers(engine, jobs, ledger), ledger.failed.setdefault
    )
    return replace(state, params=params), ledger


def _answers(engine: Engine, jobs: Sequence[Job], ledger: Ledger) -> Iterator[Reply | Failure]:
    """What comes of messages beside the round's own, their bytes counted."""
    for job in jobs:
        ledger.down[job.client] = ledger.down.get(job.client, 0) + len(job.payload)
    for reply in engine.run(jobs):
        if isinstance(reply, Reply):
            ledger.up[reply.client] = ledger.up.get(reply.client, 0) + len(reply.payload)
            ledger.up_headers += headers(reply.payload)
        yield reply


def remembers(plan: Plan) -> bool:
    """Whether clients keep something between rounds; of corrections, those that share something
    do."""
    kept = (
        plan.local_shares
        or plan.personal
        or (plan.rounds > 1 and getattr(plan.local, "remembers", False))
    )
    return bool(kept or plan.exchange.sums) or any(stage.remembers for stage in plan.stages)


def hides_clients(plan: Plan) -> bool:
    """Whether the server's step must not tell who answered."""
    return any(stage.event is not None and stage.event.central for stage in plan.stages)


@dataclass(frozen=True)
class Sent:
    """What clients of one rank receive, and the layout of what they send back."""

    payload: bytes
    received: Tensors
    wanted: Layout

    @classmethod
    def of(cls, plan: Plan, state: State, rank: int | None) -> "Sent":
        payload = encoded(plan, state, rank)
        received = plan.downlink.decode(payload)
        return cls(payload, received, layout(trained(plan, received, state.round)))


def encoded(plan: Plan, state: State, rank: int | None = None) -> bytes:
    """What every client of this rank receives."""
    try:
        return plan.downlink.encode(cut(state.params, rank))
    except ValueError as error:
        name = describe("codec", plan.downlink)["name"]
        raise PlanError(
            f"the downlink codec {name!r} cannot hold the state of round {state.round}: {error}"
        ) from None


def _run(plan: Plan) -> str:
    return f"{plan.name}-{plan.fingerprint}"


def _job(run: str, state: State, client: ClientId, seed: int, payload: bytes) -> Job:
    accepted = state.accepted.get(client)
    return Job(run, state.round, client, "fit", fold(seed, "client", client), accepted, payload)


def aggregate(
    plan: Plan, updates: Iterator[Update], state: State, received: Callable[[ClientId], Tensors]
) -> Update | None:
    """The cohort's updates as one, or None if none came.

    Where clients are hidden, nobody's absence may show: noise is then added to nothing.
    """
    first = next(updates, None)
    if first is None:
        return Update("", zeros_like(state.params), 0.0) if hides_clients(plan) else None
    updates = chain([first], updates)
    if plan.head_rows is None:
        return plan.aggregator(updates, state, received)
    rows = Rows.of(plan, state.params)
    return rows.instead(plan.aggregator(rows.passing(updates), state, received))


def advance(
    plan: Plan, state: State, update: Update | None, cohort: Cohort, ledger: Ledger
) -> State:
    """The server's step.

    With fewer than `min_replies` good replies, or where the step leaves the numbers that its types
    can hold, the round
    counts and nothing moves: finite updates may still have an infinite mean, or square.
    """
    if update is None or (len(cohort.weights) < plan.min_replies and not hides_clients(plan)):
        ledger.note = (
            ledger.note
            or f"{len(cohort.weights)} good replies, {plan.min_replies} needed: nothing changes"
        )
        return replace(state, round=state.round + 1)
    for stage in reversed(plan.stages):
        update = stage.on_server(update, cohort)
    ledger.metrics, ledger.aggregation_error = dict(update.metrics), update.error
    params, memory = plan.server.step(
        beside((EXACT,), state.params), state.memory, update.delta, cohort
    )
    exact = accumulated(under(EXACT, state.params), under(EXACT, update.exact))
    params = {**params, **statistics(state.params, update.delta), **prefixed(EXACT, exact)}
    for name, x in (*params.items(), *memory.items()):
        if not x.isfinite().all():
            ledger.note = f"the server's step makes {name!r} infinite or no number: nothing changes"
            return replace(state, round=state.round + 1)
    return State(
        state.round + 1,
        params,
        memory,
        {**state.accepted, **dict.fromkeys(cohort.weights, state.round)},
    )


def _voted(
    plan: Plan,
    engine: Engine,
    state: State,
    updates: Sequence[Update],
    received: Callable[[ClientId], Tensors],
    cohort: Cohort,
    ledger: Ledger,
) -> State:
    """The server's step that those who trained choose, and what choosing cost."""
    ends = []
    for number, one in enumerate(merges(plan).values()):
        update = aggregate(one, weighted(one, updates), state, received)
        ends.append(advance(one, state, update, cohort, replace(ledger) if number else ledger))
    if ledger.note:  # nothing changes
        return ends[0]
    payload = ballot(plan, state, ends)
    jobs = [
        replace(_job(_run(plan), state, c, cohort.seed, payload), phase=VOTE)
        for c in sorted(ledger.weights)
    ]
    choice = counted(plan, _answers(engine, jobs, ledger))
    ledger.vote, end = choice.told, ends[choice.number]
    return replace(end, params=between(state.params, end.params, choice.strength))


def statistics(params: Tensors, delta: Tensors) -> Tensors:
    """BatchNorm's running statistics, which go to their mean past the server optimizer.

    They are measured, not learned: with momentum, or steps of one size, a variance would fall below
    zero. So it may by the error of a lossy codec, hence the clamp.
    """
    moved = {n: params[n] + d for n, d in delta.items() if is_statistic(n)}
    return {n: x.clamp_min(0) if n.endswith(STATISTICS[1]) else x for n, x in moved.items()}
