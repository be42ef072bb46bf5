"""Rounds times epochs: what restarts, what one round is, where each client starts, and chains."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from contributions import merge, study
from rounds import Recording, on, points_plan, run
from running import PLAN

from fedpeft import PlanError, read_plan
from fedpeft.codecs.dense import Dense
from fedpeft.core.tensors import add, equal, layout, take_prefix
from fedpeft.core.types import Failure, Job, Reply, Tensors
from fedpeft.engines.inprocess import InProcess
from fedpeft.engines.processes import Processes
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.oneshot.rules import Rules
from fedpeft.rounds.client import Worker
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Folder, Nowhere
from fedpeft.storage.files import load_tensors
from fedpeft.wire.payloads import unpack

DECAYING = {
    "lr": 0.1,
    "batch_size": 1000,
    "schedule": "linear",
    "optimizer": {"name": "sgd", "momentum": 0.9},
}
ALONE = {"partition": {"name": "iid", "clients": 1}, "cohort": 1}


def settled_at(
    site: Site, store: Path, rounds: int, epochs: int, restart: bool | None
) -> torch.Tensor:
    local = {**DECAYING, "epochs": epochs} | (
        {} if restart is None else {"restart_schedule": restart}
    )
    plan = points_plan(**ALONE, rounds=rounds, local=local)
    return torch.cat([x.flatten() for x in run(site, plan, Folder(store))[-1][0].params.values()])


def test_without_a_restart_one_client_s_rounds_do_not_show(tmp_path: Path) -> None:
    """In full batches, T rounds of k epochs are one of T·k for a client that is alone."""
    site = open_site(points_plan(**ALONE))

    def end(rounds: int, epochs: int, restart: bool | None) -> torch.Tensor:
        return settled_at(site, tmp_path / f"{rounds}{restart}", rounds, epochs, restart)

    once = end(1, 6, False)
    for rounds, epochs in ((3, 2), (6, 1)):
        torch.testing.assert_close(end(rounds, epochs, False), once, rtol=1e-5, atol=1e-6)
    for restart in (None, True):  # momentum is lost, or the rate rises again as well
        assert torch.equal(end(1, 6, restart), once)
        assert not torch.allclose(end(3, 2, restart), once, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(end(3, 2, None), end(3, 2, True), rtol=1e-3, atol=1e-3)


def test_a_restarted_schedule_runs_over_each_round(points: Site) -> None:
    plan = points_plan(local={**DECAYING, "restart_schedule": True})
    worker = Worker(replace(points, plan=plan), Nowhere())
    payload = Dense().encode(points.params())
    opened = worker.open(Job("run", 2, points.data.clients[0], "fit", 1, None, payload))
    assert not isinstance(opened, Failure | Reply)
    clock = plan.local.begin(opened.start, {}, opened.context)["clock"]
    assert (float(clock["at"]), float(clock["end"])) == (0, opened.context.steps)


@pytest.mark.parametrize("restart", ["true", "false"])
def test_one_round_is_one_shot_to_the_bit(restart: str, tmp_path: Path) -> None:
    settings = [
        "local.schedule=linear",
        "local.optimizer=adamw",
        "local.epochs=3",
        f"local.restart_schedule={restart}",
    ]
    files = study(tmp_path, *settings)
    merge(files.path, files.files, tmp_path / "merged", Rules())
    plan = read_plan(PLAN, ["rounds=1", "cohort=4", *settings])
    site = open_site(plan)
    merged = take_prefix(
        "params", load_tensors(tmp_path / "merged" / "checkpoint" / "state.safetensors")[0]
    )
    assert equal(run(site, plan)[-1][0].params, merged)


def test_at_equal_work_t_rounds_send_t_times_the_bytes(points: Site) -> None:
    sent = {}
    for rounds, epochs in ((6, 1), (3, 2), (1, 6)):
        plan = points_plan(
            rounds=rounds, cohort=5, local={"batch_size": 16, "epochs": epochs}, weighting="uniform"
        )
        records = [ledger for _, ledger in run(points, plan)]
        sent[rounds] = sum(ledger.bytes_down for ledger in records)
        assert len({ledger.bytes_down for ledger in records}) == 1
    assert sent[6] == 6 * sent[1] and sent[3] == 3 * sent[1]


@dataclass(frozen=True)
class OneAfterAnother:
    """The defect: an engine whose clients begin with what the last one left, though they were all
    sent the same."""

    inner: Any

    @property
    def clients(self) -> Sequence[str]:
        clients: Sequence[str] = self.inner.clients
        return clients

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        left = None
        for job in jobs:
            received = Dense().decode(job.payload) if left is None else left
            [reply] = self.inner.run([replace(job, payload=Dense().encode(received))])
            left = add(received, unpack(job.client, reply.payload, Dense(), layout(received)).delta)
            yield reply


ENGINES: dict[str, Callable[[Site], InProcess | Processes | Cohort]] = {
    "inprocess": InProcess,
    "processes": lambda site: Processes(site, workers=1),  # in which all clients follow each other
    "cohort": Cohort,
}


def alike(one: Reply | Failure, two: Reply | Failure, received: Tensors, exactly: bool) -> bool:
    """The same bytes, or updates that a stack of clients gives in another order of sums."""
    if exactly:
        return one == two
    assert isinstance(one, Reply) and isinstance(two, Reply)
    a, b = (
        unpack(each.client, each.payload, Dense(), layout(received)).delta for each in (one, two)
    )
    return all(torch.allclose(x, b[name], rtol=0, atol=1e-4) for name, x in a.items())


@pytest.mark.parametrize(
    ("name", "method", "defect"),
    [
        ("inprocess", "full", False),
        ("inprocess", "full", True),
        ("inprocess", "head", False),
        ("inprocess", "head", True),
        ("processes", "full", False),
        ("cohort", "full", False),
        ("cohort", "full", True),
    ],
)
def test_each_client_starts_from_the_same_state(name: str, method: str, defect: bool) -> None:
    """What a client replies in a round is what it replies to the same job alone, whoever trained
    before it."""
    plan = points_plan(method=method, rounds=1)
    site = open_site(plan)
    begun = start(plan, site.params())
    with closing(ENGINES[name](site)) as engine:
        recording = Recording(OneAfterAnother(engine) if defect else engine)
        list(federate(plan, recording, begun))
    alone = [Worker(open_site(plan), Nowhere())(job) for job in recording.jobs]
    pairs = zip(alone, recording.replies, strict=True)
    same = [alike(one, two, begun.params, name != "cohort") for one, two in pairs]
    assert same == [True, *[not defect] * (plan.cohort - 1)]


def test_in_a_chain_each_client_starts_from_the_last_one_s_result(points: Site) -> None:
    plan = points_plan(sampler="sequential_chain", cohort=1, rounds=26)
    engine = Recording(on(points, plan))
    rounds = list(federate(plan, engine, start(plan, points.params())))
    assert [job.client for job in engine.jobs] == [*points.data.clients, *points.data.clients[:2]]
    state = points.params()
    for (after, _), job, reply in zip(rounds, engine.jobs, engine.replies, strict=True):
        assert equal(plan.downlink.decode(job.payload), state) and isinstance(reply, Reply)
        state = add(state, unpack(job.client, reply.payload, plan.uplink, layout(state)).delta)
        assert equal(after.params, state)


def test_a_chain_has_one_client_at_a_time() -> None:
    with pytest.raises(PlanError, match="set cohort = 1"):
        points_plan(sampler="sequential_chain")


def test_a_momentum_is_kept_or_handed_on_but_not_both() -> None:
    with pytest.raises(PlanError, match="choose one"):
        points_plan(local={"as_published": True, "restart_schedule": False})
