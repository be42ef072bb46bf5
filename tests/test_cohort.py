"""Laws of the cohort engine: to 1e-4 of a client's change what one after another gives, whatever is
in the plan."""

import os
from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow_but
from parts import Blobs, FailingDisk, Odd, Points, Raising
from rounds import PRIVATE, Recording, distance, staged

from fedpeft.core.facts import Fact, offered_by
from fedpeft.core.interfaces import Store
from fedpeft.core.types import Failure, Job, Reply, Update
from fedpeft.engines.inprocess import InProcess
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.registry import build, names
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.post import encode_start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Folder, Nowhere
from fedpeft.storage.files import SECRET, StoreError
from fedpeft.wire.frames import headers, layout_of, unframe
from fedpeft.wire.payloads import unpack

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


def plan_of(local: Mapping[str, Any] = {}, **changes: Any) -> Plan:
    return read_plan({**RAGGED, **changes, "local": {**RAGGED["local"], **local}})


def read(plan: Plan, reply: Reply | Failure) -> Update:
    assert isinstance(reply, Reply), reply
    return unpack(
        reply.client, reply.payload, plan.uplink, layout_of(unframe(reply.payload, nested=True)[1])
    )


def stores(where: Path) -> tuple[Folder, Folder]:
    """For each engine one, both with the same noise where a plan asks for some."""
    for folder in ("alone", "together"):
        (where / folder).mkdir()
        (where / folder / SECRET).write_bytes(bytes(range(32)))
    return Folder(where / "alone"), Folder(where / "together")


def both(
    site: Site, plan: Plan, where: Path
) -> tuple[Cohort, list[tuple[Reply | Failure, Reply | Failure]]]:
    """Rounds one after another, and what the cohort answers to the same jobs."""
    site = replace(site, plan=plan)
    alone, together = stores(where)
    reference = Recording(InProcess(site, alone))
    state = start(plan, site.params())
    for _ in federate(plan, reference, state):
        pass
    engine = Cohort(site, together)
    rounds = range(plan.rounds)
    replies = [
        reply
        for r in rounds
        for reply in engine.run(job for job in reference.jobs if job.round == r)
    ]
    assert [reply.client for reply in replies] == [reply.client for reply in reference.replies]
    return engine, list(zip(replies, reference.replies, strict=True))


def check(site: Site, plan: Plan, where: Path, tolerance: float = TOLERANCE) -> Cohort:
    engine, pairs = both(site, plan, where)
    for got, want in pairs:
        mine, theirs = read(plan, got), read(plan, want)
        assert isinstance(got, Reply) and isinstance(want, Reply)
        assert distance(mine.delta, theirs.delta) <= tolerance
        assert mine.weight == theirs.weight
        assert mine.metrics.keys() == theirs.metrics.keys()
        for name, metric in theirs.metrics.items():
            assert mine.metrics[name].weight == metric.weight
            assert mine.metrics[name].total == pytest.approx(metric.total, rel=tolerance)
        # the header holds the loss as text, whose last digits may differ
        assert len(got.payload) - headers(got.payload) == len(want.payload) - headers(want.payload)
    return engine


@pytest.fixture(scope="module")
def points() -> Site:
    return open_site(plan_of())


SPARSE = {n for n in names("codec") if Fact.SPARSE in offered_by(build("codec", n))}
UPWARD = SPARSE | {n for n in names("codec") if getattr(build("codec", n), "reads_sent", False)}
FOLLOWS = {n for n in names("codec") if getattr(build("codec", n), "follows", False)}
SCAFFOLD: dict[str, Any] = {"local": {"correction": "scaffold"}}
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
    **{f"uplink {name}": {"uplink": name} for name in names("codec") if name not in FOLLOWS},
    **{f"downlink {name}": {"downlink": name} for name in names("codec") if name not in UPWARD},
    **{
        name: {**staged(name), "uplink": "dense" if name in PRIVATE else "topk"}
        for name in names("stage")
    },
    "scaffold and stages": {
        **SCAFFOLD,
        "stages": ["error_feedback"],
        "uplink": "topk",
    },
    "head": {"method": "head"},
}


