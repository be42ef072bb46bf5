"""Federated training in rounds: each is a conversation that an algorithm leads."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from fedpeft.algorithms.fedavg import compose
from fedpeft.core.conversation import Answer, Ask, Flow, converse
from fedpeft.core.interfaces import Engine, Store
from fedpeft.core.rounds import Bench, Round
from fedpeft.core.secrets import Secret
from fedpeft.core.types import ClientId, State, Tensors
from fedpeft.errors import PlanError
from fedpeft.plan.calibration import (
    Spending,
    learns,
    resume_accounting,
    round_seed,
    select_cohort,
)
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import ever_remembers, plan_at
from fedpeft.rounds.admission import Admission
from fedpeft.rounds.ledger import Ledger as Ledger
from fedpeft.rounds.post import Post
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Nowhere

SAMPLER = "sampler"
"""The owner of what a sampler has learnt."""


@runtime_checkable
class LocalEngine(Engine, Protocol):
    """An engine in this process, beside the data of its clients and what they remember."""

    @property
    def site(self) -> Site: ...
    @property
    def store(self) -> Store: ...


def start(plan: Plan, params: Tensors | None = None) -> State:
    """The state before the first round; `params` are the method's, where the model is at hand.

    Raises:
      PlanError: a part needs a tensor, e.g. a linear head, that is not there.

    >>> import torch
    >>> from fedpeft import read_plan
    >>> state = start(read_plan('method = "head"'), {"head.weight": torch.zeros(2, 3)})
    >>> state.round, {name: tuple(x.shape) for name, x in state.params.items()}
    (0, {'head.weight': (2, 3)})
    """
    params = open_site(plan).params() if params is None else params
    personal = plan.personal_of(params)
    shared = {n: x for n, x in params.items() if n not in personal}
    for check in plan.hooks("check_params"):  # before anybody trains
        check(shared)
    return plan.first_state(shared)


def federate(
    plan: Plan,
    engine: Engine,
    state: State | None = None,
    secret: Secret | None = None,
    classes: Sequence[str] = (),
) -> Iterator[tuple[State, Ledger]]:
    """Yield the state and the ledger after each round, from `state` on.

    The server's noise is drawn from `secret`; if there is none, from one that nobody keeps. A plan
    of no rounds trains nobody. It asks what its algorithms ask before the first round, and how the
    model does, and yields once: the state that comes of that, in which no round is done.

    Args:
      classes: what labels are called, where neither the plan nor an engine in this process tells.

    With no algorithm around it this is McMahan et al. (arXiv:1602.05629), Algorithm 1. Evaluation,
    logging, checkpoints and early stopping are the body of the caller's `for`.

    Raises:
      PlanError: the clients must remember something and the engine has no place for it, or the
        downlink's codec cannot hold the state.
    """
    beside = _local(plan, engine)
    classes = _known_classes(plan, beside, classes)
    state = state or start(plan, beside.site.params() if beside else None)
    # Clients tell runs apart by the whole plan's name, as the plan of a phase has a fingerprint of
    # its own.
    secret, clients, run = secret or Secret.fresh(), engine.clients, plan.run
    spending = resume_accounting(plan, clients, state.round)
    if not plan.rounds:
        state, ledger = _hold(plan, engine, state, secret, classes, _begin)
        spending.count_whole()
        ledger.privacy = spending.so_far()
        yield state, ledger
    while state.round < plan.rounds:
        now, ledger = plan_at(plan, state.round), Ledger(state.round)
        admission = Admission.of(now, state, ledger, claims=beside is None)
        round = _open_round(now, state, clients, secret, admission, beside, run, classes)
        post = Post(now, engine, admission, ledger, run)
        after = converse(_lead(plan, state, round, ledger), post)
        _account(spending, round, ledger)
        state = post.remember(admission.after(_teach_sampler(now, after, ledger)))
        yield state, ledger


def ask_owners(plan: Plan, engine: Engine, state: State, classes: Sequence[str] = ()) -> Ledger:
    """Measure a state as the plan's evaluations ask for it, without a round of training.

    Returns:
      What it cost, with what was told in `reports`.
    """

    def measure(state: State, round: Round, ledger: Ledger) -> Flow:
        yield from _measure(state, round, ledger)
        return state

    return _hold(plan, engine, state, Secret.fresh(), classes, measure)[1]


def _hold(
    plan: Plan,
    engine: Engine,
    state: State,
    secret: Secret,
    classes: Sequence[str],
    lead: Callable[[State, Round, Ledger], Flow],
) -> tuple[State, Ledger]:
    """Hold a conversation that is no round; gives what it comes to, and what it cost."""
    beside, ledger = _local(plan, engine), Ledger(state.round)
    classes = _known_classes(plan, beside, classes)
    now = plan_at(plan, state.round)
    admission = Admission.of(now, state, ledger, claims=beside is None)
    round = _open_round(now, state, engine.clients, secret, admission, beside, plan.run, classes)
    after = converse(lead(state, round, ledger), Post(now, engine, admission, ledger, plan.run))
    return after, ledger


def _begin(state: State, round: Round, ledger: Ledger) -> Flow:
    """What the algorithms make before the first round, outermost first, and how it does."""
    after = state
    for one in round.plan.algorithms:
        if hasattr(one, "before_rounds"):
            after = yield from one.before_rounds(after, round)
    if after is not state:
        after = _keep_finite(state, after, ledger)
        if ledger.failed.keys() == ledger.down.keys():
            ledger.report("note", "no client's answer was counted: nothing changes")
    yield from _measure(after, round, ledger)
    return after


def _lead(plan: Plan, state: State, round: Round, ledger: Ledger) -> Flow:
    """The round's algorithms, if anybody was drawn, and the evaluations of what they come to."""
    if not round.cohort:  # a sampler may have nobody left
        ledger.report("note", "the sampler draws nobody: nothing changes")
        after = replace(state, round=state.round + 1)
    else:
        after = yield from compose(round.plan.algorithms)(state, round)
    # Owners measure the state that stays: one that the guard refuses is thrown away.
    after = _guard(round.plan, state, after, ledger)
    if plan.is_evaluated(after.round):
        yield from _measure(after, round, ledger)
    return after


