"""Laws of engines: the same bits and bytes as one client after another in this process, whatever
happens on the way."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from marks import slow_but
from parts import Blobs, DiesAfterSaving, FailingDisk, Fatal, Points, Raising

from fedpeft.core.interfaces import Store
from fedpeft.core.tensors import equal
from fedpeft.core.types import Failure, Job, Reply, State
from fedpeft.engines.inprocess import InProcess
from fedpeft.engines.processes import Processes
from fedpeft.errors import PlanError
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.loop import Ledger, federate, start
from fedpeft.rounds.post import encode_start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Folder, Nowhere
from fedpeft.storage.files import StoreError

POINTS = {
    "task": {"name": "parts:Points"},
    "data": {"name": "parts:Blobs", "examples": 600},
    "partition": {"name": "dirichlet", "clients": 12, "alpha": 10.0},
    "method": "head",
    "local": {"lr": 0.05, "batch_size": 8, "correction": "scaffold"},
    "uplink": {"name": "topk", "density": 0.3},
    "stages": ["error_feedback"],
    "rounds": 3,
    "cohort": 8,
}


def plan_of(**changes: object) -> Plan:
    return read_plan({**POINTS, **changes})


@pytest.fixture(scope="module")
def site() -> Site:
    return open_site(plan_of())


def processes(site: Site, store: Store, workers: int = 2) -> Iterator[Processes]:
    engine = Processes(site, store, workers)
    yield engine
    engine.close()


def run(engine: InProcess | Processes, plan: Plan) -> list[tuple[State, Ledger]]:
    try:
        return list(federate(plan, engine, start(plan, engine.site.params())))
    finally:
        engine.close()


def reference(site: Site, plan: Plan, folder: Path) -> list[tuple[State, Ledger]]:
    return run(InProcess(replace(site, plan=plan), Folder(folder)), plan)


def same(got: list[tuple[State, Ledger]], want: list[tuple[State, Ledger]]) -> bool:
    """The bits of every round, its bytes, its weights, its metrics."""
    return len(got) == len(want) and all(
        equal(a.flat, b.flat) and a.accepted == b.accepted and mine == theirs
        for (a, mine), (b, theirs) in zip(got, want, strict=True)
    )


def test_worker_processes_give_the_same_bits_with_memory_and_all(
    site: Site, tmp_path: Path
) -> None:
    got = run(Processes(site, Folder(tmp_path / "workers"), 2), site.plan)
    assert same(got, reference(site, site.plan, tmp_path / "here"))
    assert not any(ledger.failed for _, ledger in got)


def trigger() -> float:
    """The first feature of one training example, by which a task knows that it is its turn to
    die."""
    point: torch.Tensor = Blobs(examples=600).load().train.columns["point"]
    return float(point[100, 0])


def test_a_worker_that_is_killed_in_the_middle_of_a_job_costs_nothing(
    site: Site, tmp_path: Path
) -> None:
    once = tmp_path / "killed"
    plan = replace(site.plan, task=Fatal(trigger(), str(once)), cohort=12)
    got = run(Processes(replace(site, plan=plan), Folder(tmp_path / "workers"), 2), plan)
    assert once.exists(), "nobody was killed"
    assert same(got, reference(site, replace(plan, task=Points()), tmp_path / "here"))


@pytest.mark.slow
def test_a_worker_that_is_killed_before_it_answers_does_not_train_twice(
    site: Site, tmp_path: Path
) -> None:
    """Its memory is written and its reply is not sent: the second attempt finds both."""
    once, plan = tmp_path / "killed", replace(site.plan, cohort=12)
    store = DiesAfterSaving(Folder(tmp_path / "workers"), site.data.clients[3], str(once))
    got = run(Processes(replace(site, plan=plan), store, 2), plan)
    assert once.exists(), "nobody was killed"
    assert same(got, reference(site, plan, tmp_path / "here"))


@pytest.mark.slow
def test_a_client_that_kills_every_worker_is_a_named_failure_and_the_rest_are_averaged(
    site: Site, tmp_path: Path
) -> None:
    plan = replace(site.plan, task=Fatal(trigger()), cohort=12, rounds=1)
    [(state, ledger)] = run(
        Processes(replace(site, plan=plan), Folder(tmp_path / "workers"), 2), plan
    )
    [(client, reason)] = ledger.failed.items()
    assert reason == "its worker process ended with code -9, 2 times"
    assert client not in state.accepted and len(ledger.weights) == 11
    here = InProcess(replace(site, plan=replace(plan, task=Points())), Folder(tmp_path / "here"))

    @dataclass(frozen=True)
    class Without:
        """The same clients without that one."""

        clients = here.clients

        def run(self, jobs: object) -> Iterator[Reply | Failure]:
            for reply in here.run(jobs):  # type: ignore[arg-type]
                yield Failure(client, reason) if reply.client == client else reply

    [(want, theirs)] = federate(plan, Without(), start(plan, site.params()))
    assert equal(state.flat, want.flat) and ledger == theirs


def jobs_of(site: Site, plan: Plan, round: int) -> list[Job]:
    payload = encode_start(plan, start(plan, site.params()))
    return [
        Job("run", round, client, "fit", 7 + k, None, payload)
        for k, client in enumerate(site.data.clients)
    ]


@pytest.mark.slow
def test_who_leaves_in_the_middle_of_a_round_finds_nothing_of_it_in_the_next(site: Site) -> None:
    plan = plan_of(local={"lr": 0.05}, server="average", stages=[])
    here = InProcess(replace(site, plan=plan))
    for engine in processes(here.site, Nowhere()):
        replies = engine.run(jobs_of(site, plan, 0))
        assert next(replies) == next(here.run(jobs_of(site, plan, 0)))
        replies.close()  # type: ignore[attr-defined]
        assert list(engine.run([])) == []
        assert list(engine.run(jobs_of(site, plan, 1)[::-1])) == list(
            here.run(jobs_of(site, plan, 1)[::-1])
        )


def test_what_goes_wrong_in_a_worker_is_the_clients_failure_with_the_same_words(site: Site) -> None:
    plan = plan_of(local={"lr": 1e38, "batch_size": 2, "epochs": 3}, server="average", stages=[])
    here = InProcess(replace(site, plan=plan))
    for engine in processes(here.site, Nowhere()):
        got = list(engine.run(jobs_of(site, plan, 0)[:2]))
        assert got == list(here.run(jobs_of(site, plan, 0)[:2]))
        assert all(isinstance(one, Failure) and "diverged" in one.reason for one in got)


def test_a_worker_that_cannot_start_says_why(site: Site) -> None:
    plan = replace(site.plan, classes=("of", "other", "data"))
    for engine in processes(replace(site, plan=plan), Nowhere(), 1):
        [got] = engine.run(jobs_of(site, site.plan, 0)[:1])
        assert isinstance(got, Failure)
        assert "could not start: the plan's classes are ['of', 'other'" in got.reason


@pytest.mark.parametrize(
    "error",
    slow_but(
        ["OSError"], ["IndexError", "TypeError", "AttributeError", "AssertionError", "OSError"]
    ),
)
def test_whatever_a_task_raises_is_its_clients_failure_in_the_same_words(
    site: Site, error: str
) -> None:
    plan = replace(
        plan_of(local={"lr": 0.05}, server="average", stages=[]), task=Raising(trigger(), error)
    )
    here = InProcess(replace(site, plan=plan))
    jobs = jobs_of(site, plan, 0)
    got = list(here.run(jobs))
    [failure] = [one for one in got if isinstance(one, Failure)]
    # an error of the system says enough by its words
    words = "of this task" if error == "OSError" else f"{error}: of this task"
    assert failure.reason == words
    if error in ("IndexError", "OSError"):  # a process each takes its time
        for engine in processes(here.site, Nowhere()):
            assert list(engine.run(jobs)) == got


@pytest.mark.parametrize("method", ["reply", "load", "save"])
def test_a_failing_disk_ends_the_round_in_every_engine(
    site: Site, tmp_path: Path, method: str
) -> None:
    """Were it a client's failure, a resumed run would end in other bits."""
    store = FailingDisk(Folder(tmp_path), site.data.clients[1], method)
    jobs = jobs_of(site, site.plan, 0)[:3]
    with pytest.raises(StoreError, match="No space left on device: 'memory'"):
        list(InProcess(site, store).run(jobs))
    for engine in processes(site, store) if method == "save" else ():
        with pytest.raises(StoreError, match="No space left on device: 'memory'"):
            list(engine.run(jobs))
        assert list(engine.run(jobs[:1])) == list(
            InProcess(site, Folder(tmp_path / "other")).run(jobs[:1])
        )


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system cannot keep a process to processors"
)
def test_as_many_workers_as_this_process_may_use_processors(site: Site) -> None:
    plan = plan_of(local={"lr": 0.05}, server="average", stages=[])
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        for engine in processes(replace(site, plan=plan), Nowhere(), 0):
            assert len(list(engine.run(jobs_of(site, plan, 0)[:3]))) == 3
            assert len(active_children()) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_a_part_that_cannot_be_sent_is_a_plan_error(site: Site) -> None:
    @dataclass(frozen=True)
    class Local(Points):
        """A class inside a function: nobody else can import it."""

    for engine in processes(replace(site, plan=replace(site.plan, task=Local())), Nowhere()):
        with pytest.raises(PlanError, match="cannot be sent to worker processes"):
            list(engine.run(jobs_of(site, site.plan, 0)))
