"""Laws of every registered algorithm, routing and evaluation. A new one is tested by being
registered."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow_but
from rounds import POINTS, run

from fedpeft.core.facts import Fact, offered_by
from fedpeft.core.interfaces import Store
from fedpeft.core.tensors import equal, finite
from fedpeft.core.types import Failure, Job, Reply, State
from fedpeft.engines.inprocess import InProcess
from fedpeft.errors import PlanError
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.registry import names
from fedpeft.rounds.client import Worker
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Folder

SETTINGS: dict[str, dict[str, Any]] = {
    "fed_trend": {"every": 1, "client_examples": 4, "server_examples": 3, "steps": 2},
    "fedbuff": {"buffer": 3},
    "fedfmc": {"fork": 1},
    "fedmfs": {"groups": {"slopes": ["*.weight"], "offsets": ["*.bias"]}},
    "personal": {"patterns": ["*.bias"]},
    "ranks": {"ranks": [2, 4]},
    "annealed": {"start": 4, "to": 2, "warm": 1, "until": 2},
    "alternate": {"turns": ["*.bias", "*.weight"]},
    "depths": {"depths": [1, 3, 2]},
    "drawn": {"pattern": "*.plora_?.{}", "groups": 4, "counts": [1, 2], "by": "client"},
    "scopes": {"scopes": {"*.bias": ["*[02468]"]}},
    "subset": {"trains": ["*.bias"]},
    "tiers": {"budgets": [1.0, 0.25]},
    "transfer_components": {"targets": ["c001"]},
}
"""What a part must be given; a new one whose defaults do is not here."""
LOW_RANK = {
    "task": {"name": "parts:Points", "network": "hidden"},
    "method": {"name": "lora", "rank": 4, "target": ["first"], "head": "head"},
    "aggregator": "fedit",
}
OWNERS = {
    "classes": ["class 0", "class 1", "class 2"],
    "task": {"name": "parts:ClassedPoints"},
    "partition": {"name": "dirichlet", "clients": 24, "alpha": 10.0, "held_out": 0.2},
    "metrics": ["auroc", "ece"],
}
SLOTS = {"algorithm": "algorithms", "routing": "routing", "evaluation": "evaluate_at"}
PARALLEL = {"name": "plora", "modules": 4, "target": ["first"], "head": "head"}
RANDOM = {"name": "random_features", "pairs": 16, "components": 4, "head": "head"}
BLOCKS = {
    "task": {"name": "parts:Points", "network": "blocks"},
    "method": {"name": "early_exits", "exits": [1, 2, 3], "inner": "full"},
}
OF_RANKS = {
    "depths": BLOCKS,
    "ranks": LOW_RANK,
    "annealed": {**LOW_RANK, "aggregator": "flexlora"},
    "drawn": {"task": LOW_RANK["task"], "method": PARALLEL},
}
EVERY = [(kind, name) for kind in SLOTS for name in sorted(names(kind))]
every = pytest.mark.parametrize(("kind", "name"), EVERY, ids=[name for _, name in EVERY])


def plan_of(kind: str, name: str, **changes: Any) -> Plan:
    """Three rounds on points with the part."""
    slot = SLOTS[kind]
    part = {"name": name, **SETTINGS.get(name, {})}
    plain = {"method": "full", "rounds": 3, "cohort": 4}
    needs: dict[str, dict[str, Any]] = {
        **OF_RANKS,
        "fed_trend": {"task": {"name": "parts:Slopes"}},
        "tiers": {"uplink": "randk"},
        "minimax": {"weighting": "uniform"},
        "owners": OWNERS,
        "transfer_components": {"method": RANDOM},
    }
    beside = needs.get(name, {})
    return read_plan({**POINTS, **plain, **beside, slot: [part], **changes})


def same(one: State, other: State) -> bool:
    both = ({**s.shared, **s.memory, "params": s.params} for s in (one, other))
    mine, others = both
    return mine.keys() == others.keys() and all(equal(x, others[k]) for k, x in mine.items())


class Ended(BaseException):
    """The server's process is gone."""


@dataclass
class Counting:
    """An engine beside its data that counts what crosses it, and ends before reply number `at`.

    Attributes:
      lost: the client whose replies to all phases but "fit" do not come.
    """

    inner: InProcess
    at: int = -1
    lost: str = ""
    down: int = 0
    up: int = 0
    given: int = 0
    phases: set[str] = field(default_factory=set)

    @property
    def site(self) -> Site:
        return self.inner.site

    @property
    def store(self) -> Store:
        return self.inner.store

    @property
    def clients(self) -> Sequence[str]:
        return self.inner.clients

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        jobs = list(jobs)
        self.down += sum(len(job.payload) for job in jobs)
        for job, reply in zip(jobs, self.inner.run(jobs), strict=True):
            self.phases.add(job.phase)
            if self.given == self.at:
                raise Ended
            self.given += 1
            if job.phase != "fit" and job.client == self.lost:
                reply = Failure(job.client, "lost")
            self.up += len(reply.payload) if isinstance(reply, Reply) else 0
            yield reply