@pytest.mark.parametrize("changes", LOCALS.values(), ids=LOCALS)
def test_together_is_one_after_another(
    points: Site, tmp_path: Path, changes: dict[str, Any]
) -> None:
    plan = plan_of(**changes)
    site = open_site(plan) if "method" in changes else points
    assert not check(site, plan, tmp_path).alone


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_in_a_lower_precision_to_that(points: Site, tmp_path: Path, precision: str) -> None:
    assert not check(points, plan_of({"precision": precision}), tmp_path, 0.02).alone


def test_clients_have_steps_and_last_batches_of_their_own(points: Site) -> None:
    """Otherwise the tests here would show less than they seem to."""
    sizes = [points.data.size(client) for client in points.data.clients]
    assert len({ceil(size / 8) for size in sizes}) > 3 and len({size % 8 for size in sizes}) > 3


def test_each_client_draws_its_own_dropout_as_if_it_were_alone(tmp_path: Path) -> None:
    plan = plan_of(task={"name": "parts:Points", "network": "dropping"}, method="full")
    assert not check(open_site(plan), plan, tmp_path).alone


def test_batches_of_other_shapes_go_apart(tmp_path: Path) -> None:
    plan = plan_of(task={"name": "parts:Odd", "what": "cut"})
    assert not check(open_site(plan), plan, tmp_path).alone


@pytest.mark.parametrize(
    "method", slow_but(["prompt"], ["lora", "prompt", "bias", {"name": "lora", "dropout": 0.2}])
)
def test_a_transformer_with_its_clients_dropout(tmp_path: Path, method: Any) -> None:
    partition = {"name": "dirichlet", "clients": 90, "alpha": 1.0}
    plan = read_plan(
        {
            "method": method,
            "partition": partition,
            "local": {"lr": 0.05, "batch_size": 8},
            "rounds": 1,
        }
    )
    assert not check(open_site(plan), plan, tmp_path).alone


def test_a_stack_is_split_where_there_is_no_room(points: Site, tmp_path: Path) -> None:
    site = replace(points, plan=plan_of(rounds=1, **SCAFFOLD))
    jobs = jobs_of(site)
    whole, parts = (
        Cohort(site, Folder(tmp_path / "whole")),
        Cohort(site, Folder(tmp_path / "parts")),
    )
    want = list(whole.run(jobs))
    parts.stacks.limits |= dict.fromkeys(whole.stacks.limits, 2)
    for mine, theirs in zip(parts.run(jobs), want, strict=True):
        assert distance(read(site.plan, mine).delta, read(site.plan, theirs).delta) <= TOLERANCE