def _measure(state: State, round: Round, ledger: Ledger) -> Generator[Ask, Iterator[Answer], None]:
    """Ask the clients how a state does. Who does not answer that has failed in nothing else, so
    that the reasons stand with what was told."""
    for one in round.plan.asking:
        before, out = ledger.failed, set(ledger.out)
        up, down = ledger.bytes_up, ledger.bytes_down
        # who said itself why it failed in training is asked all the same
        left = {client: why for client, why in before.items() if client in out}
        ledger.failed = {}
        told = yield from one.measure(state, round)
        failed, ledger.failed, ledger.out = ledger.failed, before, out
        cost = {"bytes_up": ledger.bytes_up - up, "bytes_down": ledger.bytes_down - down}
        ledger.report(one.told_as, {**told, "failed": failed, "not_asked": left, **cost})


def unmeasured(plan: Plan, reports: Mapping[str, Any]) -> dict[ClientId, str]:
    """Those who were asked how the state does and told nothing, each with the reason."""
    told = [reports.get(one.told_as, {}) for one in plan.asking]
    return {client: why for one in told for client, why in one.get("failed", {}).items()}


def _local(plan: Plan, engine: Engine) -> LocalEngine | None:
    """The engine, if it lies beside the data.

    Raises:
      PlanError: its clients have no place for what they must remember.
    """
    if not isinstance(engine, LocalEngine):
        return None
    if isinstance(engine.store, Nowhere) and ever_remembers(plan):
        raise PlanError(
            "this plan's clients have a memory: give the engine a store for it, e.g. "
            "store=Folder(path)"
        )
    return engine


def _known_classes(plan: Plan, beside: LocalEngine | None, classes: Sequence[str]) -> Sequence[str]:
    """What labels are called.

    Raises:
      PlanError: owners are to count by them, and nobody told.
    """
    known = beside.site.classes if beside else plan.classes or classes
    if plan.counts_classes and not known:
        raise PlanError(
            "the server does not know the labels, by which owners are to count: name them in the "
            "plan, classes = [...]"
        )
    return known


def _open_round(
    plan: Plan,
    state: State,
    clients: Sequence[str],
    secret: Secret,
    admission: Admission,
    beside: LocalEngine | None,
    run: str,
    classes: Sequence[str],
) -> Round:
    bench = None
    if beside is not None:
        bench = Bench(beside.site.model, beside.site.task, beside.site.data)
    return Round(
        index=state.round,
        plan=plan,
        clients=clients,
        cohort=select_cohort(plan, clients, state.round, state.memory.get(SAMPLER)),
        seed=round_seed(plan, state.round),
        run=run,
        # A key for each round: the same noise in two of them would cancel in their difference.
        secret=secret.at("round", state.round),
        bench=bench,
        report=admission.ledger.report,
        refuse=admission.refuse,
        classes=classes,
    )


def _account(spending: Spending, round: Round, ledger: Ledger) -> None:
    """Note what the round's noise has cost, and close its ledger."""
    # Those who were drawn count, whether they answered or not: so they were counted when the noise
    # was calibrated.
    spending.count(round.cohort)
    ledger.cohort = tuple(round.cohort)
    ledger.privacy = spending.so_far()
    ledger.close()


def _teach_sampler(plan: Plan, state: State, ledger: Ledger) -> State:
    """The state with what a sampler that learns makes of the round."""
    if not learns(plan):
        return state
    sampler: Any = plan.sampler
    memory = sampler.learn(state.memory.get(SAMPLER, {}), ledger)
    return replace(state, memory={**state.memory, SAMPLER: memory})


def _guard(plan: Plan, before: State, after: State, ledger: Ledger) -> State:
    """The next state, or the last one where an algorithm made numbers that are none.

    Raises:
      RuntimeError: an algorithm gives back the state of another round.
    """
    if after.round != before.round + 1:
        raise RuntimeError(
            f"an algorithm gave back the state of round {after.round} in round {before.round}"
        )
    if not plan.algorithms and not plan.server_steps:  # federated averaging has looked at it
        return after
    # The round counts as done. It follows from the state and the answers, so that to repeat it
    # would give the same numbers.
    return _keep_finite(replace(before, round=after.round), after, ledger)


def _keep_finite(before: State, after: State, ledger: Ledger) -> State:
    """What comes of a conversation, or what was there before where it holds numbers that are
    none."""
    groups = {"params": after.params, **after.shared, **after.memory}
    for owner, tensors in groups.items():
        for name, x in tensors.items():
            if not x.isfinite().all():
                where = name if owner == "params" else f"{owner}/{name}"
                ledger.report(
                    "note", f"this round makes {where!r} infinite or no number: nothing changes"
                )
                return before
    return after