@every
def test_every_byte_is_counted_and_the_state_is_finite(
    kind: str, name: str, tmp_path: Path
) -> None:
    plan = plan_of(kind, name)
    site = open_site(plan)
    engine = Counting(InProcess(site, Folder(tmp_path)))
    rounds = list(federate(plan, engine, start(plan, site.params())))
    assert engine.down == sum(ledger.bytes_down for _, ledger in rounds)
    assert engine.up == sum(ledger.bytes_up for _, ledger in rounds)
    assert not any(ledger.failed or ledger.note for _, ledger in rounds)
    assert [state.round for state, _ in rounds] == [1, 2, 3]
    assert all(finite(state.flat) for state, _ in rounds)


@every
@pytest.mark.parametrize("at", slow_but([2, 5], [0, 2, 5, 8]))
def test_a_kill_after_any_answer_and_a_resume_end_in_the_same_bits(
    kind: str, name: str, at: int, tmp_path: Path
) -> None:
    plan = plan_of(kind, name)
    site = open_site(plan)
    whole = run(site, plan, Folder(tmp_path / "whole"))[-1][0]
    store, states = Folder(tmp_path / "cut"), [start(plan, site.params())]
    with pytest.raises(Ended):
        rounds = federate(plan, Counting(InProcess(site, store), at), states[0])
        for state, _ in rounds:
            states.append(state)
    states += [state for state, _ in federate(plan, InProcess(site, store), states[-1])]
    assert same(states[-1], whole)


@every
def test_the_order_of_the_clients_in_memory_does_not_matter(kind: str, name: str) -> None:
    """A result depends on names and seeds, not on what a process did before."""
    plan = plan_of(kind, name)
    if plan.personal:
        pytest.skip("its clients have a memory")
    site = open_site(plan)
    engine = InProcess(site)
    first = [state for state, _ in federate(plan, engine)][-1]
    again = [state for state, _ in federate(plan, engine)][-1]
    assert same(first, again)


@dataclass(frozen=True)
class Scattered:
    """An engine as worker processes or nodes are one: a worker of its own for each job, whose model
    is its own too, and the last job is done first."""

    site: Site
    store: Folder

    @property
    def clients(self) -> Sequence[str]:
        return self.site.data.clients

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        last_first = list(jobs)[::-1]
        replies = [Worker(open_site(self.site.plan), self.store)(job) for job in last_first]
        yield from reversed(replies)


@every
def test_engines_with_many_processes_give_the_same_bits_and_bytes(
    kind: str, name: str, tmp_path: Path
) -> None:
    plan = plan_of(kind, name, rounds=2)
    site = open_site(plan)
    engines = InProcess(site, Folder(tmp_path / "one")), Scattered(site, Folder(tmp_path / "many"))
    one, many = (list(federate(plan, each, start(plan, site.params()))) for each in engines)
    for (state, ledger), (other, others) in zip(one, many, strict=True):
        assert same(state, other)
        assert ledger.reports == others.reports
        assert (ledger.up, ledger.down) == (others.up, others.down)


@every
def test_a_client_that_does_not_answer_a_later_message_costs_that_alone(
    kind: str, name: str, tmp_path: Path
) -> None:
    plan = plan_of(kind, name, cohort=24)
    site = open_site(plan)
    engine = Counting(InProcess(site, Folder(tmp_path)), lost=site.data.clients[0])
    for state, ledger in federate(plan, engine, start(plan, site.params())):
        assert len(ledger.weights) >= 3 and finite(state.flat)


def private(site: Site) -> Iterator[dict[str, Any]]:
    """Settings in which nothing but noisy updates, or their sum, may be told."""
    noise = {"noise_multiplier": 1.0}
    uniform = {"weighting": "uniform"}
    for stage in ("client_dp", "local_dp"):
        yield {"stages": [{"name": stage, **noise}], "delta": 1e-3, **uniform}
    yield {"local": {"name": "dp_sgd", **noise}, "delta": 1e-3, **uniform}
    yield {"exchange": {"name": "secure", "threshold": 3}, **uniform}


TOLD = [(kind, name) for kind, name in EVERY if kind != "routing"]


@pytest.mark.parametrize(("kind", "name"), TOLD, ids=[name for _, name in TOLD])
def test_what_it_asks_beside_training_is_refused_where_nothing_may_be_told(
    kind: str, name: str
) -> None:
    plan = plan_of(kind, name)
    if not plan.handlers() and not plan.hooks("tell") and not plan.hooks("leave_out"):
        pytest.skip("it is told nothing beside")
    [part] = getattr(plan, SLOTS[kind])
    assert Fact.REVEALS in offered_by(part), "what it is told beside training is in `reveals`"
    for settings in private(open_site(plan)):
        with pytest.raises(PlanError):
            plan_of(kind, name, **settings)


@pytest.mark.parametrize("name", sorted(names("routing")))
def test_views_cover_the_state_and_what_nobody_trains_keeps_its_start(
    name: str, tmp_path: Path
) -> None:
    plan = plan_of("routing", name)
    site = open_site(plan)
    begun = start(plan, site.params())
    clients = site.data.clients
    views = [plan.view(client, k, clients) for client in clients for k in range(plan.rounds)]
    received = {n for view in views for n in view.select(begun.params)}
    assert received == begun.params.keys()
    trained = {n for view in views for n in view.trained(view.select(begun.params))}
    end = run(site, plan, Folder(tmp_path))[-1][0]
    for tensor, x in begun.params.items():
        if tensor not in trained:
            assert torch.equal(end.params[tensor], x)
    assert any(not torch.equal(end.params[n], begun.params[n]) for n in trained)
