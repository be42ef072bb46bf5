"""Clients in Ray's actors: the bits of one process, whatever happens on the way. Ray alone takes
seconds to begin."""

import gc
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from crashes import BLOBS, alive, assert_same_end, descendants, write
from parts import Blobs, DiesAfterSaving, FailingDisk, Fatal
from rounds import FEEDBACK, SCAFFOLD, points_plan, run
from test_kill import begin, finish, undisturbed, until

from fedpeft.core.interfaces import Store
from fedpeft.core.tensors import equal
from fedpeft.core.types import Failure, Job
from fedpeft.engines.flower.ray_engine import FlowerSimulation, _failure, _silence_ray
from fedpeft.engines.inprocess import InProcess
from fedpeft.errors import RunError
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.post import encode_start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Folder, Nowhere
from fedpeft.storage.files import StoreError

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves its files to the collector
]
there = pytest.mark.skipif(
    find_spec("ray") is None, reason="ray is not installed: the extra flower-simulation has it"
)
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def site() -> Site:
    return open_site(points_plan(cohort=8, rounds=3, **SCAFFOLD, **FEEDBACK))


def simulation(site: Site, store: Store) -> Iterator[FlowerSimulation]:
    before = set(descendants(os.getpid()))
    engine = FlowerSimulation(site, store, 2)
    yield engine
    engine.close()
    gc.collect()
    until(lambda: not alive([*set(descendants(os.getpid())) - before]), seconds=30)


def trigger() -> float:
    """The first feature of one training example, by which a task knows that it is its turn to
    die."""
    return float(Blobs(examples=600).load().train.columns["point"][100, 0])


@there
@slow
def test_actors_give_the_same_bits_though_two_are_killed(site: Site, tmp_path: Path) -> None:
    """One in the middle of a job, and one that had written its client's memory and not answered."""
    plan = replace(site.plan, task=Fatal(trigger(), str(tmp_path / "killed")), cohort=24)
    store = DiesAfterSaving(
        Folder(tmp_path / "actors"), site.data.clients[3], str(tmp_path / "late")
    )
    for engine in simulation(replace(site, plan=plan), store):
        got = list(federate(plan, engine, start(plan, site.params())))
    assert (tmp_path / "killed").exists() and (tmp_path / "late").exists(), "nobody was killed"
    want = run(site, replace(site.plan, cohort=24), Folder(tmp_path / "here"))
    for (ours, mine), (theirs, other) in zip(got, want, strict=True):
        assert equal(ours.flat, theirs.flat) and ours.accepted == theirs.accepted and mine == other


def jobs_of(site: Site, count: int) -> list[Job]:
    payload = encode_start(site.plan, start(site.plan, site.params()))
    return [
        Job("run", 0, client, "fit", 7 + k, None, payload)
        for k, client in enumerate(site.data.clients[:count])
    ]


@there
@slow
def test_failures_and_leaving_are_those_of_one_process(site: Site, tmp_path: Path) -> None:
    """A client that kills every actor, a disk that is full, and who leaves in the middle of a
    round."""
    fatal = replace(site, plan=replace(site.plan, task=Fatal(trigger())))
    jobs = jobs_of(site, 24)
    want = list(InProcess(site, Folder(tmp_path / "here")).run(jobs))
    for engine in simulation(fatal, Folder(tmp_path / "fatal")):
        got = list(engine.run(jobs))
        [failed] = [one for one in got if isinstance(one, Failure)]
        assert failed.reason.startswith("its actor did not do the work: ")
        assert [one for one in got if one != failed] == [
            one for one in want if one.client != failed.client
        ]
        replies = engine.run([replace(job, round=1) for job in jobs])
        next(replies)
        replies.close()  # type: ignore[attr-defined]
        assert list(engine.run(jobs[:2])) == want[:2]
    for engine in simulation(
        site, FailingDisk(Folder(tmp_path / "disk"), site.data.clients[1], "save")
    ):
        with pytest.raises(StoreError, match="No space left on device: 'memory'"):
            list(engine.run(jobs[:3]))


@there
@slow
def test_ctrl_c_ends_the_actors_and_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "closed").touch()
    stage = f'{{name = "crashes:Gate", folder = "{tmp_path}"}}'
    gate = f'engine = "flower-simulation"\nstages = [{stage}]\n'
    plan = write(tmp_path / "plan.toml", gate, BLOBS)
    process = begin("run", plan, "--out", tmp_path / "run", "--workers", "2")
    until((tmp_path / "reached").exists, process, 300)
    begun = descendants(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines()[-1].startswith("interrupted: what is done is kept; go on with")
    until(lambda: not alive(begun), seconds=30)
    (tmp_path / "closed").unlink()
    finish("run", "--resume", tmp_path / "run")
    assert_same_end(tmp_path / "run", undisturbed(plan, tmp_path / "undisturbed"))


@there
@slow
def test_a_cluster_that_loses_a_machine_ends_the_run(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two raylets of one processor each on this machine, one of which is taken away."""
    from ray.cluster_utils import Cluster

    with _silence_ray():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        other = cluster.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    engine = FlowerSimulation(site)
    jobs = jobs_of(site, 8)
    try:
        assert list(engine.run(jobs)) == list(InProcess(site).run(jobs))
        cluster.remove_node(other, allow_graceful=False)
        with pytest.raises(RunError, match="go on with `fedpeft run --resume` on the machines"):
            for turn in range(1, 200):
                list(engine.run([replace(job, round=turn) for job in jobs]))
    finally:
        engine.close()
        cluster.shutdown()


def test_where_flower_has_no_actor_left_no_client_is_blamed() -> None:
    with pytest.raises(RunError, match="has lost an actor for good"):
        _failure("a", "<class 'IndexError'>:<'pop from empty list'>")
    failed = _failure("a", "<class 'ray.exceptions.ActorDiedError'>:<'it died'>")
    assert failed.client == "a" and failed.reason.startswith("its actor did not do the work: <")


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_it_says_what_to_install(points: Site) -> None:
    with pytest.raises(RunError, match=r"pip install 'fedpeft\[flower-simulation\]'"):
        FlowerSimulation(points, Nowhere())


@there
def test_a_cluster_decides_how_many_workers_there_are(
    points: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(RunError, match="has its own number of workers: leave it out"):
        FlowerSimulation(points, Nowhere(), 3)
