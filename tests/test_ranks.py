"""Rounds in which clients have low-rank factors of different ranks, and what is merged beside
them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import Recording, changed, distance, on
from torch import nn

from fedpeft import PlanError, open_site, read_plan
from fedpeft.compute.scores import evaluate
from fedpeft.core.interfaces import LowRank
from fedpeft.core.low_rank import EXACT, pairs
from fedpeft.core.outputs import Outputs
from fedpeft.core.tensors import equal
from fedpeft.core.types import Batch, Tensors
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.registry import build, names
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site
from fedpeft.runs.execute import execute, open_engine
from fedpeft.runs.folder import create, read_rounds
from fedpeft.storage.files import load_tensors

KNOWING = [
    name for name in sorted(names("aggregator")) if isinstance(build("aggregator", name), LowRank)
]
PLAN: dict[str, Any] = {
    "task": {"name": "parts:Points", "network": "hidden", "features": 24},
    "data": {"name": "parts:Blobs", "features": 24, "examples": 400},
    "method": {"name": "lora", "rank": 8, "target": ["first"], "head": "head"},
    "partition": {"name": "iid", "clients": 12},
    "local": {"lr": 0.2, "batch_size": 8},
    "rounds": 2,
    "cohort": 3,
    "ranks": [2, 4, 8],
}


@dataclass(frozen=True)
class Losses:
    """As much of a task as is measured here."""

    task: Any

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        outputs: Outputs = self.task.forward(model, batch, head)
        return outputs

    def metrics(self, outputs: Outputs, batch: Batch) -> Tensors:
        return {"loss": self.task.losses(outputs, batch)}


def loss(site: Site, params: Tensors, client: str | None = None) -> float:
    task: Any = Losses(site.plan.task)
    batches = site.data.held_out() if client is None else site.data.training(client)
    return evaluate(task, site.model, params, batches)["loss"].value


@pytest.fixture(scope="module")
def site() -> Site:
    return open_site(read_plan({**PLAN, "aggregator": "fedit"}))


def test_a_client_of_rank_4_receives_and_sends_rank_4(site: Site) -> None:
    plan = read_plan({**PLAN, "aggregator": "fedit", "cohort": 6, "rounds": 1})
    engine = Recording(on(site, plan))
    [(state, ledger)] = federate(plan, engine, start(plan, site.params()))
    assert not ledger.failed
    head = sum(x.nbytes for n, x in state.params.items() if ".lora_" not in n)
    each = sum(x.nbytes for n, x in state.params.items() if ".lora_" in n) // 8
    every = site.data.clients
    rank = {client: plan.view(client, 0, every).rank for client in every}
    assert {rank[client] for client in ledger.down} == {2, 4, 8}
    for job in engine.jobs:
        received = plan.downlink.decode(job.payload)
        assert {min(x.shape) for n, x in received.items() if ".lora_" in n} == {rank[job.client]}
        for sent in (ledger.down[job.client], ledger.up[job.client]):
            assert 0 < sent - head - each * (rank[job.client] or 0) < 400  # names and shapes


@pytest.mark.parametrize("name", KNOWING)
def test_rounds_with_ranks_are_the_same_one_by_one_and_together(name: str, site: Site) -> None:
    plan = read_plan({**PLAN, "aggregator": name})
    here, begun = replace(site, plan=plan), start(plan, site.params())
    engine = Cohort(here)
    one, two = (list(federate(plan, each, begun)) for each in (on(site, plan), engine))
    assert not engine.alone
    assert all(not ledger.failed and not ledger.note for _, ledger in (*one, *two))
    assert all(ledger.aggregation_error is not None for _, ledger in one)
    for (mine, _), (theirs, _) in zip(two, one, strict=True):
        changes = (changed(state.params, begun.params) for state in (mine, theirs))
        assert distance(*changes) <= 1e-4
    assert loss(here, one[-1][0].flat) < 0.9 * loss(here, begun.params)


def test_what_is_merged_reaches_clients_that_were_not_there(site: Site) -> None:
    """With factors that begin anew, the loss in a second round that learns nothing is that of the
    merged model."""
    first = read_plan(
        {**PLAN, "aggregator": "flora", "ranks": [4], "method": {**PLAN["method"], "head": ""}}
    )
    state, _ = next(federate(first, on(site, first), start(first, site.params())))
    assert not any(state.params[b].any() for _, b in pairs(state.params).values())
    still = replace(first, cohort=12, local=replace(first.local, lr=1e-9))  # type: ignore[type-var]
    [(_, ledger)] = federate(still, on(site, still), state)
    sizes = [site.data.size(client) for client in site.data.clients]
    losses = [loss(site, state.flat, client) for client in site.data.clients]
    wanted = sum(each * n for each, n in zip(losses, sizes, strict=True)) / sum(sizes)
    assert ledger.metrics["loss"].value == pytest.approx(wanted, rel=1e-4)
    without = loss(site, state.params)
    assert abs(without - loss(site, state.flat)) > 0.01


def test_a_resumed_run_ends_in_the_same_bits(site: Site, tmp_path: Path) -> None:
    plan = read_plan({**PLAN, "aggregator": "fedex", "rounds": 3})
    here, ends = replace(site, plan=plan), []
    for stops in ([3], [1, 2]):
        folder = create(plan, tmp_path / str(len(stops)))
        for rounds in stops:
            for _ in zip(
                range(rounds), execute(folder, here, open_engine(folder, here)), strict=False
            ):
                pass
        errors = [line["aggregation_error"] for line in read_rounds(folder)]
        assert len(errors) == 3 and max(errors) < 1e-5
        ends.append(load_tensors(folder.checkpoint)[0])
    assert any(EXACT in name for name in ends[0]) and equal(*ends)


def test_only_what_is_trained_in_a_round_goes_up(site: Site) -> None:
    plan = read_plan({**PLAN, "aggregator": "rolora", "ranks": [8]})
    before = start(plan, site.params()).params
    for turn, (state, ledger) in enumerate(
        federate(plan, on(site, plan), start(plan, site.params()))
    ):
        moved = [
            [not torch.equal(state.params[n], before[n]) for n in pair]
            for pair in pairs(before).values()
        ]
        assert moved == [[turn == 1, turn == 0]] * len(moved)
        factors = sum(x.nbytes for n, x in before.items() if ".lora_" in n)
        assert max(ledger.down.values()) - max(ledger.up.values()) == pytest.approx(
            factors / 2, abs=200
        )
        before = state.params


def test_with_a_frozen_a_half_the_factors_travel(site: Site) -> None:
    plan = read_plan({**PLAN, "method": {**PLAN["method"], "name": "ffa"}, "aggregator": "fedit"})
    here = open_site(plan)
    begun = start(plan, here.params())
    state, ledger = list(federate(plan, on(here, plan), begun))[-1]
    # It is exact, and A is not there to tell.
    assert not ledger.failed and ledger.aggregation_error is None
    half, whole = (
        sum(x.nbytes for n, x in p.items() if ".lora_" in n) for p in (state.params, site.params())
    )
    assert 2 * half == whole
    assert loss(here, state.params) < 0.9 * loss(here, begun.params)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ranks": [16]}, "from 1 to method.rank = 8"),
        ({"ranks": []}, "must be numbers from 1 on"),
        ({"aggregator": "mean"}, "Mean takes tensors of one shape: with ranks set aggregator"),
        ({"method": "bias"}, "Bias has no rank"),
        ({"aggregator": "flora", "server": "momentum"}, "Momentum would change them"),
        (
            {"aggregator": "fedex", "server": {"name": "average", "lr": 0.5}},
            "Average would change them",
        ),
        (
            {"aggregator": "rolora", "stages": ["error_feedback"], "uplink": "topk"},
            "and ErrorFeedback remembers: leave out error feedback",
        ),
        ({"local": {"correction": "scaffold"}}, "SCAFFOLD"),
        ({"local": {"as_published": True}}, "choose one"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        read_plan({**PLAN, "aggregator": "fedit", **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"method": {"name": "vera", "target": ["first"], "head": "head"}, "ranks": [8]},
        {"personal": ["*.lora_B.*"]},
    ],
    ids=["no factors", "personal"],
)
def test_ranks_are_of_factors_that_travel(changes: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="factors"):
        open_site(read_plan({**PLAN, "aggregator": "fedit", **changes}))
