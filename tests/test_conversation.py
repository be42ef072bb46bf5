"""An algorithm from another package runs everywhere: no line of this one knows it."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from rounds import POINTS

from fedpeft.core.conversation import Answer, Ask, Flow, Message, converse, record, replay
from fedpeft.core.interfaces import Engine
from fedpeft.core.tensors import equal
from fedpeft.core.types import Failure, Job, Reply, State
from fedpeft.engines.inprocess import InProcess
from fedpeft.engines.processes import Processes
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.registry import _installed_parts
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Folder

PLUGIN = Path(__file__).parent / "plugin"
OTHERS = {
    "algorithms": ["drift"],
    "server_steps": [{"name": "shrink", "rate": 0.25}],
    "server": "momentum",
}


class Ended(BaseException):
    """The server's process is gone."""


@pytest.fixture(autouse=True)
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The other package is installed."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    monkeypatch.setenv("PYTHONPATH", ":".join([str(PLUGIN), *sys.path]))
    _installed_parts.cache_clear()
    yield
    _installed_parts.cache_clear()


def plan_of(**changes: object) -> Plan:
    return read_plan({**POINTS, "method": "full", **OTHERS, **changes})


@dataclass
class Ending:
    """An engine that ends, like its process, before it gives reply number `at`."""

    inner: Engine
    at: int
    given: int = field(default=0)

    @property
    def clients(self) -> Sequence[str]:
        return self.inner.clients

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        for reply in self.inner.run(jobs):
            if self.given == self.at:
                raise Ended
            self.given += 1
            yield reply


def same(one: State, other: State) -> bool:
    groups = [(one.params, other.params)]
    for mine, others in ((one.shared, other.shared), (one.memory, other.memory)):
        assert mine.keys() == others.keys()
        groups += [(mine[owner], others[owner]) for owner in mine]
    return all(equal(a, b) for a, b in groups)


def run(plan: Plan, engine: Engine, site: Site) -> State:
    *_, (state, ledger) = federate(plan, engine, start(plan, site.params()))
    assert not ledger.failed, ledger.failed
    return state


def test_what_it_does_is_what_its_author_wrote(tmp_path: Path) -> None:
    plan = plan_of(rounds=2, cohort=24)
    site = open_site(plan)
    states = [s for s, _ in federate(plan, InProcess(site, Folder(tmp_path)), start(plan))]
    assert float(states[0].memory["drift"]["calls"]) == 24
    assert float(states[1].memory["drift"]["calls"]) == 24 + 48
    mean = torch.cat([b["point"] for c in site.data.clients for b in site.data.training(c)]).mean(0)
    for state in states:  # of all clients, hence of all points
        torch.testing.assert_close(state.memory["drift"]["centre"], mean, atol=1e-5, rtol=0)
    plain = replace(plan, algorithms=(), server_steps=(), rounds=1)
    begun = start(plain, site.params())
    [(alone, _)] = federate(plain, InProcess(site, Folder(tmp_path / "b")), begun)
    for name, x in alone.params.items():
        torch.testing.assert_close(states[0].params[name], 0.75 * x)
    biases = [name for name in alone.params if name.endswith("bias")]
    momentum = states[1].memory["server"]
    assert biases, "in the second round they rest, with their moments"
    for name in (f"m/{bias}" for bias in biases):
        assert torch.equal(momentum[name], states[0].memory["server"][name])


@pytest.mark.parametrize("at", range(0, 13, 3))
def test_a_kill_after_any_answer_and_a_resume_end_in_the_same_bits(tmp_path: Path, at: int) -> None:
    plan = plan_of(rounds=2, cohort=3)
    site = open_site(plan)
    whole = run(plan, InProcess(site, Folder(tmp_path / "whole")), site)
    store, states = Folder(tmp_path / "cut"), [start(plan, site.params())]
    with suppress(Ended):
        engine = Ending(InProcess(site, store), at)
        for state, _ in federate(plan, engine, states[0]):
            states.append(state)
    states += [state for state, _ in federate(plan, InProcess(site, store), states[-1])]
    assert same(states[-1], whole)


@pytest.mark.slow
@pytest.mark.parametrize("at", [3, 6, 9])
def test_a_kill_between_messages_to_worker_processes_ends_in_the_same_bits(
    tmp_path: Path, at: int
) -> None:
    """After the first ask, after the second one, and after the first one of the second round."""
    plan = plan_of(rounds=2, cohort=3)
    site = open_site(plan)
    whole = run(plan, InProcess(site, Folder(tmp_path / "whole")), site)
    store, states = Folder(tmp_path / "cut"), [start(plan, site.params())]
    with suppress(Ended), closing(Processes(site, store, workers=2)) as engine:
        for state, _ in federate(plan, Ending(engine, at), states[0]):
            states.append(state)
    assert len(states) == 1 + at // 6
    with closing(Processes(site, store, workers=2)) as engine:
        states += [state for state, _ in federate(plan, engine, states[-1])]
    assert same(states[-1], whole)


