"""Plans, sites and engines that the tests of whole rounds share."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from torch import Tensor

from fedpeft.algorithms.fedavg import merge
from fedpeft.core.conversation import Answer, Message
from fedpeft.core.interfaces import Engine, Store
from fedpeft.core.rounds import Round
from fedpeft.core.secrets import Secret
from fedpeft.core.types import Failure, Job, Reply, State, Tensors, Update
from fedpeft.engines.inprocess import InProcess
from fedpeft.errors import PlanError
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.loop import Ledger, federate, start
from fedpeft.rounds.site import Site
from fedpeft.storage.client_memory import Nowhere
from fedpeft.wire.payloads import message_of

DIGITS = {
    "method": "head",
    "partition": {"name": "dirichlet", "clients": 90, "alpha": 10.0},
    "local": {"lr": 0.05, "batch_size": 16},
    "rounds": 3,
    "cohort": 3,
    "seed": 3,
}
POINTS = {
    **DIGITS,
    "task": {"name": "parts:Points"},
    "data": {"name": "parts:Blobs", "examples": 600},
    "partition": {"name": "dirichlet", "clients": 24, "alpha": 10.0},
    "rounds": 4,
    "cohort": 4,
}
SCAFFOLD = {"local": {**DIGITS["local"], "correction": "scaffold"}}  # type: ignore[dict-item]
FEEDBACK = {"uplink": {"name": "topk", "density": 0.1}, "stages": ["error_feedback"]}
OWN_BIAS = {"personal": ["*.bias"]}
MEMORIES = pytest.mark.parametrize(
    "changes",
    [SCAFFOLD, FEEDBACK, SCAFFOLD | FEEDBACK, OWN_BIAS, OWN_BIAS | FEEDBACK],
    ids=["scaffold", "ef", "both", "personal", "personal-ef"],
)
PRIVATE = ("client_dp", "local_dp")


def staged(stage: str) -> dict[str, object]:
    """What a plan with that stage, or with none, sets beside its other parts."""
    if stage not in PRIVATE:
        return {"stages": [stage] if stage else []}
    noisy = {"name": stage, "noise_multiplier": 0.1}
    return {"stages": [noisy], "weighting": "uniform", "delta": 1e-3, "accountant": "rdp"}


def fits(**changes: object) -> bool:
    """Whether parts go together, as their own facts say."""
    try:
        points_plan(**changes)
    except PlanError:
        return False
    return True


def plan_of(**changes: object) -> Plan:
    return read_plan({**DIGITS, **changes})


def points_plan(**changes: object) -> Plan:
    return read_plan({**POINTS, **changes})


def on(site: Site, plan: Plan, store: Store | None = None) -> InProcess:
    return InProcess(replace(site, plan=plan), store or Nowhere())


def run(
    site: Site, plan: Plan, store: Store | None = None, state: State | None = None
) -> list[tuple[State, Ledger]]:
    return list(federate(plan, on(site, plan, store), state or start(plan, site.params())))


def last(rounds: list[tuple[State, Ledger]]) -> Tensors:
    assert not any(ledger.failed for _, ledger in rounds)
    return rounds[-1][0].flat


def distance(got: Tensors, want: Tensors) -> float:
    """The difference of what two engines make, all tensors as one vector, over its length."""
    assert got.keys() == want.keys()
    apart = sum(float((got[n].double() - x.double()).square().sum()) for n, x in want.items())
    return float((apart / sum(float(x.double().square().sum()) for x in want.values())) ** 0.5)


def changed(params: Tensors, begun: Tensors) -> dict[str, Tensor]:
    """What became of parameters; those that were not there, or had other shapes, count as a
    whole."""
    old = {name: x for name, x in begun.items() if name in params and x.shape == params[name].shape}
    return {name: x - old[name] if name in old else x for name, x in params.items()}


@dataclass(frozen=True)
class Recording:
    """An engine that keeps what crosses it."""

    inner: Engine
    jobs: list[Job] = field(default_factory=list)
    replies: list[Reply | Failure] = field(default_factory=list)

    @property
    def clients(self) -> Sequence[str]:
        return self.inner.clients

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        jobs = list(jobs)
        self.jobs.extend(jobs)
        for reply in self.inner.run(jobs):
            self.replies.append(reply)
            yield reply


@dataclass(frozen=True)
class Tampering:
    """An engine on whose way the replies of some clients come to harm."""

    inner: Engine
    harm: Mapping[str, Callable[[Reply | Failure], Reply | Failure]]

    @property
    def clients(self) -> Sequence[str]:
        return self.inner.clients

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        for reply in self.inner.run(jobs):
            yield self.harm[reply.client](reply) if reply.client in self.harm else reply


def round_of(plan: Plan, state: State, clients: Sequence[str], ledger: Ledger) -> Round:
    """A round of a plan, as an algorithm sees it."""
    return Round(
        index=state.round,
        plan=plan,
        clients=clients,
        cohort=clients,
        seed=0,
        secret=Secret(bytes(32)),
        report=ledger.report,
    )


def merged(
    plan: Plan, updates: Iterable[Update], state: State, ledger: Ledger, planned: int | None = None
) -> State:
    """The server's step along updates that have come in already."""
    sent = Message({"params": state.params})
    answers = [Answer(update.client, message_of(update), sent) for update in updates]
    clients = [answer.client for answer in answers]
    whole = round_of(plan, state, clients, ledger)
    return merge(state, iter(answers), whole, len(clients) if planned is None else planned)


def good(recording: Recording, jobs: list[Job]) -> list[Reply]:
    wanted = {job.client for job in jobs}
    return [
        reply for reply in recording.replies if isinstance(reply, Reply) and reply.client in wanted
    ]
