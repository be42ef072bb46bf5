"""Federated averaging (McMahan et al., 2017, arXiv:1602.05629, Algorithm 1), and the step with
which every algorithm of one mean ends."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from torch import Tensor

from fedpeft.compute.trainable import STATISTICS, is_statistic
from fedpeft.core.conversation import PARAMS, Answer, Flow
from fedpeft.core.hooks import Algorithm, Inner
from fedpeft.core.low_rank import EXACT, accumulate
from fedpeft.core.rounds import Round
from fedpeft.core.tensors import drop_prefixes, take_prefix, zeros_like
from fedpeft.core.types import ClientId, Cohort, State, Tensors, Update
from fedpeft.wire.payloads import update_of

SERVER = "server"
"""The owner of what the server's optimizer remembers."""


def average(state: State, round: Round) -> Flow:
    """The cohort trains, the updates become one, and the server takes a step along it."""
    ask = round.ask_to_fit(round.cohort, dict.fromkeys(round.cohort, state))
    answers = yield from round.plan.exchange.collect(ask, round)
    return merge(state, answers, round, planned=len(round.cohort))


def compose(algorithms: Sequence[Algorithm]) -> Inner:
    """One round of the algorithms, outermost first, around federated averaging."""
    inner: Inner = average
    for algorithm in reversed(algorithms):
        if hasattr(algorithm, "round"):
            inner = _wrap(algorithm, inner)
    return inner


def _wrap(algorithm: Algorithm, inner: Inner) -> Inner:
    return lambda state, round: algorithm.round(state, round, inner)


def merge(state: State, answers: Iterator[Answer], round: Round, planned: int) -> State:
    """The state after the server's step along the clients' updates.

    Args:
      planned: how many clients were asked, whoever answered.
    """
    received: dict[ClientId, Tensors] = {}
    weights: dict[ClientId, float] = {}

    def updates() -> Iterator[Update]:
        for answer in answers:
            update = update_of(answer.client, answer.message)
            received[answer.client] = answer.sent.tensors.get(PARAMS, {})
            members = answer.members or (answer.client,)
            weights.update(dict.fromkeys(members, update.weight / len(members)))
            yield update

    update = _aggregate(state, updates(), received.__getitem__, round)
    round.report("weights", weights)
    cohort = Cohort(round.index, len(round.clients), planned, weights, round.seed, round.secret)
    return _advance(state, update, cohort, round)


def _aggregate(
    state: State,
    updates: Iterator[Update],
    received: Callable[[ClientId], Tensors],
    round: Round,
) -> Update | None:
    """The cohort's updates as one, or None if none came.

    Where clients are hidden, nobody's absence may show: noise is then added to nothing.
    """
    first = next(updates, None)
    if first is None:
        nothing = Update("", zeros_like(state.params), 0.0)
        return nothing if round.plan.hides_clients else None
    update: Update = round.plan.aggregator(chain([first], updates), state, received)
    return update


def _advance(state: State, update: Update | None, cohort: Cohort, round: Round) -> State:
    """The server's step.

    With fewer than `min_replies` good replies, or where the step leaves the numbers that its types
    can hold, the round counts and nothing moves: finite updates may still have an infinite mean, or
    square.
    """
    plan, rested = round.plan, replace(state, round=state.round + 1)
    least = plan.admission.min_replies
    if update is None or (len(cohort.weights) < least and not plan.hides_clients):
        words = f"{len(cohort.weights)} good replies, {least} needed: nothing changes"
        round.report("note", words)
        return rested
    update, kept = _through_stages(plan.stages, state, update, cohort)
    round.report("metrics", update.metrics)
    round.report("aggregation_error", update.error)
    params, shared, memory = _step(plan, state, update, cohort)
    if EXACT in state.shared or update.exact:
        shared[EXACT] = accumulate(state.shared.get(EXACT, {}), update.exact)
    if name := _not_finite([params, *shared.values(), memory, *kept.values()]):
        round.report(
            "note", f"the server's step makes {name!r} infinite or no number: nothing changes"
        )
        return rested
    accepted = {**state.accepted, **dict.fromkeys(cohort.weights, state.round)}
    memories = {**state.memory, **kept, **({SERVER: memory} if memory else {})}
    after = replace(rested, params=params, shared=shared, memory=memories, accepted=accepted)
    for step in plan.server_steps:
        after = step.step(after, state, round)
    return after


def _through_stages(
    stages: Sequence[Any], state: State, update: Update, cohort: Cohort
) -> tuple[Update, dict[str, Tensors]]:
    """The cohort's update after the server's half of each stage, and by owner what the server
    remembers for the stages that want it."""
    kept: dict[str, Tensors] = {}
    for i, stage in reversed(list(enumerate(stages))):
        update = stage.on_server(update, cohort)
        if hasattr(stage, "remember_update"):
            owner = f"stage{i}"
            before = state.memory.get(owner, {})
            update, kept[owner] = stage.remember_update(update, before, cohort)
    return update, kept


def _step(
    plan: Any, state: State, update: Update, cohort: Cohort
) -> tuple[dict[str, Tensor], dict[str, Tensors], Tensors]:
    """The parameters, what is shared and what the server optimizer remembers, after its step. A
    tensor that nobody sent rests, and so does what the optimizer remembers of it."""
    shared, delta = dict(state.shared), drop_prefixes(plan.local_shares, update.delta)
    for one in plan.sharing:
        change = take_prefix(one.share, update.delta)
        shared[one.share] = one.merge_share(shared[one.share], change, cohort)
    memory = state.memory.get(SERVER, {})
    moving = {name: x for name, x in state.params.items() if name in delta}
    resting = state.params.keys() - delta.keys()
    memory_of = {n: x for n, x in memory.items() if n.partition("/")[2] not in resting}
    moved, remembered = plan.server.step(moving, memory_of, delta, cohort)
    params = {**state.params, **moved} | _statistics(state.params, delta)
    return params, shared, {**memory, **remembered}


def _statistics(params: Tensors, delta: Tensors) -> dict[str, Tensor]:
    """BatchNorm's running statistics, which go to their mean past the server optimizer.

    They are measured, not learned: with momentum, or steps of one size, a variance would fall below
    zero. So it may by the error of a lossy codec, hence the clamp.
    """
    moved = {n: params[n] + d for n, d in delta.items() if n in params and is_statistic(n)}
    return {n: x.clamp_min(0) if n.endswith(STATISTICS[1]) else x for n, x in moved.items()}


def _not_finite(groups: Iterable[Tensors]) -> str:
    """The name of the first tensor that is not finite; empty if all are."""
    for tensors in groups:
        for name, x in tensors.items():
            if not x.isfinite().all():
                return name
    return ""