def test_every_engine_gives_the_same_bits_and_bytes(tmp_path: Path) -> None:
    plan = plan_of(rounds=3, cohort=5)
    site = open_site(plan)
    found = {}
    for name, engine in (
        ("inprocess", InProcess(site, Folder(tmp_path / "a"))),
        ("processes", Processes(site, Folder(tmp_path / "b"), workers=2)),
        ("cohort", Cohort(site, Folder(tmp_path / "c"))),
    ):
        rounds = list(federate(plan, engine, start(plan, site.params())))
        assert not any(ledger.failed for _, ledger in rounds), rounds[-1][1].failed
        found[name] = rounds
        engine.close()
    one, two, three = found.values()
    assert same(one[-1][0], two[-1][0])
    for (_, a), (_, b), (_, c) in zip(one, two, three, strict=True):
        assert a.up == b.up and a.down == b.down == c.down
    for name, x in one[-1][0].params.items():
        torch.testing.assert_close(three[-1][0].params[name], x, rtol=1e-4, atol=1e-5)


def test_a_client_that_fails_in_a_later_message_costs_that_message_alone(tmp_path: Path) -> None:
    plan = plan_of(rounds=1, cohort=4)
    site = open_site(plan)

    @dataclass(frozen=True)
    class Failing:
        inner: Engine

        @property
        def clients(self) -> Sequence[str]:
            return self.inner.clients

        def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
            jobs = list(jobs)
            for job, reply in zip(jobs, self.inner.run(jobs), strict=True):
                first = job is jobs[0]
                yield Failure(job.client, "gone") if first and job.phase == "drift" else reply

    [(state, ledger)] = federate(plan, Failing(InProcess(site, Folder(tmp_path))), start(plan))
    assert len(ledger.weights) == 4 and not ledger.failed
    assert "gone" in ledger.note and float(state.memory["drift"]["calls"]) == 3


def test_a_phase_that_the_plan_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    plan = plan_of(rounds=1)
    site = open_site(plan)
    worker = InProcess(site, Folder(tmp_path)).worker
    job = Job(plan.run, 0, site.data.clients[0], "class_means", 0, None, b"")
    reply = worker(job)
    assert isinstance(reply, Failure) and "class_means" in reply.reason
    assert "drift" in reply.reason, "it says which messages there are"


def flow_of(state: State) -> Flow:
    first = list((yield Ask("one", {"a": Message(), "b": Message()}, lambda _: {})))
    second = list((yield Ask("two", {"a": Message()}, lambda _: {})))
    total = sum(a.message.values["x"] for a in (*first, *second))
    return replace(state, params={"x": torch.tensor(float(total))})


def test_a_replay_of_recorded_answers_is_the_conversation() -> None:
    asked = []

    def post(ask: Ask) -> Iterator[Answer]:
        asked.append(ask.phase)
        return iter([Answer(c, Message({}, {"x": len(asked)})) for c in sorted(ask.to)])

    heard: list[tuple[Ask, Sequence[Answer]]] = []
    state = converse(record(flow_of(State(0, {})), heard), post)
    assert asked == ["one", "two"] and float(state.params["x"]) == 1 + 1 + 2
    again = replay(flow_of(State(0, {})), heard)
    assert asked == ["one", "two"] and torch.equal(again.params["x"], state.params["x"])
    with pytest.raises(ValueError, match="'two' was not asked"):
        replay(flow_of(State(0, {})), heard[:1])


def test_two_parts_that_answer_one_message_do_not_fit() -> None:
    with pytest.raises(Exception, match="two parts of this plan answer the message 'drift'"):
        plan_of(algorithms=["drift", "drift"])


def test_a_sampler_that_learns_goes_on_where_it_was_and_is_accounted_by_its_bound(
    tmp_path: Path,
) -> None:
    private = {"stages": [{"name": "client_dp", "noise_multiplier": 1.0}], "delta": 1e-3}
    plan = plan_of(
        algorithms=[],
        server_steps=[],
        sampler="least_asked",
        rounds=4,
        cohort=6,
        weighting="uniform",
        **private,
    )
    site = open_site(plan)
    rounds = list(federate(plan, InProcess(site), start(plan)))
    drawn = [sorted(ledger.weights) for _, ledger in rounds]
    assert len({client for some in drawn for client in some}) == 24, "each of 24 clients once"
    resumed = list(federate(plan, InProcess(site), rounds[1][0]))
    assert [sorted(ledger.weights) for _, ledger in resumed] == drawn[2:]
    spent = [ledger.privacy["epsilon"] for _, ledger in (*rounds, *resumed) if ledger.privacy]
    assert len(set(spent)) == 1, "nobody takes part twice in four rounds"