def test_out_of_memory_halves_the_stack(tmp_path: Path) -> None:
    """A client's step asks for so many bytes that two cannot have them; none of them is ever
    written to."""
    each = int(0.6 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        torch.empty(each, dtype=torch.uint8)
        torch.empty(2 * each, dtype=torch.uint8)
        pytest.skip("this system promises memory that it does not have")
    except RuntimeError as error:
        assert "allocate memory" in str(error)
    plan = plan_of(task={"name": "parts:Odd", "what": "large", "trigger": float(each)}, rounds=1)
    engine = check(open_site(plan), plan, tmp_path)
    assert not engine.alone and 1 in engine.stacks.limits.values()


def jobs_of(site: Site) -> list[Job]:
    payload = encode_start(site.plan, start(site.plan, site.params()))
    return [
        Job("run", 0, client, "fit", 7 + k, None, payload)
        for k, client in enumerate(site.data.clients)
    ]


def trigger() -> float:
    """The first feature of one training example."""
    point: torch.Tensor = Blobs(examples=600).load().train.columns["point"]
    return float(point[100, 0])


def answers(
    plan: Plan, points: Site, store: Store | None = None
) -> tuple[Cohort, list[Any], list[Any]]:
    """What a cohort of all clients answers, and what they answer one after another."""
    site = replace(points, plan=plan)
    engine = Cohort(site, store or Nowhere())
    return engine, list(engine.run(jobs_of(site))), list(InProcess(site).run(jobs_of(site)))


@pytest.mark.parametrize("error", ["IndexError", "ArithmeticError"])
def test_what_one_client_raises_is_its_failure_alone(points: Site, error: str) -> None:
    task = Raising(trigger(), error, Points("tied"))
    engine, got, want = answers(replace(plan_of(), task=task), points)
    assert [one for one in got if isinstance(one, Failure)] == [
        one for one in want if isinstance(one, Failure)
    ]
    assert sum(isinstance(one, Failure) for one in got) == 1 and not engine.alone
    for mine, theirs in zip(got, want, strict=True):
        assert (
            mine == theirs
            or distance(read(engine.site.plan, mine).delta, read(engine.site.plan, theirs).delta)
            < 1e-4
        )


def test_a_client_that_diverges_does_not_poison_its_neighbours(points: Site) -> None:
    plan = replace(plan_of(), task=Odd("infinite", trigger(), Points("tied")))
    engine, got, want = answers(plan, points)
    [failure] = [one for one in got if isinstance(one, Failure)]
    [expected] = [one for one in want if isinstance(one, Failure)]
    assert failure == expected and "diverged" in failure.reason and not engine.alone
    for mine, theirs in zip(got, want, strict=True):
        assert (
            mine == theirs
            or distance(read(plan, mine).delta, read(plan, theirs).delta) <= TOLERANCE
        )


@pytest.mark.parametrize("method", ["reply", "load", "save"])
def test_a_failing_disk_ends_the_round(points: Site, tmp_path: Path, method: str) -> None:
    site = replace(points, plan=plan_of(**SCAFFOLD))
    store = FailingDisk(Folder(tmp_path), site.data.clients[1], method)
    with pytest.raises(StoreError, match="No space left on device: 'memory'"):
        list(Cohort(site, store).run(jobs_of(site)[:3]))


def test_asked_again_a_client_sends_the_same_bytes(points: Site, tmp_path: Path) -> None:
    site = replace(points, plan=plan_of(**SCAFFOLD))
    jobs = jobs_of(site)
    first = list(Cohort(site, Folder(tmp_path)).run(jobs[:5]))
    assert list(Cohort(site, Folder(tmp_path)).run(jobs))[:5] == first


def test_nobody_trains_before_a_reply_is_asked_for(points: Site, tmp_path: Path) -> None:
    site = replace(points, plan=plan_of(**SCAFFOLD))
    replies = Cohort(site, Folder(tmp_path)).run(jobs_of(site))
    assert not list(tmp_path.iterdir())
    assert next(replies).client == site.data.clients[0]
    assert len(list(tmp_path.iterdir())) == 1


EXAMPLES_ALONE: dict[str, Any] = {
    "local": {"name": "dp_sgd", "lr": 0.05, "noise_multiplier": 0.0, "clip_norm": 1.0},
    "weighting": "uniform",
    "delta": 1e-3,
    "accountant": "rdp",
}
UNFIT = {
    "statistics": (
        plan_of(task={"name": "parts:Points", "network": "convolution"}),
        "'norm' takes statistics",
    ),
    "random": (plan_of(task={"name": "parts:Odd", "what": "random"}), "random"),
    "examples": (
        read_plan({**RAGGED, **EXAMPLES_ALONE}),
        "takes gradients example by example",
    ),
    "heavy": (
        plan_of(
            task={"name": "parts:Points", "network": "hidden", "features": 600},
            data={"name": "parts:Blobs", "features": 600, "examples": 600},
        ),
        "so that little is shared",
    ),
}


@pytest.mark.parametrize(("plan", "why"), UNFIT.values(), ids=UNFIT)
def test_what_cannot_be_stacked_goes_one_after_another_and_says_so_once(
    plan: Plan, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site, (alone, together) = open_site(plan), stores(tmp_path)
    engine = Cohort(site, together)
    for turn in range(2):
        jobs = [replace(job, round=turn) for job in jobs_of(site)]
        assert list(engine.run(jobs)) == list(InProcess(site, alone).run(jobs))
    [line] = [record.message for record in caplog.records if record.name == "fedpeft"]
    assert why in line and "one after another" in line and engine.alone in line
