"""Laws of the cohort engine: to 1e-4 of a client's change what one after another gives, whatever is in the plan."""

from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import Blobs, FailingDisk, Points, Raising
from rounds import Recording

from fedpeft.client import Site, open_site
from fedpeft.core.interfaces import Store
from fedpeft.core.stores import Folder, Nowhere, StoreError
from fedpeft.core.types import Failure, Job, Reply, Tensors, Update
from fedpeft.core.wire import headers, layout_of, unframe, unpack
from fedpeft.engines.cohort import Cohort
from fedpeft.engines.inprocess import InProcess
from fedpeft.loop import federate, start
from fedpeft.plan import Plan, read_plan
from fedpeft.registry import names

TOLERANCE = 1e-4
RAGGED: dict[str, Any] = {
    "task": {"name": "parts:Points", "network": "tied"},
    "data": {"name": "parts:Blobs", "examples": 600},
    "partition": {"name": "dirichlet", "clients": 12, "alpha": 1.0},
    "method": "full",
    "local": {"lr": 0.05, "batch_size": 8, "epochs": 2},
    "rounds": 2,
    "cohort": 6,
}


def plan_of(local: Mapping[str, Any] = {}, **changes: Any) -> Plan:  # noqa: B006  # never written to
    return read_plan({**RAGGED, **changes, "local": {**RAGGED["local"], **local}})


def read(plan: Plan, reply: Reply | Failure) -> Update:
    assert isinstance(reply, Reply), reply
    return unpack(reply.client, reply.payload, plan.uplink, layout_of(unframe(reply.payload)[1]))


def distance(got: Tensors, want: Tensors) -> float:
    """The difference of what two engines send, all tensors as one vector, over its length."""
    assert got.keys() == want.keys()
    apart = sum(float((got[n].double() - x.double()).square().sum()) for n, x in want.items())
    return float((apart / sum(float(x.double().square().sum()) for x in want.values())) ** 0.5)


def both(site: Site, plan: Plan, where: Path) -> tuple[Cohort, list[tuple[Reply | Failure, Reply | Failure]]]:
    """Rounds one after another, and what the cohort answers to the same jobs."""
    site = replace(site, plan=plan)
    reference = Recording(InProcess(site, Folder(where / "alone")))
    state = start(plan, site.params())
    for _ in federate(plan, reference, state):
        pass
    engine = Cohort(site, Folder(where / "together"))
    rounds = range(plan.rounds)
    replies = [reply for r in rounds for reply in engine.run(job for job in reference.jobs if job.round == r)]
    assert [reply.client for reply in replies] == [reply.client for reply in reference.replies]
    return engine, list(zip(replies, reference.replies, strict=True))


def check(site: Site, plan: Plan, where: Path, tolerance: float = TOLERANCE) -> Cohort:
    engine, pairs = both(site, plan, where)
    for got, want in pairs:
        mine, theirs = read(plan, got), read(plan, want)
        print(distance(mine.delta, theirs.delta), len(got.payload), len(want.payload), headers(got.payload), headers(want.payload))
        assert distance(mine.delta, theirs.delta) <= tolerance
        assert mine.weight == theirs.weight
        assert mine.metrics["loss"].weight == theirs.metrics["loss"].weight
        assert mine.metrics["loss"].total == pytest.approx(theirs.metrics["loss"].total, rel=1e-5)
        # the header holds the loss as text, whose last digits may differ
        assert len(got.payload) - headers(got.payload) == len(want.payload) - headers(want.payload)
    return engine


@pytest.fixture(scope="module")
def points() -> Site:
    return open_site(plan_of())


SCAFFOLD = {"local": {"correction": "scaffold"}, "server": "scaffold"}
LOCALS: dict[str, dict[str, Any]] = {
    **{name: {"local": {"optimizer": name}} for name in names("optimizer")},
    "no momentum": {"local": {"optimizer": {"name": "sgd", "momentum": 0.0, "nesterov": False}}},
    "weight decay": {"local": {"optimizer": {"name": "sgd", "weight_decay": 0.1}}},
    "prox": {"local": {"correction": {"name": "prox", "mu": 0.5}}},
    "prox and adamw": {"local": {"correction": "prox", "optimizer": "adamw"}},
    "scaffold": SCAFFOLD,
    "cosine": {"local": {"schedule": "cosine", "warmup": 0.2}},
    "linear": {"local": {"schedule": "linear", "optimizer": "adamw"}},
    "clip": {"local": {"clip_norm": 0.1}},
    "float16": {"local": {"precision": "float16"}},
    **{f"uplink {name}": {"uplink": name} for name in names("codec")},
    **{f"downlink {name}": {"downlink": name} for name in names("codec") if name != "topk"},
    **{name: {"stages": [name], "uplink": "topk"} for name in names("stage")},
    "scaffold and stages": {**SCAFFOLD, "stages": list(names("stage")), "uplink": "topk"},
    "head": {"method": "head"},
}


@pytest.mark.parametrize("changes", LOCALS.values(), ids=LOCALS)
def test_together_is_one_after_another(points: Site, tmp_path: Path, changes: dict[str, Any]) -> None:
    plan = plan_of(**changes)
    site = open_site(plan) if "method" in changes else points
    assert not check(site, plan, tmp_path).alone
